"""One run: meta-train, measure the landscape after each epoch, checkpoint, resume, record. And the memoised `run`."""

import errno
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from metanb import checkpoint, images, landscape, provenance, records, weights
from metanb.adapt import keep_freed_memory
from metanb.checkpoint import State
from metanb.lanczos import LandscapeError, directions
from metanb.landscape import Stat
from metanb.measures import accuracies, measure
from metanb.meta import chunk_size, meta_gradient, supervised_gradient
from metanb.nets import ConvNet
from metanb.replay import Replayed
from metanb.settings import Settings
from metanb.tasks import Tasks, sample_images, sample_tasks

# Streams of random numbers: the tasks of iteration i come from [seed, TRAIN, i], fixed ones from [task_seed, stream].
# The final tasks are many: FINAL, FINAL + 1 and so on are the streams of PART tasks each.
TRAIN, VALID, TEST, FINAL = range(4)
PART = 60
CUDA_FULL = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


class DivergedError(ArithmeticError):
    """The meta-training loss is no longer finite; the message names the iteration and the run."""


class MemoryFullError(RuntimeError):
    """A run needs more memory than there is; the message names the run and the remedy."""


def run(settings: Settings, device: str = "auto", until: int | None = None) -> records.Record:
    """The record of these settings: read if there is one, trained if not.

    A run that was interrupted goes on from its last epoch, to the very numbers of an uninterrupted one on the same CPU.
    A second process that asks for a run in progress waits for it.

    Args:
        settings: what to run.
        device: "cpu", "cuda", or "auto" for a GPU where there is one.
        until: stop after the epoch that reaches this iteration, and record the run as far as it got.

    Raises:
        DivergedError: a meta-training loss is not finite; the last checkpoint is kept.
        MemoryFullError: the run does not fit into memory, the GPU's or the machine's; the last checkpoint is kept.
        metanb.cache.DataError: the data set is missing or damaged.
        metanb.records.RecordError: a record of these settings is there, but damaged.
    """
    last = settings.epoch_of(until)
    found = records.find(settings, last)
    if found is not None:
        return found
    with records.lock(settings.id), _enough_memory(settings):
        return records.find(settings, last) or _train(settings, resolve(device), last)


def resolve(device: str) -> torch.device:
    """The torch device of a name; "auto" is a GPU where there is one. Raises ValueError for one that is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    there = ["cpu", "cuda"][: 1 + torch.cuda.is_available()] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if device not in there:
        raise ValueError(f"device {device!r} is not there: use 'auto' or one of {', '.join(map(repr, there))}")
    return torch.device(device)


def trained_net(settings: Settings, device: str = "auto") -> ConvNet:
    """The network at the end of a run, on the CPU; trained where its weights are not stored.

    Weights kept beside the run's record come first, then the checkpoint in the local store. Neither
    needs the image set.

    Args:
        settings: of the run.
        device: to train on: "cpu", "cuda", or "auto" for a GPU where there is one.

    Raises RecordError if the kept weights, their record or the checkpoint are damaged; where the
    run is trained, whatever `run` raises.
    """
    if kept := _kept_net(settings, settings.epochs):
        return kept
    path = records.checkpoint(settings.id)
    with records.lock(settings.id), _enough_memory(settings):
        if not path.exists() or checkpoint.read(path)["epoch"] < settings.epochs:
            _train(settings, resolve(device), settings.epochs)
    return _net_of(settings, checkpoint.read(path))


def nets_after(settings: Settings, epochs: Iterable[int], device: str = "auto") -> dict[int, ConvNet]:
    """The network after each of some epochs, on the CPU; 0 is the untrained one.

    The weights after an epoch are read where they are kept beside the record of this run, stopped
    there. Elsewhere they are those of the run that ends after that epoch, as `trained_net` has
    them; of the runs that are trained for this a longer one goes on from a shorter one.
    """
    nets: dict[int, ConvNet] = {}
    shorter = None
    for epoch in sorted(set(epochs)):
        if epoch == 0:
            nets[epoch] = new_net(settings, load(settings, "train"))
            continue
        if kept := _kept_net(settings, epoch):
            nets[epoch] = kept
            continue
        part = settings.ending(epoch)
        if shorter is not None and records.checkpoint(shorter.id).exists():
            with records.lock(part.id):
                checkpoint.go_on_from(records.checkpoint(shorter.id), records.checkpoint(part.id))
        nets[epoch], shorter = trained_net(part, device), part
    return nets


def meta_test_tasks(settings: Settings) -> Tasks:
    """The fixed meta-test tasks on which a run's measures are taken."""
    return _fixed(settings, load(settings, "test"), settings.test_tasks, TEST)


