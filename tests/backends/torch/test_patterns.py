"""N:M patterns on torch: capacity against the specification, whole runs, what is said and refused (E18)."""

import copy

import numpy as np
import pytest
import torch
from devices import on_every_device
from hypothesis import given
from hypothesis import strategies as st
from networks import build
from processes import run_together
from pruned import pruned, same, train
from replicas import trained
from torch import nn

from hyperflux import InputError, Pruner, spec
from hyperflux.backends.numpy.pattern_gate import PatternGate
from hyperflux.backends.torch.gate_plan import gate_plan
from hyperflux.backends.torch.pattern_layout import PatternLayout
from hyperflux.backends.torch.pattern_states import PatternStates
from hyperflux.backends.torch.selection import select
from hyperflux.gates.kinds import Pattern, gate_kind
from hyperflux.schedules.default import DefaultSchedule
from hyperflux.schedules.factory import counted_schedule

EQUAL_OFTEN = st.sampled_from([0.0, -0.0, 1e-3, -1e-3, 0.25, -0.25])
WHOLE_GROUPS = {
    "linear": lambda inputs: nn.Linear(inputs, 3, bias=False),
    "convolution": lambda inputs: nn.Conv2d(inputs, 2, (2, 1), bias=False),
    "transposed": lambda inputs: nn.ConvTranspose1d(2 * inputs, 4, 2, groups=2, bias=False),
}
patterns = st.integers(2, 20).flatmap(lambda m: st.builds(Pattern, st.integers(1, m - 1), st.just(m)))


def store_of(model, pattern, device, presence):
    """The store of a model's weights, with these t."""
    model = model.double().to(device)
    parameters = dict(model.named_parameters())
    layout = PatternLayout.of(model, parameters, pattern)
    store = PatternStates(layout, parameters, torch.float64, 0, (0.2, 0.5))
    for state, t in zip(store.states.values(), presence, strict=True):
        state.presence.copy_(torch.from_numpy(t))
    return store


def in_rows(array, kind):
    """The elements output by output, with all inputs of each in a row."""
    if kind == "transposed":
        return np.concatenate([np.moveaxis(section, 0, -1).ravel() for section in np.split(array, 2)])
    return np.moveaxis(array, 1, -1)


@on_every_device
@given(data=st.data(), pattern=patterns)
def test_capacity_is_that_of_the_specification_to_the_bit(device, data, pattern):
    """E18 on weights whose groups are whole, with many equal t, near the gate and far from it."""
    kinds = data.draw(st.lists(st.sampled_from(list(WHOLE_GROUPS)), min_size=1, max_size=3))
    layers = [WHOLE_GROUPS[kind](pattern.group * data.draw(st.integers(1, 3))) for kind in kinds]
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    choices = data.draw(st.lists(EQUAL_OFTEN | st.floats(-2, 2), min_size=1, max_size=8))
    presence = [
        np.where(rng.random(shape) < 0.5, rng.choice(choices, shape), rng.normal(size=shape))
        for shape in (tuple(layer.weight.shape) for layer in layers)
    ]
    rows = [in_rows(t, kind).reshape(-1, pattern.group) for t, kind in zip(presence, kinds, strict=True)]
    groups = np.concatenate(rows)
    count = data.draw(st.integers(len(groups) * pattern.kept, groups.size))
    expected, tau = spec.meet_pattern(groups, pattern.kept, count)
    store = store_of(nn.Sequential(*layers), pattern, device, presence)
    assert store.meet_capacity(count, data.draw(st.sampled_from([1e-3, 0.3, np.inf])), "presence") == tau
    found = [
        in_rows(state.presence.cpu().numpy(), kind).reshape(-1, pattern.group)
        for state, kind in zip(store.states.values(), kinds, strict=True)
    ]
    np.testing.assert_array_equal(np.concatenate(found), expected)
    assert store.surviving() == count


