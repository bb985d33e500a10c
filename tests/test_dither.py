"""Rounding to bfloat16 is right on average, exactly, and its keys are as good as random."""

import struct

import torch
from hypothesis import example, given
from hypothesis import strategies as st

from hyperflux.backends.torch.kernels import blocks
from hyperflux.backends.torch.kernels.dither import Dither, keys

CPU = torch.device("cpu")
ALL = 1 << 16
"""How many dithers there are."""


def rounded(values, key=0):
    """Float32 values, dithered."""
    out = torch.empty_like(values, dtype=torch.bfloat16)
    Dither(len(values), CPU).round(values.clone(), key, out)
    return out


def from_bits(bits):
    """The float32 of these 32 bits."""
    return struct.unpack("<f", struct.pack("<I", bits))[0]


largest_bfloat16 = torch.finfo(torch.bfloat16).max


@given(st.floats(-largest_bfloat16, largest_bfloat16, width=32), st.integers(0, ALL - 1))
@example(from_bits(0x3F7FFFFF), 0)  # carries into the next exponent
@example(from_bits(0x00000001), 1)
@example(from_bits(0x007FFFFF), 1)  # the largest subnormal number
@example(-0.0, 5)
def test_the_mean_over_the_places_of_any_step_is_the_value_itself(value, key):
    """Whatever the key: equality, for sums of two neighbours in bfloat16 are exact in float64."""
    out = rounded(torch.full((ALL,), value), key).double()
    scale = 2.0**100 if abs(value) < 1 else 1.0  # away from float64's own smallest numbers
    assert (out * scale).mean().item() == value * scale
    assert len(out.unique()) <= 2
    assert bool((out.signbit() == torch.tensor(value).signbit()).all())


def test_the_mean_over_all_keys_is_the_value_at_a_place():
    """Also equal: XOR with the place's entry of the table takes all keys to all dithers.

    The value has 8 bits more than bfloat16, so that the upper 8 of a key decide, and 256 keys are all.
    """
    dither, value = Dither(1, CPU), torch.tensor([from_bits(0x30895A00)])
    out = torch.empty(256, dtype=torch.bfloat16)
    for number, place in enumerate(out.split(1)):
        dither.round(value.clone(), number << 8, place)
    assert out.double().mean() == value.double()


def test_what_bfloat16_can_hold_stays():
    """All of its numbers, both zeros and infinities among them; only the bits of NaN are left out."""
    every = torch.arange(ALL, dtype=torch.int32).sub(1 << 15).to(torch.int16).view(torch.bfloat16)
    every = every[~every.isnan()]
    for key in (0, 1, ALL - 1):
        assert torch.equal(rounded(every.float(), key).view(torch.int16), every.view(torch.int16))


def test_keys_are_even_over_steps_and_tell_nothing_of_each_other():
    """Means of 20,000 keys, of products with the next step's, the other moment's, the next block's: to 5 deviations."""
    steps = range(20_000)
    first, second = torch.tensor([keys(step, 0) for step in steps]).double().T / ALL - 0.5
    other = torch.tensor([keys(step, blocks.CPU_BLOCK)[0] for step in steps]).double() / ALL - 0.5
    even = (1 / 12 / len(steps)) ** 0.5
    for key in (first, second, other):
        assert abs(key.mean()) < 5 * even
        assert abs(key.square().mean() - 1 / 12) < 5 * even
    for one, another in ((first, second), (first, other), (first[1:], first[:-1])):
        assert abs((one * another).mean()) < 5 / 12 / len(one) ** 0.5
