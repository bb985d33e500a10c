"""Moments in bfloat16: t moves as with float32 ones in a step, nearly so in many, and runs go on to the bit."""

import io
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import batches, build
from tolerances import WAVER
from torch import nn

from hyperflux import InputError, Pruner, RunConfig
from hyperflux.backends.torch.kernels import blocks
from hyperflux.backends.torch.kernels.choice import Kernels
from hyperflux.backends.torch.kernels.dither import Dither
from hyperflux.backends.torch.kernels.fused import Fused
from hyperflux.backends.torch.kernels.narrow import Narrow
from hyperflux.backends.torch.kernels.plain import Plain, Share
from hyperflux.backends.torch.update import WeightState

CPU = torch.device("cpu")
LAYOUTS = (torch.contiguous_format, torch.channels_last)
KERNELS = {"fused": lambda: Fused(CPU, torch.float32), "plain": Plain}


def bfloat16(tensor):
    return tensor.to(torch.bfloat16)


def pair(shape=(5,), layout=None, steps=0, seed=0, scale=None):
    """Two shares of the same numbers: moments in float32, and in bfloat16, which holds them exactly."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    drawn = [torch.randn(shape, generator=generator) for _ in range(5)]
    drawn = [tensor if layout is None else tensor.contiguous(memory_format=layout) for tensor in drawn]
    latent, presence, first, second, gradient = drawn
    first, second = bfloat16(first * bool(steps)), bfloat16(second.square() * bool(steps))
    for moments in ((first.float(), second.float()), (first.clone(), second.clone())):
        state = WeightState(latent.clone(), presence.clone(), *moments, steps=steps)
        found.append(Share(state, gradient.clone(), scale))
    return found


@given(
    st.lists(st.tuples(*[st.integers(1, 4)] * 4), min_size=1, max_size=4),
    st.sampled_from(LAYOUTS),
    st.sampled_from([0, 1, 4000]),
    st.sampled_from([3, 64, 1 << 18]),
    st.sampled_from([None, torch.tensor(1024.0)]),
    st.sampled_from([None, 0.0, 1e-3]),
    st.sampled_from(sorted(KERNELS)),
)
def test_a_step_is_that_of_the_kernel_within_and_then_moments_are_rounded(
    shapes, layout, steps, block, scale, rate, kernel
):
    """E3, E5, E6: g·m and t to the bit, moments to the one or the other neighbour in bfloat16."""
    pairs = [pair(shape, layout, steps, seed, scale) for seed, shape in enumerate(shapes)]
    with mock.patch.object(blocks, "CPU_BLOCK", block):
        within = KERNELS[kernel]()
        narrow = Narrow(within, CPU)
    within.take_step([full for full, _ in pairs], 1e-3, rate)
    narrow.take_step([own for _, own in pairs], 1e-3, rate)
    for full, own in pairs:
        assert torch.equal(own.gradient, full.gradient)
        assert torch.equal(own.state.presence, full.state.presence)
        assert (own.state.steps, own.state.pressure_mean) == (full.state.steps, full.state.pressure_mean)
        for name in ("first", "second"):
            wide, kept = full.state.tensors()[name], own.state.tensors()[name]
            assert kept.dtype == torch.bfloat16
            assert kept.stride() == wide.stride()
            assert bool(((kept.float() - wide).abs() < 2.0**-7 * wide.abs() + 1e-37).all())
            assert rate is not None or torch.equal(kept.float(), wide)


def test_t_goes_the_way_it_goes_with_float32_moments():
    """E6: the second moment is right on average and wavers by some hundredths, t by less than `WAVER` of its way."""
    (full, own), generator = pair((5000,)), torch.Generator().manual_seed(1)
    start, mean = full.state.presence.clone(), torch.randn(5000, generator=generator)
    kernel, narrow = Fused(CPU, torch.float32), Narrow(Fused(CPU, torch.float32), CPU)
    for _ in range(1000):
        gradient = 1e-3 * (mean + torch.randn(5000, generator=generator))
        kernel.take_step([Share(full.state, gradient.clone())], 1e-6, 1e-3)
        narrow.take_step([Share(own.state, gradient)], 1e-6, 1e-3)
    full, own = full.state, own.state
    ratio = own.second.double() / full.second.double()
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / len(ratio) ** 0.5
    assert 0.01 < ratio.std() < 0.06
    way, apart = full.presence - start, own.presence - full.presence
    assert apart.square().mean().sqrt() < WAVER * way.square().mean().sqrt()
    assert abs(own.restoring_flux() - full.restoring_flux()).mean() < 0.01 * full.restoring_flux().abs().mean()


@pytest.mark.parametrize("dithered", [True, False])
def test_a_second_moment_without_gradient_falls_as_it_would_not_if_rounded_to_the_nearest(dithered, monkeypatch):
    """E6: by β₂ a step. Why there is a dither at all."""
    if not dithered:
        monkeypatch.setattr(Dither, "round", lambda self, values, key, out: out.copy_(values))
    (_, share), narrow = pair((5000,), steps=5000), Narrow(Fused(CPU, torch.float32), CPU)
    before = share.state.second.double()
    for _ in range(200):
        narrow.take_step([Share(share.state, torch.zeros(5000))], 0.0, 1e-3)
    ratio = share.state.second.double() / before
    if dithered:
        assert abs(ratio.mean() - 0.999**200) < 5 * ratio.std() / len(ratio) ** 0.5
    else:
        assert bool((ratio == 1).all())


def test_a_gradient_that_is_not_finite_reaches_t_whatever_becomes_of_its_moments():
    """There it is found: see `hyperflux.backends.torch.finite`."""
    (_, share), narrow = pair(steps=3), Narrow(Fused(CPU, torch.float32), CPU)
    share.gradient[1:3] = torch.tensor([float("nan"), float("-inf")])
    narrow.take_step([share], 1e-6, 1e-3)
    assert share.state.presence.isfinite().tolist() == [True, False, False, True, True]


def test_bits_depend_neither_on_the_process_nor_on_the_other_parameters():
    outcomes = []
    for others in (0, 3):
        (_, share), more = pair((300_001,), steps=7), [pair((70,), seed=seed)[1] for seed in range(others)]
        Narrow(Fused(CPU, torch.float32), CPU).take_step([*more, share], 1e-6, 1e-3)
        outcomes.append(share.state.tensors())
    assert all(torch.equal(outcomes[0][name], outcomes[1][name]) for name in outcomes[0])


COURSE = {"target_sparsity": 0.7, "pruning_steps": 30, "regrowth_steps": 10, "presence_lr": 0.03}


def course(model, **settings):
    """A Pruner with moments in bfloat16, its fused optimizer, and a GradScaler."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    pruner = Pruner(model, optimizer, moments="bfloat16", **{**COURSE, **settings})
    return pruner, optimizer, torch.amp.GradScaler("cpu", init_scale=2.0**10)