@given(data=st.data(), pattern=patterns)
def test_shorter_groups_are_those_of_the_other_backend(data, pattern):
    """Of a last group min(N, its length) weights stay; a count that is too small leaves what the pattern keeps."""
    shapes = data.draw(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 45)), min_size=1, max_size=3))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    presence = [np.where(rng.random(shape) < 0.3, 0.25, rng.normal(size=shape)) for shape in shapes]
    flat = np.concatenate([t.ravel() for t in presence])
    state = spec.State(np.ones_like(flat), flat, spec.Moments.zeros_like(flat))
    ours = PatternGate(state, {str(i): t.size for i, t in enumerate(presence)}, shapes, pattern)
    layers = [nn.Linear(inputs, outputs, bias=False) for outputs, inputs in shapes]
    store = store_of(nn.Sequential(*layers), pattern, "cpu", presence)
    if ours.kept == flat.size:
        with pytest.raises(InputError, match="nothing would be removed"):
            gate_plan(nn.Sequential(*layers), dict(nn.Sequential(*layers).named_parameters()), pattern, "sparsity", 0.5)
        return
    count = data.draw(st.integers(1, flat.size))
    assert store.meet_capacity(count, np.inf, "presence") == ours.meet_capacity(count, "presence")
    found = np.concatenate([own.presence.numpy().ravel() for own in store.states.values()])
    np.testing.assert_array_equal(found, ours.state.presence)
    assert store.surviving() == max(count, ours.kept)


def test_memory_layout_does_not_matter():
    """A convolution of more than 16 consecutive weights is ranked by sorting, also with the channels last in memory."""
    for pattern in (Pattern(2, 4), Pattern(7, 20)):
        rows = np.random.default_rng(0).integers(-3, 3, (2, 40, 3, 3)) / 4
        stores = [store_of(nn.Conv2d(40, 2, 3, bias=False), pattern, "cpu", [rows]) for _ in range(2)]
        (state,) = stores[1].states.values()
        state.follow(state.latent.to(memory_format=torch.channels_last))
        assert not state.presence.is_contiguous()
        assert stores[0].meet_capacity(500, np.inf, "presence") == stores[1].meet_capacity(500, np.inf, "presence")
        assert torch.equal(*(next(iter(store.states.values())).presence for store in stores))


class AllKinds(nn.Module):
    """Layers whose inputs lie along different dimensions, some of them too few for a group."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.up = nn.ConvTranspose2d(6, 10, 2, stride=2, groups=2)
        self.attention = nn.MultiheadAttention(10, 2, batch_first=True)
        self.head = nn.Linear(10, 4)

    def forward(self, x):
        x = torch.relu(self.depthwise(torch.relu(self.first(x))))
        tokens = torch.relu(self.up(nn.functional.max_pool2d(x, 4))).flatten(2).transpose(1, 2)
        return self.head(self.attention(tokens, tokens, tokens)[0].mean(1))


def places(mask, dim=1, sections=1):
    """Of every input group of 4 of a mask, how many are present, with the length of the group."""
    for section in mask.movedim(dim, 0).chunk(sections):
        for group in section.split(4):
            yield from ((len(group), int(count)) for count in group.flatten(1).sum(0))


def assert_holds(masks, kept):
    for name, mask in masks.items():
        found = list(places(mask, *((0, 2) if name == "up.weight" else (1,))))
        assert found, name
        assert all(count == min(kept, length) for length, count in found), name


def pruner_of(model, method="hyperflux", **settings):
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    if method == "hyperflux":
        return optimizer, Pruner(
            model, optimizer, gates="2:4", pruning_steps=60, regrowth_steps=20, presence_lr=0.02, **settings
        )
    plan = gate_plan(model, select(model, optimizer).prunable, gate_kind("2:4"), "sparsity", 0.5)
    schedule = counted_schedule(plan.capacity.total, plan.capacity.final_count, 60, 20, method=method)
    return optimizer, Pruner.with_schedule(model, optimizer, schedule, plan=plan, **settings)


@pytest.mark.parametrize("method", ["hyperflux", "magnitude"])
@pytest.mark.parametrize("make", [AllKinds, lambda: build("transformer")], ids=["all kinds", "transformer"])
def test_a_run_ends_with_exactly_two_of_every_four(make, method):
    torch.manual_seed(0)
    model = make().double()
    optimizer, pruner = pruner_of(model, method)
    kept, counts = pruner.plan.capacity.final_count, []
    for step in range(80):
        train(model, optimizer, 1, seed=step)
        counts.append(pruner.surviving)
        if step == 30:
            assert kept < counts[-1] < pruner.total
    assert min(counts) == counts[-1] == kept
    before = {name: mask.clone() for name, mask in pruner.masks().items()}
    pruner.finalize()
    assert same(before, pruner.masks())
    assert_holds(pruner.masks(), 2)
    weights = dict(model.named_parameters())
    assert all(not weights[name][~mask].any() for name, mask in pruner.masks().items())


def test_a_run_cut_short_ends_with_the_pattern_too():
    model = build("mlp")
    optimizer, pruner = pruner_of(model)
    train(model, optimizer, 25)
    pruner.finalize()
    assert_holds(pruner.masks(), 2)


def test_between_steps_no_group_has_less():
    """A network of more than 10,000 weights, whose course of single weights would act every other step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 200), nn.ReLU(), nn.Linear(200, 4)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    settings = {"gates": "2:4", "pruning_steps": 4000, "regrowth_steps": 0, "presence_lr": 0.1, "telemetry": "off"}
    pruner = Pruner(model, optimizer, **settings)
    for step in range(40):
        train(model, optimizer, 1, seed=step)
        assert all(count >= 2 for mask in pruner.masks().values() for _, count in places(mask))


