"""The book's opening figure: what one adaptation meets and gains, at each moment of meta-training.

It is drawn from a film (`metanb.landscape.portrait.compute_film`) as HTML that needs no script: a
strip of maps over a chart of accuracy. A script may show one map at a time, and a slider for it.

A map is a contour map of one task's support loss. Equal steps of the loss lie between neighbouring
contours, so that a slope is steep where contours are dense.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Canvas

from metanb.figures.style import link_to_data
from metanb.labels import name_of
from metanb.settings import scale_of

if TYPE_CHECKING:
    from metanb.runs.portraits import Portrait
    from metanb.runs.records import Record

STEP = 0.25  # nats between two contours
HIGHEST = 3.0  # nats, of the highest contour
THICK = 4  # each fourth contour is thick
STRIP = 4  # maps of the strip
NAMES = ("task 1", "task 2")
# A map is a square of MAP units, a chart CHART units wide and high. Two units are a pixel at full
# size, so that coordinates are whole numbers.
MAP = 680
CHART = (680, 470)
_LEFT, _RIGHT, _TOP, _BOTTOM = 92, 660, 44, 386  # where the chart's axes are, in units
_CLEAR = 44  # between a contour's label and all else, in units
_CROSS = "M-9-9 9 9M-9 9 9-9"


@dataclass(frozen=True)
class _Square:
    """The square of a film: its coordinates, from which those of maps follow."""

    at: np.ndarray  # [n], of grid points along either axis

    @property
    def unit(self) -> float:
        """The length 1 in units of a map."""
        return MAP / float(self.at[-1] - self.at[0])

    def place(self, points: Any) -> np.ndarray:
        """Points [n, 2] of the plane as points of a map, whose second axis leads down."""
        right, up = (np.asarray(points, dtype=float) - self.at[0]).T * self.unit
        return np.stack([right, MAP - up], axis=1)


def draw_opening(film: "Portrait", runs: Sequence["Record"]) -> str:
    """Draw the opening figure as one line of HTML.

    Args:
        film: the portrait of kind "film" of a run.
        runs: records of that run, and of runs that differ from it by their seed alone.

    Returns:
        A `<figure>`. Each map, with what it shows in words, and each mark in the chart has the
        attribute `data-frame`, the number of its stage; those of the strip have the class "key".
    """
    filmed = [run for run in runs if run.settings == film.settings]
    unfilmed = [run for run in runs if run.settings != film.settings]
    stages = film.values["stages"]
    square = _Square(np.array(film.values["at"]))
    keys = {round(place) for place in np.linspace(0, len(stages) - 1, STRIP)}
    maps = "".join(
        f'<div class="frame{" key" if frame in keys else ""}" data-frame="{frame}" '
        f'data-moment="{_name_moment(film, stage)}" data-gain="{_describe_gain(stage)}">'
        f"{_draw_map(film, stage, square)}<p>{_describe_stage(film, stage)}</p></div>"
        for frame, stage in enumerate(stages)
    )
    return (
        f'<figure class="metanb-opening"><div class="views"><div class="frames">{maps}</div>'
        f'<div class="chart">{_draw_chart(film, unfilmed, keys)}{_draw_slider(len(stages))}</div>'
        f"</div><figcaption>{_write_caption(film, filmed, unfilmed)}</figcaption></figure>"
    )


def describe_change(film: "Portrait") -> str:
    """What a step meets and gains before and after meta-training, in two sentences."""
    first, last = film.values["stages"][0], film.values["stages"][-1]
    iterations = f"{last['epoch'] * film.settings.epoch_iterations:,}"
    steps = _name_steps(film)
    return (
        f"Before meta-training, {steps} {_name_relief(film, first)}, and accuracy on new tasks "
        f"goes {_describe_gain(first)}. After {iterations} iterations, {steps} at the same rate "
        f"{_name_relief(film, last)}, and accuracy goes {_describe_gain(last)}."
    )


# ---- Words


def _name_moment(film: "Portrait", stage: dict[str, Any]) -> str:
    """When a stage is."""
    if not stage["epoch"]:
        return "untrained"
    iterations = film.settings.epoch_iterations
    return f"iteration {stage['epoch'] * iterations:,} of {film.settings.iterations:,}"


def _name_steps(film: "Portrait") -> str:
    steps = film.settings.test_steps
    return "one inner step" if steps == 1 else f"a path of {steps} inner steps"


def _name_after(film: "Portrait") -> str:
    steps = film.settings.test_steps
    return "after one step" if steps == 1 else f"after {steps} steps"


def _name_relief(film: "Portrait", stage: dict[str, Any]) -> str:
    """What an adaptation meets on the map, by the first task's loss before, after and around it."""
    before, after = stage["support_loss_before"], stage["support_loss_after"]
    if after >= before:
        return "goes uphill"
    if after < STEP:
        wide = _highest_around(film, stage) < STEP
        return f"lands on {'wide, ' if wide else ''}low ground"
    return f"goes down a {'gentle' if after > before / 2 else 'steep'} slope"


