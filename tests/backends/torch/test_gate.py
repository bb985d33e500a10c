"""The gate's hooks: steps that fail, call each other, are compiled or captured, and what the parameters hold then."""

import gc
import weakref
from copy import deepcopy

import pytest
import torch
from devices import needs_cuda
from networks import batches, build
from torch import nn

from hyperflux import InputError, Pruner
from hyperflux.backends.torch.gate import TorchGate
from hyperflux.backends.torch.selection import select


def gated(optimizer_type=torch.optim.SGD):
    """A small network, its optimizer and a gate without a schedule."""
    model = build("mlp")
    optimizer = optimizer_type(model.parameters(), lr=0.05)
    gate = TorchGate(select(model, optimizer, None, None).prunable, optimizer, seed=0)
    gate.presence_lr = 0.3
    return model, optimizer, gate


def step(model, optimizer):
    ((inputs, labels),) = batches(1)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(inputs), labels).backward()
    optimizer.step()


def require_effective(model, gate):
    """θ = w·m in every parameter, its mask that of t now."""
    for name, state in gate.states.items():
        assert torch.equal(model.get_parameter(name), torch.where(state.presence >= 0, state.latent, 0)), name
    gate.verify()


def test_what_comes_after_a_step_may_move_t():
    model, optimizer, gate = gated()
    kept = []
    gate.after_step = lambda: kept.append(gate.meet_capacity(100))
    step(model, optimizer)
    assert len(kept) == 1
    assert gate.surviving() == 100
    require_effective(model, gate)


@pytest.mark.parametrize("moved", [False, True])
def test_an_error_after_a_step_leaves_the_effective_weights(moved):
    """A schedule that gives up, as where replicas differ: the step itself took place."""
    model, optimizer, gate = gated()

    def fail():
        if moved:
            gate.states["1.weight"].presence.sub_(0.2)
        raise RuntimeError("the schedule")

    gate.after_step = fail
    with pytest.raises(RuntimeError, match="the schedule"):
        step(model, optimizer)
    assert gate.steps == 1
    assert 0 < gate.surviving() < gate.total
    require_effective(model, gate)


class Failing(torch.optim.SGD):
    """Its first step fails once the weights have moved."""

    def step(self, closure=None):
        super().step(closure)
        if not self.state.get("failed"):
            self.state["failed"] = True
            raise RuntimeError("the optimizer")


def test_a_step_that_fails_within_the_optimizer_is_no_step():
    model, optimizer, gate = gated(Failing)
    called = []
    gate.after_step = lambda: called.append(gate.steps)
    with pytest.raises(RuntimeError, match="the optimizer"):
        step(model, optimizer)
    assert (gate.steps, called) == (0, [])
    gate.verify()  # until the gate is asked the parameters point at the latent weights
    require_effective(model, gate)
    step(model, optimizer)
    assert (gate.steps, called) == (1, [1])
    require_effective(model, gate)


class Nested(torch.optim.SGD):
    """Its step is that of SGD, whose hooks run as well, once SGD itself has been used."""

    def step(self, closure=None):
        super().step(closure)
        assert any(parameter.data_ptr() in self.latent for parameter in self.param_groups[0]["params"])


def test_a_step_that_calls_that_of_its_base_class_is_one_step():
    outcomes = []
    for optimizer_type in (torch.optim.SGD, Nested):
        model, optimizer, gate = gated(optimizer_type)
        optimizer.latent = {state.latent.data_ptr() for state in gate.states.values()}
        for _ in range(3):
            step(model, optimizer)
        assert gate.steps == 3
        require_effective(model, gate)
        outcomes.append(gate.states)
    for one, other in zip(outcomes[0].values(), outcomes[1].values(), strict=True):
        assert all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())


def course(model, optimizer):
    return Pruner(model, optimizer, target_sparsity=0.9, pruning_steps=30, regrowth_steps=10)


