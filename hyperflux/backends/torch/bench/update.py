"""The pruning update alone: its time, the bytes it moves, and its speed compared with a copy on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hyperflux.backends.torch.kernels.choice import Kernels, require_kernel_agrees
from hyperflux.backends.torch.kernels.plain import ParameterUpdate, Plain
from hyperflux.backends.torch.weight_state import WeightState
from hyperflux.timing import Timing, Turn, interleave

NEEDED_VALUES = 12
"""Values per weight that any implementation must read or write: g, w, t and two moments in; g·m, t and the moments out;
after the optimizer has moved w, w and t in and θ out."""
MAX_COPIED_BYTES = 1 << 29
"""Largest buffer copied to measure the device's bandwidth."""
TRIED_DENSITY = 0.05
"""Density of the timed update; the present weights lie at random places."""


@dataclass(frozen=True)
class UpdateCost:
    """Cost of one pruning update of a network.

    Attributes:
        kernel: Name of the chosen kernel, or of several for parameters of several sizes.
        dtype: dtype of the state.
        weights: N.
        times: Time of an update by that kernel and by the plain one; the plain one's ratio is to the chosen kernel.
        moved_bytes: Bytes that the kernel's operations read and write.
        needed_bytes: Bytes that any implementation must read and write.
        copy_seconds: Time in which the device copies the needed bytes.
        copy_share: That time as a share of the update's.
    """

    kernel: str
    dtype: str
    weights: int
    times: list[Timing]
    moved_bytes: int
    needed_bytes: int
    copy_seconds: float
    copy_share: float

    @property
    def copy_bytes_a_second(self) -> float:
        """Bytes read and written per second by a copy."""
        return self.needed_bytes / self.copy_seconds

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def time_update(parameters: Sequence[Tensor], rotations: int, wait: Callable[[], None]) -> UpdateCost:
    """Interleaved timing of the pruning update of `parameters`, by both kernels, and of copies.

    Args:
        parameters: Tensors of one device and dtype.
        rotations: Turns per variant.
        wait: Waits for the device.

    Raises:
        InputError: The kernel chosen for the parameters does not agree with the plain one.
    """
    states = [_state(parameter) for parameter in parameters]
    updates = [ParameterUpdate(state, 1e-3 * torch.randn_like(state.latent)) for state in states]
    like = states[0].latent
    kernels = Kernels()
    chosen = {kernels.of(state).name: kernels.of(state) for state in states}
    for kernel in chosen.values():
        require_kernel_agrees(kernel, like.device, like.dtype)
    names = " and ".join(chosen)
    weights = sum(state.latent.numel() for state in states)
    needed = NEEDED_VALUES * weights * like.element_size()
    copied = torch.empty(min(needed // 2, MAX_COPIED_BYTES), device=like.device, dtype=torch.uint8).random_()
    target = torch.empty_like(copied)
    variants = {
        f"{names} kernel": Turn.of(_waiting(wait, lambda: _update(kernels, updates, parameters))),
        "plain way": Turn.of(_waiting(wait, lambda: _update(Plain(), updates, parameters))),
        "copy": Turn.of(_waiting(wait, lambda: target.copy_(copied))),
    }
    update, plain, copy = interleave(variants, rotations, wait)
    scale = needed / (2 * copied.numel())
    with BytesMoved() as counted:
        _update(kernels, updates, parameters)
    return UpdateCost(
        names, str(like.dtype).removeprefix("torch."), weights, [update, plain], counted.total, needed,
        copy.seconds * scale, copy.ratio * scale,
    )  # fmt: skip


class BytesMoved(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of all tensors that operations read or write; views count nothing.

    Attributes:
        total: Bytes so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func` and count its bytes."""
        result = func(*args, **(kwargs or {}))
        schema = func._schema
        if any(back.alias_info is not None and not back.alias_info.is_write for back in schema.returns):
            return result
        for number, argument in enumerate(schema.arguments):
            given = args[number] if number < len(args) else (kwargs or {}).get(argument.name)
            written = argument.alias_info is not None and argument.alias_info.is_write
            self.total += _bytes(given) * ((not argument.is_out) + written)
        if all(back.alias_info is None for back in schema.returns):
            self.total += _bytes(result)
        return result


def _bytes(value: Any) -> int:
    return sum(leaf.nbytes for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def _state(parameter: Tensor) -> WeightState:
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    state = WeightState.of(parameter, dtype, 0, "timed", (TRIED_DENSITY - 1, TRIED_DENSITY))
    state.first.normal_(std=1e-4)
    state.second.fill_(1e-7)
    return state


def _update(kernel: Kernels | Plain, updates: Sequence[ParameterUpdate], parameters: Sequence[Tensor]) -> None:
    """The work that pruning adds to a step that is not a control step; t hardly moves."""
    with torch.no_grad():
        kernel.take_step(updates, 1e-9, 1e-9)
        kernel.write_effective([update.state for update in updates], parameters)


def _waiting(wait: Callable[[], None], call: Callable[[], object]) -> Callable[[], None]:
    def waiting() -> None:
        call()
        wait()

    return waiting
