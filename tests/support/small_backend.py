"""A NumPy backend of a 6-5-3 network on forty samples, in float64."""

import numpy as np

from hyperflux import RunConfig
from hyperflux.backends.numpy import NumpyBackend
from hyperflux.data import Dataset


def make_data(count=40):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(count, 6)).astype(np.float32)
    labels = rng.integers(3, size=count)
    return Dataset(inputs, labels, inputs[:10], labels[:10], 3)


def make_backend(**settings):
    config = RunConfig.from_dict({"model": "mlp:6-5-3", "dtype": "float64", **settings})
    return NumpyBackend(config, make_data())


def batches(count=12, size=4, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.choice(40, size, replace=False) for _ in range(count)]
