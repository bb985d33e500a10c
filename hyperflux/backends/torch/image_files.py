"""Image files and folders of them, of which nothing is trusted."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from hyperflux.errors import InputError
from hyperflux.io.safe_read import open_file

FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What an image may be, whatever its file is called: PIL knows others whose readers start schedules."""
MAX_PIXELS = 1 << 26
"""Of one image: a few kilobytes can claim far more."""


def open_image(path: str) -> Any:
    """The image as RGB. Raises InputError where the file is damaged, of another kind, or too large to be decoded."""
    from PIL import Image

    try:
        with open_file(Path(path)) as file, warnings.catch_warnings(action="ignore"):
            image = Image.open(file, formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS:,}")
            return image.convert("RGB")
    except Exception as error:  # decoders raise whatever they met in the file
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"image {path}: can't be read ({reason})") from error


def check_folder(folder: Path) -> None:
    """Raise InputError for a link inside a folder of images that leads back to a folder around it: it has no end."""
    for place, names, _ in os.walk(folder, followlinks=True):
        around = os.path.realpath(place)
        for name in names:
            link = Path(place, name)
            if link.is_symlink() and Path(around).is_relative_to(os.path.realpath(link)):
                raise InputError(f"images under {folder}: {link} is a link to a folder that holds it; remove it")
