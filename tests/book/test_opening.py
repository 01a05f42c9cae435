"""The landing page's opening figure: what it says, and the figure in use.

Evidence: the film's and the run's own files, read here by the standard library; the portrait of the
same run that was drawn earlier; and a real browser, with and without scripts, on screen and in
print.
"""

import base64
import csv
import gzip
import io
import json
import math
import re
from itertools import pairwise

import pytest
from bs4 import BeautifulSoup

from tests.support.axe import CONTRAST, add_axe, axe
from tests.support.browser import DESKTOP, HTML, PHONE, WIDER_THAN_THE_PAGE, address, tab
from tests.support.paths import ROOT

PAGE = "book/index"
RUN = "omniglot-5w1s-maml-s0-1ae00536"
OTHERS = ("s1-3b0b692c", "s2-c4a234cf")  # two of the runs that differ by their seed alone
FILM = json.loads((ROOT / "results" / f"{RUN}.film.json").read_text())["values"]
STAGES = FILM["stages"]
EPOCHS = [0, 1, 2, 3, 4, 6, 9, 12]
KEYS = [0, 2, 5, 7]  # frames of the strip


def recorded(run: str, measure: str = "query_accuracy") -> list[dict]:
    with gzip.open(ROOT / "results" / run / "measures.csv.gz", "rt") as file:
        return [row for row in csv.DictReader(file) if row["measure"] == measure]


def at_stages(run: str) -> list[dict]:
    return [row for row in recorded(run) if int(row["epoch"]) in EPOCHS]


@pytest.fixture(scope="module")
def figure():
    """The figure in the built page."""
    page = HTML / f"{PAGE}.html"
    if not page.exists():
        pytest.fail(f"{page} is not there: run `make book` first", pytrace=False)
    (opening,) = BeautifulSoup(page.read_text(), "html.parser").select("figure.metanb-opening")
    return opening


def percentages(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"(\d+)\s%", text)]


# ---- What it says


def test_accuracies_are_the_records():
    rows = at_stages(RUN)
    assert [int(row["epoch"]) for row in rows] == [stage["epoch"] for stage in STAGES] == EPOCHS
    for row, stage in zip(rows, STAGES, strict=True):
        # The film's weights may be trained on another machine; four standard errors is far.
        error = 4 * float(row["sem"])
        assert stage["accuracy_after"] == pytest.approx(float(row["mean"]), abs=error)
        assert int(row["n"]) == FILM["n"]


def test_caption_says_how_far_the_drawn_weights_are_from_the_record(figure):
    gaps = [
        abs(stage["accuracy_after"] - float(row["mean"]))
        for stage, row in zip(STAGES, at_stages(RUN), strict=True)
    ]
    bound = math.ceil(1000 * max(gaps)) / 10
    assert f"within {bound:.1f} points of the recorded run's" in figure.get_text()
    # the weights before and after meta-training are the run's own
    assert gaps[0] == pytest.approx(0, abs=1e-4) and gaps[-1] == pytest.approx(0, abs=1e-4)


def test_film_agrees_with_the_earlier_portrait():
    surface = json.loads((ROOT / "results" / f"{RUN}.surface.json").read_text())["values"]
    assert surface["at"][4] == 0
    for stage in surface["stages"]:
        frame = STAGES[EPOCHS.index(stage["epoch"])]
        start = stage["support_loss"][4][4]
        assert frame["support_loss_before"] == pytest.approx(start, rel=0.05)
        for path, filmed in zip(stage["paths"], frame["paths"], strict=True):
            assert math.hypot(*filmed[-1]) == pytest.approx(math.hypot(*path[-1]), rel=0.1)


def test_each_map_says_its_numbers(figure):
    frames = figure.select(".frame")
    assert len(frames) == len(STAGES) == 8
    for frame, stage in zip(frames, STAGES, strict=True):
        words = frame.p.get_text()
        gain = [round(100 * stage[f"accuracy_{when}"]) for when in ("before", "after")]
        assert percentages(words) == gain == percentages(frame["data-gain"])
        losses = [float(x) for x in re.search(r"from ([\d.]+) to ([\d.]+)\.", words).groups()]
        for loss, when in zip(losses, ("before", "after"), strict=True):
            true = stage[f"support_loss_{when}"]
            assert loss == pytest.approx(true, abs=max(0.005, 0.06 * true))
        moment = f"iteration {150 * stage['epoch']:,} of 1,800" if stage["epoch"] else "untrained"
        assert frame["data-moment"] == moment and moment in words.lower()
        alt = frame.svg["aria-label"]
        assert moment in alt and f"{math.hypot(*stage['paths'][0][-1]):.1f} to the right" in alt
    assert len({frame.svg["aria-label"] for frame in frames}) == 8


