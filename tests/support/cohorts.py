"""Runs side by side, at their beginning, for tests of what trains them."""

import torch

from metanb.maml.engine import Engine
from metanb.runs import cohorts, training
from metanb.runs.checkpoint import State

PLAIN = Engine()


def new_cohort(runs, engine=PLAIN, device="cpu", dtype=torch.float32):
    """A cohort of untrained runs, as `training.train_together` makes it; float64 if so asked."""
    device = torch.device(device)
    sets = [training.load_split(settings, "train") for settings in runs]
    states = []
    for settings, train in zip(runs, sets, strict=True):
        net = training.new_network(settings, train).to(dtype)
        states.append(
            State(
                settings, net, torch.optim.Adam(net.parameters(), lr=settings.outer_lr), {}, epoch=0
            )
        )
    pool = cohorts.TrainingImages(sets, device, engine.resident)
    cohort = cohorts.Cohort(states, sets, pool, device, engine)
    cohort.net.to(dtype)
    return cohort
