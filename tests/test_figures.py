"""Figures: the data behind the link are the data drawn, the words are there, and drawing twice gives the same bytes."""

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch

from metanb import figures
from metanb.tasks import Tasks
from tests.test_claims import record


class _Parts(HTMLParser):
    def __init__(self):
        super().__init__()
        self.image, self.link, self.text = {}, {}, ""

    def handle_starttag(self, tag, attrs):
        if tag == "img":
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


@pytest.fixture
def runs():
    made = [record(seed, -1.0, algorithm=name) for name in ("maml", "fomaml") for seed in range(3)]
    for run in made:
        for column in ("median", "std", "sem"):
            run.measures[column] = 0.0
        run.measures["n"] = 60
    return made


def test_curves_show_and_hand_out_the_records(runs):
    figure = figures.curves(runs, ["hessian_norm", "distance"], "flat", "See it fall.", log=["hessian_norm"])
    shown = parts(figure)
    table = pd.read_csv(io.BytesIO(payload(shown.link["href"])))
    assert shown.link["download"] == "flat.csv"
    assert len(table) == 2 * 3 * 2 * 21
    for run in runs:
        chosen = table[(table.seed == run.settings.seed) & (table.algorithm == run.settings.algorithm)]
        drawn = chosen[chosen.measure == "hessian_norm"]["mean"]
        assert np.allclose(drawn, run.curve("hessian_norm")["mean"], rtol=1e-5)
    assert payload(shown.image["src"]).startswith(b"<?xml") and b"<svg" in payload(shown.image["src"])
    assert "See it fall." in shown.text and "mean of 3 runs" in shown.text and "60 meta-test tasks" in shown.text
    first = np.mean([run.curve("distance")["mean"].loc[1] for run in runs if run.settings.algorithm == "maml"])
    assert f"distance from theta_s (L2), MAML: from {first:.3g}" in shown.image["alt"]


def test_drawing_twice_gives_the_same_bytes(runs):
    one, two = (figures.curves(runs, ["distance"], "d", "c")._repr_html_() for _ in range(2))
    assert one == two


def test_pictures_of_tasks_and_steps():
    y = torch.arange(3).repeat(2, 1)
    x = torch.rand(2, 3, 1, 28, 28)
    shown = parts(figures.tasks_picture(Tasks(x, y, x, y), "tasks", "Two tasks."))
    assert "2 rows" in shown.image["alt"] and "3 support classes" in shown.image["alt"]
    data = pd.DataFrame({"step": [0, 1], "loss": [1.5, 0.25]})
    shown = parts(figures.steps(data, "steps", "Watch.", "loss (nats)"))
    assert "loss: from 1.5 to 0.25" in shown.image["alt"]
    assert payload(shown.link["href"]).decode() == "step,loss\n0,1.5\n1,0.25\n"


def test_runs_and_their_origin_in_words(runs):
    for run in runs:
        run.provenance.update(cpu_seconds=90.0, finished="2026-01-02T03:04:05", device="CPU", torch="2.0", code="abc")
        rows = run.measures[run.measures.measure == "distance"].assign(measure="query_accuracy", mean=0.12345)
        run.measures.loc[:, "measure"] = run.measures.measure.where(
            run.measures.measure != "distance", "query_accuracy"
        )
        run.measures.loc[run.measures.measure == "query_accuracy", "mean"] = rows["mean"].to_numpy()
    runs[0].provenance["device"] = "GPU"
    table = figures.runs_table(runs)
    assert table.loc[("first-order MAML", 2)].to_dict() == {
        "iterations": 3000.0,
        "query accuracy": 0.123,
        "CPU minutes": 1.5,
    }
    assert figures.origin(runs) == "Recorded 2026-01-02 on CPU, GPU, torch 2.0, code abc."
