"""Measures taken later, of kept weights: a new measure for an old run, without training."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from metanb.landscape.measures import known_measures, measure_together
from metanb.maml.engine import precision
from metanb.maml.inner_loop import flatten
from metanb.runs import machine, plugins, records, store, training, weights
from metanb.runs.cohorts import TEST, VALID
from metanb.runs.records import Record, RecordError

PATIENCE = 5  # seconds to wait for a run that another process is training


def measure_later(
    record: Record, names: Sequence[str] | None = None, device: str = "auto"
) -> Record:
    """Take measures of a run's kept weights, on its own fixed tasks, and add them to its record.

    They are of the record's last epoch. What is recorded already stays as it is.

    Args:
        record: of a run whose weights are kept beside it, or whose checkpoint is in the store: then
            its weights are kept first.
        names: of the measures, as `measure` takes them, or of `training.FINAL_MEASURES`; None: all
            that the record does not have of its last epoch.
        device: to measure on: "cpu", "cuda", or "auto" for a GPU where there is one.

    Returns:
        The record with the measures.

    Raises:
        RecordError: the record has one of the measures of its last epoch, or is damaged.
        metanb.runs.weights.NoWeightsError: no weights are kept, and no checkpoint has them.
        ValueError: an unknown measure.
        metanb.data.cache.DataError: the data set is missing, or is not the one that the run was
            trained on.
        metanb.files.DiskError: the record's folder cannot be written.
        metanb.files.LockedError: another process is training the run.
    """
    torch_device = machine.resolve_device(device)
    _choose_measures(record, names)  # refused before anything is written
    if not (record.path / records.WEIGHTS).exists():
        weights.keep_weights(record)  # from the run's checkpoint
    with store.lock_run(record.settings.id, PATIENCE):
        record = records.read_record(record.path)
        wanted = _choose_measures(record, names)
        if not wanted:
            return record

        # The network and the fixed tasks of the run, in the images that it was trained on.
        settings = record.settings
        state = weights.load_weights(record)
        assert state is not None  # they are kept above
        net = weights.network_with(settings, state).to(torch_device)
        digests = record.provenance["data"]
        of_head = ("train",) if settings.test_head == "centred" else ()
        splits = (*of_head, "valid", "test")
        images = {split: training.load_split(settings, split, digests) for split in splits}
        test, valid = (
            training.fixed_tasks(settings, images[split], settings.test_tasks, stream)
            for split, stream in (("test", TEST), ("valid", VALID))
        )
        with precision(tf32=False):
            theta = flatten(net).detach().unsqueeze(0)
            theta = training.weights_at_test(net, theta, [settings], [digests])
            tasks = test.to(torch_device), valid.to(torch_device)
            of_epochs = [name for name in wanted if name not in training.FINAL_MEASURES]
            (stats,) = measure_together(net, theta, *tasks, [settings], of_epochs)
            stats |= training.measure_at_the_end(settings, net, theta, digests, wanted)

        # Add them, with where they come from.
        content = (record.path / records.WEIGHTS).read_bytes()
        origin: dict[str, Any] = {
            "measures": list(stats),
            "weights_sha256": hashlib.sha256(content).hexdigest(),
            "taken": machine.utc_now(),
            "code": machine.code_version(),
            **machine.describe_environment(torch_device),
            **plugins.describe(),
            "data": {split: of_split.digest for split, of_split in images.items()},
        }
        rows = training.make_rows(settings, record.epochs, stats)
        return records.add_later(record, rows, [origin])


def _choose_measures(record: Record, names: Sequence[str] | None) -> list[str]:
    """The names of the measures to take; arguments and errors are those of `measure_later`."""
    final = training.FINAL_MEASURES if record.settings.final_tasks else ()
    known = [*known_measures(), *final]
    if names is None:
        return [name for name in known if name not in record.at_the_end]
    for name in names:
        if name not in known:
            raise ValueError(f"no measure {name!r}: choose from {', '.join(known)}")
        if name in record.at_the_end:
            raise RecordError(f"{record.path} has measure {name!r} already: leave it out")
    return list(names)
