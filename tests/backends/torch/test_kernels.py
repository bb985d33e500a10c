"""The fused kernel against the plain one, what happens where it fails, what a step waits for and allocates."""

import logging
from collections import defaultdict
from unittest import mock

import pytest
import torch
from devices import needs_cuda
from hypothesis import given
from hypothesis import strategies as st
from networks import batches, build
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hyperflux import InputError, Pruner
from hyperflux.backends.torch import contents_check
from hyperflux.backends.torch.bench.steps import measure_steps
from hyperflux.backends.torch.kernels import blocks, choice, fused, packed, plain
from hyperflux.backends.torch.kernels.blocks import Blocks
from hyperflux.backends.torch.kernels.choice import AGREEMENT, choose_kernel, require_kernel_agrees
from hyperflux.backends.torch.kernels.fused import Fused, gate
from hyperflux.backends.torch.kernels.packed import Packed
from hyperflux.backends.torch.kernels.plain import ParameterUpdate, Plain
from hyperflux.backends.torch.weight_state import WeightState

CPU = torch.device("cpu")
LAYOUTS = (torch.contiguous_format, torch.channels_last)


@pytest.fixture
def undecided():
    """The choice of kernels is made anew, and forgotten."""
    choice._agrees.cache_clear()
    yield
    choice._agrees.cache_clear()


@st.composite
def shares(draw):
    """Two equal lists of shares of several parameters, and orders."""
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    size = draw(st.sampled_from([1e-6, 1e-2, 1.0]))
    scale = draw(st.sampled_from([None, torch.tensor(1024.0)]))
    ours, theirs = [], []
    for _ in range(draw(st.integers(1, 4))):
        shape = draw(st.tuples(*[st.integers(1, 4)] * 4))
        layout = draw(st.sampled_from(LAYOUTS))

        def drawn(shape=shape, layout=layout):
            values = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            return values.contiguous(memory_format=layout)

        presence = drawn()
        presence[drawn() < 0] = draw(st.sampled_from([0.0, -0.0, 1e-3, -1e-3]))
        state = WeightState(drawn(), presence, size * drawn(), (size * drawn()).square(), draw(st.integers(0, 5000)))
        if state.steps == 0:
            state.first.zero_()
            state.second.zero_()
        gradient = drawn()
        gradient[0, 0, 0, 0] = draw(st.sampled_from([0.0, -0.0, 1.0, -1e10]))
        ascends = draw(st.booleans())
        for sharing in (ours, theirs):
            tensors = {name: tensor.clone() for name, tensor in state.tensors().items()}
            own = WeightState(**tensors, steps=state.steps)
            sharing.append(ParameterUpdate(own, gradient.clone(), scale, ascends))
    pressure = draw(st.sampled_from([0.0, 1e-9, 1.0]))
    return ours, theirs, pressure, draw(st.sampled_from([None, 0.0, 1e-3, 0.05]))


@pytest.mark.parametrize("kind", [Fused, Packed])
@given(drawn=shares(), block=st.sampled_from([3, 64, 1 << 18]))
def test_every_kernel_agrees_with_the_plain_one(kind, drawn, block):
    """E1 to E6: θ and g·m to the bit; Adam to `AGREEMENT` roundings of the terms that it adds up."""
    ours, theirs, pressure, rate = drawn
    with mock.patch.object(blocks, "CPU_BLOCK", block), mock.patch.object(packed, "PACK", max(block, 1 << 10)):
        kernel = kind(CPU, ours[0].gradient.dtype)
    before = [share.state.first.abs().max() for share in theirs]
    slopes = [(0.25 * s.gradient / (s.scale or 1) * s.state.latent + pressure).abs().max() for s in theirs]
    kernel.take_step(ours, pressure, rate)
    Plain().take_step(theirs, pressure, rate)
    for one, other, first, slope in zip(ours, theirs, before, slopes, strict=True):
        assert torch.equal(one.gradient, other.gradient)
        assert torch.equal(one.gradient.signbit(), other.gradient.signbit())
        assert (one.state.steps, one.state.pressure_mean) == (other.state.steps, other.state.pressure_mean)
        rounding = AGREEMENT * torch.finfo(one.gradient.dtype).eps
        allowed = {
            "latent": 0.0,
            "first": rounding * max(first, slope),
            "second": rounding * other.state.second.max(),
            "presence": rounding * max(other.state.presence.abs().max(), 100 * (rate or 0.0)),
        }
        for name, tensor in one.state.tensors().items():
            torch.testing.assert_close(tensor, other.state.tensors()[name], rtol=0, atol=float(allowed[name]), msg=name)
    states, changed = [share.state for share in ours], len(ours) // 2
    for dtype in (ours[0].gradient.dtype, torch.bfloat16):
        outs = [[torch.empty_like(state.latent, dtype=dtype) for state in states] for _ in range(2)]
        for way, out in zip((kernel, Plain()), outs, strict=True):
            way.write_effective(states, out)
        for pair in zip(*outs, strict=True):
            assert torch.equal(*pair)
            assert torch.equal(*(out.signbit() for out in pair))
        outs[0][changed].view(-1)[-1:].add_(1) if outs[0][changed].is_contiguous() else outs[0][changed].add_(1)
        found = kernel.differs(states, outs[0]).tolist()
        assert found == Plain().differs(states, outs[0]).tolist()
        assert not any(kernel.differs(states, outs[1]).tolist())
        states[changed].latent.fill_(torch.nan)  # what differs from NaN is not a write
        assert not any(kernel.differs(states, outs[1]).tolist())
        states[changed].latent.copy_(theirs[changed].state.latent)


