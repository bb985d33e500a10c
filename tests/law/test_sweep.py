"""The pressure sweep on both backends: what it presses, when it goes on, what it measures; and its files and plots."""

import csv
import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tolerances import ROUNDING, ROUNDING_FLOAT32

from hyperflux import InputError, RunConfig, RunError
from hyperflux.backends import build_backend
from hyperflux.law.saliency import Saliency, measure
from hyperflux.law.sweep import MIN_EPOCHS, WINDOW, SweepRow, SweepSettings, has_settled, prepare, sweep
from hyperflux.report import sweep as shown
from hyperflux.runs.data_order import epoch_batches

BASE = {
    "dataset": "synthetic",
    "model": "mlp:16-24-4",
    "dense": {"epochs": 2},
    "batch_size": 128,
    "pruning": {"presence_learning_rate": 4e-2},
}
QUICK = SweepSettings(-6, 2, 4, max_epochs=25, methods=("hyperflux", "magnitude"))


def config(backend, **settings):
    return RunConfig.from_dict({**BASE, "backend": backend, **settings})


@pytest.fixture(scope="module", params=["numpy", "torch"])
def done(request, tmp_path_factory):
    """(config, dense network, rows) of a quick sweep."""
    folder = tmp_path_factory.mktemp(request.param) / "law"
    chosen = config(request.param)
    checkpoint = prepare(chosen, folder)
    return chosen, checkpoint, list(sweep(chosen, QUICK, checkpoint))


def test_higher_pressure_settles_at_a_lower_density(done):
    """E11"""
    rows = [row for row in done[2] if row.method == "hyperflux"]
    assert [row.pressure for row in rows] == [2.0**-6, 2.0**-2, 2.0**2]
    densities = [row.density for row in rows]
    assert all(later < earlier for earlier, later in pairwise([1.0, *densities]))
    for row in rows:
        assert row.total == 480
        assert row.density == row.surviving / 480 == row.track[-1]
        assert len(row.track) == row.epochs <= 25
        assert row.settled == has_settled(row.track)
        assert not any(has_settled(row.track[:epochs]) for epochs in range(row.epochs))
        assert row.settled or row.epochs == 25


def test_magnitude_pruning_keeps_as_many_weights_for_as_many_epochs(done):
    ours, theirs = ([row for row in done[2] if row.method == name] for name in ("hyperflux", "magnitude"))
    assert len(ours) == len(theirs)
    for mine, rival in zip(ours, theirs, strict=True):
        assert (rival.surviving, rival.epochs, rival.pressure) == (mine.surviving, mine.epochs, mine.pressure)
        assert set(rival.track) == {mine.density}


def test_magnitude_pruning_keeps_the_largest_of_the_dense_network(done, monkeypatch):
    """Before its first step, that is: here it takes none."""
    chosen, checkpoint, _ = done
    monkeypatch.setattr("hyperflux.law.sweep.epoch_batches", lambda *_: iter([np.arange(1)]))
    frozen = replace(chosen, pruning=replace(chosen.pruning, learning_rate=0.0))
    first = next(
        row for row in sweep(frozen, replace(QUICK, highest=-4, step=1), checkpoint) if row.method == "magnitude"
    )
    backend = build_backend(chosen)
    backend.load_weights(checkpoint)
    sizes = np.sort(np.abs(np.concatenate([backend.tensors()[name].ravel() for name in backend.masks()])))[::-1]
    assert first.saliencies["magnitude"].smallest == pytest.approx(sizes[first.surviving - 1], rel=ROUNDING_FLOAT32)


def test_no_weight_waits_longer_than_an_epoch_to_be_pruned(done):
    """E2: the first t are drawn so low that pressure can act in the first epoch, however small the steps of t."""
    chosen, checkpoint, _ = done
    slow = replace(chosen, pruning=replace(chosen.pruning, presence_learning_rate=1e-4))
    first = next(sweep(slow, SweepSettings(10, 12, max_epochs=MIN_EPOCHS), checkpoint))
    assert first.track[0] < 0.5


def test_the_same_sweep_gives_the_same_bits_and_another_seed_does_not(done):
    chosen, checkpoint, rows = done
    assert list(sweep(chosen, QUICK, checkpoint)) == rows
    other = next(sweep(replace(chosen, seed=1), QUICK, checkpoint))
    assert other.track != rows[0].track


