"""What the page on speed says of given timings."""

import benchmark_page
import pandas as pd


def test_best_peer_is_the_fastest_whose_gradient_is_right():
    rows = [
        ("metanb", "U1", 10.0, 1e-14),
        ("slow", "U1", 40.0, 0.0),
        ("right", "U1", 25.0, 1e-13),
        ("wrong", "U1", 5.0, 1e-3),
        ("metanb", "U4", 8.0, 0.0),
        ("slow", "U4", 12.0, 0.0),
    ]
    timings = pd.DataFrame(rows, columns=["candidate", "unit", "ms", "error64"])
    timings = pd.concat([timings.assign(order="second"), timings.assign(order="first", ms=1.0)])
    assert benchmark_page.speedup_over_best_peer(timings, "second") == "2.50 (U1), 1.50 (U4)"
