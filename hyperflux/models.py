"""Models by name; layer sizes and initial weights of multilayer perceptrons, for every backend."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperflux.errors import InputError
from hyperflux.io.did_you_mean import unknown_name
from hyperflux.io.safe_read import shown
from hyperflux.seeding import generator

LENET_HIDDEN = (300, 100)
MAX_MLP_WEIGHTS = 100_000_000
"""Most weights of a multilayer perceptron, so that a typing error in its name does not exhaust the memory."""
MAX_MLP_LAYERS = 1000
MAX_DIGITS = 18
"""Most digits of a layer size in a model's name."""
NETWORKS = ("resnet20", "resnet18", "resnet50", "vgg19", "deit_tiny", "deit_small")
"""Networks with convolutions or attention, for the torch backend only."""
LIBRARIES = ("torchvision", "timm")
"""Libraries whose models are called `torchvision:NAME` and `timm:NAME`."""


def check_model(name: str) -> None:
    """Raise InputError for an unknown model; names of a library are checked when it builds them."""
    if name.startswith("mlp:"):
        _parse_mlp(name)
    elif name != "lenet300" and name not in NETWORKS and name.partition(":")[0] not in LIBRARIES:
        libraries = [f"{library}:NAME" for library in LIBRARIES]
        raise unknown_name("model", name, ["lenet300", "mlp:784-300-100-10", *NETWORKS, *libraries])


def is_mlp(name: str) -> bool:
    """Whether `name` is a multilayer perceptron, which every backend can build."""
    return name == "lenet300" or name.startswith("mlp:")


def layer_sizes(name: str, features: int, classes: int) -> tuple[int, ...]:
    """Units of each layer of an MLP, from `features` inputs to `classes` outputs.

    Raises:
        InputError: The model is unknown or too large, or its ends do not fit the data.
    """
    check_model(name)
    sizes = (features, *LENET_HIDDEN, classes) if name == "lenet300" else _parse_mlp(name)
    if (count := sum(inputs * outputs for inputs, outputs in pairwise(sizes))) > MAX_MLP_WEIGHTS:
        raise InputError(f"model {name}: {count:,} weights; an MLP has at most {MAX_MLP_WEIGHTS:,}")
    if (sizes[0], sizes[-1]) != (features, classes):
        fitting = "-".join(map(str, (features, *sizes[1:-1], classes)))
        raise InputError(
            f"model {name}: the data has {features} features and {classes} classes; use mlp:{fitting} or lenet300"
        )
    return sizes


def initial_mlp(sizes: tuple[int, ...], seed: int) -> dict[str, NDArray[np.floating[Any]]]:
    """Initial weights (outputs, inputs) and biases (outputs,) of the layers `fc1`, `fc2`, ..., float64.

    Uniform in ±1/√inputs, as in torch.nn.Linear. Each parameter has a generator of its own, so that every backend draws
    the same.
    """
    initial: dict[str, NDArray[np.floating[Any]]] = {}
    for index, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
        bound = 1 / math.sqrt(inputs)
        for name, shape in ((f"fc{index}.weight", (outputs, inputs)), (f"fc{index}.bias", (outputs,))):
            initial[name] = generator(seed, name).uniform(-bound, bound, shape)
    return initial


def _parse_mlp(name: str) -> tuple[int, ...]:
    parts = name.removeprefix("mlp:").split("-")
    if len(parts) < 2 or not all(part.isascii() and part.isdigit() and part.strip("0") for part in parts):
        raise InputError(f"model {shown(name)}: give two or more layer sizes above 0, as in mlp:784-300-100-10")
    if len(parts) > MAX_MLP_LAYERS or max(map(len, parts)) > MAX_DIGITS:
        raise InputError(
            f"model {shown(name)}: an MLP has at most {MAX_MLP_LAYERS:,} layers, and sizes of {MAX_DIGITS} digits"
        )
    return tuple(map(int, parts))
