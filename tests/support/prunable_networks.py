"""Small random networks of every family that compaction knows, with random masks, in float64 and evaluation mode."""

from itertools import pairwise

import torch
from hypothesis import strategies as st
from torch import nn

ACTIVATIONS = (nn.ReLU, nn.GELU, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.LeakyReLU)


class Residual(nn.Module):
    """x + branch(x), or with the operands the other way round."""

    def __init__(self, branch, shortcut, first):
        super().__init__()
        self.branch, self.shortcut, self.first = branch, shortcut, first

    def forward(self, x):
        if self.first:
            return self.branch(x) + self.shortcut(x)
        return self.shortcut(x) + self.branch(x)


class Transformer(nn.Module):
    """A block of attention and a perceptron over tokens, before a pooled or a picked token is classified."""

    def __init__(self, features, heads, width, hidden, tokens, picked):
        super().__init__()
        self.embed, self.heads, self.width, self.picked = nn.Linear(features, heads * width), heads, width, picked
        self.places = nn.Parameter(torch.randn(1, tokens, heads * width))
        self.norm1, self.norm2 = nn.LayerNorm(heads * width), nn.LayerNorm(heads * width)
        self.qkv, self.proj = nn.Linear(heads * width, 3 * heads * width), nn.Linear(heads * width, heads * width)
        self.fc1, self.fc2 = nn.Linear(heads * width, hidden), nn.Linear(hidden, heads * width)
        self.head = nn.Linear(heads * width, 3)

    def forward(self, x):
        x = self.embed(x) + self.places
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        x = x + self.proj(attended.transpose(1, 2).reshape(batch, tokens, width))
        x = x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))
        return self.head(x[:, 0] if self.picked else x.mean(1))


@st.composite
def perceptrons(draw):
    sizes = draw(st.lists(st.integers(1, 9), min_size=2, max_size=5))
    layers = []
    for inputs, outputs in pairwise(sizes):
        layers.append(nn.Linear(inputs, outputs, bias=draw(st.booleans())))
        if draw(st.booleans()):
            layers.append(nn.BatchNorm1d(outputs))
        layers.append(draw(st.sampled_from(ACTIVATIONS))())
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 3)), (sizes[0],)


@st.composite
def convolutions(draw, inputs=None, outputs=None, groups=False):
    """A convolution with all that it may have, a batch norm or none, an activation or none."""
    inputs, outputs = inputs or draw(st.integers(1, 6)), outputs or draw(st.integers(1, 6))
    kernel = draw(st.sampled_from((1, 2, 3)))
    layers = [
        nn.Conv2d(
            inputs, outputs, kernel, stride=draw(st.sampled_from((1, 1, 2))), padding=draw(st.integers(0, 2)),
            dilation=draw(st.sampled_from((1, 1, 2))), bias=draw(st.booleans()),
            groups=draw(st.sampled_from([g for g in range(1, 7) if inputs % g == outputs % g == 0])) if groups else 1,
            padding_mode=draw(st.sampled_from(("zeros", "zeros", "zeros", "replicate"))),
        )
    ]  # fmt: skip
    if draw(st.booleans()):
        layers.append(nn.BatchNorm2d(outputs, affine=draw(st.booleans())))
    if draw(st.booleans()):
        layers.append(draw(st.sampled_from(ACTIVATIONS))())
    return layers, outputs


@st.composite
def images(draw, groups=False):
    """Convolutions and pools one after the other, then a linear layer on flat or on pooled channels."""
    channels = first = draw(st.sampled_from((1, 2, 4, 6)))
    layers = []
    for _ in range(draw(st.integers(1, 3))):
        more, channels = draw(convolutions(channels, draw(st.sampled_from((2, 4, 6))), groups))
        layers += more
        if draw(st.integers(0, 3)) == 0:
            layers.append(draw(st.sampled_from((nn.MaxPool2d, nn.AvgPool2d)))(3, 1, padding=1))
    layers += [nn.AdaptiveAvgPool2d(draw(st.sampled_from((1, 2)))), nn.Flatten()]
    layers.append(nn.LazyLinear(3))
    return nn.Sequential(*layers), (first, 33, 33)


