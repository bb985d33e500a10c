"""What only torch has: looks that come later, batch statistics, scalers, and the Pruner in a loop of one's own."""

import copy
import logging
import math
from dataclasses import asdict

import pruned as under_pruner
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import batches, build
from pruned import SETTINGS, pruned
from torch import nn
from torch.nn.functional import cross_entropy

import hyperflux
from hyperflux import InputError, Pruner, RunConfig, RunError
from hyperflux.backends.torch.finite import MAX_PENDING, FiniteCheck
from hyperflux.backends.torch.training import EpochProgress, Precision, train_epoch
from hyperflux.runs.driver import execute
from hyperflux.session.nonfinite import MAX_IN_A_ROW, NonFiniteGuard, NotFiniteError

CPU = torch.device("cpu")


def network():
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))


def checked(model, on_nonfinite="stop", scaled=False, max_pending=MAX_PENDING):
    guard = NonFiniteGuard(on_nonfinite)
    return guard, FiniteCheck(model, guard, scaled=scaled, max_pending=max_pending)


def sound_gradients(model):
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)


@settings(max_examples=60)
@given(
    st.integers(1, 30),
    st.integers(1, MAX_PENDING),
    st.sampled_from([name for name, _ in network().named_parameters()]),
    st.sampled_from([math.nan, math.inf, -math.inf]),
    st.integers(0, 5),
)
def test_the_first_bad_step_and_the_last_bad_layer_are_named_however_late_it_is_looked_at(
    bad, max_pending, name, value, steps_after
):
    """Layers before the one to blame have gradients that are not finite either, and so have all steps that follow."""
    model = network()
    _, check = checked(model, max_pending=max_pending)
    names = list(dict(model.named_parameters()))
    spoiled = names[: names.index(name) + 1]

    def steps():
        for step in range(1, bad + steps_after + 1):
            sound_gradients(model)
            if step >= bad:
                for each in spoiled if step == bad else names:
                    model.get_parameter(each).grad.view(-1)[-1] = value
            check.allows(torch.tensor(1.0 if step <= bad else math.nan), step)
        check.check()

    with pytest.raises(NotFiniteError) as found:
        steps()
    assert found.value.step == bad
    assert found.value.fault.what.removeprefix("the norm of ") == f"the gradient of {name}"


def test_a_parameter_is_blamed_before_what_follows_from_it():
    model = network()
    _, check = checked(model)
    sound_gradients(model)
    assert check.allows(torch.tensor(1.0), 1)
    with torch.no_grad():
        model[3].weight[0, 0] = math.inf
    for parameter in model.parameters():
        parameter.grad.fill_(math.nan)
    check.allows(torch.tensor(math.nan), 2)
    with pytest.raises(NotFiniteError, match=r"the norm of the parameter 3\.weight became inf in step 1 of the epoch"):
        check.check()


def small_batches(count):
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 6, generator=generator), torch.randint(3, (8,), generator=generator)) for _ in range(count)]


@pytest.mark.parametrize("bad", [[0], [2, 3], [5]])
@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, 0.1, 0.9), lambda p: torch.optim.Adam(p, 0.01)])
def test_skipped_batches_leave_no_trace_in_batch_statistics(bad, make):
    """Inputs of 1e30: the loss stays finite, as batch norm divides by a deviation of inf, which it keeps for ever."""
    torch.manual_seed(0)
    first, good = network(), small_batches(6)
    mixed = [(inputs * (1e30 if number in bad else 1), labels) for number, (inputs, labels) in enumerate(good)]
    left = [batch for number, batch in enumerate(good) if number not in bad]
    outcomes = []
    for model, chosen in ((first, mixed), (copy.deepcopy(first), left)):
        optimizer = make(model.parameters())
        guard, check = checked(model, "skip")
        progress = EpochProgress()
        train_epoch(
            model, chosen, optimizer, cross_entropy, Precision("off", CPU), progress=progress, finite_check=check
        )
        outcomes.append((model.state_dict(), optimizer.state_dict()["state"], float(progress.total)))
        assert guard.skipped == (len(bad) if chosen is mixed else 0)
    for name, tensor in outcomes[0][0].items():
        assert torch.equal(tensor, outcomes[1][0][name]), name
    for number, kept in outcomes[0][1].items():
        for key, tensor in kept.items():
            assert torch.equal(tensor, outcomes[1][1][number][key])
    assert outcomes[0][2] == outcomes[1][2]
    _, check = checked(first)
    with pytest.raises(
        NotFiniteError, match=rf"the (norm of the )?buffer 1\.running_(mean|var) became inf in step {bad[0] + 1} "
    ):
        train_epoch(first, mixed, optimizer, cross_entropy, Precision("off", CPU), finite_check=check)


