"""Small networks with zeros, and the comparison of outputs that are equal up to rounding."""

import itertools

import torch
from tolerances import ROUNDING, ROUNDING_FLOAT32
from torch import nn

TOLERANCES = {torch.float32: ROUNDING_FLOAT32, torch.float64: ROUNDING}


def assert_same(outputs, expected):
    """Same dtype, same shape, and values to rounding: a share of the largest, or of 1."""
    assert outputs.dtype == expected.dtype
    assert outputs.shape == expected.shape
    scale = max([1.0, *expected.abs().flatten().tolist()])
    assert torch.allclose(outputs, expected, rtol=0, atol=TOLERANCES[expected.dtype] * scale)


def thinned(model, density=0.05, seed=0):
    """The same model, its weights set to zero at random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(torch.rand(parameter.shape, generator=generator) < density)
    return model


def mlp(*sizes, dtype=torch.float32):
    """Linear layers with ReLU between them: `0`, `2`, ..."""
    torch.manual_seed(0)
    layers = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs, dtype=dtype), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
