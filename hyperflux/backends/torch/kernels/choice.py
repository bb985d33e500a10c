"""Chooses the kernel: the fused one if it agrees with the plain one, otherwise the plain one."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from hyperflux.backends.torch.kernels.fused import Fused
from hyperflux.backends.torch.kernels.plain import Kernel, ParameterUpdate, Plain
from hyperflux.backends.torch.weight_state import WeightState
from hyperflux.errors import InputError

FUSED_DEVICES = ("cpu", "cuda")
"""Devices with subnormal numbers, which the fused gate needs."""
AGREEMENT = 16
"""Tolerated difference of t and its moments from the plain kernel after a step, in roundings of the largest value."""
TRIED_WEIGHTS = 1000
TRIED_STEPS = 3

_log = logging.getLogger("hyperflux")


class Kernels:
    """One kernel per device and dtype, chosen at first use."""

    def __init__(self) -> None:
        self._chosen: dict[tuple[torch.device, torch.dtype], Kernel] = {}

    def of(self, state: WeightState) -> Kernel:
        """The kernel for states like `state`."""
        kind = state.latent.device, state.latent.dtype
        if kind not in self._chosen:
            self._chosen[kind] = choose_kernel(*kind)
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
        by_kernel: dict[Kernel, list[ParameterUpdate]] = {}
        for update in updates:
            by_kernel.setdefault(self.of(update.state), []).append(update)
        for kernel, own in by_kernel.items():
            kernel.take_step(own, pressure_gradient, learning_rate)

    def write_effective(self, state: WeightState, out: Tensor) -> None:
        """Write θ = w·m into `out`, see `Kernel`."""
        self.of(state).write_effective(state, out)

    def differs(self, state: WeightState, values: Tensor) -> Tensor:
        """Whether `values` differ from θ = w·m, see `Kernel`."""
        return self.of(state).differs(state, values)


def choose_kernel(device: torch.device, dtype: torch.dtype) -> Kernel:
    """The fused kernel if it is available and agrees with the plain one; otherwise the plain one, with a warning."""
    if device.type in FUSED_DEVICES and _fused_agrees(device, dtype):
        return Fused(device, dtype)
    return Plain()


def require_kernel_agrees(kernel: Kernel, device: torch.device, dtype: torch.dtype) -> None:
    """Compare `kernel` with the plain one over a few steps, from t at, near and far from 0.

    Masks, θ and g·m must be equal; t and its moments may differ by `AGREEMENT` roundings.

    Raises:
        InputError: They differ.
    """
    ours, theirs = _tried(device, dtype), _tried(device, dtype)
    for number in range(TRIED_STEPS):
        outcomes = []
        for way, state in ((kernel, ours), (Plain(), theirs)):
            gradient = _noise(number, state.latent)
            way.take_step([ParameterUpdate(state, gradient)], 1e-3, 1e-2)
            effective = torch.empty_like(state.latent)
            way.write_effective(state, effective)
            outcomes.append((gradient, effective))
        (gradient, effective), (plain_gradient, plain_effective) = outcomes
        near = state.presence.abs() <= _allowed(state.presence)
        exact = torch.equal(gradient, plain_gradient) and torch.equal(effective[~near], plain_effective[~near])
        pairs = zip(ours.tensors().values(), theirs.tensors().values(), strict=True)
        if not exact or any(bool(((one - other).abs() > _allowed(other)).any()) for one, other in pairs):
            raise InputError(f"kernel {kernel.name}: does not agree with the plain one for {dtype} on {device}")
        for name, tensor in theirs.tensors().items():
            getattr(ours, name).copy_(tensor)


@functools.cache
def _fused_agrees(device: torch.device, dtype: torch.dtype) -> bool:
    try:
        require_kernel_agrees(Fused(device, dtype), device, dtype)
    except (AttributeError, TypeError, RuntimeError, InputError) as error:
        _log.warning("using the plain kernel for %s on %s, which is slower: %s", dtype, device, error)
        return False
    return True


def _tried(device: torch.device, dtype: torch.dtype) -> WeightState:
    """A state whose first t lie at 0 and just below and above it."""
    like = torch.empty(TRIED_WEIGHTS, device=device, dtype=dtype)
    latent, presence, first, second = (_noise(seed, like) for seed in range(-4, 0))
    tiny = torch.finfo(dtype).tiny
    presence[:4] = torch.tensor([0.0, -0.0, tiny, -tiny], dtype=dtype)
    return WeightState(latent, presence, first, second.square(), steps=5)


def _noise(seed: int, like: Tensor) -> Tensor:
    """Normal random numbers by `seed`, drawn on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)


def _allowed(tensor: Tensor) -> Tensor:
    return AGREEMENT * torch.finfo(tensor.dtype).eps * tensor.abs().max()
