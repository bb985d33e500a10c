"""The gate around an optimizer: hooks before and after `step` that keep θ = w·m in the module's parameters.

Between steps a parameter holds the effective weights θ, so that forward, backward, evaluation, `state_dict`, deepcopy
and averaging see a plain sparse network. Inside `optimizer.step()` it points at the latent weights w:

    before  g is read, t moves on κ g w + γ/N, the gradient becomes g·m, the parameter points at w
    step    the user's optimizer updates w, with its own momentum and weight decay
    after   the parameter points at its own storage again, which gets θ = w·m under the new mask

This is the autograd of E1 to E5 with separate w and t, to the bit, without its cost.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from hyperflux.backends.torch.capacity import meet_capacity
from hyperflux.backends.torch.distributed import require_same_masks
from hyperflux.backends.torch.finite import first_fault
from hyperflux.backends.torch.kernels.choice import Kernels
from hyperflux.backends.torch.kernels.plain import ParameterUpdate
from hyperflux.backends.torch.optimizer_hooks import calls_itself, keep_state_dtype, require_hooks
from hyperflux.backends.torch.weight_state import WeightState, same_layout
from hyperflux.errors import InputError
from hyperflux.schedules.base import LayerCount
from hyperflux.session.nonfinite import Fault
from hyperflux.spec import INITIAL_PRESENCE

KINDS = {"presence": "presence parameter", "latent": "latent weight", "first": "moment", "second": "squared moment"}
"""What a gate keeps per weight, in words for a message."""
NEAR = 0.5
"""Where the k-th largest t is looked for first: this share of how far t goes between control steps, around the gate."""


@dataclass
class _Entry:
    """One prunable parameter, and how its storage looked after the last step."""

    name: str
    parameter: nn.Parameter
    state: WeightState
    version: int = -1
    pointer: int = -1

    def remember(self) -> None:
        self.version, self.pointer = self.parameter._version, self.parameter.data_ptr()

    def was_touched(self) -> bool:
        """Whether something wrote to the parameter or replaced its storage. Writes through `.data` go unnoticed."""
        return self.version != self.parameter._version or self.pointer != self.parameter.data_ptr()

    def holds_effective(self) -> bool:
        """Whether the parameter still is θ = w·m, bit for bit; NaN equals NaN."""
        expected = torch.empty_like(self.parameter)
        self.state.write_effective(expected)
        return bool(((expected == self.parameter) | (expected.isnan() & self.parameter.isnan())).all())


class TorchGate:
    """Parameters under the gate of Hyperflux while `optimizer` trains them: a `hyperflux.schedules.base.Gate`.

    `pressure` (γ) and `presence_lr` (η_t) are what the next step applies; with a rate of None, t and its moments stay
    as they are. N is the number of all weights of `parameters`. The first t are drawn from `initial`. `steps` counts
    optimizer steps that took place: one that a GradScaler skipped is none. After each of them `after_step` is called,
    which may meet a capacity; θ is written after that, and so the parameters are not to be read in it. A parameter
    without a gradient stays as it is for that step, its t included; capacity shifts its t with all others. With
    `check_contents` the next step first compares every parameter with what the last one left, which finds writes
    through `.data`; other writes are found without it. `group` is the process group of the replicas that are trained
    together, if there are several. w and t are in the widest dtype of all parameters, at least float32.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        seed: int,
        initial: tuple[float, float] = INITIAL_PRESENCE,
        group: Any = None,
    ) -> None:
        """Draw t for every parameter and register the hooks. Raises InputError for an optimizer without step hooks."""
        require_hooks(optimizer)
        self.pressure = 0.0
        self.presence_lr: float | None = 0.0
        self.check_contents = False
        self.after_step: Callable[[], None] = lambda: None
        self.steps = 0
        self.total = sum(parameter.numel() for parameter in parameters.values())
        dtype = functools.reduce(torch.promote_types, (p.dtype for p in parameters.values()), torch.float32)
        self._entries = {
            name: _Entry(name, parameter, WeightState.of(parameter, dtype, seed, name, initial))
            for name, parameter in parameters.items()
        }
        self.states = {name: entry.state for name, entry in self._entries.items()}
        """The state of every parameter by name; the tensors are those in use, not copies."""
        self._kernels = Kernels()
        self._active: list[tuple[_Entry, Tensor, Tensor]] = []
        self._unwritten: list[_Entry] = []
        self._stepping = self._nested = False
        self.last_capacity = 0
        self._group = group
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            *keep_state_dtype(optimizer, self._wider_latents),
        ]
        self.write_effective()

    def held_tensors(self) -> list[Tensor]:
        """All tensors held in addition to the parameters, to measure memory."""
        tensors = chain.from_iterable(state.tensors().values() for state in self.states.values())
        return [*tensors, *self._kernels.buffers()]

    def masks(self) -> dict[str, Tensor]:
        """M of every parameter, bool."""
        return {name: state.mask() for name, state in self.states.items()}

    def layers(self) -> list[LayerCount]:
        """Prunable and surviving weights of every parameter, in the model's order; waits for the device."""
        counts = [torch.count_nonzero(mask) for mask in self.masks().values()]
        present = torch.stack([count.to(counts[0].device) for count in counts]).tolist()
        return [
            LayerCount(name, state.latent.numel(), count)
            for (name, state), count in zip(self.states.items(), present, strict=True)
        ]

    def surviving(self) -> int:
        """Number of present weights; waits for the device."""
        return sum(layer.surviving for layer in self.layers())

    def fault(self, latent: bool) -> Fault | None:
        """The first t that is not finite; with `latent` also the first w. Waits for the device."""
        return first_fault(self.named_tensors(("presence", "latent") if latent else ("presence",)))

    def named_tensors(self, kinds: Iterable[str] = KINDS) -> dict[str, Tensor]:
        """The tensors of some `kinds`, for all parameters, each under words for a message."""
        kept = {name: state.tensors() for name, state in self.states.items()}
        return {f"a {KINDS[kind]} of {name}": tensors[kind] for kind in kinds for name, tensors in kept.items()}

    def above(self, level: float) -> int:
        """Weights whose t is at `level` or above; waits for the device."""
        return sum(int(torch.count_nonzero(state.presence >= level)) for state in self.states.values())

    @torch.no_grad()
    def meet_capacity(self, count: int) -> float:
        """Lower every t by the same τ so that exactly `count` weights are present (see E12). Returns τ."""
        near = NEAR * (self.presence_lr or math.inf) * max(1, self.steps - self.last_capacity)
        shift = meet_capacity([state.presence for state in self.states.values()], count, near)
        self.last_capacity = self.steps
        self.write_effective()
        return shift

    @torch.no_grad()
    def rank_by_magnitude(self) -> None:
        """Set t of the present weights to |w|, of the pruned ones to −1."""
        for state in self.states.values():
            state.presence.copy_(state.latent.abs().masked_fill_(~state.mask(), -1))

    def confirm_masks(self) -> None:
        """Raise RunError with the parameter's name if the replicas hold different masks; waits for the device."""
        if self._group is not None:
            require_same_masks(self.masks(), self._group, self.steps)

    @torch.no_grad()
    def typical_flux(self) -> float:
        """Mean over weights of the root of Adam's second moment of t; waits for the device."""
        return sum(float(state.root_of_second_moment().sum()) for state in self.states.values()) / self.total

    @torch.no_grad()
    def write_effective(self) -> None:
        """Write θ = w·m into every parameter, into its own storage also after a step that was broken off."""
        self._point_back()
        for entry in self._entries.values():
            self._follow_move(entry)
        self._write(self._entries.values())

    def verify(self) -> None:
        """Raise InputError where a parameter is not what the last step left; waits for the device."""
        self._restore()
        for entry in self._entries.values():
            self._require_untouched(entry)

    def resync(self) -> None:
        """Take the parameters' present values as the latent weights, and write θ = w·m back.

        A pruned weight whose parameter is 0 keeps its latent value: a sparse checkpoint says nothing about it.
        """
        self._restore()
        with torch.no_grad():
            for entry in self._entries.values():
                self._follow_move(entry)
                values = entry.parameter.to(entry.state.latent.dtype)
                unknown = (values == 0) & (entry.state.presence < 0)
                entry.state.latent.copy_(torch.where(unknown, entry.state.latent, values))
        self.write_effective()

    def remove(self) -> None:
        """Remove the hooks and leave θ in the parameters; safe to call twice."""
        self._restore()
        self._kernels.forget()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._stepping and calls_itself(optimizer):
            self._nested = True
            return
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is not None:
            raise InputError(
                "optimizer.step(closure): a closure would evaluate the latent weights instead of the pruned network; "
                "call backward() before, and step() without it"
            )
        self._restore()
        found_inf, scale = getattr(optimizer, "found_inf", None), getattr(optimizer, "grad_scale", None)
        if found_inf is not None and found_inf.item():
            return  # a GradScaler lets a fused optimizer skip this step by itself
        self._stepping = True
        with torch.no_grad():
            self._begin(scale)

    def _begin(self, scale: Tensor | None) -> None:
        """Move t, mask the gradients and point the parameters at w."""
        entries = [entry for entry in self._entries.values() if entry.parameter.grad is not None]
        for entry in self._entries.values():
            if self.check_contents or entry.was_touched():
                self._require_untouched(entry)
        for entry in entries:
            self._follow_move(entry)
        updates = [_update_of(entry, scale) for entry in entries]
        self._kernels.take_step(updates, self.pressure / self.total, self.presence_lr)
        for entry, update in zip(entries, updates, strict=True):
            gradient = entry.parameter.grad
            assert gradient is not None
            self._active.append((entry, entry.parameter.data, gradient))
            entry.parameter.data = entry.state.latent
            if update.gradient is not gradient:
                entry.parameter.grad = update.gradient

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._stepping or (self._nested and calls_itself(optimizer)):
            return
        self._point_back()
        self.steps += 1
        with torch.no_grad():
            try:
                self.after_step()
            finally:
                self._write(self._unwritten)

    def _restore(self) -> None:
        """After a step that was broken off, point the parameters back at their storage and write θ."""
        self._point_back()
        if self._unwritten:
            with torch.no_grad():
                self._write(self._unwritten)

    def _point_back(self) -> None:
        """Point the parameters at their storage again, where θ is still to be written."""
        for entry, storage, gradient in self._active:
            entry.parameter.data = storage
            entry.parameter.grad = gradient
            self._unwritten.append(entry)
        self._active = []
        self._stepping = self._nested = False

    def _wider_latents(self) -> list[tuple[nn.Parameter, Tensor]]:
        """The parameters that are narrower than their w, and w."""
        pairs = [(entry.parameter, entry.state.latent) for entry in self._entries.values()]
        return [(parameter, latent) for parameter, latent in pairs if parameter.dtype != latent.dtype]

    def _follow_move(self, entry: _Entry) -> None:
        """Follow the parameter to where it has moved, and forget what was kept for the place where it was."""
        if entry.state.follow(entry.parameter):
            self._kernels.forget()

    def _write(self, entries: Iterable[_Entry]) -> None:
        """Write θ = w·m into the parameters of `entries`, all that are unwritten among them."""
        for entry in entries:
            self._kernels.write_effective(entry.state, entry.parameter.data)
            entry.remember()
        self._unwritten = []

    @torch.no_grad()
    def _require_untouched(self, entry: _Entry) -> None:
        self._follow_move(entry)
        if not entry.holds_effective():
            raise InputError(
                f"{entry.name}: its weights were changed outside the optimizer's step (a checkpoint loaded, values "
                "assigned); call resync() on the pruner to go on from the new ones"
            )
        entry.remember()


def _update_of(entry: _Entry, scale: Tensor | None) -> ParameterUpdate:
    """What the step does to an entry: with its own gradient, or a copy if that has another dtype or memory layout."""
    gradient = entry.parameter.grad
    assert gradient is not None
    if gradient.layout != torch.strided:
        raise InputError(f"{entry.name}: its gradient is sparse, which can't be pruned; exclude this parameter")
    if gradient.is_cuda and torch.cuda.is_current_stream_capturing():
        raise InputError(
            "optimizer.step(): is captured in a CUDA graph, which would replay this one step of pruning for ever; "
            "capture the forward and backward pass alone"
        )
    latent = entry.state.latent
    if gradient.dtype != latent.dtype or not same_layout(gradient, latent):
        gradient = torch.empty_like(latent).copy_(gradient)
    return ParameterUpdate(entry.state, gradient, scale)
