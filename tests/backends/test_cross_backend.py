"""The torch backend held to the specification: one step, ten steps, whole runs; and the comparison held to account."""

import math
from itertools import pairwise
from unittest import mock

import numpy as np
import pytest
import torch
from cross_backend import Case, assert_agree, numpy_steps, torch_steps
from devices import on_every_device
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tolerances import ROUNDING

from hyperflux import RunConfig, spec
from hyperflux.backends.torch.capacity import _Blocks, kth_largest, meet_capacity
from hyperflux.config import OptimizerSettings
from hyperflux.models import initial_mlp
from hyperflux.runs.driver import execute
from hyperflux.runs.folder import read_run

AROUND_THE_GATE = [0.0, -0.0, np.nextafter(0, 1), np.nextafter(0, -1), 1e-3, -1e-3, 0.5, -0.5]
rates = st.sampled_from([0.0, 1e-3, 0.1])

optimizers = st.one_of(
    st.builds(OptimizerSettings, name=st.just("adam"), weight_decay=rates, decay_all=st.booleans()),
    st.builds(
        OptimizerSettings,
        name=st.just("sgd"),
        momentum=st.sampled_from([0.5, 0.9]),
        nesterov=st.booleans(),
        weight_decay=rates,
        decay_all=st.booleans(),
    ),
)