def test_independent_pressures_do_not_know_of_each_other(done):
    chosen, checkpoint, rows = done
    settings = replace(QUICK, independent=True)
    alone = list(sweep(chosen, settings, checkpoint))
    assert alone[0] == rows[0]
    assert alone[1] != rows[1]
    without_first = list(sweep(chosen, replace(settings, lowest=-2, step=2, methods=("hyperflux",)), checkpoint))
    assert without_first[0] == alone[1]
    alive = sum(row.surviving > 0 for row in alone if row.method == "hyperflux")
    assert [row.method for row in alone] == ["hyperflux"] * 3 + ["magnitude"] * alive


def test_a_pressure_that_prunes_everything_ends_the_sweep(done):
    chosen, checkpoint, _ = done
    fast = replace(chosen, pruning=replace(chosen.pruning, presence_learning_rate=0.4))
    rows = list(sweep(fast, SweepSettings(40, 42, methods=("hyperflux", "magnitude")), checkpoint))
    assert [(row.method, row.surviving, row.settled) for row in rows] == [("hyperflux", 0, False)]
    assert rows[0].epochs < MIN_EPOCHS
    assert rows[0].fault == "everything was pruned"
    assert all(np.isnan(saliency.smallest) for saliency in rows[0].saliencies.values())


def test_a_loss_that_is_not_finite_is_told(done):
    chosen, checkpoint, _ = done
    wild = replace(chosen, optimizer=replace(chosen.optimizer, name="sgd"))
    wild = replace(wild, pruning=replace(wild.pruning, learning_rate=1e30))
    with pytest.raises(RunError, match=r"under pressure 0\.0156.*; lower pruning\.learning_rate"):
        list(sweep(wild, QUICK, checkpoint))


def test_settling_is_a_small_change_over_a_window_after_a_first_while():
    still = [0.5] * MIN_EPOCHS
    assert has_settled(still)
    assert not has_settled(still[1:])
    moved = [0.5] * (MIN_EPOCHS - WINDOW) + [0.47] * WINDOW
    assert not has_settled(moved)
    assert has_settled([*moved, 0.47])
    assert has_settled([0.9] * MIN_EPOCHS + [0.5 * 1.0049**-epoch for epoch in range(WINDOW + 1)])
    assert not has_settled([0.9] * MIN_EPOCHS + [0.5 * 1.0051**-epoch for epoch in range(WINDOW + 1)])
    assert not has_settled([0.0] * MIN_EPOCHS)


def pruned_backend(name, dtype="float64"):
    backend = build_backend(config(name, dtype=dtype))
    gate = backend.start_gate((0.01, 0.02))
    gate.pressure, gate.presence_lr = 0.5, 1e-2
    backend.train_pruning(
        epoch_batches(0, 1, backend.samples, 32), learning_rate=1e-3, label_smoothing=0.1, after_step=lambda: None
    )
    assert 0 < gate.surviving() < gate.total
    return backend


def test_loss_gradient_is_the_same_on_both_backends():
    """g of pruned and surviving weights alike, from the same effective weights."""
    ours, theirs = pruned_backend("numpy"), pruned_backend("torch")
    masks, their_masks = ours.masks(), theirs.masks()
    assert list(masks) == list(their_masks) == ["fc1.weight", "fc2.weight"]
    gradients, their_gradients = ours.loss_gradient(0.1), theirs.loss_gradient(0.1)
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(masks[name], their_masks[name])
        assert gradient.shape == their_gradients[name].shape
        assert gradient.dtype == their_gradients[name].dtype == np.float64
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(gradient, their_gradients[name], rtol=0, atol=1e3 * ROUNDING * scale)
        assert (gradient[~masks[name]] != 0).any()


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_masks_count_as_the_layers_do_and_gate_the_tensors(backend):
    pruned, tensors = pruned_backend(backend), None
    tensors = pruned.tensors()
    for layer in pruned.layers():
        mask = pruned.masks()[layer.name]
        assert (mask.dtype, mask.size, np.count_nonzero(mask)) == (bool, layer.total, layer.surviving)
        assert not tensors[layer.name][~mask].any()
    assert all(mask.all() for mask in build_backend(config(backend)).masks().values())


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_loss_gradient_is_the_slope_of_the_loss_without_smoothing(backend):
    """Central differences of the mean training loss, here from `evaluate` on the training part itself."""
    pruned = pruned_backend(backend)
    gradient = pruned.loss_gradient(0.0)["fc2.weight"]
    tensors = {name: torch.from_numpy(value) for name, value in pruned.tensors().items()}
    inputs, labels = (torch.from_numpy(part) for part in training_part())

    def loss(change):
        weight = tensors["fc2.weight"].clone()
        weight[1, 2] += change
        hidden = torch.relu(inputs @ tensors["fc1.weight"].T + tensors["fc1.bias"])
        return float(torch.nn.functional.cross_entropy(hidden @ weight.T + tensors["fc2.bias"], labels))

    assert gradient[1, 2] == pytest.approx((loss(1e-6) - loss(-1e-6)) / 2e-6, abs=1e-8)


