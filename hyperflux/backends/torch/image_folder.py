"""Folders of pictures, one folder per class, in torchvision's layout: what is listed and what is junk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from hyperflux.backends.torch.image_files import MAX_BYTES, open_image
from hyperflux.errors import InputError
from hyperflux.io import fingerprints
from hyperflux.io.fingerprints import sample_indices

_JPEG, _PORTABLE = (".jfif", ".jpe", ".jpeg", ".jpg"), (".pbm", ".pgm", ".pnm", ".ppm")
EXTENSIONS = (".bmp", *_JPEG, ".png", *_PORTABLE, ".tif", ".tiff", ".webp")
"""Endings of the files that are listed, in small or capital letters."""
OTHER_EXTENSIONS = (".apng", ".avif", ".dng", ".gif", ".heic", ".heif", ".ico", ".jp2", ".jxl", ".psd", ".svg", ".tga")
"""Endings of pictures that can't be read; leaving them out would change the data without a word."""
JUNK_FOLDERS = ("$RECYCLE.BIN", "@eaDir", "System Volume Information", "__MACOSX", "lost+found")
"""Folders that systems leave behind. Those whose names begin with a dot are junk as well, and so are such files."""


@dataclass
class ImageFolder(Dataset[Any]):
    """Pictures and labels, in order of class, folder and name.

    Attributes:
        root: The folder.
        classes: Names of the classes, sorted; a label is a place in them.
        samples: Path and label of each picture.
        transform: Applied to each picture.
    """

    root: str
    classes: list[str]
    samples: list[tuple[str, int]]
    transform: Callable[[Any], Any] | None = None

    @classmethod
    def scan(cls, root: Path) -> ImageFolder:
        """List a folder.

        Raises:
            InputError: A folder can't be read or is there twice, a class has no picture, there are fewer than two
                classes, or a picture is no regular file or can't be read by its ending.
        """
        try:
            return cls._scan(root)
        except OSError as error:
            raise InputError(f"images under {root}: {error.filename}: {error.strerror}") from error

    @classmethod
    def _scan(cls, root: Path) -> ImageFolder:
        seen = {_identity(root): str(root)}
        classes = sorted(entry.name for entry in _entries(root) if entry.is_dir() and not _is_junk(entry.name))
        if len(classes) < 2:
            found = f"only the class {classes[0]}" if classes else "no folder of a class"
            raise InputError(f"images under {root}: holds {found}; give two or more classes a folder each")
        samples: list[tuple[str, int]] = []
        for label, name in enumerate(classes):
            folders = sorted(_folders(root, str(root / name), seen))
            paths = [os.path.join(folder, file) for folder, files in folders for file in sorted(files)]
            if not paths:
                raise InputError(
                    f"images under {root}: the class {name} has no picture ({', '.join(EXTENSIONS)}); add some to its "
                    "folder, or remove it"
                )
            samples += [(path, label) for path in paths]
        return cls(str(root), classes, samples)

    @property
    def labels(self) -> list[int]:
        """The label of each picture."""
        return [label for _, label in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.samples[index]
        image = open_image(path)
        return (image if self.transform is None else self.transform(image)), label

    def files(self) -> dict[str, str]:
        """What a resumed run compares, to say which files have changed.

        Returns:
            For each class `train/class/` the number of its pictures and a hash of their names, and for pictures spread
            over the folder `train/class/name` a hash of their bytes. Characters other than ASCII are escaped.
        """
        part = os.path.basename(self.root)
        names: dict[str, list[str]] = {name: [] for name in self.classes}
        for path, label in self.samples:
            names[self.classes[label]].append(os.path.relpath(path, self.root))
        found = {f"{part}/{name}/": f"{len(inside)} {_hash(inside)}" for name, inside in names.items()}
        for path in (self.samples[index][0] for index in sample_indices(len(self))):
            found[f"{part}/{os.path.relpath(path, self.root)}"] = fingerprints.of_file(path, MAX_BYTES)
        return {ascii(name)[1:-1]: value for name, value in found.items()}


def _folders(root: Path, top: str, seen: dict[tuple[int, int], str]) -> Iterator[tuple[str, list[str]]]:
    """A folder and those in it, links followed, with the names of the pictures in each; every folder only once."""
    left = [top]
    while left:
        folder, files = left.pop(), list[str]()
        first = seen.setdefault(_identity(folder), folder)
        if first != folder:
            raise InputError(f"images under {root}: {folder} is {first} once more, by a link; remove the link")
        for entry in _entries(folder):
            if _is_junk(entry.name):
                continue
            if entry.is_dir():
                left.append(entry.path)
            elif _is_picture(entry):
                files.append(entry.name)
        yield folder, files


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)


def _is_picture(entry: os.DirEntry[str]) -> bool:
    """Whether a file is listed. Raises InputError for pictures that can't be read, OSError for a link to nothing."""
    ending = os.path.splitext(entry.name)[1].lower()
    if ending in OTHER_EXTENSIONS:
        raise InputError(f"image {entry.path}: {ending} can't be read; convert it to PNG, or remove it")
    if ending in EXTENSIONS and not entry.is_file():
        os.stat(entry.path)
        raise InputError(f"image {entry.path}: is a pipe or a device, not a file; remove it")
    return ending in EXTENSIONS


def _identity(folder: str | Path) -> tuple[int, int]:
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name in JUNK_FOLDERS


def _hash(names: list[str]) -> str:
    return fingerprints.of_arrays(np.frombuffer("\n".join(names).encode("utf-8", "surrogateescape"), np.uint8))[:16]