def _highest_around(film: "Portrait", stage: dict[str, Any]) -> float:
    """The highest loss on the map within half a step's length of the first task's solution."""
    at = np.array(film.values["at"])
    ahead, aside = stage["paths"][0][-1]
    distances = np.hypot(at[None] - ahead, at[:, None] - aside)
    return float(np.array(stage["support_loss"])[distances < math.hypot(ahead, aside) / 2].max())


def _describe_gain(stage: dict[str, Any]) -> str:
    """The accuracy before and after adapting."""
    before, after = stage["accuracy_before"], stage["accuracy_after"]
    return f"from {_format_share(before)} to {_format_share(after)}"


def _format_share(share: float) -> str:
    """A share in per cent; the sign stays on the number's line."""
    return f"{100 * share:.0f}\N{NO-BREAK SPACE}%"


def _format_loss(loss: float) -> str:
    return f"{loss:.2f}" if loss >= 0.1 else f"{loss:.1g}"


def _describe_loss(stage: dict[str, Any]) -> str:
    before, after = stage["support_loss_before"], stage["support_loss_after"]
    return f"from {_format_loss(before)} to {_format_loss(after)}"


def _describe_stage(film: "Portrait", stage: dict[str, Any]) -> str:
    """What a map shows, below it."""
    moment = _name_moment(film, stage)
    steps = _name_steps(film)
    return (
        f"<b>{moment[0].upper()}{moment[1:]}.</b> {steps[0].upper()}{steps[1:]} "
        f"{_name_relief(film, stage)}: the support loss of task 1 goes {_describe_loss(stage)}. "
        f"Accuracy on new tasks goes {_describe_gain(stage)}."
    )


def _describe_map(film: "Portrait", stage: dict[str, Any]) -> str:
    """The text alternative of a map."""
    losses = np.array(stage["support_loss"])
    first, second = (math.hypot(*path[-1]) for path in stage["paths"])
    ahead, aside = stage["paths"][1][-1]
    angle = math.degrees(math.atan2(aside, ahead))
    return (
        f"Contour map of task 1's support loss, {_name_moment(film, stage)}. "
        f"The loss goes {_describe_loss(stage)} nats on the way from the start to the solution of "
        f"task 1, {first:.1f} to the right. The solution of task 2 is {second:.1f} away, at "
        f"{angle:.0f} degrees to that. On the map the loss lies between "
        f"{_format_loss(losses.min())} and {_format_loss(losses.max())}."
    )


