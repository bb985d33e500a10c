"""Batches for the torch backend: small data sets live on the device and are augmented there, large ones stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hyperflux.backends.torch.image_files import MAX_BYTES
from hyperflux.backends.torch.workers import leave_stopping_to_the_run, loaded
from hyperflux.io import fingerprints
from hyperflux.io.fingerprints import sample_indices
from hyperflux.seeding import generator

CROP_PADDING = 4
"""Black pixels around an image before a crop of its size is taken, as in the paper's CIFAR experiments."""
EVALUATION_BATCH = 512

Batch = tuple[Tensor, Tensor]
Mine = Callable[[int], slice]
"""From the size of a batch to the rows that this process trains on."""


def every_row(count: int) -> slice:
    """All rows of a batch: for training in one process."""
    return slice(None)


class Data(Protocol):
    """A training and a test part; a batch is (inputs (batch, *shape), labels (batch,)) on the device.

    `shape` is that of a sample, `samples` counts the training part.
    """

    shape: tuple[int, ...]
    classes: int
    samples: int

    def train_batches(
        self, order: Iterable[NDArray[np.intp]], epoch: int, done: int = 0, mine: Mine = every_row
    ) -> Iterator[Batch]:
        """Yield the training batches of an epoch, with the epoch's augmentation.

        Args:
            order: Indices of the samples of each batch.
            epoch: Number of the epoch; with the seed and the sample's place it determines the augmentation.
            done: Batches to skip, because a resumed run has trained on them.
            mine: Rows of each batch to yield; the augmentation of a row does not depend on them.
        """

    def test_batches(self, chosen: slice = slice(None)) -> Iterator[Batch]:
        """Yield the test part in order: all batches, or those in the slice `chosen`."""

    def fingerprint(self) -> str:
        """A hash of both parts: shapes, labels and the contents of some samples."""

    files: dict[str, str]
    """What is compared of the files of a folder of images, see `ImageFolder.files`; empty for other data."""


@dataclass
class DeviceData:
    """A data set on the device; uint8 images are augmented and normalised by `mean` and `deviation` in each batch."""

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
    files: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.shape = tuple(self.train_inputs.shape[1:])
        self.samples = len(self.train_labels)

    def train_batches(
        self, order: Iterable[NDArray[np.intp]], epoch: int, done: int = 0, mine: Mine = every_row
    ) -> Iterator[Batch]:
        """Yield batches by index; each sample gets its own crop and flip, drawn by seed and epoch."""
        rng, order = generator(self.seed, f"augmentation of epoch {epoch}"), iter(order)
        for indices in islice(order, done):
            if self.augment:
                crops_and_flips(len(indices), rng)  # to draw the same for the rest
        for indices in order:
            rows = mine(len(indices))
            chosen = torch.from_numpy(indices[rows]).to(self.train_labels.device)
            inputs = self.train_inputs[chosen]
            if self.augment:
                inputs = crop_and_flip(inputs, *(drawn[rows] for drawn in crops_and_flips(len(indices), rng)))
            yield self._normalised(inputs), self.train_labels[chosen]

    def test_batches(self, chosen: slice = slice(None)) -> Iterator[Batch]:
        """Yield the test part, not augmented."""
        parts = (torch.split(part, EVALUATION_BATCH)[chosen] for part in (self.test_inputs, self.test_labels))
        for inputs, labels in zip(*parts, strict=True):
            yield self._normalised(inputs), labels

    def fingerprint(self) -> str:
        """A hash of the data."""
        train = _of_tensors(self.train_inputs, self.train_labels)
        return f"{train} {_of_tensors(self.test_inputs, self.test_labels)}"

    def _normalised(self, inputs: Tensor) -> Tensor:
        inputs = inputs.to(self.dtype)
        if self.mean is None or self.deviation is None:
            return inputs
        return (inputs / 255 - self.mean.to(inputs)) / self.deviation.to(inputs)


