"""Figures: linked data are those drawn, words are there, the same drawing gives the same bytes."""

import base64
import io
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch

from metanb.data.tasks import Tasks
from metanb.figures import runs as figures
from metanb.figures import tasks as task_figures
from tests.support.records import TIME, record


class _Parts(HTMLParser):
    def __init__(self):
        super().__init__()
        self.image, self.link, self.text = {}, {}, ""

    def handle_starttag(self, tag, attrs):
        if tag == "svg":
            self.image = dict(attrs)
        if tag == "a":
            self.link = dict(attrs)

    def handle_data(self, data):
        self.text += data


def parts(figure):
    parser = _Parts()
    parser.feed(figure._repr_html_())
    return parser


def payload(url):
    return base64.b64decode(url.split(",", 1)[1])


CURVES = {"hessian_norm": np.exp(-TIME), "distance": 1 + TIME, "query_accuracy": 0.5 + 0.1 * TIME}


def whole(seed, algorithm):
    """A run with all columns of a record."""
    run = record(seed, CURVES, algorithm=algorithm)
    run.measures["iteration"] = 150 * run.measures.epoch
    return replace(run, measures=run.measures.assign(median=0.0, std=0.0, sem=0.0, n=60))


@pytest.fixture
def runs():
    return [whole(seed, name) for name in ("maml", "fomaml") for seed in range(3)]


def test_curves_show_and_hand_out_the_records(runs):
    figure = figures.curves(
        runs, ["hessian_norm", "distance"], "flat", "See it fall.", log=["hessian_norm"]
    )
    shown = parts(figure)
    table = pd.read_csv(io.BytesIO(payload(shown.link["href"])))
    assert shown.link["download"] == "flat.csv"
    assert len(table) == 2 * 3 * 2 * 13
    for run in runs:
        selected = table[
            (table.seed == run.settings.seed) & (table.run == figures.algorithm_label(run))
        ]
        drawn = selected[selected.measure == "hessian_norm"]["mean"]
        assert np.allclose(drawn, run.curve("hessian_norm")["mean"], rtol=1e-5)
    assert shown.image["role"] == "img"
    assert (
        "See it fall." in shown.text
        and "mean of 3 runs" in shown.text
        and "60 meta-test tasks" in shown.text
    )
    first = np.mean(
        [run.curve("distance")["mean"].loc[1] for run in runs if run.settings.algorithm == "maml"]
    )
    assert f"distance from θ_s (L2), MAML: from {first:.3g}" in shown.image["aria-label"]


def test_means_end_where_the_first_run_does(runs):
    short = [runs[0].upto(6), *runs[1:3]]
    alt = figures.curves(short, ["distance"], "d", "c").alt
    last = np.mean([run.curve("distance")["mean"].loc[6] for run in short])
    assert alt.endswith(f"to {last:.3g}.")


def test_a_published_value_is_drawn_and_said(runs):
    plain = figures.curves(runs, ["query_accuracy"], "k", "c")
    figure = figures.curves(
        runs, ["query_accuracy"], "k", "c", known={"query_accuracy": (0.987, "Finn et al.")}
    )
    assert "Finn et al." in re.sub(r"<[^>]+>", "", figure.svg) and "Finn et al." not in plain.svg
    assert (
        "Finn et al.: 0.987" in figure.alt
        and "Dotted" in figure.caption
        and "Dotted" not in plain.caption
    )


def test_captions_count_what_each_line_rests_on(runs):
    unequal = [run for run in runs if (run.settings.algorithm, run.settings.seed) != ("maml", 2)]
    text = parts(figures.curves(unequal, ["distance"], "d", "c")).text
    assert "mean of 2 (MAML), 3 (first-order MAML) runs" in text and "60 meta-test tasks" in text
    text = parts(figures.curves(runs, ["relative_move"], "d", "c")).text
    assert "meta-test" not in text and "Circles" not in text and "iterations of each epoch" in text


def test_every_run_is_drawn_in_a_scatter():
    many = [whole(seed, "maml") for seed in range(8)]
    svg = figures.scatter(many, "distance", "query_accuracy", "c5", "c").svg
    dots = Counter(re.findall(r'style="fill: (#\w+); stroke: \1"', svg))
    # a dot an epoch, and one in the legend
    assert set(dots.values()) == {12 + 1} and len(dots) == 8