@st.composite
def residuals(draw):
    """A stem, and blocks whose branches have inner channels; a shortcut is the identity or a convolution."""
    first, channels = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    layers = [nn.Conv2d(first, channels, 3, padding=1, bias=draw(st.booleans())), nn.BatchNorm2d(channels), nn.ReLU()]
    for _ in range(draw(st.integers(1, 3))):
        inner, outputs = draw(st.integers(1, 5)), draw(st.sampled_from((channels, draw(st.integers(1, 5)))))
        branch = nn.Sequential(
            nn.Conv2d(channels, inner, 3, padding=1, bias=draw(st.booleans())), nn.BatchNorm2d(inner), nn.ReLU(),
            nn.Conv2d(inner, outputs, 3, padding=1, bias=draw(st.booleans())), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        same = outputs == channels and draw(st.booleans())
        layers.append(Residual(branch, nn.Identity() if same else nn.Conv2d(channels, outputs, 1), draw(st.booleans())))
        if draw(st.booleans()):
            layers.append(nn.ReLU())
        channels = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3)), (first, 6, 6)


@st.composite
def transformers(draw):
    features, tokens = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    sizes = (draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 6)))
    return Transformer(features, *sizes, tokens, draw(st.booleans())), (tokens, features)


FAMILIES = {
    "perceptron": perceptrons(),
    "convolution": images(),
    "grouped": images(groups=True),
    "residual": residuals(),
    "transformer": transformers(),
}
MASKS = ("whole", "random", "rows", "columns", "one weight", "dead")


@st.composite
def networks(draw, family):
    """(network, inputs): weights, biases and statistics drawn, some extreme; every layer masked in its own way."""
    model, shape = draw(FAMILIES[family])
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    inputs = torch.randn(4, *shape, generator=generator, dtype=torch.float64)
    model = model.double().eval()
    model(inputs)  # gives lazy layers their shapes
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            _statistics(draw, module, generator)
        elif isinstance(module, nn.Linear | nn.Conv2d):
            weight = torch.randn(module.weight.shape, generator=generator, dtype=torch.float64)
            module.weight.data = weight * mask(draw(st.sampled_from(MASKS)), weight, generator)
            if module.bias is not None:
                bias = torch.randn(module.bias.shape, generator=generator, dtype=torch.float64)
                module.bias.data = bias * draw(st.sampled_from((0.0, 1.0)))
    return model, inputs


def _statistics(draw, module, generator):
    def numbers():
        return torch.randn(module.num_features, generator=generator, dtype=torch.float64)

    module.running_mean = numbers() * draw(st.sampled_from((0.0, 1.0, 1e3)))
    module.running_var = numbers().abs() * draw(st.sampled_from((1e-8, 1.0, 1e6)))
    if module.affine:
        scale = draw(st.sampled_from((0.0, 1e-3, 1.0)))
        module.weight.data, module.bias.data = numbers() * scale, numbers() * draw(st.sampled_from((0.0, 1.0, 10.0)))


def mask(kind, weight, generator):
    """Which weights survive."""

    def drawn(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64) < 0.5

    ones = torch.ones_like(weight)
    single = torch.zeros(weight.numel(), dtype=torch.float64)
    single[int(torch.randint(weight.numel(), (1,), generator=generator))] = 1.0
    spread = [1] * (weight.ndim - 2)
    return {
        "whole": ones,
        "random": ones * (torch.rand(weight.shape, generator=generator, dtype=torch.float64) < 0.3),
        "rows": ones * drawn(weight.shape[0]).view(-1, 1, *spread),
        "columns": ones * drawn(weight.shape[1]).view(1, -1, *spread),
        "one weight": single.view(weight.shape),
        "dead": 0 * ones,
    }[kind]
