"""`report.html` and `report.md` of one or several runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from hyperflux.errors import InputError, RunError
from hyperflux.io.atomic_write import write_together
from hyperflux.report.markdown import markdown_report
from hyperflux.report.page import html_page
from hyperflux.report.run import ReportedRun


def default_folder(folders: Sequence[Path]) -> Path:
    """A run's own folder; for several runs, the folder that holds them all."""
    if len(folders) == 1:
        return folders[0]
    return Path(os.path.relpath(os.path.commonpath([Path(os.path.realpath(folder)).parent for folder in folders])))


def write_report(runs: Sequence[ReportedRun], folder: Path) -> Path:
    """Write both files and return the page's path. Raises InputError if they can't be written."""
    texts = {"report.html": html_page(runs), "report.md": markdown_report(runs)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_together(folder, {name: text.encode("utf-8", "replace") for name, text in texts.items()})
    except OSError as error:
        raise InputError(f"{folder}: cannot be written to ({error.strerror}); name a folder with --out") from error
    except RunError as error:
        raise InputError(f"{error}; name a folder with --out") from error
    return folder / "report.html"
