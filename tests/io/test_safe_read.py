"""Files that somebody hands in: what is opened, how much of it is read, and how it is refused."""

import errno
import json
import os
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflux import InputError, RunError
from hyperflux.errors import one_line
from hyperflux.io.atomic_write import write_atomic, write_together
from hyperflux.io.safe_read import (
    MAX_KEY_PARTS,
    inside,
    open_file,
    parse_json,
    parse_toml,
    read_file,
    read_text,
    shown,
)
from hyperflux.runs.schema import FORMAT
from hyperflux.runs.validation import NewerFormatError, require_format


def refusal(read):
    with pytest.raises(OSError) as caught:  # noqa: PT011  what it says is the test's to compare
        read()
    return caught.value.strerror


def test_a_file_is_read_up_to_its_limit(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    assert read_file(tmp_path / "file", 5) == b"12345"
    assert refusal(lambda: read_file(tmp_path / "file", 4)) == "has 5 bytes, more than the 4 that such a file may have"
    with open_file(tmp_path / "file") as file:
        assert file.read(2) == b"12"


def test_a_mark_of_byte_order_is_no_text(tmp_path):
    (tmp_path / "file").write_bytes(b"\xef\xbb\xbfseed = 1")
    assert read_text(tmp_path / "file", 100) == "seed = 1"
    (tmp_path / "file").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="utf-8"):
        read_text(tmp_path / "file", 100)


def test_pipes_devices_folders_and_names_that_none_has_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", "/dev/zero", "/dev/tty"):
        if os.path.exists(path):
            assert refusal(lambda path=path: open_file(path)) == "is a pipe or a device, not a file"
    assert refusal(lambda: open_file(tmp_path)) == os.strerror(errno.EISDIR)
    assert refusal(lambda: open_file(tmp_path / "a\0b")) == "no file can have this name"
    assert refusal(lambda: open_file(tmp_path / "nowhere")) == os.strerror(errno.ENOENT)


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="this system has no such files")
def test_a_file_that_does_not_tell_its_size_is_read_no_further_than_it_may():
    assert os.stat("/proc/self/maps").st_size == 0
    assert refusal(lambda: read_file("/proc/self/maps", 100)) == (
        "has no end, more than the 100 that such a file may have"
    )


def test_links_are_followed_inside_a_folder_only(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "there").write_text("mine")
    (tmp_path / "outside").write_text("secret")
    for name, target in (
        ("near", "there"),
        ("far", "../outside"),
        ("absolute", tmp_path / "outside"),
        ("loop", "loop"),
    ):
        (folder / name).symlink_to(target)
    (tmp_path / "moved").symlink_to(folder)
    for around in (folder, tmp_path / "moved"):
        assert read_text(inside(around, "near"), 100) == "mine"
        assert read_text(inside(around, "there"), 100) == "mine"
        assert "leads out of its folder" in refusal(lambda around=around: inside(around, "far"))
        assert "leads out of its folder" in refusal(lambda around=around: inside(around, "absolute"))
        assert refusal(lambda around=around: open_file(inside(around, "loop"))) == os.strerror(errno.ELOOP)


def test_writing_follows_no_link(tmp_path):
    (tmp_path / "outside").write_text("kept")
    for name in ("report.md", ".report.md.part"):
        (tmp_path / name).symlink_to("outside")
    write_atomic(tmp_path / "report.md", b"new")
    assert (tmp_path / "outside").read_text() == "kept"
    assert (tmp_path / "report.md").read_text() == "new"
    assert not (tmp_path / "report.md").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["outside", "report.md"]


def test_files_that_belong_together_appear_together_or_not_at_all(tmp_path):
    write_together(tmp_path, {"a.json": b"1", "a.png": b"2"})
    (tmp_path / "b.png").mkdir()
    (tmp_path / "b.png" / "full").touch()
    (tmp_path / ".c.png.part").mkdir()
    with pytest.raises(RunError, match=r"c\.png: cannot be written"):
        write_together(tmp_path, {"a.json": b"new", "b.json": b"new", "c.png": b"new"})
    assert (tmp_path / "a.json").read_bytes() == b"1"
    assert sorted(os.listdir(tmp_path)) == [".c.png.part", "a.json", "a.png", "b.png"]


KEY = st.text("ab-1", min_size=1, max_size=3)
VALUE = st.one_of(
    st.text("a.\"'\\# \n", max_size=200).map(json.dumps), st.integers().map(str), st.just("[1.5, 2.5, 'a.b.c']")
)


@given(st.dictionaries(KEY, VALUE, max_size=5), st.sampled_from(["", "# a.a.a" + ".a" * 99 + "\n"]))
def test_what_is_no_key_is_no_deep_key(values, comment):
    text = comment + "".join(f"{key} = {value}  {comment or chr(10)}" for key, value in values.items())
    assert parse_toml(text) == tomllib.loads(text)


@pytest.mark.parametrize("dot", [".", " . ", "\t.", ". "])
@pytest.mark.parametrize("part", ["a", "'a.b'", '"a\\"b"', "1-_"])
@pytest.mark.parametrize("around", ["{} = 1", "[{}]", "[[{}]]", "x = {{ {} = 1 }}", "y = '.'\n{} = 1"])
def test_a_key_of_many_parts_is_refused_before_it_is_parsed(dot, part, around):
    assert parse_toml(around.format(dot.join([part] * MAX_KEY_PARTS)))
    with pytest.raises(ValueError, match=f"more than {MAX_KEY_PARTS} parts"):
        parse_toml(around.format(dot.join([part] * (MAX_KEY_PARTS + 1))))


def test_json_with_a_key_twice_or_without_end_is_refused():
    assert parse_json('{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}
    with pytest.raises(ValueError, match="key 'b' appears twice"):
        parse_json('{"a": {"b": 1, "b": 1}}')
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 100_000)
    with pytest.raises(ValueError, match="limit"):
        parse_json("1" * 5000)


def test_a_value_is_shown_short_whatever_it_is():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert shown("\x1b") == r"'\x1b'"
    assert shown("x" * 1000, 10) == "'xxxxxx..."
    assert shown(1 << 100_000) == "a int"
    assert shown(deep) == "a list"


@pytest.mark.parametrize("kind", [InputError, RunError])
def test_a_message_is_one_line_of_what_can_be_shown(kind):
    assert str(kind("a\nb \x1b[31mred\x07 \u202e\udcff é 雪")) == r"a b \x1b[31mred\x07 \u202e\udcff é 雪"
    assert str(kind("no change: 95 %")) == "no change: 95 %"
    long = one_line("start " + "x" * 100_000 + " end")
    assert (long[:6], long[-4:], len(long)) == ("start ", " end", 1000)


def test_a_folder_of_a_newer_version_is_told_by_it():
    assert require_format({}) == 1
    assert require_format({"format": FORMAT}) == FORMAT
    for values in ({"format": FORMAT + 1, "versions": {"hyperflux": "9.1"}}, {"format": 10**400, "versions": 3}):
        with pytest.raises(NewerFormatError, match=r"written by (hyperflux 9.1|a newer hyperflux) in format"):
            require_format(values)
    for value in (0, -1, True, None, "1", 1.0, [1]):
        with pytest.raises(ValueError, match="is no version"):
            require_format({"format": value})
    assert json.loads(json.dumps({"format": FORMAT})) == {"format": 2}
