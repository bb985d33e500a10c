"""Epochs of a plain training loop: what the backend and `hyperflux.prune` share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hyperflux.backends.base import Evaluation
from hyperflux.backends.torch.finite import FiniteCheck
from hyperflux.errors import InputError
from hyperflux.io.did_you_mean import unknown_name
from hyperflux.session.nonfinite import NotFiniteError

PRECISIONS = ("off", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda", "mps")

Loss = Callable[[Tensor, Tensor], Tensor]


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device called `name`; "auto" takes cuda, then mps, then cpu. Raises InputError where it can't be had.

    Of several processes on this host each takes the cuda device of its `local_rank`.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if name == "cuda" and local_rank:
        name = f"cuda:{local_rank}"
    kind = name.partition(":")[0]
    if kind not in available:
        raise unknown_name("device", name, DEVICES)
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device {name!r}: not a device; give one such as cuda or cuda:1") from error
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if available[kind] and local_rank and device.index == local_rank >= count:
        raise InputError(
            f"device {name}: process {local_rank} of this machine has none of its own, it sees {count}; start no more "
            "processes than that, or use --device cpu"
        )
    if not available[kind] or (device.index or 0) >= count:
        raise InputError(f"device {name}: not available on this machine; use --device auto")
    return device


class Precision:
    """Automatic mixed precision: "off", "bfloat16", or "float16" with a GradScaler of its own."""

    def __init__(self, name: str, device: torch.device) -> None:
        if name not in PRECISIONS:
            raise unknown_name("amp", name, PRECISIONS)
        self._device, self._enabled = device.type, name != "off"
        self._dtype = torch.float16 if name == "float16" else torch.bfloat16
        self._scaler = torch.amp.GradScaler(device.type, enabled=name == "float16")

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass."""
        return torch.autocast(self._device, self._dtype, enabled=self._enabled)

    def backward(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Fresh gradients, scaled where there is a scaler."""
        optimizer.zero_grad()
        torch.autograd.backward(self._scaler.scale(loss))

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """One optimizer step, which the scaler skips where gradients overflowed."""
        self._scaler.step(optimizer)
        self._scaler.update()

    def state(self) -> dict[str, Any]:
        """The scaler's own state: plain numbers, none without a scaler."""
        return self._scaler.state_dict()

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self._scaler.load_state_dict(state)


@dataclass(frozen=True)
class BatchPart:
    """A process's part of a batch: so many samples, its rows, and the weight of their mean loss.

    The mean of the weighted losses over all processes is the mean loss of the batch. Of a lone sample a batch norm
    could make nothing: of a small batch the first processes get two or more samples each. Those that get none take its
    first two rows with weight 0, because they have to take part in the step.
    """

    samples: int
    rows: slice
    weight: float = 1.0

    @classmethod
    def of(cls, batch: int, rank: int, size: int) -> BatchPart:
        """That of process `rank` of `size` in a batch of so many samples."""
        sharing = min(size, max(1, batch // 2))
        if rank >= sharing:
            return cls(0, slice(2), 0.0)
        first, end = (number * batch // sharing for number in (rank, rank + 1))
        return cls(end - first, slice(first, end), size * (end - first) / batch)


@dataclass
class EpochProgress:
    """How far an epoch has come: batches done, their samples, and the sum of the loss over these.

    Of several processes each counts its own samples.
    """

    batches: int = 0
    samples: int = 0
    total: Tensor | None = None

    @property
    def loss(self) -> float:
        """The sum of the loss; waits for the device."""
        return 0.0 if self.total is None else float(self.total)

    def skip(self) -> None:
        """One more batch, which was skipped."""
        self.batches += 1

    def add(self, loss: Tensor, samples: int) -> None:
        """One more batch and its mean loss; nothing waits for the device."""
        weighted = loss.detach() * samples
        self.total = weighted if self.total is None else self.total + weighted
        self.batches, self.samples = self.batches + 1, self.samples + samples


def train_epoch(
    forward: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    precision: Precision,
    after_step: Callable[[], None] = lambda: None,
    progress: EpochProgress | None = None,
    parts: Iterable[BatchPart] | None = None,
    finite_check: FiniteCheck | None = None,
) -> EpochProgress:
    """One step a batch, `after_step` after each; gives the progress at the end.

    `progress` is kept up to date; where it is not at 0, `batches` are the rest of an epoch. Where several processes
    train together, `batches` are this one's `parts` of them. `finite_check` looks for what is not finite. Raises
    NotFiniteError where it stops the run.
    """
    progress = progress or EpochProgress()
    own = None if parts is None else iter(parts)
    for inputs, targets in batches:
        mine = BatchPart(len(inputs), slice(None)) if own is None else next(own)
        if finite_check is not None:
            finite_check.before_forward()
        with precision.autocast():
            batch_loss = loss(forward(inputs), targets)
        precision.backward(batch_loss if mine.weight == 1 else batch_loss * mine.weight, optimizer)
        if finite_check is None or finite_check.allows(batch_loss, progress.batches + 1):
            try:
                precision.step(optimizer)
            except NotFiniteError as error:  # found by the pruning session inside the step
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
    """Sums over test samples: the loss and the correct answers."""

    loss: float
    correct: int
    samples: int

    @classmethod
    def evaluation(cls, parts: Sequence[Tally]) -> Evaluation:
        """The means over all parts."""
        loss, correct, samples = (sum(getattr(part, name) for part in parts) for name in ("loss", "correct", "samples"))
        return Evaluation(loss / samples, correct / samples, samples)


@torch.no_grad()
def tally(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], precision: Precision) -> Tally:
    """Cross-entropy without smoothing and correct answers, in evaluation mode; the mode is put back."""
    was_training = model.training
    model.eval()
    losses, correct, samples = [], [], 0
    for inputs, labels in batches:
        with precision.autocast():
            logits = model(inputs)
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses.append(nn.functional.cross_entropy(exact, labels, reduction="sum"))
        correct.append((logits.argmax(1) == labels).sum())
        samples += len(labels)
    model.train(was_training)
    if not losses:
        return Tally(0.0, 0, 0)
    return Tally(float(torch.stack(losses).sum()), int(torch.stack(correct).sum()), samples)