@pytest.mark.parametrize("kind", [Fused, Packed])
@given(
    drawn=shares(),
    steps=st.lists(st.tuples(st.integers(1, 15), st.sampled_from(LAYOUTS)), min_size=2),
    block=st.sampled_from([3, 64]),
)
def test_what_is_kept_of_the_blocks_changes_no_bit(kind, drawn, steps, block):
    """Other parameters take part from step to step, and they change their layout in memory: as with a fresh kernel."""
    ours, theirs, pressure, _ = drawn
    dtype = ours[0].gradient.dtype
    with mock.patch.object(blocks, "CPU_BLOCK", block), mock.patch.object(packed, "PACK", 1 << 10):
        kept = kind(CPU, dtype)
        for chosen, layout in steps:
            for sharing, kernel in ((ours, kept), (theirs, kind(CPU, dtype))):
                for share in sharing:
                    share.state.follow(share.state.latent.contiguous(memory_format=layout))
                laid = [
                    share._replace(gradient=torch.empty_like(s.latent).copy_(g))
                    for share in sharing
                    for s, g, *_ in [share]
                ]
                kernel.take_step([share for n, share in enumerate(laid) if chosen >> n & 1] or laid, pressure, 1e-3)
            for one, other in zip(ours, theirs, strict=True):
                assert all(
                    torch.equal(tensor, other.state.tensors()[name]) for name, tensor in one.state.tensors().items()
                )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("flushed", [False, True])
def test_the_gate_is_at_0_whatever_the_processor_does_with_subnormal_numbers(dtype, flushed):
    """E1: also the k-th largest t, which capacity puts at exactly 0, stays present."""
    tiny = torch.finfo(dtype).tiny
    t = torch.tensor([0.0, -0.0, tiny, -tiny, 1.0, -1.0, float("inf"), -float("inf")] * 9, dtype=dtype)
    values, out = torch.randn_like(t).abs() + 1, torch.empty_like(t)
    values[3] = float("nan")
    torch.set_flush_denormal(flushed)
    try:
        gate(values, t, out=out)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(out, torch.where(t >= 0, values, 0))


def test_subnormal_presence_counts_as_well():
    """E1: the largest number below 0 is pruned, the smallest above it present."""
    t = torch.tensor([5e-324, -5e-324], dtype=torch.float64)
    out = torch.empty_like(t)
    gate(torch.ones_like(t), t, out=out)
    assert out.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("threads", [1, 2])
def test_bits_do_not_depend_on_threads_nor_on_the_other_parameters(threads):
    outcomes = []
    for others, count in ((0, 1), (3, threads)):
        generator, before = torch.Generator().manual_seed(0), torch.get_num_threads()
        tensors = [torch.randn(70_001, generator=generator) for _ in range(5)]
        state = WeightState(*tensors[:3], tensors[3].square(), steps=3)
        more = [ParameterUpdate(WeightState(*torch.rand(4, 5)), torch.rand(5)) for _ in range(others)]
        torch.set_num_threads(count)
        Fused(CPU, torch.float32).take_step([*more, ParameterUpdate(state, tensors[4])], 1e-6, 1e-3)
        torch.set_num_threads(before)
        outcomes.append(state.tensors())
    assert all(torch.equal(outcomes[0][name], outcomes[1][name]) for name in outcomes[0])


@pytest.mark.usefixtures("undecided")
def test_the_fused_kernel_is_taken_where_it_agrees_and_the_log_says_where_not(monkeypatch, caplog):
    assert choose_kernel(CPU, torch.float32, 10).name == "fused"
    choice._agrees.cache_clear()
    monkeypatch.setattr(torch, "_fused_adam_", lambda *_, **__: None)
    with caplog.at_level(logging.WARNING, "hyperflux"):
        assert choose_kernel(CPU, torch.float32, 10).name == "plain"
        assert choose_kernel(CPU, torch.float32, 10).name == "plain"
    assert caplog.text.count("not using the fused kernel for torch.float32 on cpu") == 1
    assert choose_kernel(torch.device("meta"), torch.float32, 10).name == "plain"


MUTANTS = {
    "a gate at > instead of >=": (fused, "_BELOW_ZERO", defaultdict(float)),
    "another kappa": (plain, "KAPPA", 0.2501),
    "another epsilon": (fused, "ADAM_EPSILON", 1e-3),
    "another beta": (fused, "ADAM_BETAS", (0.9, 0.9999)),
}
OF_PACKED = {
    "another kappa": (plain, "KAPPA", 0.2501),
    "no gate": (packed, "gate", lambda values, presence, out: out.copy_(values)),
    "views of another order": (Blocks, "of", lambda self, states, own=Blocks.of: own(self, states[::-1])),
    "a comparison that sees nothing": (torch, "_foreach_norm", lambda tensors, _: [t.sum() * 0 for t in tensors]),
}


