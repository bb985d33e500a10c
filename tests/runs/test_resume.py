"""A run that is broken off anywhere and goes on ends as the one that never was, to the bit."""

import json
import shutil
import tomllib
from dataclasses import replace

import numpy as np
import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from idx_files import write_mnist
from interrupted import STEPS, Breaker, LastCheckpoint, PowerCut, broken_off, left, quick

from hyperflux import InputError, RunConfig
from hyperflux import __version__ as VERSION
from hyperflux.recipes import load
from hyperflux.runs.checkpoints.folder import CheckpointFolder
from hyperflux.runs.checkpoints.writer import CheckpointInterval
from hyperflux.runs.driver import execute, resume
from hyperflux.runs.folder import read_run

SGD = {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3, "decay_all": False}
COURSES = {
    "adam": {},
    "sgd": {"optimizer": SGD, "dense": {"epochs": 1, "learning_rate": 0.05}},
    "plain sgd": {"optimizer": {"name": "sgd"}},
    "published": {"controller": "published"},
    "magnitude": {"method": "magnitude"},
    "watched closely": {"telemetry": "full"},
    "not watched": {"telemetry": "off"},
    "double": {"dtype": "float64"},
    "from scratch": {"dense": {"epochs": 0}},
    "without regrowth": {"regrowth": {"epochs": 0}},
}

GATES = {
    "channels": {"gates": "channels", "gate_inputs": True},
    "parameters": {"gates": "channels", "sparsity": None, "parameters": 0.3, "telemetry": "full"},
    "taylor": {"gates": "channels", "sparsity": None, "flops": 0.3, "method": "taylor"},
    "N:M": {"gates": "2:4", "sparsity": None},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an uninterrupted run of each course leaves, and its last checkpoint."""
    known = {}

    def of(**settings):
        key = json.dumps(settings, sort_keys=True)
        if key not in known:
            with pytest.MonkeyPatch.context() as patched:
                heard = LastCheckpoint(patched)
                folder = tmp_path_factory.mktemp("whole") / "run"
                execute(quick(**settings), folder)
            known[key] = left(folder), heard.content()
        return known[key]

    return of


def same(whole, folder, after, every="7", clean=False, **settings):
    with pytest.MonkeyPatch.context() as patched:
        heard = LastCheckpoint(patched)
        broken_off(quick(**settings), folder, after, every, clean)
    files, last = whole(**settings)
    assert left(folder) == files
    assert heard.content() == last


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("course", COURSES)
def test_every_course_goes_on_to_the_bit(whole, tmp_path, course, backend):
    """Broken off in the dense stage, in pruning, twice, and in regrowth; between checkpoints and at them."""
    steps = STEPS - 8 if course == "from scratch" else STEPS - 16 if course == "without regrowth" else STEPS
    settings = {**COURSES[course], "backend": backend}
    same(whole, tmp_path / "cut", [4, 20, 1, 30], **settings)
    same(whole, tmp_path / "stopped", [5, 20, 1, steps - 26 - 5], clean=True, **settings)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("gates", GATES)
def test_gates_of_every_kind_go_on_to_the_bit(whole, tmp_path, gates, backend):
    """Prices and pressure's part in the moments of each channel too."""
    settings = {**GATES[gates], "backend": backend}
    same(whole, tmp_path / "cut", [4, 20, 1, 30], **settings)
    same(whole, tmp_path / "stopped", [5, 20, 1, 33], clean=True, **settings)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.sampled_from(["1", "3", "8", "1000"]), st.booleans())
def test_any_steps_and_any_pace(whole, tmp_path_factory, backend, after, every, clean):
    same(whole, tmp_path_factory.mktemp("any") / "run", after, every, clean, backend=backend)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_every_single_step(whole, tmp_path, backend):
    """A new start for each step of the run: nothing survives but what the checkpoint holds."""
    same(whole, tmp_path / "run", [1] * STEPS, clean=True, backend=backend)


def test_a_run_from_a_dense_checkpoint(whole, tmp_path):
    execute(quick(), tmp_path / "first")
    dense = {"checkpoint": str(tmp_path / "first" / "dense.safetensors")}
    same(whole, tmp_path / "run", [20, 20], **dense)


def cut(folder, after=20, every="7", **settings):
    """A run that was broken off."""
    with pytest.raises(PowerCut):
        execute(quick(**settings), folder, every=CheckpointInterval.parse(every), stop=Breaker(after, clean=False))
    return folder


