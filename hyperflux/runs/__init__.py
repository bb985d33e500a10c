"""A run from its settings to its folder: driver, epochs, files, checkpoints, comparisons."""