def training_part():
    from hyperflux.data import load_dataset

    data = load_dataset("synthetic")
    return data.train_inputs.astype(np.float64), data.train_labels


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_measuring_disturbs_neither_training_nor_randomness(backend):
    measured, left_alone = pruned_backend(backend, "float32"), pruned_backend(backend, "float32")
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    measure(measured, 0.1)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002
    for one in (measured, left_alone):
        one.train_pruning(
            epoch_batches(0, 2, one.samples, 32), learning_rate=1e-3, label_smoothing=0.1, after_step=lambda: None
        )
    for name, tensor in measured.tensors().items():
        np.testing.assert_array_equal(tensor, left_alone.tensors()[name])


def test_loss_gradient_leaves_batch_statistics_dropout_and_mode_alone(tmp_path, monkeypatch):
    from image_files import write_cifar10

    write_cifar10(tmp_path, monkeypatch)
    backend = build_backend(
        RunConfig.from_dict(
            {"dataset": "cifar10", "data_dir": str(tmp_path), "model": "resnet20", "batch_size": 8, "device": "cpu"}
        )
    )
    before = backend.tensors()
    first, second = backend.loss_gradient(0.1), backend.loss_gradient(0.1)
    assert first.keys() == backend.masks().keys()
    for name, gradient in first.items():
        np.testing.assert_array_equal(gradient, second[name])
    for name, tensor in backend.tensors().items():
        np.testing.assert_array_equal(tensor, before[name])
    assert backend._model.training


class Survivors:
    """A backend with four weights, of which one is pruned and one is silent."""

    def tensors(self):
        return {"a": np.array([[2.0, -3.0], [0.0, 0.5]]), "bias": np.array([9.0])}

    def loss_gradient(self, label_smoothing):
        return {"a": np.array([[0.1, -0.2], [7.0, 0.0]])}

    def masks(self):
        return {"a": np.array([[True, True], [False, True]])}


