"""Selects the prunable parameters of a module: by kind, then by the user's patterns."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import UninitializedParameter

from hyperflux.backends.torch.arguments import other_than_dense, require_module, require_optimizer
from hyperflux.errors import InputError
from hyperflux.gates.latency import LatencyTable
from hyperflux.io.did_you_mean import unknown_name
from hyperflux.io.safe_read import shown

if TYPE_CHECKING:
    from hyperflux.backends.torch.channels.layout import ChannelLayout

Pattern = str | re.Pattern[str] | type[nn.Module]
Patterns = Pattern | Iterable[Pattern]

_WEIGHTS = {
    nn.Linear: ("weight",),
    nn.Conv1d: ("weight",),
    nn.Conv2d: ("weight",),
    nn.Conv3d: ("weight",),
    nn.ConvTranspose1d: ("weight",),
    nn.ConvTranspose2d: ("weight",),
    nn.ConvTranspose3d: ("weight",),
    nn.MultiheadAttention: ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
}
"""Types of modules whose weights are prunable by default, with the names of those weights."""
MAX_PATTERNS = 1000
MAX_PATTERN = 1000
"""Most patterns, and most characters of each: matching takes their square."""
TRAINABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Number formats in which torch adds and multiplies."""
_WHOLE_WEIGHTS = "pruning needs whole weights on every rank, as with DistributedDataParallel"


