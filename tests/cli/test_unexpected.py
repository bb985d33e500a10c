"""Errors that nobody expected, through the real entry point: one line, the traceback in a file, an own exit code."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

RAISING = """
import sys
from hyperflux_cli import main as module
from hyperflux_cli.__main__ import main
def fail(*_, **__):
    {statement}
module.main.commands["recipes"].callback = fail
sys.argv = ["hyperflux", "recipes"]
main()
"""
DEEP = "fail()"
BROKEN_IMPORT = """
import sys
from hyperflux_cli.__main__ import main
sys.modules["click"] = None
main()
"""
ERRORS = {
    "RecursionError": DEEP,
    "OverflowError": "2.0 ** 10000",
    "IndexError": "[][0]",
    "KeyError": "{}['\\x1b[31m']",
    "OSError": f"raise OSError({errno.ENOSPC}, 'No space left on device', 'file')",
    "UnicodeEncodeError": "'\\ud800'.encode()",
    "RuntimeError": "raise RuntimeError('of torch\\nin two lines')",
    "AssertionError": "assert False",
    "ExceptionGroup": "raise ExceptionGroup('several', [ValueError(1), IndexError(2)])",
    "Unspeakable": "raise type('Unspeakable', (Exception,), {'__str__': lambda self: 1 / 0})()",
}


def ended(here, code, temporary):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "TMPDIR": str(temporary), "TMP": str(temporary), "TEMP": str(temporary)},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def one_line(err):
    assert err.startswith("hyperflux: ")
    assert len(err.splitlines()) == 1
    assert err.strip().isprintable()
    return err.strip()


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_that_nobody_expected_is_one_line_and_a_file(tmp_path, kind):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    code, out, err = ended(tmp_path, RAISING.format(statement=ERRORS[kind]), temporary)
    assert (code, out) == (70, "")
    (log,) = temporary.iterdir()
    assert f"hyperflux: unexpected {kind}" in one_line(err)
    assert f"please report it with {log}, which has the traceback" in err
    text = log.read_text()
    assert "Traceback (most recent call last)" in text
    assert kind in text


def test_memory_that_is_short_has_a_way_out(tmp_path):
    code, out, err = ended(tmp_path, RAISING.format(statement="raise MemoryError"), tmp_path)
    assert (code, out) == (1, "")
    assert "out of memory" in one_line(err)
    assert not list(tmp_path.iterdir())


def test_a_library_that_can_not_be_imported_is_one_line(tmp_path):
    code, out, err = ended(tmp_path, BROKEN_IMPORT, tmp_path)
    assert (code, out) == (70, "")
    assert "unexpected ModuleNotFoundError" in one_line(err)
    assert len(list(tmp_path.iterdir())) == 1


NOWHERE = """
import tempfile
def full(*_):
    raise OSError(28, "No space left on device")
tempfile.mkstemp = full
"""


def test_without_room_for_the_file_the_line_comes_all_the_same(tmp_path):
    code, _, err = ended(tmp_path, NOWHERE + RAISING.format(statement="[][0]"), tmp_path)
    assert code == 70
    assert one_line(err).endswith("please report it; no file could be written with the traceback")


def test_without_a_folder_for_temporary_files_the_current_one_takes_it(tmp_path):
    refusing = """
import tempfile
own = tempfile.mkstemp
def elsewhere(suffix, prefix, folder):
    if folder is None:
        raise FileNotFoundError("no usable temporary directory")
    return own(suffix, prefix, folder)
tempfile.mkstemp = elsewhere
"""
    code, _, err = ended(tmp_path, refusing + RAISING.format(statement="[][0]"), tmp_path)
    (log,) = tmp_path.iterdir()
    assert code == 70
    assert log.name in one_line(err)
    assert "IndexError" in log.read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
def test_a_traceback_that_can_only_be_written_in_part_is_not_left(tmp_path):
    full = 'import os, tempfile\ntempfile.mkstemp = lambda *_: (os.open("/dev/full", os.O_WRONLY), "part")\n'
    (tmp_path / "part").write_text("begun")
    code, _, err = ended(tmp_path, full + RAISING.format(statement="[][0]"), tmp_path)
    assert code == 70
    assert one_line(err).endswith("no file could be written with the traceback")
    assert not (tmp_path / "part").exists()