def _describe_chart(film: "Portrait") -> str:
    """The text alternative of the chart."""
    stages = film.values["stages"]
    before = [100 * stage["accuracy_before"] for stage in stages]
    picked = (stages[0], stages[len(stages) // 2], stages[-1])
    after = "; ".join(
        f"{_name_moment(film, stage)}: {100 * stage['accuracy_after']:.0f} %" for stage in picked
    )
    return (
        "Accuracy on new tasks over meta-training. Before adapting it lies between "
        f"{min(before):.0f} and {max(before):.0f} %. After adapting, {after}."
    )


def _write_caption(
    film: "Portrait", filmed: Sequence["Record"], unfilmed: Sequence["Record"]
) -> str:
    """The caption of the figure, with its data."""
    settings = film.settings
    seeds = f" Thin lines: {len(unfilmed)} runs with other seeds." if unfilmed else ""
    caption = (
        f"{name_of(settings.algorithm)} on {name_of(settings.dataset)}, {settings.setting}, "
        f"{scale_of(settings)} scale, seed {settings.seed}. "
        "Cross: θ_s, where every task starts. Circle and square: the adapted solutions of two new "
        f"tasks. Contours: the support loss of task 1, {STEP:g} nats apart up to {HIGHEST:g}; the "
        "stronger the colour, the lower the loss. A map is the plane through the three points, "
        "and all maps have one scale. A plane shows two of many directions, so it does not judge "
        f"C1. Accuracy: mean over {film.values['n']} new tasks.{seeds}"
        f"{_compare_with_record(film, filmed)}"
    )
    caption = escape(caption).replace("θ_s", "θ<sub>s</sub>")
    csv = tabulate_film(film).to_csv(index=False, float_format="%.4g", lineterminator="\n")
    link = link_to_data("opening", csv.encode())
    return f"<strong>{escape(describe_change(film))}</strong> {caption} {link}"


def _compare_with_record(film: "Portrait", filmed: Sequence["Record"]) -> str:
    """How far the accuracy of the drawn weights is from the run's record, where it is recorded."""
    gaps = [
        abs(stage["accuracy_after"] - run.curve("query_accuracy")["mean"][stage["epoch"]])
        for run in filmed
        for stage in film.values["stages"]
    ]
    if not gaps:
        return ""
    return (
        " Some maps are drawn from weights that were trained anew; their accuracy is within "
        f"{math.ceil(1000 * max(gaps)) / 10:.1f} points of the recorded run's."
    )


def tabulate_film(film: "Portrait") -> pd.DataFrame:
    """The numbers of a film beside its maps: one row per stage.

    Columns: iteration, and before and after adapting the first task's support loss and the mean
    query accuracy over tasks.
    """
    names = [
        f"{measure}_{when}"
        for measure in ("support_loss", "accuracy")
        for when in ("before", "after")
    ]
    rows = [
        {"iteration": stage["epoch"] * film.settings.epoch_iterations}
        | {name: stage[name] for name in names}
        for stage in film.values["stages"]
    ]
    return pd.DataFrame(rows)


# ---- Maps


def _draw_map(film: "Portrait", stage: dict[str, Any], square: _Square) -> str:
    """A map: regions, labels of their edges, both paths, and a scale."""
    regions = dict(_find_regions(square, np.array(stage["support_loss"])))
    paths = [square.place(path) for path in stage["paths"]]
    shapes = "".join(
        f'<path class="level{" thick" if _is_thick(level) else ""}" d="{_write_path(polygons)}"/>'
        for level, polygons in regions.items()
    )
    # Where contours are few, each has a label.
    labelled = [level for level in regions if _is_thick(level) or len(regions) < 2 * THICK]
    spots = _place_labels([regions[level] for level in labelled], paths)
    labels = "".join(
        _write_text(spot[0], spot[1], f"{level:g}")
        for level, spot in zip(labelled, spots, strict=True)
        if spot is not None
    )
    return (
        f'<svg viewBox="0 0 {MAP} {MAP}" role="img" aria-label="{_describe_map(film, stage)}">'
        f"{shapes}{labels}{_draw_scale(square)}{_draw_paths(paths)}"
        f'<rect class="edge" width="{MAP}" height="{MAP}"/></svg>'
    )


def _is_thick(level: float) -> bool:
    return round(level / STEP) % THICK == 0


def _find_regions(square: _Square, losses: np.ndarray) -> Iterator[tuple[float, list[np.ndarray]]]:
    """The regions below each level that the losses [b, a] cross: level, and polygons on a map."""
    axis = Canvas().subplots()
    for number in range(1, round(HIGHEST / STEP) + 1):
        level = number * STEP
        if losses.min() < level < losses.max():
            filled = axis.contourf(square.at, square.at, losses, [losses.min() - 1, level])
            (path,) = filled.get_paths()
            yield level, [square.place(polygon) for polygon in path.to_polygons()]


def _write_path(polygons: list[np.ndarray]) -> str:
    """Closed polygons in whole units: relative steps, none of them without effect."""
    text = ""
    for polygon in polygons:
        corners = _drop_needless(np.rint(polygon).astype(int).tolist())
        if len(corners) > 2:
            steps = [
                (right[0] - left[0], right[1] - left[1])
                for left, right in itertools.pairwise(corners)
            ]
            numbers = " ".join(f"{x} {y}" for x, y in steps).replace(" -", "-")
            text += f"M{corners[0][0]} {corners[0][1]}l{numbers}z"
    return text


def _drop_needless(points: list[list[int]]) -> list[list[int]]:
    """The points of a polygon without repeated ones, and without those on a straight line."""
    kept: list[list[int]] = []
    for point in points:
        if kept and point == kept[-1]:
            continue
        if len(kept) > 1:
            (x0, y0), (x1, y1) = kept[-2:]
            if (x1 - x0) * (point[1] - y1) == (y1 - y0) * (point[0] - x1):
                kept.pop()
        kept.append(point)
    return kept[:-1] if len(kept) > 1 and kept[0] == kept[-1] else kept


def _place_labels(
    regions: list[list[np.ndarray]], paths: list[np.ndarray]
) -> list[np.ndarray | None]:
    """The freest point on the edge of each region; None where it is less than `_CLEAR` away.

    It is away from the map's edges, from the paths, from the scale, and from other labels.
    """
    along = np.linspace(0, 1, 40)[:, None]
    obstacles = [
        start + along * (end - start) for path in paths for start, end in itertools.pairwise(path)
    ]
    # the scale, and the names of the paths' ends
    obstacles.append(np.array([[x, MAP - 40] for x in range(20, 200, 20)]))
    obstacles += [np.array([[x, y] for x, y, _ in _place_names(paths)])]
    spots: list[np.ndarray | None] = []
    for polygons in regions:
        points = np.concatenate(polygons)
        to_edges = np.minimum(points, MAP - points).min(1)
        to_others = np.linalg.norm(points[:, None] - np.concatenate(obstacles), axis=2).min(1)
        room = np.minimum(to_edges, to_others)
        spot = points[room.argmax()] if room.max() >= _CLEAR else None
        spots.append(spot)
        if spot is not None:
            obstacles.append(spot[None])
    return spots


def _place_names(paths: list[np.ndarray]) -> list[tuple[float, float, str]]:
    """Where the names of the start and of both ends stand."""
    (x, y), first, second = paths[0][0], paths[0][-1], paths[1][-1]
    return [
        (x - 34, y + 24, "θ<tspan dy='7' font-size='.75em'>s</tspan>"),
        (first[0], first[1] + 38, NAMES[0]),
        (second[0], second[1] - 32, NAMES[1]),
    ]


def _draw_paths(paths: list[np.ndarray]) -> str:
    """Both paths from the cross to the circle and the square, each with its name."""
    lines = ["".join(f"L{x:.0f} {y:.0f}" for x, y in path) for path in paths]
    way = "".join(f"M{line[1:]}" for line in lines)
    (x, y), (x1, y1), (x2, y2) = paths[0][0], paths[0][-1], paths[1][-1]
    names = "".join(_write_text(*place) for place in _place_names(paths))
    return (
        f'<path class="halo" d="{way}"/><path class="way" d="{way}"/>'
        f'<g transform="translate({x:.0f} {y:.0f})">'
        f'<path class="halo" d="{_CROSS}"/><path class="way" d="{_CROSS}"/></g>'
        f'<circle class="end" cx="{x1:.0f}" cy="{y1:.0f}" r="10"/>'
        f'<rect class="end" x="{x2 - 9:.0f}" y="{y2 - 9:.0f}" width="18" height="18"/>{names}'
    )


def _draw_scale(square: _Square) -> str:
    """The length 1, in a corner."""
    return f'<path class="scale" d="M24 {MAP - 36}v12h{square.unit:.0f}v-12"/>' + _write_text(
        24 + square.unit / 2, MAP - 44, "1 (L2)"
    )


def _write_text(x: float, y: float, text: str, kind: str = "") -> str:
    kind = f' class="{kind}"' if kind else ""
    return f'<text{kind} x="{x:.0f}" y="{y:.0f}">{text}</text>'


# ---- The chart


def _draw_chart(film: "Portrait", unfilmed: Sequence["Record"], keys: set[int]) -> str:
    """Accuracy before and after adapting, over meta-training, with a mark per stage."""
    table = tabulate_film(film)
    length = film.settings.iterations
    ticks = "".join(
        f'<path class="grid" d="M{_LEFT} {_up(share):.0f}H{_RIGHT}"/>'
        + _write_text(_LEFT - 12, _up(share) + 8, _format_share(share), "right")
        for share in (0, 0.25, 0.5, 0.75, 1)
    )
    ticks += "".join(
        _write_text(_along(iteration, length), _BOTTOM + 34, f"{iteration:,}", kind)
        for iteration, kind in ((0, ""), (length // 2, ""), (length, "right"))
    )
    curves = [record.curve("query_accuracy") for record in unfilmed]
    thin = "".join(
        f'<path class="other" d="{_write_line(curve.iteration, curve["mean"], length)}"/>'
        for curve in curves
    )
    lines = "".join(
        f'<path class="{when}" d="{_write_line(table.iteration, shares, length)}"/>'
        for when, shares in (("before", table.accuracy_before), ("after", table.accuracy_after))
    )
    marks = "".join(
        _draw_mark(frame, row, length, frame in keys)
        for frame, row in enumerate(table.itertuples())
    )
    last = table.iloc[-1]
    names = (
        _write_text(_LEFT - 80, 26, "accuracy on new tasks", "left")
        + _write_text((_LEFT + _RIGHT) / 2, _BOTTOM + 70, "iterations of meta-training")
        + _write_text(_RIGHT - 24, _up(last.accuracy_after) + 44, _name_after(film), "right")
        + _write_text(_RIGHT - 24, _up(last.accuracy_before) - 16, "before", "right")
    )
    return (
        f'<svg viewBox="0 0 {CHART[0]} {CHART[1]}" role="img" '
        f'aria-label="{_describe_chart(film)}">{ticks}{thin}{lines}{names}{marks}</svg>'
    )


def _along(iteration: float, length: int) -> float:
    """The place of an iteration on the chart, from the left."""
    return _LEFT + (_RIGHT - _LEFT) * iteration / length


def _up(share: float) -> float:
    """The place of an accuracy on the chart, from the top."""
    return _BOTTOM - (_BOTTOM - _TOP) * share


def _write_line(iterations: Any, shares: Any, length: int) -> str:
    points = zip(iterations, shares, strict=True)
    return "M" + "L".join(f"{_along(x, length):.0f} {_up(y):.0f}" for x, y in points)


def _draw_mark(frame: int, row: Any, length: int, is_key: bool) -> str:
    """The arrow from the accuracy before adapting to the one after it, with both numbers."""
    x, low, high = _along(row.iteration, length), _up(row.accuracy_before), _up(row.accuracy_after)
    # the numbers stay inside
    to_side = min(max(x, _LEFT + 24), _RIGHT - 30)
    return (
        f'<g class="mark{" key" if is_key else ""}" data-frame="{frame}">'
        f'<path class="way" d="M{x:.0f} {low:.0f}V{high:.0f}"/>'
        f'<circle class="end" cx="{x:.0f}" cy="{low:.0f}" r="9"/>'
        f'<circle class="dot" cx="{x:.0f}" cy="{high:.0f}" r="10"/>'
        + _write_text(to_side, low + 38, _format_share(row.accuracy_before))
        + _write_text(to_side, high - 20, _format_share(row.accuracy_after))
        + "</g>"
    )


def _draw_slider(n: int) -> str:
    """The slider; a style sheet hides it where no script serves it."""
    return (
        '<div class="control"><label for="opening-slider">Move through meta-training</label>'
        f'<input id="opening-slider" type="range" min="0" max="{n - 1}" step="1" value="0">'
        '<output for="opening-slider">untrained</output></div>'
    )
