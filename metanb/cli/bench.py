"""`metanb bench`: time metanb beside its peers."""

from pathlib import Path
from typing import Any

import click

from metanb.bench import units as bench_units
from metanb.cli.options import Command


@click.command("bench", cls=Command)
@click.option(
    "--unit",
    "units",
    type=click.Choice(bench_units.ALL),
    multiple=True,
    help="only this unit; may be repeated  [default: all; on a CPU all but R1 and R2]",
)
@click.option(
    "--repeats",
    default=7,
    show_default=True,
    type=click.IntRange(min=1),
    help="number of rounds; medians are shown",
)
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda")
@click.option(
    "-o", "output", type=click.Path(dir_okay=False, path_type=Path), help="write the result as JSON"
)
def bench_command(units: tuple[str, ...], repeats: int, device: str, output: Path | None) -> None:
    """Time metanb beside `higher` and other libraries.

    The benchmark times meta-gradients and Hessian norms and shows their errors. Its units are:

    U1: Omniglot 5-way 1-shot. U2: the same with 15 query images per class. U3: Omniglot 20-way
    1-shot, 5 steps. U4: mini-ImageNet 5-way 1-shot, 5 steps. H, HR: Hessian norms of the paper's
    network and of a ResNet-18. R1, R2: whole iterations per second of 20-way MAML and of
    first-order MAML on mini-ImageNet, for several runs side by side, and what each feature of the
    engine contributes.

    The other libraries come with the extra `bench`. With `-o bench.json`, the units that are timed
    so far are in bench.part.json until the benchmark ends. Run nothing else on the machine
    meanwhile, and use one thread on a CPU: OMP_NUM_THREADS=1.
    """
    from metanb.bench import benchmark, report
    from metanb.runs.machine import resolve_device

    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
    torch_device = resolve_device(device)
    on_gpu = torch_device.type == "cuda"
    default = [unit for unit in bench_units.ALL if on_gpu or unit not in bench_units.CELLS]
    # A benchmark takes long. What is timed is kept, and an older result stays until it ends.
    part = output.with_name(f"{output.stem}.part{output.suffix}") if output else None

    def keep(result: dict[str, Any]) -> None:
        if part:
            report.write_result(result, part)

    result = benchmark.run_benchmark(list(units) or default, repeats, torch_device, keep)
    if result["timings"]:
        click.echo(report.timings_table(result).to_string(index=False))
    if result["rates"]:
        click.echo(report.rates_table(result).to_string(index=False))
    click.echo(
        f"best convolution rate: {result['best_gflops']:.0f} GFLOP/s; clock: {result['clock']}"
    )
    if output and part:
        part.replace(output)
        click.echo(f"result: {output}")
