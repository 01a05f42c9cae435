"""The page "Explore the runs": its data, and the page in use.

Evidence: the csv and json files of the records, read here by the standard library; in a real
browser, what the page then says, and what its canvases hold.
"""

import base64
import csv
import gzip
import io
import json
import re
from functools import cache
from itertools import accumulate
from statistics import fmean

import numpy as np
import pytest
from explorer import _write_as_steps

from metanb.grids.definitions import BEGINNING
from metanb.settings import from_dict, preset
from tests.support.browser import HTML, PHONE, address, tab
from tests.support.paths import ROOT

DATA = HTML / "_static" / "explorer-data.js"
PAGE = "book/explore"
NUMBER = r"-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?"
# quick
PLAIN = {
    "filters": 32,
    "regulariser": "none",
    "head_init": "torch",
    "test_head": "fresh",
    "train_classes": 0,
    "inner_loss": "mean",
    "final_tasks": 0,  # the interventions, and their base, have further tasks
}


@cache
def recorded() -> dict[str, tuple[dict, dict]]:
    """All records, by the run's id: settings, and rows by measure and epoch, later ones, too."""
    runs = {}
    for path in sorted((ROOT / "results").glob("*/measures.csv.gz")):
        with gzip.open(path, "rt") as file:
            rows = {(row["measure"], int(row["epoch"])): row for row in csv.DictReader(file)}
        if (later := path.parent / "later.json").exists():
            taken = json.loads(later.read_text())["rows"]
            rows |= {(row["measure"], row["epoch"]): row for row in taken}
        settings = json.loads((path.parent / "settings.json").read_text())
        runs[re.sub(r"-to-\d+$", "", path.parent.name)] = settings, rows
    return runs


@cache
def drawn() -> dict:
    """The data of the built page."""
    if not DATA.exists():
        pytest.fail(f"{DATA} is not there: run `make book` first", pytrace=False)
    packed = DATA.read_text().removeprefix('window.METANB_RUNS="').rstrip('";\n')
    return json.loads(gzip.decompress(base64.b85decode(packed)))


def numbers_of(curve: str) -> list[float]:
    """A curve of the data, which are its numbers, or "DECIMALS:FIRST STEP STEP ..."."""
    decimals, colon, steps = curve.partition(":")
    if not colon:
        return list(map(float, curve.split()))
    return [count / 10 ** int(decimals) for count in accumulate(map(int, steps.split()))]


def visit(page, url: str) -> None:
    """Go to the explorer's page and wait until it has unpacked its data."""
    page.goto(url)
    page.wait_for_selector("#explore:not([hidden])", state="attached")


def cell(**settings) -> list[str]:
    """The ids of the runs at quick scale with these settings, and otherwise unchanged ones."""
    wanted = PLAIN | settings
    return [
        run
        for run, (has, _) in recorded().items()
        if all(has.get(name, value) == value for name, value in wanted.items())
        and has["epoch_iterations"] != BEGINNING["epoch_iterations"]
    ]


MAML = {"dataset": "omniglot", "ways": 5, "shots": 1, "algorithm": "maml"}


def mean(runs: list[str], measure: str, epoch: int) -> float:
    return fmean(float(recorded()[run][1][measure, epoch]["mean"]) for run in runs)


def last(runs: list[str]) -> int:
    return max(epoch for _, epoch in recorded()[runs[0]][1])


# ---- The data


def test_every_recorded_run_is_there_once():
    ids = [run["id"] for cell in drawn()["cells"] for run in cell["runs"]]
    assert sorted(ids) == sorted(recorded())


