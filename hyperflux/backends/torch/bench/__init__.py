"""Cost of pruning on this machine: time and memory of a training step, and time of the pruning update alone."""