def record_so_far(settings: Settings, device: str = "auto") -> records.Record | None:
    """Record a run that was stopped, as far as its checkpoint goes; None if that is not one epoch.

    The checkpoint stays: asked for again, the run goes on from there. Raises filelock.Timeout if another process is at
    it.
    """
    with records.lock(settings.id, patience=5):
        if (found := records.find(settings)) or not records.checkpoint(settings.id).exists():
            return found
        values = checkpoint.read(records.checkpoint(settings.id))
        if values["epoch"] < 1:
            return None
        return _record(settings, _net_of(settings, values).to(resolve(device)), values)


def new_net(settings: Settings, train: images.ImageSet) -> ConvNet:
    """The untrained network of these settings, on the CPU; torch's own random state stays as it is.

    Finetuning trains a head with an output for each meta-train class.
    """
    outputs = len(train.classes) if settings.algorithm == "finetune" else settings.ways
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return ConvNet(train.images.shape[2:], outputs, settings.filters, settings.head_init)


def load(settings: Settings, split: str) -> images.ImageSet:
    """The image set of one split; meta-training's with rotations, or with few classes, as the settings say."""
    train = split == "train"
    found = images.load(settings.dataset, split, partition=settings.partition, rotations=settings.rotations and train)
    few = train and settings.train_classes
    return images.keep(found, settings.train_classes, settings.class_seed) if few else found


def _net_of(settings: Settings, values: dict[str, Any]) -> ConvNet:
    """The network of a checkpoint."""
    return weights.net_of(settings, values["net"])


def _kept_net(settings: Settings, epoch: int) -> ConvNet | None:
    """The network after an epoch, if its weights are kept beside a record that ends there."""
    record = weights.find(settings, epoch)
    state = weights.load(record) if record else None
    return weights.net_of(settings, state) if state else None


def _fixed(settings: Settings, images_: images.ImageSet, n: int, stream: int) -> Tasks:
    """Tasks that are the same for every run of these settings and every epoch."""
    rng = np.random.default_rng([settings.task_seed, stream])
    return sample_tasks(images_, n, settings.ways, settings.shots, settings.test_queries, rng)


def _train(settings: Settings, device: torch.device, last: int) -> records.Record:
    """Train and measure up to epoch `last`, from the checkpoint if there is one, and record it."""
    sets = {split: load(settings, split) for split in images.SPLITS}
    test = _fixed(settings, sets["test"], settings.test_tasks, TEST).to(device)
    valid = _fixed(settings, sets["valid"], settings.test_tasks, VALID).to(device)
    keep_freed_memory()
    net = new_net(settings, sets["train"]).to(device)
    origin = {
        **provenance.environment(device),
        "code": provenance.code(),
        "chunk": chunk_size(settings, device),
        "data": {split: found.digest for split, found in sets.items()},
    }
    state = State(net, torch.optim.Adam(net.parameters(), lr=settings.outer_lr), origin)
    path = records.checkpoint(settings.id)
    if path.exists():
        state.load(path)
    gradient = Replayed(_gradient(net, settings), device)
    bar = tqdm(
        total=last * settings.epoch_iterations, initial=max(0, state.epoch) * settings.epoch_iterations,
        desc=settings.id, unit="it", disable=not interactive(), dynamic_ncols=True,
    )  # fmt: skip
    with bar:
        for epoch in range(state.epoch + 1, last + 1):
            wall, cpu = time.perf_counter(), time.process_time()
            stats = _epoch(state, gradient, sets["train"], settings, epoch, bar) if epoch else {}
            try:
                stats |= measure(net, test, valid, settings)
            except LandscapeError as error:
                raise _diverged(f"{error}, after epoch {epoch}", settings, epoch) from error
            iteration = epoch * settings.epoch_iterations
            state.rows += [{"epoch": epoch, "iteration": iteration, "measure": k} | asdict(v) for k, v in stats.items()]
            state.epoch = epoch
            state.wall += time.perf_counter() - wall
            state.cpu += time.process_time() - cpu
            state.save(path)
    return _record(settings, net, vars(state))


def _record(settings: Settings, net: ConvNet, values: dict[str, Any]) -> records.Record:
    """Write the record of a run at the end or where it stopped: `values` are a State's, by name.

    What is measured only here: `final_accuracy`, of meta-test tasks that the epochs' measures do not use.
    """
    rows = list(values["rows"])
    if settings.final_tasks:
        test, parts = load(settings, "test"), []
        for i, first in enumerate(range(0, settings.final_tasks, PART)):
            tasks = _fixed(settings, test, min(PART, settings.final_tasks - first), FINAL + i)
            parts.append(accuracies(net, tasks, settings, FINAL + i))
        place = {"epoch": values["epoch"], "iteration": values["epoch"] * settings.epoch_iterations}
        rows.append(place | {"measure": "final_accuracy"} | asdict(landscape.summarise(torch.cat(parts))))
    times = {
        "started": values["started"],
        "finished": values["saved"],
        "wall_seconds": round(values["wall"], 1),
        "cpu_seconds": round(values["cpu"], 1),
        "resumed": values["resumed"],
    }
    return records.write(settings, rows, values["origin"] | times, records.store())


