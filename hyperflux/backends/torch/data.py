"""Data for the torch backend: small sets live on the device and are augmented there, large ones stream from workers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from hyperflux.config import RunConfig
from hyperflux.data import data_folder, load_dataset
from hyperflux.errors import InputError
from hyperflux.seeding import generator

CROP_PADDING = 4
"""Pixels of black around an image before a crop of its own size is taken: the CIFAR experiments' augmentation."""
IN_MEMORY_SIDE = 64
"""Image folders whose images have at most this many pixels a side are read into memory."""
STREAMED_SIDE = 224
STREAMED_RESIZE = 256
"""Larger images: the shorter side is resized to this, and the middle STREAMED_SIDE² are taken, for testing."""
EVALUATION_BATCH = 512

NORMALISATION: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and deviation of each channel of the training part, pixels in [0, 1]. Sets not listed are measured."""

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
    classes: int
    device: torch.device
    dtype: torch.dtype
    workers: int
    seed: int

    def __post_init__(self) -> None:
        self.shape: tuple[int, ...] = (3, STREAMED_SIDE, STREAMED_SIDE)
        self.samples = len(self.train)

    def train_batches(self, order: Iterable[NDArray[np.intp]], epoch: int) -> Iterator[Batch]:
        """Batches by index; the workers' random crops and flips are drawn by seed and epoch."""
        seed = int(generator(self.seed, f"augmentation of epoch {epoch}").integers(2**62))
        source = torch.Generator().manual_seed(seed)
        return self._load(self.train, batch_sampler=[indices.tolist() for indices in order], generator=source)

    def test_batches(self) -> Iterator[Batch]:
        """The test part, resized and cropped in the middle."""
        return self._load(self.test, batch_size=EVALUATION_BATCH)

    def _load(self, part: Any, **how: Any) -> Iterator[Batch]:
        pinned = self.device.type == "cuda"
        for inputs, labels in DataLoader(part, num_workers=self.workers, pin_memory=pinned, **how):
            yield inputs.to(self.device, self.dtype, non_blocking=pinned), labels.to(self.device, non_blocking=pinned)


def load_data(config: RunConfig, device: torch.device) -> Data:
    """The data set of `config`, ready to train on `device`.

    Raises InputError for files that are missing or damaged, and images that do not fit together.
    """
    folder, dtype = data_folder(config.data_dir), getattr(torch, config.dtype)
    match config.dataset:
        case "cifar10" | "cifar100":
            train_images, train_labels, test_images, test_labels = _cifar(config.dataset, folder)
            classes = 10 if config.dataset == "cifar10" else 100
        case "imagenet" | "imagefolder":
            train, test = _folders(folder)
            if config.dataset == "imagenet" and len(train.classes) != 1000:
                raise InputError(f"imagenet under {folder}: {len(train.classes)} classes, not 1000; use imagefolder")
            classes = len(train.classes)
            if max(train.loader(train.samples[0][0]).size) > IN_MEMORY_SIDE:
                _set_transforms(train, test, config.augment)
                if config.train_samples:
                    chosen = generator(0, "subset").permutation(len(train))[: config.train_samples]
                    train = Subset(train, chosen.tolist())
                return StreamedData(train, test, classes, device, dtype, config.workers, config.seed)
            (train_images, train_labels), (test_images, test_labels) = _read(train), _read(test)
            if train_images.shape[1:] != test_images.shape[1:]:
                raise InputError(f"imagefolder {folder}: training and test images are not of one size")
        case _:
            return _arrays(config, device, dtype)
    if config.train_samples:
        kept = generator(0, "subset").permutation(len(train_labels))[: config.train_samples]
        train_images, train_labels = train_images[kept], train_labels[kept]
    mean, deviation = _statistics(config.dataset, train_images)
    return DeviceData(
        train_images.to(device),
        train_labels.to(device),
        test_images.to(device),
        test_labels.to(device),
        classes,
        dtype,
        config.seed,
        mean.to(device),
        deviation.to(device),
        config.augment,
    )


