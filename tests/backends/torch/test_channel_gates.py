"""`Pruner` with gates of channels: resumed, copied, followed, scaled and finalized as with gates of weights."""

import copy
import io
import itertools

import numpy as np
import pytest
import torch
from networks import batches, build
from pruned import same, train
from torch import nn

from hyperflux import InputError, Pruner, compact
from hyperflux.backends.torch.channels.layout import channel_layout
from hyperflux.backends.torch.flops import count_cost

STEPS = (60, 20)
IMAGES = next(batches(1))[0]


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def gated(kind="convolutional", make=sgd, model=None, **settings):
    """(model, optimizer, Pruner) of a small network with gates of channels."""
    model = build(kind) if model is None else model
    optimizer = make(model.parameters())
    how = {"gates": "channels", "example_input": IMAGES, "presence_lr": 0.02, "flops": 0.4, **settings}
    return model, optimizer, Pruner(model, optimizer, pruning_steps=STEPS[0], regrowth_steps=STEPS[1], **how)


@pytest.mark.parametrize(
    ("kind", "telemetry", "steps"),
    [("mlp", "full", 0), ("mlp", "off", 33), ("convolutional", "full", 33), ("convolutional", "off", 66),
     ("transformer", "full", 33)],
)  # fmt: skip
def test_a_saved_state_goes_on_to_the_bit(kind, telemetry, steps):
    model, optimizer, pruner = gated(kind, telemetry=telemetry)
    train(model, optimizer, steps)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "pruner": pruner.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again, its_optimizer, its_pruner = gated(kind, telemetry=telemetry)
    train(again, its_optimizer, 5, seed=9)  # to be forgotten
    again.load_state_dict(saved["model"])
    its_optimizer.load_state_dict(saved["optimizer"])
    its_pruner.load_state_dict(saved["pruner"])
    for each, its in ((model, optimizer), (again, its_optimizer)):
        train(each, its, 80 - steps, seed=1)
    assert same(pruner.presence(), its_pruner.presence())
    assert same(pruner.flux(), its_pruner.flux())
    pruner.finalize()
    its_pruner.finalize()
    assert same(model.state_dict(), again.state_dict())
    for name, table in pruner.telemetry().items():
        assert its_pruner.telemetry()[name].tobytes() == table.tobytes(), name


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"flops": 0.5}, "budget is 'flops 0.4', but 'flops 0.5'"),
        ({"flops": None, "parameters": 0.4}, "budget is 'flops 0.4', but 'parameters 0.4'"),
    ],
)
def test_a_state_of_another_budget_is_refused(other, message):
    saved = gated()[2].state_dict()
    with pytest.raises(InputError, match=message):
        gated(**other)[2].load_state_dict(saved)


def test_a_state_of_gates_of_weights_is_refused():
    weights = gated(gates="weights", flops=None, target_sparsity=0.6, example_input=None)[2]
    with pytest.raises(InputError, match="pruner state"):
        gated(flops=None, target_sparsity=0.6)[2].load_state_dict(weights.state_dict())


@pytest.mark.parametrize("steps", [0, 45, 70])
def test_a_copy_of_all_three_goes_on_as_the_original_does(steps):
    model, optimizer, pruner = gated()
    train(model, optimizer, steps)
    copied, its_optimizer, its_pruner = copy.deepcopy((model, optimizer, pruner))
    for each, its in ((copied, its_optimizer), (model, optimizer)):
        train(each, its, 80 - steps, seed=1)
    pruner.finalize()
    its_pruner.finalize()
    assert same(copied.state_dict(), model.state_dict())


def test_another_optimizer_takes_over():
    """The gate goes on with what it knows; a plain optimizer of the same kind gives the same run."""
    model, optimizer, pruner = gated(make=lambda p: torch.optim.SGD(p, lr=0.05))
    other_model, other, others = gated(make=lambda p: torch.optim.SGD(p, lr=0.05))
    train(model, optimizer, 30)
    train(other_model, other, 30)
    new = torch.optim.SGD(other_model.parameters(), lr=0.05)
    others.follow(new)
    train(model, optimizer, 50, seed=1)
    train(other_model, new, 50, seed=1)
    assert same(pruner.presence(), others.presence())
    assert same(model.state_dict(), other_model.state_dict())


def test_weights_changed_outside_the_optimizer_are_noticed_and_taken_by_resync():
    model, optimizer, pruner = gated()
    train(model, optimizer, 40)
    with torch.no_grad():
        model[4].weight.mul_(2)
    with pytest.raises(InputError, match=r"^4\.weight: its weights were changed outside"):
        train(model, optimizer, 1)
    pruner.resync()
    train(model, optimizer, 40)
    pruner.finalize()
    assert pruner.cost_ratio <= 0.4


