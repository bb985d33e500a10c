"""Every tolerance of the tests, by what it allows for."""

ROUNDING = 1e-12
"""Relative: float64 results that differ only in the order of their sums."""
ROUNDING_FLOAT32 = 1e-4
"""The same for float32, over the few steps of a test."""
CENTRAL_DIFFERENCE = 1e-6
"""Relative to the largest gradient: truncation and cancellation of central differences with a step of 1e-6."""
TRAJECTORY_END = 1e-6
"""Absolute: the density at which a trajectory ends, against its target."""
