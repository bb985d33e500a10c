"""Data sets by name, as arrays: fixed training and test parts, both standardised by the training part."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperflux.errors import InputError
from hyperflux.io.did_you_mean import unknown_name
from hyperflux.io.idx import read_idx
from hyperflux.seeding import generator

SAMPLES_AT_ONCE, VALUES_AT_ONCE = 1000, 1 << 20
"""Samples, and numbers, that are in memory as float64 at once."""

Parts = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], int]
"""Training inputs and labels, test inputs and labels, as they are in the files, and the number of classes."""


@dataclass(frozen=True)
class Dataset:
    """Inputs (samples, ...), float32, with mean 0 and deviation 1 over the training part; labels (samples,), int64."""

    train_inputs: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test_inputs: NDArray[np.float32]
    test_labels: NDArray[np.int64]
    classes: int

    @property
    def features(self) -> int:
        """Numbers per sample."""
        return int(np.prod(self.train_inputs.shape[1:]))

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of a sample: (features,), or (channels, height, width), where grey images get one channel."""
        shape = self.train_inputs.shape[1:]
        return (1, *shape) if len(shape) == 2 else shape


def data_folder(data_dir: str) -> Path:
    """The folder of the data sets' files: `data_dir`, else $HYPERFLUX_DATA, else ./data."""
    return Path(data_dir or os.environ.get("HYPERFLUX_DATA") or "data")


def load_dataset(name: str, data_dir: str = "", train_samples: int = 0) -> Dataset:
    """Load a data set by name.

    Args:
        name: One of `DATASETS`.
        data_dir: Folder of its files, see `data_folder`; digits and synthetic need none.
        train_samples: Keep only this many first samples of the training part; 0 keeps all.

    Raises:
        InputError: The name is unknown, files are missing or damaged, or the training part has nothing to learn.
    """
    if name not in _LOADERS:
        raise unknown_name("data set", name, _LOADERS)
    parts = _LOADERS[name](data_folder(data_dir))
    kept = slice(train_samples or None)
    require_spread(name, parts[1][kept], parts[0][kept])
    return _standardised(*parts, kept)


def require_spread(name: str, labels: NDArray[Any], inputs: NDArray[Any] | None = None) -> None:
    """Check that a training part has something to learn.

    Args:
        name: Of the data set.
        labels: The class of each training sample, (samples,).
        inputs: The samples, (samples, ...), if they are at hand.

    Raises:
        InputError: There are fewer than two classes, or all samples are the same.
    """
    if len(labels) == 0 or (labels == labels[0]).all():
        every = "the only training sample is" if len(labels) == 1 else f"all {len(labels)} training samples are"
        found = f"{every} of class {labels[0]}" if len(labels) else "no training sample"
        raise InputError(
            f"data set {name}: {found}; training needs two classes or more: give other data, or a larger "
            "--train-samples"
        )
    if inputs is not None and all(np.array_equal(sample, inputs[0]) for sample in inputs):
        raise InputError(f"data set {name}: all {len(inputs)} training samples are the same; give other data")


def _digits(_: Path) -> Parts:
    """scikit-learn's 1,797 digits, (8, 8): every fifth of a fixed shuffle is in the test part."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = generator(0, "digits split").permutation(len(digits.target))
    inputs, labels = digits.images[order], digits.target[order]
    held_out = np.arange(len(labels)) % 5 == 0
    return inputs[~held_out], labels[~held_out], inputs[held_out], labels[held_out], 10


def _mnist(data_dir: Path) -> Parts:
    """MNIST, (28, 28), in torchvision's layout: `MNIST/raw/train-images-idx3-ubyte` and so on, gzipped or not."""
    raw = data_dir / "MNIST" / "raw"
    arrays: list[NDArray[Any]] = []
    for part in ("train", "t10k"):
        images = read_idx(raw / f"{part}-images-idx3-ubyte", dimensions=3)
        labels = read_idx(raw / f"{part}-labels-idx1-ubyte", dimensions=1)
        if len(images) != len(labels) or len(images) == 0 or images.shape[1:] != (28, 28) or labels.max() > 9:
            raise InputError(
                f"mnist under {raw}: the {part} images {images.shape} and labels {labels.shape} are not MNIST's"
            )
        arrays += [images, labels]
    train_images, train_labels, test_images, test_labels = arrays
    return train_images, train_labels, test_images, test_labels, 10


def _synthetic(_: Path) -> Parts:
    """Four overlapping Gaussian clouds in 16 dimensions, 1,024 samples for training and 256 for testing."""
    rng = generator(0, "synthetic")
    centres = rng.normal(size=(4, 16))
    labels = rng.integers(4, size=1280)
    inputs = centres[labels] + rng.normal(size=(1280, 16))
    return inputs[:1024], labels[:1024], inputs[1024:], labels[1024:], 4


def _standardised(
    train_inputs: NDArray[Any],
    train_labels: NDArray[Any],
    test_inputs: NDArray[Any],
    test_labels: NDArray[Any],
    classes: int,
    kept: slice,
) -> Dataset:
    """The `kept` training samples and the test part, standardised by mean and deviation of the whole training part."""
    values = np.ascontiguousarray(train_inputs).reshape(-1)
    mean = float(values.mean(dtype=np.float64))
    deviation = math.sqrt(_squares(values, mean) / len(values))
    scaled = []
    for inputs in (train_inputs[kept], test_inputs):
        scaled.append(np.empty(inputs.shape, np.float32))
        for start in range(0, len(inputs), SAMPLES_AT_ONCE):
            part = slice(start, start + SAMPLES_AT_ONCE)
            scaled[-1][part] = (inputs[part] - mean) / deviation
    labels = [own.astype(np.int64) for own in (train_labels[kept], test_labels)]
    return Dataset(scaled[0], labels[0], scaled[1], labels[1], classes)


def _squares(values: NDArray[Any], mean: float) -> float:
    """The sum of squared distances from the mean, in float64, which all values together do not take at once.

    The halves are those in which NumPy itself adds up, so `std` has the same bits.
    """
    if len(values) <= VALUES_AT_ONCE:
        return float(np.square(values - mean).sum())
    half = len(values) // 16 * 8
    return _squares(values[:half], mean) + _squares(values[half:], mean)


_LOADERS: dict[str, Callable[[Path], Parts]] = {"digits": _digits, "mnist": _mnist, "synthetic": _synthetic}
DATASETS = tuple(_LOADERS)
WITHOUT_FILES = ("digits", "synthetic")
"""Data sets that need no folder."""
IMAGE_DATASETS = ("cifar10", "cifar100", "imagenet", "imagefolder")
"""Data sets of colour images, for the torch backend only."""
