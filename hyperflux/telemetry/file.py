"""telemetry.npz: the tables as one compressed NumPy file.

NumPy's format needs no other library and executes nothing when read. Each table becomes a data frame in one line:
`pandas.DataFrame(numpy.load("telemetry.npz")["layers"])`, and the same with `polars.DataFrame`.
"""

from __future__ import annotations

import io
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from hyperflux.errors import InputError
from hyperflux.io.archive import open_archive
from hyperflux.telemetry.columns import SCHEMA, Table, Tables

MAX_BYTES = 1 << 29
"""Most unpacked bytes of all tables: full telemetry of hundreds of layers takes less."""
MAX_ROWS = 1 << 20
"""Most rows of a table: full telemetry of a thousand layers has fewer."""
MAX_INTERVALS = 1 << 14
"""Most rows of the table of the network: full telemetry has about a thousand."""
MAX_MEMBERS = 100
"""Most files in the archive."""
PIECE = 1 << 20
"""Most bytes that are read or unpacked at once."""


def file_content(tables: Tables) -> bytes:
    """The bytes of a telemetry.npz with these tables."""
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **tables)
    return content.getvalue()


def read_tables(path: Path) -> Tables:
    """Read the tables of a telemetry.npz.

    Nothing in the file is trusted: sizes are compared with each other and with `MAX_BYTES` before memory is allocated,
    and nothing is unpickled.

    Raises:
        InputError: The file is missing, damaged, of another version, or too large.
    """
    try:
        with open_archive(path, PIECE) as archive:
            members = archive.infolist()
            if (asked := sum(member.file_size for member in members)) > MAX_BYTES or len(members) > MAX_MEMBERS:
                raise ValueError(f"asks for {asked:,} bytes in {len(members):,} tables")
            return {name: _table(archive, name) for name in SCHEMA}
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except (ValueError, KeyError, EOFError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = error.args[0] if error.args else "it ends too early"
        raise InputError(f"{path}: damaged or of another version ({reason}); rerun with its config.toml") from error


def _table(archive: zipfile.ZipFile, name: str) -> Table:
    """One table; its header must state exactly the bytes that follow."""
    with archive.open(f"{name}.npy") as member:
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(npy.read_magic(member))
        if read is None:
            raise ValueError(f"table {name} has another version of NumPy's format")
        with warnings.catch_warnings(action="ignore"):  # about old spellings in the header
            shape, _, dtype = read(member)
        if dtype != SCHEMA[name] or len(shape) != 1:
            raise ValueError(f"table {name} has other columns")
        if shape[0] > (most := MAX_INTERVALS if name == "network" else MAX_ROWS):
            raise ValueError(f"table {name} has {shape[0]:,} rows, more than {most:,}")
        size = shape[0] * dtype.itemsize
        if member.tell() + size != archive.getinfo(f"{name}.npy").file_size:
            raise ValueError(f"table {name} does not have the {shape[0]:,} rows that its header states")
        table = np.empty(shape[0], dtype)
        _fill(table.view(np.uint8), member)
        return table


def _fill(target: NDArray[np.uint8], file: IO[bytes]) -> None:
    """Read into an array, piece by piece, so that nothing is in memory twice. Raises EOFError where the file ends."""
    start = 0
    while start < len(target):
        piece = np.frombuffer(file.read(PIECE), np.uint8)
        if not len(piece):
            raise EOFError
        target[start : start + len(piece)] = piece
        start += len(piece)
