"""Telemetry: its tables against a recomputation from every step's masks and gradients; counts are conserved."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import batches, build
from small_backend import batches as drawn_batches
from small_backend import make_backend
from torch.nn.functional import cross_entropy

from hyperflux import InputError, Pruner, spec
from hyperflux.backends.numpy.probe import NumpyProbe
from hyperflux.schedules.default import DefaultSchedule
from hyperflux.schedules.magnitude import MagnitudeSchedule
from hyperflux.schedules.published import PublishedSchedule
from hyperflux.session.pruning import PruningSession
from hyperflux.session.warnings import Warnings
from hyperflux.telemetry.columns import QUANTILES, SCHEMA, flux_column
from hyperflux.telemetry.levels import LEVELS, Level
from hyperflux.telemetry.recorder import Recorder

N = 45
LAYERS = {"fc1.weight": slice(0, 30), "fc2.weight": slice(30, 45)}


@st.composite
def schedules(draw):
    """Courses of the test network, short, with t fast enough to cross the gate many times."""
    steps = (draw(st.integers(1, 40)), draw(st.integers(0, 20)))
    kept, rate = draw(st.integers(1, N - 1)), draw(st.sampled_from([0.05, 0.3]))
    kind = draw(st.sampled_from(["default", "published", "magnitude"]))
    if kind == "default":
        return DefaultSchedule(N, kept, *steps, rate)
    if kind == "magnitude":
        return MagnitudeSchedule(N, kept, *steps)
    intervals = (draw(st.integers(1, steps[0])), min(steps[1], 3))
    return PublishedSchedule(kept / N, *steps, *intervals, rate, 1.0)


def watched(schedule, level, seed, monkeypatch):
    """Tables of a run on the NumPy backend, and what was noted beside them at every step: masks, and κ g w."""
    backend = make_backend(seed=seed, optimizer={"name": "sgd", "momentum": 0.9, "weight_decay": 0.01})
    gate = backend.start_gate(schedule.initial_presence)
    session = PruningSession(schedule, gate, Warnings(lambda line: None), probe=NumpyProbe(gate), level=level)
    masks, slopes, orders, straight_through = [np.ones(N, bool)], [], [], spec.straight_through

    def note_slope(*arrays):
        for_weights, for_presence = straight_through(*arrays)
        slopes.append(for_presence)
        orders.append((gate.pressure, gate.presence_lr))
        return for_weights, for_presence

    def after_step():
        session.after_step()
        masks.append(gate.mask())

    monkeypatch.setattr(spec, "straight_through", note_slope)
    count = schedule.pruning_steps + schedule.regrowth_steps
    backend.train_pruning(drawn_batches(count), learning_rate=0.1, label_smoothing=0.1, after_step=after_step)
    monkeypatch.undo()
    session.finish()
    return session.recorder.tables(), np.array(masks), np.array(slopes), orders


def running_flux(slopes, orders, end):
    """Adam's mean of −κ g w over the steps up to `end` in which t moved."""
    moved = [-slope for slope, (_, rate) in zip(slopes[:end], orders[:end], strict=True) if rate is not None]
    weights = 0.1 * 0.9 ** np.arange(len(moved))[::-1]
    return weights @ np.array(moved) / weights.sum()