def test_scatter_says_each_labels_correlations(runs):
    shown = parts(figures.scatter(runs, "distance", "query_accuracy", "c5", "See the cloud."))
    table = pd.read_csv(io.BytesIO(payload(shown.link["href"])))
    assert len(table) == 6 * 12 and table.epoch.min() == 1
    r = [
        np.corrcoef(path.distance, path.query_accuracy)[0, 1]
        for _, path in table[table.run == "MAML"].groupby("seed")
    ]
    assert f"MAML: r between {min(r):.2f} and {max(r):.2f}" in shown.image["aria-label"]


def test_shares_say_where_each_part_ends(runs):
    shown = parts(figures.shares(runs, "distance", ["body_norm"], "parts", "See them."))
    last = np.mean([run.curve("distance")["mean"].iloc[-1] for run in runs[:3]])
    assert f"MAML, distance from θ_s (L2): at last {last:.3g}" in shown.image["aria-label"]
    assert "means of 3 runs" in shown.text


def test_figures_and_rules_load_no_torch():
    """In a process of its own: the tests' has torch in any case."""
    modules = (
        "figures.runs figures.portraits figures.ledger figures.tasks figures.style claims.rules"
    )
    imports = "; ".join(f"import metanb.{module}" for module in modules.split())
    code = f"import sys; {imports}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_drawing_twice_gives_the_same_bytes(runs):
    first, second = (figures.curves(runs, ["distance"], "d", "c")._repr_html_() for _ in range(2))
    assert first == second


def test_pictures_of_tasks_and_steps():
    y = torch.arange(3).repeat(2, 1)
    x = torch.rand(2, 3, 1, 28, 28)
    shown = parts(task_figures.picture_tasks(Tasks(x, y, x, y), "tasks", "Two tasks."))
    assert (
        "2 rows" in shown.image["aria-label"] and "3 support classes" in shown.image["aria-label"]
    )
    data = pd.DataFrame({"step": [0, 1], "loss": [1.5, 0.25]})
    shown = parts(task_figures.picture_adaptation(data, "steps", "Watch.", "loss (nats)"))
    assert "loss: from 1.5 to 0.25" in shown.image["aria-label"]
    assert payload(shown.link["href"]).decode() == "step,loss\n0,1.5\n1,0.25\n"


def test_runs_and_their_origin_in_words(runs):
    for run in runs:
        run.provenance.update(
            cpu_seconds=90.0, finished="2026-01-02T03:04:05", device="CPU", torch="2.0", code="abc"
        )
    runs[0].provenance["device"] = "GPU"
    table = figures.runs_table(runs)
    late = [
        run.curve("query_accuracy")["mean"].iloc[-3:].mean()
        for run in runs
        if run.settings.algorithm == "fomaml"
    ]
    assert table.loc["first-order MAML"].to_dict() == {
        "runs": 3,
        "iterations": 1800,
        "late query accuracy": round(np.mean(late), 3),
        "least to greatest": f"{min(late):.3f} to {max(late):.3f}",
        "CPU minutes a run": 1.5,
    }
    assert figures.describe_origin(runs) == "Recorded 2026-01-02 on CPU, GPU, torch 2.0, code abc."


def test_a_figure_is_saved_for_paper_screen_and_spreadsheet(tmp_path):
    """Each kind begins with its own magic bytes, and the same drawing gives the same bytes."""
    runs = [record(seed, {"distance": np.exp(TIME)}) for seed in range(3)]
    magic = {"svg": b"<svg", "png": b"\x89PNG", "pdf": b"%PDF", "csv": b"epoch,"}
    for kind, start in magic.items():
        contents = []
        for attempt in range(2):
            figure = figures.curves(runs, ["distance"], "saved", "See.")
            path = figure.save(tmp_path / f"{attempt}.{kind}")
            contents.append(path.read_bytes())
        assert contents[0].startswith(start) and contents[0] == contents[1], kind
    assert len(pd.read_csv(tmp_path / "0.csv")) == len(figure.data)
    with pytest.raises(ValueError, match=r"x.jpg: name a file that ends in .svg, .png, .pdf"):
        figure.save("x.jpg")
