"""Figures: linked data are those drawn, words are there, the same drawing gives the same bytes."""

import base64
import io
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from metanb.data.tasks import Tasks
from metanb.figures import runs as figures
from metanb.figures import style, svg
from metanb.figures import tasks as task_figures
from metanb.runs.records import RecordError
from tests.support.records import TIME, record


class _Parts(HTMLParser):
    def __init__(self):
        super().__init__()
        self.image, self.link, self.text = {}, {}, ""

    def handle_starttag(self, tag, attrs):
        if ("role", "img") in attrs:
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


def whole(seed, algorithm, **settings):
    """A run with all columns of a record."""
    run = record(seed, CURVES, algorithm=algorithm, **settings)
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


def test_runs_of_one_label_and_seed_are_runs_of_their_own():
    """Two inner step sizes: two lines, ids in the data, and no word of seeds."""
    pair = [whole(0, "maml", inner_lr=inner_lr) for inner_lr in (0.1, 0.4)]
    ids = {run.settings.id for run in pair}
    lines = figures.curves(pair, ["distance"], "d", "c")
    mean = np.mean([run.curve("distance")["mean"].loc[12] for run in pair])
    assert f"to {mean:.3g}." in lines.alt and "mean of 2 runs; thin" in lines.caption
    assert set(lines.data.id) == ids and len(lines.data) == 2 * 13
    dots = figures.scatter(pair, "distance", "query_accuracy", "c5", "c")
    (axis,) = dots.canvas.axes
    assert [len(path.get_offsets()) for path in axis.collections] == [12, 12]
    assert set(dots.data.id) == ids and "per run, one dot" in dots.caption
    parts_of_it = figures.shares(pair, "distance", ["body_norm"], "parts", "c")
    assert f"at last {mean:.3g};" in parts_of_it.alt and "means of 2 runs, " in parts_of_it.caption
    assert len(figures.curves([pair[0], pair[0]], ["distance"], "d", "c").data) == 2 * 13


def test_runs_without_an_epoch_in_common_are_drawn():
    long, short = whole(0, "maml"), whole(1, "maml")
    short.measures["iteration"] += 1
    figure = figures.curves([long, short], ["distance"], "d", "c")
    assert figure.alt.endswith("MAML: no epoch that all runs have.")


def with_measure(run, name, epochs, n):
    """The run with a further measure, which is 0.5."""
    rows = run.measures[(run.measures.measure == "distance") & run.measures.epoch.isin(epochs)]
    rows = rows.assign(measure=name, mean=0.5, n=n)
    return replace(run, measures=pd.concat([run.measures, rows]))


@pytest.mark.parametrize(
    ("name", "epochs", "n", "words"),
    [
        ("my_measure", range(13), 60, "mean over the same 60 meta-test tasks"),
        ("my_value", range(1, 13), 150, "The my_value: mean over the iterations of each epoch"),
        ("final_accuracy", [12], 600, "The final_accuracy: mean over further meta-test tasks, at"),
    ],
)
def test_a_measure_that_is_not_registered_keeps_its_name(runs, name, epochs, n, words):
    measured = [with_measure(run, name, epochs, n) for run in runs]
    figure = figures.curves(measured, [name], "d", "c")
    assert f"{name}, MAML: from 0.5" in figure.alt and words in figure.caption
    assert ("same 60 meta-test tasks" in figure.caption) == (name == "my_measure")
    assert figures.shares(measured, "distance", [name], "d", "c").alt.count(f"{name}: at") == 2
    if name != "final_accuracy":
        dots = figures.scatter(measured, "distance", name, "d", "c")
        assert dots.alt.startswith(f"{name} against distance")


def test_a_label_without_a_measure_is_left_out_where_that_is_asked_for(runs):
    measured = [with_measure(run, "my_measure", range(13), 60) for run in runs[:3]] + runs[3:]
    with pytest.raises(RecordError, match="no measure 'my_measure'"):
        figures.curves(measured, ["my_measure"], "d", "c")
    figure = figures.curves(measured, ["distance", "my_measure"], "d", "c", partly=True)
    drawn = figure.data.groupby("measure").run.unique()
    assert drawn["my_measure"].tolist() == ["MAML"] and len(drawn["distance"]) == 2
    with pytest.raises(RecordError, match="no measure 'neither'"):
        figures.curves(measured, ["neither"], "d", "c", partly=True)