def test_maximising_the_negative_loss_is_the_same_run():
    model, optimizer, pruner = gated(make=lambda p: torch.optim.SGD(p, lr=0.05))
    other, other_optimizer, others = gated(make=lambda p: torch.optim.SGD(p, lr=0.05, maximize=True))
    for inputs, labels in batches(80):
        for each, its, sign in ((model, optimizer, 1), (other, other_optimizer, -1)):
            its.zero_grad()
            (sign * nn.functional.cross_entropy(each(inputs), labels)).backward()
            its.step()
    assert same(pruner.presence(), others.presence())
    assert same(model.state_dict(), other.state_dict())


def test_gradients_of_a_scaler_are_unscaled_and_its_skipped_steps_do_not_count():
    """A power of two scales exactly."""
    model, optimizer, pruner = gated()
    other, other_optimizer, others = gated()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=10**6)
    for number, (inputs, labels) in enumerate(batches(80)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        other_optimizer.zero_grad()
        scaler.scale(nn.functional.cross_entropy(other(inputs), labels)).backward()
        scaler.step(other_optimizer)
        scaler.update()
        if number == 20:
            other_optimizer.zero_grad()
            scaler.scale(other(inputs).sum() * torch.inf).backward()
            scaler.step(other_optimizer)
            scaler.update(2.0**10)
    assert others.step_count == 80
    assert same(pruner.presence(), others.presence())


def test_a_compiled_model_is_pruned_like_a_plain_one():
    model, optimizer, pruner = gated()
    other = build("convolutional")
    compiled = torch.compile(other, backend="eager")
    its = sgd(other.parameters())
    its_pruner = Pruner(compiled, its, gates="channels", example_input=IMAGES, flops=0.4, presence_lr=0.02,
                        pruning_steps=STEPS[0], regrowth_steps=STEPS[1])  # fmt: skip
    train(model, optimizer, 40)
    train(compiled, its, 40)
    assert same(pruner.presence(), its_pruner.presence())


def test_a_parameter_without_a_gradient_adds_nothing_to_the_flux():
    model, optimizer, pruner = gated("mlp")
    train(model, optimizer, 3)
    channels = pruner.gate.store.channels
    first, pressed = channels.first.clone(), channels.pressure_mean.clone()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model[3].weight.grad = None  # the only reader
    optimizer.step()
    assert channels.steps == 4
    np.testing.assert_allclose(channels.first - channels.pressure_mean, 0.9 * (first - pressed), rtol=1e-9)


@pytest.mark.parametrize("method", ["channels", "inputs too"])
def test_after_finalize_zeros_and_counts_agree(method):
    model, optimizer, pruner = gated("mlp", gate_inputs=method == "inputs too")
    average = copy.deepcopy(model)
    train(model, optimizer, 80)
    assert pruner.cost_ratio <= 0.4
    pruner.finalize()
    counted = sum(int(model[i].weight.count_nonzero()) for i in (1, 3))
    assert counted == pruner.surviving
    assert pruner.sparsity == 1 - counted / pruner.total
    assert {name: int(mask.sum()) for name, mask in pruner.masks().items()} == {
        f"{i}.weight": int(model[i].weight.count_nonzero()) for i in (1, 3)
    }
    pruner.apply_masks(average)
    assert sum(int(average[i].weight.count_nonzero()) for i in (1, 3)) == counted


def test_what_is_compacted_trains_on_and_is_pruned_again():
    """Channels first, then single weights of what is left."""
    model, optimizer, pruner = gated()
    train(model, optimizer, 80)
    pruner.finalize()
    smaller = compact(model.eval(), IMAGES).train()
    dense = count_cost(model, IMAGES)
    assert count_cost(smaller, IMAGES).dense_flops <= 0.4 * dense.dense_flops
    its = torch.optim.SGD(smaller.parameters(), lr=0.05)
    again = Pruner(smaller, its, target_sparsity=0.5, pruning_steps=40, regrowth_steps=10, presence_lr=0.02)
    train(smaller, its, 50, seed=2)
    again.finalize()
    assert again.surviving == round(0.5 * again.total)


def test_the_selection_shows_gates_readers_and_what_they_save():
    lines = str(gated()[2].selection).splitlines()
    assert lines[0] == "0         6 gates, read by 4; closing one saves 3,456 FLOPs and 83 parameters"
    assert lines[1] == "4         8 gates, read by 9; closing one saves 1,736 FLOPs and 61 parameters"
    assert lines[2] == "9         keeps its channels: read by the output or by a call that can't be cut"


def test_a_reader_that_is_not_pruned_keeps_its_channels():
    pruner = gated(exclude="9")[2]
    assert list(pruner.plan.layout.sizes) == ["0"]
    assert pruner.plan.layout.kept["4"] == "read by 9, which is not pruned"


def test_heads_and_hidden_units_of_a_transformer_have_gates():
    pruner = gated("transformer")[2]
    sizes = pruner.plan.layout.sizes
    assert sizes == {"blocks.0.attention.in_proj": 2, "blocks.0.fc1": 16, "blocks.1.attention.in_proj": 2,
                     "blocks.1.fc1": 16}  # fmt: skip
    sides = pruner.plan.layout.readers()
    assert sides["blocks.0.attention.out_proj.weight"].gates.tolist() == [0] * 4 + [1] * 4


class TwoInputs(nn.Module):
    """Its layers have the names of inputs."""

    def __init__(self):
        super().__init__()
        self.input, self.input_x = nn.Linear(6, 8), nn.Linear(5, 8)
        self.head = nn.Linear(16, 3)

    def forward(self, x, y):
        return self.head(torch.cat([torch.relu(self.input(x)), torch.relu(self.input_x(y))], 1))


def test_features_of_several_inputs_and_layers_called_like_them_have_gates_of_their_own():
    model = TwoInputs()
    weights = [name for name, parameter in model.named_parameters() if parameter.ndim > 1]
    example = torch.ones(2, 6), torch.ones(2, 5)
    sizes = channel_layout(model, example, weights, gate_inputs=True).sizes
    assert sizes == {"input x": 6, "input y": 5, "input": 8, "input_x": 8}
    assert channel_layout(model, example, weights).sizes == {"input": 8, "input_x": 8}
    alone = nn.Sequential()
    alone.input, alone.last = nn.Linear(4, 5), nn.Linear(5, 2)
    sizes = channel_layout(alone, torch.ones(2, 4), ["input.weight", "last.weight"], gate_inputs=True).sizes
    assert sizes == {"input": 4, "input'": 5}


class Shuffled(nn.Module):
    """Channels of two groups change places, which a reshape of fewer channels could not follow."""

    def __init__(self):
        super().__init__()
        self.first, self.inner, self.last = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 5, 1), nn.Conv2d(5, 3, 1)

    def forward(self, x):
        x = self.first(x)
        batch, _, height, width = x.shape
        x = x.view(batch, 2, 2, height, width).transpose(1, 2).flatten(1, 2)
        return self.last(torch.relu(self.inner(x))).mean((2, 3))


