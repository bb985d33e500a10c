"""Tables as the content of files: CSV for spreadsheets and data frames, JSON for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any


def csv_file(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """CSV with a heading; all rows have the keys of the first. Raises IndexError for no rows."""
    table, text = list(rows), io.StringIO(newline="")
    writer = csv.DictWriter(text, table[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue().encode()


def json_file(value: Any) -> bytes:
    """Indented JSON. Raises ValueError for a number that JSON does not have."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