def test_the_story_is_what_the_records_show(figure):
    story = figure.figcaption.strong.get_text()
    first, last = (recorded(RUN)[place] for place in (0, -1))
    _, early, _, late = percentages(story)
    assert early == pytest.approx(100 * float(first["mean"]), abs=3)
    assert late == pytest.approx(100 * float(last["mean"]), abs=3)
    assert "goes down a gentle slope" in story and "lands on wide, low ground" in story
    assert STAGES[0]["support_loss_after"] > STAGES[0]["support_loss_before"] / 2
    solution = STAGES[-1]["paths"][0][-1]
    assert solution[1] == pytest.approx(0, abs=1e-6)
    around = [
        loss
        for b, row in zip(FILM["at"], STAGES[-1]["support_loss"], strict=True)
        for a, loss in zip(FILM["at"], row, strict=True)
        if math.dist((a, b), solution) < solution[0] / 2
    ]
    assert len(around) > 50 and max(around) < 0.25


def points(path: str) -> list[tuple[float, float]]:
    numbers = [float(number) for number in re.findall(r"-?[\d.]+", path)]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def test_chart_shows_the_records_at_their_places(figure):
    chart = figure.select_one(".chart svg")
    ticks = [text for text in chart.find_all("text", recursive=False)]
    shares = [percentages(text.get_text()) for text in chart.select("svg > text.right")]
    heights = {
        share: float(re.match(r"M\d+ (\d+)H", grid["d"])[1])
        for (share,), grid in zip(filter(None, shares), chart.select(".grid"), strict=True)
    }
    bottom, top = heights[0], heights[100]
    places = {text.get_text(): float(text["x"]) for text in ticks}
    left, right = places["0"], places["1,800"]

    def check(line, rows):
        for (x, y), row in zip(points(line["d"]), rows, strict=True):
            share = (bottom - y) / (bottom - top)
            assert (x - left) / (right - left) == pytest.approx(
                int(row["iteration"]) / 1800, abs=2e-3
            )
            assert share == pytest.approx(float(row["mean"]), abs=0.03)

    check(chart.select_one(".after"), at_stages(RUN))
    thin = chart.select(".other")
    assert len(thin) >= len(OTHERS) and f"{len(thin)} runs with other seeds" in figure.get_text()
    for name, line in zip(OTHERS, thin, strict=False):
        check(line, recorded(f"omniglot-5w1s-maml-{name}"))
    for mark, stage in zip(chart.select(".mark"), STAGES, strict=True):
        low, high = (float(circle["cy"]) for circle in mark.select("circle"))
        for y, when in ((low, "before"), (high, "after")):
            share = (bottom - y) / (bottom - top)
            assert share == pytest.approx(stage[f"accuracy_{when}"], abs=2e-3)


def crossings(path: str, height: float) -> list[float]:
    """Where the edge of a region, drawn in relative steps, crosses a horizontal line."""
    places = []
    for x, y, steps in re.findall(r"M(-?\d+) (-?\d+)l([^z]*)z", path):
        corner = (int(x), int(y))
        moves = [int(number) for number in re.findall(r"-?\d+", steps)]
        corners = [corner]
        for dx, dy in zip(moves[::2], moves[1::2], strict=True):
            corner = (corner[0] + dx, corner[1] + dy)
            corners.append(corner)
        for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
            if (y0 - height) * (y1 - height) < 0:
                places.append(x0 + (x1 - x0) * (height - y0) / (y1 - y0))
    return sorted(places)


def test_contours_are_where_the_loss_has_their_level(figure):
    """Along rows of the grid, against the losses between its points, interpolated by hand."""
    at, size = FILM["at"], 680
    unit = size / (at[-1] - at[0])
    checked = 0
    for frame, stage in zip(figure.select(".frame"), STAGES, strict=True):
        flat = [loss for row in stage["support_loss"] for loss in row]
        levels = [n / 4 for n in range(1, 13) if min(flat) < n / 4 < max(flat)]
        regions = frame.select(".level")
        assert len(regions) == len(levels) >= 3
        for level, region in zip(levels, regions, strict=True):
            assert ("thick" in region["class"]) == (level == int(level))
            for row in (8, 11, 14):
                losses = stage["support_loss"][row]
                true = [
                    unit * (at[j] - at[0] + (level - a) / (b - a) * (at[j + 1] - at[j]))
                    for j, (a, b) in enumerate(pairwise(losses))
                    if (a - level) * (b - level) < 0
                ]
                # half a unit off the row, as corners lie on it; the map's edges are no contours
                height = size - (at[row] - at[0]) * unit + 0.5
                drawn = [x for x in crossings(region["d"], height) if 2 < x < size - 2]
                if len(true) == len(drawn):
                    assert drawn == pytest.approx(sorted(true), abs=6)
                    checked += len(true)
    assert checked > 200


