"""The backends that train: the NumPy oracle and torch, behind one interface."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hyperflux.backends.base import Backend
from hyperflux.config import RunConfig
from hyperflux.errors import InputError
from hyperflux.session.processes import SINGLE_PROCESS, ProcessGroup, launched


def build_backend(config: RunConfig, processes: ProcessGroup = SINGLE_PROCESS) -> Backend:
    """The backend that `config` names, with its model and data. Only that backend's libraries are imported.

    Args:
        config: The settings.
        processes: The process group; each rank trains on its part of every batch.

    Raises:
        InputError: Model, data and backend do not fit together.
    """
    if config.backend == "numpy":
        if processes.size > 1:
            raise InputError("backend numpy: trains in one process; start it without torchrun or use --backend torch")
        from hyperflux.backends.numpy import NumpyBackend
        from hyperflux.data import load_dataset

        return NumpyBackend(config, load_dataset(config.dataset, config.data_dir, config.train_samples))
    from hyperflux.backends.torch.backend import TorchBackend

    return TorchBackend(config, processes)


@contextmanager
def launched_process_group() -> Iterator[ProcessGroup]:
    """The process group of a launcher such as torchrun; without a launcher, this process alone."""
    if not launched():
        yield SINGLE_PROCESS
        return
    from hyperflux.backends.torch.distributed import torch_process_group

    with torch_process_group() as processes:
        yield processes
