"""Checkpoints of a run: the file, the folder that keeps the last two, their provenance, and the writer."""

DEFAULT_INTERVAL = "10min"
"""How often a run writes a checkpoint by default."""
