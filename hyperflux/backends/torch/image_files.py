"""Images and folders of images, read safely: nothing in them is trusted."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from hyperflux.errors import InputError
from hyperflux.io.safe_read import open_file

FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are read, by content and not by name. PIL knows others, whose readers may start programs."""
MAX_PIXELS = 1 << 26
"""Most pixels of an image: a file of a few kilobytes can announce far more."""


def open_image(path: str) -> Any:
    """An image as RGB. Raises InputError for a damaged file, another format, and more than `MAX_PIXELS`."""
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
    """Raise InputError for a link to a folder that contains the link: walking it would never end."""
    for place, names, _ in os.walk(folder, followlinks=True):
        around = os.path.realpath(place)
        for name in names:
            link = Path(place, name)
            if link.is_symlink() and Path(around).is_relative_to(os.path.realpath(link)):
                raise InputError(f"images under {folder}: {link} is a link to a folder that holds it; remove it")
