"""Writers of image data sets for tests: folders of PNG files and CIFAR's pickled batches, on made-up images."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
from PIL import Image


def write_folder(root: Path, *, size=(8, 8), classes=("ant", "bee"), train: int = 6, test: int = 4) -> Path:
    """`train/` and `test/` with a folder a class; images (height, width, 3) of noise."""
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for number in range(count):
            name = classes[number % len(classes)]
            write_image(root / part / name / f"{number}.png", rng.integers(256, size=(*size, 3)))
    return root


def write_image(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def write_cifar10(root: Path, monkeypatch) -> np.ndarray:
    """A small CIFAR-10 in torchvision's layout, whose checksums torchvision is told; gives its training images."""
    from torchvision.datasets import CIFAR10

    folder = root / CIFAR10.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)

    def write(name: str, content: object) -> list[str]:
        coded = pickle.dumps(content)
        (folder / name).write_bytes(coded)
        return [name, hashlib.md5(coded).hexdigest()]

    def batch(count: int) -> dict[str, object]:
        return {"data": rng.integers(256, size=(count, 3072), dtype=np.uint8), "labels": list(range(count))}

    batches = [batch(4), batch(3)]
    train = [write(f"data_batch_{number}", content) for number, content in enumerate(batches, 1)]
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", [write("test_batch", batch(5))])
    name, checksum = write("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": checksum})
    return np.concatenate([content["data"] for content in batches]).reshape(-1, 3, 32, 32)
