"""Models by name: our own small ones, torchvision's and timm's, with the published stems for 32×32 images."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from hyperflux.backends.torch.outputs import main_output
from hyperflux.errors import InputError
from hyperflux.extras import require
from hyperflux.io.did_you_mean import unknown_name
from hyperflux.models import initial_mlp, is_mlp, layer_sizes

SMALL_IMAGE = 32
"""Images up to this many pixels a side get the stems of the CIFAR experiments."""

AUXILIARY = ("googlenet", "inception_v3")
"""torchvision's networks with auxiliary classifiers. They are built without: no prediction uses those, and their
weights would count as pruned ones."""


class MLP(nn.Module):
    """The NumPy backend's network, in float64: linear layers `fc1`, `fc2`, ... with ReLU between, on flat inputs."""

    def __init__(self, sizes: tuple[int, ...], seed: int) -> None:
        super().__init__()
        for index, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
            self.add_module(f"fc{index}", nn.Linear(inputs, outputs, dtype=torch.float64))
        initial = initial_mlp(sizes, seed)
        self.load_state_dict({name: torch.from_numpy(array) for name, array in initial.items()})

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (batch, classes) of inputs (batch, ...)."""
        values = inputs.flatten(1)
        *hidden, last = self.children()
        for layer in hidden:
            values = torch.relu(layer(values))
        logits: Tensor = last(values)
        return logits


class BasicBlock(nn.Module):
    """Two 3×3 convolutions; where the shape changes the shortcut takes every second pixel and pads channels with 0."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.added = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, h, w) -> (batch, outputs, h/stride, w/stride)."""
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return torch.relu(y + nn.functional.pad(shortcut, (0, 0, 0, 0, self.added // 2, self.added - self.added // 2)))


def resnet20(channels: int, classes: int) -> nn.Module:
    """ResNet-20 for small images, with parameter-free shortcuts (He and others 2016, section 4.2, option A)."""
    widths = [16] * 4 + [32] * 3 + [64] * 3
    blocks = [BasicBlock(i, o, 1 if i == o else 2) for i, o in pairwise(widths)]
    stem = [nn.Conv2d(channels, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    model = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def build_model(name: str, shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
    """The network `name` for inputs of `shape`, (features,) or (channels, height, width), with weights drawn by `seed`.

    Raises InputError for a name that is not known and a network that can't take the shape.
    """
    if is_mlp(name):
        return MLP(layer_sizes(name, math.prod(shape), classes), seed)
    if len(shape) != 3:
        raise InputError(f"model {name}: needs images, but a sample of this data has shape {shape}; use lenet300")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _build(name, *shape, classes)
    for training in (False, True):
        _try(name, model.train(training), shape, classes)
    return model


@torch.no_grad()
def _try(name: str, model: nn.Module, shape: tuple[int, ...], classes: int) -> None:
    """Raise InputError if the network, in its mode, can't take two images or does not return their logits."""
    mode = " in training" if model.training else ""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.random.fork_rng(devices=[]):
            outputs = model(torch.zeros(2, *shape))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"model {name}: can't take images of shape {shape}{mode} ({reason})") from error
    for buffer, before in kept:
        buffer.copy_(before)
    wrong = f"model {name}: does not return {classes} logits per sample{mode}; it is not a plain classifier"
    try:
        logits = main_output(outputs)
    except InputError as error:
        raise InputError(wrong) from error
    if logits.shape != (2, classes):
        raise InputError(wrong)


def count_numbers(name: str, shape: tuple[int, ...], classes: int) -> int | None:
    """Elements of all parameters and buffers of a network, without the memory for them.

    Returns None if the size is unknown: the network needs real values to be built, or can't be built at all. Raises
    InputError as `build_model` for a multilayer perceptron.
    """
    if is_mlp(name):
        return sum((inputs + 1) * outputs for inputs, outputs in pairwise(layer_sizes(name, math.prod(shape), classes)))
    if len(shape) != 3:
        return None
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), warnings.catch_warnings(action="ignore"):
            tensors: dict[str, Tensor] = _build(name, *shape, classes).state_dict()
        return sum(tensor.numel() for tensor in tensors.values())
    except (InputError, RuntimeError, NotImplementedError, ValueError, TypeError):
        return None


def _build(name: str, channels: int, height: int, width: int, classes: int) -> nn.Module:
    small = max(height, width) <= SMALL_IMAGE
    if name == "resnet20":
        return resnet20(channels, classes)
    if name in ("resnet18", "resnet50"):
        model = _torchvision(name, classes)
        if small:
            model.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
            nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
            model.maxpool = nn.Identity()
        return model
    if name == "vgg19":
        return _small_vgg19(channels, classes) if small else _torchvision("vgg19_bn", classes)
    if name in ("deit_tiny", "deit_small"):
        size = {"img_size": height, "patch_size": 4} if small else {"img_size": height}
        return _timm(f"{name}_patch16_224", channels, classes, **size)
    source, _, network = name.partition(":")
    return _torchvision(network, classes) if source == "torchvision" else _timm(network, channels, classes)


def _small_vgg19(channels: int, classes: int) -> nn.Module:
    """VGG-19 with batch norm, a 2×2 average pool in the place of the last maximum, and one linear layer."""
    make_layers = require("torchvision.models.vgg", extra="vision", needed_by="model vgg19").make_layers
    layout = [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4]
    features = make_layers(layout, batch_norm=True)
    if channels != 3:
        features[0] = nn.Conv2d(channels, 64, 3, padding=1)
    for module in features.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return nn.Sequential(features, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(512, classes))


def _torchvision(name: str, classes: int) -> nn.Module:
    models = require("torchvision.models", extra="vision", needed_by=f"model torchvision:{name}")
    if name not in (known := models.list_models(module=models)):
        raise unknown_name("torchvision model", name, known)
    extra = {"aux_logits": False, "init_weights": True} if name in AUXILIARY else {}
    return _quietly(lambda: models.get_model(name, weights=None, num_classes=classes, **extra), f"torchvision:{name}")


def _timm(name: str, channels: int, classes: int, **extra: Any) -> nn.Module:
    timm = require("timm", extra="vision", needed_by=f"model timm:{name}")
    if name not in (known := timm.list_models()):
        raise unknown_name("timm model", name, known)
    return _quietly(
        lambda: timm.create_model(name, pretrained=False, num_classes=classes, in_chans=channels, **extra),
        f"timm:{name}",
    )


def _quietly(build: Callable[[], nn.Module], name: str) -> nn.Module:
    try:
        return build()
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise InputError(f"model {name}: can't be built ({str(error).splitlines()[0]})") from error
