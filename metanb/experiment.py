"""One run: meta-train, measure the landscape after each epoch, checkpoint, resume, record. And the memoised `run`."""

import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from tqdm import tqdm

from metanb import checkpoint, images, landscape, provenance, records
from metanb.adapt import accuracy, adapt, flatten, keep_freed_memory, losses
from metanb.checkpoint import State
from metanb.landscape import Stat
from metanb.meta import chunk_size, meta_gradient
from metanb.nets import ConvNet
from metanb.settings import Settings
from metanb.tasks import Tasks, sample_tasks

TRAIN, VALID, TEST = range(3)  # streams of random numbers: the tasks of iteration i come from [seed, TRAIN, i]


class DivergedError(ArithmeticError):
    """The meta-training loss is no longer finite; the message names the iteration and the run."""


def run(settings: Settings, device: str = "auto") -> records.Record:
    """The record of these settings: read if there is one, trained if not.

    A run that was interrupted goes on from its last epoch, to the very numbers of an uninterrupted one on the same CPU.
    A second process that asks for a run in progress waits for it.

    Args:
        settings: what to run.
        device: "cpu", "cuda", or "auto" for a GPU where there is one.

    Raises:
        DivergedError: a meta-training loss is not finite; the last checkpoint is kept.
        metanb.images.DataError: the data set is missing or damaged.
        metanb.records.RecordError: a record of these settings is there, but damaged.
    """
    found = records.find(settings)
    if found is not None:
        return found
    with _lock(settings):
        return records.find(settings) or _train(settings, resolve(device))


def resolve(device: str) -> torch.device:
    """The torch device of a name; "auto" is a GPU where there is one. Raises ValueError for one that is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    there = ["cpu", "cuda"][: 1 + torch.cuda.is_available()] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if device not in there:
        raise ValueError(f"device {device!r} is not there: use 'auto' or one of {', '.join(map(repr, there))}")
    return torch.device(device)


def trained_net(settings: Settings, device: str = "auto") -> ConvNet:
    """The network at the end of a run, from the weights that the local store keeps; trained if they are not there."""
    path = _checkpoint(settings)
    with _lock(settings):
        if not path.exists() or checkpoint.read(path)["epoch"] < settings.epochs:
            _train(settings, resolve(device))
    example = images.load(settings.dataset, "test", partition=settings.partition)
    net = new_net(settings, example.images.shape[2:])
    net.load_state_dict(checkpoint.read(path)["net"])
    return net


def measure(net: ConvNet, test: Tasks, valid: Tasks, settings: Settings) -> dict[str, Stat]:
    """The paper's measures of the network theta_s on the fixed tasks, each over tasks unless said otherwise.

    On meta-test tasks: `support_loss_before` (at theta_s), `support_loss`, `query_loss`, `query_accuracy` and
    `hessian_norm` (at the adapted theta~_i), `distance` norm(theta~_i - theta_s), `trajectory_coherence` (n: tasks that
    moved at all) and `gradient_coherence`. On meta-validation tasks: `valid_accuracy`. Of the network: `body_norm` and
    `head_norm`, the L2 norms of the convolutions' weights and of the head's.
    """
    theta = flatten(net).detach()
    values: dict[str, list[torch.Tensor]] = {}
    for part in test.split(landscape.TASKS_AT_ONCE):
        start = theta.expand(len(part), -1).clone().requires_grad_()
        before = losses(net, start, part.support_x, part.support_y)
        (gradient,) = torch.autograd.grad(before.sum(), start)
        adapted = _adapt_only(net, part, settings)

        def support_loss(params: torch.Tensor, part: Tasks = part) -> torch.Tensor:
            return losses(net, params, part.support_x, part.support_y)

        with torch.no_grad():
            found = {
                "support_loss_before": before.detach(),
                "support_loss": support_loss(adapted),
                "query_loss": losses(net, adapted, part.query_x, part.query_y),
                "query_accuracy": accuracy(net, adapted, part.query_x, part.query_y),
                "displacement": adapted - theta,
                "gradient": gradient,
            }
        found["hessian_norm"] = landscape.hessian_norms(support_loss, adapted).norms
        for name, value in found.items():
            values.setdefault(name, []).append(value)
    whole = {name: torch.cat(parts) for name, parts in values.items()}
    displacement, gradient = whole.pop("displacement"), whole.pop("gradient")
    stats = {name: landscape.summarise(value) for name, value in whole.items()}
    stats["distance"] = landscape.distance(displacement)
    stats["trajectory_coherence"], _ = landscape.trajectory_coherence(displacement)
    stats["gradient_coherence"] = landscape.gradient_coherence(gradient)
    correct = [
        accuracy(net, _adapt_only(net, part, settings), part.query_x, part.query_y)
        for part in valid.split(landscape.TASKS_AT_ONCE)
    ]
    stats["valid_accuracy"] = landscape.summarise(torch.cat(correct))
    for part, weights in (("body", [block.weight for block in net.blocks]), ("head", [net.head.weight])):
        norm = float(torch.cat([weight.detach().flatten() for weight in weights]).norm())
        stats[f"{part}_norm"] = Stat(norm, norm, 0.0, 0.0, 1)
    return stats


def _adapt_only(net: ConvNet, part: Tasks, settings: Settings) -> torch.Tensor:
    return adapt(
        net, part, settings.inner_lr, settings.test_steps, first_order=True, adapt_norm=settings.adapt_norm
    ).detach()


def new_net(settings: Settings, image_shape: tuple[int, int, int]) -> ConvNet:
    """The untrained network of these settings, on the CPU; torch's own random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return ConvNet(image_shape, settings.ways, settings.filters, settings.head_init)