def test_the_last_good_state_can_be_loaded_after_a_step_that_failed():
    """The parameters still point at w then, into which θ must not be written."""
    outcomes = []
    for fails in (False, True):
        model = build("mlp")
        optimizer = Failing(model.parameters(), lr=0.05)
        optimizer.state["failed"] = True
        pruner = course(model, optimizer)
        for _ in range(10):
            step(model, optimizer)
        saved = deepcopy([model.state_dict(), pruner.state_dict()])
        if fails:
            optimizer.state["failed"] = False
            with pytest.raises(RuntimeError, match="the optimizer"):
                step(model, optimizer)
            model.load_state_dict(saved[0])
            pruner.load_state_dict(saved[1])
        for _ in range(10):
            step(model, optimizer)
        outcomes.append(pruner.latent())
    assert all(torch.equal(latent, outcomes[1][name]) for name, latent in outcomes[0].items())
    assert all(bool((latent != 0).all()) for latent in outcomes[0].values())


def test_nothing_is_kept_of_where_a_parameter_was():
    """Blocks are cut once and kept; a parameter that has moved must not leave its old w, t and moments in memory."""
    model, optimizer, gate = gated()
    step(model, optimizer)
    weight = model.get_parameter("1.weight")
    old = [weakref.ref(tensor.untyped_storage()) for tensor in gate.states["1.weight"].tensors().values()]
    assert all(storage() is not None for storage in old)
    weight.data = weight.data.t().contiguous().t()
    gate.resync()
    gc.collect()
    assert [storage() for storage in old] == [None] * 4
    step(model, optimizer)
    require_effective(model, gate)


def test_a_compiled_step_goes_the_same_way():
    outcomes = []
    for compiles in (False, True):
        model = build("mlp")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        pruner = course(model, optimizer)
        if compiles:
            optimizer.step = torch.compile(optimizer.step, backend="eager")
        for _ in range(20):
            step(model, optimizer)
        outcomes.append((pruner.step_count, pruner.presence()))
    (steps, presence), (compiled_steps, compiled) = outcomes
    assert steps == compiled_steps == 20
    assert all(torch.equal(t, compiled[name]) for name, t in presence.items())


@needs_cuda
def test_a_model_in_a_cuda_graph_goes_the_same_way():
    outcomes = []
    for captures in (False, True):
        model = build("mlp", dtype=torch.float32).cuda()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        pruner = course(model, optimizer)
        samples = [(inputs.cuda(), labels.cuda()) for inputs, labels in batches(20, dtype=torch.float32)]
        forward = torch.cuda.make_graphed_callables(model, (samples[0][0],)) if captures else model
        for inputs, labels in samples:
            optimizer.zero_grad()
            nn.functional.cross_entropy(forward(inputs), labels).backward()
            optimizer.step()
        outcomes.append((pruner.step_count, pruner.surviving, pruner.presence()))
    (steps, surviving, presence), (graphed_steps, graphed_surviving, graphed) = outcomes
    assert (steps, surviving) == (graphed_steps, graphed_surviving)
    for name, t in presence.items():
        torch.testing.assert_close(graphed[name], t, rtol=1e-3, atol=1e-3)


@needs_cuda
def test_a_step_is_not_captured_in_a_cuda_graph(monkeypatch):
    model = build("mlp", dtype=torch.float32).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pruner = course(model, optimizer)
    inputs, labels = next(batches(1, dtype=torch.float32))
    nn.functional.cross_entropy(model(inputs.cuda()), labels.cuda()).backward()
    before = pruner.presence()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(InputError, match="captured in a CUDA graph"):
        optimizer.step()
    assert all(torch.equal(t, before[name]) for name, t in pruner.presence().items())


def test_parameters_of_two_dtypes_are_ranked_as_one():
    """E12: float32 t beside float64 t would be compared after rounding, and a weight too many or too few be left."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 4).double())
    model[2].register_forward_hook(lambda module, inputs, output: output.double())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pruner = course(model, optimizer)
    for inputs, labels in batches(12, dtype=torch.float32):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    assert {t.dtype for t in pruner.presence().values()} == {torch.float64}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32, torch.float64}
    assert pruner.surviving == pruner.session.schedule.target_count(12)
    pruner.finalize()
    assert sum(int(model.get_parameter(name).count_nonzero()) for name in pruner.masks()) == pruner.surviving == 163