def test_curves_are_those_of_the_records():
    names = [measure["name"] for measure in drawn()["measures"]]
    runs = [(cell, run["id"]) for cell in drawn()["cells"] for run in cell["runs"]]
    for number, (cell, run) in enumerate(runs):
        rows = recorded()[run][1]
        epochs = 1 + max(epoch for _, epoch in rows)
        iterations = [
            (epoch, int(row["iteration"]))
            for (measure, epoch), row in rows.items()
            if measure in names
        ]
        assert all(cell["iterations"][epoch] == count for epoch, count in iterations)
        for curves, key, digits, share in (
            ("means", "mean", 5.1e-4, 1 / 19),
            ("errors", "sem", 5.1e-2, 0),
        ):
            shown, true, errors = [], [], []
            for name, texts in zip(names, drawn()[curves], strict=True):
                assert len(texts) == len(runs)
                kept = [rows.get((name, epoch)) for epoch in range(epochs)]
                values = numbers_of(texts[number])
                assert len(values) == (epochs if any(kept) else 0)
                shown += values
                kept = [row or {"mean": np.nan, "sem": np.nan} for row in kept[: len(values)]]
                true += [float(row[key]) for row in kept]
                errors += [float(row["sem"]) for row in kept]
            # A mean has four digits, or as many as its standard error leaves.
            allowed = np.fmax(digits * np.abs(true), share * np.array(errors))
            assert np.array_equal(np.isnan(shown), np.isnan(true))
            assert np.all((np.abs(np.subtract(shown, true)) <= allowed + 1e-12) | np.isnan(true))


@pytest.mark.parametrize(
    ("curve", "steps"),
    [
        (".25 .3 .28", "2:25 5 -2"),
        ("1e-5 -.5", "5:1 -50001"),
        ("1.235e+06 3", "0:1235000 -1234997"),
        ("7", "0:7"),
        ("", ""),
        (".25 NaN", ".25 NaN"),
        ("1e-9 1e+9", "1e-9 1e+9"),  # ten to the 18th
        ("1e-23 2e-23", "1e-23 2e-23"),
    ],
)
def test_a_curve_is_written_as_steps_where_no_number_is_lost(curve, steps):
    assert _write_as_steps(curve) == steps
    assert numbers_of(steps) == pytest.approx(list(map(float, curve.split())), rel=0, nan_ok=True)


def test_every_measure_that_is_a_curve_is_there():
    names = {measure["name"] for measure in drawn()["measures"]}
    others = {measure for _, rows in recorded().values() for measure, _ in rows} - names
    assert all(measure.startswith("final_accuracy") for measure in others)


def test_runs_of_a_cell_differ_by_their_seeds_alone():
    for cell in drawn()["cells"]:
        settings = [recorded()[run["id"]][0] for run in cell["runs"]]
        assert [run["seed"] for run in cell["runs"]] == [values["seed"] for values in settings]
        assert len({from_dict(values).unseeded for values in settings}) == 1
        assert cell["setting"] == f"{settings[0]['ways']}-way {settings[0]['shots']}-shot"
    words = [
        tuple(cell[key] for key in ("dataset", "setting", "scale", "algorithm", "variant"))
        for cell in drawn()["cells"]
    ]
    assert len(set(words)) == len(words)  # so that a reader can tell any two cells apart


def test_page_is_light_and_its_scripts_are_loaded_on_it_alone():
    own = [DATA, *(HTML / "_static").glob("explorer*.*"), HTML / f"{PAGE}.html"]
    assert DATA.stat().st_size < 450_000
    assert sum(path.stat().st_size for path in set(own)) < 500_000
    assert sum(path.stat().st_size for path in (HTML / "_static" / "uplot").iterdir()) < 150_000
    assert [
        path.stem
        for path in HTML.rglob("*.html")
        if re.search(r"explorer[\w-]*\.js|uPlot", path.read_text())
    ] == ["explore"]


# ---- The page in use


def numbers(text: str) -> list[float]:
    return [float(digits.replace(",", "")) for digits in re.findall(rf"(?<![\w.-]){NUMBER}", text)]


