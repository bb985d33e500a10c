"""Writers of idx files for tests: MNIST's format, on made-up images."""

import gzip
import struct
from pathlib import Path

import numpy as np


def idx_bytes(array: np.ndarray) -> bytes:
    """The idx encoding of an array of unsigned bytes."""
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()


def write_mnist(data_dir: Path, *, zipped: bool = False, train: int = 64, test: int = 16) -> Path:
    """A small data set in MNIST's layout under `data_dir`; gives the folder of its files."""
    raw = data_dir / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        files = {
            f"{part}-images-idx3-ubyte": rng.integers(256, size=(count, 28, 28)),
            f"{part}-labels-idx1-ubyte": np.arange(count) % 10,
        }
        for name, array in files.items():
            content = idx_bytes(array)
            (raw / (name + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)
    return raw