def test_a_scaler_skips_by_itself_but_not_for_ever():
    model = network()
    guard, check = checked(model, scaled=True)

    def steps(count, sound_every):
        for step in range(1, count + 1):
            sound_gradients(model)
            if step % sound_every:
                model[0].weight.grad[0, 0] = math.inf
            assert check.allows(torch.tensor(1.0), step)
        check.check()

    steps(3 * MAX_IN_A_ROW, sound_every=MAX_IN_A_ROW)
    assert guard.skipped == 0
    with pytest.raises(NotFiniteError, match="100 steps in a row were skipped, the last because the norm of the grad"):
        steps(MAX_IN_A_ROW, sound_every=MAX_IN_A_ROW + 1)


def test_float16_begins_with_a_scale_that_overflows_and_trains_all_the_same():
    """With labels that are wrong by far, the first gradients overflow under the scaler's first scale of 65,536."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    _, check = checked(model, scaled=True, max_pending=1)
    precision, before = Precision("float16", CPU), model[0].weight.clone()
    losing = [(100 * inputs, labels) for inputs, labels in small_batches(30)]
    train_epoch(model, losing, optimizer, cross_entropy, precision, finite_check=check)
    assert precision.state()["scale"] < 65536
    assert not torch.equal(model[0].weight, before)


def train(model, optimizer, steps, factor=1.0):
    for inputs, labels in batches(steps):
        optimizer.zero_grad()
        (factor * cross_entropy(model(inputs), labels)).backward()
        optimizer.step()


@pytest.mark.parametrize("controller", ["default", "published"])
@pytest.mark.parametrize("factor", [math.nan, math.inf])
@pytest.mark.parametrize("before", [0, 13, 70])
def test_a_pruner_does_not_live_on_with_nan(controller, factor, before):
    """Every step here is a check; it names the parameter and the step, and neither a state nor a network comes out."""
    model, optimizer, pruner = pruned(controller=controller)
    train(model, optimizer, before)
    said = rf"a presence parameter of 1\.weight became nan by step {before + 1}; return to the last good state"
    if before == 70 and controller == "default":  # t rests, w does not
        said = rf"a latent weight of 1\.weight became nan by step {before + 1}"
    with pytest.raises(RunError, match=said):
        train(model, optimizer, 1, factor)
    with pytest.raises(RunError, match=said):
        pruner.finalize()
    with pytest.raises(RunError, match=said):
        pruner.state_dict()
    pruner.release()


@pytest.mark.parametrize(
    ("controller", "state", "found"),
    [
        ("default", {"step": 1195, "log_pressure": 1.0}, 1200),
        ("default", {"step": 1100, "log_pressure": 1.0}, 1105),
        ("published", {"intervals": 5}, 1200),
    ],
)
def test_in_a_long_course_it_is_found_at_the_next_look(controller, state, found):
    """A large network under 20,000 steps: the default course looks every fifth step, the published every 200th."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 160), nn.ReLU(), nn.Linear(160, 4)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    settings = {"target_sparsity": 0.9, "pruning_steps": 20_000, "regrowth_steps": 10, "controller": controller}
    pruner = Pruner(model, optimizer, **settings)
    assert pruner.total > 10_000
    pruner.gate.steps = found - 3  # a course that long is not worth its time
    pruner.session.restore({**asdict(pruner.session.schedule.initial_state()), **state})
    train(model, optimizer, 1, math.nan)
    train(model, optimizer, 1)
    with pytest.raises(RunError, match=rf"a presence parameter of 1\.weight became nan by step {found};"):
        train(model, optimizer, 1)


def test_prune_without_a_loop_fails_too_and_lets_go_of_the_model():
    model = build("mlp", dtype=torch.float32)
    loader = [*batches(3, dtype=torch.float32), (torch.full((4, 1, 8, 8), math.nan), torch.zeros(4, dtype=torch.long))]
    with pytest.raises(RunError, match=r"1\.weight became nan by step 4"):
        hyperflux.prune(model, loader, target_sparsity=0.9, pruning_epochs=5, device="cpu")
    model.load_state_dict(build("mlp", dtype=torch.float32).state_dict())
    Pruner(model, torch.optim.SGD(model.parameters(), lr=0.1), **SETTINGS).release()


