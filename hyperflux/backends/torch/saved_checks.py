"""Checks of a saved state of the torch backend before it is restored. All raise ValueError."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperflux.io.flatten import subtree
from hyperflux.io.ranges import MAX_INTEGER
from hyperflux.io.saved_arrays import require_floats, require_like, require_names, whole

KEPT: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.Adam: ("step", "exp_avg", "exp_avg_sq"),
    torch.optim.SGD: ("momentum_buffer",),
}
"""What an optimizer of a run keeps of a parameter after its first step."""
NEVER_NEGATIVE = ("step", "exp_avg_sq")
Arrays = Mapping[str, NDArray[Any]]


def require_optimizer(saved: Arrays, kind: type[torch.optim.Optimizer], parameters: Sequence[Tensor]) -> None:
    """A state as `state.optimizer_state` saves it, of an optimizer of this kind and of these parameters."""
    numbers = {name.partition("/")[0] for name in saved}
    if not numbers <= {str(number) for number in range(len(parameters))}:
        raise ValueError(f"optimizer: has state of more than {len(parameters)} parameters")
    for number in sorted(numbers):
        own, parameter = subtree(saved, number), parameters[int(number)]
        require_names("optimizer", own, [f"{part}/{key}" for part in ("value", "stride", "host") for key in KEPT[kind]])
        dtype = np.dtype(str(parameter.dtype).removeprefix("torch."))
        for key in KEPT[kind]:
            shape, of = ((), np.dtype(np.float32)) if key == "step" else (tuple(parameter.shape), dtype)
            require_floats(own, f"value/{key}", [shape], of)
            require_like({"host": own[f"host/{key}"]}, {"host": np.array(True)})
            _require_dense(own[f"stride/{key}"], shape)
            if key in NEVER_NEGATIVE and own[f"value/{key}"].min(initial=0) < 0:
                raise ValueError(f"optimizer: {key} of parameter {number} is below 0")


def _require_dense(strides: NDArray[Any], shape: tuple[int, ...]) -> None:
    """Strides of a tensor of this shape whose numbers lie side by side, each once."""
    require_like({"strides": strides}, {"strides": np.empty(len(shape), np.int64)})
    expected = 1
    for stride, size in sorted(zip(strides.tolist(), shape, strict=True)):
        if stride < 0 or (size > 1 and 0 not in shape and stride != expected):
            raise ValueError(f"optimizer: strides {strides.tolist()} do not fit the shape {shape}")
        expected *= size


def require_processes(saved: Arrays, device: torch.device) -> None:
    """The sums and generators of each rank of the process group that saved the state."""
    names = {name.partition("/")[0] for name in saved if name.startswith("process ")}
    require_names("state", names, [f"process {number}" for number in range(max(1, len(names)))])
    for name in names:
        sums, randomness = subtree(saved, f"{name}/sums"), subtree(saved, f"{name}/randomness")
        whole(sums, "samples", MAX_INTEGER)
        for other, loss in sums.items():
            if other != "samples":
                require_names(name, [other], ["loss"])
                require_floats(sums, "loss", [()], loss.dtype)
        for generator in (torch.Generator(), torch.Generator(device)):
            if (bits := randomness.get(generator.device.type)) is not None:
                _require_bits(bits, generator)


def _require_bits(saved: NDArray[Any], generator: torch.Generator) -> None:
    """The state of a generator of this kind."""
    try:
        require_like({"bits": saved}, {"bits": generator.get_state().numpy()})
        generator.set_state(torch.from_numpy(saved))
    except RuntimeError as error:
        raise ValueError(f"randomness: {str(error).splitlines()[0]}") from error
