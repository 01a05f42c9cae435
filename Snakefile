"""A grid of runs as jobs, one `metanb train` and one record per job: on this machine, or on a cluster through a plugin.

    snakemake --cores 2 --keep-going --config grid=smoke
    snakemake --executor slurm --jobs 50 --keep-going --config grid=paper only=base device=cuda

What is recorded, in the store or in `results/`, needs no job. Snakemake makes and deletes two texts per job and nothing
else: <store>/<id>.out, what the run printed, and <store>/<id>.log, what it said of its progress and errors. Records and
checkpoints are metanb's own: a job that was killed goes on from its last epoch when it is asked for again.
"""

import os
import re
import shlex
import sys
from contextlib import suppress

from filelock import Timeout

from metanb.grids import definitions, hours, progress, runner
from metanb.runs import store

OPTIONS = {
    "grid": "smoke",  # or quick, paper
    "only": None,  # a group of it, or a pattern of ids, as for `metanb grid --only`
    "until": None,  # the iteration at which each run stops; None: it is run whole
    "device": "cpu",  # or cuda: each job asks for a GPU
    "store": str(store.store_folder()),  # for records, checkpoints and logs: where every job can write
}
if unknown := set(config) - set(OPTIONS):
    raise WorkflowError(f"unknown config {', '.join(sorted(unknown))}: choose from {', '.join(OPTIONS)}")
GRID, ONLY, UNTIL, DEVICE, STORE = (OPTIONS | config).values()
if GRID not in definitions.GRIDS:
    raise WorkflowError(f"grid={GRID} is not one of {', '.join(definitions.GRIDS)}")
if UNTIL is not None and not (isinstance(UNTIL, int) and UNTIL > 0):
    raise WorkflowError(f"until={UNTIL} is not a whole number of iterations above 0")
if not re.fullmatch(r"cpu|cuda(:\d+)?", str(DEVICE)):
    raise WorkflowError(f"device={DEVICE} is not one of cpu, cuda, cuda:0 and so on")
STORE = os.environ["METANB_STORE"] = os.path.abspath(os.path.expanduser(STORE))
PLANNED = definitions.select_runs(definitions.GRIDS[GRID](), *([ONLY] if ONLY else []))
RUNS = {one.settings.id: one.settings for one in PLANNED}
RECORDED = progress.find_recorded(PLANNED)
TIMINGS = hours.Timings(hours.recorded_anywhere())
KIND = TIMINGS.kind_here(DEVICE)
MISSING = [settings.id for settings in progress.find_missing(PLANNED, RECORDED, UNTIL)]
if workflow.is_main_process:  # the jobs read this file, too
    print(f"{GRID}: {len(PLANNED) - len(MISSING)} runs are recorded, {len(MISSING)} are missing", file=sys.stderr)
    for run in MISSING:  # its record may have been deleted since; a job in progress has the lock, and keeps its output
        if (left := store.store_folder() / f"{run}.out").exists():
            with suppress(Timeout), store.lock_run(run, patience=0):
                left.unlink(missing_ok=True)


rule all:
    input:
        expand("{store}/{run}.out", store=STORE, run=MISSING),


rule train:
    output:
        STORE + "/{run}.out",
    log:
        STORE + "/{run}.log",
    params:
        command=lambda job: shlex.join(runner.command(RUNS[job.run], DEVICE, UNTIL)),
    threads: 1
    resources:
        gpu=int(DEVICE.startswith("cuda")),
        # The peaks seen: 1.7 GB with Omniglot, 1.9 GB with a few tasks of mini-ImageNet.
        mem_mb=lambda job: 8000 if RUNS[job.run].dataset == "mini-imagenet" else 4000,
        # Minutes: twice what is expected on this kind of device, and ten to start with; a day where nothing like it was
        # timed. A job that needs longer goes on when it is retried.
        runtime=lambda job: TIMINGS.limit(RUNS[job.run], RECORDED, KIND, UNTIL),
    shell:
        "{params.command} > {output:q} 2> {log:q}"
