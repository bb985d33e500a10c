"""Processes that decode images for a run: what stops the run lets them finish its step, and their end is noticed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch.utils.data import DataLoader

from hyperflux.errors import DataFileError, LostWorkerError

_LOST = ("exited unexpectedly", "killed by signal")
"""What torch's error says where a worker has ended."""
_STOPPING = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)}
_set_mask, _wait = (getattr(signal, name, None) for name in ("pthread_sigmask", "sigwaitinfo"))
"""Functions that Windows lacks, and macOS the second."""


def loaded(loader: DataLoader[Any]) -> Iterator[Any]:
    """The batches of a loader, whose workers begin with `leave_stopping_to_the_run`.

    Raises:
        DataFileError: An image can't be read.
        LostWorkerError: A worker has ended by itself, and the batch that it was to load is lost.
    """
    try:
        yield from _begun(loader)
    except DataFileError as error:  # a worker's error contains its traceback; the reason is at its end
        raise DataFileError(str(error).rpartition(f"{DataFileError.__name__}: ")[2]) from error
    except RuntimeError as error:
        if not any(words in str(error) for words in _LOST):
            raise
        raise LostWorkerError(
            f"a process that decodes images has ended ({error}); if memory is short, set fewer workers in config.toml"
        ) from error


def _begun(loader: DataLoader[Any]) -> Iterator[Any]:
    """An iterator that notices a worker's end where it waits for a batch; torch's own way is to raise anywhere."""
    number = getattr(signal, "SIGCHLD", None)
    handler = None if number is None else signal.getsignal(number)
    with _held_signals():
        batches = iter(loader)
    if number is not None and handler is not None:
        with suppress(ValueError):  # not in the main thread, where torch sets no handler either
            signal.signal(number, handler)
    return batches


@contextmanager
def _held_signals() -> Iterator[None]:
    """Keep signals that stop a run waiting within this context, and in processes that begin in it."""
    if _set_mask is None:
        yield
        return
    before = _set_mask(getattr(signal, "SIG_BLOCK"), _STOPPING)  # noqa: B009
    try:
        yield
    finally:
        _set_mask(getattr(signal, "SIG_SETMASK"), before)  # noqa: B009


def leave_stopping_to_the_run(worker: int) -> None:
    """Make a worker deaf to what a terminal, a scheduler or a service manager sends to all processes of a run.

    SIGTERM still ends it where it comes from the run itself, whose last means that is; where a system does not say who
    sent it, on any.
    """
    for number in _STOPPING - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    if _wait is not None:
        threading.Thread(target=_end_with_the_run, daemon=True).start()
    elif _set_mask is not None:
        _set_mask(getattr(signal, "SIG_UNBLOCK"), _STOPPING)  # noqa: B009


def _end_with_the_run() -> None:
    """Wait for a SIGTERM of the parent process, and end."""
    assert _wait is not None
    while _wait({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
