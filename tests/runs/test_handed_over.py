"""A run's folder that somebody handed over: nothing outside it is read or changed, nothing in it is taken on trust."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from file_layer import content
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interrupted import Breaker, PowerCut, failure, left, quick
from mutations import reworded

from hyperflux import InputError
from hyperflux.io.atomic_write import part_of
from hyperflux.runs.checkpoints.file import Checkpoint, checksum
from hyperflux.runs.checkpoints.folder import CheckpointFolder
from hyperflux.runs.checkpoints.writer import CheckpointInterval
from hyperflux.runs.driver import execute, resume
from hyperflux.runs.folder import CHECKPOINTS, FILES, read_run
from hyperflux.runs.lock import LOCK, MAX_OWNER, locked

EVERY = CheckpointInterval.parse("7")
LAST = "the last checkpoint"
PARTS = tuple(part_of(Path(name)).name for name in FILES)
PLACES = (LOCK, CHECKPOINTS, LAST, *FILES, *PARTS)


@pytest.fixture(autouse=True, scope="module")
def _no_disk_is_pulled_out():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("os.fsync", lambda number: None)
        yield


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """The folder of a run of each backend that was broken off in the middle of pruning, within an epoch."""
    known = {}

    def of(backend):
        if backend not in known:
            known[backend] = tmp_path_factory.mktemp("broken") / "run"
            with pytest.raises(PowerCut):
                execute(quick(backend=backend), known[backend], every=EVERY, stop=Breaker(30, clean=False))
        return known[backend]

    return of


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What the run leaves if nobody breaks it off."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    execute(quick(), folder)
    return left(folder)


@pytest.fixture
def mine(tmp_path):
    """A folder of the user's."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("precious", "thesis.part"):
        (folder / name).write_text("kept")
    return folder


def a_link(path, mine):
    path.symlink_to(os.path.relpath(mine / "precious", path.parent))


def a_link_to_a_folder(path, mine):
    path.symlink_to(mine)


def a_link_to_nothing(path, mine):
    path.symlink_to(mine / "new")


def a_second_name(path, mine):
    os.link(mine / "precious", path)


def a_pipe(path, mine):
    os.mkfifo(path)


def a_device(path, mine):
    path.symlink_to("/dev/zero")


def a_folder(path, mine):
    path.mkdir()


def a_huge_file(path, mine):
    with path.open("wb") as file:
        file.write(b"\x40")
        file.truncate(200 << 30)


KINDS = (a_link, a_link_to_a_folder, a_link_to_nothing, a_second_name, a_pipe, a_device, a_folder, a_huge_file)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_whatever_is_in_the_place_of_a_file_a_resumed_run_stays_in_its_folder(
    broken, whole, tmp_path, mine, place, kind
):
    """It goes on to the bit, from an older checkpoint if need be, or says why not."""
    folder = shutil.copytree(broken("numpy"), tmp_path / "run")
    path = sorted((folder / CHECKPOINTS).iterdir())[-1] if place == LAST else folder / place
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    kind(path, mine)
    before = content(mine)
    told = failure(lambda: resume(folder, announce=lambda line: None))
    assert content(mine) == before
    if told is not None:
        assert str(folder) in str(told)
        assert "\n" not in str(told)
        return
    if place == "dense.safetensors":  # of a stage that is over
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        path.write_bytes(whole["dense.safetensors"])
    found = left(folder)
    others = (*PARTS, CHECKPOINTS, "latency.json")  # with what is none of the run's, which stays
    assert {**found, "files": [name for name in found["files"] if name not in others]} == whole


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "place", [LOCK, CHECKPOINTS, "config.toml", ".config.toml.part", "latency.json", "metrics.jsonl"]
)
def test_a_new_run_in_such_a_folder_changes_nothing_outside(tmp_path, mine, place, kind):
    folder = tmp_path / "run"
    folder.mkdir()
    kind(folder / place, mine)
    before = content(mine)
    if failure(lambda: execute(quick(), folder)) is None:
        assert read_run(folder)
    assert content(mine) == before


OWNERS = [
    '{"process": Infinity, "host": "x"}',
    '{"process": NaN, "host": "x"}',
    '{"process": 1e999, "host": "x"}',
    '{"process": -1, "host": "x"}',
    '{"process": true, "host": "x"}',
    f'{{"process": {10**400}, "host": "x"}}',
    '{"process": 1, "host": {}}',
    '{"process": [[]], "host": null}',
    "[" * (MAX_OWNER - 1),
    '{"a":' * 800,
    '{"process": 1, "process": 2, "host": "x"}',
    "\0" * 60,
    "\n{\udcff",
]


