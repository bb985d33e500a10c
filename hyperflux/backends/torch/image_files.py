"""The one reader of pictures: nothing in a file is trusted, and what can't be read faithfully is refused."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from hyperflux.errors import DataFileError, InputError
from hyperflux.io.safe_read import open_file

FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are read, by content and not by name. PIL knows others, whose readers may start programs."""
MAX_BYTES = 1 << 28
"""Most bytes of a picture's file."""
MAX_PIXELS = 1 << 26
"""Most pixels of an image: a file of a few kilobytes can announce far more."""
MAX_ASPECT = 100
"""Largest ratio of an image's sides: the longer side of a strip grows with it when the shorter is resized."""
MAX_SCANS = 500
"""Most scans of a progressive JPEG, each of which takes as long as an image, and may take 90 bytes; usual are ten."""
REPAIR = "repair it, or put another picture in its place"

_PLAIN = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr")
"""PIL's modes of 8 bits or fewer per channel, apart from those with transparency."""
_WITH_ALPHA = {"LA": "LA", "PA": "RGBA", "RGBA": "RGBA", "La": "LA", "RGBa": "RGBA"}
"""Modes with transparency, and the mode that shows their alpha, not multiplied into the colours."""
_UNSIGNED, _UNTYPED = 1, 4
"""TIFF's sample formats of plain pictures."""
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO = 0


def open_image(path: str, size: tuple[int, int] | None = None) -> Any:
    """A picture as 8-bit RGB, upright as its EXIF orientation says.

    Grey of 9 to 16 bits keeps its eight highest bits, as Pillow's colours of 16 bits do.

    Args:
        path: The file.
        size: Width and height that it must have; another size is refused before it is decoded.

    Raises:
        DataFileError: The file is damaged, of another format, larger than `MAX_BYTES`, `MAX_PIXELS` or `MAX_ASPECT`
            allow, or of another size; or its pixels have no 8-bit colours without a choice that only its owner can
            make: transparent pixels, floating point, 32-bit and signed numbers, CIE L*a*b*.
    """
    from PIL import ImageOps

    with _header(path) as image:
        if size is not None and sorted(image.size) != sorted(size):  # an EXIF orientation may exchange the sides
            raise _wrong_size(path, image.size, size)
        deep = ";16" in str(image.tile)  # decoding forgets it
        ImageOps.exif_transpose(image, in_place=True)
        if size is not None and image.size != size:
            raise _wrong_size(path, image.size, size)
        return _as_rgb(image, deep)


def longer_side(path: str) -> int:
    """The larger of a picture's width and height, from its header. Raises DataFileError as `open_image`."""
    with _header(path) as image:
        return int(max(image.size))


@contextmanager
def _header(path: str) -> Iterator[Any]:
    """A picture that is opened and whose sizes are checked, but not decoded. All errors leave as DataFileError."""
    from PIL import Image, UnidentifiedImageError

    try:
        with open_file(Path(path)) as file, warnings.catch_warnings(action="ignore"):
            if (length := os.fstat(file.fileno()).st_size) > MAX_BYTES:
                raise ValueError(f"{length:,} bytes, more than {MAX_BYTES:,}")
            image = Image.open(file, formats=FORMATS)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"{width}x{height} pixels, more than {MAX_PIXELS:,}")
            if max(width, height) > MAX_ASPECT * min(width, height):
                raise ValueError(f"{width}x{height} pixels, one side more than {MAX_ASPECT} times the other")
            if "progressive" in image.info and _scans(file) > MAX_SCANS:
                raise ValueError(f"more than {MAX_SCANS} scans")
            yield image
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise DataFileError(f"image {path}: can't be read (none of {', '.join(FORMATS)}); {REPAIR}") from error
    except _NotFaithfulError as error:
        raise DataFileError(f"image {path}: {error}") from error
    except Exception as error:  # decoders raise whatever they met in the file
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataFileError(f"image {path}: can't be read ({reason}); {REPAIR}") from error