def test_saliencies_are_of_survivors_and_silent_ones_are_counted_apart():
    found = measure(Survivors(), 0.1)
    assert found["magnitude"] == Saliency(0.5, pytest.approx(0.5 + 0.02 * 1.5), 0)
    assert found["gradient"] == Saliency(0.1, pytest.approx(0.1 + 0.01 * 0.1), 1)
    assert found["taylor"] == Saliency(0.2, pytest.approx(0.2 + 0.01 * 0.4), 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lowest": 3, "highest": 1}, "3 to 1 in steps of 1 are 0 pressures; a law needs 3 or more"),
        ({"lowest": 0, "highest": 1}, "are 2 pressures"),
        ({"lowest": float("nan")}, "lowest: nan is out of range; it is an exponent of two"),
        ({"highest": 2000}, "highest: 2000 is out of range"),
        ({"step": 0}, "step: 0 is out of range; give a number of octaves"),
        ({"step": float("inf")}, "step: inf is out of range"),
        ({"max_epochs": 5}, "epochs: 5 a pressure; give 20 or more"),
        ({"max_epochs": 10**9}, "and at most 100000"),
        ({"methods": ("magntude",)}, "did you mean magnitude"),
        ({"methods": ("magnitude",)}, "methods: magnitude; give hyperflux, and magnitude if wanted"),
        ({"methods": ()}, "methods: none"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        SweepSettings(**settings)


def test_pressures_are_octaves_or_what_the_step_says():
    assert SweepSettings(-1, 2).pressures() == [0.5, 1, 2, 4]
    assert SweepSettings(0, 1, 0.25).pressures() == [2**0.0, 2**0.25, 2**0.5, 2**0.75, 2.0]


def row(pressure, density, **changed):
    saliency = {
        name: Saliency(1e-3 / (density or 1), 2e-3 / (density or 1), 0) for name in ("magnitude", "gradient", "taylor")
    }
    values = {
        "method": "hyperflux", "pressure": pressure, "density": density, "surviving": round(1000 * density),
        "total": 1000, "epochs": 20, "settled": True, "accuracy": 0.9, "saliencies": saliency, "track": (density,) * 20,
    }  # fmt: skip
    return SweepRow(**{**values, **changed})


MADE_UP = [
    row(0.25, 1.0),
    row(0.5, 0.4, settled=False),
    *(row(2.0**k, 0.05 * 2.0 ** (-k / 2) * (1 + 0.01 * (-1) ** k)) for k in range(0, 8)),
    row(2.0**8, 0.1),
    row(2.0**9, 0.0, saliencies={name: Saliency(np.nan, np.nan, 0) for name in ("magnitude", "gradient", "taylor")}),
    row(1.0, 0.05, method="magnitude"),
]


def test_what_did_not_settle_or_lost_nothing_or_all_is_kept_marked_and_not_fitted(tmp_path):
    found = shown.study(MADE_UP, [0.98])
    assert list(found.pressure) == [2.0**k for k in range(9)]
    assert found.outliers == (8,)
    assert any("left out of both fits: pressure 256, density 0.1" in line for line in found.sentences())
    shown.write_rows(MADE_UP, tmp_path)
    shown.write_study(MADE_UP, SweepSettings(), found, tmp_path, "a title")
    with (tmp_path / "law.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(float(line["pressure"]), float(line["density"])) for line in table] == [
        (row.pressure, row.density) for row in MADE_UP[:-1]
    ]
    assert [line["left_out"] for line in table] == [
        "nothing was pruned", "did not settle", *[""] * 8, "outlier", "everything was pruned"
    ]  # fmt: skip
    with (tmp_path / "saliencies.csv").open() as file:
        saliencies = list(csv.DictReader(file))
    assert len(saliencies) == 3 * len(MADE_UP)
    assert saliencies[-1] == {
        "method": "magnitude", "pressure": "", "density": "0.05", "measure": "taylor", "smallest": "0.02",
        "quantile": "0.04", "silent": "0",
    }  # fmt: skip
    written = json.loads((tmp_path / "law.json").read_text())
    assert written["law"]["left_out"] == [{"pressure": 256.0, "density": 0.1}]
    assert written["law"]["linear"]["alpha0"] == pytest.approx(0.5, abs=0.01)
    assert len(written["rows"]) == len(MADE_UP)
    assert written["rows"][-2]["saliencies"]["taylor"]["smallest"] is None
    for name in ("law.png", "saliencies.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "law.csv", "law.json", "law.png", "saliencies.csv", "saliencies.png"
    ]  # fmt: skip


def test_answers_say_where_they_are_extrapolated_or_missing():
    lines = shown.study(MADE_UP[2:10], [0.98, 0.9999, 0.5]).sentences()
    assert lines[1].startswith("98 % sparsity: pressure 6.2")
    assert "extrapolated" not in lines[1]
    assert lines[2].startswith("99.99 % sparsity: pressure ")
    assert lines[2].endswith("extrapolated beyond 1 to 128")
    bent = [row(2.0**k, 0.05 * 2.0 ** (-0.05 * k * k)) for k in range(8)]
    (*_, answer) = shown.study(bent, [0.5]).sentences()
    assert answer.startswith("50 % sparsity: no pressure; density: the fitted law stays below")


def test_the_plots_draw_what_was_measured(monkeypatch):
    drawn = []
    for module in ("hyperflux.report.law", "hyperflux.report.sweep"):
        monkeypatch.setattr(f"{module}.png", lambda figure: drawn.append(figure) or b"")
    shown.study(MADE_UP, [0.9]).plot("a title", [(0.5, 0.4)])
    shown.plot_saliencies(MADE_UP, "a title")
    (axes,) = drawn[0].axes
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["outlier, left out"].get_xydata().tolist() == [[256.0, 10.0]]
    assert lines["not fitted"].get_xydata().tolist() == [[0.5, 40.0]]
    assert lines["settled density"].get_xdata().tolist() == [2.0**k for k in range(8)]
    assert {"linear", "quadratic"} <= set(lines)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("pressure γ", "density (% of the weights left)")
    assert [axis.get_ylabel() for axis in drawn[1].axes] == ["magnitude |θ|", "gradient |g|", "taylor |gθ|"]
    balance = {line.get_label(): line for line in drawn[1].axes[2].lines}["γ/(κN)"]
    assert balance.get_ydata()[2] == pytest.approx(1.0 / 1000 / 0.25)
    labels = {line.get_label() for line in drawn[1].axes[0].lines}
    assert labels == {f"{m}, {part}" for m in ("hyperflux", "magnitude") for part in ("smallest", "1% quantile")}


def test_the_place_of_the_weights_in_a_checkpoint_is_announced(done, tmp_path):
    chosen, checkpoint, _ = done
    prefixed = {f"net.{name}": tensor for name, tensor in load_file(checkpoint).items()}
    save_file(prefixed, tmp_path / "prefixed.safetensors")
    lines = []
    for file in (checkpoint, str(tmp_path / "prefixed.safetensors")):
        prepare(replace(chosen, checkpoint=file), tmp_path / f"law {len(file)}", lines.append)
    assert lines == [f"weights file {tmp_path}/prefixed.safetensors: the weights are those with the prefix net."]
