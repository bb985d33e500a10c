"""The two ways a command ends badly: wrong input (exit code 2) and a run that failed (exit code 1)."""


class InputError(ValueError):
    """Wrong use or bad input. The message is one line: what is wrong, where, and the way out."""


class RunError(RuntimeError):
    """A run that began properly and could not be finished. The message is one line."""
