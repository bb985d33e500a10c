"""The reader of pictures: each mode that a format can hold is read as it was saved, or refused with the file's name."""

import os
import struct
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image, ImageCms

from hyperflux import InputError
from hyperflux.backends.torch import image_files
from hyperflux.backends.torch.image_files import MAX_ASPECT, MAX_BYTES, longer_side, open_image

SHAPES = array_shapes(min_dims=2, max_dims=2, max_side=9)
LOSSLESS = {"png": {}, "tif": {}, "bmp": {}, "ppm": {}, "webp": {"lossless": True, "exact": True}}
ORIENTATIONS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}
"""EXIF's orientations, as what makes the picture upright."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pictures")


def read(folder, image, ending, **how):
    path = folder / f"picture.{ending}"
    image.save(path, **how)
    return pixels(path)


def pixels(path):
    image = open_image(str(path))
    assert image.mode == "RGB"
    return np.asarray(image)


def three(grey):
    """Grey as RGB."""
    return np.repeat(np.asarray(grey, np.uint8)[..., None], 3, -1)


def write_tiff(path, size, bits, content, photometric, sample_format=1):
    """A TIFF file of these bits per channel, which Pillow reads and does not write."""
    values = struct.pack(f"<{len(bits)}H", *bits)
    at = 8 + 2 + 10 * 12 + 4
    many = (3, len(bits), at) if len(bits) > 1 else (3, 1, bits[0])
    tags = {256: size[0], 257: size[1], 258: many, 259: 1, 262: photometric, 273: at + len(values), 277: len(bits)}
    tags |= {278: size[1], 279: len(content), 339: sample_format}
    packed = [value if isinstance(value, tuple) else (4, 1, value) for value in tags.values()]
    entries = b"".join(struct.pack("<HHII", tag, *value) for tag, value in zip(tags, packed, strict=True))
    path.write_bytes(b"II*\x00\x08\x00\x00\x00" + struct.pack("<H", len(tags)) + entries + bytes(4) + values + content)


def bytes_of(*channels):
    return SHAPES.flatmap(lambda shape: arrays(np.uint8, (*shape, *channels)))


@pytest.mark.parametrize("ending", LOSSLESS)
@given(colours=bytes_of(3))
def test_rgb(folder, ending, colours):
    np.testing.assert_array_equal(read(folder, Image.fromarray(colours), ending, **LOSSLESS[ending]), colours)


@pytest.mark.parametrize("ending", ["png", "tif", "bmp", "ppm"])
@given(grey=bytes_of())
def test_grey(folder, ending, grey):
    np.testing.assert_array_equal(read(folder, Image.fromarray(grey), ending), three(grey))


@pytest.mark.parametrize("ending", ["png", "tif", "bmp", "ppm"])
@given(bits=SHAPES.flatmap(lambda shape: arrays(np.bool_, shape)))
def test_one_bit(folder, ending, bits):
    np.testing.assert_array_equal(read(folder, Image.fromarray(bits), ending), three(bits * 255))


@pytest.mark.parametrize("ending", ["png", "tif", "bmp"])
@given(indices=bytes_of(), palette=arrays(np.uint8, (256, 3)))
def test_palette(folder, ending, indices, palette):
    image = Image.frombytes("P", indices.shape[::-1], indices.tobytes())
    image.putpalette(palette.tobytes())
    np.testing.assert_array_equal(read(folder, image, ending), palette[indices])


@pytest.mark.parametrize("kind", ["png", "tif", "big-endian tif", "ppm"])
@given(deep=SHAPES.flatmap(lambda shape: arrays(np.uint16, shape)))
def test_grey_of_16_bits_keeps_its_eight_highest(folder, kind, deep):
    mode, ending = ("I;16B", "tif") if kind.startswith("big") else ("I;16", kind)
    content = deep.astype(">u2" if mode == "I;16B" else "<u2").tobytes()
    image = Image.frombytes(mode, deep.shape[::-1], content)
    if 0 < deep.max() < 256:
        with pytest.raises(InputError, match=rf"has 16 bits, but nothing brighter than {deep.max()} of 65,535"):
            read(folder, image, ending)
    else:
        np.testing.assert_array_equal(read(folder, image, ending), three(deep >> 8))


@given(deep=SHAPES.flatmap(lambda shape: arrays(np.uint16, shape)))
def test_white_is_zero_in_16_bits_too(folder, deep):
    image = Image.frombytes("I;16", deep.shape[::-1], deep.astype("<u2").tobytes())
    if not 0 < deep.max() < 256:
        np.testing.assert_array_equal(read(folder, image, "tif", tiffinfo={262: 0}), three(255 - (deep >> 8)))


def test_twelve_bits_fill_the_whole_range(folder):
    """Three bytes hold two pixels."""
    write_tiff(folder / "twelve.tif", (4, 1), [12], bytes.fromhex("000123fff800"), photometric=1)
    np.testing.assert_array_equal(pixels(folder / "twelve.tif"), three(np.array([[0, 0x12, 0xFF, 0x80]])))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
@given(colours=bytes_of(4), opaque=st.booleans())
def test_transparent_pixels_are_refused_and_an_alpha_that_hides_nothing_is_not(folder, ending, mode, colours, opaque):
    if opaque:
        colours[..., 3] = 255
    shown, kept = colours[..., :3], colours
    if mode == "LA":
        kept, shown = colours[..., 2:], three(colours[..., 2])
    image = Image.frombytes(mode, colours.shape[1::-1], np.ascontiguousarray(kept).tobytes())
    how = LOSSLESS[ending]
    if (colours[..., 3] < 255).any():
        with pytest.raises(InputError, match=rf"picture.{ending}: has transparent pixels.*without transparency"):
            read(folder, image, ending, **how)
    else:
        np.testing.assert_array_equal(read(folder, image, ending, **how), shown)


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16", "RGB"])
def test_one_colour_may_be_the_transparent_one(folder, mode):
    """A PNG file may name a colour, or a place in the palette, that is not shown."""
    shown = {"1": 255, "L": 200, "P": 3, "I;16": 51200, "RGB": (200, 100, 50)}[mode]
    hidden = {"1": 0, "L": 7, "P": 2, "I;16": 300, "RGB": (1, 2, 3)}[mode]
    image = Image.new(mode, (2, 2), shown)
    if mode == "P":
        image.putpalette(list(range(12)))
    grey = {"1": [255] * 3, "L": [200] * 3, "P": [9, 10, 11], "I;16": [200] * 3, "RGB": [200, 100, 50]}[mode]
    assert (read(folder, image, "png", transparency=hidden) == grey).all()
    image.putpixel((1, 0), hidden)
    with pytest.raises(InputError, match="has transparent pixels"):
        read(folder, image, "png", transparency=hidden)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "RGBX", "PA"])
def test_other_modes_of_tiff_are_turned_into_the_same_colours(folder, mode):
    colours = Image.fromarray(np.random.default_rng(0).integers(256, size=(9, 7, 3), dtype=np.uint8))
    image = colours.convert("P").convert("PA") if mode == "PA" else colours.convert(mode)
    wanted = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(read(folder, image, "tif"), wanted)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg(folder, mode):
    ramp = np.add.outer(np.arange(32), np.arange(24)).astype(np.uint8) * 4
    image = Image.fromarray(np.stack([ramp, ramp[::-1], ramp[:, ::-1]], -1)).convert(mode)
    found = read(folder, image, "jpg", quality=100, subsampling=0)
    assert np.abs(found.astype(int) - np.asarray(image.convert("RGB")).astype(int)).max() <= 4


UNFAITHFUL = {
    "I": "signed or floating-point numbers",
    "F": "signed or floating-point numbers",
    "LAB": r"CIE L\*a\*b\* colours",
}


@pytest.mark.parametrize("mode", UNFAITHFUL)
def test_what_has_no_colours_without_a_choice_is_refused(folder, mode):
    colours = Image.new("RGB", (3, 2), (10, 200, 30))
    profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
    image = (
        ImageCms.profileToProfile(colours, *profiles, outputMode="LAB")
        if mode == "LAB"
        else colours.convert("L").convert(mode)
    )
    with pytest.raises(InputError, match=rf"picture.tif: holds {UNFAITHFUL[mode]}.*save it with 8 or 16 bits"):
        read(folder, image, "tif")


@pytest.mark.parametrize(("mode", "bits"), [("L", 8), ("I;16", 16)])
def test_signed_numbers_are_no_colours(folder, mode, bits):
    with pytest.raises(InputError, match="holds signed or floating-point numbers"):
        read(folder, Image.new(mode, (3, 2), 100), "tif", tiffinfo={339: 2})


def test_floating_point_of_pfm_and_unsigned_32_bits_are_refused(folder):
    with pytest.raises(InputError, match="holds floating-point numbers"):
        read(folder, Image.new("F", (3, 2), 0.5), "ppm")
    write_tiff(folder / "unsigned.tif", (2, 1), [32], struct.pack("<2I", 70_000, 5), photometric=1)
    with pytest.raises(InputError, match="holds 32-bit numbers"):
        open_image(str(folder / "unsigned.tif"))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize(
    ("ending", "mode"),
    [*product(("png", "tif"), ("L", "RGB", "P", "I;16")), *product(("webp", "jpg"), ("L", "RGB"))],
)
def test_pictures_are_upright(folder, ending, mode, orientation):
    ramp = (np.arange(6 * 4).reshape(6, 4) * 10).astype(np.uint8)
    image = {
        "L": lambda: Image.fromarray(ramp),
        "RGB": lambda: Image.fromarray(three(ramp)),
        "P": lambda: Image.frombytes("P", (4, 6), ramp.tobytes()),
        "I;16": lambda: Image.frombytes("I;16", (4, 6), (ramp.astype("<u2") * 257).tobytes()),
    }[mode]()
    if mode == "P":
        image.putpalette([value for value in range(256) for _ in range(3)])
    exif = Image.Exif()
    exif[0x0112] = orientation
    how = {"lossless": True} if ending == "webp" else {"quality": 100} if ending == "jpg" else {}
    found = read(folder, image, ending, exif=exif, **how)
    wanted = three(ORIENTATIONS[orientation](ramp))
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted.astype(int)).max() <= (8 if ending == "jpg" else 0)
    assert longer_side(str(folder / f"picture.{ending}")) == 6
    assert open_image(str(folder / f"picture.{ending}"), wanted.shape[1::-1]).size == wanted.shape[1::-1]
    if wanted.shape[0] > wanted.shape[1]:
        with pytest.raises(InputError, match="is 4x6, the others are 6x4; bring them to one size"):
            open_image(str(folder / f"picture.{ending}"), (6, 4))


@given(colours=arrays(np.uint16, (2, 3, 3)))
def test_colours_of_16_bits_keep_their_eight_highest(folder, colours):
    path = folder / "deep.tif"
    write_tiff(path, (3, 2), [16, 16, 16], colours.astype("<u2").tobytes(), photometric=2)
    if colours.max() < 256:
        with pytest.raises(InputError, match="has 16 bits per channel, all black in the higher 8"):
            open_image(str(path))
    else:
        np.testing.assert_array_equal(pixels(path), colours >> 8)


@pytest.mark.parametrize("reader", [open_image, longer_side])
class TestBeforeAnythingIsDecoded:
    def test_strips(self, folder, reader):
        path = folder / "strip.png"
        Image.new("1", (MAX_ASPECT + 1, 1)).save(path)
        with pytest.raises(InputError, match=r"can't be read \(101x1 pixels, one side more than 100 times the other\)"):
            reader(str(path))

    def test_large_files(self, folder, reader):
        path = folder / "sparse.png"
        Image.new("1", (4, 4)).save(path)
        os.truncate(path, MAX_BYTES + 1)
        with pytest.raises(InputError, match=r"sparse.png: can't be read \(268,435,457 bytes, more than 268,435,456\)"):
            reader(str(path))

    def test_other_formats(self, folder, reader):
        path = folder / "really-a-gif.png"
        Image.new("L", (4, 4)).save(path, format="GIF")
        with pytest.raises(InputError, match=r"can't be read \(none of BMP, JPEG, PNG.*another picture in its place"):
            reader(str(path))


def test_another_size_is_refused_undecoded(folder, monkeypatch):
    path = folder / "large.png"
    Image.new("RGB", (400, 300)).save(path)
    monkeypatch.setattr(image_files, "_as_rgb", None)
    monkeypatch.setattr("PIL.ImageOps.exif_transpose", None)
    with pytest.raises(InputError, match=r"large.png: is 400x300, the others are 8x8"):
        open_image(str(path), (8, 8))
