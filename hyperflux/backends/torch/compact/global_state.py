"""What torch computes with beside the arguments of a call: context managers and global settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

STATE: dict[str, Callable[[], Any]] = {
    "autocast": lambda: tuple(
        (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")
    ),
    "the default dtype": torch.get_default_dtype,
    "a mode of torch functions, such as the default device": lambda: (
        torch._C._len_torch_function_stack(),
        torch._C._len_torch_dispatch_stack(),
    ),
    "deterministic algorithms": lambda: (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
    ),
    "the kernels of attention": lambda: (
        torch.backends.cuda.flash_sdp_enabled(),  # type: ignore[no-untyped-call]
        torch.backends.cuda.mem_efficient_sdp_enabled(),  # type: ignore[no-untyped-call]
        torch.backends.cuda.math_sdp_enabled(),  # type: ignore[no-untyped-call]
        torch.backends.cuda.cudnn_sdp_enabled(),  # type: ignore[no-untyped-call]
    ),
    "the precision of matrix products": lambda: (
        torch.get_float32_matmul_precision(),
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
    ),
    "the backends of torch": lambda: (
        torch.backends.cudnn.enabled,
        torch.backends.mkldnn.enabled,
        torch.backends.cudnn.allow_tf32,
    ),
    "torch's random numbers": lambda: torch.get_rng_state().numpy().tobytes(),
}
"""What a graph of calls does not hold, by name. Gradients and inference mode change no output, so they may be lost."""


def global_state() -> dict[str, Any]:
    """Return the present settings, by name."""
    return {name: read() for name, read in STATE.items()}


def changed_settings(before: dict[str, Any]) -> list[str]:
    """Return the names of the settings that are no longer as they were."""
    now = global_state()
    return [name for name in STATE if now[name] != before[name]]