def test_a_pruner_tells_once_of_a_layer_without_weights(caplog):
    """One weight is left of 1,632, so that one layer has none."""
    model, optimizer, pruner = pruned(target_sparsity=1 - 1 / 1632)
    with caplog.at_level(logging.WARNING, "hyperflux"):
        train(model, optimizer, 80)
    starved = [layer.name for layer in pruner.layers() if not layer.surviving]
    assert len(starved) == 1
    told = [
        record.getMessage() for record in caplog.records if f"{starved[0]}: has nothing left" in record.getMessage()
    ]
    assert len(told) == 1
    assert told[0].endswith(f"prune less or, on the torch backend, exclude {starved[0]}")


def test_a_published_pruner_tells_that_its_target_is_out_of_reach(caplog):
    """E9: with a presence_lr of 8e-3 t hardly comes to 0 in the pruning stage, and the target is 60 %."""
    model, optimizer, _ = pruned(controller="published", presence_lr=8e-3)
    with caplog.at_level(logging.WARNING, "hyperflux"):
        train(model, optimizer, 80)
    (told,) = [record.getMessage() for record in caplog.records if "density:" in record.getMessage()]
    assert "it can get no closer to the target of 0.4 than" in told
    caplog.clear()
    model, optimizer, _ = pruned()
    train(model, optimizer, 80)
    assert not caplog.records


def test_a_buffer_that_is_meant_to_be_infinite_is_left_alone():
    model = network()
    model.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _, check = checked(model, max_pending=1)
    sound_gradients(model)
    assert check.allows(torch.tensor(1.0), 1)
    check.require_finite(optimizer, {}, 1)
    model[1].running_mean[0] = math.inf
    with pytest.raises(NotFiniteError, match=r"the buffer 1\.running_mean became inf"):
        check.require_finite(optimizer, {}, 1)


@pytest.mark.parametrize("max_pending", [1, 20])
def test_a_bad_batch_is_blamed_also_where_the_session_finds_its_trace_first(max_pending):
    """As on a GPU, whose steps are checked later: t is NaN at the next control step, the loss was NaN before."""
    model, optimizer, _ = pruned(pruning_steps=2000)
    _, check = checked(model, max_pending=max_pending)
    data = list(batches(40))
    data[21][0].fill_(float("nan"))
    with pytest.raises(NotFiniteError, match="the loss became nan in step 22 of the epoch") as raised:
        train_epoch(model, data, optimizer, cross_entropy, Precision("off", CPU), finite_check=check)
    assert (raised.value.step, raised.value.fault.skippable) == (22, True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_weights_whose_flux_would_overflow_are_refused_at_the_start(dtype):
    """Instead of a t of NaN some steps later. What is below the limit is pruned to the exact count."""
    limit = 1e-3 * math.sqrt(torch.finfo(torch.promote_types(dtype, torch.float32)).max)
    for factor, refused in ((0.5, False), (2.0, True)):
        model = build("mlp", dtype=dtype)
        with torch.no_grad():
            model[1].weight[3, 2] = limit * factor
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-30)
        if refused:
            with pytest.raises(InputError, match=r"1\.weight: holds a weight of .* overflow"):
                Pruner(model, optimizer, **SETTINGS)
            continue
        pruner = Pruner(model, optimizer, **SETTINGS)
        under_pruner.train(model, optimizer, 80, dtype=dtype)
        pruner.finalize()
        assert pruner.surviving == 653


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused_at_the_start(value):
    model = build("mlp")
    with torch.no_grad():
        model[3].weight[0, 0] = value
    with pytest.raises(InputError, match=r"3\.weight: holds a weight of (nan|inf); load weights that are finite"):
        Pruner(model, torch.optim.SGD(model.parameters(), lr=0.1), **SETTINGS)


def test_flux_that_overflows_is_named():
    """Gradients so large that their squares overflow, before the first pressure is set."""
    model, optimizer, _ = pruned(dtype=torch.float32)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e30)
    with pytest.raises(RunError, match="flux: products of weights and gradients overflow"):
        optimizer.step()


@pytest.mark.parametrize("controller", ["default", "published"])
@pytest.mark.parametrize("size", [1e10, 1e15])
def test_huge_weights_that_are_finite_end_a_run_in_one_line(tmp_path, controller, size):
    generator = torch.Generator().manual_seed(0)
    shapes = {"fc1.weight": (24, 16), "fc1.bias": (24,), "fc2.weight": (4, 24), "fc2.bias": (4,)}
    weights = {name: size * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    torch.save(weights, tmp_path / "huge.pt")
    config = RunConfig.from_dict(
        {"dataset": "synthetic", "model": "mlp:16-24-4", "sparsity": 0.8, "checkpoint": str(tmp_path / "huge.pt"),
         "device": "cpu", "pruning": {"epochs": 14}, "controller": controller}
    )  # fmt: skip
    with pytest.raises(RunError, match=r"overflow|became inf|became nan"):
        execute(config, tmp_path / "run")
