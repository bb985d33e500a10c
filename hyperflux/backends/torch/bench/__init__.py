"""What pruning costs on this machine: a training step's time and memory, and the update alone."""
