"""The benchmark: each candidate is checked by the errors that it reports, on a small unit.

Evidence: the float64 reference shares no code with the engine; right candidates must agree with it
to float32 rounding, and the known-wrong one (native batch norm under vmap) must not.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from metanb.bench import benchmark, peers, report, throughput, units
from metanb.bench import timing as bench_timing
from metanb.cli import cli
from metanb.settings import preset

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    strided = preset("paper", "omniglot", 3, filters=8, meta_batch=4, queries=2)
    strided = replace(strided, test_tasks=4)
    pooled = preset("paper", "mini-imagenet", 3, filters=4, meta_batch=2, queries=2, inner_steps=2)
    monkeypatch.setattr(units, "UNITS", {"U1": ("small", strided), "U4": ("small", pooled)})
    monkeypatch.setattr(units, "HESSIAN_TASKS", 3)


@pytest.mark.parametrize("unit", ["U1", "U4"])
@pytest.mark.parametrize("first_order", [False, True])
def test_errors_tell_right_from_wrong(unit, first_order):
    timings = bench_timing.time_gradients(unit, first_order, 1, CPU, rate=1e11)
    by_name = {timing.candidate: timing for timing in timings}
    wrong = "torch.func vmap, F.batch_norm"
    always = {units.OURS, units.PLAIN, units.BASE, "bare autograd loop, F.batch_norm", wrong}
    assert always <= by_name.keys()
    for name, timing in by_name.items():
        assert (timing.error64 > units.WRONG) == (name == wrong and not first_order), timing
        assert timing.error < 1e-4 or name == wrong
        assert timing.ms > 0 and timing.ms_low <= timing.ms <= timing.ms_high
    assert by_name[units.BASE].ratio == 1.0


def test_result_is_plain_and_readable(tmp_path):
    result = benchmark.run_benchmark(["U1", "H"], 1, CPU)
    report.write_result(result, tmp_path / "bench.json")
    table = report.timings_table(json.loads((tmp_path / "bench.json").read_text()))
    assert set(table.unit) == {"U1", "H"}
    assert result["measuring"] > 0
    assert result["best_gflops"] > 1 and result["environment"]["device"]
    errors = {(row["unit"], row["candidate"]): row["error"] for row in result["timings"]}
    assert errors["H", units.OURS] < 2e-3 and errors["H", units.NO_BOUND] < 0.1


def test_a_killed_benchmark_leaves_what_it_timed(tmp_path, monkeypatch):
    """The units that ended are in a file of their own; the result of before stays."""
    output, part = tmp_path / "bench.json", tmp_path / "bench.part.json"
    output.write_text("the result of before")

    def fail(*_):
        raise KeyboardInterrupt

    arguments = ["bench", "--repeats", "1", "--unit", "H", "--unit", "U1", "-o", str(output)]
    monkeypatch.setattr(bench_timing, "best_rate", lambda device: 1e11)  # it takes seconds
    monkeypatch.setattr(bench_timing, "time_gradients", fail)
    CliRunner().invoke(cli, arguments)
    assert {row["unit"] for row in json.loads(part.read_text())["timings"]} == {"H"}
    assert output.read_text() == "the result of before"

    monkeypatch.setattr(bench_timing, "time_gradients", lambda *_: [])
    monkeypatch.setattr(benchmark, "_share_of_measuring", lambda *_: 0.1)
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0 and f"result: {output}" in result.output
    assert json.loads(output.read_text())["timings"] and not part.exists()


def test_rates_of_whole_iterations_and_their_shares(monkeypatch):
    """Rates follow from times, and twice the runs are twice the operations."""
    settings = preset("paper", "omniglot", 3, filters=8, meta_batch=4, test_tasks=4, test_queries=2)
    monkeypatch.setattr(units, "CELLS", {"R1": ("small", settings)})
    monkeypatch.setattr(throughput, "_matrix_rate", lambda *_: 1e9)
    monkeypatch.setattr(throughput, "_copy_rate", lambda *_: 1e9)
    rates = throughput.measure_rates("R1", CPU, 2, (1, 2))
    assert [rate.runs for rate in rates] == [1, 2]
    for rate in rates:
        assert rate.ms_low <= rate.ms <= rate.ms_high
        assert rate.measuring > 0 and np.isnan(rate.memory)
        assert rate.rate == pytest.approx(rate.runs * 1e3 / rate.ms)
    for share in ("matrix_share", "copy_share"):
        work_of_one, work_of_two = (getattr(rate, share) * rate.ms for rate in rates)
        assert work_of_two == pytest.approx(2 * work_of_one)
    operations, traffic = throughput._count_work(settings, CPU)
    # By hand: the products of one forward pass, which a second-order gradient takes several times.
    outputs = (14 * 14, 7 * 7, 4 * 4, 2 * 2)
    forward = 2 * 4 * 3 * 8 * (10 * outputs[0] + 72 * sum(outputs[1:]) + 3)
    assert 6 * forward < operations < 20 * forward
    assert traffic > 4 * 4 * 3 * 8 * sum(outputs)
    monkeypatch.setattr(throughput, "TOGETHER", (1,))
    monkeypatch.setattr(bench_timing, "best_rate", lambda device: 1e11)
    result = benchmark.run_benchmark(["R1"], 1, CPU)
    table = report.rates_table(json.loads(json.dumps(result)))
    assert list(table.runs) == [1] and list(table["times higher"]) == [""]


def test_traffic_is_what_operations_read_and_write():
    a, b = torch.ones(100), torch.ones(100)
    with throughput._TrafficCounter() as traffic:
        (a + b).view(10, 10)  # a view moves nothing
    assert traffic.bytes == 3 * 400


def test_exact_norm_is_the_dense_one():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    x, y = torch.rand(5, 4), torch.tensor([0, 1, 2, 0, 1])
    dense = torch.func.hessian(
        lambda w: torch.nn.functional.cross_entropy(x @ w[:12].view(3, 4).T + w[12:], y)
    )
    flat = torch.cat([p.detach().flatten() for p in net.parameters()])
    assert peers.exact_norm(net, x, y) == pytest.approx(
        float(torch.linalg.eigvalsh(dense(flat)).abs().max()), rel=1e-5
    )


def test_best_rate_counts_operations():
    rate = bench_timing.best_rate(CPU)
    assert 1e9 < rate < 1e14 and np.isfinite(rate)
