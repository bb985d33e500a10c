"""What is not finite stops a run or costs it one step, and no more: in the driver, on both backends."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interrupted import broken_off, left, quick
from safetensors.numpy import save_file

from hyperflux import InputError, RunError, data
from hyperflux.backends import build_backend
from hyperflux.runs.checkpoints.folder import CheckpointFolder
from hyperflux.runs.checkpoints.writer import CheckpointInterval
from hyperflux.runs.data_order import epoch_batches
from hyperflux.runs.driver import execute, resume
from hyperflux.runs.folder import read_run
from hyperflux.session.nonfinite import MAX_IN_A_ROW, Fault, NonFiniteGuard, NotFiniteError

BACKENDS = ["numpy", "torch"]
SAMPLES, BATCH, STEPS_AN_EPOCH = 250, 32, 8


@pytest.fixture
def spoil(monkeypatch):
    """Change the synthetic data's training inputs, an array (samples, 16), in place."""
    whole = data._standardised

    def change(how):
        def spoiled(*parts):
            found = whole(*parts)
            inputs = found.train_inputs.copy()
            how(inputs)
            return replace(found, train_inputs=inputs)

        monkeypatch.setattr(data, "_standardised", spoiled)

    return change


def step_with(sample, epoch):
    """The step of the run in which a sample comes, in an epoch that counts from 1."""
    batches = list(epoch_batches(0, epoch, SAMPLES, BATCH))
    assert len(batches) == STEPS_AN_EPOCH
    (number,) = [number for number, batch in enumerate(batches, 1) if sample in batch]
    return (epoch - 1) * STEPS_AN_EPOCH + number


def huge(*samples):
    """Inputs whose products with the weights overflow: the loss is NaN."""

    def how(inputs):
        inputs[list(samples)] = 3e38

    return how


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loss_that_is_not_finite_stops_the_run_at_the_last_good_checkpoint(tmp_path, spoil, backend):
    spoil(huge(0))
    step = step_with(0, epoch=1)
    folder = tmp_path / "run"
    with pytest.raises(RunError) as stopped:
        execute(quick(backend=backend), folder, every=CheckpointInterval.parse("1"))
    assert str(stopped.value) == (
        f"the loss became nan at step {step} (epoch 1, dense); lower dense.learning_rate (0.001) and run again, or "
        "skip such steps and continue from the last good checkpoint with hyperflux prune --resume --out "
        f"{folder} --on-nonfinite skip"
    )
    saved = CheckpointFolder(folder / "checkpoint").last(print)
    assert all(np.isfinite(array).all() for array in saved.arrays.values())
    batches = saved.arrays["backend/own/losses"].shape[0] if backend == "numpy" else saved.arrays["backend/own/batches"]
    assert batches == step - 1, "the last good checkpoint is that before the step"


def test_a_run_that_stops_leaves_what_was_seen_of_it(tmp_path, spoil):
    spoil(huge(0))
    step = step_with(0, epoch=1)
    with pytest.raises(RunError, match=rf"at step {step} \(epoch 1, pruning\)"):
        execute(quick(dense={"epochs": 0}), tmp_path / "run")
    with np.load(tmp_path / "run" / "telemetry.npz") as tables:
        assert tables["network"]["step"].tolist() == list(range(1, step))


def deaf_weights(tmp_path):
    """Dense weights for mlp:16-12-4 that ignore the first feature, with a second layer so large that gradients are."""
    backend = build_backend(quick())
    tensors = backend.tensors()
    tensors["fc1.weight"][:, 0] = 0
    tensors["fc2.weight"] *= 1e3
    backend.load_tensors(tensors)
    save_file(backend.tensors(), tmp_path / "dense.safetensors")
    return str(tmp_path / "dense.safetensors")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("controller", ["default", "published"])