def summarised(page, name: str, measure: str) -> list[float]:
    """The summary's numbers for a cell and a measure: first mean, last mean, iterations."""
    sentence = page.locator("#explore-summary").inner_text().split(f"{measure}: ")[1]
    (groups,) = re.findall(
        rf"(?:^|; ){re.escape(name)} from ({NUMBER}) .*? to ({NUMBER}) after ({NUMBER}) ", sentence
    )[:1]
    return numbers(" ".join(groups))


def table(page) -> dict[str, list[list[float]]]:
    """The table under the curves: for each row its cells' numbers, mean, least and greatest."""
    rows = page.locator("#explore-table tbody tr").all()
    return {
        row.locator("th").inner_text().strip(): [
            numbers(td) for td in row.locator("td").all_inner_texts()
        ]
        for row in rows
    }


def spread(runs: list[str], measure: str, epoch: int) -> list[float]:
    values = [float(recorded()[run][1][measure, epoch]["mean"]) for run in runs]
    return [fmean(values), min(values), max(values)]


def choice(page, name: str):
    return page.get_by_role("combobox", name=name)


def box(page, name: str):
    return page.locator("#explore").get_by_role("checkbox", name=name, exact=True)


def open_each(page) -> None:
    page.locator("#explore-each summary").click()
    page.locator("#explore-each tbody tr").first.wait_for()


def close(values: list[float]):
    """Within what the rounding of runs' means by their standard errors leaves."""
    return pytest.approx(values, rel=5e-3, abs=1e-4)


def shown_as(row: dict[str, str]):
    """A record's mean as it is drawn, rounded to four digits or by its standard error."""
    return pytest.approx(float(row["mean"]), rel=1e-3, abs=float(row["sem"]) / 19)


def test_page_opens_from_a_file_with_curves_and_says_what_they_are(page):
    visit(page, address(PAGE))
    assert page.url.startswith("file:")
    for algorithm, name in (("maml", "MAML"), ("fomaml", "first-order MAML")):
        runs = cell(**MAML | {"algorithm": algorithm})
        assert len(runs) >= 5
        for measure, label in (
            ("hessian_norm", "Hessian norm at adapted solutions"),
            ("query_accuracy", "Query accuracy"),
        ):
            ends = [mean(runs, measure, 1), mean(runs, measure, last(runs)), 1800]
            assert summarised(page, name, label) == close(ends)
        row = table(page)[f"{name}: {len(runs)} runs"]
        assert row == [
            close(spread(runs, m, last(runs))) for m in ("hessian_norm", "query_accuracy")
        ]
    assert page.locator("#explore-panels canvas").count() == 2
    assert page.locator("#explore-problem").is_hidden()


def test_other_data_runs_and_measures_are_drawn_when_chosen(page):
    visit(page, address(PAGE))
    choice(page, "Data set").select_option("Glyphs")
    box(page, "finetuning").check()
    box(page, "MAML").uncheck()
    choice(page, "First measure").select_option("Trajectory coherence")
    choice(page, "Second measure").select_option("none")
    rows = table(page)
    assert list(rows) == ["first-order MAML: 5 runs", "finetuning: 5 runs"]
    for algorithm, name in (("fomaml", "first-order MAML"), ("finetune", "finetuning")):
        runs = cell(dataset="glyphs", algorithm=algorithm)
        ends = [mean(runs, "trajectory_coherence", 1), mean(runs, "trajectory_coherence", 12), 1800]
        assert summarised(page, name, "Trajectory coherence") == close(ends)
        assert rows[f"{name}: 5 runs"] == [close(spread(runs, "trajectory_coherence", 12))]
    assert page.locator("#explore-panels canvas").count() == 1
    assert box(page, "log axis").first.is_disabled()  # coherence is not above 0