@pytest.mark.parametrize("owner", OWNERS)
def test_a_lock_that_names_nobody_is_free(tmp_path, owner):
    (tmp_path / LOCK).write_bytes(owner.encode("utf-8", "surrogateescape"))
    with locked(tmp_path, print):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize("text", ["my own notes", "1", "{" + " " * MAX_OWNER, "\x7fELF"])
def test_a_file_of_the_name_that_is_no_lock_is_refused_and_stays(tmp_path, text):
    (tmp_path / LOCK).write_text(text)
    with pytest.raises(InputError, match="move it away"), locked(tmp_path, print):
        pass
    assert (tmp_path / LOCK).read_text() == text


def rewritten(folder, saved):
    """Put a checkpoint in the place of the last one, with a true checksum."""
    content = saved.to_bytes()
    for path in sorted((folder / CHECKPOINTS).iterdir())[1:]:
        path.unlink()
    (folder / CHECKPOINTS / f"999999-{checksum(content)}.safetensors").write_bytes(content)


def files_of(folder):
    """A run's files without its checkpoints."""
    return {name: state for name, state in content(folder) if not name.startswith(CHECKPOINTS)}


def resumed_or_refused(folder):
    """Resume; what is refused leaves the run's files as they were, and what is not has a result that can be read."""
    before = files_of(folder)
    told = failure(lambda: resume(folder))
    assert "\n" not in str(told)
    if told is None:
        outcome = read_run(folder).outcome
        assert outcome.surviving_weights == round(0.2 * outcome.total_weights)
    elif isinstance(told, InputError):
        assert files_of(folder) == before


BACKENDS = pytest.mark.parametrize("backend", ["numpy", "torch"])
SOME = settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])


@BACKENDS
@SOME
@given(data=st.data())
def test_facts_that_cannot_be_are_refused_before_anything_is_used(broken, tmp_path_factory, backend, data):
    """With a true checksum."""
    folder = shutil.copytree(broken(backend), tmp_path_factory.mktemp("handed") / "run")
    good = CheckpointFolder(folder / CHECKPOINTS).last(print)
    part = data.draw(st.sampled_from(["progress", "provenance"]))
    text = data.draw(reworded(json.dumps(good.facts[part])))
    try:
        facts = {**good.facts, part: json.loads(text)}
    except ValueError:
        return
    rewritten(folder, Checkpoint(facts, good.arrays))
    resumed_or_refused(folder)


@BACKENDS
@SOME
@given(data=st.data())
def test_arrays_that_cannot_be_are_refused_before_anything_is_used(broken, tmp_path_factory, backend, data):
    folder = shutil.copytree(broken(backend), tmp_path_factory.mktemp("handed") / "run")
    good = CheckpointFolder(folder / CHECKPOINTS).last(print)
    arrays = dict(good.arrays)
    name = data.draw(st.sampled_from(sorted(arrays)))
    array = arrays[name].copy()
    match data.draw(st.sampled_from(["value", "bytes", "dtype", "shape", "missing", "further"])):
        case "value" if array.size:
            values = [0, 1, -1, np.iinfo(np.int32).max, 1e30, -1e30, np.nan, np.inf]
            with np.errstate(all="ignore"):
                array.flat[data.draw(st.integers(0, array.size - 1))] = np.array(
                    data.draw(st.sampled_from(values))
                ).astype(array.dtype)
            arrays[name] = array
        case "bytes" if array.nbytes and array.dtype != bool:
            noise = data.draw(st.binary(min_size=array.itemsize, max_size=array.itemsize))
            arrays[name] = np.frombuffer(noise * array.size, array.dtype).reshape(array.shape)
        case "dtype":
            arrays[name] = array.astype(data.draw(st.sampled_from(["f4", "f8", "i4", "i8", "u1", "?"])))
        case "shape":
            arrays[name] = np.resize(array, data.draw(st.sampled_from([(), (0,), (1,), (2, 2), (3, 2), (1, 1, 1)])))
        case "missing":
            del arrays[name]
        case "further":
            arrays[f"{name}/{data.draw(st.sampled_from(['x', '9', 'value/step']))}"] = array
    rewritten(folder, Checkpoint(good.facts, arrays))
    resumed_or_refused(folder)


