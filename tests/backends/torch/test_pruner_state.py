"""What a Pruner saves and loads, and weights that change between its steps."""

import copy
import io

import numpy as np
import pytest
import torch
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from networks import batches, build
from pruned import SETTINGS, pruned, same, train
from torch import nn
from torch.nn.functional import cross_entropy

from hyperflux import InputError, Pruner
from hyperflux.backends.torch import contents_check
from hyperflux.backends.torch.kernels.choice import Kernels
from hyperflux.schedules.base import StepSettings
from hyperflux.schedules.controllers import PublishedController
from hyperflux.schedules.default import DefaultCourse
from hyperflux.schedules.magnitude import MagnitudeSchedule, MagnitudeState


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [lambda p: torch.optim.Adam(p, lr=1e-2), lambda p: torch.optim.SGD(p, 0.05, 0.9)])
def test_a_restored_pruner_goes_on_to_the_bit(dtype, make):
    """Through both stages; w, t and moments stay at least float32, also in the optimizer's own state."""
    model, optimizer, pruner = pruned(dtype=dtype, make=make)
    train(model, optimizer, 45, dtype=dtype)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), pruner.state_dict()], file)
    train(model, optimizer, 35, seed=1, dtype=dtype)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again, its_optimizer, its_pruner = pruned(dtype=dtype, make=make, seed=5)
    its_pruner.load_state_dict(saved[2])
    again.load_state_dict(saved[0])
    its_optimizer.load_state_dict(saved[1])
    assert its_pruner.step_count == 45
    train(again, its_optimizer, 35, seed=1, dtype=dtype)
    assert its_pruner.stage == pruner.stage == "done"
    assert same(again.state_dict(), model.state_dict())
    assert same(its_pruner.presence(), pruner.presence())
    assert same(its_pruner.latent(), pruner.latent())
    for name, table in pruner.telemetry().items():
        assert its_pruner.telemetry()[name].tobytes() == table.tobytes(), name
    assert all(t.dtype == torch.promote_types(dtype, torch.float32) for t in pruner.presence().values())