def _arrays(config: RunConfig, device: torch.device, dtype: torch.dtype) -> DeviceData:
    """The sets that every backend shares: already standardised, not augmented; images get a channel."""
    data = load_dataset(config.dataset, config.data_dir, config.train_samples)
    inputs = [torch.from_numpy(part) for part in (data.train_inputs, data.test_inputs)]
    train, test = (part[:, None] if part.ndim == 3 else part for part in inputs)
    labels = torch.from_numpy(data.train_labels).to(device), torch.from_numpy(data.test_labels).to(device)
    return DeviceData(train.to(device), labels[0], test.to(device), labels[1], data.classes, dtype, config.seed)


def _cifar(name: str, folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Torchvision's layout: it reads the files only after their checksums have been found right."""
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    parts: list[Tensor] = []
    for train in (True, False):
        try:
            data = kind(str(folder), train=train)
        except (RuntimeError, OSError) as error:
            raise InputError(
                f"{name} under {folder}: {kind.base_folder}/ is missing or damaged; give --data-dir the folder that "
                f"holds it, or use --dataset imagefolder for a folder of images"
            ) from error
        parts += [torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets)]
    return parts[0], parts[1], parts[2], parts[3]


def _folders(folder: Path) -> tuple[Any, Any]:
    """`train/` and `test/` or `val/` with a folder a class, as torchvision's ImageFolder."""
    from torchvision.datasets import ImageFolder

    test = next((name for name in ("test", "val") if (folder / name).is_dir()), None)
    if not (folder / "train").is_dir() or test is None:
        raise InputError(
            f"images under {folder}: needs the folders train/ and test/ or val/; name theirs by --data-dir"
        )
    try:
        parts = [ImageFolder(str(folder / name)) for name in ("train", test)]
    except (FileNotFoundError, OSError) as error:
        raise InputError(f"images under {folder}: {' '.join(str(error).split())}") from error
    if parts[0].classes != parts[1].classes:
        odd = sorted(set(parts[0].classes) ^ set(parts[1].classes))[0]
        raise InputError(f"images under {folder}: train/ and {test}/ have different classes, such as {odd}")
    return parts[0], parts[1]


def _read(part: Any) -> tuple[Tensor, Tensor]:
    """Every image of a folder, (samples, 3, h, w) uint8, and its label."""
    images: list[NDArray[np.uint8]] = []
    for path, _ in part.samples:
        try:
            image = np.asarray(part.loader(path))
        except (OSError, SyntaxError) as error:
            raise InputError(f"image {path}: can't be read ({error})".replace("\n", " ")) from error
        if images and image.shape != images[0].shape:
            sizes = [f"{width}x{height}" for height, width, _ in (image.shape, images[0].shape)]
            raise InputError(f"image {path}: is {sizes[0]}, the others are {sizes[1]}; bring them to one size")
        images.append(image)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets)


def _statistics(name: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation a channel, (c, 1, 1), from the table or measured."""
    if name in NORMALISATION:
        mean, deviation = (torch.tensor(values) for values in NORMALISATION[name])
    else:
        channels = [channel.double() / 255 for channel in images.unbind(1)]
        mean = torch.stack([channel.mean() for channel in channels])
        deviation = torch.stack([channel.std() for channel in channels]).clamp(min=1 / 255)
    return mean[:, None, None], deviation[:, None, None]


def _set_transforms(train: Any, test: Any, augment: bool) -> None:
    from torchvision.transforms import v2

    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*NORMALISATION["imagenet"])]
    middle = [v2.Resize(STREAMED_RESIZE), v2.CenterCrop(STREAMED_SIDE)]
    test.transform = v2.Compose([*middle, *to_tensor])
    random = [v2.RandomResizedCrop(STREAMED_SIDE), v2.RandomHorizontalFlip()]
    train.transform = v2.Compose([*(random if augment else middle), *to_tensor])