@pytest.mark.parametrize("epoch", range(1, 9))
def test_a_run_that_ends_where_an_epoch_does(whole, tmp_path, epoch):
    """Its row is written, and nothing else."""

    def observe(row):
        if row.epoch == epoch:
            raise PowerCut

    with pytest.raises(PowerCut):
        execute(quick(), tmp_path / "run", observe, every=CheckpointInterval.parse("7"))
    resume(tmp_path / "run")
    assert left(tmp_path / "run") == whole()[0]


def test_rows_after_the_checkpoint_are_cut_off_and_a_torn_line_with_them(whole, tmp_path):
    folder = cut(tmp_path / "run", after=30, every="11")
    metrics = folder / "metrics.jsonl"
    assert len(metrics.read_text().splitlines()) == 3
    for text in (metrics.read_text() + '{"epoch": 4, "sta', ""):  # torn; or lost with the power
        metrics.write_text(text)
        with pytest.raises(PowerCut):
            resume(folder, every=CheckpointInterval.parse("1000"), stop=Breaker(3, clean=False))
        assert len(metrics.read_text().splitlines()) == 2  # the checkpoint is of step 19, the third of its epoch
    resume(folder)
    assert left(folder) == whole()[0]


def test_a_damaged_checkpoint_costs_only_the_steps_since_the_one_before(whole, tmp_path):
    folder, said = cut(tmp_path / "run"), []
    newest = sorted((folder / "checkpoint").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    resume(folder, announce=said.append)
    assert len(said) == 1
    assert "is damaged; the checkpoint before it is used" in said[0]
    assert left(folder) == whole()[0]


def test_before_the_first_checkpoint_the_run_begins_anew(whole, tmp_path):
    folder, said = cut(tmp_path / "run", after=5), []
    resume(folder, announce=said.append)
    assert said == [f"{folder}: no checkpoint had been written yet; the run starts again"]
    assert left(folder) == whole()[0]


def test_seconds_count_both_parts(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    class Slow(Breaker):
        def __call__(self):
            now[0] += 1.0
            return super().__call__()

    with pytest.raises(PowerCut):
        execute(quick(), tmp_path / "run", every=CheckpointInterval.parse("10"), stop=Slow(25, clean=False))
    now[0] = 5000.0
    report = resume(tmp_path / "run", stop=Slow(10**9, clean=False))
    assert report.seconds == STEPS  # a second a step, of which five were done twice


def test_a_finished_run_stays_as_it_is(tmp_path):
    folder, said = tmp_path / "run", []
    report = execute(quick(), folder)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    assert resume(folder, announce=said.append) == report
    assert said == [f"{folder}: this run is finished; there is nothing left to do"]
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before


def test_checkpoints_that_a_finished_run_could_not_remove_are_removed(tmp_path):
    folder = cut(tmp_path / "run")
    shutil.copytree(folder / "checkpoint", tmp_path / "kept")
    resume(folder)
    before = left(folder)
    shutil.move(tmp_path / "kept", folder / "checkpoint")
    resume(folder)
    assert left(folder) == before


def test_checkpoints_come_at_their_pace_at_the_end_of_stages_and_two_are_kept(tmp_path):
    seen = []

    class Watching(Breaker):
        def __call__(self):
            seen.append(sorted(path.name[:6] for path in (tmp_path / "run" / "checkpoint").iterdir()))
            return super().__call__()

    execute(quick(), tmp_path / "run", every=CheckpointInterval.parse("20"), stop=Watching(10**9, clean=False))
    # At the end of the dense stage (8 steps), after 20 and 40 more, one of which ends pruning.
    assert [len(names) for names in (seen[7], seen[8], seen[27], seen[28], seen[48])] == [0, 1, 1, 2, 2]
    assert seen[-1] == ["000003", "000004"]
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_an_unfinished_run_tells_how_it_goes_on(tmp_path):
    folder = cut(tmp_path / "a run")
    with pytest.raises(
        InputError, match=r"unfinished run; go on with hyperflux prune --resume --out '.*/a run'; name another"
    ):
        execute(quick(), folder)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "holds no run; name the folder of one with --out"),
        (lambda folder: (folder / "config.toml").write_text("model = "), "not valid TOML"),
        (lambda folder: (folder / "config.toml").write_text('dataset = "synthetic"'), "keeps no checkpoints"),
    ],
)
def test_what_is_no_unfinished_run_is_refused(tmp_path, prepare, message):
    prepare(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=message):
        resume(tmp_path)
    assert sorted(tmp_path.iterdir()) == before


