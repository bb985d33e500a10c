"""The gate around an optimizer: hooks before and after `step` that keep θ = w·m in the module's parameters.

Between steps a parameter holds the effective weights θ, so that forward, backward, evaluation, `state_dict`, deepcopy
and averaging use a plain sparse network. Inside `optimizer.step()` it points at the latent weights w:

    before  t moves by a step on κ g w + γ/N, the gradient becomes g·m, the parameter points at w
    step    the user's optimizer updates w, with its momentum and weight decay
    after   the parameter points at its own storage again, and θ = w·m is written there with the new mask

The results equal those of autograd through E1 to E5 with separate w and t, to the bit, at less cost.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hyperflux.backends.torch.contents_check import ContentsCheck
from hyperflux.backends.torch.distributed import require_same_masks
from hyperflux.backends.torch.finite import first_fault
from hyperflux.backends.torch.gated_parameter import GatedParameter
from hyperflux.backends.torch.kernels.plain import ParameterUpdate
from hyperflux.backends.torch.optimizer_hooks import FailedStepHook, calls_itself, keep_state_dtype, require_hooks
from hyperflux.backends.torch.presence import Presence
from hyperflux.backends.torch.presence_store import Build, PresenceStore, named_tensors
from hyperflux.backends.torch.weight_state import same_layout
from hyperflux.backends.torch.weight_states import WeightStates
from hyperflux.errors import InputError
from hyperflux.schedules.base import LayerCount, Ranking
from hyperflux.session.nonfinite import Fault
from hyperflux.spec import INITIAL_PRESENCE

SPARSE = 0.01
"""A network counts as sparse if at least this share of its weights is exactly 0."""
NEAR = 0.5
"""The k-th largest t is searched first within this share of t's travel between control steps, around 0."""


