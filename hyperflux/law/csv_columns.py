"""Two columns of a user's CSV file, as numbers."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from hyperflux.errors import InputError
from hyperflux.io.safe_read import read_text, shown

MAX_LIST = 300
"""Most characters of the column names that a message lists."""
MAX_BYTES = 1 << 20
"""Most bytes of a CSV file."""
MAX_POINTS = 10_000
"""Most points, where a law needs dozens."""


def read_columns(path: Path, first: str, second: str) -> tuple[list[float], list[float]]:
    """Read two columns by the names in the file's first line; rows where both cells are empty are skipped.

    Raises:
        InputError: The file cannot be read, lacks a column or has no rows, or a cell is not a number.
    """
    try:
        reader = csv.reader(io.StringIO(read_text(path, MAX_BYTES), newline=""), skipinitialspace=True)
        names = [name.strip() for name in next(filter(None, reader), ())]
        if not names:
            raise InputError(f"{path}: is empty; its first line has to name the columns")
        for name in (first, second):
            if names.count(name) != 1:
                how_many = "more than one" if name in names else "no"
                listed = ", ".join(names)[:MAX_LIST]
                raise InputError(f"{path}: has {how_many} column {shown(name)}, but {listed}; see --x and --y")
        place, other = names.index(first), names.index(second)
        cells = ((reader.line_num, _cell(row, place), _cell(row, other)) for row in reader)
        found = [(_number(path, line, first, x), _number(path, line, second, y)) for line, x, y in cells if x or y]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; --from takes a CSV file") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a readable CSV file ({error})") from error
    if not found:
        raise InputError(f"{path}: has no row below the names of its columns")
    if len(found) > MAX_POINTS:
        raise InputError(f"{path}: has {len(found):,} points; give {MAX_POINTS:,} or fewer")
    return [x for x, _ in found], [y for _, y in found]


def _cell(row: list[str], column: int) -> str:
    return row[column].strip() if column < len(row) else ""


def _number(path: Path, line: int, column: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"{path}: line {line}, column {column}: {shown(text)} is not a number") from error
