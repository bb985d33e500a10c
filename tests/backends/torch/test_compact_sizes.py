"""A network compacted at one size of input is the same function at every other size."""

import pytest
import torch
from called import Called
from hypothesis import given, settings
from same_function import same
from sized_networks import sized_networks
from torch import nn
from torch.nn import functional

from hyperflux.backends.torch.compact.sizes import find_sizes
from hyperflux.deploy.compact import compact, compaction

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
@settings(max_examples=20, deadline=None)
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


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def layer(kind, inputs, outputs, *arguments, dead=2):
    """A layer whose first outputs have no weights, and biases that are not 0."""
    made = kind(inputs, outputs, *arguments)
    weight = made.weight.data
    (weight.transpose(0, 1) if isinstance(made, nn.ConvTranspose2d) else weight)[:dead] = 0.0
    made.bias.data = 1.0 + torch.arange(float(outputs))
    return made


def padded(s, x):
    up = s.up(torch.relu(s.down(x)))
    return s.out(torch.cat([x, functional.pad(up, [0, x.shape[3] - up.shape[3], 0, x.shape[2] - up.shape[2]])], 1))


def resized_if_needed(s, x):
    up = s.up(torch.relu(s.down(x)))
    if up.shape[-2:] != x.shape[-2:]:
        up = functional.interpolate(up, size=x.shape[-2:])
    return s.out(torch.cat([x, up], 1))


@pytest.mark.parametrize("forward", [padded, resized_if_needed])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("side", [8, 9])
def test_constants_that_are_padded_or_resized_by_computed_sizes(forward, side, kernel):
    down, up = layer(nn.Conv2d, 1, 4, 2, 2), layer(nn.ConvTranspose2d, 4, 6, 2, 2, dead=4)
    model = Called(forward, down=down, up=up, out=nn.Conv2d(7, 2, kernel, padding=kernel // 2)).double().eval()
    done = compaction(model, drawn(1, 1, side, side))
    assert done.weights_after < done.weights_before
    for height, width in ((8, 8), (9, 9), (12, 7), (17, 17), (2, 3)):
        fresh = drawn(2, 1, height, width)
        same(model(fresh), done.module(fresh))


def tokens(s, x):
    return s.b(torch.relu(s.a(x.unsqueeze(-1))) + s.table[:, : x.shape[1]])


def pair(s, x, y):
    joined = torch.cat([torch.relu(s.a(x.unsqueeze(-1))), s.c(y.unsqueeze(-1))[:, : x.shape[1]]], 1)
    return s.b(joined).mean(1)


@pytest.mark.parametrize("length", [5, 64])
def test_a_table_is_sliced_by_the_length_of_inputs_of_two_dimensions(length):
    """The first rows of the table are equal; with the longest example there is no larger size to try."""
    table = drawn(1, 64, 6)
    table[:, :40, 1] = 0.5
    parts = {"a": layer(nn.Linear, 1, 6), "b": nn.Linear(6, 3)}
    model = Called(tokens, table=nn.Parameter(table), **parts).double().eval()
    small = compact(model, drawn(1, length))
    for other in (1, 4, 5, 33, 63, 64):
        fresh = drawn(3, other)
        same(model(fresh), small(fresh))


def test_two_inputs_have_lengths_of_their_own():
    model = Called(pair, a=layer(nn.Linear, 1, 6), b=nn.Linear(6, 3), c=layer(nn.Linear, 1, 6)).double().eval()
    small = compact(model, (drawn(2, 7), drawn(2, 9)))
    for first, second in ((7, 9), (9, 7), (1, 30), (30, 2)):
        fresh = drawn(3, first), drawn(3, second)
        same(model(*fresh), small(*fresh))


def test_squares_only():
    def forward(s, x):
        return s.b(torch.relu(s.a(x + x.transpose(2, 3)))).mean((2, 3))

    model = Called(forward, a=layer(nn.Conv2d, 2, 6, 3, 1, 1), b=layer(nn.Conv2d, 6, 3, 3, 1, 1)).double().eval()
    small = compact(model, drawn(1, 2, 8, 8))
    for side in (1, 3, 9, 31):
        fresh = drawn(2, 2, side, side)
        same(model(fresh), small(fresh))


def test_sizes_that_the_stride_rounds_to_the_same():
    """Behind a flat linear layer few sizes are taken, but more than one."""
    convolutions = layer(nn.Conv2d, 1, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, padding=1)
    model = nn.Sequential(*convolutions, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4 * 9, 3)).double().eval()
    small = compact(model, drawn(1, 1, 12, 12))
    for height, width in ((12, 12), (13, 12), (15, 14)):
        fresh = drawn(2, 1, height, width)
        same(model(fresh), small(fresh))


SHAPE_READERS = {
    "interpolate": lambda s, x: s.b(functional.interpolate(s.a(x[..., ::2]), size=s.unread(s.before(x)).shape[-2:])),
    "slice": lambda s, x: s.b(s.a(x)[:, :, : s.unread(s.before(x)).size(2)]),
    "view": lambda s, x: s.b(s.a(x)).view(s.unread(s.before(x)).shape[0], -1),
    "channels": lambda s, x: s.b(s.a(x)) * s.unread(s.before(x)).shape[1],
    "elements": lambda s, x: s.b(s.a(x)) / s.unread(s.before(x)).numel(),
    "folded": lambda s, x: s.b(functional.interpolate(s.a(x), size=(y := s.unread(s.before(x))).shape[2:]) + y),
    "twice": lambda s, x: s.b(s.a(x)).view(s.unread(s.before(x)).shape[0], s.unread(s.before(x)).shape[1] - 3, -1),
}


@pytest.mark.parametrize("name", SHAPE_READERS)
def test_a_tensor_that_is_read_only_for_its_shape(name):
    unread = layer(nn.Conv2d, 6, 6, 3, dead=6)
    parts = {"a": layer(nn.Conv2d, 2, 6, 1), "b": nn.Conv2d(6, 3, 1), "before": layer(nn.Conv2d, 2, 6, 1)}
    model = Called(SHAPE_READERS[name], unread=unread, **parts).double().eval()
    done = compaction(model, drawn(1, 2, 8, 8))
    assert done.weights_after < done.weights_before
    for height, width in ((8, 8), (5, 9), (13, 4)):
        fresh = drawn(3, 2, height, width)
        same(model(fresh), done.module(fresh))


def test_a_branch_that_the_sizes_tried_never_took_is_checked_when_the_smaller_network_runs():
    def forward(s, x):
        return s.b(s.a(x)) if x.shape[2] < 500 else s.a(x)

    model = Called(forward, a=layer(nn.Conv2d, 2, 6, 1), b=nn.Conv2d(6, 3, 1)).double().eval()
    small = compact(model, drawn(1, 2, 8, 8))
    fresh = drawn(1, 2, 499, 1)
    same(model(fresh), small(fresh))
    with pytest.raises(AssertionError, match="compacted for inputs whose size goes the other way"):
        small(drawn(1, 2, 500, 1))


def test_the_tried_sizes_differ_in_remainders_in_each_dimension():
    model = nn.Conv2d(2, 3, 3, padding=1)
    sizes = find_sizes(model, (torch.randn(1, 2, 8, 8),))
    assert {shape[1] for (shape,) in sizes} == {2}
    for dim in (2, 3):
        assert {shape[dim] % 2 for (shape,) in sizes} == {0, 1}
        assert {shape[dim] % 3 for (shape,) in sizes} == {0, 1, 2}
        assert min(shape[dim] for (shape,) in sizes) < 8 < 32 < max(shape[dim] for (shape,) in sizes)
