"""The figure of interventions: what it draws, and what it says."""

import numpy as np
import pandas as pd
import pytest

from metanb.figures.interventions import describe_interventions, interventions
from metanb.grids.interventions import INTERVENTIONS

TABLE = pd.DataFrame(
    {
        "algorithm": ["maml", "maml", "fomaml", "fomaml", "fomaml"],
        "intervention": ["base", "zero head", "base", "zero head", "coherent"],
        "pairs": [3, 3, 5, 5, 5],
        "gain": [0.0, 1.0, 0.0, -4.0, 0.5],
        "low": [0.0, 0.5, 0.0, -6.0, -0.5],
        "high": [0.0, 1.5, 0.0, -2.0, 1.5],
        "trajectory_coherence": [0.01, 0.02, 0.2, 0.01, 0.3],
    }
)


def test_values_and_gains_are_drawn_where_they_are():
    figure = interventions(TABLE, "trajectory_coherence", "x", "What to see.")
    axes = figure.canvas.axes
    assert len(axes) == 4
    names = [label.get_text() for label in axes[0].get_yticklabels()]
    assert names == ["zero head", "coherent"]
    dots = [line for line in axes[2].lines if line.get_marker() == "o"]
    assert dots[0].get_xdata() == pytest.approx([0.01, 0.3])
    of_gains = [line for line in axes[3].lines if line.get_marker() == "o"]
    assert [float(np.ravel(line.get_xdata())[0]) for line in of_gains] == [-4.0, 0.5]
    assert [line.get_fillstyle() for line in of_gains] == ["full", "none"]
    assert "n = 3 to 5" in figure.caption
    assert "first-order MAML, zero head: 0.01, -4.0 points" in figure.alt
    assert figure.data.gain.tolist() == TABLE.gain.tolist()


def test_every_intervention_is_described_and_steps_share_an_item():
    names = [each.name for each in INTERVENTIONS]
    text = describe_interventions(names)
    assert all(f"*{name}*" in text for name in names)
    assert len(text.splitlines()) == 1 + sum("inner step" not in name for name in names)
    assert "zero head" not in describe_interventions(["shared head"])
    assert describe_interventions([]) == ""


def test_a_phone_hardly_shrinks_it():
    """Drawn at 460 pixels or less, shown at 358."""
    names = [each.name for each in INTERVENTIONS]
    rows = [TABLE.iloc[0]] + [TABLE.iloc[1].replace("zero head", name) for name in names]
    svg = interventions(pd.DataFrame(rows), "trajectory_coherence", "x", "What to see.").svg
    assert float(svg.partition(' width="')[2].partition('"')[0]) <= 460