def crop_and_flip(images: Tensor, down: NDArray[np.int64], right: NDArray[np.int64], flip: NDArray[np.int64]) -> Tensor:
    """Pad images (batch, c, h, w) by `CROP_PADDING`, crop each at (`down`, `right`), mirror it where `flip` is 1."""
    count, _, height, width = images.shape
    drawn = (torch.from_numpy(numbers).to(images.device)[:, None] for numbers in (down, right, flip))
    first_rows, first_columns, flipped = drawn
    rows = torch.arange(height, device=images.device) + first_rows
    columns = torch.arange(width, device=images.device)
    columns = torch.where(flipped.bool(), width - 1 - columns, columns) + first_columns
    padded = torch.nn.functional.pad(images, [CROP_PADDING] * 4)
    sample = torch.arange(count, device=images.device)[:, None, None]
    return padded[sample, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def crops_and_flips(count: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Draw pixels down, pixels right and whether to flip, (count,) each, for `crop_and_flip`."""
    return [rng.integers(2 * CROP_PADDING + 1, size=count) for _ in range(2)] + [rng.integers(2, size=count)]


@dataclass
class StreamedData:
    """A data set of image files that workers decode; `train` and `test` give tensors and labels."""

    train: Any
    test: Any
    shape: tuple[int, ...]
    classes: int
    device: torch.device
    dtype: torch.dtype
    workers: int
    seed: int
    files: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.samples = len(self.train)

    def train_batches(
        self, order: Iterable[NDArray[np.intp]], epoch: int, done: int = 0, mine: Mine = every_row
    ) -> Iterator[Batch]:
        """Yield batches by index; a sample's crop and flip depend on seed, epoch and index, not on the workers."""
        seed = int(generator(self.seed, f"augmentation of epoch {epoch}").integers(2**62))
        left = [indices[mine(len(indices))].tolist() for indices in islice(order, done, None)]
        return self._load(_DrawnBySample(self.train, seed), batch_sampler=left)

    def test_batches(self, chosen: slice = slice(None)) -> Iterator[Batch]:
        """Yield the test part, resized and cropped to the middle."""
        every = range(len(self.test))
        batches = [every[start : start + EVALUATION_BATCH] for start in every[::EVALUATION_BATCH]]
        return self._load(self.test, batch_sampler=batches[chosen])

    def fingerprint(self) -> str:
        """A hash of both parts: every file's name and label, and the bytes of some files."""
        return " ".join(_of_files(part) for part in (self.train, self.test))

    def _load(self, part: Any, **how: Any) -> Iterator[Batch]:
        pinned = self.device.type == "cuda"
        loader = DataLoader(
            part, num_workers=self.workers, pin_memory=pinned, worker_init_fn=leave_stopping_to_the_run, **how
        )
        for inputs, labels in loaded(loader):
            yield inputs.to(self.device, self.dtype, non_blocking=pinned), labels.to(self.device, non_blocking=pinned)


def _of_tensors(inputs: Tensor, labels: Tensor) -> str:
    """A hash of the training or test part of a data set on the device."""
    chosen = inputs[torch.from_numpy(sample_indices(len(inputs))).to(inputs.device)]
    return fingerprints.of_arrays(np.array(inputs.shape), chosen.cpu().numpy(), labels.cpu().numpy())


def _of_files(part: Any) -> str:
    """A hash of a folder of images, or of a subset of one."""
    folder, chosen = getattr(part, "dataset", part), getattr(part, "indices", range(len(part)))
    files = [(Path(folder.samples[index][0]), folder.samples[index][1]) for index in chosen]
    named = "".join(f"{path.parent.name}/{path.name} {label}\n" for path, label in files)
    contents = [fingerprints.of_file(str(files[index][0]), MAX_BYTES) for index in sample_indices(len(files))]
    text = "".join([named, *contents]).encode("utf-8", "surrogateescape")
    return fingerprints.of_arrays(np.frombuffer(text, np.uint8))


@dataclass
class _DrawnBySample(Dataset[Any]):
    """A data set whose random transforms are seeded by the sample's index."""

    part: Any
    seed: int

    def __getitem__(self, index: int) -> Any:
        before = torch.default_generator.get_state()
        torch.default_generator.manual_seed(self.seed + index)
        try:
            return self.part[index]
        finally:
            torch.default_generator.set_state(before)
