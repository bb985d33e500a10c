"""The oracle: MLPs in plain NumPy, float64 or float32, every Hyperflux line a call into `hyperflux.spec`."""

from hyperflux.backends.numpy.backend import NumpyBackend

__all__ = ["NumpyBackend"]
