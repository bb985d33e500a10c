"""A plain training epoch and evaluation, shared by the backend and `hyperflux.prune`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hyperflux.backends.base import Evaluation
from hyperflux.backends.torch.batch_forms import samples_in
from hyperflux.backends.torch.finite import FiniteCheck
from hyperflux.backends.torch.outputs import main_output
from hyperflux.errors import InputError
from hyperflux.io.did_you_mean import known_name, unknown_name
from hyperflux.session.nonfinite import NotFiniteError

PRECISIONS = ("off", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda", "mps")

Loss = Callable[[Any, Any], Tensor]


def choose_device(name: str | torch.device, local_rank: int = 0) -> torch.device:
    """The device called `name`; "auto" prefers cuda, then mps, then cpu.

    Args:
        name: "auto", "cpu", "cuda", "cuda:1" or "mps", or a device.
        local_rank: Rank on this host; "cuda" means the device of that number.

    Raises:
        InputError: The name is unknown, or the device is not available.
    """
    name = str(name) if isinstance(name, torch.device) else name
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if isinstance(name, str) and name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if isinstance(name, str) and name == "cuda" and local_rank:
        name = f"cuda:{local_rank}"
    kind = name.partition(":")[0] if isinstance(name, str) else ""
    if kind not in available:
        raise unknown_name("device", name, DEVICES)
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device {name!r}: not a device; give one such as cuda or cuda:1") from error
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if available[kind] and local_rank and device.index == local_rank >= count:
        raise InputError(
            f"device {name}: there is none for local rank {local_rank}, this machine has {count}; start at most that "
            "many processes, or use --device cpu"
        )
    if not available[kind] or (device.index or 0) >= count:
        raise InputError(f"device {name}: not available on this machine; use --device auto")
    return device


class Precision:
    """Automatic mixed precision: "off", "bfloat16", or "float16" with a GradScaler."""

    def __init__(self, name: str, device: torch.device) -> None:
        """Raises InputError for an unknown name."""
        known_name("amp", name, PRECISIONS)
        self._device, self._enabled = device.type, name != "off"
        self._dtype = torch.float16 if name == "float16" else torch.bfloat16
        self._scaler = torch.amp.GradScaler(device.type, enabled=name == "float16")

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass."""
        return torch.autocast(self._device, self._dtype, enabled=self._enabled)

    def backward(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Compute new gradients, scaled if there is a scaler."""
        optimizer.zero_grad()
        torch.autograd.backward(self._scaler.scale(loss))

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take one optimizer step; the scaler skips it if gradients overflowed."""
        self._scaler.step(optimizer)
        self._scaler.update()

    def state(self) -> dict[str, Any]:
        """The scaler's state, plain numbers; empty without a scaler."""
        return self._scaler.state_dict()

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self._scaler.load_state_dict(state)


@dataclass(frozen=True)
class BatchPart:
    """A rank's part of a batch.

    The mean of the weighted losses over all ranks is the mean loss of the batch. Batch norm needs two samples, so the
    first ranks get at least two samples of a small batch. The other ranks compute its first two rows with weight 0,
    because every rank must take part in the step.

    Attributes:
        samples: Samples that count for this rank.
        rows: Rows of the batch that the rank computes.
        weight: Weight of their mean loss.
    """

    samples: int
    rows: slice
    weight: float = 1.0

    @classmethod
    def of(cls, batch: int, rank: int, size: int) -> BatchPart:
        """The part of rank `rank` of `size` in a batch of `batch` samples."""
        sharing = min(size, max(1, batch // 2))
        if rank >= sharing:
            return cls(0, slice(2), 0.0)
        first, end = (number * batch // sharing for number in (rank, rank + 1))
        return cls(end - first, slice(first, end), size * (end - first) / batch)


@dataclass
class EpochProgress:
    """Progress of an epoch, on one rank.

    Attributes:
        batches: Batches done, including skipped ones.
        samples: Samples that this rank trained on.
        total: Sum of the loss over these samples, (); None before the first.
    """

    batches: int = 0
    samples: int = 0
    total: Tensor | None = None

    @property
    def loss(self) -> float:
        """Sum of the loss over samples; waits for the device."""
        return 0.0 if self.total is None else float(self.total)

    def skip(self) -> None:
        """Count a skipped batch."""
        self.batches += 1

    def add(self, loss: Tensor, samples: int) -> None:
        """Count a batch of `samples` samples with mean loss `loss`, without waiting for the device."""
        weighted = loss.detach() * samples
        self.total = weighted if self.total is None else self.total + weighted
        self.batches, self.samples = self.batches + 1, self.samples + samples


def train_epoch(
    forward: Callable[[Any], Any],
    batches: Iterable[tuple[Any, Any]],
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    precision: Precision,
    after_step: Callable[[], None] = lambda: None,
    progress: EpochProgress | None = None,
    parts: Iterable[BatchPart] | None = None,
    finite_check: FiniteCheck | None = None,
) -> EpochProgress:
    """Train one epoch, one optimizer step per batch.

    Args:
        forward: Maps inputs to outputs.
        batches: (inputs, targets) of each step; the rest of the epoch if `progress` is given.
        optimizer: The optimizer.
        loss: Maps (outputs, targets) to the mean loss.
        precision: Mixed precision.
        after_step: Called after each step, also after a skipped one.
        progress: Updated after each step; by default it starts at 0.
        parts: This rank's part of each batch, if several ranks train together.
        finite_check: Checks each step; None checks nothing.

    Returns:
        The progress at the end.

    Raises:
        InputError: There is no batch.
        NotFiniteError: A value is not finite, and the step cannot or must not be skipped.
    """
    progress = progress or EpochProgress()
    own = None if parts is None else iter(parts)
    for inputs, targets in batches:
        mine = BatchPart(samples_in((inputs, targets)), slice(None)) if own is None else next(own)
        if finite_check is not None:
            finite_check.before_forward()
        with precision.autocast():
            batch_loss = loss(forward(inputs), targets)
        precision.backward(batch_loss if mine.weight == 1 else batch_loss * mine.weight, optimizer)
        if finite_check is None or finite_check.allows(batch_loss, progress.batches + 1):
            try:
                precision.step(optimizer)
            except NotFiniteError as error:  # found by the pruning session inside the step
                if finite_check is not None:
                    finite_check.check()  # an earlier step that was not checked yet may be the cause
                raise error.in_step(progress.batches + 1) from error
            progress.add(batch_loss, mine.samples)
        else:
            progress.skip()
        after_step()
    if not progress.batches:
        raise InputError("training data: no batch in an epoch")
    if finite_check is not None:
        finite_check.check()
    return progress


@dataclass(frozen=True)
class Tally:
    """Sums over test samples.

    Attributes:
        loss: Sum of the loss.
        correct: Number of correct answers.
        samples: Number of samples.
    """

    loss: float
    correct: int
    samples: int

    @classmethod
    def evaluation(cls, parts: Sequence[Tally]) -> Evaluation:
        """Mean loss and accuracy over all parts."""
        loss, correct, samples = (sum(getattr(part, name) for part in parts) for name in ("loss", "correct", "samples"))
        return Evaluation(loss / samples, correct / samples, samples)


@torch.no_grad()
def tally(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], precision: Precision) -> Tally:
    """Sum cross-entropy, without label smoothing, and correct answers in evaluation mode; restores the model's mode."""
    was_training = model.training
    model.eval()
    losses, correct, samples = [], [], 0
    for inputs, labels in batches:
        with precision.autocast():
            logits = main_output(model(inputs))
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses.append(nn.functional.cross_entropy(exact, labels, reduction="sum"))
        correct.append((logits.argmax(1) == labels).sum())
        samples += len(labels)
    model.train(was_training)
    if not losses:
        return Tally(0.0, 0, 0)
    return Tally(float(torch.stack(losses).sum()), int(torch.stack(correct).sum()), samples)
