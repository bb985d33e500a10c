"""telemetry.npz: the tables as one compressed NumPy file.

NumPy's own format needs no further library, loads without executing anything, and its structured arrays become data
frames in one line: `pandas.DataFrame(numpy.load("telemetry.npz")["layers"])`, and the same with `polars.DataFrame`.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np

from hyperflux.errors import InputError
from hyperflux.telemetry.columns import SCHEMA, Tables


def file_content(tables: Tables) -> bytes:
    """The file's bytes."""
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **tables)
    return content.getvalue()


def read_tables(path: Path) -> Tables:
    """Tables of a telemetry.npz. Raises InputError where it is damaged or of another version."""
    try:
        with np.load(path, allow_pickle=False) as file:
            tables = {name: file[name] for name in SCHEMA}
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: damaged or of another version ({error}); rerun with its config.toml") from error
    for name, table in tables.items():
        if table.dtype != SCHEMA[name]:
            raise InputError(f"{path}: table {name} is of another version; rerun with its config.toml")
    return tables
