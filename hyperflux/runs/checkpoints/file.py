"""A checkpoint as one safetensors file: arrays by name, and everything else as JSON in the file's own metadata.

Nothing in it is ever executed. The checksum of all its bytes stands in its name, `000012-<checksum>.safetensors`: one
rename brings both, any damage is seen, and the file itself stays one that every reader of safetensors opens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from hyperflux.errors import InputError

FORMAT = 3
"""Version of the format; a file of another one is refused."""
HEADER_SIZE = 8
"""Bytes of a safetensors file that give the length of its header, where the metadata stand."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on: `facts` are plain values that JSON keeps, `arrays` numbers of any shape by name."""

    facts: dict[str, Any]
    arrays: Arrays

    def to_bytes(self) -> bytes:
        """The file's content."""
        arrays = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in self.arrays.items()}
        return save(arrays, {"format": str(FORMAT), "facts": json.dumps(self.facts)})

    @classmethod
    def from_bytes(cls, content: bytes) -> Checkpoint:
        """Arrays of its own, and the facts. Raises InputError for another format, also for another version of it."""
        try:
            size = int.from_bytes(content[:HEADER_SIZE], "little")
            metadata: Mapping[str, str] = json.loads(content[HEADER_SIZE : HEADER_SIZE + size])["__metadata__"]
            version = int(metadata["format"])
            if version != FORMAT:
                age, way = (
                    ("a newer", "upgrade it to go on") if version > FORMAT else ("an older", "go on with that one")
                )
                raise InputError(
                    f"is of format {version}, which {age} hyperflux has written; this one reads format {FORMAT}: {way}"
                )
            arrays = {name: np.array(array) for name, array in load(content).items()}
            return cls(json.loads(metadata["facts"]), arrays)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"is no checkpoint of hyperflux ({' '.join(str(error).split())})") from error


def checksum(content: bytes) -> str:
    """SHA-256 of the bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
