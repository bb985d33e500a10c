"""Whether a smaller network is the same function."""

EXACT = 1e-10
"""Of the largest output, in float64."""


def same(wanted, found):
    wanted, found = wanted.detach(), found.detach()
    scale = float(wanted.abs().max())
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= EXACT * scale