def _scans(file: BinaryIO) -> int:
    """The number of marks that begin a scan in a JPEG file, whose place for reading stays as it was."""
    place, count, before = file.tell(), 0, b""
    file.seek(0)
    while piece := file.read(1 << 20):
        count += (before + piece).count(b"\xff\xda")
        before = piece[-1:]
    file.seek(place)
    return count


class _NotFaithfulError(ValueError):
    """A picture that is whole, but has no 8-bit colours without a choice. The message names the way out."""


def _as_rgb(image: Any, deep: bool) -> Any:
    """A decoded picture as RGB; `deep` if the file has colours of 16 bits, of which PIL keeps the higher 8."""
    _require_unsigned(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _from_deep_grey(image)
    if image.mode not in (*_PLAIN, *_WITH_ALPHA):
        kind = {"I": "32-bit numbers", "F": "floating-point numbers", "LAB": "CIE L*a*b* colours"}.get(image.mode)
        raise _NotFaithfulError(
            f"holds {kind or f'pixels of mode {image.mode}'}, which no one rule turns into colours; save it with 8 or "
            "16 bits per channel, in grey or RGB"
        )
    _require_opaque(image)
    rgb = image.convert(_WITH_ALPHA.get(image.mode, image.mode)).convert("RGB")
    if deep and rgb.getextrema() == ((0, 0),) * 3:
        raise _NotFaithfulError("has 16 bits per channel, all black in the higher 8; save it with 8 bits per channel")
    return rgb


def _require_unsigned(image: Any) -> None:
    """Raise for TIFF's signed and floating samples, which PIL partly takes for unsigned ones."""
    formats = _tags(image).get(_SAMPLE_FORMAT, ())
    if not set(formats) <= {_UNSIGNED, _UNTYPED}:
        raise _NotFaithfulError(
            "holds signed or floating-point numbers, which no one rule turns into colours; save it with 8 or 16 bits "
            "per channel, unsigned"
        )


def _from_deep_grey(image: Any) -> Any:
    """Grey of 9 to 16 bits as RGB: its eight highest bits."""
    from PIL import Image

    tags = _tags(image)
    bits = int(tags.get(_BITS_PER_SAMPLE, (16,))[0])
    values = np.asarray(image)
    if _is_any(values, image.info.get("transparency")):
        raise _transparent()
    brightest = int(values.max())
    if 0 < brightest < 1 << (bits - 8):
        raise _NotFaithfulError(
            f"has {bits} bits, but nothing brighter than {brightest} of {(1 << bits) - 1:,}, and would be read as "
            "black; scale it to the whole range, or save it with 8 bits"
        )
    grey = np.empty(values.shape, np.uint8)
    for row in range(len(values)):  # one at a time, for the memory
        grey[row] = values[row] >> (bits - 8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # PIL inverts fewer bits, but not these
        np.subtract(255, grey, out=grey)
    return Image.fromarray(grey).convert("RGB")


def _require_opaque(image: Any) -> None:
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        alpha = image.convert(_WITH_ALPHA.get(image.mode, "RGBA")).getchannel("A")
        if alpha.getextrema()[0] < 255:
            raise _transparent()


def _is_any(values: NDArray[Any], wanted: object) -> bool:
    return isinstance(wanted, int) and bool((values == wanted).any())


def _transparent() -> _NotFaithfulError:
    return _NotFaithfulError(
        "has transparent pixels, and what shines through is not known; lay it on a background and save it without "
        "transparency"
    )


def _tags(image: Any) -> Any:
    """The tags of a TIFF picture; none of other formats."""
    return image.tag_v2 if image.format == "TIFF" else {}


def _wrong_size(path: str, found: tuple[int, int], wanted: tuple[int, int]) -> DataFileError:
    sizes = [f"{width}x{height}" for width, height in (found, wanted)]
    return DataFileError(f"image {path}: is {sizes[0]}, the others are {sizes[1]}; bring them to one size")
