"""One's own runs beside those of the book, in one call."""

from collections.abc import Sequence

from metanb.figures.runs import curves
from metanb.figures.style import Figure
from metanb.labels import describe_measure, name_of
from metanb.runs import records, store
from metanb.runs.records import Record
from metanb.settings import differences_from_scale, scale_of

SHOWN = ("query_accuracy", "hessian_norm", "trajectory_coherence", "distance")


def beside_the_book(runs: Sequence[Record], measures: Sequence[str] = SHOWN) -> Figure:
    """Draw one's own runs beside the book's plain runs of the same data set, ways and shots.

    Where the book has none of these, its Omniglot runs of the same ways and shots are drawn, and
    else its 5-way 1-shot ones. Of several scales, that of the first of one's own runs comes first.

    Args:
        runs: records, such as `metanb.run` gives them.
        measures: their names; one that the book's runs do not have is drawn without these.

    Raises:
        ValueError: no run is given, or no measure that they all have.

    Example:
        >>> from metanb import preset
        >>> from metanb.runs.records import find_record
        >>> runs = [find_record(preset("quick", "omniglot", seed=0, filters=32))]
        >>> beside_the_book(runs, ["query_accuracy"]).name
        'beside-the-book'
    """
    if not runs:
        raise ValueError("no run is given: give at least one record")
    own = {run.settings.id for run in runs}
    committed = [run for run in _book_runs() if run.settings.id not in own]
    reference = _choose_reference(runs[0], committed)

    # The settings that tell one's own runs apart, besides those that are named anyway.
    named = ("algorithm", "dataset", "seed")
    varied = [
        name for name in runs[0].settings.to_dict() if name not in named and _varies(name, runs)
    ]

    def label(run: Record) -> str:
        settings = run.settings
        algorithm = name_of(settings.algorithm)
        if settings.id not in own:
            return f"book: {algorithm}"
        apart = "".join(f", {name} {settings.to_dict()[name]}" for name in varied)
        return f"yours: {algorithm}, {name_of(settings.dataset)}{apart}"

    # Measures that all of one's own runs have; those that the book has not are drawn without it.
    recorded = [name for name in measures if all(run.has(name) for run in runs)]
    if not recorded:
        raise ValueError(
            f"your runs do not all have one of {', '.join(measures) or 'no measures'}: name others"
        )
    log = [name for name in recorded if describe_measure(name).log]
    caption = "Your runs beside those of the book."
    if reference:
        book = reference[0].settings
        task = f"{name_of(book.dataset)}, {book.setting}, {scale_of(book)} scale"
        caption = f"Your runs beside those of the book ({task})."
    missing = [
        describe_measure(name).label
        for name in recorded
        if reference and not any(run.has(name) for run in reference)
    ]
    if missing:
        caption += f" Of the book's, there is no {' and no '.join(missing)}."
    drawn = [*runs, *reference]
    return curves(drawn, recorded, "beside-the-book", caption, log, label, partly=True)


def _varies(name: str, runs: Sequence[Record]) -> bool:
    """Whether a setting tells one's own runs apart.

    A draw of classes does so beside another with the same seed; else it goes with the seed. Images
    do so beside others of the same data set; else its name tells.
    """
    partner = {"class_seed": "seed", "content": "dataset"}.get(name)
    values = {
        (partner and getattr(run.settings, partner), getattr(run.settings, name)) for run in runs
    }
    return len(values) > len({of_partner for of_partner, _ in values})


def _book_runs() -> list[Record]:
    """The runs of the book; none outside of a checkout."""
    return records.read_records(store.book_folder())


def _choose_reference(run: Record, committed: Sequence[Record]) -> list[Record]:
    """The book's plain runs of the nearest setting and scale, of one data set."""
    settings = run.settings
    plain = [
        record
        for record in committed
        if not differences_from_scale(record.settings) and scale_of(record.settings) != "smoke"
    ]
    wanted = [
        (settings.dataset, settings.ways, settings.shots),
        ("omniglot", settings.ways, settings.shots),
        ("omniglot", 5, 1),
    ]
    for task in wanted:
        of_task = [
            record
            for record in plain
            if (record.settings.dataset, record.settings.ways, record.settings.shots) == task
        ]
        for scale in (scale_of(settings), "quick", "paper"):
            of_scale = [record for record in of_task if scale_of(record.settings) == scale]
            if of_scale:
                return of_scale
    return []
