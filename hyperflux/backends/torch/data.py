"""Data sets by name for the torch backend: arrays, CIFAR's files and folders of images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Subset

from hyperflux.backends.torch.batches import Data, DeviceData, StreamedData
from hyperflux.backends.torch.image_files import longer_side, open_image
from hyperflux.backends.torch.image_folder import ImageFolder
from hyperflux.config import RunConfig
from hyperflux.data import data_folder, load_dataset, require_spread
from hyperflux.errors import InputError
from hyperflux.extras import require
from hyperflux.seeding import generator

IN_MEMORY_SIDE = 64
"""Folders whose images have at most this many pixels per side are read into memory."""
MAX_CIFAR_BYTES = 1 << 28
"""Most bytes of one of CIFAR's files."""
STREAMED_SIDE = 224
STREAMED_RESIZE = 256
"""Larger images: for testing, the shorter side is resized to this and the middle STREAMED_SIDE² pixels are taken."""

NORMALISATION: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and deviation of each channel over the training part, pixels in [0, 1]; measured for data sets not listed."""

Images = tuple[Tensor, Tensor]
"""Images (samples, 3, h, w), uint8, and labels (samples,), int64."""


def load_data(config: RunConfig, device: torch.device) -> Data:
    """Load the data set of `config` for training on `device`.

    Large images are decoded batch by batch, so a damaged one raises DataFileError only when its batch is drawn.

    Raises:
        InputError: Files are missing or damaged, images differ in size or classes, or the training part has nothing to
            learn.
    """
    folder = data_folder(config.data_dir)
    match config.dataset:
        case "cifar10" | "cifar100":
            return _in_memory(config, device, *_cifar(config.dataset, folder))
        case "imagenet" | "imagefolder":
            train, test = _folders(folder)
            if config.dataset == "imagenet" and len(train.classes) != 1000:
                raise InputError(f"imagenet under {folder}: {len(train.classes)} classes, not 1000; use imagefolder")
            return _images(config, device, train, test)
        case _:
            return _arrays(config, device)


def _images(config: RunConfig, device: torch.device, train: ImageFolder, test: ImageFolder) -> Data:
    """A folder of images: small ones in memory, larger ones streamed."""
    files = {**train.files(), **test.files()}
    if longer_side(train.samples[0][0]) > IN_MEMORY_SIDE:
        return _streamed(config, device, train, test, files)
    size, test_size = (open_image(part.samples[0][0]).size for part in (train, test))
    if size != test_size:
        raise InputError(f"{config.dataset}: training and test images are not of one size; bring them to one")
    return _in_memory(config, device, _read(train, size), _read(test, size), len(train.classes), files)


def _in_memory(
    config: RunConfig,
    device: torch.device,
    train: Images,
    test: Images,
    classes: int,
    files: dict[str, str] | None = None,
) -> DeviceData:
    kept = _subset(config, len(train[1]))
    images, labels = train[0][kept], train[1][kept]
    require_spread(config.dataset, labels.numpy(), images.numpy())
    mean, deviation = _statistics(config.dataset, images)
    return DeviceData(
        images.to(device),
        labels.to(device),
        test[0].to(device),
        test[1].to(device),
        classes,
        getattr(torch, config.dtype),
        config.seed,
        mean.to(device),
        deviation.to(device),
        config.augment,
        files or {},
    )


def _streamed(
    config: RunConfig, device: torch.device, train: ImageFolder, test: ImageFolder, files: dict[str, str]
) -> StreamedData:
    """Large images: crops of random scale to train on, the middle to test on."""
    kept = _subset(config, len(train))
    require_spread(config.dataset, np.array(train.labels)[kept])
    compared = [content for name, content in train.files().items() if not name.endswith("/")]
    if len(set(compared)) == 1:
        raise InputError(
            f"data set {config.dataset}: the {len(compared)} training images that were compared are all the same; give "
            "other data"
        )
    v2 = require("torchvision.transforms.v2", extra="vision", needed_by=f"data set {config.dataset}")
    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*NORMALISATION["imagenet"])]
    middle = [v2.Resize(STREAMED_RESIZE), v2.CenterCrop(STREAMED_SIDE)]
    random = [v2.RandomResizedCrop(STREAMED_SIDE), v2.RandomHorizontalFlip()]
    train.transform = v2.Compose([*(random if config.augment else middle), *to_tensor])
    test.transform = v2.Compose([*middle, *to_tensor])
    return StreamedData(
        Subset(train, kept.tolist()),
        test,
        (3, STREAMED_SIDE, STREAMED_SIDE),
        len(train.classes),
        device,
        getattr(torch, config.dtype),
        config.workers,
        config.seed,
        files,
    )


def _subset(config: RunConfig, samples: int) -> NDArray[np.intp]:
    """Indices of the training samples to keep: all in order, or `train_samples` drawn without replacement."""
    if not config.train_samples:
        return np.arange(samples)
    return generator(0, "subset").permutation(samples)[: config.train_samples]


def _arrays(config: RunConfig, device: torch.device) -> DeviceData:
    """The data sets that every backend has: standardised already, not augmented; images get a channel."""
    data = load_dataset(config.dataset, config.data_dir, config.train_samples)
    inputs = [torch.from_numpy(part) for part in (data.train_inputs, data.test_inputs)]
    train, test = (part[:, None] if part.ndim == 3 else part for part in inputs)
    labels = torch.from_numpy(data.train_labels).to(device), torch.from_numpy(data.test_labels).to(device)
    dtype = getattr(torch, config.dtype)
    return DeviceData(train.to(device), labels[0], test.to(device), labels[1], data.classes, dtype, config.seed)


def _cifar(name: str, folder: Path) -> tuple[Images, Images, int]:
    """CIFAR in torchvision's layout, which reads the files only if their checksums are right."""
    datasets = require("torchvision.datasets", extra="vision", needed_by=f"data set {name}")
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    for file in (kind.meta["filename"], *(file for file, _ in (*kind.train_list, *kind.test_list))):
        path = folder / kind.base_folder / file
        if os.path.isfile(path) and (size := os.path.getsize(path)) > MAX_CIFAR_BYTES:  # its checksum takes a while
            raise InputError(
                f"{path}: has {size:,} bytes, and none of {name}'s files has more than {MAX_CIFAR_BYTES:,}"
            )
    parts: list[Images] = []
    for train in (True, False):
        try:
            data = kind(str(folder), train=train)
        except (RuntimeError, OSError) as error:
            raise InputError(
                f"{name} under {folder}: {kind.base_folder}/ is missing or damaged; give --data-dir the folder that "
                f"holds it, or use --dataset imagefolder for a folder of images"
            ) from error
        parts.append((torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets)))
    return parts[0], parts[1], len(data.classes)