def test_a_gradient_that_is_not_finite_is_told_by_layer_and_step(tmp_path, spoil, backend, controller):
    """The first feature is 0 but for one sample, so that the loss is finite, and only fc1's gradient is not."""

    def how(inputs):
        inputs[:, 0] = 0
        inputs[7, 0] = 3e38

    spoil(how)
    config = quick(backend=backend, controller=controller, checkpoint=deaf_weights(tmp_path))
    name = "the norm of the gradient of fc1.weight"
    with pytest.raises(RunError, match=rf"^{name} became inf at step {step_with(7, epoch=1)} \(epoch 1, pruning\);"):
        execute(config, tmp_path / "run")
    report = execute(replace(config, on_nonfinite="skip"), tmp_path / "skips")
    if controller == "default":
        assert report.final_sparsity == pytest.approx(0.8, abs=2e-3)
    assert report.warnings[0].startswith(
        f"step {step_with(7, epoch=1)} (epoch 1, pruning) was skipped: {name} became inf"
    )
    assert "7 steps were skipped because a value was not finite" in report.warnings


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_stopped_run_that_goes_on_skipping_ends_as_one_that_always_skipped(tmp_path, spoil, backend):
    spoil(huge(3))
    told, folder = [], tmp_path / "run"
    with pytest.raises(RunError, match="the loss became nan"):
        execute(quick(backend=backend), folder, every=CheckpointInterval.parse("5"))
    resume(folder, announce=told.append, on_nonfinite="skip")
    always = []
    execute(quick(backend=backend, on_nonfinite="skip"), tmp_path / "always", announce=always.append)
    assert left(folder) == left(tmp_path / "always")
    assert [line for line in told if "no checkpoint" not in line] == always
    assert always == [
        f"step {step_with(3, epoch=1)} (epoch 1, dense) was skipped: the loss became nan",
        "8 steps were skipped because a value was not finite",
    ]
    assert read_run(folder).outcome.warnings == always


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_that_skips_is_interrupted_and_goes_on_to_the_bit(tmp_path, spoil, backend):
    """Counts of skipped steps and warnings that were told are part of its state."""
    spoil(huge(3))
    config = quick(backend=backend, on_nonfinite="skip")
    execute(config, tmp_path / "whole")
    broken_off(config, tmp_path / "cut", [step_with(3, 1), 9, 20], every="1", clean=True)
    assert left(tmp_path / "cut") == left(tmp_path / "whole")


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.booleans(), min_size=2, max_size=12).filter(lambda bad: not all(bad)), st.sampled_from(["sgd", "adam"])
)
def test_a_skipped_batch_is_as_none_at_all(spoil, backend, bad, name):
    """w, t, moments, momentum, counts and the mean loss, to the bit: E1 to E6 know nothing of a skipped step."""
    spoil(huge(*range(32)))
    rng = np.random.default_rng(len(bad))
    batches = [rng.integers(0, 32, 8) if spoiled else rng.integers(32, 250, 8) for spoiled in bad]
    optimizer = {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-3} if name == "sgd" else {}
    config = quick(backend=backend, optimizer=optimizer, on_nonfinite="skip")
    rates = {"learning_rate": 0.01, "label_smoothing": 0.1, "after_step": lambda: None}
    outcomes = []
    for chosen in (batches, [batch for batch, spoiled in zip(batches, bad, strict=True) if not spoiled]):
        backend_ = build_backend(config)
        losses = [backend_.train_dense(chosen, **rates)]
        gate = backend_.start_gate((0.2, 0.5))
        gate.pressure, gate.presence_lr = 10.0, 0.01
        losses.append(backend_.train_pruning(chosen, **rates))
        kept = {name: array.tobytes() for name, array in backend_.state().items() if "skipped" not in name}
        outcomes.append((losses, gate.steps, kept))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][1] == bad.count(False)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_that_would_skip_for_ever_stops(tmp_path, spoil, backend):
    spoil(huge(*range(SAMPLES)))
    config = quick(backend=backend, on_nonfinite="skip", dense={"epochs": 20})
    with pytest.raises(
        RunError, match=rf"^{MAX_IN_A_ROW} steps in a row were skipped, the last because the loss became"
    ):
        execute(config, tmp_path / "run")


