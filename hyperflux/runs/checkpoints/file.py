"""A checkpoint as one safetensors file: arrays by name, and everything else as JSON in the file's own metadata.

Reading it executes nothing. The name carries the checksum of all bytes, `000012-<checksum>.safetensors`: one rename
publishes both, any damage is detected, and every reader of safetensors can open the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from hyperflux.errors import InputError
from hyperflux.io.safe_read import parse_json
from hyperflux.schedules.base import LayerCount
from hyperflux.telemetry import recorder
from hyperflux.telemetry.levels import level

FORMAT = 3
"""Version of the format; files of other versions are refused."""
HEADER_SIZE = 8
"""First bytes of a safetensors file: the length of its header, which holds the metadata."""

MAX_HEADER = 1 << 26
"""Most bytes of a header: a hundred thousand arrays, or the rows of the longest run, take fewer."""
BYTES_PER_NUMBER = 128
"""Bytes of a checkpoint per number of its network, telemetry apart: w, t and their moments, in float64."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to continue.

    Attributes:
        facts: Plain values that JSON can represent.
        arrays: Arrays by name, of any shape.
    """

    facts: dict[str, Any]
    arrays: Arrays

    def to_bytes(self) -> bytes:
        """The file's content."""
        arrays = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in self.arrays.items()}
        return save(arrays, {"format": str(FORMAT), "facts": json.dumps(self.facts)})

    @classmethod
    def from_bytes(cls, content: bytes) -> Checkpoint:
        """Read a file's content, copying the arrays. Raises InputError for another format or another version of it."""
        try:
            size = int.from_bytes(content[:HEADER_SIZE], "little")
            if size > MAX_HEADER:
                raise ValueError(f"its header has {size:,} bytes, more than {MAX_HEADER:,}")
            header = parse_json(content[HEADER_SIZE : HEADER_SIZE + size].decode())
            metadata: Mapping[str, str] = header["__metadata__"]
            version = int(metadata["format"])
            if version != FORMAT:
                age, way = (
                    ("a newer", "upgrade hyperflux") if version > FORMAT else ("an older", "continue with that version")
                )
                raise InputError(
                    f"has format {version}, written by {age} hyperflux; this one reads format {FORMAT}: {way}"
                )
            arrays = {name: np.array(array) for name, array in load(content).items()}
            return cls(parse_json(metadata["facts"]), arrays)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"is not a checkpoint of hyperflux ({' '.join(str(error).split())})") from error


def most_bytes(network: Arrays, layers: Sequence[LayerCount], telemetry: str) -> int:
    """Most bytes of a checkpoint of a run.

    Args:
        network: The network's tensors.
        layers: Its prunable parameters.
        telemetry: The run's level of telemetry.
    """
    watched = level(telemetry)
    recorded = 0 if watched is None else recorder.most_bytes(layers, watched)
    return MAX_HEADER + BYTES_PER_NUMBER * sum(array.size for array in network.values()) + recorded


def checksum(content: bytes) -> str:
    """SHA-256 of the bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
