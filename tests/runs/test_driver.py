"""The driver end to end: real data, determinism, the files a run leaves."""

import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from hyperflux import InputError, RunConfig, RunError, recipes
from hyperflux.backends.numpy import NumpyBackend
from hyperflux.data import load_dataset
from hyperflux.deploy.compact import compaction
from hyperflux.deploy.networks import load_networks
from hyperflux.runs.driver import default_folder, execute, total_epochs
from hyperflux.runs.folder import read_run
from hyperflux.schedules.base import Observation

# Small enough for a second, long enough for both stages: 32 steps an epoch, t moves 0.01 a step.
QUICK = {
    "backend": "numpy",
    "dataset": "synthetic",
    "model": "mlp:16-24-4",
    "sparsity": 0.8,
    "dense": {"epochs": 3},
    "pruning": {"epochs": 12, "presence_learning_rate": 1e-2},
    "regrowth": {"epochs": 4},
}


def quick(**settings):
    return RunConfig.from_dict({**QUICK, **settings})


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "quick"
    return folder, execute(quick(), folder)


@pytest.fixture(scope="module")
def digits_runs(tmp_path_factory):
    """The default run with three seeds: folders and reports."""
    folder = tmp_path_factory.mktemp("digits")
    return {folder / str(seed): execute(RunConfig(seed=seed), folder / str(seed)) for seed in range(3)}


@pytest.fixture(scope="module")
def digits_reports(digits_runs):
    return list(digits_runs.values())


def test_digits_at_95_percent_sparsity_stay_within_1_5_points_of_the_dense_network(digits_reports):
    lost = [report.dense_accuracy - report.final_accuracy for report in digits_reports]
    assert statistics.mean(lost) <= 0.015
    assert statistics.mean(report.dense_accuracy for report in digits_reports) > 0.95


def test_digits_meet_the_wanted_sparsity_to_the_weight(digits_reports):
    """E12, E14."""
    assert {report.surviving_weights for report in digits_reports} == {2510}


def test_compacted_digits_networks_are_smaller_and_predict_alike(digits_runs):
    images = torch.from_numpy(load_dataset("digits").test_inputs)[:, None]
    for folder in digits_runs:
        pruned = load_networks(folder).pruned
        smaller = compaction(pruned, images[:2])
        with torch.no_grad():
            assert torch.equal(pruned(images).argmax(1), smaller.module(images).argmax(1))
        assert smaller.weights_after < 0.8 * smaller.weights_before


def test_a_run_leaves_its_files(quick_run):
    folder, report = quick_run
    names = ["config.toml", "dense.safetensors", "metrics.jsonl", "model.safetensors", "report.json", "telemetry.npz"]
    assert sorted(path.name for path in folder.iterdir()) == names
    run = read_run(folder)
    assert run.config == quick()
    assert run.outcome == report
    assert [row.epoch for row in run.epochs] == list(range(1, 20))
    assert [row.stage for row in run.epochs] == ["dense"] * 3 + ["pruning"] * 12 + ["regrowth"] * 4


def test_the_report_is_that_of_the_model_file(quick_run):
    """Counts and accuracy at the final mask, recomputed from model.safetensors with NumPy alone."""
    from hyperflux.data import load_dataset

    folder, report = quick_run
    t, data = load_file(folder / "model.safetensors"), load_dataset("synthetic")
    hidden = np.maximum(data.test_inputs @ t["fc1.weight"].T + t["fc1.bias"], 0)
    correct = (hidden @ t["fc2.weight"].T + t["fc2.bias"]).argmax(axis=1) == data.test_labels
    assert report.final_accuracy == correct.mean()
    surviving = {name: int(np.count_nonzero(t[name])) for name in ("fc1.weight", "fc2.weight")}
    assert {layer.name: layer.surviving for layer in report.layers} == surviving
    assert report.surviving_weights == sum(surviving.values())
    assert report.total_weights == 16 * 24 + 24 * 4
    assert report.final_sparsity == 1 - report.surviving_weights / report.total_weights
    assert report.final_accuracy == read_run(folder).epochs[-1].accuracy


