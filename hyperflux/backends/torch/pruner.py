"""`Pruner`: Hyperflux in two lines, for any module and any optimizer."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hyperflux.backends.base import LayerCount
from hyperflux.backends.torch.gated import GatedParameters
from hyperflux.backends.torch.selection import Patterns, select, unwrap
from hyperflux.controller import PublishedController
from hyperflux.errors import InputError
from hyperflux.feasibility import kept_weights, presence_distance
from hyperflux.naming import unknown
from hyperflux.program import Program, ProgramState, PruningCourse, RegrowthCourse

CONTROL_INTERVALS = 100
"""How often the controller acts in the pruning stage: as often as in the paper's CIFAR runs of 100 epochs."""
REGROWTH_PRESENCE_DECAY = 0.75
"""Factor on t's learning rate each control interval of regrowth (E10): the paper's value for CIFAR, an epoch."""
STATE_FORMAT = 1

CONTROLLERS = ("default", "published")

_log = logging.getLogger("hyperflux")
_pruned_modules: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Pruner]] = weakref.WeakKeyDictionary()


class Pruner:
    """Prune `model` while `optimizer` trains it; the training loop stays as it is.

        pruner = Pruner(model, optimizer, target_sparsity=0.98, pruning_steps=39_000, regrowth_steps=23_400)
        ...                     # train: every optimizer.step() is one step of Hyperflux (E1 to E6)
        pruner.finalize()       # a plain module with exact zeros

    Pressure is steered 100 times in the pruning stage and is 0 in the regrowth stage; afterwards the mask stays as it
    is. Learning rates, schedulers, clipping, accumulation and AMP are the user's own: a GradScaler that skips a step
    skips it here too. Between steps the parameters hold the effective weights, with stock names.

    `include` and `exclude` choose parameters, see `hyperflux.backends.torch.selection.select`;
    `print(pruner.selection)` shows what they chose. `presence_lr` is t's learning rate, `controller` "default",
    "published" or a `PublishedController`; "default" is the published one at present. t is drawn by `seed` and the
    parameter's name. w, t and two moments are kept in the parameter's dtype, at least float32: 16 bytes a weight.

    Raises InputError for settings out of range, for patterns and modules that `select` refuses, for an optimizer that
    needs a closure or runs no step hooks, and for a model that is already under a Pruner.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        target_sparsity: float,
        pruning_steps: int,
        regrowth_steps: int,
        include: Patterns | None = None,
        exclude: Patterns | None = None,
        presence_lr: float = 1e-3,
        controller: Literal["default", "published"] | PublishedController = "default",
        seed: int = 0,
    ) -> None:
        _require_int("pruning_steps", pruning_steps, least=1)
        _require_int("regrowth_steps", regrowth_steps, least=0)
        _require_int("seed", seed, least=0)
        if not (math.isfinite(presence_lr) and presence_lr > 0):
            raise InputError(f"presence_lr: {presence_lr} is not a positive number")
        root = unwrap(model)
        _refuse_second_pruner(root)
        self.selection = select(root, optimizer, include, exclude)
        self.target_sparsity = target_sparsity
        self.pruning_steps, self.regrowth_steps, self.presence_lr = pruning_steps, regrowth_steps, presence_lr
        total = sum(parameter.numel() for parameter in self.selection.prunable.values())
        kept_weights(total, target_sparsity, type(root).__name__)
        self._program = _program(target_sparsity, pruning_steps, regrowth_steps, presence_lr, _controller(controller))
        self._state = ProgramState()
        self._gated = GatedParameters(self.selection.prunable, optimizer, seed)
        self._hook: RemovableHandle | None = optimizer.register_step_post_hook(lambda *_: self._advance())
        self._give_orders()
        for module in root.modules():
            _pruned_modules[module] = weakref.ref(self)
        reach = presence_lr * pruning_steps
        if reach < (distance := presence_distance(target_sparsity)):
            _log.warning(
                "pruning_steps: %d steps of %g are too few for presence parameters to fall by the %.3g that sparsity "
                "%g takes; give %d steps or a higher presence_lr",
                pruning_steps, presence_lr, distance, target_sparsity, math.ceil(distance / presence_lr),
            )  # fmt: skip

    @property
    def stage(self) -> Literal["pruning", "regrowth", "done"]:
        """The stage of the next step."""
        return self._program.stage(self._state)

    @property
    def step_count(self) -> int:
        """Optimizer steps that took place."""
        return self._gated.steps

    @property
    def pressure(self) -> float:
        """γ that the next step will apply."""
        return self._gated.pressure

    @property
    def total(self) -> int:
        """N, the number of prunable weights."""
        return self._gated.total

    @property
    def surviving(self) -> int:
        """Present weights now; waits for the device."""
        return sum(self._gated.surviving().values())

    @property
    def sparsity(self) -> float:
        """Share of the prunable weights that are pruned now, a fraction."""
        return 1 - self.surviving / self.total

    def masks(self) -> dict[str, Tensor]:
        """Name -> mask m, bool, in the parameter's shape; from t, never from zeros in the parameter."""
        return self._gated.masks()

    def presence(self) -> dict[str, Tensor]:
        """Name -> copy of the presence parameters t."""
        return {name: state.presence.clone() for name, state in self._gated.states.items()}

    def latent(self) -> dict[str, Tensor]:
        """Name -> copy of the latent weights w."""
        return {name: state.latent.clone() for name, state in self._gated.states.items()}

    def flux(self) -> dict[str, Tensor]:
        """Name -> restoring flux −κ g w of every weight, a running mean over about ten steps."""
        return {name: state.restoring_flux() for name, state in self._gated.states.items()}

    def layers(self) -> list[LayerCount]:
        """Prunable and surviving weights of each parameter, in the model's order."""
        counts = self._gated.surviving()
        return [LayerCount(name, state.latent.numel(), counts[name]) for name, state in self._gated.states.items()]

    def resync(self) -> None:
        """Accept weights that were changed from outside (a checkpoint loaded) as the latent ones, and mask them.

        The mask stays. A pruned weight that is 0 in the module keeps its latent value.
        """
        self._gated.resync()

    def finalize(self) -> None:
        """Remove every hook and leave a plain module with exact zeros under its stock names; safe to call twice.

        Training on after this moves pruned weights away from 0. Raises InputError where the weights were changed from
        outside since the last step.
        """
        if self._hook is None:
            return
        self._gated.verify()
        self._gated.remove()
        self._hook.remove()
        self._hook = None
        for module in [module for module, owner in _pruned_modules.items() if owner() is self]:
            del _pruned_modules[module]

    def state_dict(self) -> dict[str, Any]:
        """Everything that a Pruner built with the same arguments needs to go on to the bit, beside the model's and the
        optimizer's own state: plain numbers and copied tensors, which `torch.load(weights_only=True)` reads.
        """
        self._gated.verify()
        return {
            "format": STATE_FORMAT,
            "settings": self._settings(),
            "program": self._state.to_dict(),
            "steps": self._gated.steps,
            "parameters": {
                name: {
                    **{key: tensor.clone() for key, tensor in state.tensors().items()},
                    "steps": state.steps,
                    "pressure_mean": state.pressure_mean,
                }
                for name, state in self._gated.states.items()
            },
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave, and write the effective weights into the model.

        Raises InputError where it is of another format, other settings, or other parameters; then nothing has changed.
        """
        _require_equal("format", saved.get("format"), STATE_FORMAT)
        for name, value in self._settings().items():
            _require_equal(name, saved["settings"].get(name), value)
        states = self._gated.states
        _require_equal("parameters", sorted(saved["parameters"]), sorted(states))
        for name, state in states.items():
            _require_equal(f"shape of {name}", saved["parameters"][name]["latent"].shape, state.latent.shape)
        program = ProgramState.from_dict(saved["program"])
        for name, state in states.items():
            values = saved["parameters"][name]
            for key, tensor in state.tensors().items():
                tensor.copy_(values[key])
            state.steps, state.pressure_mean = values["steps"], values["pressure_mean"]
        self._state, self._gated.steps = program, saved["steps"]
        self._gated.write_effective()
        self._give_orders()

    def _settings(self) -> dict[str, float]:
        names = ("target_sparsity", "pruning_steps", "regrowth_steps", "presence_lr")
        return {name: getattr(self, name) for name in names}

    def _advance(self) -> None:
        """After an optimizer step: let the controller act where a control interval has ended."""
        while self.stage != "done" and self._gated.steps >= self._interval_end():
            self._state = self._program.advance(self._state, self.surviving / self.total)
            self._give_orders()
        self._gated.check_contents = self.stage != "done" and self._gated.steps + 1 >= self._interval_end()

    def _interval_end(self) -> int:
        """The step that ends the present control interval: intervals divide each stage as evenly as whole steps can."""
        number, pruning, regrowth = self._state.finished_epochs + 1, self._program.pruning, self._program.regrowth
        if number <= pruning.epochs:
            return number * self.pruning_steps // pruning.epochs
        return self.pruning_steps + (number - pruning.epochs) * self.regrowth_steps // regrowth.epochs

    def _give_orders(self) -> None:
        if self.stage == "done":
            self._gated.pressure = self._gated.presence_lr = 0.0
        else:
            orders = self._program.orders(self._state)
            self._gated.pressure, self._gated.presence_lr = orders.pressure, orders.presence_learning_rate


def _program(
    target_sparsity: float, pruning_steps: int, regrowth_steps: int, presence_lr: float, controller: PublishedController
) -> Program:
    """The published course with a control interval where the paper has an epoch; weights' rates are the user's own."""
    pruning = min(CONTROL_INTERVALS, pruning_steps)
    regrowth = min(regrowth_steps, max(1, round(pruning * regrowth_steps / pruning_steps)))
    return Program(
        1 - target_sparsity,
        PruningCourse(pruning, 0.0, 0.0, presence_lr),
        RegrowthCourse(regrowth, 0.0, 0.0, presence_lr, REGROWTH_PRESENCE_DECAY),
        controller,
    )


def _controller(name: str | PublishedController) -> PublishedController:
    if isinstance(name, PublishedController):
        return name
    if name not in CONTROLLERS:
        raise unknown("controller", name, CONTROLLERS)
    return PublishedController()


def _refuse_second_pruner(model: nn.Module) -> None:
    if any(owner() is not None for module in model.modules() if (owner := _pruned_modules.get(module)) is not None):
        raise InputError(f"model {type(model).__name__}: already under a Pruner; call its finalize() first")


def _require_int(name: str, value: int, least: int) -> None:
    if type(value) is not int or value < least:
        raise InputError(f"{name}: {value!r} is not a whole number of at least {least}")


def _require_equal(what: str, saved: object, present: object) -> None:
    if saved != present:
        raise InputError(f"pruner state: {what} is {saved!r}, but {present!r} in this Pruner")