@pytest.mark.parametrize("backend", BACKENDS)
def test_skipping_is_of_no_use_where_a_weight_is_not_finite(tmp_path, backend):
    """The step that made it so had a finite gradient."""
    optimizer = {"name": "sgd", "momentum": 0.9}
    config = quick(backend=backend, optimizer=optimizer, dense={"epochs": 3, "learning_rate": 1e38})
    for on_nonfinite in ("stop", "skip"):
        said = r"parameter fc\d\.(weight|bias) became (inf|nan) at step \d \(epoch 1, dense\); lower .* and run again$"
        with pytest.raises(RunError, match=said):
            execute(replace(config, on_nonfinite=on_nonfinite), tmp_path / on_nonfinite)
        assert list((tmp_path / on_nonfinite / "checkpoint").iterdir()) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_checkpoint_is_written_of_a_state_that_is_not_finite(tmp_path, monkeypatch, backend):
    """Whatever spoils it: here a hand that reaches for a t after the third epoch, a step before the next checkpoint."""
    kind, gates = type(build_backend(quick(backend=backend))), []
    start = kind.start_pruning

    def noting(self, *arguments):
        session = start(self, *arguments)
        gates.append(session.gate)
        return session

    def observe(row):
        if row.epoch == 3:
            presence = (
                gates[0].state.presence if backend == "numpy" else gates[0].states["fc2.weight"].presence.view(-1)
            )
            presence[presence.argmax()] = float("nan")  # of a present weight: θ stays what the last step wrote

    monkeypatch.setattr(kind, "start_pruning", noting)
    said = r"a presence parameter of fc2\.weight became nan at step 25 \(epoch 4, pruning\); lower .* and run again$"
    with pytest.raises(RunError, match=said):
        execute(quick(backend=backend), tmp_path / "run", observe, every=CheckpointInterval.parse("1"))
    saved = CheckpointFolder(tmp_path / "run" / "checkpoint").last(print)
    assert all(np.isfinite(array).all() for array in saved.arrays.values())


def test_the_command_that_the_error_names_goes_on(tmp_path):
    """As a user would: a rate that is too high, one line, exit code 1; then the setting changed beside --resume."""
    (tmp_path / "recipe.toml").write_text(
        'dataset = "synthetic"\nmodel = "mlp:16-12-4"\nsparsity = 0.8\nbackend = "numpy"\n[optimizer]\nname = "sgd"\n'
        "[dense]\nepochs = 1\nlearning_rate = 0.01\n[pruning]\nepochs = 6\nlearning_rate = 1e15\n[regrowth]\nepochs = 1"
    )
    command = [sys.executable, "-c", "from hyperflux_cli.main import main; main()", "prune"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = []
    for arguments in (
        ["--recipe", "recipe.toml", "--out", "run"],
        ["--resume", "--out", "run", "--on-nonfinite", "skip"],
    ):
        done.append(
            subprocess.run([*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
        )
    assert [process.returncode for process in done] == [1, 1]
    (first,), (second,) = (process.stderr.splitlines() for process in done)
    assert "parameter fc1.weight became inf at step 34 (epoch 2, pruning); lower pruning.learning_rate (1e+15)" in first
    assert first.endswith("and run again"), "to go on would end in the same step"
    assert second == first, "a step whose gradient was finite is not skipped"
    assert 'on_nonfinite = "skip"' in (tmp_path / "run" / "config.toml").read_text()


def test_an_unknown_way_is_refused():
    with pytest.raises(InputError, match="on_nonfinite 'ignore' is not known; known: stop, skip"):
        quick(on_nonfinite="ignore")


@given(st.lists(st.booleans(), max_size=400))
def test_only_steps_in_a_row_count_towards_the_end(bad):
    guard, fault, row = NonFiniteGuard("skip"), Fault("the loss", float("nan"), skippable=True), 0
    for step, spoiled in enumerate(bad, 1):
        row = row + 1 if spoiled else 0
        if row == MAX_IN_A_ROW:
            with pytest.raises(NotFiniteError):
                guard.skip(fault, step)
            return
        if spoiled:
            guard.skip(fault, step)
        else:
            guard.accept()
    assert guard.skipped == bad.count(True)
    again = NonFiniteGuard("skip")
    again.restore(json.loads(json.dumps(guard.counts())))
    assert again.counts() == guard.counts()
