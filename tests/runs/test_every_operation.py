"""A kill before each file operation of a command, and an error in it: what was begun goes on, or is begun anew.

The operations are those of Python's `os` and of the files that it opens, below one folder, see `file_layer`. What a
user keeps in that folder stays as it is.
"""

import json
import shutil
from functools import partial

import numpy as np
import pytest
from file_layer import FileLayer, States, content, failing, operations
from interrupted import Breaker, PowerCut, failure, left, quick
from safetensors.numpy import load_file

from hyperflux.deploy.export import export
from hyperflux.report import comparison
from hyperflux.runs.checkpoints.writer import CheckpointInterval
from hyperflux.runs.compare import Plan, execute_plan
from hyperflux.runs.driver import execute, resume

SHORT = {
    "train_samples": 64,
    "dense": {"epochs": 0},
    "pruning": {"epochs": 2, "presence_learning_rate": 0.05},
    "regrowth": {"epochs": 0},
}
"""Two steps an epoch."""
EVERY = CheckpointInterval.parse("3")
FIRST = 150
"""Errors come in so many operations, one by one, which is all of a run, and in one of three of the later ones."""
NOTE = "a note of the user's"


@pytest.fixture(autouse=True, scope="module")
def _no_time_passes():
    """So that files with the same content are the same; and none is spent on a disk that is not pulled out here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("time.monotonic", lambda: 0.0)
        patched.setattr("os.fsync", lambda number: None)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    execute(quick(**SHORT), folder)
    return folder


def kills(states, begun, act):
    """The states that a kill before an operation of an act leaves in a folder that holds a copy of `begun`."""
    folder = states.folder
    shutil.copytree(begun, folder, dirs_exist_ok=True)
    return states.before_each_operation(partial(act, folder))


def errors(states, begun, act):
    """The states that an error in an operation leaves; it is told in one line, if at all."""
    folder = states.folder
    shutil.copytree(begun, folder, dirs_exist_ok=True)
    count = operations(folder, partial(act, folder))
    for number in [*range(1, min(count, FIRST) + 1), *range(FIRST + 1, count + 1, 1 + count // FIRST)]:
        shutil.rmtree(folder)
        shutil.copytree(begun, folder)
        with FileLayer(folder, failing(number)).active():
            assert "\n" not in str(failure(partial(act, folder)))
        if (state := states.add()) is not None:
            yield state


ENDS = pytest.mark.parametrize("ends", [kills, errors])


def go_on(folder):
    """What a user does who finds such a folder."""
    if (folder / "config.toml").exists():
        resume(folder, every=EVERY)
    else:
        execute(quick(**SHORT), folder, every=EVERY)


@ENDS
def test_a_run(tmp_path, whole, ends):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "copies").mkdir()
    found = ends(
        States(tmp_path / "run", tmp_path / "copies"),
        tmp_path / "nothing",
        lambda folder: execute(quick(**SHORT), folder, every=EVERY),
    )
    for number, state in enumerate(found):
        go_on(state)
        assert left(state) == left(whole), number
    assert number > 20


@ENDS
def test_a_resumed_run(tmp_path, whole, ends):
    stopped = tmp_path / "stopped"
    with pytest.raises(PowerCut):
        execute(quick(**SHORT), stopped, every=EVERY, stop=Breaker(4, clean=False))
    for folder in (stopped, stopped / "checkpoint"):
        (folder / "note.part").write_text(NOTE)
    for state in ends(States(tmp_path / "run", tmp_path), stopped, resume):
        go_on(state)
        for note in (state / "note.part", state / "checkpoint" / "note.part"):
            assert note.read_text() == NOTE
            note.unlink()
        (state / "checkpoint").rmdir()
        assert left(state) == left(whole)


def compared(folder):
    """A comparison of one run, with its tables."""
    base = quick(**{**SHORT, "dense": {"epochs": 1}})
    comparison.require_own(folder)
    rows = execute_plan(Plan(base, ("hyperflux",), (0.5,), (0,), folder), lambda line: None)
    comparison.write(rows, folder, "a title")


@ENDS
def test_a_comparison(tmp_path, monkeypatch, ends):
    """Begun with an unfinished run, which it begins anew."""
    monkeypatch.setattr(comparison, "plot", lambda rows, title: b"\x89PNG")
    compared(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "begun")
    for name in ("dense-0/dense.safetensors", "hyperflux-0.5-0/report.json", "comparison.png"):
        (tmp_path / "begun" / name).unlink()
    (tmp_path / "begun" / "hyperflux-0.5-0" / "checkpoint").mkdir()
    (tmp_path / "begun" / "note.md").write_text(NOTE)
    whole = dict(content(tmp_path / "whole"))
    for state in ends(States(tmp_path / "run", tmp_path), tmp_path / "begun", compared):
        compared(state)
        found = dict(content(state))
        assert found.pop("note.md") == NOTE.encode()
        found.pop("dense-0/lock", None)  # of a process that is no longer there
        assert found.keys() == whole.keys()
        assert json.loads(found["comparison.json"]) == json.loads(whole["comparison.json"])


@ENDS
def test_an_export(tmp_path, whole, ends):
    export(whole, "safetensors", out=tmp_path / "whole.safetensors")
    expected = load_file(tmp_path / "whole.safetensors")
    for state in ends(States(tmp_path / "run", tmp_path), whole, lambda folder: export(folder, "safetensors")):
        export(state, "safetensors")
        found = load_file(state / "model-compact.safetensors")
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], expected[name]) for name in found)
        (state / "model-compact.safetensors").unlink()
        assert content(state) == content(whole)
