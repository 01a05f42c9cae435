"""One's own runs beside the book's: which of these are drawn, and what the lines are called."""

from dataclasses import replace

import pandas as pd
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


def test_draws_of_classes_are_told_apart_where_seeds_do_not(book):
    curves = {"query_accuracy": 0.5 + 0.1 * TIME}
    draws = [record(0, curves, train_classes=10, class_seed=draw) for draw in (0, 1)]
    assert lines(beside_the_book(draws))[2:] == [
        "yours: MAML, Omniglot, class_seed 0",
        "yours: MAML, Omniglot, class_seed 1",
    ]
    pairs = [record(draw, curves, train_classes=10, class_seed=draw) for draw in (0, 1)]
    assert lines(beside_the_book(pairs))[2:] == ["yours: MAML, Omniglot"]


def test_contents_of_one_folder_are_told_apart(book):
    mine = record(0, {"query_accuracy": 0.4 + 0.2 * TIME})
    contents = [f"3x36x36-{digit * 16}" for digit in "01"]
    birds = [
        replace(mine.settings, dataset="birds", rotations=False, content=content)
        for content in contents
    ]
    drawn = lines(beside_the_book([replace(mine, settings=settings) for settings in birds]))
    assert drawn[2:] == [f"yours: MAML, birds, content {content}" for content in contents]


def test_a_measure_of_ones_own_is_drawn_without_the_book(book):
    own = record(0, {"query_accuracy": 0.4 + 0.2 * TIME}, filters=16)
    rows = own.measures[own.measures.measure == "distance"].assign(measure="my_measure")
    own = replace(own, measures=pd.concat([own.measures, rows]))
    for measures in (["my_measure"], ["my_measure", "query_accuracy"]):
        figure = beside_the_book([own], measures)
        of_mine = figure.data[figure.data.measure == "my_measure"]
        assert lines(figure)[-1:] == list(of_mine.run.unique()) == ["yours: MAML, Omniglot"]
        assert len(lines(figure)) == (1 if len(measures) == 1 else 3)
        assert " Of the book's, there is no my_measure." in figure.caption
    assert "there is no" not in beside_the_book([own], ["distance"]).caption
    with pytest.raises(ValueError, match="your runs do not all have one of nowhere, absent: "):
        beside_the_book([own], ["nowhere", "absent"])


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