def test_flips_account_for_every_epochs_density(quick_run):
    """E1: density now = density before − pruned/N + regrown/N."""
    folder, report = quick_run
    surviving = report.total_weights
    for row in read_run(folder).epochs:
        surviving += row.regrown - row.pruned
        assert row.density == surviving / report.total_weights


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_watching_changes_nothing(backend, tmp_path):
    """The very same weights and metrics, but for the counts of flips, at every level of telemetry."""
    models, rows = [], []
    for level in ("off", "light", "full"):
        execute(quick(backend=backend, telemetry=level), tmp_path / level)
        models.append((tmp_path / level / "model.safetensors").read_bytes())
        run = read_run(tmp_path / level)
        rows.append([replace(row, pruned=None, regrown=None) for row in run.epochs])
        counted = {row.pruned is None for row in run.epochs if row.stage != "dense"}
        assert counted == {level == "off"}
        assert (run.telemetry is None) == (level == "off")
    assert models[0] == models[1] == models[2]
    assert rows[0] == rows[1] == rows[2]


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(quick_run, tmp_path):
    folder, _ = quick_run
    execute(quick(), tmp_path / "again")
    execute(quick(seed=1), tmp_path / "other")
    for name in ("model.safetensors", "dense.safetensors", "metrics.jsonl", "config.toml"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
        assert (folder / name).read_bytes() != (tmp_path / "other" / name).read_bytes()


def test_config_toml_repeats_the_run(quick_run, tmp_path):
    folder, _ = quick_run
    execute(RunConfig.from_dict(recipes.load(str(folder / "config.toml"))), tmp_path / "again")
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "again" / "model.safetensors").read_bytes()


def test_the_backend_gets_every_epochs_settings_and_a_fresh_order_of_the_data(tmp_path, monkeypatch):
    """E10: the driver passes on the stage's settings and the gate of the schedule; the real backend is listened to."""
    heard = []

    class Listening(NumpyBackend):
        def train_dense(self, batches, **settings):
            heard.append((batches := list(batches), settings, 0.0, 0.0))
            return super().train_dense(batches, **settings)

        def train_pruning(self, batches, **settings):
            heard.append((batches := list(batches), settings, self._gate.pressure, self._gate.presence_lr))
            return super().train_pruning(batches, **settings)

    monkeypatch.setattr("hyperflux.backends.numpy.NumpyBackend", Listening)
    smoothings = {"dense": 0.01, "pruning": 0.02, "regrowth": 0.03}
    stages = {stage: {**QUICK[stage], "label_smoothing": value} for stage, value in smoothings.items()}
    config = quick(controller="published", **stages)
    execute(config, tmp_path / "run")
    rows = read_run(tmp_path / "run").epochs
    schedule = config.schedule(16 * 24 + 24 * 4, 32)
    state = schedule.initial_state()
    for row, (_, settings, pressure, presence_lr) in zip(rows, heard, strict=True):
        assert settings["label_smoothing"] == smoothings[row.stage]
        assert settings["learning_rate"] == row.lr
        assert (pressure, presence_lr) == (row.pressure, row.presence_lr)
        if row.stage != "dense":
            orders = schedule.settings(state)
            assert (orders.pressure, orders.presence_lr) == (row.pressure, row.presence_lr)
            state = schedule.advance(state, Observation(0.0, lambda row=row: row.density, lambda: 0.0))
    stages = [row for row in rows if row.stage != "dense"]
    assert [row.wanted for row in stages] == [*schedule.trajectory, *[schedule.trajectory[-1]] * 4]
    orders_of_data = [np.concatenate(batches).tolist() for batches, *_ in heard]
    assert all(sorted(order) == list(range(1024)) for order in orders_of_data)
    assert len({tuple(order) for order in orders_of_data}) == len(rows) == 19


@pytest.mark.parametrize("settings", [{}, {"method": "magnitude"}])
def test_every_run_ends_with_the_wanted_number_of_weights(settings, tmp_path):
    """E12: the mask keeps that number through the last epochs, and the metrics say so."""
    report = execute(quick(**settings), tmp_path / "run")
    wanted = round((16 * 24 + 24 * 4) * 0.2)
    assert report.surviving_weights == wanted
    rows = read_run(tmp_path / "run").epochs
    assert [row.density for row in rows[-2:]] == [wanted / 480] * 2
    assert (rows[-1].pruned, rows[-1].regrown) == (0, 0)
    assert sum(row.pruned - row.regrown for row in rows) == 480 - wanted
    assert report.final_accuracy > 0.6


def test_a_checkpoint_replaces_dense_training(quick_run, tmp_path):
    folder, report = quick_run
    again = execute(quick(checkpoint=str(folder / "dense.safetensors")), tmp_path / "run")
    assert again.dense_accuracy == report.dense_accuracy
    rows = read_run(tmp_path / "run").epochs
    assert rows[0].stage == "pruning"
    assert len(rows) == total_epochs(quick(checkpoint="x")) == 16
    assert (folder / "dense.safetensors").read_bytes() == (tmp_path / "run" / "dense.safetensors").read_bytes()


def test_from_scratch(tmp_path):
    report = execute(quick(dense={"epochs": 0}), tmp_path / "run")
    assert report.dense_accuracy is None
    assert report.final_accuracy > 0.6
    assert report.surviving_weights == 96
    assert read_run(tmp_path / "run").epochs[0].stage == "pruning"