def test_settings_that_set_a_cell_apart_and_kept_runs_can_be_compared(page):
    visit(page, address(PAGE))
    page.locator("#explore-cells summary").click()
    box(page, "MAML, regulariser=adapted, gamma=1").check()
    runs = cell(**MAML | {"regulariser": "adapted"})
    name = "MAML, regulariser=adapted, gamma=1"
    assert table(page)[f"{name}: {len(runs)} runs"][0] == close(spread(runs, "hessian_norm", 12))
    page.get_by_role("checkbox", name="Keep the runs").check()
    choice(page, "Setting").select_option("20-way 1-shot")
    twenty = cell(**MAML | {"ways": 20})
    five = cell(**MAML)
    names = ["MAML (20-way 1-shot): 3 runs", "MAML (5-way 1-shot): 5 runs"]
    assert len(table(page)) == 3 + 2
    # where it ended
    assert table(page)[names[0]][0] == close([*spread(twenty, "hessian_norm", 12), 1200])
    assert table(page)[names[1]][0] == close(spread(five, "hessian_norm", 12))
    page.get_by_role("slider", name="Iteration").press("Home")
    assert table(page)[names[0]][0] == close(spread(twenty, "hessian_norm", 0))
    assert table(page)[names[1]][0] == close(spread(five, "hessian_norm", 0))


def test_keyboard_moves_through_the_epochs(page):
    visit(page, address(PAGE))
    slider, runs = page.get_by_role("slider", name="Iteration"), cell(**MAML)
    assert slider.get_attribute("aria-valuetext") == "1,800 of 1,800"
    slider.press("Home")
    assert slider.get_attribute("aria-valuetext") == "0, untrained"
    assert table(page)["MAML: 5 runs"][1] == close(spread(runs, "query_accuracy", 0))
    slider.press("ArrowRight")
    slider.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "300 of 1,800"
    assert table(page)["MAML: 5 runs"][1] == close(spread(runs, "query_accuracy", 2))


def test_pointing_at_a_run_shows_its_values_in_both_panels(page):
    visit(page, address(PAGE) + "#show=query_accuracy,distance")
    over = page.locator("#explore-plot0 .u-over")
    over.scroll_into_view_if_needed()
    area = over.bounding_box()
    runs = {"MAML": cell(**MAML), "first-order MAML": cell(**MAML | {"algorithm": "fomaml"})}
    accuracies = []
    for y in range(0, int(area["height"]), 3):
        page.mouse.move(area["x"] + area["width"] * 900 / 1800, area["y"] + y)
        tips = [page.locator(f"#explore-plot{place} .tip") for place in (0, 1)]
        if tips[0].is_hidden():
            continue
        name, seed = re.fullmatch(r"(.*), seed (\d+): .*", tips[0].inner_text()).groups()
        rows = recorded()[runs[name][int(seed)]][1]
        for tip, measure in zip(tips, ("query_accuracy", "distance"), strict=True):
            row = rows[measure, 6]
            (value, error) = numbers(tip.inner_text().split(": ")[1])
            assert value == shown_as(row)
            assert error == pytest.approx(float(row["sem"]), rel=6e-2)
        accuracies.append(float(rows["query_accuracy", 6]["mean"]))
    assert len(set(accuracies)) >= 6  # ten runs, some as good as on top of each other
    assert accuracies == sorted(accuracies, reverse=True)  # from the top to the bottom
    assert (
        page.get_by_role("slider", name="Iteration").get_attribute("aria-valuetext")
        == "900 of 1,800"
    )


def test_address_keeps_the_view(browser, page):
    visit(page, address(PAGE))
    choice(page, "Setting").select_option("5-way 5-shot")
    box(page, "finetuning").check()
    choice(page, "Second measure").select_option("Gradient coherence")
    box(page, "band, least to greatest run").uncheck()
    box(page, "log axis").first.uncheck()
    page.get_by_role("slider", name="Iteration").press("Home")
    controls = (
        "[...document.querySelectorAll('#explore select, #explore input')]"
        ".map(e => [e.value, e.checked])"
    )
    kept = page.evaluate(controls), page.locator("#explore").inner_text(), page.url
    with tab(browser) as second:
        visit(second, page.url)
        view = second.evaluate(controls), second.locator("#explore").inner_text(), second.url
        assert view == kept
        assert not second.watch.complaints
    page.get_by_role("button", name="Start again").click()
    assert choice(page, "Setting").input_value() == "5-way 1-shot"


