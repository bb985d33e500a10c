"""How a command ends early: wrong input (exit code 2), a run that failed (1), one that was told to stop (130, 143)."""


class InputError(ValueError):
    """Wrong use or bad input. The message is one line: what is wrong, where, and the way out."""


class RunError(RuntimeError):
    """A run that began properly and could not be finished. The message is one line."""


class WriteError(RunError):
    """The disk refused a file of a run. What was written before is there still."""


class Interrupted(Exception):
    """A run was told to stop by a signal, has written a checkpoint and stopped. The message says how it goes on."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal
