"""The opening figure of films that are made by hand: its words follow the numbers."""

import re
from pathlib import Path

import numpy as np
import pytest
from bs4 import BeautifulSoup

from metanb.figures import opening
from metanb.runs.portraits import Portrait
from metanb.settings import preset


def film(losses, accuracies=((0.2, 0.3), (0.2, 0.9)), steep=1, **changes) -> Portrait:
    """A film of round bowls, one stage per pair of losses before and after a step."""
    at = np.linspace(-1, 4, 25)
    stages = []
    for epoch, ((before, after), (low, high)) in enumerate(zip(losses, accuracies, strict=True)):
        bowl = 0.1 + steep * ((at[None] - 2) ** 2 + at[:, None] ** 2)
        stages.append(
            {
                "epoch": 3 * epoch,
                "paths": [[[0, 0], [2, 0]], [[0, 0], [0.5, 2]]],
                "support_loss": bowl.tolist(),
                "support_loss_before": before,
                "support_loss_after": after,
                "accuracy_before": low,
                "accuracy_after": high,
            }
        )
    settings = preset("smoke", "glyphs", **changes)
    return Portrait(settings, {"at": at.tolist(), "n": 7, "stages": stages}, {}, Path("nowhere"))


@pytest.mark.parametrize(
    "after, words",
    [
        (1.7, "goes uphill"),
        (1.2, "goes down a gentle slope"),
        (0.6, "goes down a steep slope"),
        (0.2, "lands on low ground"),
    ],
)
def test_words_follow_the_losses(after, words):
    change = opening.describe_change(film([(1.6, after), (1.6, 1.2)])).replace("\xa0", " ")
    assert f"one inner step {words}, and accuracy on new tasks goes from 20 % to 30 %" in change
    assert change.endswith(
        "one inner step at the same rate goes down a gentle slope, and accuracy goes from 20 % to "
        "90 %."
    )


@pytest.mark.parametrize("steep, words", [(0.14, "wide, low ground"), (0.17, "low ground")])
def test_low_ground_is_wide_where_it_is_low_half_a_step_around(steep, words):
    """The bowl's loss at the distance 1 is 0.1 + steep: below 0.25, or above."""
    bowl = film([(1.6, 0.1), (1.6, 0.1)], steep=steep)
    assert f"one inner step lands on {words}" in opening.describe_change(bowl)


def test_several_steps_are_a_path():
    assert "a path of 5 inner steps lands" in opening.describe_change(
        film([(1.6, 0.1), (1.6, 0.1)], test_steps=5)
    )


def test_figure_has_no_thin_lines_without_other_runs():
    html = opening.draw_opening(film([(1.6, 1.2), (1.6, 0.1)]), [])
    assert "\n" not in html and "Thin lines" not in html
    figure = BeautifulSoup(html, "html.parser")
    assert figure.select(".other") == [] and len(figure.select(".frame.key")) == 2
    assert [
        row.accuracy_after
        for row in opening.tabulate_film(film([(1.6, 1.2), (1.6, 0.1)])).itertuples()
    ] == [0.3, 0.9]


def test_a_region_is_where_the_loss_is_below_its_level():
    """The area of a bowl's regions, against that of circles."""
    figure = BeautifulSoup(opening.draw_opening(film([(1.6, 1.2), (1.6, 0.1)]), []), "html.parser")
    unit = opening.MAP / 5
    for number, region in enumerate(figure.select(".frame .level")[2:4], start=3):
        (x, y), *moves = np.reshape(
            [int(value) for value in re.findall(r"-?\d+", region["d"])], (-1, 2)
        )
        corners = np.cumsum([(x, y), *moves], axis=0)
        (x0, y0), (x1, y1) = corners.T, np.roll(corners, -1, axis=0).T
        area = abs((x0 * y1 - x1 * y0).sum()) / 2 / unit**2
        assert area == pytest.approx(np.pi * (number * opening.STEP - 0.1), rel=0.03)
        # the bowl's middle is task 1's solution, right of the start and as high as it
        middle = (corners.min(0) + corners.max(0)) / 2
        assert middle == pytest.approx([3 * unit, opening.MAP - unit], abs=8)


def test_needless_corners_go():
    square = [[0, 0], [0, 0], [4, 0], [8, 0], [8, 8], [0, 8], [0, 0]]
    assert opening._drop_needless(square) == [[0, 0], [8, 0], [8, 8], [0, 8]]
