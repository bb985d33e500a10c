"""The oracle: MLPs in NumPy, float64 or float32; every equation of Hyperflux is a call into `hyperflux.spec`."""

from hyperflux.backends.numpy.backend import NumpyBackend

__all__ = ["NumpyBackend"]
