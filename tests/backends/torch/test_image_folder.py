"""Folders of images: what is listed, what is junk, and what is refused before a picture is read."""

import os
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import write_folder
from PIL import Image

from hyperflux import InputError
from hyperflux.backends.torch.image_files import MAX_BYTES
from hyperflux.backends.torch.image_folder import EXTENSIONS, JUNK_FOLDERS, OTHER_EXTENSIONS, ImageFolder

JUNK_FILES = (
    ".DS_Store",
    "._0.png",
    ".hidden.jpg",
    "Thumbs.db",
    "desktop.ini",
    "notes.txt",
    "labels.csv",
    "0.png~",
    "png",
)
HIDDEN = st.text("abc", min_size=1, max_size=3).map(".{}".format)
PICTURE = b"a picture, which listing does not open"


@pytest.fixture
def part(tmp_path):
    return write_folder(tmp_path / "images") / "train"


def relative(folder, root):
    return [(os.path.relpath(path, root), label) for path, label in folder.samples]


@given(
    folders=st.lists(st.sampled_from(JUNK_FOLDERS) | HIDDEN, max_size=4),
    files=st.lists(st.sampled_from(JUNK_FILES) | HIDDEN.map("{}.png".format), max_size=4),
    places=st.lists(st.sampled_from(["", "ant", "bee", "ant/inner"]), min_size=1, max_size=3),
)
def test_junk_changes_nothing(tmp_path_factory, folders, files, places):
    root = tmp_path_factory.mktemp("junk")
    try:
        part = write_folder(root) / "train"
        (part / "ant" / "inner").mkdir()
        before = ImageFolder.scan(part)
        for place in places:
            for name in folders:
                (part / place / name / "deeper").mkdir(parents=True, exist_ok=True)
                (part / place / name / "0-checkpoint.png").write_bytes(PICTURE)
                (part / place / name / "deeper" / "1.gif").write_bytes(PICTURE)
            for name in files:
                if not (part / place / name).exists():
                    (part / place / name).write_bytes(b"\0\5\x16\7")
        after = ImageFolder.scan(part)
        assert (after.classes, after.samples, after.files()) == (before.classes, before.samples, before.files())
    finally:
        shutil.rmtree(root)


@given(
    st.dictionaries(
        st.text("abcAB_ ü", min_size=1, max_size=3).filter(lambda name: name.strip() == name),
        st.lists(
            st.tuples(st.sampled_from(["", "x/", "x/y/", "z/"]), st.text("01ab", min_size=1, max_size=2),
                      st.sampled_from(EXTENSIONS), st.booleans()),
            min_size=1, max_size=5,
        ),
        min_size=2, max_size=4,
    )
)  # fmt: skip
def test_the_order_is_torchvisions(tmp_path_factory, classes):
    datasets = pytest.importorskip("torchvision.datasets")
    root = tmp_path_factory.mktemp("order")
    try:
        for name, files in classes.items():
            for place, stem, ending, capitals in files:
                (root / name / place).mkdir(parents=True, exist_ok=True)
                (root / name / place / (stem + (ending.upper() if capitals else ending))).write_bytes(PICTURE)
        theirs = datasets.DatasetFolder(str(root), loader=None, extensions=EXTENSIONS)
        ours = ImageFolder.scan(root)
        assert (ours.classes, ours.samples, ours.labels) == (theirs.classes, theirs.samples, theirs.targets)
    finally:
        shutil.rmtree(root)


def test_a_class_without_pictures_is_named(part):
    (part / "cow").mkdir()
    (part / "cow" / ".hidden.png").write_bytes(PICTURE)
    with pytest.raises(
        InputError, match=r"the class cow has no picture \(\.bmp.*; add some to its folder, or remove it"
    ):
        ImageFolder.scan(part)


@pytest.mark.parametrize("kept", [0, 1])
def test_one_class_is_not_enough(part, kept):
    for name in ("ant", "bee")[kept:]:
        shutil.rmtree(part / name)
    (part / ".ipynb_checkpoints").mkdir()
    found = "holds only the class ant" if kept else "holds no folder of a class"
    with pytest.raises(InputError, match=f"train: {found}; give two or more classes a folder each"):
        ImageFolder.scan(part)


