"""Checkpoints of a run under way: the file, the folder that keeps the last two, when to write one, when to stop."""
