"""What trains: the NumPy oracle and the torch backend, behind one contract."""

from __future__ import annotations

from hyperflux.backends.base import Backend
from hyperflux.config import RunConfig


def build_backend(config: RunConfig) -> Backend:
    """The backend that `config` names, with its model and data; only that one's libraries are imported.

    Raises InputError where model and data do not fit together, or not to the backend.
    """
    if config.backend == "numpy":
        from hyperflux.backends.numpy import NumpyBackend
        from hyperflux.data import load_dataset

        return NumpyBackend(config, load_dataset(config.dataset, config.data_dir, config.train_samples))
    from hyperflux.backends.torch.backend import TorchBackend

    return TorchBackend(config)