@pytest.mark.parametrize("ending", OTHER_EXTENSIONS)
def test_pictures_that_can_not_be_read_are_not_left_out_in_silence(part, ending):
    (part / "ant" / f"9{ending.upper()}").write_bytes(PICTURE)
    with pytest.raises(
        InputError, match=rf"9{ending.upper()}: {ending} can't be read; convert it to PNG, or remove it"
    ):
        ImageFolder.scan(part)


class TestLinks:
    def test_a_folder_elsewhere_and_a_picture_elsewhere_are_listed(self, part, tmp_path):
        (part / "ant").rename(tmp_path / "elsewhere")
        (part / "ant").symlink_to(tmp_path / "elsewhere")
        (part / "bee" / "9.png").symlink_to(part / "bee" / "1.png")
        names = [name for name, _ in relative(ImageFolder.scan(part), part)]
        assert names == ["ant/0.png", "ant/2.png", "ant/4.png", "bee/1.png", "bee/3.png", "bee/5.png", "bee/9.png"]

    @pytest.mark.parametrize(("link", "target"), [
        ("ant/again", "ant"), ("ant/all", "."), ("cow", "."), ("cow", "ant"), ("bee/more", "ant"),
        ("ant/up", ".."),
    ])  # fmt: skip
    def test_a_folder_that_is_there_twice_is_refused(self, part, link, target):
        (part / link).symlink_to(part / target)
        with pytest.raises(InputError, match="once more, by a link; remove the link") as caught:
            ImageFolder.scan(part)
        assert "\n" not in str(caught.value)

    def test_folders_that_hold_each_other(self, part):
        (part / "ant" / "b").symlink_to(part / "bee")
        (part / "bee" / "a").symlink_to(part / "ant")
        with pytest.raises(InputError, match="once more, by a link"):
            ImageFolder.scan(part)

    def test_two_links_a_level_end_too(self, part, tmp_path):
        """Without circles there are still 2^30 paths to the last folder."""
        for level in range(30):
            (tmp_path / f"level{level}").mkdir()
        for level in range(29):
            for name in ("one", "two"):
                (tmp_path / f"level{level}" / name).symlink_to(tmp_path / f"level{level + 1}")
        (part / "ant" / "deep").symlink_to(tmp_path / "level0")
        with pytest.raises(InputError, match="once more, by a link"):
            ImageFolder.scan(part)

    def test_a_link_to_nothing_is_named(self, part):
        (part / "ant" / "9.png").symlink_to(part / "gone.png")
        with pytest.raises(InputError, match=r"ant/9.png: No such file"):
            ImageFolder.scan(part)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes")
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_pipes_and_devices_are_refused(part, make):
    make(part / "bee" / "7.png")
    with pytest.raises(InputError, match=r"bee/7.png: is a pipe or a device, not a file; remove it"):
        ImageFolder.scan(part)


def test_a_folder_that_can_not_be_read_is_not_left_out(part, monkeypatch):
    scandir = os.scandir

    def refused(path):
        if str(path).endswith("inner"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    (part / "ant" / "inner").mkdir()
    monkeypatch.setattr("os.scandir", refused)
    with pytest.raises(InputError, match="ant/inner: Permission denied"):
        ImageFolder.scan(part)


def test_a_file_of_gigabytes_is_not_hashed(part):
    with (part / "ant" / "2.png").open("r+b") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(InputError, match=r"ant/2.png: has 268,435,457 bytes, more than 268,435,456"):
        ImageFolder.scan(part).files()


def test_files_tell_names_and_contents(part):
    before = ImageFolder.scan(part).files()
    assert set(before) == {
        "train/ant/",
        "train/bee/",
        *(f"train/{c}/{n}.png" for c, n in zip(["ant", "bee"] * 3, range(6), strict=True)),
    }
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(part / "ant" / "4.png")
    after = ImageFolder.scan(part).files()
    assert {name for name in before if before[name] != after[name]} == {"train/ant/4.png"}
    (part / "ant" / "4.png").rename(part / "ant" / "6.png")
    assert ImageFolder.scan(part).files()["train/ant/"] != before["train/ant/"]


def test_names_that_are_no_text_have_files_too(part):
    os.rename(part / "ant", os.fsencode(part) + b"/\xff")
    names = ImageFolder.scan(part).files()
    assert all(name.isprintable() and name.isascii() for name in names)
    assert any("udcff" in name for name in names)