DEEP = "[" * 100_000
FACTS = {
    "nested deeply": lambda facts: DEEP,
    "no dictionary": lambda facts: "[]",
    "a key twice": lambda facts: json.dumps(facts)[:-1] + ', "files": {}}',
    "files of numbers": lambda facts: json.dumps({**facts, "files": {"train/": 3}, "provenance": _other_data(facts)}),
    "files nested": lambda facts: json.dumps({**facts, "files": [[]], "provenance": _other_data(facts)}),
    "one epoch setting": lambda facts: _with(facts, epoch_settings=[1.0]),
    "three epoch settings": lambda facts: _with(facts, epoch_settings=[1.0, 1.0, 1.0]),
    "an epoch setting that is not finite": lambda facts: _with(facts, epoch_settings=[1.0, float("inf")]),
    "a row of NaN": lambda facts: _with(facts, rows=[{**facts["progress"]["rows"][0], "density": float("nan")}]),
    "rows of another run": lambda facts: _with(facts, rows=[{**facts["progress"]["rows"][0], "stage": "regrowth"}]),
    "no rows": lambda facts: _with(facts, rows=[]),
    "no schedule": lambda facts: _with(facts, schedule=None),
    "seconds without end": lambda facts: _with(facts, seconds=float("inf")),
    "an accuracy of two": lambda facts: _with(facts, dense_accuracy=2.0),
    "a pressure beyond floats": lambda facts: _with(facts, schedule={"step": 4, "log_pressure": 1e308}),
    "a warning with an escape": lambda facts: _with(facts, warnings={"a": "\x1b[31m"}),
}


def _with(facts, **progress):
    return json.dumps({**facts, "progress": {**facts["progress"], **progress}})


def _other_data(facts):
    return {**facts["provenance"], "data": "other"}


@pytest.mark.parametrize("what", FACTS)
def test_facts_of_each_kind_are_refused(broken, tmp_path, monkeypatch, what):
    folder = shutil.copytree(broken("numpy"), tmp_path / "run")
    good = CheckpointFolder(folder / CHECKPOINTS).last(print)
    text = FACTS[what](json.loads(json.dumps(good.facts)))
    with monkeypatch.context() as patched:
        patched.setattr("hyperflux.runs.checkpoints.file.json.dumps", lambda facts: text)
        rewritten(folder, good)
    before = files_of(folder)
    with pytest.raises(InputError) as refused:
        resume(folder)
    assert "\n" not in str(refused.value)
    assert files_of(folder) == before


def refused_with(folder, good, name, value):
    """Whether a resume refuses, and changes nothing, where the first number of an array is another."""
    array = good.arrays[name].copy()
    array.flat[0] = value
    rewritten(folder, Checkpoint(good.facts, {**good.arrays, name: array}))
    before = files_of(folder)
    told = failure(lambda: resume(folder))
    return isinstance(told, InputError) and "checkpoint does not fit" in str(told) and files_of(folder) == before


@BACKENDS
def test_no_array_may_hold_nan_and_no_squared_moment_a_negative_number(broken, tmp_path, backend):
    good = CheckpointFolder(broken(backend) / CHECKPOINTS).last(print)
    own = [name for name, array in good.arrays.items() if name.startswith("backend/") and array.size]
    floating = [(name, np.nan) for name in own if good.arrays[name].dtype.kind == "f"]
    squared = [(name, -1.0) for name, _ in floating if name.endswith(("second", "exp_avg_sq"))]
    assert len(squared) >= 3
    for number, (name, value) in enumerate(floating + squared):
        folder = shutil.copytree(broken(backend), tmp_path / str(number))
        assert refused_with(folder, good, name, value), (name, value)


def test_a_gate_that_has_taken_more_steps_than_the_run_is_refused(broken, tmp_path):
    """Also without telemetry, which counts them too."""
    good = CheckpointFolder(broken("numpy") / CHECKPOINTS).last(print)
    folder = shutil.copytree(broken("numpy"), tmp_path / "run")
    assert refused_with(folder, good, "backend/gate/taken", 10**6)


def test_a_generator_state_that_is_none_is_refused(broken, tmp_path):
    folder = shutil.copytree(broken("torch"), tmp_path / "run")
    good = CheckpointFolder(folder / CHECKPOINTS).last(print)
    name = "backend/process 0/randomness/cpu"
    for bits in (good.arrays[name] * 0, good.arrays[name][:-1], np.full_like(good.arrays[name], 255)):
        rewritten(folder, Checkpoint(good.facts, {**good.arrays, name: bits}))
        with pytest.raises(InputError, match="checkpoint does not fit"):
            resume(folder)


def test_a_checkpoint_larger_than_its_network_can_need_is_not_read(broken, tmp_path):
    """Whole and intact, so that only its size tells."""
    folder = shutil.copytree(broken("numpy"), tmp_path / "run")
    path, said = sorted((folder / CHECKPOINTS).iterdir())[-1], []
    with path.open("r+b") as file:
        file.truncate(8 << 30)
    resume(folder, announce=said.append)
    assert "has 8,589,934,592 bytes, more than the" in said[0]
