"""The benchmark: every candidate is checked by the errors it reports, on a unit small enough for a test.

Evidence: the float64 reference shares no code with the engine; right candidates must agree with it to float32 rounding,
and the known-wrong one (native batch norm under vmap) must not.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from metanb import bench, peers
from metanb.settings import preset

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    strided = preset("paper", "omniglot", 3, filters=8, meta_batch=4, queries=2)
    strided = replace(strided, test_tasks=4)
    pooled = preset("paper", "mini-imagenet", 3, filters=4, meta_batch=2, queries=2, inner_steps=2)
    monkeypatch.setattr(bench, "UNITS", {"U1": ("small", strided), "U4": ("small", pooled)})
    monkeypatch.setattr(bench, "HESSIAN_TASKS", 3)


@pytest.mark.parametrize("unit", ["U1", "U4"])
@pytest.mark.parametrize("first_order", [False, True])
def test_errors_tell_right_from_wrong(unit, first_order):
    found = {timing.candidate: timing for timing in bench.gradients(unit, first_order, 1, CPU, rate=1e11)}
    wrong = "torch.func vmap, F.batch_norm"
    assert {bench.OURS, bench.BASE, "bare autograd loop, F.batch_norm", wrong} <= found.keys()
    for name, timing in found.items():
        assert (timing.error64 > bench.WRONG) == (name == wrong and not first_order), timing
        assert timing.error < 1e-4 or name == wrong
        assert timing.ms > 0 and timing.ms_low <= timing.ms <= timing.ms_high
    assert found[bench.BASE].ratio == 1.0


def test_result_is_plain_and_readable(tmp_path):
    result = bench.run(["U1", "H"], 1, CPU)
    bench.write(result, tmp_path / "bench.json")
    table = bench.table(json.loads((tmp_path / "bench.json").read_text()))
    assert set(table.unit) == {"U1", "H"}
    assert result["measuring"] > 0
    assert result["best_gflops"] > 1 and result["environment"]["device"]
    ours = next(row for row in result["timings"] if row["unit"] == "H" and row["candidate"] == bench.OURS)
    assert ours["error"] < 2e-3


def test_exact_norm_is_the_dense_one():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    x, y = torch.rand(5, 4), torch.tensor([0, 1, 2, 0, 1])
    dense = torch.func.hessian(lambda w: torch.nn.functional.cross_entropy(x @ w[:12].view(3, 4).T + w[12:], y))
    flat = torch.cat([p.detach().flatten() for p in net.parameters()])
    assert peers.exact_norm(net, x, y) == pytest.approx(float(torch.linalg.eigvalsh(dense(flat)).abs().max()), rel=1e-5)


def test_best_rate_counts_operations():
    rate = bench.best_rate(CPU)
    assert 1e9 < rate < 1e14 and np.isfinite(rate)
