"""The idx format of MNIST's files: big-endian sizes, then bytes."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hyperflux.errors import InputError
from hyperflux.io.safe_read import open_file

UNSIGNED_BYTE = 0x08
MAX_BYTES = 1 << 26
"""Most bytes of an array; MNIST's largest has 47 million."""


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read an array of unsigned bytes with `dimensions` axes from `path` or, if that is missing, from `path`.gz.

    No more is read than the header announces, and no more memory is taken than the file fills.

    Raises:
        InputError: Neither file exists, or it is not an idx file of that kind, or not as long as its header announces.
    """
    zipped = path.with_name(path.name + ".gz")
    found = next((file for file in (path, zipped) if os.path.isfile(file)), None)
    if found is None:
        raise InputError(f"{path} (or {zipped.name}) is missing; give the folder that holds MNIST/raw by --data-dir")
    try:
        with open_file(found) as opened, gzip.open(opened, "rb") if found == zipped else opened as file:
            head = file.read(4 + 4 * dimensions)
            if len(head) < 4 + 4 * dimensions or head[:4] != bytes([0, 0, UNSIGNED_BYTE, dimensions]):
                raise InputError(f"{found}: not an idx file of bytes with {dimensions} axes")
            shape = struct.unpack(f">{dimensions}I", head[4:])
            count = math.prod(shape)
            if count > MAX_BYTES:
                raise InputError(f"{found}: the header announces {count:,} bytes, more than {MAX_BYTES:,}")
            # In pieces: a header that announces a huge array costs no more memory than the file fills.
            content = bytearray()
            while piece := file.read(min(1 << 20, count + 1 - len(content))):
                content += piece
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{found}: cannot be read ({reason}); get the file again") from error
    if len(content) != count:
        length = "more than that" if len(content) > count else f"{len(content):,}"
        raise InputError(f"{found}: the header announces {count:,} bytes, the file has {length}; get the file again")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)