def settings_of(folder, changed):
    """The run's config.toml with some settings changed, as by an editor."""
    config = folder / "config.toml"
    config.write_text(tomli_w.dumps({**tomllib.loads(config.read_text()), **changed}))


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_other_data_are_refused_and_the_same_data_elsewhere_taken(tmp_path, backend):
    """The fingerprint, not the folder's name, says which data they are."""
    write_mnist(tmp_path / "data")
    mnist = {"backend": backend, "dataset": "mnist", "model": "mlp:784-4-10", "batch_size": 4, "train_samples": 32}
    folder = cut(tmp_path / "run", data_dir=str(tmp_path / "data"), **mnist)
    (tmp_path / "data").rename(tmp_path / "moved")
    labels = tmp_path / "data" / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    write_mnist(tmp_path / "data")
    changed = bytearray(labels.read_bytes())
    changed[-1] ^= 1
    changed[9] ^= 1
    labels.write_bytes(changed)
    before = sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir() if path.is_file())
    with pytest.raises(InputError, match="data set mnist: is not the one that this run started with; set data_dir"):
        resume(folder)
    assert sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir() if path.is_file()) == before
    settings_of(folder, {"data_dir": str(tmp_path / "moved")})
    resume(folder)


@pytest.mark.parametrize("named", ["by option", "by environment", "by default"])
def test_a_run_goes_on_from_any_folder_and_environment(tmp_path, monkeypatch, named):
    """Whatever its paths were relative to, and whoever set HYPERFLUX_DATA."""
    write_mnist(tmp_path / "data")
    mnist = {"dataset": "mnist", "model": "mlp:784-4-10", "batch_size": 4, "train_samples": 32}
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYPERFLUX_DATA", raising=False)
    if named == "by environment":
        monkeypatch.setenv("HYPERFLUX_DATA", "data")
    execute(quick(**mnist), tmp_path / "first")
    (tmp_path / "first" / "dense.safetensors").rename(tmp_path / "w.safetensors")
    cut(tmp_path / "run", **mnist, checkpoint="w.safetensors", data_dir="data" if named == "by option" else "")
    monkeypatch.delenv("HYPERFLUX_DATA", raising=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    resume(tmp_path / "run")
    config = read_run(tmp_path / "run").config
    assert (config.data_dir, config.checkpoint) == (str(tmp_path / "data"), str(tmp_path / "w.safetensors"))
    again = RunConfig.from_dict(load(str(tmp_path / "run" / "config.toml")))
    assert execute(again, tmp_path / "again").surviving_weights == read_run(tmp_path / "run").outcome.surviving_weights


def test_data_and_weights_that_have_moved_are_given_to_resume(tmp_path):
    write_mnist(tmp_path / "data")
    mnist = {"dataset": "mnist", "model": "mlp:784-4-10", "batch_size": 4, "train_samples": 32}
    execute(quick(**mnist, data_dir=str(tmp_path / "data")), tmp_path / "first")
    own = tmp_path / "first" / "dense.safetensors"
    folder = cut(tmp_path / "run", **mnist, data_dir=str(tmp_path / "data"), checkpoint=str(own))
    (tmp_path / "data").rename(tmp_path / "moved")
    own.rename(tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"is missing; give the folder that holds MNIST/raw by --data-dir"):
        resume(folder)
    resume(folder, data_dir=str(tmp_path / "moved"), checkpoint=str(tmp_path / "w.safetensors"))
    assert read_run(folder).config.data_dir == str(tmp_path / "moved")


def test_paths_that_config_toml_could_not_hold_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    (tmp_path / "a\nb").mkdir()
    monkeypatch.chdir(tmp_path / "a\nb")
    monkeypatch.delenv("HYPERFLUX_DATA", raising=False)
    with pytest.raises(InputError, match=r"data_dir: .* holds a control character"):
        execute(quick(dataset="mnist", model="mlp:784-4-10"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_dense_weights_are_refused(tmp_path):
    for seed in (0, 1):
        execute(quick(seed=seed), tmp_path / str(seed))
    dense = tmp_path / "dense.safetensors"
    dense.write_bytes((tmp_path / "0" / "dense.safetensors").read_bytes())
    folder = cut(tmp_path / "run", checkpoint=str(dense))
    dense.write_bytes((tmp_path / "1" / "dense.safetensors").read_bytes())
    with pytest.raises(InputError, match="weights file is not the one that this run started with; put it back"):
        resume(folder)
    dense.unlink()
    with pytest.raises(InputError, match=r"dense\.safetensors: no such file"):
        resume(folder)


def test_a_config_that_was_changed_is_refused_with_what_it_was(tmp_path):
    folder = cut(tmp_path / "run")
    settings_of(folder, {"sparsity": 0.5})
    with pytest.raises(
        InputError, match=r"sparsity: is 0\.5 in config\.toml, but the run started with 0\.8; put it back"
    ):
        resume(folder)
    settings_of(folder, {"sparsity": 0.8, "workers": 0})
    resume(folder)


def test_another_version_of_a_library_is_told(tmp_path, monkeypatch):
    folder, said = cut(tmp_path / "run"), []
    monkeypatch.setattr("hyperflux.runs.checkpoints.provenance.__version__", "9.9")
    resume(folder, announce=said.append)
    assert said == [f"hyperflux is 9.9, the run started with {VERSION}: results may differ in the last bits"]


def test_another_device_or_number_of_threads_is_told(tmp_path, monkeypatch):
    folder, said = cut(tmp_path / "run", backend="torch"), []
    monkeypatch.setattr("hyperflux.backends.torch.backend.threads_for", lambda *_: 2)
    resume(folder, announce=said.append)
    assert said == [
        "device is cpu with 2 threads, the run started with cpu with 1 thread: results may differ in the last bits"
    ]


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    """Moved into the folder by hand, whole and intact."""
    folder, other = cut(tmp_path / "run"), cut(tmp_path / "other", seed=1)
    shutil.rmtree(folder / "checkpoint")
    shutil.move(other / "checkpoint", folder / "checkpoint")
    with pytest.raises(InputError, match=r"seed: is 0 in config\.toml, but the run started with 1"):
        resume(folder)


def test_facts_of_another_layout_are_refused_in_one_line(tmp_path):
    folder = cut(tmp_path / "run")
    checkpoints = CheckpointFolder(folder / "checkpoint")
    saved = checkpoints.last(print)
    lacking = {name: array for name, array in saved.arrays.items() if name != "backend/gate/presence"}
    for facts, arrays in (({}, saved.arrays), (saved.facts, lacking)):
        checkpoints.write(replace(saved, facts=facts, arrays=arrays))
        with pytest.raises(InputError, match="its checkpoint does not fit this version of hyperflux"):
            resume(folder)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@given(data=st.data())
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arrays_of_another_name_or_shape_are_refused_in_one_line(interrupted, tmp_path_factory, backend, data):
    """With a true checksum: nothing is broadcast, nothing is half restored, and the run stays resumable."""
    folder = tmp_path_factory.mktemp("damaged") / "run"
    shutil.copytree(interrupted(backend), folder)
    checkpoints = CheckpointFolder(folder / "checkpoint")
    good = checkpoints.last(print)
    name = data.draw(st.sampled_from([n for n in sorted(good.arrays) if n.startswith(RESTORED)]))
    change = data.draw(st.sampled_from(["missing", "longer", "broadcastable", "complex"]))
    arrays, array = dict(good.arrays), good.arrays[name]
    if change == "missing":
        del arrays[name]
    elif change == "longer":
        arrays[name] = np.concatenate([array.ravel(), array.ravel()[:1]]) if array.size else np.zeros(1, array.dtype)
    else:
        arrays[name] = array.ravel()[:1].reshape([1] * (array.ndim + 1)) if array.size else np.zeros((1, 1))
        arrays[name] = arrays[name].astype(np.complex64) if change == "complex" else arrays[name]
    checkpoints.write(replace(good, arrays=arrays))
    with pytest.raises(InputError) as refused:
        resume(folder)
    assert "\n" not in str(refused.value)
    checkpoints.write(good)
    resume(folder)
    assert (folder / "model.safetensors").exists()


RESTORED = ("backend/model", "backend/gate", "backend/own/biases", "telemetry")
"""What the network and its gate are restored from."""


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run of each backend that was broken off in the middle of pruning."""
    known = {}

    def of(backend):
        if backend not in known:
            known[backend] = tmp_path_factory.mktemp("broken") / "run"
            every = CheckpointInterval.parse("7")
            with pytest.raises(PowerCut):
                execute(quick(backend=backend), known[backend], every=every, stop=Breaker(30, clean=False))
        return known[backend]

    return of