class TorchGate:
    """Parameters under the gate while an optimizer trains them: a `hyperflux.session.pruning.SessionGate`.

    w and t have the widest dtype of all parameters, at least float32. In a step, a parameter without a gradient keeps
    its w and t; capacity shifts its t with all others. Every step raises InputError if a parameter was changed outside
    the optimizer. A gate can be copied and pickled together with its parameters and its optimizer.

    Attributes:
        store: Latent weights and presence parameters.
        optimizer: The optimizer in whose steps the gate acts.
        pressure: γ of the next step.
        presence_lr: η_t of the next step; None freezes t and its moments.
        steps: Optimizer steps taken; skipped steps do not count.
        before_step: Called before every step, before anything changes.
        after_step: Called after every step. It may call `meet_capacity`, but must not read the parameters, because θ is
            written afterwards.
        lacks_state: Whether the optimizer was resumed without the gate, see `_after_load`; no step is taken then.
        trained_by: Type of another optimizer that has trained the parameters, for messages; None if there is none.
        last_capacity: Step of the last `meet_capacity`.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        seed: int,
        initial: tuple[float, float] = INITIAL_PRESENCE,
        group: Any = None,
        build: Build = WeightStates.of,
    ) -> None:
        """Draw t and register the hooks.

        Args:
            parameters: The prunable parameters by name.
            optimizer: The optimizer that trains them.
            seed: Seed of t.
            initial: Interval of the first t (see E2).
            group: torch's process group of the replicas, if there are several.
            build: What gates hold; by default one weight each.

        Raises:
            InputError: The optimizer runs no step hooks, or needs a closure.
        """
        require_hooks(optimizer)
        self.optimizer = optimizer
        self.pressure = 0.0
        self.presence_lr: float | None = 0.0
        self.before_step: Callable[[], None] = _nothing
        self.after_step: Callable[[], None] = _nothing
        self.trained_by: str | None = None
        self.lacks_state = False
        self.steps = 0
        dtype = functools.reduce(torch.promote_types, (p.dtype for p in parameters.values()), torch.float32)
        self.store: PresenceStore = build(parameters, dtype, seed, initial)
        self._entries = {
            name: GatedParameter(name, parameter, self.store.states[name]) for name, parameter in parameters.items()
        }
        self._contents = ContentsCheck(self.store)
        self._active: list[tuple[GatedParameter, Tensor, Tensor]] = []
        self._unwritten: list[GatedParameter] = []
        self._stepping = self._nested = False
        self.last_capacity = 0
        self._group = group
        self._hooks: list[RemovableHandle | FailedStepHook] = []
        self._attach()
        self.write_effective()

    @property
    def is_attached(self) -> bool:
        """Whether the gate acts in the steps of its optimizer; not after `remove`."""
        return bool(self._hooks)

    @property
    def is_stepping(self) -> bool:
        """Whether a step of its optimizer is under way."""
        return self._stepping

    def follow(self, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> None:
        """Act in the steps of another optimizer from now on.

        Values that are not θ become the latent weights, as in `resync`; all others keep their precision.

        Args:
            optimizer: The optimizer.
            parameters: The parameters by the same names, of the same shapes; they may be other objects.

        Raises:
            InputError: The optimizer runs no step hooks, or needs a closure.
        """
        require_hooks(optimizer)
        self.remove()
        self.optimizer, self.trained_by = optimizer, None
        self._contents = ContentsCheck(self.store)
        for name, entry in self._entries.items():
            entry.parameter = parameters[name]
            self._follow_move(entry)
            if not entry.holds_effective():
                entry.take_values()
        self._attach()
        self.write_effective()

    def _attach(self) -> None:
        """Register the hooks."""
        self._hooks = [
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
            FailedStepHook(self.optimizer, self._restore),
            *keep_state_dtype(self.optimizer, self._wider_latents),
            self.optimizer.register_load_state_dict_post_hook(self._after_load),
        ]

    def _after_load(self, optimizer: torch.optim.Optimizer) -> None:
        """Note whether the optimizer's state is from a run under a gate, whose own state has not been restored.

        The signs are a gate before its first step, an optimizer that has taken steps, and a sparse network.
        """
        if self.steps == 0 and any(optimizer.state.get(entry.parameter) for entry in self._entries.values()):
            latents = [state.latent for state in self.states.values()]
            zeros = sum(int((latent == 0).sum()) for latent in latents)
            self.lacks_state = zeros >= SPARSE * sum(latent.numel() for latent in latents)

    def _require_state(self) -> None:
        if self.lacks_state:
            raise InputError(
                "optimizer: its loaded state and the zeros of the network are from a run under a Pruner, whose state "
                "is missing; load that with the pruner's load_state_dict(), or build the Pruner after the optimizer's "
                "state is loaded to prune from here"
            )

    def __getstate__(self) -> dict[str, Any]:
        """The gate without hooks, which belong to this optimizer only.

        Raises InputError for a gate of several ranks, because process groups can't be copied.
        """
        if self._group is not None:
            raise InputError(
                "pruner: under several processes it can't be copied or pickled; save its state_dict() instead"
            )
        self._restore()
        return {**vars(self), "_hooks": self.is_attached, "_contents": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Register hooks on the copied optimizer, if the original had them."""
        vars(self).update(state)
        self._contents = ContentsCheck(self.store)
        was_attached, self._hooks = state["_hooks"], []
        if was_attached:
            self._attach()

    def held_tensors(self) -> list[Tensor]:
        """All tensors held in addition to the parameters, to measure memory."""
        tensors = chain.from_iterable(part.tensors().values() for part in self.store.saved().values())
        return [*tensors, *self.store.buffers()]

    def fault(self, latent: bool) -> Fault | None:
        """The first t that is not finite, with `latent` also the first w, or None. Waits for the device.

        Raises InputError if values that were written to a parameter are lost.
        """
        self._require_nothing_lost()
        return first_fault(named_tensors(self.store.saved(), ("presence", "latent") if latent else ("presence",)))

    @property
    def states(self) -> Mapping[str, Any]:
        """The state of every parameter by name, a `ParameterState`."""
        return self.store.states

    @property
    def total(self) -> int:
        """N, or the cost of the dense network."""
        return self.store.total

    def presence(self) -> Mapping[str, Presence]:
        """The presence parameters by layer."""
        return self.store.presence()

    def masks(self) -> dict[str, Tensor]:
        """The mask m of every parameter by name, bool."""
        return {name: state.mask() for name, state in self.states.items()}

    def weights(self) -> list[LayerCount]:
        """Prunable and surviving weights of every parameter, in the model's order; waits for the device."""
        return self.store.weights()

    def layers(self) -> list[LayerCount]:
        """All and open gates of every layer; waits for the device."""
        return self.store.layers()

    def surviving(self) -> int:
        """Number of present weights, or the cost of what is open; waits for the device."""
        return self.store.surviving()

    def above(self, level: float) -> int:
        """Number of t at `level` or above; waits for the device."""
        return self.store.above(level)

    def typical_flux(self) -> float:
        """Mean of √v̂, where v̂ is Adam's bias-corrected second moment of t; waits for the device."""
        return self.store.typical_flux()

    @torch.no_grad()
    def meet_capacity(self, count: int, ranking: Ranking = "presence") -> float:
        """Lower every t, or what a baseline ranks by, by the same τ, see `hyperflux.schedules.base.Gate`. Returns τ."""
        near = NEAR * (self.presence_lr or math.inf) * max(1, self.steps - self.last_capacity)
        shift = self.store.meet_capacity(count, near, ranking)
        self.last_capacity = self.steps
        self.write_effective()
        return shift

    def drop_dead(self) -> None:
        """Set to 0 what makes closed channels, once the mask is final."""
        self.store.drop_dead()
        self.write_effective()

    def confirm_masks(self) -> None:
        """Raise RunError, with a parameter's name, if replicas hold different masks; waits for the device."""
        if self._group is not None:
            require_same_masks(self.masks(), self._group, self.steps)

    @torch.no_grad()
    def write_effective(self) -> None:
        """Write θ = w·m into every parameter's own storage, even if the last step raised an error."""
        self._point_back()
        for entry in self._entries.values():
            self._follow_move(entry)
        self._write(self._entries.values())

    def verify(self) -> None:
        """Raise InputError if a parameter was changed since the last step; waits for the device."""
        self._restore()
        self._require_state()
        self._require_nothing_lost()
        for entry in self._entries.values():
            self._require_untouched(entry)

    def resync(self) -> None:
        """Take the parameters' current values as the latent weights, and write θ = w·m back.

        A pruned weight whose parameter is 0 keeps its latent value, because a sparse checkpoint does not contain it.
        """
        self._restore()
        for entry in self._entries.values():
            self._follow_move(entry)
            entry.take_values()
        self.trained_by = None
        self.write_effective()

    def remove(self) -> None:
        """Remove the hooks and leave θ in the parameters; safe to call twice."""
        self._restore()
        self.store.forget()
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
                "call backward() first, then step() without a closure (in Lightning: automatic_optimization = False)"
            )
        self._restore()
        found_inf, scale = getattr(optimizer, "found_inf", None), getattr(optimizer, "grad_scale", None)
        if found_inf is not None and found_inf.item():
            return  # gradients overflowed: the fused optimizer skips this step
        self._require_state()
        self.before_step()
        self._stepping = True
        with torch.no_grad():
            try:
                self._begin(scale)
            except BaseException:
                self._restore()
                raise

    def _begin(self, scale: Tensor | None) -> None:
        """Move t, mask the gradients and point the parameters at w."""
        entries = [entry for entry in self._entries.values() if entry.parameter.grad is not None]
        for entry in self._entries.values():
            if entry.was_touched():
                self._require_untouched(entry)
        for entry in entries:
            self._follow_move(entry)
        for entry in self._contents.changed(self._entries.values()):
            self._require_untouched(entry)
        ascending = _maximized(self.optimizer)
        updates = [_update_of(entry, scale, id(entry.parameter) in ascending) for entry in entries]
        self._unwritten = entries  # t moves now, so θ has to be written also if the step is not completed
        self.store.take_step(updates, self.pressure, self.presence_lr)
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
        """After a step that raised an error: point the parameters at their storage and write θ."""
        self._point_back()
        if self._unwritten:
            with torch.no_grad():
                self._write(self._unwritten)

    def _point_back(self) -> None:
        """Point the parameters at their storage again, where θ is not written yet."""
        for entry, storage, gradient in self._active:
            entry.parameter.data = storage
            entry.parameter.grad = gradient
        self._active = []
        self._stepping = self._nested = False

    def _wider_latents(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Each parameter whose dtype is narrower than that of w, with its w."""
        pairs = [(entry.parameter, entry.state.latent) for entry in self._entries.values()]
        return [(parameter, latent) for parameter, latent in pairs if parameter.dtype != latent.dtype]

    def _follow_move(self, entry: GatedParameter) -> None:
        """If the parameter has moved to another device or layout, move its state too and release the kernels."""
        if entry.state.follow(entry.parameter):
            self.store.forget()

    def _write(self, entries: Iterable[GatedParameter]) -> None:
        """Write θ = w·m into the parameters of `entries`, which include all unwritten ones."""
        written = list(entries)
        self.store.write_effective([e.state for e in written], [e.parameter.data for e in written])
        for entry in written:
            entry.remember()
        self._unwritten = []

    def _require_nothing_lost(self) -> None:
        """Raise InputError if a parameter on an accelerator was written through `.data` since this was last called."""
        if name := self._contents.lost():
            raise InputError(
                f"{name}: its weights were written through .data since the last control step, and the values are lost; "
                "call resync() on the pruner right after such a write"
            )

    def _require_untouched(self, entry: GatedParameter) -> None:
        self._follow_move(entry)
        if entry.holds_effective():
            entry.remember()
        elif self.trained_by is not None:
            raise InputError(
                f"{entry.name}: was trained by {self.trained_by}, which the Pruner does not follow; it has pruned in "
                f"{self.steps} steps. Call follow(optimizer) on the pruner and take the missing steps with it, or "
                "release() to abandon pruning"
            )
        else:
            raise InputError(
                f"{entry.name}: its weights were changed outside the optimizer's step (a checkpoint loaded, values "
                "assigned); call resync() on the pruner to continue from the new ones, with the mask as it is"
            )


def _nothing() -> None:
    """What happens around a step by default."""


def _maximized(optimizer: torch.optim.Optimizer) -> set[int]:
    """Identities of the parameters whose gradients the optimizer ascends."""
    groups = (group["params"] for group in optimizer.param_groups if group.get("maximize"))
    return {id(parameter) for parameter in chain.from_iterable(groups)}


def _update_of(entry: GatedParameter, scale: Tensor | None, ascends: bool) -> ParameterUpdate:
    """The update of an entry; its gradient is copied if dtype or memory layout differ from those of w."""
    gradient = entry.parameter.grad
    assert gradient is not None
    if gradient.layout != torch.strided:
        raise InputError(f"{entry.name}: its gradient is sparse, which cannot be pruned; exclude this parameter")
    if gradient.is_cuda and torch.cuda.is_current_stream_capturing():
        raise InputError(
            "optimizer.step(): is captured in a CUDA graph, which would replay one step of pruning forever; "
            "capture the forward and backward pass alone"
        )
    latent = entry.state.latent
    if gradient.dtype != latent.dtype or not same_layout(gradient, latent):
        gradient = torch.empty_like(latent).copy_(gradient)
    return ParameterUpdate(entry.state, gradient, scale, ascends)
