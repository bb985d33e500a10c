"""`Pruner`: Hyperflux in two lines, for any module and any optimizer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hyperflux.backends.torch.arguments import require_module
from hyperflux.backends.torch.distributed import from_first_rank, process_group_of, require_process_group
from hyperflux.backends.torch.finite import require_weights_in_range
from hyperflux.backends.torch.gate import TorchGate
from hyperflux.backends.torch.gate_plan import GatePlan, gate_plan
from hyperflux.backends.torch.masks import apply_masks
from hyperflux.backends.torch.optimizer_hooks import require_hooks
from hyperflux.backends.torch.placement import Placement, require_followable
from hyperflux.backends.torch.probe import TorchProbe
from hyperflux.backends.torch.pruner_state import pruner_state, restore_pruner
from hyperflux.backends.torch.selection import Patterns, Selection, select, unwrap
from hyperflux.backends.torch.training_watch import TrainingWatch, require_free
from hyperflux.errors import InputError
from hyperflux.gates.kinds import Budget, Gates, Pattern, gate_kind
from hyperflux.gates.latency import LatencyTable
from hyperflux.io.ranges import fraction, number_in, true_or_false, whole_number
from hyperflux.io.safe_read import shown
from hyperflux.schedules.base import LayerCount, PruningSchedule, Stage, require_schedule
from hyperflux.schedules.controllers import PublishedController
from hyperflux.schedules.default import DefaultCourse
from hyperflux.schedules.factory import counted_schedule, pruning_schedule
from hyperflux.session.pruning import PruningSession
from hyperflux.session.warnings import Warnings
from hyperflux.telemetry.columns import Tables
from hyperflux.telemetry.levels import level

_log = logging.getLogger("hyperflux")
ARGUMENTS: dict[Budget, str] = {"sparsity": "target_sparsity"}
"""Arguments of `Pruner` whose names differ from those of the budgets."""


class Pruner:
    """Prune a model while an optimizer trains it; the training loop stays as it is.

        pruner = Pruner(model, optimizer, target_sparsity=0.98, pruning_steps=39_000, regrowth_steps=23_400)
        ...                     # train: every optimizer.step() is one step of Hyperflux (E1 to E6)
        pruner.finalize()       # a plain module with exact zeros

    Exactly round(N·(1 − target_sparsity)) weights are left, for any model and number of steps. In the pruning stage
    control steps adjust capacity and pressure every few steps. In the regrowth stage the pressure is 0, and after three
    tenths of it the mask is frozen (E12 to E14). With the published controller (E8 to E10) the final count is only near
    the target. You keep control of learning rates, clipping, accumulation and AMP; a step that a GradScaler skips does
    not count here either. Between steps the parameters hold the effective weights under their usual names.

    w, t and two moments of t are kept in the widest dtype of the prunable parameters, at least float32: 16 bytes per
    weight, and 7 more with telemetry. The logger "hyperflux" warns once per layer that has no weight left, and once if
    the target is out of reach.

    Copying or pickling a Pruner takes its model and its optimizer along: copy all three in one call,
    `copy.deepcopy((model, optimizer, pruner))`.

    Attributes:
        model: The model, without wrappers.
        selection: The prunable parameters, and why each other parameter was left out; print it.
        gate: The presence parameters and latent weights.
        session: Schedule, controller, telemetry and warnings.
        plan: What the gates hold.
        budget: What bounds the network, and its share: to remove for the sparsity, else to keep.
        presence_lr: As given.
    """

    budget: tuple[Budget, float]
    presence_lr: float

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        pruning_steps: int,
        regrowth_steps: int,
        target_sparsity: float | None = None,
        flops: float | None = None,
        parameters: float | None = None,
        latency: float | None = None,
        gates: str = "weights",
        gate_inputs: bool = False,
        example_input: Any = None,
        latency_table: Any = None,
        include: Patterns | None = None,
        exclude: Patterns | None = None,
        presence_lr: float = 1e-3,
        controller: Literal["default", "published"] | PublishedController | DefaultCourse = "default",
        seed: int = 0,
        telemetry: Literal["off", "light", "full"] = "light",
        process_group: Any = None,
    ) -> None:
        """Select the parameters, draw t, and register hooks on the optimizer.

        Args:
            model: Any module. Under DistributedDataParallel pass the wrapped model: all replicas then compute the same
                masks, which they confirm by a hash at every control step.
            optimizer: Any `torch.optim.Optimizer` that runs step hooks and needs no closure.
            pruning_steps: Optimizer steps of the pruning stage, at least 1.
            regrowth_steps: Optimizer steps of the regrowth stage, at least 0.
            target_sparsity: Share of the prunable weights to remove, a fraction between 0 and 1. Give exactly one of
                this and the next three; none where gates hold a pattern.
            flops: With gates of channels, the share of the dense network's FLOPs that the compacted one may have.
            parameters: The same for parameters.
            latency: The same for the time that a batch like `example_input` takes on the model's device, by a table of
                layer times that is measured now: for some seconds, or as long as about a hundred such batches take.
            gates: What a gate holds: "weights"; "channels", units and heads as well; or a weight in a pattern such as
                "2:4".
            gate_inputs: With gates of channels, whether the input features get gates too.
            example_input: With gates of channels, one input of the model (batch, ...), or a tuple of all inputs.
            latency_table: With `latency`, times to use instead of measuring: `state["latency"]` of a saved
                `state_dict()`, from which this Pruner is to continue, or `plan.latency` of another one.
            include: Patterns of parameters to prune, see `hyperflux.backends.torch.selection.select`.
            exclude: Patterns of parameters to leave dense.
            presence_lr: η_t, the learning rate of t.
            controller: The course: "default", a `DefaultCourse` with other settings, "published" or a
                `PublishedController`.
            seed: Seed of the first t; each parameter's draw depends on the seed and its name only.
            telemetry: How closely to record, see `telemetry()`; it changes no result.
            process_group: The replicas' process group, if `model` is not the wrapper or gradients are reduced in
                another way.

        Raises:
            InputError: A setting is out of range; `select` refuses a pattern or module; the optimizer needs a
                closure or runs no step hooks; the model is already under a Pruner; the published course has too few
                steps for t to cross 0; torch.fx can't read a model whose channels get gates, or a budget can't be met.
        """
        pruning_steps = whole_number("pruning_steps", pruning_steps, 1)
        regrowth_steps = whole_number("regrowth_steps", regrowth_steps, 0)
        seed = whole_number("seed", seed, 0, most=None)
        presence_lr = number_in("presence_lr", presence_lr, 0, ends="()")
        kind = gate_kind(gates)
        given: dict[Budget, float | None] = {
            "sparsity": target_sparsity,
            "flops": flops,
            "parameters": parameters,
            "latency": latency,
        }
        budget, share = _budget(kind, given)
        if true_or_false("gate_inputs", gate_inputs) and kind != "channels":
            raise InputError('gate_inputs: is for gates of channels; add gates="channels"')
        level(telemetry)
        require_module("model", model)
        require_hooks(optimizer)
        require_process_group(process_group)
        root = unwrap(model)
        selection = _selected(root, optimizer, include, exclude)
        name = ARGUMENTS.get(budget, budget)
        build = partial(
            gate_plan,
            root,
            selection.prunable,
            kind,
            budget,
            share,
            example_input,
            gate_inputs=gate_inputs,
            argument=name,
        )
        table = _latency_table(latency_table, budget)
        group = process_group_of(model) if process_group is None else process_group
        if budget == "latency" and table is None and group is not None:
            table = from_first_rank(group, lambda: build().latency)
        plan = build(latency_table=table)
        steps = (pruning_steps, regrowth_steps)
        if plan.capacity is None:
            schedule = pruning_schedule(
                selection.total,
                share,
                *steps,
                controller=controller,
                presence_lr=presence_lr,
                network=type(root).__name__,
                argument=name,
            )
        else:
            total, count, number, is_least = plan.capacity
            schedule = counted_schedule(
                total, count, *steps, course=controller, presence_lr=presence_lr, gates=number, is_least=is_least
            )
        warnings = Warnings(_log.warning)
        self._start(
            model, optimizer, selection, plan, schedule, include, exclude, seed, telemetry, process_group, warnings
        )
        self.budget, self.presence_lr = (budget, share), presence_lr

    @classmethod
    def with_schedule(
        cls,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: PruningSchedule[Any],
        *,
        plan: GatePlan | None = None,
        include: Patterns | None = None,
        exclude: Patterns | None = None,
        seed: int = 0,
        telemetry: str = "light",
        process_group: Any = None,
        warnings: Warnings | None = None,
    ) -> Pruner:
        """A Pruner that follows a given schedule instead of building one.

        Args:
            model: As in `Pruner`.
            optimizer: As in `Pruner`.
            schedule: Any pruning schedule for the number of prunable weights, or for what `plan` counts.
            plan: What gates hold; by default one weight each.
            include: As in `Pruner`.
            exclude: As in `Pruner`.
            seed: As in `Pruner`.
            telemetry: As in `Pruner`.
            process_group: As in `Pruner`.
            warnings: Receives the warnings; by default they are logged.

        Raises:
            InputError: As in `Pruner`.
        """
        seed = whole_number("seed", seed, 0, most=None)
        require_module("model", model)
        require_hooks(optimizer)
        require_process_group(process_group)
        require_schedule(schedule)
        if not isinstance(warnings, Warnings | None):
            raise InputError(f"warnings: {shown(warnings)} is not a hyperflux.session.warnings.Warnings")
        pruner = cls.__new__(cls)
        selection = _selected(unwrap(model), optimizer, include, exclude)
        plan = GatePlan() if plan is None else plan
        if not isinstance(plan, GatePlan):
            raise InputError(f"plan: {shown(plan)} is not a GatePlan; build one by gate_plan")
        wanted = selection.total if plan.capacity is None else plan.capacity.total
        if (total := getattr(schedule, "total", wanted)) != wanted:
            raise InputError(f"schedule: is for {total:,} weights, but {wanted:,} are prunable; build it for these")
        warnings = Warnings(_log.warning) if warnings is None else warnings
        pruner._start(
            model, optimizer, selection, plan, schedule, include, exclude, seed, telemetry, process_group, warnings
        )
        last_step = schedule.pruning_steps + schedule.regrowth_steps
        pruner.budget = plan.budget or ("sparsity", float(1 - schedule.target_density(last_step)))
        pruner.presence_lr = float(schedule.settings(schedule.initial_state()).presence_lr or 0.0)
        return pruner

    def _start(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        selection: Selection,
        plan: GatePlan,
        schedule: PruningSchedule[Any],
        include: Patterns | None,
        exclude: Patterns | None,
        seed: int,
        telemetry: str,
        process_group: Any,
        warnings: Warnings,
    ) -> None:
        watched = level(telemetry)
        self.model = unwrap(model)
        group = process_group_of(model) if process_group is None else process_group
        self.selection = replace(selection, channels=plan.layout, patterns=plan.words, latency=plan.latency)
        self.plan = plan
        initial = schedule.initial_presence
        self.gate = gate = TorchGate(selection.prunable, optimizer, seed, initial, group=group, build=plan.build)
        self._probe = None if watched is None else TorchProbe(gate)
        self.session = PruningSession(schedule, gate, warnings, probe=self._probe, level=watched)
        gate.before_step, gate.after_step = self._before_step, self._after_step
        self._released = False
        self._placement = Placement(self.model, selection.prunable)
        self._watch = TrainingWatch(self.model, gate, selection.prunable.values(), include, exclude, warnings)

    @property
    def pruning_steps(self) -> int:
        """Steps of the pruning stage."""
        return self.session.schedule.pruning_steps

    @property
    def regrowth_steps(self) -> int:
        """Steps of the regrowth stage."""
        return self.session.schedule.regrowth_steps

    @property
    def stage(self) -> Stage:
        """The stage of the next step: "pruning", "regrowth" or "done"."""
        return self.session.stage

    @property
    def step_count(self) -> int:
        """Optimizer steps taken; skipped steps do not count."""
        return self.gate.steps

    @property
    def pressure(self) -> float:
        """γ that the next step will apply."""
        return self.gate.pressure

    @property
    def total(self) -> int:
        """N, the number of prunable weights."""
        return self.selection.total

    @property
    def surviving(self) -> int:
        """Number of present weights, with gates of channels of those between open channels; waits for the device."""
        return sum(layer.surviving for layer in self.gate.weights())

    @property
    def sparsity(self) -> float:
        """Share of the prunable weights that are pruned now, a fraction."""
        return 1 - self.surviving / self.total

    @property
    def target_sparsity(self) -> float | None:
        """The sparsity asked for; None where another budget was."""
        budget, share = self.budget
        return share if budget == "sparsity" else None

    @property
    def cost_ratio(self) -> float:
        """What is open, as a share of the dense network, in what the budget is counted in; waits for the device."""
        return self.gate.surviving() / self.gate.total

    def masks(self) -> dict[str, Tensor]:
        """The mask m by parameter name, bool, in the parameter's shape; computed from t, not from zeros."""
        return self.gate.masks()

    def presence(self) -> dict[str, Tensor]:
        """A copy of the presence parameters t, by parameter name; of channels by the layer that makes them."""
        return {name: own.presence.clone() for name, own in self.gate.presence().items()}

    def latent(self) -> dict[str, Tensor]:
        """A copy of the latent weights w by parameter name."""
        return {name: state.latent.clone() for name, state in self.gate.states.items()}

    def flux(self) -> dict[str, Tensor]:
        """Restoring flux −κ g w of every gate, named as in `presence`, a running mean over about ten steps (see E4)."""
        return {name: own.restoring_flux() for name, own in self.gate.presence().items()}

    def telemetry(self) -> Tables:
        """The record of pruning so far, as the structured arrays of `hyperflux.telemetry.columns`; empty if off.

        `pandas.DataFrame(pruner.telemetry()["layers"])` is a table of every layer over time;
        `numpy.savez_compressed` saves the arrays. Waits for the device.
        """
        recorder = self.session.recorder
        return {} if recorder is None else recorder.tables()

    def layers(self) -> list[LayerCount]:
        """All and open gates of each layer, in the model's order: weights, or channels; waits for the device."""
        return self.gate.layers()

    def held_tensors(self) -> list[Tensor]:
        """All tensors held in addition to the model and the optimizer, to measure memory."""
        return [*self.gate.held_tensors(), *([] if self._probe is None else self._probe.held_tensors())]

    def resync(self) -> None:
        """Take weights that were changed outside the optimizer (a checkpoint loaded) as latent weights, and mask them.

        The mask stays. A pruned weight that is 0 in the module keeps its latent value.
        """
        self.gate.resync()

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Act in the steps of another optimizer from now on; the count of steps goes on.

        Call it when training continues with a new optimizer, before its first step. The Pruner also takes over
        parameters that were replaced by others of the same name and shape, as `load_state_dict(assign=True)` does. If
        weights have changed since the last step, they are taken as in `resync`.

        Args:
            optimizer: An optimizer that trains every prunable parameter of the model that is not frozen.

        Raises:
            InputError: The optimizer does not train one of them, or a parameter is gone, has another shape or cannot
                be pruned; then nothing has changed. Or the Pruner is finished.
        """
        if self._released:
            raise InputError("follow: this Pruner is finished; build a new one")
        parameters = {name: self._placement.find(name) for name in self.selection.prunable}
        require_followable(parameters, self.selection.prunable, optimizer)
        require_free(self.model, set(parameters.values()) - set(self.selection.prunable.values()))
        self.gate.follow(optimizer, parameters)
        self.selection = replace(self.selection, prunable=parameters)
        self._watch.follow(parameters.values())

    def apply_masks(self, model: nn.Module) -> None:
        """Set the pruned weights of another model to 0, in place.

        An average over training (EMA, SWA) holds traces of weights that were pruned on the way, so it is dense until
        its masks are applied:

            pruner.finalize()
            pruner.apply_masks(ema)

        Args:
            model: A model with parameters of the same names and shapes; wrappers such as
                `torch.optim.swa_utils.AveragedModel` and timm's `ModelEmaV3` are looked through.

        Raises:
            InputError: A prunable parameter is missing or has another shape; then nothing has changed.
        """
        apply_masks(self.masks(), model)

    def finalize(self) -> None:
        """Remove every hook and leave a plain module with exact zeros and its usual names; safe to call twice.

        With the default controller exactly the target count is left. If steps are missing, a warning is logged. Further
        training moves pruned weights away from 0.

        Raises:
            InputError: Weights were changed outside the optimizer since the last step.
            NotFiniteError: A t or w is not finite.
        """
        if self._released:
            return
        self._require_intact()
        if self.stage != "done":
            planned = self.pruning_steps + self.regrowth_steps
            _log.warning("finalize() after %d of %d steps: the weights left had little time", self.step_count, planned)
        self.session.finish()
        self.release()

    def release(self) -> None:
        """Remove every hook and leave the effective weights as they are, at any point of the schedule.

        Use `finalize` after a complete run, and `release` to abandon one.
        """
        if self._released:
            return
        self.gate.remove()
        self._watch.stop()
        self._released = True

    def state_dict(self) -> dict[str, Any]:
        """The state from which a Pruner built with the same arguments continues bit for bit.

        Save the states of model and optimizer too. Where the budget is the time, `state["latency"]` has the table of
        layer times, which that Pruner needs as its `latency_table`. The values are plain numbers, lists, texts and
        copied tensors, which `torch.load(weights_only=True)` can read.

        Raises:
            InputError: Weights were changed outside the optimizer since the last step.
            NotFiniteError: A t or w is not finite.
        """
        self._require_intact()
        return pruner_state(self._settings(), self.gate, self.session, self.plan.latency)

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, and write the effective weights into the model.

        Raises:
            InputError: The state has another format, other settings or other parameters; then nothing has changed.
        """
        restore_pruner(saved, self._settings(), self.gate, self.session, self.plan.latency)

    def _settings(self) -> dict[str, object]:
        schedule = self.session.schedule
        course = getattr(schedule, "course", None) or getattr(schedule, "controller", None)
        names = ("target_sparsity", "pruning_steps", "regrowth_steps", "presence_lr")
        own = {"schedule": f"{type(schedule).__name__}, {course}", **{name: getattr(self, name) for name in names}}
        others = {"gates": str(self.plan.kind), "budget": f"{self.budget[0]} {self.budget[1]!r}"}
        return own if self.plan.kind == "weights" else own | others

    def _require_intact(self) -> None:
        """Raise InputError or NotFiniteError unless the model holds exactly what the gate says."""
        self._placement.require_unchanged(self.selection.prunable)
        self.gate.verify()
        self.session.require_finite(latent=True)

    def _before_step(self) -> None:
        self._placement.require_unchanged(self.selection.prunable)
        self._watch.before_own_step()

    def _after_step(self) -> None:
        self.session.after_step()