def test_a_measure_that_is_given_twice_is_named(runs):
    with pytest.raises(ValueError, match="distance is given more than once"):
        figures.curves(runs, ["distance", "support_loss", "distance"], "d", "c")
    with pytest.raises(ValueError, match="distance is given more than once"):
        figures.scatter(runs, "distance", "distance", "d", "c")


def test_a_figure_of_nothing_is_refused(runs):
    for drawn, measures, what in (([], ["distance"], "run"), (runs, [], "measure")):
        with pytest.raises(ValueError, match=f"no {what} is given"):
            figures.curves(drawn, measures, "d", "c")


def test_every_run_of_a_scatter_has_a_shape_of_its_own():
    many = [whole(seed, "maml") for seed in range(8)]
    figure = figures.scatter(many, "distance", "query_accuracy", "c5", "c")
    (axis,) = figure.canvas.axes
    assert [len(dots.get_offsets()) for dots in axis.collections] == [12] * 8  # a dot per epoch
    assert len({dots.get_paths()[0].vertices.tobytes() for dots in axis.collections}) == 8


def test_colours_mean_algorithms_in_every_figure(runs):
    curves = figures.curves(runs, ["distance"], "d", "c").canvas.axes[0]
    of_label = {line.get_label(): line.get_color() for line in curves.lines}
    scatter = figures.scatter(runs, "distance", "query_accuracy", "c5", "c").canvas.axes
    assert len({of_label[axis.get_title()] for axis in scatter}) == len(scatter) == 2
    for axis in scatter:
        colours = {tuple(colour[:3]) for dots in axis.collections for colour in dots.get_fc()}
        assert colours == {tuple(of_label[axis.get_title()])}


MEASURED = ["hessian_norm", "distance", "query_accuracy", "support_loss"]
TEXT_COLUMN, PHONE = 690, 340  # pixels: the book's column of text at 1280 pixels, and at 390


@pytest.mark.parametrize("n", [2, 3, 4])
def test_panels_fill_their_rows_and_their_words_can_be_read(runs, n):
    figure = figures.curves(runs, MEASURED[:n], "panels", "c")
    assert len({svg.size_of(panel) for panel in figure.panels}) == 1
    columns = 3 if n == 3 else 2
    assert len(figure.panels) == n and n % columns == 0
    places = [axis.get_window_extent() for axis in figure.canvas.axes]
    assert len({round(place.y0) for place in places}) == n // columns
    share, narrow = re.search(r"max\((\d+)%, \(([\d.]+)rem - 100%\)", figure._repr_html_()).groups()
    gap = style.GAP
    # so many columns fit the page, and not one more; on a phone each panel has the whole width
    assert PHONE < 16 * float(narrow) < TEXT_COLUMN
    column = TEXT_COLUMN * int(share) / 100
    assert columns * column + (columns - 1) * gap <= TEXT_COLUMN < (columns + 1) * column
    for shown in ((TEXT_COLUMN - (columns - 1) * gap) / columns, PHONE):
        for drawing in (*figure.panels, figure.legend):
            sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", drawing)]
            room = shown if drawing in figure.panels else PHONE
            scale = min(1, room / svg.size_of(drawing)[0]) / 0.75  # points, pixels
            assert min(sizes) * scale >= 10


def test_panels_are_the_whole_drawing_cut_up(runs):
    """Each word of the canvas is in one part, and the axes are in one place of all panels."""
    figure = figures.curves(runs, MEASURED[:3], "panels", "c")
    words = [re.findall(r"<text[^>]*>([^<]*)<", part) for part in (*figure.panels, figure.legend)]
    file = io.StringIO()
    with matplotlib.rc_context(style.STYLE):
        figure.canvas.savefig(file, format="svg")
    whole = re.findall(r"<text[^>]*>([^<]*)<", file.getvalue())
    assert Counter(whole) == Counter(word for part in words for word in part)
    assert Counter(re.findall(r"<text[^>]*>([^<]*)<", figure.svg)) == Counter(whole)
    ids = re.findall(r' id="([^"]*)"', figure._repr_html_())
    assert len(ids) == len(set(ids)) > 3


