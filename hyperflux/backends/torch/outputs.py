"""What a classifier returns: logits, or logits with more beside them, as some networks do in training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hyperflux.backends.torch.batch_forms import described
from hyperflux.errors import InputError

AUXILIARY_WEIGHT = 0.3
"""Weight of the loss of each auxiliary classifier (Szegedy and others 2015, Going deeper with convolutions)."""
MAIN_NAMES = ("logits", "out")
"""Names of the main output in torchvision's and Transformers' networks; those of auxiliary ones begin with "aux"."""


def main_output(outputs: Any) -> Tensor:
    """The logits among the outputs: a tensor itself, the one called by `MAIN_NAMES`, or the only one.

    Raises:
        InputError: There is no telling.
    """
    if isinstance(outputs, Tensor):
        return outputs
    named = _named(outputs)
    chosen = next((named[name] for name in MAIN_NAMES if name in named), None)
    if chosen is None and len(named) == 1:
        (chosen,) = named.values()
    if not isinstance(chosen, Tensor):
        raise InputError(
            f"the model's output is {described(outputs)}, and cross-entropy takes one tensor of logits; give a loss, "
            f"which maps (outputs, targets) to a number, or name the logits {MAIN_NAMES[0]}"
        )
    return chosen


def classification_loss(outputs: Any, targets: Any, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of the logits, and `AUXILIARY_WEIGHT` of that of each auxiliary classifier.

    Args:
        outputs: Of the model, see `main_output`.
        targets: Class of each sample, of any integer type, also as a list; or probabilities.
        label_smoothing: See E7.

    Raises:
        InputError: Outputs and targets do not fit together.
    """
    logits = main_output(outputs)
    heads = {} if isinstance(outputs, Tensor) else _named(outputs)
    auxiliary = [head for name, head in heads.items() if name.startswith("aux") and isinstance(head, Tensor)]
    classes = _classes(targets, logits.device)
    try:
        loss = nn.functional.cross_entropy(logits, classes, label_smoothing=label_smoothing)
        for head in auxiliary:
            loss = loss + AUXILIARY_WEIGHT * nn.functional.cross_entropy(head, classes, label_smoothing=label_smoothing)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise InputError(
            f"the loss: cross-entropy can't take outputs that are {described(logits)} and targets that are "
            f"{described(targets)} ({error})"
        ) from error
    return loss


def _named(outputs: Any) -> dict[str, Any]:
    """The parts of an output by name; those of a plain tuple or list by number."""
    if isinstance(outputs, Mapping):
        return {str(name): part for name, part in outputs.items()}
    if isinstance(outputs, tuple | list):
        return dict(zip(getattr(outputs, "_fields", map(str, range(len(outputs)))), outputs, strict=True))
    if is_dataclass(outputs):
        return {field.name: getattr(outputs, field.name) for field in fields(outputs)}
    return {}


def _classes(targets: Any, device: torch.device) -> Tensor:
    if isinstance(targets, list | tuple) and targets and all(isinstance(target, int) for target in targets):
        targets = torch.tensor(targets, device=device)
    if not isinstance(targets, Tensor):
        raise InputError(
            f"the targets are {described(targets)}, and cross-entropy takes one tensor of classes; give a loss, which "
            "maps (outputs, targets) to a number"
        )
    integer = not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)
    return targets.long() if integer else targets