@dataclass(frozen=True)
class Selection:
    """The prunable parameters of a module; print it to see them, and why the others were left out.

    Attributes:
        prunable: Prunable parameters by name.
        left_out: The reason for each other parameter, by name.
        channels: The gates of channels, if they hold these.
        patterns: What a pattern of gates means for each prunable parameter, by name.
        latency: The times of layers that gates are counted by, if the budget is the time.
    """

    prunable: dict[str, nn.Parameter]
    left_out: dict[str, str]
    channels: ChannelLayout | None = None
    patterns: Mapping[str, str] = field(default_factory=dict)
    latency: LatencyTable | None = None

    @property
    def total(self) -> int:
        """N, the number of prunable weights."""
        return sum(parameter.numel() for parameter in self.prunable.values())

    def __str__(self) -> str:
        """One line per parameter; with gates of channels, first one per layer that makes these, and one per time."""
        rows = [] if self.channels is None else self.channels.described()
        rows += [] if self.latency is None else self.latency.described()
        for name, parameter in self.prunable.items():
            words = f", {self.patterns[name]}" if self.patterns else ""
            rows.append((name, f"{parameter.numel():,} weights, prunable{words}"))
        rows += self.left_out.items()
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside torch.compile, DataParallel and DistributedDataParallel, with its usual parameter names."""
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def select(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    include: Patterns | None = None,
    exclude: Patterns | None = None,
) -> Selection:
    """Choose the parameters of `model` that get presence parameters.

    By default these are the weights of linear and (transposed) convolution layers and the packed projections of
    attention that `optimizer` trains. A pattern is

    - a name with wildcards, `"layer1"` or `"*.fc?"`: of a parameter, or of any module that contains it,
    - a regular expression (`re.compile`), searched in the parameter's name,
    - a type of module: every parameter inside modules of that type.

    Tied parameters count once, under their first name; a parameter tied to an embedding counts as an embedding.

    Args:
        model: The module; wrappers are removed.
        optimizer: The optimizer that trains it.
        include: Keep only parameters that match one of these patterns. An exact parameter name also adds a parameter
            that is not prunable by default, such as an embedding or a recurrent weight.
        exclude: Leave out parameters that match one of these patterns.

    Raises:
        InputError: A pattern matches nothing; nothing is left to prune; or a weight is sharded, not initialised, not
            floating point, or recomputed from other parameters (parametrizations, weight norm, torch.nn.utils.prune).
    """
    require_module("model", model)
    require_optimizer("optimizer", optimizer)
    included, excluded = _as_list("include", include), _as_list("exclude", exclude)
    model = unwrap(model)
    _refuse_flattened(model)
    parameters = dict(model.named_parameters())
    paths = {id(parameter): list(_owners(model, parameter)) for parameter in parameters.values()}
    by_default = _by_default(model, parameters)
    exact = {pattern for pattern in included if isinstance(pattern, str) and pattern in parameters}
    for pattern in included:
        if not any(
            pattern in exact or (name in by_default and _matches(pattern, name, paths[id(parameter)]))
            for name, parameter in parameters.items()
        ):
            others = [name for name, parameter in parameters.items() if _matches(pattern, name, paths[id(parameter)])]
            raise (
                _only_others(pattern, others)
                if others
                else _no_match("include", pattern, "prunable weight", by_default)
            )
    for pattern in excluded:
        if not any(_matches(pattern, name, paths[id(parameter)]) for name, parameter in parameters.items()):
            raise _no_match("exclude", pattern, "parameter", parameters)

    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    prunable: dict[str, nn.Parameter] = {}
    left_out: dict[str, str] = {}
    for name, parameter in parameters.items():
        owners = paths[id(parameter)]
        if name not in by_default and name not in exact:
            left_out[name] = "not of a prunable kind"
        elif included and not any(pattern == name or _matches(pattern, name, owners) for pattern in included):
            left_out[name] = "not included"
        elif any(_matches(pattern, name, owners) for pattern in excluded):
            left_out[name] = "excluded"
        elif not parameter.requires_grad:
            left_out[name] = "frozen (requires_grad is False)"
        elif id(parameter) not in trained:
            left_out[name] = "not in the optimizer"
        elif not isinstance(parameter, UninitializedParameter) and not parameter.numel():
            left_out[name] = "has no elements"
        else:
            require_plain(name, parameter)
            _require_dense_gradient(name, [module for _, module in owners])
            prunable[name] = parameter
    _refuse_reparametrized(model, included, excluded)
    if not prunable:
        reasons = ", ".join(sorted(set(left_out.values()))) or "it has no parameters"
        raise InputError(
            f"model {type(model).__name__}: no prunable weight ({reasons}); the exact name of a parameter in "
            "include adds it, of whatever kind"
        )
    return Selection(prunable, left_out)


def _as_list(option: str, patterns: Patterns | None) -> list[Pattern]:
    if patterns is None:
        return []
    alone = isinstance(patterns, str | bytes | re.Pattern | type | nn.Module)
    one = alone or not isinstance(patterns, Iterable) or getattr(patterns, "ndim", 1) == 0
    found: list[Any] = [patterns] if one else list(cast(Iterable[Pattern], patterns))
    if len(found) > MAX_PATTERNS:
        raise InputError(f"patterns: {len(found):,} are too many; give {MAX_PATTERNS:,} or fewer")
    for pattern in found:
        if isinstance(pattern, str) and len(pattern) > MAX_PATTERN:
            raise InputError(
                f"pattern {shown(pattern, 40)}: has {len(pattern):,} characters, more than {MAX_PATTERN:,}"
            )
        is_module = isinstance(pattern, type) and issubclass(pattern, nn.Module)
        is_text = isinstance(pattern, re.Pattern) and isinstance(pattern.pattern, str)
        if not (is_module or is_text or isinstance(pattern, str)):
            raise InputError(
                f"{option}: the pattern {shown(pattern)} is none; give a name, a compiled regular expression or a type "
                "of module"
            )
    return found


def _owners(model: nn.Module, parameter: nn.Parameter) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of every module that holds the parameter, directly or inside."""
    for path, module in model.named_modules(remove_duplicate=False):
        if any(candidate is parameter for candidate in module._parameters.values()):
            yield from _along(model, path)


