"""The checkpoint's file and folder: whole or not there, damage always seen, the older one used, nothing older lost."""

import os
import resource
import signal
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from hyperflux import InputError, RunError
from hyperflux.runs.checkpoints import file
from hyperflux.runs.checkpoints.file import Checkpoint
from hyperflux.runs.checkpoints.folder import CheckpointFolder
from hyperflux.runs.checkpoints.writer import CheckpointInterval, CheckpointTimer

SHAPES = st.sampled_from([(), (0,), (3,), (2, 3), (1, 0, 2)])
KINDS = st.sampled_from(["f4", "f8", "i2", "i4", "i8", "u1", "?"])


def checkpoint(number=1):
    arrays = {"weights": np.arange(60, dtype=np.float32) * number, "steps": np.array(number)}
    return Checkpoint({"number": number, "loss": float("nan")}, arrays)


def number_of(found):
    return found.facts["number"]


@pytest.fixture
def folder(tmp_path):
    made = CheckpointFolder(tmp_path / "checkpoint")
    made.create()
    return made


def names(folder):
    return sorted(path.name for path in folder.path.iterdir())


@given(st.dictionaries(st.text(max_size=5), st.tuples(SHAPES, KINDS), max_size=5), st.data())
def test_arrays_and_facts_come_back_to_the_bit(kinds, data):
    arrays = {}
    for name, (shape, kind) in kinds.items():
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        content = data.draw(st.binary(min_size=size, max_size=size))
        if kind == "?":
            content = bytes(byte & 1 for byte in content)
        arrays[f"x{name}"] = np.frombuffer(content, kind).reshape(shape)
    facts = {"float": data.draw(st.floats(allow_nan=False)), "text": data.draw(st.text()), "none": None, "list": [1]}
    found = Checkpoint.from_bytes(Checkpoint(facts, arrays).to_bytes())
    assert found.facts == facts
    assert {name: (a.dtype, a.shape, a.tobytes()) for name, a in found.arrays.items()} == {
        name: (a.dtype, a.shape, a.tobytes()) for name, a in arrays.items()
    }
    assert all(array.flags.writeable for array in found.arrays.values())


def test_strided_arrays_are_kept_by_value():
    array = np.arange(12.0).reshape(3, 4).T
    assert np.array_equal(Checkpoint.from_bytes(Checkpoint({}, {"a": array}).to_bytes()).arrays["a"], array)


def test_the_file_is_plain_safetensors(folder):
    folder.write(checkpoint())
    (path,) = folder.path.iterdir()
    assert np.array_equal(load_file(path)["weights"], checkpoint().arrays["weights"])


def test_the_last_two_are_kept_and_the_last_is_read(folder):
    said = []
    assert folder.last(said.append) is None
    for number in range(1, 5):
        folder.write(checkpoint(number))
        assert number_of(CheckpointFolder(folder.path).last(said.append)) == number
        assert len(names(folder)) == min(number, 2)
    assert [name[:6] for name in names(folder)] == ["000003", "000004"]
    assert said == []
    folder.remove()
    assert not folder.path.exists()


def test_numbers_go_on_after_a_restart_and_leftovers_are_swept(folder):
    for number in (1, 2, 3):
        folder.write(checkpoint(number))
    (folder.path / ".000004-torn.safetensors.part").write_bytes(b"torn")
    (folder.path / "notes").mkdir()
    again = CheckpointFolder(folder.path)
    assert number_of(again.last(print)) == 3
    again.write(checkpoint(4))
    assert [name[:6] for name in names(again)] == ["000003", "000004", "notes"]


WHOLE = checkpoint(2).to_bytes()


