"""A network compacted at one size of input is the same function at every other size."""

import torch
from hypothesis import given, settings
from same_function import same
from sized_networks import sized_networks

from hyperflux.deploy.compact import compact

SIDES = [
    (12, 12), (13, 13), (14, 14), (15, 15), (16, 16), (17, 17), (18, 19), (19, 22), (20, 21), (21, 20), (22, 27),
    (23, 24), (24, 9), (25, 40), (27, 29), (31, 33), (33, 31), (64, 11), (65, 7), (10, 70), (8, 8), (7, 5), (3, 6),
    (1, 2),
]  # fmt: skip
"""All remainders by 2, 3, 4 and 8 in both dimensions, small and large."""


def outputs(model, x):
    """The network's output, or None where it does not take the input."""
    try:
        with torch.no_grad():
            return model(x)
    except (RuntimeError, ValueError):
        return None


@given(sized_networks())
@settings(max_examples=80, deadline=None)
def test_compacted_at_one_size_it_is_the_same_function_at_twenty_others(drawn):
    model, side = drawn
    example = torch.randn(1, 2, *side, dtype=torch.float64)
    if outputs(model, example) is None:
        return
    small = compact(model, example)
    taken = 0
    for height, width in SIDES:
        fresh = torch.randn(2, 2, height, width, dtype=torch.float64)
        wanted = outputs(model, fresh)
        if wanted is not None and wanted.isfinite().all():
            same(wanted, small(fresh))
            taken += 1
    assert taken >= 1
