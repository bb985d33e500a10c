"""Find several sizes of input that a network takes, so that what depends on the size shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, islice

import torch
from torch import nn

from hyperflux.backends.torch.compact.execution import CALL_ERRORS, Inputs

Shapes = tuple[tuple[int, ...], ...]
"""The shapes of all inputs."""
Sizes = tuple[Shapes, ...]
"""The inputs' shapes in every execution."""
Takes = Callable[[Shapes], bool]
Change = Callable[[int], int]
Axis = tuple[int, int]
"""An input's number and one of its dimensions."""
Group = tuple[Axis, ...]


def _add(step: int) -> Change:
    return lambda size: size + step


def _next_multiple(size: int) -> int:
    """Return a multiple of most strides, more than 32 larger, so that sizes behind strides up to 32 change."""
    return (size // 32 + 2) * 32


def _double(size: int) -> int:
    return 2 * size


def _halve(size: int) -> int:
    return size // 2


ANY_SIZE: Sequence[Change] = (_next_multiple, _add(32), _double, _add(1), _add(-1), _halve)
"""Sizes to try, in this order, to learn whether a dimension may vary at all."""
TOGETHER: Sequence[Change] = (_next_multiple, _add(32), _double, _add(-1), _halve)
"""The same for dimensions that may vary only together."""
REMAINDERS: Sequence[Sequence[Change]] = ((_add(1), _add(2), _add(16)), (_add(2), _add(3), _add(16)))
"""Sizes to try for executions of other remainders; dimensions next to each other take turns."""
SMALLER: Sequence[Change] = (_add(-1), _add(-2), _halve)
MOST_PAIRS = 30
"""Pairs of dimensions that are tried together, at most."""


def find_sizes(model: nn.Module, inputs: Inputs) -> Sizes:
    """Find shapes of inputs that a network takes, to tell dynamic dimensions from fixed ones.

    Each dimension of each input is tried alone, then together with others: networks take squares only, or several
    inputs of one length. What a call does at its borders depends on the remainder of a size by the stride, on odd and
    even, and on small and large, so the sizes differ in all of these as far as the network takes them.

    Args:
        model: The module, on the CPU and in evaluation mode. Its own forward is called.
        inputs: The example.

    Returns:
        The shapes of each execution: first the example's, with a batch of 2 where possible; then larger along every
        dimension in which the network takes any size; then up to two of other remainders; then one smaller, of one more
        sample.
    """

    def takes(shapes: Shapes) -> bool:
        try:
            with torch.no_grad():
                model(*resize(inputs, shapes))
        except CALL_ERRORS:
            return False
        return True

    own = tuple(tuple(x.shape) for x in inputs)
    axes = [(number, dim) for number, shape in enumerate(own) for dim in range(len(shape))]
    samples = tuple(axis for axis in axes if axis[1] == 0)
    first = _changed(own, samples, lambda _: 2)
    first = first if takes(first) else own
    batch = _changed(first, samples, _add(1))
    if takes(batch):
        axes = [axis for axis in axes if axis[1] > 0]
    else:
        batch = first
    larger, groups = _vary(takes, first, [(axis,) for axis in axes], lambda _: ANY_SIZE)
    left = [axis for axis in axes if (axis,) not in groups]
    larger, joint = _vary(takes, larger, _together(left), lambda _: TOGETHER)
    groups += joint
    others = [
        _vary(takes, first, groups, lambda dim: REMAINDERS[dim % 2])[0],
        _vary(takes, first, groups, lambda dim: REMAINDERS[(dim + 1) % 2])[0],
        _vary(takes, batch, groups, lambda _: SMALLER)[0],
    ]
    return tuple(dict.fromkeys([first, larger, *others]))


def _together(axes: list[Axis]) -> list[Group]:
    """Return the groups of dimensions to try together: one dimension of all inputs, two or three of one or of all."""
    dims = sorted({dim for _, dim in axes})
    sets = [chosen for count in (1, 2, 3) for chosen in combinations(dims, count)]
    of_all = [tuple(axis for axis in axes if axis[1] in chosen) for chosen in sets]
    groups = [*of_all, *islice(combinations(axes, 2), MOST_PAIRS)]
    return [group for group in dict.fromkeys(groups) if len(group) > 1]


def _vary(
    takes: Takes, shapes: Shapes, groups: Sequence[Group], changes: Callable[[int], Sequence[Change]]
) -> tuple[Shapes, list[Group]]:
    """Change each group of dimensions, one after the other, by the first change that the network takes.

    Returns the shapes, and the groups that could be changed. A dimension is changed once.
    """
    varied: list[Group] = []
    for group in groups:
        if any(set(group) & set(others) for others in varied):
            continue
        for change in changes(group[0][1]):
            candidate = _changed(shapes, group, change)
            if candidate != shapes and all(min(shape, default=1) > 0 for shape in candidate) and takes(candidate):
                shapes = candidate
                varied.append(group)
                break
    return shapes, varied


def _changed(shapes: Shapes, group: Group, change: Change) -> Shapes:
    return tuple(
        tuple(change(size) if (number, dim) in group else size for dim, size in enumerate(shape))
        for number, shape in enumerate(shapes)
    )


def resize(inputs: Inputs, shapes: Shapes) -> Inputs:
    """Return the inputs in other shapes, on the CPU: cut, or filled up by repeating slices from the first."""
    result = []
    for x, shape in zip(inputs, shapes, strict=True):
        x = x.cpu()
        for dim, size in enumerate(shape):
            x = x.index_select(dim, torch.arange(size) % x.shape[dim])
        result.append(x)
    return tuple(result)
