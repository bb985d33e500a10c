"""`prune`: a complete pruning run, for users without a training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hyperflux.backends.torch.arguments import require_module
from hyperflux.backends.torch.batch_forms import batches_on, described
from hyperflux.backends.torch.optimizer_hooks import require_hooks
from hyperflux.backends.torch.outputs import classification_loss
from hyperflux.backends.torch.pruner import Pruner
from hyperflux.backends.torch.selection import Patterns
from hyperflux.backends.torch.training import Loss, Precision, choose_device, train_epoch
from hyperflux.errors import InputError, RunError
from hyperflux.gates.kinds import gate_kind
from hyperflux.io.arguments import require_callable
from hyperflux.io.ranges import whole_number
from hyperflux.schedules.controllers import PublishedController
from hyperflux.schedules.curves import cosine
from hyperflux.schedules.default import DefaultCourse

LEARNING_RATES = (0.01, 0.001, 0.001, 0.0001)
"""SGD's learning rate at the start and end of pruning, then of regrowth: the paper's for pretrained networks."""
MOMENTUM = 0.9
LABEL_SMOOTHING = 0.1


def prune(
    model: nn.Module,
    train_loader: Iterable[Any],
    *,
    target_sparsity: float | None = None,
    flops: float | None = None,
    parameters: float | None = None,
    latency: float | None = None,
    gates: str = "weights",
    gate_inputs: bool = False,
    pruning_epochs: int = 30,
    regrowth_epochs: int = 20,
    optimizer: torch.optim.Optimizer | None = None,
    loss: Loss | None = None,
    include: Patterns | None = None,
    exclude: Patterns | None = None,
    presence_lr: float = 1e-3,
    controller: Literal["default", "published"] | PublishedController | DefaultCourse = "default",
    seed: int = 0,
    device: str | torch.device = "auto",
    amp: Literal["off", "bfloat16", "float16"] = "off",
    on_epoch: Callable[[Pruner, float], None] | None = None,
) -> Pruner:
    """Prune a trained model in place.

    Args:
        model: The model. It moves to `device`, stays there, and is left in training mode.
        train_loader: Has a length and yields pairs (inputs, targets): tuples, lists or named tuples of two parts, or
            mappings of two entries, one called label, labels, target, targets or y. Each part is a tensor, an array of
            NumPy, or tuples, lists and mappings of these, and goes to `device`. The model is called with the inputs as
            they are.
        target_sparsity: Share of the prunable weights to remove, a fraction between 0 and 1. Give exactly one of this
            and the next three; none where gates hold a pattern.
        flops: As in `Pruner`.
        parameters: As in `Pruner`.
        latency: As in `Pruner`.
        gates: As in `Pruner`; to find channels, the model is read with the inputs of one batch.
        gate_inputs: As in `Pruner`.
        pruning_epochs: Epochs of the pruning stage, at least 1.
        regrowth_epochs: Epochs of the regrowth stage, at least 0.
        optimizer: Any optimizer that `Pruner` accepts; its learning rates stay as they are. By default SGD with
            momentum, whose learning rate follows a cosine of `LEARNING_RATES` in each stage.
        loss: Maps (outputs, targets) to a loss. By default cross-entropy with label smoothing 0.1 (see E7) of the
            outputs, or of those called logits or out; auxiliary outputs, whose names begin with "aux", add 0.3 of
            theirs each.
        include: As in `Pruner`.
        exclude: As in `Pruner`.
        presence_lr: As in `Pruner`.
        controller: As in `Pruner`.
        seed: As in `Pruner`.
        device: Name of the device; "auto" prefers cuda, then mps, then cpu.
        amp: Automatic mixed precision.
        on_epoch: Called after each epoch with the Pruner and the mean loss.

    Returns:
        The finalized Pruner; the model is a plain module with exact zeros.

    Raises:
        InputError: An argument is out of range, the loader is empty or has no length, a batch is no pair, or model and
            loss can't take the first one; then no step has been taken.
        NotFiniteError: A t or w became inf or NaN.
    """
    require_module("model", model)
    if optimizer is not None:
        require_hooks(optimizer)
    if loss is not None:
        require_callable("loss", loss, "one of outputs and targets")
    if on_epoch is not None:
        require_callable("on_epoch", on_epoch, "one of the Pruner and the mean loss")
    steps = _length(train_loader)
    pruning_epochs = whole_number("pruning_epochs", pruning_epochs, 1)
    regrowth_epochs = whole_number("regrowth_epochs", regrowth_epochs, 0)
    place = choose_device(device)
    precision = Precision(amp, place)
    model.to(place)
    ours = optimizer is None
    if optimizer is None:
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATES[0], momentum=MOMENTUM)
    pruner = Pruner(
        model,
        optimizer,
        target_sparsity=target_sparsity,
        flops=flops,
        parameters=parameters,
        latency=latency,
        gates=gates,
        gate_inputs=gate_inputs,
        example_input=_first_inputs(train_loader, place, model) if gate_kind(gates) == "channels" else None,
        pruning_steps=pruning_epochs * steps,
        regrowth_steps=regrowth_epochs * steps,
        include=include,
        exclude=exclude,
        presence_lr=presence_lr,
        controller=controller,
        seed=seed,
    )
    model.train()
    objective = loss or partial(classification_loss, label_smoothing=LABEL_SMOOTHING)
    dtype = _dtype(model)
    first = _FirstBatch(model, objective)
    try:
        for epoch in range(1, pruning_epochs + regrowth_epochs + 1):
            if ours:
                for group in optimizer.param_groups:
                    group["lr"] = _rate(epoch, pruning_epochs, regrowth_epochs)
            batches = batches_on(place, dtype, train_loader)
            done = train_epoch(first.forward, batches, optimizer, first.loss, precision)
            if on_epoch is not None:
                on_epoch(pruner, done.loss / done.samples)
    except BaseException:
        pruner.release()
        raise
    pruner.finalize()
    return pruner


def _rate(epoch: int, pruning_epochs: int, regrowth_epochs: int) -> float:
    if epoch <= pruning_epochs:
        return cosine(*LEARNING_RATES[:2], epoch, pruning_epochs)
    return cosine(*LEARNING_RATES[2:], epoch - pruning_epochs, regrowth_epochs)


class _FirstBatch:
    """Model and loss; what they raise on the first batch is an InputError that says what they were given."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self._model, self._loss, self._taken = model, loss, False

    def forward(self, inputs: Any) -> Any:
        """The model's outputs."""
        with self._blamed(f"the model can't take the inputs of the first batch, which are {described(inputs)}"):
            return self._model(inputs)

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """The loss, one number."""
        given = f"outputs that are {described(outputs)} and targets that are {described(targets)}"
        with self._blamed(f"the loss can't take {given}"):
            found = self._loss(outputs, targets)
        if not (isinstance(found, Tensor) and found.numel() == 1 and found.requires_grad):
            raise InputError(
                f"loss: is {described(found)}, and has to be a tensor of one number that depends on the outputs"
            )
        self._taken = True
        return found

    @contextmanager
    def _blamed(self, what: str) -> Iterator[None]:
        try:
            yield
        except (InputError, RunError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if self._taken:
                raise
            raise InputError(f"{what} ({type(error).__name__}: {error})") from error


def _dtype(model: nn.Module) -> torch.dtype:
    """The number format of a model's parameters."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())


def _first_inputs(loader: Iterable[Any], place: torch.device, model: nn.Module) -> Any:
    """The inputs of a batch, to read the model with."""
    for inputs, _ in batches_on(place, _dtype(model), loader):
        return inputs
    return None


def _length(loader: Any) -> int:
    try:
        steps = len(loader)
    except TypeError as error:
        raise InputError(
            "train_loader: has no length, so the steps of each stage are not known; use Pruner in a loop of your own"
        ) from error
    if steps < 1:
        raise InputError("train_loader: is empty")
    return steps
