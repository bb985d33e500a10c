"""Every tolerance of the tests, by what it allows for."""

ROUNDING = 1e-12
"""Relative: float64 results that differ only in the order of their sums."""
ROUNDING_FLOAT32 = 1e-4
"""The same for float32, over the few steps of a test."""
CENTRAL_DIFFERENCE = 1e-6
"""Relative to the largest gradient: truncation and cancellation of central differences with a step of 1e-6."""
TRAJECTORY_END = 1e-6
"""Absolute: the density at which a trajectory ends, against its target."""
WAVER = 0.02
"""Of the way that t has gone: rounding moments to bfloat16 takes 3 to 6 % off or onto the second moment for hundreds of
steps, so half as much off or onto the steps of t; over a thousand steps they have partly made up for each other.
"""