def _lock(settings: Settings) -> FileLock:
    """Keeps two processes off one run; the store is made if it is not there."""
    records.store().mkdir(parents=True, exist_ok=True)
    return FileLock(records.store() / f"{settings.id}.lock")


def _checkpoint(settings: Settings) -> Path:
    return records.store() / f"{settings.id}.pt"


def _train(settings: Settings, device: torch.device) -> records.Record:
    sets = {
        split: images.load(
            settings.dataset, split, partition=settings.partition, rotations=settings.rotations and split == "train"
        )
        for split in ("train", "valid", "test")
    }
    test, valid = (
        sample_tasks(sets[split], settings.test_tasks, settings.ways, settings.shots, settings.test_queries,
                     np.random.default_rng([settings.task_seed, stream])).to(device)
        for split, stream in (("test", TEST), ("valid", VALID))
    )  # fmt: skip
    keep_freed_memory()
    net = new_net(settings, sets["train"].images.shape[2:]).to(device)
    origin = {
        **provenance.environment(device),
        "code": provenance.code(),
        "chunk": chunk_size(settings, device),
        "data": {split: found.digest for split, found in sets.items()},
    }
    state = State(net, torch.optim.Adam(net.parameters(), lr=settings.outer_lr), origin)
    path = _checkpoint(settings)
    if path.exists():
        state.load(path)
    bar = tqdm(
        total=settings.iterations, initial=max(0, state.epoch) * settings.epoch_iterations, desc=settings.id, unit="it",
        disable=not interactive(), dynamic_ncols=True,
    )  # fmt: skip
    with bar:
        for epoch in range(state.epoch + 1, settings.epochs + 1):
            wall, cpu = time.perf_counter(), time.process_time()
            stats = _epoch(state, sets["train"], settings, epoch, bar) if epoch else {}
            try:
                stats |= measure(net, test, valid, settings)
            except landscape.LandscapeError as error:
                raise _diverged(f"{error}, after epoch {epoch}", settings, epoch) from error
            iteration = epoch * settings.epoch_iterations
            state.rows += [{"epoch": epoch, "iteration": iteration, "measure": k} | asdict(v) for k, v in stats.items()]
            state.epoch = epoch
            state.wall += time.perf_counter() - wall
            state.cpu += time.process_time() - cpu
            state.save(path)
    times = {
        "started": state.started,
        "finished": provenance.now(),
        "wall_seconds": round(state.wall, 1),
        "cpu_seconds": round(state.cpu, 1),
        "resumed": state.resumed,
    }
    return records.write(settings, state.rows, state.origin | times, records.store())


def _epoch(state: State, train: images.ImageSet, settings: Settings, epoch: int, bar: tqdm) -> dict[str, Stat]:
    """One epoch of meta-training; the statistic of its loss is over iterations."""
    batch_losses = []
    last = epoch * settings.epoch_iterations
    device = next(state.net.parameters()).device
    for iteration in range(last - settings.epoch_iterations, last):
        rng = np.random.default_rng([settings.seed, TRAIN, iteration])
        tasks = sample_tasks(train, settings.meta_batch, settings.ways, settings.shots, settings.queries, rng)
        state.optimiser.zero_grad(set_to_none=True)
        batch = meta_gradient(
            state.net,
            tasks.to(device),
            settings.inner_lr,
            settings.inner_steps,
            first_order=settings.first_order,
            adapt_norm=settings.adapt_norm,
            chunk=chunk_size(settings, device),
        )
        loss = float(batch.mean())
        slope = float(torch.nn.utils.get_total_norm([p.grad for p in state.net.parameters()]))
        if not np.isfinite([loss, slope]).all():
            raise _diverged(f"loss is {loss}, its gradient's norm {slope}, at iteration {iteration}", settings, epoch)
        state.optimiser.step()
        batch_losses.append(loss)
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        bar.update()
    return {"train_loss": landscape.summarise(torch.tensor(batch_losses, dtype=torch.float64))}


def _diverged(what: str, settings: Settings, epoch: int) -> DivergedError:
    return DivergedError(
        f"{settings.id}: {what}: try a smaller inner_lr ({settings.inner_lr}) or outer_lr ({settings.outer_lr}); "
        f"the checkpoint of epoch {epoch - 1} is kept"
    )


def interactive() -> bool:
    """Whether somebody watches: a terminal, or a notebook open in Jupyter (papermill and nbval are nobody)."""
    return sys.stderr.isatty() or "JPY_SESSION_NAME" in os.environ
