"""Whatever is handed in, the command answers in one line: hundreds of bad inputs through the whole command line.

Each ends within seconds with exit code 2 and one line on standard error, executes nothing, takes less than a gigabyte
and leaves no file behind.
"""

import os
import subprocess
import sys

import pytest
from front_door import GIGABYTE, LONGEST, bad_input, files_in
from front_door_case import Material
from front_door_cases import GROUPS

import hyperflux

BATCHES = (("options", "recipes"), ("reports", "metrics", "telemetry"), ("places", "weights", "checkpoints"),
           ("idx", "images", "tables"))  # fmt: skip


def test_every_group_is_in_one_batch_and_there_are_hundreds_of_cases():
    assert sorted(name for batch in BATCHES for name in batch) == sorted(GROUPS)
    assert sum(map(len, GROUPS.values())) >= 400


@pytest.mark.parametrize("groups", BATCHES, ids=", ".join)
def test_bad_input_gets_one_line_and_exit_code_2(tmp_path, groups):
    outcomes = bad_input(groups, tmp_path)
    assert len(outcomes) == sum(len(GROUPS[name]) for name in groups)
    wrong = [f"{outcome.name}: {what}" for outcome in outcomes for what in faults(outcome)]
    assert not wrong, "\n".join(wrong)


def faults(outcome):
    """What an outcome has that none may have."""
    lines = outcome.err.splitlines()
    if outcome.code != 2:
        yield f"exit code {outcome.code}: {outcome.err[-1000:]}"
    elif len(lines) != 1 or not lines[0].startswith("hyperflux: ") or not lines[0].isprintable():
        yield f"not one line: {outcome.err[:500]!r}"
    elif len(lines[0]) > 1020:
        yield f"a line of {len(lines[0])} characters"
    if outcome.out:
        yield f"on standard output: {outcome.out[:200]!r}"
    if outcome.left_behind:
        yield f"left behind: {outcome.left_behind}"
    if outcome.seconds > LONGEST:
        yield f"took {outcome.seconds:.1f} s"
    if outcome.peak_bytes > GIGABYTE:
        yield f"took {outcome.peak_bytes:,} bytes"


COMMAND = [sys.executable, "-c", "from hyperflux_cli.main import main; main()"]
COMMAND_LINES = [
    (["report", "run", "gone"], "gone is not the folder of a finished run"),
    (["report", b"\xff\x1b[31m"], "holds a control character or is not UTF-8"),
    (["prune", "--recipe", "/dev/zero.toml"], "No such file"),
    (["prune", "--recipe", "pipe.toml"], "pipe.toml: is a pipe or a device, not a file"),
    (["prune", "--model", "mlp:1000000-1000000"], "1,000,000,000,000 weights; an MLP has at most 100,000,000"),
    (["law", "--from", "huge.csv"], "huge.csv: has 107,374,182,400 bytes, more than the"),
    (["export", "newer"], "written by hyperflux 9.0 in format 3; hyperflux"),
    (["report", "linked"], "config.toml: is a link that leads out of its folder"),
]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A working folder with a finished run, two spoilt ones, a pipe, and a file of 100 GB that holds nothing."""
    folder = tmp_path_factory.mktemp("front-door")
    material = Material.make(folder)
    report, config = (
        material.copy_run(folder, "newer") / "report.json",
        material.copy_run(folder, "linked") / "config.toml",
    )
    text = report.read_text(encoding="utf-8").replace('"format": 2', '"format": 3')
    report.write_text(text.replace(f'"hyperflux": "{hyperflux.__version__}"', '"hyperflux": "9.0"'), encoding="utf-8")
    config.rename(folder / "outside.toml")
    config.symlink_to(folder / "outside.toml")
    os.mkfifo(folder / "pipe.toml")
    with (folder / "huge.csv").open("wb") as file:
        file.truncate(100 << 30)
    return folder


@pytest.mark.parametrize(("words", "message"), COMMAND_LINES, ids=[str(words) for words, _ in COMMAND_LINES])
def test_the_same_holds_for_a_command_of_its_own(here, words, message):
    before = files_in(here)
    done = subprocess.run([*COMMAND, *words], cwd=here, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    assert message in done.stderr
    assert done.stderr.strip().isprintable()
    assert files_in(here) == before
