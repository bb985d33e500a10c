"""Data sets and tables of numbers that are damaged, or were never any."""

import gzip
import io
import os
import struct
import zlib

import numpy as np
from bad_runs import KINDS, a_folder, a_link_outside
from front_door_case import Case, short
from idx_files import idx_bytes, write_mnist
from image_files import write_folder, write_image
from PIL import Image

MNIST = ["prune", "--dataset", "mnist", "--data-dir", "data"]
IMAGE_FOLDER = ["prune", "--dataset", "imagefolder", "--data-dir", "data", "--model", "resnet20"]


def idx(name, content, file="t10k-images-idx3-ubyte"):
    """MNIST with one file of another content: bytes, or a function that writes it."""

    def prepare(folder, material):
        target = write_mnist(folder / "data") / file.removesuffix(".gz")
        target.unlink()
        target = target.with_name(file)
        content(target) if callable(content) else target.write_bytes(content)

    return Case(f"{file} {name}", MNIST, prepare)


def header(*sizes, kind=8):
    return bytes([0, 0, kind, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes)


CONTENTS = {
    "empty": b"",
    "of other numbers": header(16, 28, 28, kind=13) + bytes(16 * 784 * 4),
    "of two axes": header(16, 784) + bytes(16 * 784),
    "of 80 exabytes": header(0xFFFFFFFF, 0xFFFFFFFF, 5),
    "of 64 GB": header(4096, 4096, 4096) + bytes(1000),
    "of no image": header(0, 28, 28),
    "of other images": header(16, 29, 28) + bytes(16 * 29 * 28),
    "of one image more": header(17, 28, 28) + bytes(17 * 784),
    "cut": header(16, 28, 28) + bytes(16 * 784 - 1),
    "too long": header(16, 28, 28) + bytes(16 * 784 + 1),
}

IDX = [
    *(idx(name, content) for name, content in CONTENTS.items()),
    *(idx(name, gzip.compress(content), "t10k-images-idx3-ubyte.gz") for name, content in CONTENTS.items()),
    *(idx(kind.__name__, kind) for kind in KINDS if kind is not a_link_outside),
    idx("not gzip", b"hello", "t10k-images-idx3-ubyte.gz"),
    idx("a bomb", gzip.compress(header(16, 28, 28) + bytes(200_000_000), 1), "t10k-images-idx3-ubyte.gz"),
    *(
        idx(name, content, f"train-{file}")
        for file, name, content in (
            ("images-idx3-ubyte", "of one value", idx_bytes(np.full((64, 28, 28), 7))),
            ("images-idx3-ubyte", "of one image", idx_bytes(np.tile(np.arange(28), (64, 28, 1)))),
            ("labels-idx1-ubyte", "of one class", idx_bytes(np.full(64, 3))),
        )
    ),
    Case("one sample", [*MNIST, "--train-samples", "1"], lambda folder, _: write_mnist(folder / "data")),
    Case(
        "one sample, NumPy",
        [*MNIST, "--train-samples", "1", "--backend", "numpy"],
        lambda folder, _: write_mnist(folder / "data"),
    ),
    idx("labels above 9", idx_bytes(np.full(16, 200)), "t10k-labels-idx1-ubyte"),
    idx("labels of no number", idx_bytes(np.arange(0)), "t10k-labels-idx1-ubyte"),
]


def images(name, spoil, size=(8, 8)):
    """A folder of images that `spoil(folder)` changes; the first class is `train/ant`."""
    return Case(f"images {name}", IMAGE_FOLDER, lambda folder, _: spoil(write_folder(folder / "data", size=size)))


def first(content):
    """The first image of all with another content."""

    def spoil(root):
        file = root / "train" / "ant" / "0.png"
        file.unlink()
        content(file) if callable(content) else file.write_bytes(content)

    return spoil


def black(size):
    """So many zeros, compressed piece by piece: few bytes."""
    packer = zlib.compressobj(1)
    pieces = [packer.compress(bytes(min(1 << 20, size - start))) for start in range(0, size, 1 << 20)]
    return b"".join([*pieces, packer.flush()])


NEXT_TO_NOTHING = zlib.compress(bytes(1000))


def png(width, height, content=NEXT_TO_NOTHING):
    """A PNG file that claims this size and holds next to nothing, unless other compressed content is given."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    sizes = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", sizes), (b"IDAT", content), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(executed) (w) file closefile showpage\n"


def links_to_itself(root):
    """Two links a folder to a folder above: each level has twice as many paths as the one before."""
    for name in ("again", "more"):
        (root / "train" / "ant" / name).symlink_to(root / "train" / "ant")


def in_mode(mode, ending="tif"):
    """The first image of all in another mode of Pillow's, half transparent if the mode has transparency."""

    def spoil(root):
        file = root / "train" / "ant" / "0.png"
        image = Image.open(file).convert("L").convert(mode)
        if mode == "LA":
            image.putalpha(127)
        file.unlink()
        image.save(file.with_suffix(f".{ending}"))

    return spoil


def later(content):
    """An image in the middle of a class with another content."""

    def spoil(root):
        file = root / "train" / "bee" / "3.png"
        file.unlink()
        content(file) if callable(content) else file.write_bytes(content)

    return spoil


def all_the_same(root):
    same = (root / "train" / "ant" / "0.png").read_bytes()
    for file in (root / "train").rglob("*.png"):
        file.write_bytes(same)


def wide(path):
    path.write_bytes(png(60_000_000, 1, black(60_000_000 * 3 + 1)))


def large(path):
    path.write_bytes(png(8000, 8000, black(8000 * (8000 * 3 + 1))))


def one_class(root):
    for part in ("train", "test"):
        (root / part / "ant").rename(root / part / ".ant")


def linked_twice(root):
    (root / "train" / "cow").symlink_to(root / "train" / "ant")


def links_to_each_other(root):
    (root / "train" / "ant" / "b").symlink_to(root / "train" / "bee")
    (root / "train" / "bee" / "a").symlink_to(root / "train" / "ant")


def doubled_links(root, levels=30):
    """Folders of two links each to the next: so many levels have a billion paths."""
    for level in range(levels):
        folder = root / "more" / str(level)
        folder.mkdir(parents=True)
        for name in ("a", "b"):
            (folder / name).symlink_to(f"../{level + 1}")
    (root / "more" / str(levels)).mkdir()
    (root / "train" / "ant" / "more").symlink_to("../../more/0")


def many_scans(path):
    """A progressive JPEG of 80 kB, whose last scan comes again and again; each takes as long as the first."""
    content = io.BytesIO()
    Image.new("L", (8, 8)).save(content, "JPEG", progressive=True)
    whole = content.getvalue()
    last = whole[whole.rindex(b"\xff\xda") : -2]
    path.with_suffix(".jpg").write_bytes(whole[:-2] + last * 1000 + whole[-2:])


def stray(root):
    """Files that belong to no class, and one image of another size."""
    (root / "train" / "notes.txt").write_text("mine")
    (root / "train" / "ant" / "notes.txt").write_text("mine")
    (root / "train" / "ant" / "folder.png").mkdir()
    write_image(root / "train" / "bee" / "x.png", np.zeros((8, 9, 3)))


def unreadable_names(root):
    os.mkdir(os.fsencode(root / "train") + b"/\xff\x1b[31m")


IMAGES = [
    *(images(f"empty, {size}", first(b""), size) for size in ((8, 8), (70, 70))),
    *(images(f"of {width}x{height}", first(png(width, height)))
      for width, height in ((9, 8), (0, 8), (50_000, 50_000), (8200, 8200), (0x7FFFFFFF, 0x7FFFFFFF), (60_000_000, 1))),
    images("of PostScript", first(POSTSCRIPT)),
    images("of GIF", first(b"GIF89a\x08\x00\x08\x00\x00\x00\x00;")),
    images("of text", first(b"hello")),
    images("cut PNG", first(png(8, 8)[:40])),
    images("cut JPEG", first(b"\xff\xd8\xff\xe0\x00\x10JFIF")),
    images("cut TIFF", first(b"II*\x00\x08\x00\x00\x00\xff\xff")),
    images("cut WEBP", first(b"RIFF\xff\xff\xff\xffWEBPVP8 ")),
    images("cut BMP", first(b"BM" + bytes(60))),
    images("PPM of 10 GB", first(b"P6 100000 35000 255\n")),
    *(images(kind.__name__, first(kind)) for kind in KINDS if kind not in (a_folder, a_link_outside)),
    images("links to itself", links_to_itself),
    *(images(f"{kind.__name__} in the middle, {size}", later(kind), size)
      for size in ((8, 8), (70, 70)) for kind in KINDS if kind not in (a_folder, a_link_outside)),
    *(images(f"of mode {mode}", in_mode(mode)) for mode in ("I", "F", "LA")),
    *(images(f"{one.__name__} in the middle", later(one)) for one in (wide, large)),
    images("wide, the first of large ones", first(wide), (70, 70)),
    *(images(f"all the same, {size}", all_the_same, size) for size in ((8, 8), (70, 70))),
    images("of one class", one_class),
    images("linked twice", linked_twice),
    images("links to each other", links_to_each_other),
    *(images(f"links doubled, {size}", doubled_links, size) for size in ((8, 8), (70, 70))),
    *(images(f"of many scans {where.__name__}", where(many_scans)) for where in (first, later)),
    images("GIF by name", lambda root: (root / "train" / "ant" / "9.gif").write_bytes(b"GIF89a")),
    images("stray files", stray),
    images("names that are no text", unreadable_names),
    images("a class without images", lambda root: [(root / part / "cow").mkdir() for part in ("train", "test")]),
    images("a pipe for a folder", lambda root: [(root / "train").rename(root / "kept"), os.mkfifo(root / "train")]),
    images("no test part", lambda root: (root / "test").rename(root / "tset")),
]  # fmt: skip


def table(content, *options):
    """A CSV file for `hyperflux law --from`: bytes, text, or a function that writes it."""

    def prepare(folder, material):
        file = folder / "bad.csv"
        if callable(content):
            content(file)
        else:
            file.write_bytes(content if isinstance(content, bytes) else content.encode())

    name = content.__name__ if callable(content) else short(content)
    return Case(f"table {name}", ["law", "--from", "bad.csv", *options], prepare)


def points(*rows):
    return "pressure,density\n" + "\n".join(rows)


TABLES = [
    *(table(content) for content in (
        b"", b"\xff", b"\x00", b"pressure,density\n\x00,\x00\n", b"pressure,density", "\x1b[31m,\x1b]0;x\x07\n1,2\n",
        "pressure,density\n" + "1" * 200_000 + ",0.5\n", "pressure,pressure,density\n1,2,0.5\n",
        '"pressure,density\n1,2', "density\n0.5\n", "pressure\t density\n1\t0.5\n", "\ufeff" * 3 + points("1,0.5"),
        "," * 200_000,
    )),
    *(table(points(*rows)) for rows in (
        ("1,0.5",), ("1,0.5", "2,0.4"), ("1,0.5", "2", "3,0.2"), ("1,0.5", "2,nan", "4,0.1"),
        ("inf,0.5", "2,0.4", "4,0.1"),
        ("-1,0.5", "2,0.4", "4,0.1"), ("1,0.5", "2,1.5", "4,0.1"), ("1,0.5", "1,0.5", "1,0.5"), ("1,0,5",) * 3,
        ("1,0.5", "2,0.5", "4,0.5"), ("1e999,0.5", "2,0.4", "4,0.2"), ("\x1b[31m,0.5",), ("0x10,0.5", "2,0.4", "4,0.3"),
        ("1,0.5", "2,0.4", "4,-0.1"), ("1,", ",0.5"), ("1" * 500 + ",0.5",),
    )),
    *(table(kind) for kind in KINDS if kind is not a_link_outside),
    table(points("1,0.5", "2,0.4", "4,0.3"), "--x", "\x1b[31m"),
    table(points("1,0.5", "2,0.4", "4,0.3"), "--out", "a\x00b"),
]  # fmt: skip
