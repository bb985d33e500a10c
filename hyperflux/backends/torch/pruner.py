"""`Pruner`: Hyperflux in two lines, for any module and any optimizer."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from hyperflux.backends.base import LayerCount
from hyperflux.backends.torch import replicas
from hyperflux.backends.torch.finite import first_fault, gate_tensors
from hyperflux.backends.torch.gate import TorchGate
from hyperflux.backends.torch.probe import TorchProbe
from hyperflux.backends.torch.selection import Patterns, select, unwrap
from hyperflux.errors import InputError, RunError
from hyperflux.io.did_you_mean import unknown_name
from hyperflux.schedules.base import PruningSchedule, Stage
from hyperflux.schedules.controllers import PublishedController
from hyperflux.schedules.default import DefaultSchedule
from hyperflux.schedules.feasibility import presence_distance, target_count
from hyperflux.schedules.published import PublishedSchedule
from hyperflux.schedules.scheduler import PruningScheduler
from hyperflux.session.warnings import Warnings, out_of_reach, starved, starved_line
from hyperflux.telemetry.columns import Tables
from hyperflux.telemetry.levels import level
from hyperflux.telemetry.recorder import Recorder

CONTROL_INTERVALS = 100
"""How often the published controller acts in the pruning stage: as in the paper's CIFAR runs of 100 epochs."""
CHECKS = 100
"""How often in the pruning stage all parameters are looked at: whether a step finds them as the last one left them, are
finite, and no layer is without a weight.
"""
STATE_FORMAT = 3

CONTROLLERS = ("default", "published")

A = TypeVar("A")
B = TypeVar("B")

_log = logging.getLogger("hyperflux")
_pruned_modules: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Pruner]] = weakref.WeakKeyDictionary()