def test_the_legend_is_clear_of_the_lines(runs):
    for measures in (MEASURED[:1], MEASURED[:3]):
        canvas = figures.curves(runs, measures, "legend", "c").canvas
        (legend,) = canvas.legends
        assert [text.get_text() for text in legend.get_texts()] == ["MAML", "first-order MAML"]
        canvas.draw_without_rendering()
        tops = [axis.get_tightbbox().y1 for axis in canvas.axes]
        assert legend.get_window_extent().y0 >= max(tops) - 1


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


def test_runs_of_other_epochs_are_whole_lines_and_meet_where_both_are_measured():
    often, seldom = whole(0, "maml"), whole(1, "maml")
    rows = seldom.measures
    seldom = replace(seldom, measures=rows[rows.epoch % 4 == 0])
    figure = figures.curves([often, seldom], ["distance"], "d", "c")
    lines = [len(line.get_xdata()) for line in figure.canvas.axes[0].get_lines()[:3]]
    assert lines == [12, 3, 3]  # two runs and their mean
    start = often.curve("distance").iteration.loc[4]
    assert f" at iteration {start:,} to " in figure.alt and "first epoch" not in figure.alt
    once = replace(seldom, measures=rows[rows.epoch == 4])
    single = figures.curves([often, once], ["distance"], "d", "c").canvas.axes[0].get_lines()[2]
    assert single.get_marker() == "o" and len(single.get_xdata()) == 1


def test_scatter_leaves_out_epochs_without_a_value():
    pair = [whole(0, "maml"), whole(1, "maml")]
    gap = (pair[1].measures.measure == "distance") & (pair[1].measures.epoch == 3)
    pair[1].measures.loc[gap, "mean"] = np.nan
    texts = [
        figures.scatter(order, "distance", "query_accuracy", "s", "c").alt
        for order in (pair, pair[::-1])
    ]
    assert texts[0] == texts[1] and "nan" not in texts[0]


def test_shares_end_where_the_first_run_does(runs):
    pair = [runs[0].upto(6), runs[1]]
    figure = figures.shares(pair, "distance", ["body_norm"], "parts", "c")
    curves = [run.curve("distance").loc[6] for run in pair]
    line = figure.canvas.axes[0].get_lines()[0]
    assert line.get_xdata()[-1] == curves[0].iteration
    last = np.mean([curve["mean"] for curve in curves])
    assert f"distance from θ_s (L2): at last {last:.3g}" in figure.alt


def test_shares_without_an_epoch_in_common_are_drawn():
    long, short = whole(0, "maml"), whole(1, "maml")
    short.measures["iteration"] += 1
    figure = figures.shares([long, short], "distance", ["body_norm"], "parts", "c")
    assert figure.alt.count("no epoch that all runs have") == 2


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


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_tasks(channels):
    """The data are the images themselves, and each image is drawn."""
    y = torch.arange(3).repeat(2, 1)
    support, query = torch.rand(2, 2, 3, channels, 28, 28)
    figure = task_figures.picture_tasks(Tasks(support, y, query, y), "tasks", "Two tasks.")
    assert "2 rows" in figure.alt and "3 support classes" in figure.alt
    assert [panel.count("<image") for panel in figure.panels] == [6, 6]
    row = figure.data[(figure.data.task == 1) & (figure.data.role == "query")].iloc[2]
    png = np.asarray(Image.open(io.BytesIO(base64.b64decode(row.png))))
    image = query[1, 2].permute(1, 2, 0).squeeze(-1).numpy()
    assert (png == (255 * image).round()).all()


def test_pictures_of_steps():
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
        "CPU minutes per run": 1.5,
    }
    assert figures.describe_origin(runs) == "Recorded 2026-01-02 on CPU, GPU, torch 2.0, code abc."
    # A processor whose name has a comma, alone and in a run that moved.
    xeon = "Intel Xeon Processor (Skylake, IBRS) (AVX2)"
    runs[0].provenance["device"] = xeon
    runs[1].provenance["device"] = f"GPU, {xeon}, CPU"
    assert figures.describe_origin(runs).startswith(f"Recorded 2026-01-02 on CPU, GPU, {xeon}, to")


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