def test_data_are_the_films(figure):
    link = figure.select_one("a[download]")
    rows = list(csv.DictReader(io.StringIO(base64.b64decode(link["href"].split(",")[1]).decode())))
    assert [int(row["iteration"]) for row in rows] == [150 * stage["epoch"] for stage in STAGES]
    for row, stage in zip(rows, STAGES, strict=True):
        for name in ("support_loss_before", "support_loss_after", "accuracy_after"):
            assert float(row[name]) == pytest.approx(stage[name], rel=1e-3)


def test_figure_is_light_and_its_assets_are_on_its_page_alone(figure):
    assert len(str(figure).encode()) < 120_000
    pages = [
        path for path in HTML.rglob("*.html") if re.search(r"opening\.(js|css)", path.read_text())
    ]
    assert pages == [HTML / f"{PAGE}.html"]


# ---- In use


def visible(page, selector: str) -> list[int]:
    """The frames of the visible ones among some elements of the figure."""
    return page.evaluate(
        """selector => [...document.querySelectorAll(`.metanb-opening ${selector}`)]
            .filter(element => getComputedStyle(element).display !== 'none'
                && getComputedStyle(element).visibility === 'visible')
            .map(element => Number(element.dataset.frame))""",
        selector,
    )


def test_keyboard_moves_through_meta_training(page):
    page.goto(address(PAGE))
    slider = page.get_by_role("slider", name="Move through meta-training")
    assert visible(page, ".frame") == visible(page, ".mark") == [0]
    for key, frame in (("End", 7), ("ArrowLeft", 6), ("Home", 0), ("ArrowRight", 1)):
        slider.press(key)
        assert visible(page, ".frame") == visible(page, ".mark") == [frame]
        text = slider.get_attribute("aria-valuetext")
        moment, gain = text.split(": ")
        assert page.locator(".metanb-opening output").inner_text() == moment
        stage = STAGES[frame]
        assert percentages(gain) == [
            round(100 * stage[f"accuracy_{when}"]) for when in ("before", "after")
        ]


def test_nothing_moves_but_by_the_reader(page):
    page.goto(address(PAGE))
    slider = page.get_by_role("slider", name="Move through meta-training")
    box = "document.querySelector('.metanb-opening').getBoundingClientRect().height"
    height = page.evaluate(box)
    page.wait_for_timeout(600)
    assert visible(page, ".frame") == [0]
    for _ in range(7):
        slider.press("ArrowRight")
        assert page.evaluate(box) == height  # the text below stays where it is
    assert page.evaluate("document.getAnimations().length") == 0


def test_without_scripts_a_strip_stands(browser):
    context = browser.new_context(
        java_script_enabled=False, viewport={"width": 1280, "height": 900}
    )
    page = context.new_page()
    page.goto(address(PAGE))
    shown = [
        int(frame.get_attribute("data-frame"))
        for frame in page.locator(".metanb-opening .frame").all()
        if frame.is_visible()
    ]
    assert shown == KEYS
    assert not page.locator(".metanb-opening input").is_visible()
    captions = page.locator(".metanb-opening .frame p").locator("visible=true")
    assert captions.count() == 4
    context.close()


def test_print_shows_the_strip(page):
    page.goto(address(PAGE))
    page.get_by_role("slider", name="Move through meta-training").press("ArrowRight")
    page.emulate_media(media="print")
    assert visible(page, ".frame") == visible(page, ".mark") == KEYS
    assert page.locator(".metanb-opening input").is_hidden()


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_figure_is_accessible(browser, size):
    with tab(browser, size) as page:
        page.goto(address(PAGE))
        page.get_by_role("slider", name="Move through meta-training").press("End")
        add_axe(page)
        assert axe(page) == []
        page.emulate_media(color_scheme="dark")
        page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
        assert axe(page, CONTRAST) == []
        assert page.watch.complaints == []


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_figure_fits_and_its_words_can_be_read(browser, width):
    with tab(browser, (width, 800)) as page:
        page.goto(address(PAGE))
        assert [
            line for line in page.evaluate(WIDER_THAN_THE_PAGE) if "metanb-opening" in line
        ] == []
        right = page.evaluate(
            "document.querySelector('.metanb-opening').getBoundingClientRect().right"
        )
        assert right <= width
        smallest = page.evaluate(
            """() => Math.min(...[...document.querySelectorAll('.metanb-opening text')].map(text =>
                parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a))"""
        )
        assert smallest >= (10 if width > 320 else 9)