def test_channels_that_are_shuffled_are_kept():
    layout = channel_layout(Shuffled(), torch.ones(2, 1, 6, 6), ["first.weight", "inner.weight", "last.weight"])
    assert layout.sizes == {"inner": 5}
    assert layout.kept["first"] == "read by the output or by a call that can't be cut"


class Branching(nn.Module):
    """What torch.fx can't read."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(64, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.fc1(x.flatten(1))
        return self.fc2(x if x.sum() > 0 else -x)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"example_input": None}, "^example_input: gates of channels need one"),
        ({"flops": None}, "^target_sparsity: nothing says how far to prune; give one of target_sparsity, flops"),
        ({"parameters": 0.5}, "^target_sparsity: flops and parameters are both given"),
        ({"flops": 0.0}, "^flops: 0.0 is not a fraction between 0 and 1"),
        ({"flops": 1e-6}, "^flops: 1e-06 leaves 0 of 20,800 FLOPs, but one channel of every layer"),
        ({"controller": "published"}, "^controller: the published one prunes single weights only"),
        ({"gates": "weights"}, '^flops: is a budget for gates of channels; add gates="channels"'),
        ({"gates": "rows"}, "^gates: 'rows' is not known; give weights, channels, or N:M"),
        ({"gates": "2:4"}, "^flops: gates 2:4 leave 2:4 of the weights; leave it out"),
        ({"model": Branching().double()}, r"can't trace this Branching .*if x.sum\(\) > 0"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).double()}, "^gates: no channel of Sequential can"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_can_not_be_done_is_refused_in_one_line(settings, message):
    with pytest.raises(InputError, match=message) as refused:
        gated(**settings)
    assert "\n" not in str(refused.value)


def test_baselines_of_channels_meet_the_same_budget_and_bring_nothing_back():
    from hyperflux.backends.torch.gate_plan import gate_plan
    from hyperflux.backends.torch.selection import select
    from hyperflux.schedules.factory import counted_schedule

    for method in ("magnitude", "taylor"):
        model = build("convolutional")
        optimizer = sgd(model.parameters())
        plan = gate_plan(model, select(model, optimizer).prunable, "channels", "flops", 0.4, IMAGES)
        total, count, gates = plan.capacity[:3]
        schedule = counted_schedule(total, count, *STEPS, method=method, gates=gates)
        pruner = Pruner.with_schedule(model, optimizer, schedule, plan=plan)
        assert (pruner.budget, pruner.target_sparsity) == (("flops", 0.4), None)
        masks = []
        for inputs, labels in itertools.islice(batches(80), 80):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            masks.append(pruner.gate.store.mask())
        pruner.finalize()
        assert not any((late & ~early).any() for early, late in itertools.pairwise(masks))
        assert masks[-1].sum() < masks[10].sum()
        assert pruner.cost_ratio <= 0.4