def _budget(kind: Gates, given: dict[Budget, float | None]) -> tuple[Budget, float]:
    """The one budget that is given. Raises InputError for none, for several, or for one that does not fit the gates."""
    found = {budget: share for budget, share in given.items() if share is not None}
    names = [ARGUMENTS.get(budget, budget) for budget in found]
    if isinstance(kind, Pattern):
        if found:
            raise InputError(f"{names[0]}: gates {kind} leave {kind} of the weights; leave it out")
        return "sparsity", 1 - kind.density
    if len(found) != 1:
        what = f"{names[0]} and {names[1]} are both given" if found else "nothing says how far to prune"
        some = "target_sparsity, flops, parameters and latency" if kind == "channels" else "target_sparsity"
        raise InputError(f"target_sparsity: {what}; give {'one of ' if kind == 'channels' else ''}{some}")
    ((budget, share),) = found.items()
    if kind == "weights" and budget != "sparsity":
        raise InputError(f'{budget}: is a budget for gates of channels; add gates="channels", or give target_sparsity')
    return budget, fraction(names[0], share)


def _latency_table(given: Any, budget: Budget) -> LatencyTable | None:
    """A table of layer times that was given. Raises InputError where it is none, or of no use."""
    if given is None:
        return None
    if budget != "latency":
        raise InputError("latency_table: is for the budget latency; leave it out")
    try:
        return LatencyTable.from_dict(given.to_dict() if isinstance(given, LatencyTable) else given)
    except ValueError as error:
        raise InputError(
            f'latency_table: is not what was measured ({error}); give state["latency"] of a saved state, or leave it '
            "out"
        ) from error


def _selected(
    root: nn.Module, optimizer: torch.optim.Optimizer, include: Patterns | None, exclude: Patterns | None
) -> Selection:
    """Select the parameters of a model. Raises InputError if one is under a Pruner already, or out of range."""
    selection = select(root, optimizer, include, exclude)
    require_free(root, selection.prunable.values())
    require_weights_in_range(selection.prunable)
    return selection