def test_a_link_may_name_any_run(page):
    runs = cell(**MAML | {"ways": 20, "algorithm": "finetune"})
    visit(page, address(PAGE) + f"#runs={runs[-1]},not-a-run&show=valid_accuracy")
    assert choice(page, "Setting").input_value() == "20-way 1-shot"
    assert table(page) == {
        f"finetuning: {len(runs)} runs": [close(spread(runs, "valid_accuracy", 12))]
    }
    # a link on the page itself
    page.evaluate(f"location.hash = 'runs={cell(dataset='glyphs', algorithm='maml')[0]}'")
    page.wait_for_function("document.getElementById('explore-dataset').value === 'Glyphs'")


def test_each_run_leads_to_its_record(page):
    visit(page, address(PAGE))
    open_each(page)
    links = page.locator("#explore-each a")
    ids = [link.get_attribute("href").split("#")[1] for link in links.all()]
    assert ids == cell(**MAML) + cell(**MAML | {"algorithm": "fomaml"})
    links.last.click()
    page.wait_for_url("**/runs.html*")
    assert page.evaluate("document.querySelector(location.hash) !== null")


def test_what_is_shown_is_saved_as_csv(page):
    visit(page, address(PAGE) + f"#runs={cell(**MAML)[0]}&show=train_loss,relative_move")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save what is shown").click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text())))
    assert len(rows) == 5 * 12  # no loss before training, and no regulariser
    for row in rows:
        kept = recorded()[row["run"]][1][row["measure"], int(row["epoch"])]
        assert row["iteration"] == kept["iteration"]
        assert float(row["mean"]) == shown_as(kept)
        assert float(row["sem"]) == pytest.approx(float(kept["sem"]), rel=6e-2)
    assert "relative move by the regulariser: MAML not recorded" in page.locator(
        "#explore-summary"
    ).inner_text().replace("Rel", "rel")


def test_mean_ends_where_the_first_run_was_stopped(browser):
    runs, data = cell(**MAML), json.loads(json.dumps(drawn()))
    ids = [run["id"] for part in data["cells"] for run in part["runs"]]
    number = ids.index(runs[-1])
    for curves in (*data["means"], *data["errors"]):
        curves[number] = " ".join(curves[number].split()[:6])  # numbers, or steps from the first
    with tab(browser) as page:
        packed = base64.b85encode(gzip.compress(json.dumps(data).encode())).decode()
        script = f'window.METANB_RUNS="{packed}";'
        page.route(
            "**/explorer-data.js*",
            lambda route: route.fulfill(body=script, content_type="text/javascript"),
        )
        visit(page, address(PAGE))
        ends = [mean(runs, "query_accuracy", 1), mean(runs, "query_accuracy", 5), 750]
        assert summarised(page, "MAML", "Query accuracy") == close(ends)
        assert table(page)["MAML: 5 runs"] == [[], []]
        open_each(page)
        first, *_, stopped = (
            page.locator("#explore-each tbody tr").filter(has_text=re.compile(r"^\s*MAML")).all()
        )
        # it went on: mean and standard error
        assert len(numbers(first.locator("td").last.inner_text())) == 2
        assert stopped.locator("td").last.inner_text() == "–"
        assert not page.watch.complaints