@st.composite
def cases(draw):
    sizes = tuple(draw(st.lists(st.integers(1, 7), min_size=2, max_size=4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    batch, seed = draw(st.integers(1, 6)), draw(st.integers(0, 5))
    weights = np.concatenate(
        [array.ravel() for name, array in initial_mlp(sizes, seed).items() if name.endswith("weight")]
    ) * draw(st.sampled_from([1.0, 3.0]))
    presence = np.where(
        rng.random(len(weights)) < 0.5, rng.choice(AROUND_THE_GATE, len(weights)), rng.normal(0, 0.3, len(weights))
    )
    steps = draw(st.sampled_from([0, 1, 50, 5000]))
    scale = draw(st.sampled_from([1e-6, 1e-2, 1.0])) if steps else 0.0
    return Case(
        sizes=sizes,
        optimizer=draw(optimizers),
        inputs=rng.normal(size=(batch, sizes[0])),
        labels=rng.integers(sizes[-1], size=batch),
        weights=weights,
        presence=presence,
        first=scale * rng.normal(size=len(weights)),
        second=scale**2 * rng.random(len(weights)),
        steps=steps,
        pressure=draw(st.one_of(st.sampled_from([0.0, 1e-12, 1e6, 1e100]), st.floats(0, 100))),
        learning_rate=draw(st.sampled_from([0.0, 1e-3, 0.1])),
        presence_learning_rate=draw(st.sampled_from([0.0, 1e-3, 0.05])),
        smoothing=draw(st.sampled_from([0.0, 0.1])),
        seed=seed,
    )


@on_every_device
@given(case=cases())
def test_one_step_from_a_shared_state_agrees_in_every_array(device, case):
    """E1 to E7: g, θ, w, t, both moments, biases and masks."""
    assert_agree(next(numpy_steps(case, 1)), next(torch_steps(case, 1, device)))


@on_every_device
def test_ten_steps_agree(device):
    """E1 to E7, ten times. Rounding grows from step to step, so the tolerance is a thousandfold.

    Where rounding alone puts a weight on different sides of the gate, the two runs go different ways from there on, and
    the comparison ends. That is rare: nearly every example compares all ten steps.
    """
    compared = []

    @given(cases())
    def compare(case):
        compared.append(0)
        for ours, theirs in zip(numpy_steps(case, 10), torch_steps(case, 10, device), strict=True):
            assume(np.isfinite(ours["w"]).all())
            assert_agree(ours, theirs, growth=1e3)
            compared[-1] += 1
            if not np.array_equal(ours["mask"], theirs["mask"]):
                break

    compare()
    assert len(compared) >= 100
    assert compared.count(10) >= 0.95 * len(compared)


@on_every_device
@given(
    presence=st.lists(
        st.lists(st.sampled_from([*AROUND_THE_GATE, 0.3, -0.3]) | st.floats(-2, 2), min_size=1, max_size=12),
        min_size=1,
        max_size=4,
    ),
    data=st.data(),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_capacity_is_the_same_on_every_backend(device, presence, data, dtype):
    """E12: many equal t, one weight left, one pruned, layers starved: the very same t and shift, bit for bit."""
    layers = [np.array(layer, dtype=dtype) for layer in presence]
    kept = data.draw(st.integers(1, sum(map(len, layers))))
    ours, shift = spec.meet_capacity(np.concatenate(layers), kept)
    tensors = [torch.from_numpy(layer.copy()).to(device) for layer in layers]
    assert meet_capacity(tensors, kept) == shift
    theirs = torch.cat(tensors).cpu().numpy()
    assert theirs.dtype == ours.dtype
    np.testing.assert_array_equal(theirs, ours)
    assert spec.gate(theirs).sum() == kept


@given(
    st.lists(
        st.lists(st.sampled_from([*AROUND_THE_GATE, 0.25, -0.25, math.inf, -math.inf]) | st.floats(-2, 2), max_size=12),
        min_size=2,
        max_size=4,
    ).filter(lambda parts: sum(map(len, parts)) > 0),
    st.sampled_from([1e-300, 1e-3, 0.25, 0.5, 3.0]),
    st.sampled_from([1, 2, 5, 1 << 20]),
    st.sampled_from([1, 3, 1 << 17]),
    st.booleans(),
    st.data(),
)
def test_looking_near_the_gate_first_finds_the_same_threshold(parts, near, copied, block, by_torch, data):
    """E12: the short cuts against sorting everything, with elements on the edges of what is near.

    `by_torch` compares as where tensors are on a GPU.
    """
    tensors = [torch.tensor(part, dtype=torch.float64) for part in parts]
    everything = sorted((value for part in parts for value in part), reverse=True)
    k = data.draw(st.integers(1, len(everything)))
    limits = {"MAX_COPIED": copied, "BLOCK": block}
    limits |= {"_blocks": lambda tensor: list(tensor.split(copied)) if len(tensor) else []} if by_torch else {}
    with mock.patch.multiple("hyperflux.backends.torch.capacity", **limits):
        found = kth_largest(tensors, k, near)
        if by_torch:
            joined = list(_Blocks(tensors))
            assert torch.equal(torch.cat(joined), torch.cat(tensors))
            assert all(len(block) <= copied for block in joined)
            assert all(len(one) + len(other) > copied for one, other in pairwise(joined)), "joined where there was room"
    assert found == kth_largest(tensors, k) == (everything[k - 1], sum(x >= everything[k - 1] for x in everything))


def test_ties_are_broken_in_row_major_order_whatever_the_memory_layout():
    """E12: the first of equal t stay; channels_last orders memory otherwise."""
    layer = torch.zeros(2, 3, 2, 2).to(memory_format=torch.channels_last)
    meet_capacity([layer], 5)
    assert (layer >= 0).flatten().nonzero().flatten().tolist() == [0, 1, 2, 3, 4]


def typical():
    rng = np.random.default_rng(1)
    weights = np.concatenate([a.ravel() for name, a in initial_mlp((6, 8, 4), 0).items() if name.endswith("weight")])
    presence = rng.normal(0, 0.1, len(weights))
    presence[:8] = AROUND_THE_GATE
    return Case(
        sizes=(6, 8, 4),
        optimizer=OptimizerSettings("sgd", momentum=0.9),
        inputs=rng.normal(size=(5, 6)),
        labels=rng.integers(4, size=5),
        weights=weights,
        presence=presence,
        first=np.zeros(len(weights)),
        second=np.zeros(len(weights)),
        steps=0,
        pressure=2.0,
        learning_rate=0.1,
        presence_learning_rate=1e-3,
        smoothing=0.1,
    )


def without_bias_correction(gradient, moments):
    beta1, beta2 = spec.ADAM_BETAS
    first = beta1 * moments.first + (1 - beta1) * gradient
    second = beta2 * moments.second + (1 - beta2) * gradient**2
    return first / (np.sqrt(second) + spec.ADAM_EPSILON), spec.Moments(first, second, moments.steps + 1)


MUTANTS = {
    "a wrong kappa": ("KAPPA", 0.2500001),
    "no pressure": ("pressure_gradient", lambda pressure, total: 0.0),
    "pressure not divided by N": ("pressure_gradient", lambda pressure, total: pressure),
    "a gate at > instead of >=": ("gate", lambda presence: presence > 0),
    "no mask on the weights' gradient": ("straight_through", lambda g, w, mask: (g, spec.KAPPA * g * w)),
    "flux of present weights only": ("straight_through", lambda g, w, mask: (g * mask, spec.KAPPA * g * w * mask)),
    "Adam without bias correction": ("adam_direction", without_bias_correction),
    "another epsilon": ("ADAM_EPSILON", 1e-7),
}


def test_the_typical_case_agrees():
    assert_agree(next(numpy_steps(typical(), 1)), next(torch_steps(typical(), 1)))


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_comparison_kills_a_mutant_of_the_specification(mutant, monkeypatch):
    theirs = next(torch_steps(typical(), 1))
    monkeypatch.setattr(spec, *MUTANTS[mutant])
    with pytest.raises(AssertionError):
        assert_agree(next(numpy_steps(typical(), 1)), theirs)


def assert_tables_agree(ours, theirs):
    """Every count equal; flux, t and pressure to rounding, which has grown over hundreds of steps."""
    assert ours.keys() == theirs.keys()
    for name, table in ours.items():
        assert len(table) == len(theirs[name]) > 0
        for column in table.dtype.names:
            one, other = table[column], theirs[name][column]
            if one.dtype.kind == "f":
                scale = np.nanmax(np.abs(one), initial=0.0)
                np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * scale, err_msg=f"{name} {column}")
            else:
                np.testing.assert_array_equal(one, other, err_msg=f"{name} {column}")


SGD = {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-3}


@on_every_device
@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": {"name": "adam"}},
        {"optimizer": SGD},
        {"optimizer": {"name": "adam"}, "controller": "published"},
        {"optimizer": SGD, "method": "magnitude"},
        {"optimizer": SGD, "gates": "channels", "gate_inputs": True},
        {"optimizer": SGD, "method": "magnitude", "gates": "channels", "gate_inputs": True},
        {"optimizer": SGD, "gates": "3:7", "model": "mlp:64-40-20-10"},
    ],
)
def test_both_backends_give_the_same_run_on_digits(settings, device, tmp_path):
    """Same first weights, data order and schedule, float64, 540 steps through both stages: the same masks after every
    epoch, by their counts, and the same mask and accuracies at the end. The default controller's pressure follows t,
    so it agrees to rounding."""
    settings = {
        **({} if ":" in settings.get("gates", "") else {"sparsity": 0.8}),
        **settings,
        "dtype": "float64",
        "dense": {"epochs": 2, "learning_rate": 2e-3},
        "pruning": {"epochs": 8, "presence_learning_rate": 2e-3, "learning_rate": 2e-3},
        "regrowth": {"epochs": 2},
    }
    reports = {}
    for backend, place in (("numpy", "cpu"), ("torch", device)):
        config = RunConfig.from_dict({**settings, "backend": backend, "device": place})
        reports[backend] = execute(config, tmp_path / backend)
    ours, theirs = reports["numpy"], reports["torch"]
    assert 0.02 < ours.final_sparsity < 0.999, "the run tried nothing"
    assert ours.layers == theirs.layers
    assert (ours.dense_accuracy, ours.final_accuracy) == (theirs.dense_accuracy, theirs.final_accuracy)
    rows = [read_run(tmp_path / backend).epochs for backend in ("numpy", "torch")]
    for one, other in zip(*rows, strict=True):
        assert (one.density, one.pruned, one.regrown) == (other.density, other.pruned, other.regrown)
        assert one.pressure == pytest.approx(other.pressure, rel=ROUNDING * 1e3, abs=0)
    assert_tables_agree(*(read_run(tmp_path / backend).telemetry for backend in ("numpy", "torch")))
    tensors = [load_file(tmp_path / backend / "model.safetensors") for backend in ("numpy", "torch")]
    for name in ("fc1.weight", "fc2.weight", "fc3.weight"):
        np.testing.assert_array_equal(tensors[0][name] != 0, tensors[1][name] != 0)