@pytest.mark.parametrize("mutant", OF_PACKED)
def test_a_wrong_packed_kernel_is_refused(mutant, monkeypatch):
    require_kernel_agrees(Packed(CPU, torch.float32), CPU, torch.float32)
    monkeypatch.setattr(*OF_PACKED[mutant])
    with pytest.raises((InputError, RuntimeError), match=r"does not agree with the plain one|size of tensor"):
        require_kernel_agrees(Packed(CPU, torch.float32), CPU, torch.float32)


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_wrong_kernel_is_refused(mutant, dtype, monkeypatch):
    require_kernel_agrees(Fused(CPU, dtype), CPU, dtype)
    monkeypatch.setattr(*MUTANTS[mutant])
    with pytest.raises(InputError, match="kernel fused: does not agree with the plain one"):
        require_kernel_agrees(Fused(CPU, dtype), CPU, dtype)


@pytest.mark.usefixtures("undecided")
def test_nothing_is_reported_of_a_kernel_that_does_not_agree(monkeypatch):
    monkeypatch.setattr(plain, "KAPPA", 0.2501)
    monkeypatch.setattr(choice, "choose_kernel", lambda device, dtype, weights: Fused(device, dtype))
    with pytest.raises(InputError, match="does not agree"):
        measure_steps("mlp:784-4-10", 4, 1, "cpu")


def settled_training(model, inputs, labels, **settings):
    """A function that takes one step of a long course, after the first few."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    Pruner(model, optimizer, target_sparsity=0.9, pruning_steps=100_000, regrowth_steps=0, **settings)

    def step():
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(10):
        step()
    return step, optimizer


class Operations(TorchDispatchMode):
    """Notes operations that wait for a device, and the largest tensor that was allocated."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "index.Tensor")

    def __init__(self):
        super().__init__()
        self.waits, self.largest = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = str(function).removeprefix("aten.")
        self.waits += [name] * name.startswith(self.WAITING)
        known = {tensor.data_ptr() for tensor in torch.utils._pytree.tree_leaves((args, kwargs)) if is_tensor(tensor)}
        for tensor in torch.utils._pytree.tree_leaves(result):
            if is_tensor(tensor) and not tensor._is_view() and tensor.data_ptr() not in known:
                self.largest = max(self.largest, tensor.numel())
        return result


def is_tensor(value):
    return isinstance(value, torch.Tensor)


READING = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__")
"""Methods by which a tensor's numbers come to the host."""


@pytest.mark.parametrize(
    ("telemetry", "moving"),
    [("off", ("cpu", "numpy")), ("light", ())],
)
def test_only_control_steps_wait_for_the_device(telemetry, moving, monkeypatch):
    """E13, E14: 50 steps with a control step in five; between them nothing is read back.

    On a CPU telemetry counts by NumPy, on the tensors' own memory, which waits for nothing. Contents are compared as on
    a device.
    """
    monkeypatch.setattr(contents_check, "is_read_at_once", lambda tensor: False)
    monkeypatch.setattr(Fused, "differs", lambda self, states, values: Plain().differs(states, values))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 160), nn.ReLU(), nn.Linear(160, 4))
    step, _ = settled_training(model, *next(batches(1, dtype=torch.float32)), telemetry=telemetry)
    waiting = []
    for method in (*READING, *moving):
        original = getattr(torch.Tensor, method)
        monkeypatch.setattr(torch.Tensor, method, lambda *a, o=original, m=method: (waiting.append(m), o(*a))[1])
    seen = []
    for _ in range(50):
        with Operations() as operations:
            step()
        seen.append([*waiting, *operations.waits])
        waiting.clear()
    assert all(seen[number] == [] for number in range(50) if number % 5 != 4)
    assert all(seen[number] for number in range(4, 50, 5))


@needs_cuda
def test_only_control_steps_wait_for_a_gpu():
    """The same by the device's own account."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 160), nn.ReLU(), nn.Linear(160, 4)).cuda()
    inputs, labels = (tensor.cuda() for tensor in next(batches(1, dtype=torch.float32)))
    step, _ = settled_training(model, inputs, labels)
    for _ in range(10):
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(4):
                step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_allocates_nothing_of_a_layers_size(dtype, monkeypatch):
    """Beside w, t and two moments, 16 bytes a weight in float32, there are blocks, taken at the start."""
    monkeypatch.setattr(blocks, "CPU_BLOCK", 64)
    model = build("mlp", dtype=dtype)
    inputs, labels = next(batches(1, dtype=dtype))
    _, optimizer = settled_training(model, inputs, labels, telemetry="off", controller="published")
    nn.functional.cross_entropy(model(inputs), labels).backward()
    with Operations() as operations:
        optimizer.step()
    assert operations.largest <= 64