def test_a_finger_shows_values_that_stay(browser):
    context = browser.new_context(viewport={"width": PHONE[0], "height": PHONE[1]}, has_touch=True)
    page = context.new_page()
    visit(page, address(PAGE) + f"#runs={cell(**MAML)[0]}&show=query_accuracy")
    over = page.locator("#explore-plot0 .u-over")
    over.scroll_into_view_if_needed()
    area = over.bounding_box()
    page.touchscreen.tap(area["x"] + area["width"] / 2, area["y"] + 0.2 * area["height"])
    page.locator("#explore-plot0 .tip").wait_for()
    name, value = page.locator("#explore-plot0 .tip").inner_text().split(": ")
    run = cell(**MAML)[int(name.removeprefix("MAML, seed "))]
    assert numbers(value)[0] == shown_as(recorded()[run][1]["query_accuracy", 6])
    assert "at=900" in page.url
    context.close()


PIXELS = """() => {
  const canvas = document.querySelector("#explore-plot0 canvas");
  const { data } = canvas.getContext("2d").getImageData(0, canvas.height - 20, canvas.width, 20);
  const grey = [];
  for (let i = 0; i < data.length; i += 4)
    if (data[i + 3] > 200) grey.push((data[i] + data[i + 1] + data[i + 2]) / 3);
  return [Math.min(...grey), Math.max(...grey)];
}"""


def test_curves_follow_the_theme_at_once(page):
    visit(page, address(PAGE))
    darkest, _ = page.evaluate(PIXELS)  # of the axis's label, where it covers the page
    assert darkest < 90
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    page.wait_for_timeout(200)
    darkest, _ = page.evaluate(PIXELS)
    assert darkest > 150


def test_phone_needs_no_sideways_scrolling(browser):
    with tab(browser, PHONE) as page:
        firsts = [
            cell["runs"][0]["id"]
            for cell in drawn()["cells"]
            if (cell["dataset"], cell["setting"]) == ("Omniglot", "5-way 1-shot")
        ]
        visit(page, f"{address(PAGE)}#runs={','.join(firsts)}")
        page.locator("#explore-cells summary").click()
        boxes = page.locator("#explore-cells label input")
        assert boxes.evaluate_all("boxes => boxes.every(box => box.checked)")
        assert boxes.count() == len(firsts) > 9
        open_each(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
        assert page.locator("#explore-plot0 canvas").bounding_box()["width"] <= PHONE[0]
        assert not page.watch.complaints


def test_missing_data_are_said_in_one_line(browser):
    with tab(browser) as page:
        page.route("**/explorer-data.js*", lambda route: route.abort())
        page.goto(address(PAGE))
        assert page.get_by_role("alert").inner_text() == (
            "No curves: _static/explorer-data.js is missing. Build the book again, with make book."
        )
        assert page.locator("#explore").is_hidden()


def test_without_scripts_the_page_says_where_the_numbers_are(browser):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address(PAGE))
    assert "csv files of the runs" in page.locator("article noscript").inner_text()
    context.close()


def own_files(tmp_path, seeds=(0, 1)) -> list:
    """Records of one's own as files: two epochs, the accuracy rises by the seed."""
    for seed in seeds:
        folder = tmp_path / "store" / f"birds-5w1s-maml-s{seed}-01234567"
        folder.mkdir(parents=True)
        settings = preset("smoke", "birds", seed=seed).to_dict()
        (folder / "settings.json").write_text(json.dumps(settings))
        lines = ["epoch,iteration,measure,mean,median,std,sem,n"]
        for epoch in range(3):
            accuracy = 0.2 + 0.1 * (seed + 1) * epoch
            lines.append(f"{epoch},{10 * epoch},query_accuracy,{accuracy:g},0,0,0.01,8")
        (folder / "measures.csv").write_text("\n".join(lines) + "\n")
    return sorted((tmp_path / "store").iterdir())