def damaged(folder, content):
    """A folder of checkpoints 1 and 2, the second with this content; what is found, and said."""
    folder.create()
    for number in (1, 2):
        folder.write(checkpoint(number))
    newest = folder.path / names(folder)[-1]
    newest.write_bytes(content)
    said = []
    again = CheckpointFolder(folder.path)
    found = number_of(again.last(said.append))
    again.write(checkpoint(3))
    assert newest.name not in names(again)
    assert sorted(name[:6] for name in names(again)) == ["000001", "000003"]  # nothing good was lost
    assert number_of(CheckpointFolder(folder.path).last(said.append)) == 3
    return found, said


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 8 * len(WHOLE) - 1))
def test_a_flipped_bit_anywhere_is_seen_and_the_older_one_used(tmp_path_factory, bit):
    content = bytearray(WHOLE)
    content[bit // 8] ^= 1 << bit % 8
    found, said = damaged(CheckpointFolder(tmp_path_factory.mktemp("run") / "checkpoint"), bytes(content))
    assert found == 1
    assert len(said) == 1
    assert "is damaged; the checkpoint before it is used" in said[0]


LENGTHS = sorted({*range(12), *range(0, len(WHOLE), 37), *range(len(WHOLE) - 12, len(WHOLE))})


@pytest.mark.parametrize("length", LENGTHS)
def test_a_torn_file_of_any_length_is_seen_and_the_older_one_used(folder, length):
    assert damaged(folder, WHOLE[:length])[0] == 1


def test_a_file_with_something_behind_it_or_of_zeros_is_seen(folder, tmp_path):
    assert damaged(folder, WHOLE + b"\0")[0] == 1
    assert damaged(CheckpointFolder(tmp_path / "other"), bytes(len(WHOLE)))[0] == 1


def test_pipes_and_files_of_gigabytes_of_nothing_are_damaged_and_not_read(folder):
    folder.write(checkpoint(1))
    os.mkfifo(folder.path / f"000002-{'0' * 64}.safetensors")
    with (folder.path / f"000003-{'0' * 64}.safetensors").open("wb") as sparse:
        sparse.truncate(40 << 30)
    announced = []
    assert number_of(folder.last(announced.append)) == 1
    assert len(announced) == 2


def test_a_damaged_older_one_is_told_too_and_not_kept(folder):
    for number in (1, 2):
        folder.write(checkpoint(number))
    (folder.path / names(folder)[0]).write_bytes(b"")
    said = []
    again = CheckpointFolder(folder.path)
    assert number_of(again.last(said.append)) == 2
    assert len(said) == 1
    again.write(checkpoint(3))
    assert [name[:6] for name in names(again)] == ["000002", "000003"]


def test_where_every_one_is_damaged_the_user_decides(folder):
    for number in (1, 2):
        folder.write(checkpoint(number))
    for path in folder.path.iterdir():
        path.write_bytes(b"")
    before = names(folder)
    with pytest.raises(InputError, match=r"every checkpoint is damaged; remove .* and start again"):
        folder.last(lambda line: None)
    assert names(folder) == before


@pytest.mark.parametrize(
    ("apart", "message"),
    [
        (1, "written by a newer hyperflux; this one reads format 3: upgrade hyperflux"),
        (-1, "written by an older hyperflux; this one reads format 3: continue with that version"),
    ],
)
def test_another_format_is_refused_and_the_file_before_not_taken_instead(folder, monkeypatch, apart, message):
    folder.write(checkpoint(1))
    with monkeypatch.context() as other:
        other.setattr(file, "FORMAT", file.FORMAT + apart)
        folder.write(checkpoint(2))
    with pytest.raises(InputError, match=rf"000002-.* has format {file.FORMAT + apart}, {message}"):
        CheckpointFolder(folder.path).last(print)


@given(st.binary(max_size=60))
def test_a_foreign_file_is_refused_in_one_line(content):
    for whole in (content, struct.pack("<Q", len(content)) + content):
        with pytest.raises(InputError, match="is not a checkpoint of hyperflux"):
            Checkpoint.from_bytes(whole)


def failing(*_):
    raise OSError(28, os.strerror(28))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_loses_no_older_checkpoint(folder, monkeypatch, call):
    for number in (1, 2):
        folder.write(checkpoint(number))
    before = names(folder)
    with monkeypatch.context() as full:
        full.setattr(os, call, failing)
        with pytest.raises(RunError, match=r"000003-.*: cannot be written \(No space left on device\)"):
            folder.write(checkpoint(3))
    assert names(folder) == before
    assert number_of(CheckpointFolder(folder.path).last(print)) == 2
    folder.write(checkpoint(3))
    assert number_of(CheckpointFolder(folder.path).last(print)) == 3


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_disk_that_takes_only_a_part_loses_no_older_checkpoint(folder, share):
    """The kernel itself cuts the write short."""
    for number in (1, 2):
        folder.write(checkpoint(number))
    before, limits = names(folder), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * len(WHOLE)), limits[1]))
    try:
        with pytest.raises(RunError, match="cannot be written"):
            folder.write(checkpoint(3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert names(folder) == before
    assert number_of(CheckpointFolder(folder.path).last(print)) == 2


def test_a_disk_that_does_not_keep_what_it_took_is_found_out_at_once(folder, monkeypatch):
    folder.write(checkpoint(1))
    with monkeypatch.context() as lying:
        lying.setattr(os, "fsync", lambda number: os.ftruncate(number, 100))
        with pytest.raises(RunError, match="what was written is not what the disk gives back"):
            folder.write(checkpoint(2))
    assert number_of(CheckpointFolder(folder.path).last(print)) == 1


def test_a_folder_that_cannot_be_made_or_read_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be created"):
        CheckpointFolder(tmp_path / "file" / "checkpoint").create()
    with pytest.raises(RunError, match="cannot be read"):
        CheckpointFolder(tmp_path / "nowhere").last(print)


def test_a_file_system_that_takes_no_files_is_told_in_one_line():
    with pytest.raises(RunError, match="cannot be written"):
        CheckpointFolder(Path("/proc/self")).write(checkpoint(1))


@pytest.mark.skipif(os.geteuid() == 0, reason="no folder is read-only to root")
def test_a_read_only_folder_is_told_in_one_line(folder):
    folder.write(checkpoint(1))
    folder.path.chmod(0o500)
    try:
        with pytest.raises(RunError, match=r"cannot be written \(Permission denied\)"):
            folder.write(checkpoint(2))
    finally:
        folder.path.chmod(0o700)
    assert number_of(CheckpointFolder(folder.path).last(print)) == 1


@pytest.mark.parametrize(
    ("text", "pace"),
    [
        ("500", CheckpointInterval(500, None)),
        ("1 steps", CheckpointInterval(1, None)),
        ("30s", CheckpointInterval(None, 30.0)),
        (" 10min", CheckpointInterval(None, 600.0)),
        ("1.5 h", CheckpointInterval(None, 5400.0)),
    ],
)
def test_a_pace_is_steps_or_a_time(text, pace):
    assert CheckpointInterval.parse(text) == pace


@pytest.mark.parametrize("text", ["", "0", "0min", "1.5", "-3", "ten", "10m", "nan", "1e3"])
def test_other_paces_are_refused(text):
    with pytest.raises(InputError, match=r"checkpoint-every: .* give a number of steps such as 500"):
        CheckpointInterval.parse(text)


def test_the_clock_strikes_by_steps_and_by_time(monkeypatch):
    clock = CheckpointTimer(CheckpointInterval(3, None))
    assert [clock.step() for _ in range(4)] == [False, False, True, True]
    clock.restart()
    assert not clock.step()
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    clock = CheckpointTimer(CheckpointInterval.parse("10min"))
    assert not clock.step()
    now[0] = 700.0
    assert clock.step()
    clock.restart()
    assert not clock.step()
