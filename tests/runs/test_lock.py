"""The lock of a run's folder: who holds it, for how long, and what its file says; see also `test_interruptions`."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress

import pytest

from hyperflux import InputError
from hyperflux.runs import lock
from hyperflux.runs.lock import LOCK, locked

HOLDER = """
import os, sys, time
from pathlib import Path
from hyperflux.runs.lock import locked
with locked(Path(sys.argv[1]), print):
    if sys.argv[2] == "alone" or os.fork() == 0:
        print(os.getpid(), flush=True)
        time.sleep(60)
        os._exit(0)
    sys.stdin.readline()
    if sys.argv[2] == "killed":
        os._exit(9)
"""
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@contextmanager
def holding(folder, what):
    """A process that holds the lock of a folder and, unless `alone`, ends on a line, "killed" or "finished".

    With it the number of the process that sleeps on: itself, or the child that it has forked.
    """
    command = [sys.executable, "-c", HOLDER, str(folder), what]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    sleeper = int(process.stdout.readline())
    try:
        yield process, sleeper
    finally:
        os.kill(sleeper, signal.SIGTERM)
        process.communicate()


def test_the_lock_names_its_owner_and_is_gone_afterwards(tmp_path):
    with locked(tmp_path / "run", print):
        owner = {"process": os.getpid(), "host": socket.gethostname()}
        assert json.loads((tmp_path / "run" / LOCK).read_text()) == owner
        with pytest.raises(InputError, match=f"in use by process {os.getpid()} on {socket.gethostname()}; wait"):
            locked(tmp_path / "run", print).__enter__()
    assert os.listdir(tmp_path / "run") == []


def test_the_lock_of_another_process_is_refused_until_it_ends(tmp_path):
    with holding(tmp_path, "alone") as (process, _):
        message = f"in use by process {process.pid} on {socket.gethostname()}; wait for it or name another folder"
        with pytest.raises(InputError, match=message), locked(tmp_path, print):
            pass
    said = []
    with locked(tmp_path, said.append):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()
    assert said == [f"{tmp_path}: the lock of process {process.pid}, which is no longer there, is taken over"]
    assert os.listdir(tmp_path) == []


@needs_fork
@pytest.mark.parametrize("end", ["killed", "finished"])
def test_a_forked_worker_that_outlives_the_process_does_not_hold_the_lock(tmp_path, end):
    with holding(tmp_path, end) as (process, worker):
        process.stdin.write("\n")
        process.stdin.flush()
        process.wait()
        said = []
        with locked(tmp_path, said.append):
            assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()
        assert len(said) == (end == "killed")
        os.kill(worker, 0)  # it was there all the while


@needs_fork
def test_a_forked_worker_that_ends_leaves_the_lock_to_the_process(tmp_path):
    with locked(tmp_path, print):
        child = os.fork()
        if child == 0:
            with suppress(InputError):
                locked(tmp_path, print).__enter__()
                os._exit(1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with pytest.raises(InputError, match="in use"), locked(tmp_path, print):
            pass
        assert (tmp_path / LOCK).exists()


@needs_fork
def test_a_child_that_leaves_the_block_of_its_parent_releases_nothing(tmp_path):
    with locked(tmp_path, print):
        parent, child = os.getpid(), os.fork()
        if child:
            os.waitpid(child, 0)
            assert (tmp_path / LOCK).exists()
            with pytest.raises(InputError, match="in use"), locked(tmp_path, print):
                pass
    if os.getpid() != parent:
        os._exit(0)
    assert not (tmp_path / LOCK).exists()


def test_a_lock_whose_file_was_removed_after_it_was_opened_is_taken_again(tmp_path, monkeypatch):
    """Its owner removes the file, then frees the lock: whoever opened it in between locks a file without a name."""
    lock_descriptor, removed = lock.lock_descriptor, []

    def removing(file, *, blocking):
        if not removed:
            removed.append((tmp_path / LOCK).unlink())
        return lock_descriptor(file, blocking=blocking)

    monkeypatch.setattr(lock, "lock_descriptor", removing)
    with locked(tmp_path, print):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()
        with pytest.raises(InputError, match="in use"), locked(tmp_path, print):
            pass


def test_a_lock_that_is_a_link_is_refused(tmp_path):
    """What it leads to would be overwritten."""
    (tmp_path / "mine").write_text("kept")
    (tmp_path / LOCK).symlink_to("mine")
    with pytest.raises(InputError, match="its lock is a link, so remove it"), locked(tmp_path, print):
        pass
    assert (tmp_path / "mine").read_text() == "kept"


@pytest.mark.parametrize("content", ["", "\n{}", "[1]"])
def test_a_lock_that_has_another_name_is_refused(tmp_path, content):
    """The other name's file would be overwritten, although it may look like a lock that an earlier process left."""
    (tmp_path / "mine").write_text(content)
    os.link(tmp_path / "mine", tmp_path / LOCK)
    with pytest.raises(InputError, match="its lock is a file that has another name too"), locked(tmp_path, print):
        pass
    assert (tmp_path / "mine").read_text() == content