def train(model, optimizer, scaler, steps):
    for inputs, labels in steps:
        loss = nn.functional.cross_entropy(model(inputs.to(next(model.parameters()).dtype)), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["mlp", "convolutional"])
def test_a_restored_pruner_goes_on_to_the_bit(kind, dtype):
    steps = list(batches(40, dtype=torch.float32))
    model = build(kind, dtype=dtype)
    pruner, optimizer, scaler = course(model)
    train(model, optimizer, scaler, steps[:17])
    file = io.BytesIO()
    torch.save([part.state_dict() for part in (model, optimizer, scaler, pruner)], file)
    train(model, optimizer, scaler, steps[17:])
    pruner.finalize()
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = build(kind, seed=1, dtype=dtype)
    restored, its_optimizer, its_scaler = course(other)
    for part, state in zip((other, its_optimizer, its_scaler, restored), saved, strict=True):
        part.load_state_dict(state)
    kept = restored.state_dict()["parameters"]
    assert {state["second"].dtype for state in kept.values()} == {torch.bfloat16}
    train(other, its_optimizer, its_scaler, steps[17:])
    restored.finalize()
    assert restored.surviving == pruner.surviving == round(0.3 * pruner.total)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))
    for name, tensor in pruner.presence().items():
        assert torch.equal(restored.presence()[name], tensor)


def test_w_t_and_moments_take_12_bytes_a_weight():
    pruner, *_ = course(build("mlp", dtype=torch.float32))
    states = pruner._gated.states.values()
    assert sum(tensor.nbytes for state in states for tensor in state.tensors().values()) == 12 * pruner.total


def test_each_way_to_keep_moments_has_its_kernel():
    kernels = Kernels()
    full, own = pair()
    assert [kernels.of(share.state).name for share in (full, own)] == ["fused", "fused with narrow moments"]


def test_a_state_with_other_moments_is_refused():
    pruner, *_ = course(build("mlp", dtype=torch.float32))
    model = build("mlp", dtype=torch.float32)
    other = Pruner(model, torch.optim.SGD(model.parameters(), lr=0.1), **COURSE)
    with pytest.raises(InputError, match=r"dtype of moments of 1\.weight is torch\.bfloat16, but torch\.float32"):
        other.load_state_dict(pruner.state_dict())


def test_what_cannot_have_them_is_refused():
    with pytest.raises(InputError, match=r"1\.weight: moments in bfloat16 are for parameters of at most float32"):
        course(build("mlp", dtype=torch.float64))
    with pytest.raises(InputError, match="moments 'float16' is not known; did you mean bfloat16"):
        Pruner(build("mlp"), None, moments="float16", **COURSE)
    for settings, message in (
        ({"moments": "half"}, "moments 'half' is not known"),
        ({"moments": "bfloat16", "dtype": "float64"}, "moments bfloat16: not with dtype float64"),
        ({"moments": "bfloat16", "backend": "numpy"}, "moments bfloat16: the NumPy backend can't"),
    ):
        with pytest.raises(InputError, match=message):
            RunConfig(**settings)
