"""Small random networks for images in which much depends on the image's size: skips, padding, strides, resampling."""

import torch
from hypothesis import strategies as st
from prunable_networks import MASKS, mask
from torch import nn
from torch.nn import functional

PADS = ("both sides", "end", "value", "wrong order")


def joined(kind, up, skip):
    """Bring `up` to the skip's height and width, by sizes that are computed, and concatenate."""
    dy, dx = skip.size(2) - up.shape[-2], skip.shape[3] - up.size()[-1]
    if kind == "both sides":
        up = functional.pad(up, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
    elif kind == "end":
        up = functional.pad(up, (0, dx, 0, dy))
    elif kind == "value":
        up = functional.pad(up, (0, dx, dy, 0), "constant", 1.0)
    elif kind == "wrong order":
        up = functional.pad(up, (dx, 0, dy, 0))
    elif kind == "crop":
        height, width = torch.sym_min(skip.shape[2], up.shape[2]), torch.sym_min(skip.shape[3], up.shape[3])
        up, skip = up[:, :, :height, :width], skip[..., :height, :width]
    else:
        up = functional.interpolate(up, size=skip.shape[2:], mode=kind)
    return torch.cat([skip, up] if kind != "end" else [up, skip], 1)


class SamePadding(nn.Module):
    """Pads to a multiple of `stride` by amounts that are computed from the size."""

    def __init__(self, stride, value):
        super().__init__()
        self.stride, self.value = stride, value

    def forward(self, x):
        height, width = x.shape[-2:]
        return functional.pad(x, (0, -width % self.stride, 0, -height % self.stride), value=self.value)


class Table(nn.Module):
    """Adds a table of places, cut to the image's height."""

    def __init__(self, channels, uniform):
        super().__init__()
        self.places = nn.Parameter(torch.randn(1, channels, 70, 1))
        if uniform:  # as far as the example sees
            self.places.data[:, :, :12] = 1.0

    def forward(self, x):
        return x + self.places[:, :, : x.shape[2]]


class BySize(nn.Module):
    """Multiplies by a number that is computed from the size."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def forward(self, x):
        height = x.shape[2]
        return x * (1 + height % self.number) if self.number else x / height + height // 40


class Downwards(nn.Module):
    """A stage of a U: down, inner stage, up, joined with what went around."""

    def __init__(self, down, inner, up, after, kind):
        super().__init__()
        self.down, self.inner, self.up, self.after, self.kind = down, inner, up, after, kind

    def forward(self, x):
        return self.after(joined(self.kind, self.up(self.inner(self.down(x))), x))


@st.composite
def _layers(draw, inputs, outputs):
    kernel = draw(st.sampled_from((1, 2, 3)))
    padding = draw(st.integers(0, 1))
    mode = draw(st.sampled_from(("zeros", "zeros", "replicate")))
    layers = [nn.Conv2d(inputs, outputs, kernel, padding=padding, padding_mode=mode)]
    layers += draw(st.lists(st.sampled_from((nn.ReLU(), nn.Tanh())), max_size=1))
    if draw(st.integers(0, 3)) == 0:
        layers.insert(0, draw(st.sampled_from((SamePadding(4, 0.0), SamePadding(2, 1.0)))))
    if draw(st.integers(0, 3)) == 0:
        layers.append(draw(st.sampled_from((Table(outputs, False), Table(outputs, True), BySize(0), BySize(3)))))
    return nn.Sequential(*layers)


@st.composite
def _downs(draw, channels):
    ceil = draw(st.booleans())
    kinds = (
        nn.MaxPool2d(2, ceil_mode=ceil),
        nn.MaxPool2d(3, 2, 1, ceil_mode=ceil),
        nn.AvgPool2d(2, ceil_mode=ceil),
        nn.AvgPool2d(3, 2, 1, ceil_mode=ceil, count_include_pad=draw(st.booleans())),
        nn.AvgPool2d(3, 3, ceil_mode=ceil, divisor_override=4),
        nn.Conv2d(channels, channels, 3, 2, padding=draw(st.integers(0, 1))),
        nn.Conv2d(channels, channels, 4, 4, groups=channels),
        nn.Upsample(scale_factor=0.5, mode="bilinear"),
    )
    return draw(st.sampled_from(kinds))


@st.composite
def _ups(draw, inputs, outputs):
    return draw(
        st.sampled_from(
            (
                nn.ConvTranspose2d(inputs, outputs, 2, 2),
                nn.ConvTranspose2d(inputs, outputs, 3, 2, 1, output_padding=1),
                nn.ConvTranspose2d(inputs, outputs, 1, 2),
                nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(inputs, outputs, 3, padding=1)),
                nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.UpsamplingBilinear2d(scale_factor=2)),
            )
        )
    )


@st.composite
def _stages(draw, channels, depth):
    """A module from `channels` to the number of channels that it is returned with."""
    inner_channels, outputs = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    first = draw(_layers(channels, inner_channels))
    if depth == 0:
        return first, inner_channels
    inner, width = draw(_stages(inner_channels, depth - 1))
    up_channels = draw(st.integers(1, 4))
    after = draw(_layers(inner_channels + up_channels, outputs))
    kind = draw(st.sampled_from((*PADS, *PADS, "crop", "nearest", "bilinear")))
    stage = Downwards(draw(_downs(inner_channels)), inner, draw(_ups(width, up_channels)), after, kind)
    return nn.Sequential(first, stage), outputs


@st.composite
def sized_networks(draw):
    """A network (batch, 2, height, width) in float64, every layer masked in its own way, and a side for an example."""
    body, channels = draw(_stages(2, draw(st.integers(1, 2))))
    heads = (nn.Identity(), nn.Conv2d(channels, 2, 3, padding=1), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    model = nn.Sequential(body, draw(st.sampled_from(heads))).double().eval()
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            weight = torch.randn(module.weight.shape, generator=generator, dtype=torch.float64)
            drawn = mask(draw(st.sampled_from(MASKS)), weight, generator)
            module.weight.data = weight * drawn
            bias = torch.randn(module.bias.shape, generator=generator, dtype=torch.float64)
            module.bias.data = bias * draw(st.sampled_from((0.0, 1.0)))
    return model, draw(st.sampled_from(((12, 12), (16, 16), (13, 11), (9, 16), (32, 8))))