def _folders(folder: Path) -> tuple[ImageFolder, ImageFolder]:
    """`train/` and `test/` or `val/` with one folder per class."""
    require("torchvision.datasets", extra="vision", needed_by="folders of images")
    test = next((name for name in ("test", "val") if os.path.isdir(folder / name)), None)
    if not os.path.isdir(folder / "train") or test is None:
        raise InputError(
            f"images under {folder}: needs the folders train/ and test/ or val/; name theirs by --data-dir"
        )
    parts = [ImageFolder.scan(folder / name) for name in ("train", test)]
    if odd := sorted(set(parts[0].classes) ^ set(parts[1].classes)):
        has, lacks = ("train", test) if odd[0] in parts[0].classes else (test, "train")
        raise InputError(
            f"images under {folder}: train/ and {test}/ have different classes, such as {odd[0]}, which {lacks}/ "
            f"lacks; add it there, or remove it from {has}/"
        )
    return parts[0], parts[1]


def _read(part: ImageFolder, size: tuple[int, int]) -> Images:
    """All images of a folder, of one width and height, and their labels, in memory."""
    images = np.empty((len(part), 3, size[1], size[0]), np.uint8)
    for image, (path, _) in zip(images, part.samples, strict=True):
        image[...] = np.asarray(open_image(path, size)).transpose(2, 0, 1)
    return torch.from_numpy(images), torch.tensor(part.labels)


def _statistics(name: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation per channel, (c, 1, 1), from `NORMALISATION` or measured."""
    if name in NORMALISATION:
        mean, deviation = (torch.tensor(values) for values in NORMALISATION[name])
    else:
        channels = [channel.double() / 255 for channel in images.unbind(1)]
        mean = torch.stack([channel.mean() for channel in channels])
        found = torch.stack([channel.std() for channel in channels]).clamp(min=1 / 255)
        constant = torch.stack([channel.min() == channel.max() for channel in channels])
        deviation = torch.where(constant, 1.0, found)  # the deviation of equal numbers is not always exactly 0
    return mean[:, None, None], deviation[:, None, None]
