"""One's own runs beside the book's: which of these are drawn, and what the lines are called."""

from dataclasses import replace

import pytest

from metanb.figures import compare
from metanb.figures.compare import beside_the_book
from tests.support.records import TIME, cell, record


@pytest.fixture
def book(monkeypatch):
    """A book with plain runs at quick scale, on two settings, and runs with another setting."""
    curves = {"query_accuracy": 0.5 + 0.1 * TIME}
    runs = [
        *cell(curves),
        *cell(curves, algorithm="fomaml"),
        *cell(curves, head_init="zero"),
        *cell(curves, ways=20),
    ]
    monkeypatch.setattr(compare, "_book_runs", lambda: runs)


def lines(figure):
    return sorted(set(figure.data.run))


def test_own_runs_meet_those_of_their_setting(book):
    own = [record(seed, {"query_accuracy": 0.4 + 0.2 * TIME}, filters=16) for seed in range(2)]
    figure = beside_the_book(own, ["query_accuracy", "distance"])
    book_lines = ["book: MAML", "book: first-order MAML"]
    assert lines(figure)[:2] == sorted(book_lines)
    assert lines(figure)[2:] == ["yours: MAML, Omniglot"]
    assert "the book (Omniglot, 5-way 1-shot, quick scale)" in figure.caption
    assert set(figure.data.measure) == {"query_accuracy", "distance"}


def test_own_runs_are_told_apart_by_what_varies_among_them(book):
    curves = {"query_accuracy": 0.5 + 0.1 * TIME}
    own = [record(0, curves, filters=filters) for filters in (8, 16)]
    assert lines(beside_the_book(own))[2:] == [
        "yours: MAML, Omniglot, filters 16",
        "yours: MAML, Omniglot, filters 8",
    ]


def test_images_of_ones_own_meet_omniglot(book):
    mine = record(0, {"query_accuracy": 0.4 + 0.2 * TIME})
    content = "3x36x36-" + 16 * "0"
    settings = replace(mine.settings, dataset="birds", rotations=False, content=content)
    figure = beside_the_book([replace(mine, settings=settings)])
    assert "yours: MAML, birds" in " ".join(lines(figure)) and "content" not in str(lines(figure))
    assert sum(line.startswith("book: ") for line in lines(figure)) == 2


def test_a_run_of_the_book_is_drawn_once(book):
    figure = beside_the_book([record(0, {"query_accuracy": 0.5 + 0.1 * TIME})])
    book_seeds = figure.data[figure.data.run.str.startswith("book: MAML")].seed
    assert set(book_seeds) == {1, 2}


def test_no_run_is_refused():
    with pytest.raises(ValueError, match="no run is given"):
        beside_the_book([])