@pytest.mark.filterwarnings("error")
def test_a_loss_that_is_not_finite_ends_the_run_with_where_and_the_way_out(tmp_path):
    optimizer = {"name": "sgd", "momentum": 0.9}
    dense = {"epochs": 3, "learning_rate": 1e30, "final_learning_rate": 1e30}
    with pytest.raises(RunError, match=r"became (nan|inf) at step \d \(epoch 1, dense\); lower dense.learning_rate"):
        execute(quick(optimizer=optimizer, dense=dense), tmp_path / "run")
    assert not (tmp_path / "run" / "report.json").exists()


def test_too_few_steps_for_any_pruning_are_refused_with_how_many_it_takes(tmp_path):
    config = quick(controller="published", pruning={"epochs": 1, "presence_learning_rate": 1e-3})
    with pytest.raises(InputError, match=r"1 give 32 steps .* give --pruning-epochs 14"):
        execute(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_default_folder():
    config = RunConfig(model="mlp:64-30-10", sparsity=0.9, seed=4)
    assert default_folder(config) == Path("runs/digits-mlp-64-30-10-0.9-4")
    assert default_folder(RunConfig(method="magnitude")) == Path("runs/digits-lenet300-0.95-0-magnitude")
    assert default_folder(RunConfig(controller="published")) == Path("runs/digits-lenet300-0.95-0-published")


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"gates": "channels", "flops": 0.25}, "flops0.25"),
        ({"gates": "channels", "parameters": 0.1}, "parameters0.1"),
        ({"gates": "channels"}, "sparsity0.95"),
        ({"gates": "2:4"}, "2of4"),
    ],
)
def test_default_folder_names_what_bounds_the_network(settings, name):
    assert default_folder(RunConfig(**settings)) == Path(f"runs/digits-lenet300-{name}-0")


def test_the_outcome_of_a_run_with_channels(tmp_path):
    """E17: its counts are those of the file of weights, and its sizes keep the budget."""
    outcome = execute(quick(gates="channels", sparsity=None, flops=0.4), tmp_path / "run")
    tensors = load_file(tmp_path / "run" / "model.safetensors")
    zeros = {layer.name: np.count_nonzero(tensors[layer.name] == 0) for layer in outcome.layers}
    assert [layer.total - layer.surviving for layer in outcome.layers] == list(zeros.values())
    assert (outcome.gates, outcome.target_sparsity) == ("channels", None)
    assert [channels.name for channels in outcome.channels] == [layer.name[:3] for layer in outcome.layers[:-1]]
    assert outcome.flops_ratio == outcome.surviving_weights / outcome.total_weights <= 0.4
    open_units = sum(channels.surviving for channels in outcome.channels) + outcome.classes
    assert outcome.compact_parameters == outcome.surviving_weights + open_units
    assert read_run(tmp_path / "run").outcome == outcome


@pytest.mark.parametrize(
    ("settings", "target"),
    [({"gates": "channels", "sparsity": 0.6}, 0.6), ({"gates": "1:4", "sparsity": None}, 0.75), ({}, None)],
)
def test_the_sparsity_asked_for_is_recorded_where_it_was(settings, target, tmp_path):
    config = quick(**settings)
    outcome = execute(config, tmp_path / "run")
    assert outcome.target_sparsity == (config.sparsity if target is None else target)
    assert outcome.final_sparsity == pytest.approx(outcome.target_sparsity, abs=0.1)
    assert (outcome.compact_parameters is None) is (config.gates != "channels")


@pytest.mark.data
def test_lenet300_prunes_real_mnist(real_data, tmp_path):
    """The recipe cut short: 2 + 4 + 2 epochs, with a faster t, which the full recipe does not need."""
    settings = recipes.load("lenet300-mnist")
    settings["dense"]["epochs"] = 2
    settings["pruning"] |= {"epochs": 4, "presence_learning_rate": 4e-3}
    settings["regrowth"]["epochs"] = 2
    config = RunConfig.from_dict({**settings, "sparsity": 0.9, "data_dir": str(real_data)})
    report = execute(config, tmp_path / "run")
    assert report.final_accuracy > 0.96
    assert report.total_weights == 266_200
    assert report.surviving_weights == 26_620


def test_where_compaction_fails_the_run_is_done_all_the_same(tmp_path, monkeypatch):
    """Its size is a figure of the report; the networks and the accuracy are what the run was for."""

    def broken(model, example):
        raise IndexError("tuple index\nout of range")

    monkeypatch.setattr("hyperflux.backends.torch.backend.compact", broken)
    outcome = execute(quick(backend="torch", gates="channels", sparsity=None, flops=0.4), tmp_path / "run")
    assert (outcome.flops_ratio, outcome.parameters_ratio, outcome.compact_parameters) == (None, None, None)
    line = "the size of the compacted network is not known (IndexError: tuple index out of range)"
    assert outcome.warnings == [line]
    assert read_run(tmp_path / "run").outcome == outcome
