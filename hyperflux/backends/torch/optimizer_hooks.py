"""Hooks of torch's optimizers: which optimizers run them, nested steps, and dtypes of loaded states."""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable, Sequence
from itertools import chain
from types import FrameType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hyperflux.backends.torch.arguments import require_optimizer
from hyperflux.errors import InputError

_STEP = torch.optim.Optimizer.profile_hook_step(lambda: None).__code__
"""The code that torch wraps around every optimizer's step; it runs the hooks."""


def require_hooks(optimizer: torch.optim.Optimizer) -> None:
    """Raise InputError for an optimizer whose `step` runs no hooks or needs a closure."""
    require_optimizer("optimizer", optimizer)
    if isinstance(optimizer, torch.optim.LBFGS):
        raise InputError("optimizer: LBFGS needs a closure, which would evaluate the latent weights; use another one")
    for setting in ("parameters_as_bucket_view", "_overlap_with_ddp"):
        if getattr(optimizer, setting, False):
            raise InputError(
                f"optimizer: {type(optimizer).__name__} with {setting.removeprefix('_')}=True keeps its own hold of "
                "the weights, so its ranks would not see the latent ones; leave that setting out"
            )
    if not getattr(type(optimizer).step, "hooked", False):
        held = isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer)
        raise InputError(
            f"optimizer: {type(optimizer).__name__} does not run step hooks; pass the optimizer that it wraps"
            f"{', its .optimizer' if held else ''}"
        )


def calls_itself(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the current step was called by another step of the same optimizer; call it from a step hook.

    This happens if a subclass calls its base class's step: both run the hooks.
    """
    return _steps_under_way(optimizer) > 1


def is_inside_step_of(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step of the optimizer has called this function, directly or not."""
    return _steps_under_way(optimizer) > 0


def _steps_under_way(optimizer: torch.optim.Optimizer) -> int:
    """Steps of an optimizer on the call stack, which holds no trace of earlier steps that raised an error."""
    frame: FrameType | None = sys._getframe(1)
    count = 0
    while frame is not None:
        count += frame.f_code is _STEP and frame.f_locals.get("args", ())[:1] == (optimizer,)
        frame = frame.f_back
    return count


class FailedStepHook:
    """Calls a function when a step of an optimizer raises an error or is interrupted. torch has no such hook.

    It replaces the optimizer's `step`, as schedulers of learning rates do. Copies of the optimizer are without it.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, call: Callable[[], None]) -> None:
        """Replace the optimizer's `step`; `call` is called before the error goes on."""
        inner = optimizer.step
        self._optimizer, self._before = weakref.ref(optimizer), vars(optimizer).get("step")
        self._call: Callable[[], None] | None = call
        function = getattr(inner, "__func__", None)

        @functools.wraps(function or inner)
        def step(own: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
            enabled = torch.is_grad_enabled()
            try:
                return inner(*args, **kwargs) if function is None else function(own, *args, **kwargs)
            except BaseException:
                torch.set_grad_enabled(enabled)  # an interrupt just before a no_grad ends would leave gradients off
                if self._call is not None:
                    self._call()
                raise

        self._step = optimizer.step = MethodType(step, optimizer)  # type: ignore[method-assign]

    def remove(self) -> None:
        """Put the earlier `step` back, or do nothing in it any more if another has replaced it since."""
        optimizer, self._call = self._optimizer(), None
        if optimizer is None or vars(optimizer).get("step") is not self._step:
            return
        if self._before is None:
            del optimizer.step
        else:
            optimizer.step = self._before  # type: ignore[method-assign]


def keep_state_dtype(
    optimizer: torch.optim.Optimizer, wider_latents: Callable[[], Sequence[tuple[nn.Parameter, Tensor]]]
) -> list[RemovableHandle]:
    """Keep loaded optimizer state in the dtype of w if that is wider than the parameter's, to which torch casts it.

    Args:
        optimizer: The optimizer.
        wider_latents: Returns each parameter whose dtype is narrower than that of w, with its w.

    Returns:
        Handles of the registered hooks.
    """
    loading: dict[str, Any] = {}

    def before(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
        loading.update(saved)

    def after(optimizer: torch.optim.Optimizer) -> None:
        numbers = chain.from_iterable(group["params"] for group in loading["param_groups"])
        parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
        number_of = {id(parameter): number for number, parameter in zip(numbers, parameters, strict=True)}
        for parameter, latent in wider_latents():
            for key, value in loading["state"].get(number_of[id(parameter)], {}).items():
                if isinstance(value, Tensor) and value.dtype == latent.dtype and value.shape == latent.shape:
                    optimizer.state[parameter][key] = value.to(latent.device, copy=True)
        loading.clear()

    return [
        optimizer.register_load_state_dict_pre_hook(before),
        optimizer.register_load_state_dict_post_hook(after),
    ]
