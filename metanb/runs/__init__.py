"""From settings to a record on disk: training, checkpoints, weights, provenance."""
