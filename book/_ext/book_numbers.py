"""Sphinx extension: the numbers in the book's prose, computed when the book is built.

They come from the recorded runs and from the code. A page writes `{{ name }}` for an entry of
`substitutions`. A name that does not exist is a warning, and so, in the strict build, an error: no
number in the book is typed by hand.
"""

from typing import Any

from beliefs import beliefs, main_roles
from benchmark_page import benchmark_values
from by_length import verdicts_by_length
from claim_results import claim_results
from committed import committed_runs, judged_on_paper_data, judged_predictions, judged_rows
from costs import cost_values, settling_table
from formats import capitalise
from inner_losses import (
    count_changes,
    inner_loss_accuracy,
    inner_loss_table,
    inner_losses_at_length,
    pair_inner_losses,
)
from ledger_page import predictions_over_runs_alone, predictions_table, verdict_values
from method_page import rule_values, settings_values
from published import accuracy_table, gain_table
from reach import devices, lengths, monotone, run_counts, seeds, still_rising, twins
from runs_page import RUNS_MARK, RUNS_PAGE, runs_page

LEDGER_PAGE = "book/ledger"
LEDGER_SCRIPT = "ledger.js"


def substitutions() -> dict[str, str]:
    """All names that pages may use, with their Markdown."""
    recorded = committed_runs()
    return {
        **verdict_values(recorded, judged_rows()),
        **rule_values(),
        **settings_values(),
        **run_counts(recorded),
        **cost_values(recorded),
        "accuracy": accuracy_table(recorded),
        "predictions": predictions_table(judged_predictions()),
        "predictions_alone": predictions_over_runs_alone(judged_predictions()),
        **discussion_values(),
        **benchmark_values(),
    }


def discussion_values() -> dict[str, str]:
    """Substitutions of the page "Discussion and limits", which leaves out data not the paper's."""
    recorded = committed_runs()
    rows = judged_on_paper_data()
    outcomes = judged_predictions()
    inner_losses = pair_inner_losses(recorded, rows)
    return {
        "discussion_beliefs": beliefs(rows, outcomes, main_roles(recorded), inner_losses),
        "discussion_claims": claim_results(rows, outcomes),
        "discussion_lengths": capitalise(lengths(recorded)),
        "discussion_rising": still_rising(recorded),
        "discussion_seeds": seeds(rows),
        "discussion_devices": capitalise(devices(recorded)),
        "discussion_gains": gain_table(recorded, rows),
        "discussion_inner_losses": inner_loss_table(inner_losses),
        "discussion_inner_loss_changes": count_changes(inner_losses),
        "discussion_inner_loss_accuracy": inner_loss_accuracy(recorded, inner_losses),
        "discussion_inner_losses_at_length": inner_losses_at_length(recorded),
        "discussion_monotone": monotone(recorded),
        "discussion_by_length": verdicts_by_length(recorded),
        "discussion_twins": twins(recorded),
        "discussion_settling": settling_table(recorded),
    }


def write_runs_page(_: Any, docname: str, source: list[str]) -> None:
    """Sphinx's event `source-read`: write the page of runs from the records."""
    if docname == RUNS_PAGE:
        source[0] = source[0].replace(RUNS_MARK, runs_page(committed_runs()))


def add_filter(app: Any, pagename: str, *_: Any) -> None:
    """Sphinx's event `html-page-context`: give the ledger the script of its filter."""
    if pagename == LEDGER_PAGE:
        app.add_js_file(LEDGER_SCRIPT, loading_method="defer")


def add_substitutions(_: Any, config: Any) -> None:
    """Sphinx's event `config-inited`: give pages the substitutions."""
    config.myst_substitutions.update(substitutions())


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", write_runs_page)
    app.connect("config-inited", add_substitutions)
    app.connect("html-page-context", add_filter)
    return {"parallel_read_safe": True}
