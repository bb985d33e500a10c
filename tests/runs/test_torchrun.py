"""`torchrun ... hyperflux prune` as a user starts it: processes that die, signals, one line for all."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from same_run import QUICK, require_the_same
from tomli_w import dumps
from torch import distributed

from hyperflux import RunConfig
from hyperflux.backends.torch.distributed import torch_process_group
from hyperflux.errors import Interrupted
from hyperflux.runs.driver import execute, resume

WITHIN = 60
"""Seconds in which all have to end after one has died."""
HIDE_CURSOR = b"\x1b[?25l"
"""What a live progress sends to a terminal as it begins."""
LONG = {**QUICK, "pruning": {**QUICK["pruning"], "epochs": 60}, "regrowth": {"epochs": 20}}


@pytest.fixture
def here(tmp_path):
    (tmp_path / "hyperflux").write_text("from hyperflux_cli.main import main\nmain()\n")
    (tmp_path / "long.toml").write_text(dumps(LONG))
    return tmp_path


def start(here, *arguments, size=2, at=None):
    """At the terminal `at`, if one is given."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm"}
    pipes = {"stdout": at or subprocess.PIPE, "stderr": at or subprocess.PIPE, "text": True}
    return subprocess.Popen([*launcher, "hyperflux", *arguments], cwd=here, env=environment, **pipes)


def finished(process):
    """(exit code, lines on standard output, what hyperflux itself said on standard error)."""
    out, err = process.communicate(timeout=2 * WITHIN)
    return process.returncode, out.splitlines(), [line for line in err.splitlines() if line.startswith("hyperflux: ")]


def wait_for_checkpoints(process, folder, number):
    """Until so many have been written since the run began."""
    deadline = time.monotonic() + WITHIN
    while max((int(path.name[:6]) for path in folder.glob("checkpoint/0*")), default=0) < number:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def rank_of(process):
    """The rank of a process; None where it has none."""
    try:
        variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    ranks = [int(variable[5:]) for variable in variables if variable.startswith(b"RANK=")]
    return ranks[0] if ranks else None


def children(process):
    return list(map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()))


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds a rank's process in /proc")
def test_one_dies_all_end_and_the_run_goes_on(here):
    process = start(here, "prune", "--recipe", "long.toml", "--out", "run", "--checkpoint-every", "20")
    wait_for_checkpoints(process, here / "run", 3)
    os.kill(next(child for child in children(process.pid) if rank_of(child) == 1), signal.SIGKILL)
    died = time.monotonic()
    code, _, said = finished(process)
    assert code != 0
    assert time.monotonic() - died < WITHIN
    assert len(said) == 1
    assert said[0].startswith("hyperflux: rank 0: another rank of this run has ended (")
    assert said[0].endswith("; if the run had started, continue it with hyperflux prune --resume --out FOLDER")

    process = start(here, "prune", "--resume", "--out", "run", "--checkpoint-every", "20")
    wait_for_checkpoints(process, here / "run", 8)
    process.send_signal(signal.SIGTERM)
    code, _, said = finished(process)
    assert code != 0
    assert said == ["hyperflux: stopped by SIGTERM; continue with hyperflux prune --resume --out run"]

    resume(here / "run")
    execute(RunConfig.from_dict(LONG), here / "whole")
    require_the_same(here / "run", here / "whole")


def test_what_is_wrong_is_told_once(here):
    code, out, said = finished(start(here, "prune", "--out", "long.toml"))
    assert (code, out, len(said)) == (1, [], 1)  # the code is torchrun's own
    assert said[0].startswith("hyperflux: long.toml: cannot be used as a run's folder")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_a_terminal_sees_the_progress_of_one_process(here):
    ours, theirs = os.openpty()
    short = ["--pruning-epochs", "2", "--regrowth-epochs", "1"]
    process = start(here, "prune", "--recipe", "long.toml", *short, at=theirs)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # the terminal's other end is closed
        while part := os.read(ours, 1 << 16):
            shown += part
    os.close(ours)
    assert process.wait(WITHIN) == 0, shown
    assert shown.count(HIDE_CURSOR) == 1
    assert b"weights left" in shown


def test_other_commands_are_refused(here):
    code, _, said = finished(start(here, "compare"))
    assert code == 1
    assert set(said) == {"hyperflux: compare: runs in one process; start it without torchrun"}


def test_one_that_is_told_to_stop_leaves_the_others_in_order(monkeypatch):
    """Without that, some processes ended by SIGABRT, in torch's own threads."""
    where = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    for name, value in where.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Interrupted), torch_process_group():
        raise Interrupted("stopped", signal.SIGTERM)
    assert not distributed.is_initialized()