class Pruner:
    """Prune `model` while `optimizer` trains it; the training loop stays as it is.

        pruner = Pruner(model, optimizer, target_sparsity=0.98, pruning_steps=39_000, regrowth_steps=23_400)
        ...                     # train: every optimizer.step() is one step of Hyperflux (E1 to E6)
        pruner.finalize()       # a plain module with exact zeros

    Exactly round(N·(1 − target_sparsity)) weights are left, whatever the model and the steps: capacity and pressure are
    steered every few steps of the pruning stage, pressure is 0 in regrowth, and its last part trains on a mask that
    stays (E12 to E14). With the published controller (E8 to E10) the outcome is only near the target. Learning rates,
    schedulers, clipping, accumulation and AMP are the user's own: a GradScaler that skips a step skips it here too.
    Between steps the parameters hold the effective weights, with stock names.

    `include` and `exclude` choose parameters, see `hyperflux.backends.torch.selection.select`;
    `print(pruner.selection)` shows what they chose. `presence_lr` is t's learning rate, `controller` "default",
    "published" or a `PublishedController`. t is drawn by `seed` and the parameter's name. `telemetry` says how closely
    pruning is watched, see `telemetry()`; it changes nothing else. A layer that has no weight left and a target out of
    reach are logged once, as warnings of the logger "hyperflux". w, t and two moments are kept in the parameter's
    dtype, at least float32: 16 bytes a weight, and 7 more unless telemetry is off.

    Under DistributedDataParallel give it the wrapped model: all replicas then come to the same masks, which a hash
    confirms whenever the schedule acts; where they don't, all of them raise RunError with the parameter's name. Where
    the wrapper is not at hand, or gradients are reduced in another way, name the replicas' `process_group`.

    Raises InputError for settings out of range, for patterns and modules that `select` refuses, for an optimizer that
    needs a closure or runs no step hooks, and for a model that is already under a
    Pruner. A w or t that is not finite
    makes the optimizer's step raise RunError: t at control steps, both at every hundredth of the pruning stage.
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
        telemetry: Literal["off", "light", "full"] = "light",
        process_group: Any = None,
    ) -> None:
        watched = level(telemetry)
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
        self._kept = target_count(total, target_sparsity, type(root).__name__)
        schedule = self._schedule(total, controller)
        group = replicas.process_group(model) if process_group is None else process_group
        self._gated = TorchGate(self.selection.prunable, optimizer, seed, schedule.initial_presence, group=group)
        self._scheduler = PruningScheduler(schedule, self._gated)
        self._recorder: Recorder | None = None
        if watched is not None:
            self._recorder = self._scheduler.watcher = Recorder(schedule, self._gated, TorchProbe(self._gated), watched)
        self._warnings = Warnings(_log.warning)
        self._gated.after_step = self._after_step
        self._released = False
        for module in root.modules():
            _pruned_modules[module] = weakref.ref(self)

    @property
    def stage(self) -> Stage:
        """The stage of the next step."""
        return self._scheduler.stage

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
        return self._gated.surviving()

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

    def telemetry(self) -> Tables:
        """What pruning has done so far, as the structured arrays of `hyperflux.telemetry.columns`; empty if off.

        `pandas.DataFrame(pruner.telemetry()["layers"])` is a table of every layer over time; `numpy.savez_compressed`
        keeps them. Waits for the device.
        """
        return {} if self._recorder is None else self._recorder.tables()

    def layers(self) -> list[LayerCount]:
        """Prunable and surviving weights of each parameter, in the model's order."""
        counts = self._gated.surviving_by_name()
        return [LayerCount(name, state.latent.numel(), counts[name]) for name, state in self._gated.states.items()]

    def resync(self) -> None:
        """Accept weights that were changed from outside (a checkpoint loaded) as the latent ones, and mask them.

        The mask stays. A pruned weight that is 0 in the module keeps its latent value.
        """
        self._gated.resync()

    def finalize(self) -> None:
        """Remove every hook and leave a plain module with exact zeros under its stock names; safe to call twice.

        With the default controller exactly the wanted number of weights is left, even where the steps have not all
        taken place, which is logged as a warning. Training on after this moves pruned weights away from 0. Raises
        InputError where the weights were changed from outside since the last step, RunError where they are not finite.
        """
        if self._released:
            return
        self._gated.verify()
        self._require_finite("presence", "latent")
        if self.stage != "done":
            planned = self.pruning_steps + self.regrowth_steps
            _log.warning("finalize() after %d of %d steps: the weights left had little time", self.step_count, planned)
        self._scheduler.finish()
        self.release()

    def release(self) -> None:
        """Remove every hook and leave the effective weights as they are, wherever the course has come to.

        `finalize` is for a course that has come to its end, this for one that was given up.
        """
        if self._released:
            return
        self._gated.remove()
        self._released = True
        for module in [module for module, owner in _pruned_modules.items() if owner() is self]:
            del _pruned_modules[module]

    def state_dict(self) -> dict[str, Any]:
        """Everything that a Pruner built with the same arguments needs to go on to the bit, beside the model's and the
        optimizer's own state: plain numbers and copied tensors, which `torch.load(weights_only=True)` reads. Raises
        RunError where it is not finite.
        """
        self._gated.verify()
        self._require_finite("presence", "latent")
        return {
            "format": STATE_FORMAT,
            "settings": self._settings(),
            "schedule": asdict(self._scheduler.state),
            "steps": self._gated.steps,
            "parameters": {
                name: {
                    **{key: tensor.clone() for key, tensor in state.tensors().items()},
                    "steps": state.steps,
                    "pressure_mean": state.pressure_mean,
                }
                for name, state in self._gated.states.items()
            },
            "telemetry": None if self._recorder is None else _map(torch.from_numpy, self._recorder.state()),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave, and write the effective weights into the model.

        Raises InputError where it is of another format, other settings, or other parameters; then nothing has changed.
        """
        _require_equal("format", saved.get("format"), STATE_FORMAT)
        for name, value in self._settings().items():
            _require_equal(name, saved["settings"].get(name), value)
        if self._recorder is not None and saved["telemetry"] is None:
            raise InputError('pruner state: saved without telemetry; build this Pruner with telemetry="off"')
        states = self._gated.states
        _require_equal("parameters", sorted(saved["parameters"]), sorted(states))
        for name, state in states.items():
            _require_equal(f"shape of {name}", saved["parameters"][name]["latent"].shape, state.latent.shape)
        self._scheduler.schedule.restore(saved["schedule"])
        for name, state in states.items():
            values = saved["parameters"][name]
            for key, tensor in state.tensors().items():
                tensor.copy_(values[key])
            state.steps, state.pressure_mean = values["steps"], values["pressure_mean"]
        self._gated.steps = saved["steps"]
        self._gated.write_effective()
        self._scheduler.restore(saved["schedule"])
        if self._recorder is not None:
            self._recorder.restore(_map(Tensor.numpy, saved["telemetry"]))

    def _settings(self) -> dict[str, object]:
        names = ("target_sparsity", "pruning_steps", "regrowth_steps", "presence_lr")
        schedule = self._scheduler.schedule
        course = f"published, {schedule.controller}" if isinstance(schedule, PublishedSchedule) else "default"
        return {"course": course, **{name: getattr(self, name) for name in names}}

    def _after_step(self) -> None:
        every = max(1, self.pruning_steps // CHECKS)
        checks = self.step_count % every == 0
        if checks:
            self._require_finite("presence", "latent")
        elif self._scheduler.is_due:
            self._require_finite("presence")
        self._scheduler.after_step()
        if checks and self.stage != "done":
            self._warn()
        self._gated.check_contents = (self.step_count + 1) % every == 0

    def _require_finite(self, *kinds: str) -> None:
        """Raise RunError where a t or w, if these are the `kinds`, is not finite; waits for the device."""
        if fault := first_fault(gate_tensors(self._gated, kinds)):
            raise RunError(
                f"{fault} by step {self.step_count}; go back to the last good state, and take no step whose loss or "
                "gradients are not finite"
            )

    def _warn(self) -> None:
        """Log, once each, that a layer has no weight left or that the target is out of reach; waits for the device."""
        where = f"after step {self.step_count}"
        for name in starved(self.layers()):
            self._warnings.warn_once(f"starved {name}", starved_line(name, where, f"exclude={name!r}"))
        self._warnings.warn_once("density", out_of_reach(self._scheduler.schedule, self._gated, where))

    def _schedule(self, total: int, controller: str | PublishedController) -> PruningSchedule[Any]:
        """The default course, or the published one with a control interval where the paper has an epoch."""
        if controller == "default":
            return DefaultSchedule(total, self._kept, self.pruning_steps, self.regrowth_steps, self.presence_lr)
        reach, distance = self.presence_lr * self.pruning_steps, presence_distance(self.target_sparsity)
        if reach < distance:
            _log.warning(
                "pruning_steps: %d steps of %g are too few for presence parameters to fall by the %.3g that sparsity "
                "%g takes; give %d steps or a higher presence_lr",
                self.pruning_steps, self.presence_lr, distance, self.target_sparsity,
                math.ceil(distance / self.presence_lr),
            )  # fmt: skip
        pruning = min(CONTROL_INTERVALS, self.pruning_steps)
        regrowth = min(self.regrowth_steps, max(1, round(pruning * self.regrowth_steps / self.pruning_steps)))
        return PublishedSchedule(
            1 - self.target_sparsity,
            self.pruning_steps,
            self.regrowth_steps,
            pruning,
            regrowth,
            self.presence_lr,
            controller=_published(controller),
        )


def _map(change: Callable[[A], B], values: Mapping[str, A]) -> dict[str, B]:
    return {name: change(value) for name, value in values.items()}


def _published(name: str | PublishedController) -> PublishedController:
    if isinstance(name, PublishedController):
        return name
    if name not in CONTROLLERS:
        raise unknown_name("controller", name, CONTROLLERS)
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