def expected_figures(masks, ends, flux, part):
    """The measured columns of the interval that ends at ends[-1], from the masks of all steps, slowly."""
    masks, (before, end) = masks[: ends[-1] + 1, part], ends[-2:]
    pruned, regrown = masks[:-1] & ~masks[1:], ~masks[:-1] & masks[1:]
    changed, present = pruned | regrown, masks[-1]
    ages = []
    for weight in np.flatnonzero(present):
        last_change = max((step for step in range(1, end + 1) if changed[step - 1, weight]), default=0)
        ages.append(end - min(stop for stop in ends if stop >= last_change))
    populations = {
        "pruned": ~present,
        "restored": present & changed[before:].any(axis=0),
        "surviving": present,
    }
    figures = {
        "total": present.size,
        "surviving": present.sum(),
        "pruned": pruned[before:].sum(),
        "regrown": regrown[before:].sum(),
        "pruned_ever": pruned.any(axis=0).sum(),
        "regrown_ever": regrown.any(axis=0).sum(),
        "most_flips": changed.sum(axis=0).max(),
        "mask_age": sorted(ages, reverse=True)[len(ages) // 2] if ages else end,
    }
    for name, mask in populations.items():
        values = sorted(flux[part][mask]) if flux is not None else []
        for quantile in QUANTILES:
            value = values[round(quantile * (len(values) - 1))] if values else np.nan
            figures[flux_column(name, quantile)] = value
    return figures


@given(schedules(), st.integers(1, 70), st.integers(0, 5), st.integers(0, 100))
def test_every_figure_equals_a_recomputation_from_all_masks_and_gradients(schedule, intervals, sample, seed):
    """E4: counts exactly, flux to float32, in every interval and layer; under three kinds of schedule."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        tables, masks, slopes, orders = watched(schedule, Level(intervals, sample), seed, monkeypatch)
    count = len(masks) - 1
    every = -(-count // intervals)
    ends = [step for step in range(1, count + 1) if step % every == 0 or step in (schedule.pruning_steps, count)]
    assert tables["network"]["step"].tolist() == ends
    assert len(tables["layers"]) == 2 * len(ends)
    for number, end in enumerate(ends):
        so_far = [0, *ends[: number + 1]]
        moved = any(rate is not None for _, rate in orders[so_far[-2] : end])
        flux = running_flux(slopes, orders, end) if moved else None
        row = tables["network"][number]
        pressure, rate = orders[end - 1]
        assert (row["pressure"], row["stage"]) == (pressure, "pruning" if end <= schedule.pruning_steps else "regrowth")
        assert row["presence_lr"] == rate or (rate is None and np.isnan(row["presence_lr"]))
        assert row["wanted"] == schedule.target_density(end)
        for found, part in ((row, slice(None)), *zip(tables["layers"][2 * number :], LAYERS.values(), strict=False)):
            for column, value in expected_figures(masks, so_far, flux, part).items():
                if column.partition("_p")[2].isdigit():
                    scale = 0.0 if flux is None else np.abs(flux).max() + pressure / N
                    np.testing.assert_allclose(found[column], value, rtol=0, atol=1e-6 * scale, err_msg=column)
                else:
                    assert found[column] == value, column


@given(schedules(), st.integers(1, 70), st.integers(0, 100))
def test_followed_weights_and_final_tables_agree_with_all_masks(schedule, intervals, seed):
    with pytest.MonkeyPatch.context() as monkeypatch:
        tables, masks, *_ = watched(schedule, Level(intervals, 8), seed, monkeypatch)
    flips = np.abs(np.diff(masks.astype(int), axis=0)).cumsum(axis=0)
    sample = tables["sample"]
    assert len(sample) == (1 + len(tables["network"])) * 8
    for row in sample:
        weight = LAYERS[row["layer"]].start + row["index"]
        assert row["present"] == masks[row["step"], weight] == (row["t"] >= 0)
        assert row["flips"] == (flips[row["step"] - 1, weight] if row["step"] else 0)
    for name, part in LAYERS.items():
        counted = tables["flips"][tables["flips"]["layer"] == name]
        assert counted["weights"].tolist() == [n for n in np.bincount(flips[-1, part]) if n]
        ages = tables["ages"][tables["ages"]["layer"] == name]
        assert (ages["present"].sum(), ages["pruned"].sum()) == (masks[-1, part].sum(), (~masks[-1, part]).sum())
        assert ages["step"].tolist() == sorted(set(ages["step"].tolist()))


@pytest.mark.parametrize("kind", ["mlp", "convolutional", "transformer"])
@pytest.mark.parametrize("controller", ["default", "published"])
def test_counts_are_conserved_in_every_interval_and_layer(kind, controller):
    """Present now = present before − pruned + regrown; flips by weight and flips by interval have the same sum."""
    model = build(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    settings = {"target_sparsity": 0.7, "pruning_steps": 60, "regrowth_steps": 20, "presence_lr": 0.02}
    pruner = Pruner(model, optimizer, controller=controller, telemetry="full", **settings)
    for inputs, labels in batches(80):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    pruner.finalize()
    tables = pruner.telemetry()
    for counts in pruner.layers():
        rows = tables["layers"][tables["layers"]["layer"] == counts.name]
        flips = tables["flips"][tables["flips"]["layer"] == counts.name]
        assert len(rows) == 80
        before = np.array([counts.total, *rows["surviving"][:-1]])
        assert (rows["surviving"] == before - rows["pruned"] + rows["regrown"]).all()
        assert (rows["total"] == counts.total).all()
        assert rows["surviving"][-1] == counts.surviving
        assert flips["flips"] @ flips["weights"] == rows["pruned"].sum() + rows["regrown"].sum() > 0
        assert flips["weights"].sum() == counts.total
    for column in ("total", "surviving", "pruned", "regrown", "pruned_ever", "regrown_ever"):
        summed = [tables["layers"][column][tables["layers"]["step"] == step].sum() for step in range(1, 81)]
        assert summed == tables["network"][column].tolist()


def test_a_course_that_is_cut_short_is_measured_at_its_end():
    """E12: finalize() removes most weights, long before the course would have."""
    model = build("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pruner = Pruner(model, optimizer, target_sparsity=0.9, pruning_steps=400, regrowth_steps=400)
    assert len(pruner.telemetry()["network"]) == 0
    for inputs, labels in batches(4):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    pruner.finalize()
    network = pruner.telemetry()["network"]
    assert network["step"].tolist() == [4, 4]
    assert network["surviving"].tolist() == [1632 - network["pruned"][0] + network["regrown"][0], pruner.surviving]
    assert network["pruned"][1] - network["regrown"][1] == network["surviving"][0] - pruner.surviving > 0


def test_a_skipped_step_leaves_no_row():
    schedule, backend = DefaultSchedule(N, 9, 10, 0, 0.1), make_backend()
    gate = backend.start_gate(schedule.initial_presence)
    recorder = Recorder(schedule, gate, NumpyProbe(gate), Level(10, 0))
    recorder.after_step()
    assert len(recorder.tables()["network"]) == 0


def test_off_watches_nothing_and_says_nothing():
    model = build("mlp")
    pruner = Pruner(model, torch.optim.SGD(model.parameters(), lr=0.1), target_sparsity=0.9, pruning_steps=9,
                    regrowth_steps=9, telemetry="off")  # fmt: skip
    assert pruner.telemetry() == {}
    with pytest.raises(InputError, match="telemetry 'lite' is not known; did you mean light"):
        Pruner(build("mlp"), torch.optim.SGD(model.parameters(), lr=0.1), target_sparsity=0.9, pruning_steps=9,
               regrowth_steps=9, telemetry="lite")  # fmt: skip


def test_full_sees_more_than_light():
    light, full = LEVELS["light"], LEVELS["full"]
    assert full.intervals > light.intervals
    assert full.sample > light.sample
    assert full.intervals < np.iinfo(np.int16).max - 2, "counters hold an interval's number in 16 bits"


def test_tables_are_data_frames_in_one_line():
    """One dimension and plain columns: what pandas and polars need."""
    pandas = pytest.importorskip("pandas")
    rows = np.zeros(3, SCHEMA["layers"])
    assert list(pandas.DataFrame(rows).columns) == list(SCHEMA["layers"].names)