def _epoch(
    state: State, gradient: Replayed, train: images.ImageSet, settings: Settings, epoch: int, bar: tqdm
) -> dict[str, Stat]:
    """One epoch of training; statistics of `train_loss` and, with a regulariser, `relative_move` over iterations."""
    seen: dict[str, list[float]] = {}
    last, size = epoch * settings.epoch_iterations, sum(p.numel() for p in state.net.parameters())
    for iteration in range(last - settings.epoch_iterations, last):
        drawn = _drawn(train, settings, iteration, size)
        found = {name: float(value) for name, value in gradient(*drawn).items()}
        loss = found["train_loss"]
        slope = float(torch.nn.utils.get_total_norm([p.grad for p in state.net.parameters() if p.grad is not None]))
        if not np.isfinite([loss, slope]).all():
            raise _diverged(f"loss is {loss}, its gradient's norm {slope}, at iteration {iteration}", settings, epoch)
        state.optimiser.step()
        for name, value in found.items():
            seen.setdefault(name, []).append(value)
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        bar.update()
    return {name: landscape.summarise(torch.tensor(values, dtype=torch.float64)) for name, values in seen.items()}


def _drawn(train: images.ImageSet, settings: Settings, iteration: int, size: int) -> tuple[torch.Tensor, ...]:
    """What one iteration's gradient is of: images and classes; or a meta-batch, and a direction of `size` numbers."""
    rng = np.random.default_rng([settings.seed, TRAIN, iteration])
    if settings.algorithm == "finetune":  # as many images an iteration as MAML sees
        n_images = settings.meta_batch * settings.ways * (settings.shots + settings.queries)
        return sample_images(train, n_images, rng)
    tasks = sample_tasks(train, settings.meta_batch, settings.ways, settings.shots, settings.queries, rng)
    if settings.regulariser != "random":
        return tasks.tensors()
    return *tasks.tensors(), directions(1, size, int(rng.integers(2**63)))[0].float()


def _gradient(net: ConvNet, settings: Settings) -> Callable[..., dict[str, torch.Tensor]]:
    """A function of what `_drawn` gives: it leaves the gradient in the net, and returns what it saw, by measure."""

    def supervised(x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        net.zero_grad(set_to_none=True)
        return {"train_loss": supervised_gradient(net, x, y)}

    def meta(*drawn: torch.Tensor) -> dict[str, torch.Tensor]:
        net.zero_grad(set_to_none=True)
        outcome = meta_gradient(
            net,
            Tasks(*drawn[:4]),
            settings.inner_lr,
            settings.inner_steps,
            first_order=settings.first_order,
            adapt_norm=settings.adapt_norm,
            chunk=chunk_size(settings, net.head.weight.device),
            regulariser=settings.regulariser,
            gamma=settings.gamma,
            other=drawn[4] if drawn[4:] else None,
        )
        seen = {"train_loss": outcome.losses.mean()}
        return seen if settings.regulariser == "none" else seen | {"relative_move": outcome.moves.mean()}

    return supervised if settings.algorithm == "finetune" else meta


def _diverged(what: str, settings: Settings, epoch: int) -> DivergedError:
    return DivergedError(
        f"{settings.id}: {what}: try a smaller inner_lr ({settings.inner_lr}) or outer_lr ({settings.outer_lr}); "
        f"the checkpoint of epoch {epoch - 1} is kept"
    )


@contextmanager
def _enough_memory(settings: Settings) -> Iterator[None]:
    """Raises MemoryFullError where the work inside asks for more memory than there is.

    Smaller chunks would need less, but then a run's last bits would depend on what else the device had to do.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        # A library of CUDA's that finds no memory for itself says so in words alone.
        on_gpu = isinstance(error, torch.OutOfMemoryError) or any(one in str(error) for one in CUDA_FULL)
        # On the CPU torch's allocator raises a plain RuntimeError, and the system refuses to open a module's folder.
        here = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
        if not (on_gpu or here or getattr(error, "errno", None) == errno.ENOMEM):
            raise
        whose, other = ("the GPU's memory", ", or go on with --device cpu") if on_gpu else ("memory", "")
        raise MemoryFullError(
            f"{settings.id}: {whose} is full: stop what else uses it (in a grid: --processes 1){other}; the checkpoint "
            "of the last epoch is kept"
        ) from error


def interactive() -> bool:
    """Whether somebody watches: a terminal, or a notebook open in Jupyter (papermill and nbval are nobody)."""
    return sys.stderr.isatty() or "JPY_SESSION_NAME" in os.environ