def test_the_course_does_not_undershoot():
    *_, pruner = pruned("mlp", gates="1:4", target_sparsity=None)
    schedule = pruner.session.schedule
    assert isinstance(schedule, DefaultSchedule)
    assert schedule.lowest_count == schedule.final_count == pruner.total // 4
    assert pruner.target_sparsity == 0.75


def test_a_restored_pruner_goes_on_to_the_bit():
    model, optimizer, pruner = pruned("convolutional", gates="2:4", target_sparsity=None)
    train(model, optimizer, 33)
    saved = [copy.deepcopy(part.state_dict()) for part in (model, optimizer, pruner)]
    train(model, optimizer, 47, seed=1)
    again, its_optimizer, its_pruner = pruned("convolutional", gates="2:4", target_sparsity=None)
    its_pruner.load_state_dict(saved[2])
    again.load_state_dict(saved[0])
    its_optimizer.load_state_dict(saved[1])
    train(again, its_optimizer, 47, seed=1)
    assert same(again.state_dict(), model.state_dict())
    assert same(its_pruner.presence(), pruner.presence())
    *_, other = pruned("convolutional", gates="3:4", target_sparsity=None)
    with pytest.raises(InputError, match=r"target_sparsity is .*, but .* in this Pruner"):
        other.load_state_dict(saved[2])


def test_replicas_have_the_masks_of_one_process():
    settings = {"gates": "2:4", "target_sparsity": None}
    alone, surviving = trained(**settings)
    assert surviving == len(alone[-1]) // 2
    for seen, left in run_together(trained, 2, **settings):
        assert left == surviving
        assert all(np.array_equal(one, other) for one, other in zip(seen, alone, strict=True))


def test_the_selection_says_which_weights_have_the_pattern():
    _, pruner = pruner_of(AllKinds(), exclude="head")
    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in str(pruner.selection).splitlines()}
    assert lines["first.weight"] == "54 weights, prunable, 1 input (dimension 1), too few for 2:4: all stay"
    assert lines["up.weight"] == "120 weights, prunable, 3 inputs (dimension 0), fewer than 4: 2 of them stay"
    attention = "300 weights, prunable, 2:4 along 10 inputs (dimension 1), 2 of the last 2"
    assert lines["attention.in_proj_weight"] == attention
    assert lines["head.weight"] == "excluded"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"include": ["0.weight", "1.weight"]}, "1.weight: has no dimension of inputs for gates of a pattern; exclude"),
        ({"include": "2"}, "gates 2:4: no layer has more than 2 inputs, so nothing would be removed; leave gates out"),
        ({"target_sparsity": 0.5}, "target_sparsity: gates 2:4 leave 2:4 of the weights; leave it out"),
        ({"controller": "published"}, "controller: the published one prunes single weights only; use the default one"),
    ],
)
def test_what_does_not_fit_is_refused(settings, message):
    model = nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.Conv2d(2, 4, 1))
    with pytest.raises(InputError, match=message):
        pruner_of(model, **settings)
