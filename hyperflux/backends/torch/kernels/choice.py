"""Chooses the kernel of each parameter: the fastest one for its device and size that agrees with the plain one."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from hyperflux.backends.torch.kernels.fused import Fused
from hyperflux.backends.torch.kernels.packed import LARGEST_PACKED, Packed
from hyperflux.backends.torch.kernels.plain import Kernel, ParameterUpdate, Plain
from hyperflux.backends.torch.weight_state import WeightState
from hyperflux.errors import InputError

FUSED_DEVICES = ("cpu", "cuda")
"""Devices with subnormal numbers, which the fused gate needs."""
AGREEMENT = 16
"""Tolerated difference of t and its moments from the plain kernel after a step, in roundings of the largest value."""
TRIED_SHAPES = ((1000,), (7, 11), (3, 2, 5, 5))
TRIED_STEPS = 3

_log = logging.getLogger("hyperflux")


class Kernels:
    """One kernel per device, dtype and class of size, chosen at first use."""

    def __init__(self) -> None:
        self._chosen: dict[tuple[torch.device, torch.dtype, bool], Kernel] = {}

    def of(self, state: WeightState) -> Kernel:
        """The kernel for states like `state`."""
        device, dtype = state.latent.device, state.latent.dtype
        kind = device, dtype, _may_be_packed(device, state.latent.numel())
        if kind not in self._chosen:
            self._chosen[kind] = choose_kernel(device, dtype, state.latent.numel())
        return self._chosen[kind]

    def buffers(self) -> list[Tensor]:
        """Tensors that the kernels hold between steps."""
        return [buffer for kernel in self._chosen.values() for buffer in kernel.buffers]

    def forget(self) -> None:
        """Release all kernels, with their buffers and references to states."""
        self._chosen.clear()

    def take_step(
        self, updates: Sequence[ParameterUpdate], pressure_gradient: float, learning_rate: float | None
    ) -> None:
        """Take one step of all parameters, see `Kernel`."""
        for kernel, own in self._by_kernel([update.state for update in updates]):
            kernel.take_step([updates[number] for number in own], pressure_gradient, learning_rate)

    def write_effective(self, states: Sequence[WeightState], out: Sequence[Tensor]) -> None:
        """Write each θ = w·m into its `out`, see `Kernel`."""
        for kernel, own in self._by_kernel(states):
            kernel.write_effective([states[number] for number in own], [out[number] for number in own])

    def differs(self, states: Sequence[WeightState], values: Sequence[Tensor]) -> list[tuple[list[int], Tensor]]:
        """Whether `values` differ from θ = w·m, see `Kernel`: numbers of states, and a bool for each."""
        return [
            (own, kernel.differs([states[number] for number in own], [values[number] for number in own]))
            for kernel, own in self._by_kernel(states)
        ]

    def _by_kernel(self, states: Sequence[WeightState]) -> list[tuple[Kernel, list[int]]]:
        """Numbers of the states of each kernel."""
        found: dict[Kernel, list[int]] = {}
        for number, state in enumerate(states):
            found.setdefault(self.of(state), []).append(number)
        return list(found.items())


def choose_kernel(device: torch.device, dtype: torch.dtype, weights: int) -> Kernel:
    """The fastest kernel that agrees with the plain one, for parameters of that size; a warning if it is the plain one.

    Args:
        device: Device of the state.
        dtype: dtype of the state.
        weights: Weights of the parameter.
    """
    if _may_be_packed(device, weights) and _agrees(Packed, device, dtype):
        return Packed(device, dtype)
    if device.type in FUSED_DEVICES and _agrees(Fused, device, dtype):
        return Fused(device, dtype)
    return Plain()


def _may_be_packed(device: torch.device, weights: int) -> bool:
    return device.type == "cuda" and weights <= LARGEST_PACKED


def require_kernel_agrees(kernel: Kernel, device: torch.device, dtype: torch.dtype) -> None:
    """Compare `kernel` with the plain one over a few steps, from t at, near and far from 0.

    Masks, θ and g·m must be equal; t and its moments may differ by `AGREEMENT` roundings.

    Raises:
        InputError: They differ.
    """
    ours, theirs = _tried(device, dtype), _tried(device, dtype)
    for number in range(TRIED_STEPS):
        gradients, effective, differs = [], [], []
        for way, states in ((kernel, ours), (Plain(), theirs)):
            gradients.append([_noise(number, state.latent) for state in states])
            updates = [ParameterUpdate(state, own) for state, own in zip(states, gradients[-1], strict=True)]
            way.take_step(updates, 1e-3, 1e-2)
            effective.append([torch.empty_like(state.latent) for state in states])
            way.write_effective(states, effective[-1])
            changed = [own.clone() for own in effective[-1]]
            changed[-1].add_(1)
            differs.append(way.differs(states, changed).tolist())
        agrees = differs[0] == differs[1] == [False] * (len(ours) - 1) + [True]
        for pair in zip(ours, theirs, *gradients, *effective, strict=True):
            agrees &= _is_same_step(*pair)
        if not agrees:
            raise InputError(f"kernel {kernel.name}: does not agree with the plain one for {dtype} on {device}")
        for one, other in zip(ours, theirs, strict=True):
            for name, tensor in other.tensors().items():
                getattr(one, name).copy_(tensor)


def _is_same_step(
    one: WeightState,
    other: WeightState,
    gradient: Tensor,
    plain_gradient: Tensor,
    effective: Tensor,
    plain_effective: Tensor,
) -> bool:
    """Whether two kernels have done the same to a parameter, but for rounding."""
    far = other.presence.abs() > _allowed(other.presence)
    if not (torch.equal(gradient, plain_gradient) and torch.equal(effective[far], plain_effective[far])):
        return False
    pairs = zip(one.tensors().values(), other.tensors().values(), strict=True)
    return not any(bool(((mine - plain).abs() > _allowed(plain)).any()) for mine, plain in pairs)


@functools.cache
def _agrees(kind: type[Fused] | type[Packed], device: torch.device, dtype: torch.dtype) -> bool:
    try:
        require_kernel_agrees(kind(device, dtype), device, dtype)
    except (AttributeError, TypeError, RuntimeError, InputError) as error:
        _log.warning("not using the %s kernel for %s on %s, so steps are slower: %s", kind.name, dtype, device, error)
        return False
    return True


def _tried(device: torch.device, dtype: torch.dtype) -> list[WeightState]:
    """States of some parameters; the first t of the first lie at 0 and just below and above it."""
    states = []
    for number, shape in enumerate(TRIED_SHAPES):
        like = torch.empty(shape, device=device, dtype=dtype)
        latent, presence, first, second = (_noise(seed - 4 * number, like) for seed in range(-4, 0))
        states.append(WeightState(latent, presence, first, second.square(), steps=5 + number))
    tiny = torch.finfo(dtype).tiny
    states[0].presence[:4] = torch.tensor([0.0, -0.0, tiny, -tiny], dtype=dtype)
    return states


def _noise(seed: int, like: Tensor) -> Tensor:
    """Normal random numbers by `seed`, drawn on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)


def _allowed(tensor: Tensor) -> Tensor:
    return AGREEMENT * torch.finfo(tensor.dtype).eps * tensor.abs().max()
