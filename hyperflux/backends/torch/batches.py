"""Batches for the torch backend: small sets live on the device and are augmented there, large ones stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hyperflux.errors import InputError
from hyperflux.seeding import generator

CROP_PADDING = 4
"""Pixels of black around an image before a crop of its own size is taken: the CIFAR experiments' augmentation."""
EVALUATION_BATCH = 512

Batch = tuple[Tensor, Tensor]


class Data(Protocol):
    """A training and a test part; a batch is (inputs (batch, *shape), labels (batch,)) on the device."""

    shape: tuple[int, ...]
    classes: int
    samples: int

    def train_batches(self, order: Iterable[NDArray[np.intp]], epoch: int) -> Iterator[Batch]:
        """Batches of the training part by index, augmented anew in each epoch."""

    def test_batches(self) -> Iterator[Batch]:
        """The whole test part in its order."""


@dataclass
class DeviceData:
    """Arrays on the device. uint8 images are normalised by `mean` and `deviation` and augmented batch by batch."""

    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    classes: int
    dtype: torch.dtype
    seed: int
    mean: Tensor | None = None
    deviation: Tensor | None = None
    augment: bool = False

    def __post_init__(self) -> None:
        self.shape = tuple(self.train_inputs.shape[1:])
        self.samples = len(self.train_labels)

    def train_batches(self, order: Iterable[NDArray[np.intp]], epoch: int) -> Iterator[Batch]:
        """Batches by index; each sample has a crop and a flip of its own, drawn by seed and epoch."""
        rng = generator(self.seed, f"augmentation of epoch {epoch}")
        for indices in order:
            chosen = torch.from_numpy(indices).to(self.train_labels.device)
            inputs = self.train_inputs[chosen]
            if self.augment:
                inputs = crop_and_flip(inputs, rng)
            yield self._normalised(inputs), self.train_labels[chosen]

    def test_batches(self) -> Iterator[Batch]:
        """The test part, not augmented."""
        parts = (torch.split(part, EVALUATION_BATCH) for part in (self.test_inputs, self.test_labels))
        for inputs, labels in zip(*parts, strict=True):
            yield self._normalised(inputs), labels

    def _normalised(self, inputs: Tensor) -> Tensor:
        inputs = inputs.to(self.dtype)
        if self.mean is None or self.deviation is None:
            return inputs
        return (inputs / 255 - self.mean.to(inputs)) / self.deviation.to(inputs)


def crop_and_flip(images: Tensor, rng: np.random.Generator) -> Tensor:
    """A random crop, after padding by `CROP_PADDING`, and a random horizontal flip for each of (batch, c, h, w)."""
    count, _, height, width = images.shape
    drawn = [rng.integers(2 * CROP_PADDING + 1, size=count) for _ in range(2)] + [rng.integers(2, size=count)]
    down, right, flip = (torch.from_numpy(numbers).to(images.device)[:, None] for numbers in drawn)
    rows = torch.arange(height, device=images.device) + down
    columns = torch.arange(width, device=images.device)
    columns = torch.where(flip.bool(), width - 1 - columns, columns) + right
    padded = torch.nn.functional.pad(images, [CROP_PADDING] * 4)
    sample = torch.arange(count, device=images.device)[:, None, None]
    return padded[sample, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


@dataclass
class StreamedData:
    """Image files decoded by workers; `train` and `test` are torchvision data sets of tensors."""

    train: Any
    test: Any
    shape: tuple[int, ...]
    classes: int
    device: torch.device
    dtype: torch.dtype
    workers: int
    seed: int

    def __post_init__(self) -> None:
        self.samples = len(self.train)

    def train_batches(self, order: Iterable[NDArray[np.intp]], epoch: int) -> Iterator[Batch]:
        """Batches by index; a sample's crop and flip are drawn by seed, epoch and index, whatever the workers."""
        seed = int(generator(self.seed, f"augmentation of epoch {epoch}").integers(2**62))
        return self._load(_DrawnBySample(self.train, seed), batch_sampler=[indices.tolist() for indices in order])

    def test_batches(self) -> Iterator[Batch]:
        """The test part, resized and cropped in the middle."""
        return self._load(self.test, batch_size=EVALUATION_BATCH)

    def _load(self, part: Any, **how: Any) -> Iterator[Batch]:
        pinned = self.device.type == "cuda"
        try:
            for inputs, labels in DataLoader(part, num_workers=self.workers, pin_memory=pinned, **how):
                yield (
                    inputs.to(self.device, self.dtype, non_blocking=pinned),
                    labels.to(self.device, non_blocking=pinned),
                )
        except InputError as error:  # a worker's error brings its traceback; the reason is its last line
            reason = str(error).splitlines()[-1].rpartition(f"{InputError.__name__}: ")[2]
            raise InputError(reason) from error


@dataclass
class _DrawnBySample(Dataset[Any]):
    """A data set whose random transforms draw from a generator of each sample's own."""

    part: Any
    seed: int

    def __getitem__(self, index: int) -> Any:
        before = torch.default_generator.get_state()
        torch.default_generator.manual_seed(self.seed + index)
        try:
            return self.part[index]
        finally:
            torch.default_generator.set_state(before)
