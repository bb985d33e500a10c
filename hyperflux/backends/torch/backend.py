"""The torch backend of the driver: a network by name, its data and its optimizer, under the gate."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from hyperflux.backends.base import CompactedSize, Evaluation, Tensors
from hyperflux.backends.torch import state, weights_file
from hyperflux.backends.torch.batches import Data
from hyperflux.backends.torch.compact import compact
from hyperflux.backends.torch.data import load_data
from hyperflux.backends.torch.finite import MAX_PENDING, FiniteCheck, require_weights_in_range
from hyperflux.backends.torch.flops import count_cost
from hyperflux.backends.torch.gate import TorchGate
from hyperflux.backends.torch.gate_plan import GatePlan, gate_plan
from hyperflux.backends.torch.gate_state import require_gate_state
from hyperflux.backends.torch.models import build_model
from hyperflux.backends.torch.optimizers import build_optimizer
from hyperflux.backends.torch.outputs import classification_loss, main_output
from hyperflux.backends.torch.presence_store import KINDS, named_tensors
from hyperflux.backends.torch.pruner import Pruner
from hyperflux.backends.torch.saved_checks import require_optimizer, require_processes
from hyperflux.backends.torch.selection import select
from hyperflux.backends.torch.threads import threads_for, torch_threads
from hyperflux.backends.torch.training import (
    BatchPart,
    EpochProgress,
    Precision,
    Tally,
    choose_device,
    tally,
    train_epoch,
)
from hyperflux.config import RunConfig
from hyperflux.errors import DataFileError, InputError, LostWorkerError
from hyperflux.gates.budget import CapacityPlan
from hyperflux.gates.latency import LatencyTable
from hyperflux.io.flatten import flatten, subtree
from hyperflux.io.ranges import MAX_INTEGER
from hyperflux.io.saved_arrays import require_like, whole
from hyperflux.schedules.base import LayerCount, PruningSchedule
from hyperflux.seeding import generator
from hyperflux.session.nonfinite import NonFiniteGuard
from hyperflux.session.processes import SINGLE_PROCESS, ProcessGroup, raise_on_all_ranks
from hyperflux.session.pruning import PruningSession
from hyperflux.session.warnings import Warnings

EXAMPLE_SAMPLES = 2
"""Samples on which the network is read; batch norm needs two."""


class TorchBackend:
    """Trains a network; the interface is `hyperflux.backends.base.Backend`.

    Each rank holds the whole network and all data, and trains on its part of every batch. DistributedDataParallel
    averages gradients over the whole batch; batch norm uses the rank's part only.
    """

    def __init__(self, config: RunConfig, processes: ProcessGroup = SINGLE_PROCESS) -> None:
        """Build model, data and optimizer of `config`. Raises InputError if they do not fit together."""
        self._config, self._processes = config, processes
        self._device = choose_device(config.device, processes.local_rank)
        if self._device.type == "mps" and config.dtype == "float64":
            raise InputError("dtype float64: not available on mps; use --device cpu")
        if self._device.type == "cuda" and processes.size > 1:
            torch.cuda.set_device(self._device)  # for pinned memory and collectives, which name no device
        if self._device.type == "mps" and processes.size > 1:
            raise InputError("device mps: trains in one process; start it without torchrun or use --device cpu")
        self._data: Data = load_data(config, self._device)
        model = build_model(config.model, self._data.shape, self._data.classes, config.seed)
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self._model = model.to(self._device, getattr(torch, config.dtype)).to(memory_format=layout)
        self._precision = Precision(config.amp, self._device)
        self._optimizer = build_optimizer(self._model, config.optimizer)
        self._gate: TorchGate | None = None
        self._selected = select(self._model, self._optimizer, config.include or None, config.exclude or None).prunable
        weights = sum(parameter.numel() for parameter in self._selected.values())
        self._threads = threads_for(weights, config.batch_size, self._device)
        self._latency_table: LatencyTable | None = None
        self._epoch, self._progress = 0, EpochProgress()
        self.guard = NonFiniteGuard(config.on_nonfinite)
        max_pending = 1 if self._device.type == "cpu" else MAX_PENDING
        scaled = config.amp == "float16"
        self._finite_check = FiniteCheck(
            self._model, self.guard, scaled=scaled, max_pending=max_pending, multi_process=processes.size > 1
        )
        self._resumed: dict[str, NDArray[Any]] | None = None
        self._trained: EpochProgress | None = None  # an epoch that is not evaluated yet
        self._randomness: dict[str, NDArray[Any]] | None = None  # at the step after which data could not be read

    @property
    def samples(self) -> int:
        """Number of training samples."""
        return self._data.samples

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of a sample: (features,) or (channels, height, width)."""
        return self._data.shape

    @property
    def classes(self) -> int:
        """Number of classes, which is the number of logits per sample."""
        return self._data.classes

    def train_dense(
        self,
        batches: Iterable[NDArray[np.intp]],
        *,
        learning_rate: float,
        label_smoothing: float,
        after_step: Callable[[], None] = lambda: None,
    ) -> float:
        """Train one epoch without a gate."""
        return self._train(batches, learning_rate, label_smoothing, after_step)

    @cached_property
    def _plan(self) -> GatePlan:
        """What gates hold; for channels the network is read once."""
        config = self._config
        is_timed = config.budget[0] == "latency" and self._latency_table is None
        return gate_plan(
            self._model,
            self._selected,
            config.gate_kind,
            *config.budget,
            self._example() if config.gates == "channels" else None,
            gate_inputs=config.gate_inputs,
            timed_input=self._laid_out(self._example(config.batch_size)) if is_timed else None,
            latency_table=self._latency_table,
        )

    def _example(self, samples: int = EXAMPLE_SAMPLES) -> torch.Tensor:
        """Normal random inputs of the network's shape, on the CPU."""
        drawn = torch.randn(samples, *self._data.shape, generator=torch.Generator().manual_seed(0))
        return drawn.to(getattr(torch, self._config.dtype))

    def latency_table(self, given: LatencyTable | None = None) -> LatencyTable | None:
        """The layer times that the budget is counted by, measured with a batch of `batch_size`; else None."""
        if self._config.budget[0] != "latency":
            return None
        if given not in (None, self._latency_table):
            self._latency_table = given
            self.__dict__.pop("_plan", None)
        self._latency_table = self._plan.latency
        return self._latency_table

    def capacity_plan(self) -> CapacityPlan | None:
        """What a schedule of this network counts."""
        return self._plan.capacity

    def channels(self) -> list[LayerCount]:
        """With gates of channels, all and open channels by the layer that makes them."""
        return [] if self._gate is None or self._plan.layout is None else self._gate.layers()

    def compacted(self) -> CompactedSize | None:
        """Size of the compacted network; None where `compact` can't read it."""
        example = self._example()
        try:
            smaller = compact(self._model, example)
        except InputError:
            return None
        dense, pruned = (count_cost(network, example) for network in (copy.deepcopy(self._model).cpu(), smaller))
        return CompactedSize(
            pruned.dense_flops / dense.dense_flops, pruned.parameters / dense.parameters, pruned.parameters
        )

    def start_gate(self, initial: tuple[float, float]) -> TorchGate:
        """Draw t by seed and parameter name, and start with a new optimizer."""
        self._renew_optimizer()
        self._gate = TorchGate(self._selected, self._optimizer, self._config.seed, initial, group=self._group)
        return self._gate

    def start_pruning(
        self, schedule: PruningSchedule[Any], warnings: Warnings, telemetry: str = "off"
    ) -> PruningSession[Any]:
        """Put the network under a `Pruner` that follows `schedule`, with a new optimizer."""
        self._renew_optimizer()
        pruner = Pruner.with_schedule(
            self._model,
            self._optimizer,
            schedule,
            plan=self._plan,
            include=self._config.include or None,
            exclude=self._config.exclude or None,
            seed=self._config.seed,
            telemetry=telemetry,
            process_group=self._group,
            warnings=warnings,
        )
        self._gate = pruner.gate
        return pruner.session

    def _renew_optimizer(self) -> None:
        if self._gate is not None:
            self._gate.remove()
        self._optimizer = build_optimizer(self._model, self._config.optimizer)
        self._precision = Precision(self._config.amp, self._device)

    @property
    def _group(self) -> Any:
        """The process group of torch that compares masks; None for a single process."""
        return None if self._processes.size == 1 else distributed.group.WORLD

    def train_pruning(
        self,
        batches: Iterable[NDArray[np.intp]],
        *,
        learning_rate: float,
        label_smoothing: float,
        after_step: Callable[[], None],
    ) -> float:
        """Train one epoch of Hyperflux: the gate's hooks act in every optimizer step."""
        return self._train(batches, learning_rate, label_smoothing, after_step)

    def evaluate(self) -> Evaluation:
        """Loss and accuracy on the whole test part; each rank evaluates part of the batches."""
        processes = self._processes
        if processes.size > 1:
            for buffer in self._model.buffers():  # rank 0 has the network's batch statistics
                distributed.broadcast(buffer, src=0)
        batches = self._data.test_batches(slice(processes.rank, None, processes.size))
        with torch_threads(self._threads):
            try:
                own = tally(self._model, batches, self._precision)
            except (DataFileError, LostWorkerError):  # a run that goes on evaluates this epoch first
                self._progress = self._trained or self._progress
                raise
        self._trained = None
        return Tally.evaluation(processes.all_gather(own))

    def loss_gradient(self, label_smoothing: float) -> Tensors:
        """Mean of g over the training part, without mixed precision; augmentation uses separate random numbers."""
        parameters = self.prunable_parameters()
        totals = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in parameters]
        size = self._config.batch_size
        batches = np.split(np.arange(self.samples), range(size, self.samples, size))
        was_training = self._model.training
        self._model.eval()
        with self._own_randomness():
            for inputs, labels in self._on_device(self._data.train_batches(batches, epoch=0)):
                logits = main_output(self._model(inputs))
                loss = nn.functional.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="sum")
                found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
                for total, gradient in zip(totals, found, strict=True):
                    total += gradient
        self._model.train(was_training)
        means = (total.div_(self.samples).cpu().contiguous().numpy() for total in totals)
        return dict(zip(self._selected, means, strict=True))

    def prunable_parameters(self) -> list[nn.Parameter]:
        """The parameters that are pruned, in the model's order."""
        return list(self._selected.values())

    def masks(self) -> dict[str, NDArray[np.bool_]]:
        """The mask m of every prunable parameter by name, in the model's order."""
        if self._gate is None:
            return {name: np.ones(tuple(parameter.shape), bool) for name, parameter in self._selected.items()}
        return {name: mask.cpu().contiguous().numpy() for name, mask in self._gate.masks().items()}

    def layers(self) -> list[LayerCount]:
        """Prunable and surviving weights of each parameter, in the model's order."""
        if self._gate is not None:
            return self._gate.weights()
        return [LayerCount(name, p.numel(), p.numel()) for name, p in self._selected.items()]

    def tensors(self) -> Tensors:
        """Copies of the parameters, which hold the effective weights, and of the buffers, such as batch statistics."""
        return {name: state.to_array(tensor) for name, tensor in self._model.state_dict().items()}

    def load_weights(self, path: str) -> str:
        """Replace all parameters and buffers by those of a weights file."""
        place = weights_file.load_from(self._model, path, self._config.model)
        try:
            require_weights_in_range(self._selected)
        except InputError as error:
            raise InputError(f"weights file {path}: {error}") from error
        if self._gate is not None:
            self._gate.resync()
        return place

    def state(self) -> Tensors:
        """Copies of everything that the next step depends on, with generators, and the sums of the epoch so far."""
        done, scaler = self._progress, self._precision.state()
        counts = {"epoch": self._epoch, "batches": done.batches, **self.guard.counts()}
        randomness = self._randomness
        if randomness is None:
            randomness = state.randomness(self._device) if done.batches else {}
        everyone = self._processes.all_gather(flatten({"sums": state.sums(done), "randomness": randomness}))
        parts = {
            "own": {name: np.array(count) for name, count in counts.items()},
            "model": state.model_state(self._model),
            "optimizer": state.optimizer_state(self._optimizer),
            "scaler": {name: np.array(value) for name, value in scaler.items()},
            "gate": {} if self._gate is None else state.gate_arrays(self._gate),
            **{f"process {rank}": own for rank, own in enumerate(everyone)},
        }
        return flatten(parts)

    def require_state(self, saved: Mapping[str, NDArray[Any]], *, epochs: int, batches: int) -> None:
        """Raise ValueError if `restore` could not continue from a saved state."""
        require_like(saved, {f"model/{name}": array for name, array in state.model_state(self._model).items()})
        done = whole(saved, "own/batches", batches)
        if whole(saved, "own/epoch", MAX_INTEGER) != epochs + (done > 0):
            raise ValueError(f"own/epoch: is {saved['own/epoch']} after {epochs} epochs and {done} batches")
        for name in ("own/skipped", "own/skipped_in_a_row"):
            whole(saved, name, MAX_INTEGER)
        parameters = state.optimizer_parameters(self._optimizer)
        require_optimizer(subtree(saved, "optimizer"), type(self._optimizer), parameters)
        scaler = {f"scaler/{name}": np.array(value) for name, value in self._precision.state().items()}
        require_like(saved, scaler)
        if self._gate is not None:
            require_like(saved, {f"gate/{name}": array for name, array in state.gate_arrays(self._gate).items()})
            require_gate_state(state.nested_gate_state(self._gate, subtree(saved, "gate")), self._gate)
        require_processes(saved, self._device)

    def restore(self, saved: Mapping[str, NDArray[Any]]) -> None:
        """Continue from a saved state."""
        state.restore_model(self._model, subtree(saved, "model"))
        state.restore_optimizer(self._optimizer, subtree(saved, "optimizer"))
        if scaler := subtree(saved, "scaler"):
            self._precision.restore({name: value.item() for name, value in scaler.items()})
        if self._gate is not None:
            state.restore_gate_arrays(self._gate, subtree(saved, "gate"))
        own = subtree(saved, "own")
        self._epoch = int(own["epoch"])
        self.guard.restore(own)
        self._restore_epoch(int(own["batches"]), saved)

    def _restore_epoch(self, batches: int, saved: Mapping[str, NDArray[Any]]) -> None:
        """Continue within an epoch; each rank restores its own sums and generators.

        If the number of ranks has changed, rank 0 takes all sums, and every rank seeds new generators.
        """
        count = len({name.partition("/")[0] for name in saved if name.startswith("process ")})
        every = [subtree(saved, f"process {number}") for number in range(count)]
        rank, alike = self._processes.rank, count == self._processes.size
        mine = [every[rank]] if alike else [] if rank else every
        self._progress = state.restored_progress(batches, [subtree(own, "sums") for own in mine], self._device)
        self._resumed = None if not batches else subtree(every[rank], "randomness") if alike else {}

    def require_finite(self) -> None:
        """Check parameters, buffers and the states of optimizer and gate. All ranks raise NotFiniteError together."""
        with raise_on_all_ranks(self._processes):
            kept = {} if self._gate is None else named_tensors(self._gate.store.saved(), tuple(KINDS))
            self._finite_check.require_finite(self._optimizer, kept, self._progress.batches or None)

    def fingerprint(self) -> str:
        """A hash of training and test data."""
        return self._data.fingerprint()

    def files(self) -> Mapping[str, str]:
        """What is compared of the files of a folder of images."""
        return self._data.files

    def place(self) -> str:
        """The GPU's name, or the device and its threads; with several ranks also their number."""
        several = f", {self._processes.size} processes" if self._processes.size > 1 else ""
        if self._device.type == "cuda":
            return f"cuda ({torch.cuda.get_device_name(self._device)}){several}"
        return f"{self._device.type} with {self._threads} thread{'s'[: self._threads > 1]}{several}"

    def versions(self) -> Mapping[str, str]:
        """The version of torch."""
        return {"torch": torch.__version__}

    def _train(
        self,
        batches: Iterable[NDArray[np.intp]],
        learning_rate: float,
        label_smoothing: float,
        after_step: Callable[[], None],
    ) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        if self._resumed is None:
            self._epoch, self._progress = self._epoch + 1, EpochProgress()
        progress, randomness, self._resumed = self._progress, self._resumed, None
        begun = progress.batches
        loss = partial(classification_loss, label_smoothing=label_smoothing)
        order = list(batches)
        parts = [self._own_part(len(batch)) for batch in order[progress.batches :]]
        with self._own_randomness(begun), torch_threads(self._threads), self._kept_if_unreadable(begun, randomness):
            self._model.train()
            chosen = self._data.train_batches(order, self._epoch, progress.batches, self._own_rows)
            ready = self._on_device(chosen)
            if randomness:
                ready = self._with_randomness(ready, randomness)
            train_epoch(
                self._forward,
                ready,
                self._optimizer,
                loss,
                self._precision,
                after_step,
                progress,
                parts,
                self._finite_check,
            )
        self._trained, self._progress = progress, EpochProgress()
        everyone = self._processes.all_gather((progress.loss, progress.samples))
        samples = sum(samples for _, samples in everyone)
        return sum(loss for loss, _ in everyone) / samples if samples else math.nan

    @contextmanager
    def _kept_if_unreadable(self, begun: int, randomness: dict[str, NDArray[Any]] | None) -> Iterator[None]:
        """If data can't be read, leave the state as after the last step, so that `state` gives what goes on from there.

        Args:
            begun: Batches that were done before.
            randomness: The generators that a resumed epoch continues with.
        """
        try:
            yield
        except (DataFileError, LostWorkerError):
            if self._progress.batches > begun:
                self._randomness = state.randomness(self._device)
            elif begun:
                self._randomness = randomness or {}
            else:
                self._epoch -= 1
            raise

    @cached_property
    def _forward(self) -> Callable[..., Any]:
        """The forward pass in training: replicated if there are several ranks, compiled if set."""
        model: nn.Module = self._model
        if self._processes.size > 1:
            model = DistributedDataParallel(model, device_ids=[self._device] if self._device.type == "cuda" else None)
        return torch.compile(model) if self._config.compile else model

    def _own_part(self, batch: int) -> BatchPart:
        """This rank's part of a batch of `batch` samples."""
        return BatchPart.of(batch, self._processes.rank, self._processes.size)

    def _own_rows(self, batch: int) -> slice:
        """The rows of that part."""
        return self._own_part(batch).rows

    def _with_randomness(self, batches: Iterator[Any], saved: Mapping[str, NDArray[Any]]) -> Iterator[Any]:
        """The batches; restores the generators after the first is loaded, because loading may draw random numbers."""
        for number, batch in enumerate(batches):
            if number == 0:
                state.restore_randomness(self._device, saved)
            yield batch

    def _on_device(self, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[Any]:
        for inputs, labels in batches:
            yield self._laid_out(inputs), labels

    def _laid_out(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs in the memory layout of the settings."""
        is_last = self._config.channels_last and inputs.ndim == 4
        return inputs.contiguous(memory_format=torch.channels_last) if is_last else inputs

    @contextmanager
    def _own_randomness(self, batch: int = 0) -> Iterator[None]:
        """Within this context random numbers, for example of dropout, depend on seed, epoch and rank.

        The caller's generators stay unchanged. If an epoch continues from a later batch with another number of ranks,
        its numbers differ from those of an uninterrupted epoch.
        """
        devices = [self._device] if self._device.type == "cuda" else []
        name = f"randomness of epoch {self._epoch}"
        if self._processes.rank or batch:
            name += f" from batch {batch} in process {self._processes.rank}"
        with torch.random.fork_rng(devices=devices):
            drawn = generator(self._config.seed, name)
            torch.manual_seed(int(drawn.integers(2**62)))
            yield