def _along(model: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) from the root down to `path`."""
    parts = path.split(".") if path else []
    for length in range(len(parts) + 1):
        name = ".".join(parts[:length])
        yield name, model.get_submodule(name)


def _matches(pattern: Pattern, name: str, owners: Collection[tuple[str, nn.Module]]) -> bool:
    if isinstance(pattern, str):
        return fnmatchcase(name, pattern) or any(path and fnmatchcase(path, pattern) for path, _ in owners)
    if isinstance(pattern, re.Pattern):
        return pattern.search(name) is not None
    return any(isinstance(module, pattern) for _, module in owners)


def _weight_names(module: nn.Module) -> tuple[str, ...]:
    return next((names for kind, names in _WEIGHTS.items() if isinstance(module, kind)), ())


def _by_default(model: nn.Module, parameters: dict[str, nn.Parameter]) -> set[str]:
    """Names of the parameters that are prunable by default."""
    weights = {
        id(parameter)
        for module in model.modules()
        for name in _weight_names(module)
        if (parameter := module._parameters.get(name)) is not None
    }
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
        for parameter in module._parameters.values()
    }
    return {name for name, parameter in parameters.items() if id(parameter) in weights - embeddings}


def require_plain(name: str, parameter: nn.Parameter) -> None:
    """Raise InputError for a parameter that cannot have presence parameters."""
    if isinstance(parameter, UninitializedParameter):
        raise InputError(f"{name}: not initialised yet; pass one batch through the model first")
    if parameter.is_meta:
        raise InputError(f"{name}: is {other_than_dense(parameter)}; give the model its weights first")
    if other := other_than_dense(parameter):
        raise InputError(f"{name}: is {other} and cannot be pruned; make it dense or exclude it")
    if not parameter.is_floating_point():
        raise InputError(f"{name}: holds {parameter.dtype}, not floating point numbers; exclude it")
    if parameter.dtype not in TRAINABLE:
        raise InputError(f"{name}: holds {parameter.dtype}, which torch cannot train; convert it or exclude it")
    if type(parameter.data) is not torch.Tensor:
        kind = type(parameter.data).__name__
        if kind == "DTensor":
            raise InputError(f"{name}: is sharded (fully_shard or tensor parallelism); {_WHOLE_WEIGHTS}")
        raise InputError(f"{name}: a {kind} (quantised or another type of tensor) cannot be pruned; exclude it")


def _require_dense_gradient(name: str, owners: list[nn.Module]) -> None:
    if any(isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse for module in owners):
        raise InputError(f"{name}: an embedding with sparse gradients cannot be pruned; build it with sparse=False")


def _refuse_flattened(model: nn.Module) -> None:
    """Raise InputError for FullyShardedDataParallel, which puts weights of several layers into one flat parameter."""
    sharded = sys.modules.get("torch.distributed.fsdp")  # imported if the model was wrapped
    if sharded and any(isinstance(module, sharded.FullyShardedDataParallel) for module in model.modules()):
        raise InputError(f"model {type(model).__name__}: is sharded (FullyShardedDataParallel); {_WHOLE_WEIGHTS}")


def _refuse_reparametrized(model: nn.Module, included: list[Pattern], excluded: list[Pattern]) -> None:
    """Raise InputError for a selected weight that is not a parameter but computed from others."""
    for path, module in model.named_modules():
        for weight in _weight_names(module):
            if weight in module._parameters or not hasattr(module, weight):
                continue
            name = f"{path}.{weight}" if path else weight
            owners = list(_along(model, path))
            if any(_matches(pattern, name, owners) for pattern in excluded):
                continue
            if included and not any(_matches(pattern, name, owners) for pattern in included):
                continue
            raise InputError(
                f"{name}: recomputed from other parameters (parametrization, weight norm or torch.nn.utils.prune), "
                f"so the mask would not hold; remove that first or exclude {path or weight!r}"
            )


def _only_others(pattern: Pattern, names: list[str]) -> InputError:
    """The refusal of a pattern that matches parameters, none of which is prunable by default."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return InputError(
        f"include: {_shown(pattern)} matches only parameters that are not prunable by default ({names[0]}{more}); give "
        "the exact names of those to prune"
    )


def _shown(pattern: Pattern) -> str:
    if isinstance(pattern, re.Pattern):
        return repr(pattern.pattern)
    return repr(pattern if isinstance(pattern, str) else pattern.__name__)


def _no_match(option: str, pattern: Pattern, what: str, names: Iterable[str]) -> InputError:
    if isinstance(pattern, str):
        return InputError(f"{option}: {unknown_name(what, pattern, names)}")
    return InputError(f"{option}: {_shown(pattern)} matches no {what} of the model")
