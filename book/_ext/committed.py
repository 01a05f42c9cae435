"""The committed runs and what follows from them, each computed once per build."""

from functools import cache
from pathlib import Path

from metanb.claims import predictions, rules
from metanb.claims.verdicts import Row
from metanb.runs.records import Record, read_records

ROOT = Path(__file__).resolve().parents[2]
PAPER_DATA = ("omniglot", "mini-imagenet")


@cache
def committed_runs() -> list[Record]:
    """The committed runs, read once per build."""
    return read_records(ROOT / "results")


@cache
def judged_rows() -> list[Row]:
    """The verdicts on the committed runs, reached once per build."""
    return rules.judge(committed_runs())


def judged_on_paper_data() -> list[Row]:
    """The verdicts on the image sets that the paper uses."""
    return [row for row in judged_rows() if row.dataset in PAPER_DATA]


@cache
def judged_predictions() -> list[predictions.PredictionRow]:
    """What came of the predictions on the committed runs, judged once per build."""
    return predictions.judge_predictions(committed_runs())