def test_a_csv_of_ones_own_is_drawn_beside_the_books(page, tmp_path):
    visit(page, f"{address(PAGE)}#show=query_accuracy")
    page.set_input_files("#explore-own input", own_files(tmp_path)[1] / "measures.csv")
    page.wait_for_function("document.querySelector('#explore-dataset').value === 'Your own'")
    row = page.locator("#explore-table tr", has_text="measures.csv")
    assert "0.6 (0.6 to 0.6)" in row.inner_text()
    assert page.locator("#explore-table tbody tr").count() == 3  # the book's two, and this
    assert page.locator("#explore-problem").is_hidden()
    open_each(page)
    assert "0.6 ± 0.01" in page.inner_text("#explore-each")


def test_a_compressed_csv_is_drawn_and_a_damaged_one_is_named(page, tmp_path):
    visit(page, f"{address(PAGE)}#show=query_accuracy")
    content = gzip.compress((own_files(tmp_path)[1] / "measures.csv").read_bytes())
    (tmp_path / "mine.csv.gz").write_bytes(content)
    (tmp_path / "torn.csv.gz").write_bytes(content[: len(content) // 2])
    page.set_input_files("#explore-own input", tmp_path / "torn.csv.gz")
    page.wait_for_function("!document.querySelector('#explore-problem').hidden")
    assert "torn.csv.gz is damaged" in page.inner_text("#explore-problem")
    page.set_input_files("#explore-own input", tmp_path / "mine.csv.gz")
    page.wait_for_function("document.querySelector('#explore-dataset').value === 'Your own'")
    row = page.locator("#explore-table tr", has_text="mine.csv.gz")
    assert "0.6 (0.6 to 0.6)" in row.inner_text()


def test_a_store_of_ones_own_is_dropped_on_the_page(page, tmp_path):
    """Files with their folders, as a browser gives them; seeds of one cell share a line."""
    visit(page, f"{address(PAGE)}#show=query_accuracy")
    files = {
        str(path.relative_to(tmp_path)): path.read_text()
        for folder in own_files(tmp_path)
        for path in folder.iterdir()
    }
    page.evaluate(
        """(files) => {
          const entry = (path, text) => ({ isFile: true, fullPath: `/${path}`,
            file: (resolve) => resolve(new File([text], path.split("/").at(-1))) });
          const folder = { isFile: false, isDirectory: true, createReader: () => {
            let portions = [Object.entries(files).map(([path, text]) => entry(path, text)), []];
            return { readEntries: (resolve) => resolve(portions.shift()) };
          } };
          const event = new Event("drop", { bubbles: true, cancelable: true });
          event.dataTransfer = { types: ["Files"], items: [{ webkitGetAsEntry: () => folder }] };
          document.body.dispatchEvent(event);
        }""",
        files,
    )
    page.wait_for_function("document.querySelector('#explore-dataset').value === 'Your own'")
    row = page.locator("#explore-table tr", has_text="maml (Your own").inner_text()
    assert "2 runs" in row and "0.5 (0.4 to 0.6)" in row
    assert page.input_value("#explore-setting") == "birds, 5-way 1-shot"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a,b\n1,2\n", "has no column epoch"),
        ("", "has no column epoch"),
        ("epoch,iteration,measure,mean,sem\nx,1,query_accuracy,1,0\n", "has no epochs 0, 1, 2"),
        ("epoch,iteration,measure,mean,sem\n2,1,query_accuracy,1,0\n", "lacks an epoch"),
    ],
)
def test_a_file_that_is_no_record_is_named(page, tmp_path, content, words):
    visit(page, address(PAGE))
    (tmp_path / "mine.csv").write_text(content)
    page.set_input_files("#explore-own input", tmp_path / "mine.csv")
    page.wait_for_selector("#explore-problem:not([hidden])")
    assert page.inner_text("#explore-problem").startswith(f"mine.csv {words}")


def test_a_link_to_a_run_that_is_not_there_says_so(page):
    visit(page, f"{address(PAGE)}#runs=omniglot-5w1s-maml-s9-00000000")
    assert page.inner_text("#explore-problem") == "No run omniglot-5w1s-maml-s9-00000000 here."