@pytest.mark.parametrize("start", [0, 5982, 8082, 9480])
def test_a_large_network_goes_on_to_the_bit_from_between_two_control_steps(start):
    """E12 to E14: 3 steps between control steps, cut in pruning, near its end, while settling and when settled."""
    settings = {"target_sparsity": 0.9, "pruning_steps": 6003, "regrowth_steps": 7000, "presence_lr": 0.01}

    def made():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Flatten(), nn.Linear(64, 160), nn.ReLU(), nn.Linear(160, 4)).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        return model, optimizer, Pruner(model, optimizer, **settings)

    model, optimizer, pruner = made()
    assert pruner.total > 10_000
    pruner.gate.steps = start  # a course that long is not worth its time: begin 20 steps before the cut
    pruner.session.restore({"step": start // 3 * 3, "log_pressure": 1.0 if start else None})
    train(model, optimizer, 20)
    saved = [copy.deepcopy(part.state_dict()) for part in (model, optimizer, pruner)]
    train(model, optimizer, 20, seed=1)
    again, its_optimizer, its_pruner = made()
    its_pruner.load_state_dict(saved[2])
    again.load_state_dict(saved[0])
    its_optimizer.load_state_dict(saved[1])
    train(again, its_optimizer, 20, seed=1)
    assert same(its_pruner.presence(), pruner.presence())
    assert same(its_pruner.latent(), pruner.latent())
    assert (its_pruner.pressure, its_pruner.stage) == (pruner.pressure, pruner.stage)


def test_a_write_to_a_layer_without_gradient_is_found_too():
    model, optimizer, _ = pruned()
    train(model, optimizer, 5)
    inputs, labels = next(batches(1))
    optimizer.zero_grad()
    cross_entropy(model(inputs), labels).backward()
    with torch.no_grad():
        model[1].weight.add_(1.0)
    model[1].weight.grad = None
    with pytest.raises(InputError, match=r"1\.weight: its weights were changed outside"):
        optimizer.step()


def test_a_state_of_another_pruner_is_refused():
    saved = pruned()[2].state_dict()
    with pytest.raises(InputError, match=r"target_sparsity is 0\.6, but 0\.5"):
        pruned(target_sparsity=0.5)[2].load_state_dict(saved)
    with pytest.raises(InputError, match=r"parameters: lacks 0\.weight, .* and has unexpected 1\.weight"):
        pruned("convolutional")[2].load_state_dict(saved)
    with pytest.raises(InputError, match="format 99 was saved by another version"):
        pruned()[2].load_state_dict({**saved, "format": 99})
    with pytest.raises(InputError, match="saved without telemetry"):
        pruned()[2].load_state_dict(pruned(telemetry="off")[2].state_dict())
    pruned(telemetry="off")[2].load_state_dict(saved)


def test_weights_loaded_from_outside_are_detected_and_resync_accepts_them():
    model, optimizer, pruner = pruned()
    train(model, optimizer, 50)
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    latent = pruner.latent()
    other = build("mlp", seed=3)
    model.load_state_dict(other.state_dict())
    with pytest.raises(InputError, match=r"1\.weight: its weights were changed outside .* resync\(\)"):
        train(model, optimizer, 1)
    with pytest.raises(InputError, match="resync"):
        pruner.state_dict()
    pruner.resync()
    masks = pruner.masks()
    assert torch.equal(model[1].weight, torch.where(masks["1.weight"], other[1].weight, 0.0))
    assert torch.equal(pruner.latent()["1.weight"], other[1].weight)
    train(model, optimizer, 1)
    model2, optimizer2, pruner2 = pruned()
    train(model2, optimizer2, 50)
    model2.load_state_dict(own)  # what it holds already: nothing to complain of
    pruner2.resync()
    assert same(pruner2.latent(), latent)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("write", ["clamp", "decay", "one", "assign"])
def test_a_write_through_data_is_found_at_the_next_step(dtype, write):
    model, optimizer, _ = pruned(dtype=dtype)
    train(model, optimizer, 42, dtype=dtype)
    weight = model[1].weight
    if write == "clamp":
        weight.data.clamp_(-0.05, 0.05)
    elif write == "decay":
        weight.data.mul_(0.99)
    elif write == "one":
        weight.data[(weight != 0).nonzero()[-1].tolist()[0]] *= 2
    else:
        weight.data = weight.data * 2
    with pytest.raises(InputError, match=r"1\.weight: its weights were changed outside .* resync"):
        train(model, optimizer, 1, dtype=dtype)


@pytest.mark.parametrize("write", [lambda w: w.data.clamp_(-0.05, 0.05), lambda w: w.data.copy_(w.clamp(-0.05, 0.05))])
def test_clipped_weights_stay_clipped_with_resync_also_while_they_are_pruned(write):
    model, optimizer, pruner = pruned()
    for seed in range(80):
        train(model, optimizer, 1, seed=seed)
        for name in pruner.masks():
            write(model.get_parameter(name))
        pruner.resync()
        assert max(float(w.abs().max()) for w in pruner.latent().values()) <= 0.05
    pruner.finalize()
    assert sum(int((model.get_parameter(name) != 0).sum()) for name in pruner.masks()) == pruner.surviving == 653


def test_comparisons_that_wait_for_a_device_name_the_write_later(monkeypatch):
    """As on a GPU: at the next control step the values are lost, and the message says so."""
    monkeypatch.setattr(contents_check, "is_read_at_once", lambda tensor: False)
    model, optimizer, pruner = pruned()
    train(model, optimizer, 30)
    model[1].weight.data.clamp_(-0.05, 0.05)
    with pytest.raises(InputError, match=r"1\.weight: .*written through \.data since the last .* values are lost"):
        train(model, optimizer, 5)
    pruner.resync()
    train(model, optimizer, 50)
    pruner.finalize()
    assert pruner.surviving == 653


def test_a_write_is_remembered_over_the_steps_until_the_device_is_read(monkeypatch):
    """θ has overwritten it by the next comparison, which finds no difference."""
    monkeypatch.setattr(contents_check, "is_read_at_once", lambda tensor: False)
    model, _, pruner = pruned()
    entries, check = pruner.gate._entries.values(), contents_check.ContentsCheck(Kernels())
    model[1].weight.data.add_(1.0)
    assert check.changed(entries) == []
    pruner.gate.write_effective()
    assert check.changed(entries) == []
    assert check.lost() == "1.weight"
    assert check.lost() is None


def test_finalize_asks_no_other_rank():
    """Rank 0 alone may finalize and save; comparing masks with this group would fail."""
    *_, pruner = pruned(process_group=torch.distributed.ProcessGroup(0, 2), controller="published", presence_lr=0.05)
    pruner.finalize()
    assert pruner.surviving == pruner.total


def test_numpy_numbers_are_saved_as_plain_ones(tmp_path):
    """`torch.load(weights_only=True)` reads the state, and a Pruner of the same settings takes it."""
    course = DefaultCourse(max_rate=np.float32(0.05), gain=np.float64(300))
    how = {"target_sparsity": np.float64(0.8), "controller": course, "presence_lr": np.float32(0.05)}
    model, optimizer, pruner = pruned(**how)
    train(model, optimizer, 10)
    torch.save(pruner.state_dict(), tmp_path / "state.pt")
    again = pruned(**how)[2]
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert same(again.presence(), pruner.presence())
    assert {type(value) for value in vars(course.settled()).values()} == {float}
    assert type(PublishedController(np.float64(0.3)).step) is float


def leaves(value, path=()):
    """Paths of all entries of nested dictionaries, the dictionaries included."""
    for key, part in value.items():
        yield (*path, key)
        if isinstance(part, dict):
            yield from leaves(part, (*path, key))


def saved_after(steps):
    model, optimizer, pruner = pruned(telemetry="full")
    train(model, optimizer, steps)
    return pruner.state_dict()


SAVED = saved_after(5)
TENSORS = {
    "longer": lambda tensor: torch.cat([tensor.flatten(), tensor.flatten()[:1]]),
    "broadcastable": lambda tensor: tensor.flatten()[:1].reshape([1] * (tensor.ndim + 1)),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "on meta": lambda tensor: tensor.to("meta"),
    "a list": lambda tensor: tensor.tolist(),
}
VALUES = {"text": "text", "nothing": None, "negative": -3, "infinite": float("inf"), "NaN": float("nan"), "a list": []}


@given(st.data())
@settings(max_examples=100)
def test_a_damaged_state_is_refused_and_nothing_has_changed(data):
    """Whatever entry is missing, renamed, or of another type, shape or sign."""
    path = data.draw(st.sampled_from(list(leaves(SAVED))))
    damaged = copy.deepcopy(SAVED)
    holder = damaged
    for key in path[:-1]:
        holder = holder[key]
    value = holder[path[-1]]
    changes = TENSORS if isinstance(value, torch.Tensor) else VALUES
    kind = data.draw(st.sampled_from(["missing", "renamed", *changes]))
    event(kind)
    if kind in ("missing", "renamed"):
        del holder[path[-1]]
        if kind == "renamed":
            holder["other"] = value
    elif isinstance(value, torch.Tensor):
        holder[path[-1]] = changes[kind](value)
    else:
        assume((path[-1], kind) not in (("log_pressure", "nothing"), ("log_pressure", "negative")))  # both are valid
        holder[path[-1]] = changes[kind]
    model, optimizer, pruner = pruned(telemetry="full")
    train(model, optimizer, 1)
    before, weights = pruner.state_dict(), copy.deepcopy(model.state_dict())
    with pytest.raises(InputError):
        pruner.load_state_dict(damaged)
    assert equal(pruner.state_dict(), before)
    assert same(model.state_dict(), weights)


def equal(ours, theirs):
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(equal(ours[key], theirs[key]) for key in ours)
    return torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs


@pytest.mark.parametrize("make", [lambda p: torch.optim.Adam(p, lr=1e-2), lambda p: torch.optim.SGD(p, 0.05, 0.9)])
def test_a_run_that_is_resumed_without_the_pruners_state_is_refused(make):
    """Unless that is what was meant: then the Pruner is built last."""
    model, optimizer, pruner = pruned(make=make)
    train(model, optimizer, 45)
    saved = [copy.deepcopy(part.state_dict()) for part in (model, optimizer, pruner)]

    def resumed():
        again = build("mlp", seed=1)
        again.load_state_dict(saved[0])
        return again, make(again.parameters())

    again, its = resumed()
    late = Pruner(again, its, **SETTINGS)
    its.load_state_dict(saved[1])
    with pytest.raises(InputError, match=r"under a Pruner, whose state is missing; .*load_state_dict\(\)"):
        train(again, its, 1)
    for end in (late.finalize, late.state_dict):
        with pytest.raises(InputError, match="whose state is missing"):
            end()
    late.load_state_dict(saved[2])
    train(again, its, 35, seed=1)
    train(model, optimizer, 35, seed=1)
    assert same(again.state_dict(), model.state_dict())
    again, its = resumed()
    its.load_state_dict(saved[1])
    anew = Pruner(again, its, **SETTINGS)
    train(again, its, 80)
    anew.finalize()
    assert anew.surviving == 653


def test_a_dense_run_may_be_resumed_under_a_new_pruner():
    model = build("mlp")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    train(model, optimizer, 20)
    again = build("mlp", seed=1)
    again.load_state_dict(model.state_dict())
    its = torch.optim.Adam(again.parameters(), lr=1e-2)
    pruner = Pruner(again, its, **SETTINGS)
    its.load_state_dict(optimizer.state_dict())
    train(again, its, 80)
    pruner.finalize()
    assert pruner.surviving == 653


@pytest.mark.parametrize("saved", [None, [], "state", 3, {}, {"format": 4}])
def test_what_is_no_state_is_refused(saved):
    with pytest.raises(InputError, match="pruner state"):
        pruned()[2].load_state_dict(saved)


@pytest.mark.parametrize("key", ["latent", "presence", "first", "second"])
def test_a_state_that_is_not_finite_is_refused(key):
    saved = copy.deepcopy(SAVED)
    saved["gate"]["parameters"]["1.weight"][key][0, 0] = float("nan")
    with pytest.raises(InputError, match=rf"{key} of 1\.weight: holds nan"):
        pruned(telemetry="full")[2].load_state_dict(saved)


def test_without_a_target_nothing_is_pruned():
    with pytest.raises(InputError, match=r"^target_sparsity: nothing says how far to prune; give target_sparsity$"):
        pruned(target_sparsity=None)


@pytest.mark.parametrize("value", ["0.8", True, torch.ones(2)])
def test_a_target_that_is_no_number_is_refused(value):
    with pytest.raises(InputError, match=r"target_sparsity: .* is not a fraction between 0 and 1"):
        pruned(target_sparsity=value)


class InNumPy(MagnitudeSchedule):
    """A schedule that computes with NumPy's numbers."""

    def settings(self, state):
        return StepSettings(np.float64(0.25), np.float32(0.5))

    def advance(self, state, observation):
        return MagnitudeState(np.int64(state.controls + 1))


def test_the_state_of_a_schedule_that_computes_in_numpy_is_read_too(tmp_path):
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner.with_schedule(model, optimizer, InNumPy(12, 6, 5, 2), seed=np.int64(3), telemetry="full")
    for _ in range(3):
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
    torch.save(pruner.state_dict(), tmp_path / "state.pt")
    pruner.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert (type(pruner.pressure), type(pruner.presence_lr)) == (float, float)


def test_a_schedule_for_another_number_of_weights_is_refused():
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match="schedule: is for 100 weights, but 12 are prunable"):
        Pruner.with_schedule(model, optimizer, MagnitudeSchedule(100, 6, 5, 2))
    Pruner.with_schedule(model, optimizer, MagnitudeSchedule(12, 6, 5, 2)).release()
