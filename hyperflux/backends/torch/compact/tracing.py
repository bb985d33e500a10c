"""Read a module into a graph of calls with torch.fx, and say what can't be read, where and why."""

from __future__ import annotations

import copy
import linecache
import os
import traceback
from collections.abc import Sequence
from itertools import islice, product

import torch
from torch import fx, nn

from hyperflux.backends.torch.arguments import other_than_dense
from hyperflux.backends.torch.compact.equivalence import outputs_match
from hyperflux.backends.torch.compact.execution import CALL_ERRORS, Inputs, tensors
from hyperflux.backends.torch.compact.tracer import SizeTracer, UnreadableError, user_line
from hyperflux.backends.torch.compact.unpacking import UnsupportedCallError, unpack_transformers
from hyperflux.backends.torch.selection import unwrap
from hyperflux.errors import InputError

MOST_CHOICES = 8
"""Ways through branches that depend on sizes that are tried, at most."""
WAY_OUT = "write it without branches on values, or move it into a submodule, which is then kept as it is"


def prepared(model: nn.Module) -> nn.Module:
    """Return a copy of a module on the CPU, in evaluation mode, without wrappers such as torch.compile's.

    Raises:
        InputError: It is TorchScript or from torch.export, has hooks or a `forward` of its own, or can't
            be copied.
    """
    model = unwrap(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("compact: torch.fx can't read TorchScript; give the module that it was made from")
    if isinstance(model, fx.GraphModule) and any("_guards" in name or "_in_spec" in name for name in vars(model)):
        raise InputError("compact: a module of torch.export has fixed sizes; give the module that it was made from")
    if model._forward_hooks or model._forward_pre_hooks or "forward" in vars(model):
        raise InputError(
            "compact: the module has hooks or an overridden forward, which compaction would lose; remove them"
        )
    try:
        copies: dict[int, object] = {}
        for module in reversed(list(model.modules())):
            if unwrap(module) is not module:
                copies[id(module)] = copy.deepcopy(unwrap(module), copies)
        return copy.deepcopy(model, copies).cpu().eval()
    except Exception as error:  # copying runs the user's own code, which may raise anything
        raise InputError(f"compact: the module can't be copied ({_one_line(error)})") from error


def checked_example(model: nn.Module, inputs: Inputs) -> Inputs:
    """Return the inputs on the CPU. Raises InputError unless they are tensors that a module takes."""
    if not all(isinstance(x, torch.Tensor) and x.numel() for x in inputs):
        raise InputError(
            "compact: example_input must be a non-empty tensor, or a tuple of non-empty tensors; for other inputs, "
            "give a module that takes tensors and calls yours"
        )
    if other := next(filter(None, map(other_than_dense, inputs)), ""):
        raise InputError(f"compact: example_input is {other}; give a dense tensor (batch, ...)")
    try:
        on_cpu = tuple(x.cpu() for x in inputs)
        _outputs(model, on_cpu)
    except CALL_ERRORS as error:
        raise InputError(f"compact: the module can't take the example input ({_one_line(error)})") from error
    return on_cpu


def traced(
    model: nn.Module, inputs: int, examples: Sequence[Inputs] = (), left_alone: dict[str, str] | None = None
) -> fx.GraphModule:
    """Trace a prepared module.

    torch's packed transformer modules are rewritten as ordinary layers first. Where the network calls them in an
    unsupported way (with a mask, say), they stay single calls. So does a submodule that torch.fx can't read.

    Args:
        model: The module; it stays as it is.
        inputs: Number of positional arguments that the graph takes.
        examples: Inputs of several sizes. Without any, a forward may not branch on sizes.
        left_alone: Takes, by path, the reason for each submodule that stays a single call.

    Returns:
        The graph module. It gives the module's outputs for all examples, and loads where this package is not installed.

    Raises:
        InputError: torch.fx can't trace the module, or what it traces gives other outputs.
    """
    if isinstance(model, fx.GraphModule):
        return copy.deepcopy(model)
    expected = [_outputs(model, example) for example in examples]
    if not all(expected):
        raise InputError("compact: the module must return a tensor, or a tuple, list or dict with tensors")
    refusals: list[InputError] = []
    for unpack in (True, False):
        try:
            copied = unpack_transformers(copy.deepcopy(model)) if unpack else copy.deepcopy(model)
            found, leaves = _traced(copied, inputs, examples, expected)
        except UnsupportedCallError:
            continue
        except InputError as refusal:
            refusals.append(refusal)
        else:
            (left_alone if left_alone is not None else {}).update(leaves)
            return found
    raise refusals[-1]


def _traced(
    model: nn.Module, inputs: int, examples: Sequence[Inputs], expected: list[list[torch.Tensor]]
) -> tuple[fx.GraphModule, dict[str, str]]:
    """Trace a module, with other choices at branches that depend on sizes until the outputs are the module's own."""
    found, tracer, leaves = _trace_once(copy.deepcopy(model), inputs, examples, {})
    sites = sorted(tracer.sites)
    for chosen in islice(product((True, False), repeat=len(sites)), 1, MOST_CHOICES):
        if _gives(found, examples, expected, exactly=bool(sites)):
            break
        choices = dict(zip(sites, chosen, strict=True))
        found, tracer, leaves = _trace_once(copy.deepcopy(model), inputs, examples, choices)
    if not _gives(found, examples, expected, exactly=bool(sites)):
        if not _gives(model, examples, expected, exactly=True):
            raise InputError(
                "compact: the module is random in evaluation mode or changes its own state: called again with the same "
                "input it gives other outputs, so they can't be compared"
            )
        if sites:
            reason = f"{_place(sites[0])}it branches on a size, and neither branch is right for every size of input"
            raise _unreadable(model, reason)
        raise _unreadable(
            model,
            "its graph gives other outputs; forward depends on types, settings of torch or its own changing state",
        )
    return found, leaves


def _trace_once(
    model: nn.Module, inputs: int, examples: Sequence[Inputs], choices: dict[tuple[str, int], bool]
) -> tuple[fx.GraphModule, SizeTracer, dict[str, str]]:
    """Trace a module; each submodule that can't be read becomes a single call."""
    leaves: dict[str, str] = {}
    while True:
        tracer = SizeTracer(inputs, examples, list(leaves), choices)
        try:
            graph = tracer.trace(model)
        except UnsupportedCallError:
            raise
        except Exception as error:  # the tracer runs the user's own code, which may raise anything
            path, reason = tracer.unreadable_path(), _reason(error)
            if path:
                leaves[path] = f"torch.fx can't trace it: {reason}"
                continue
            causes = (f"; in {name}, {why}" for name, why in leaves.items() if reason not in why)
            inner = next(causes, "")
            raise _unreadable(model, reason + inner) from error
        graph._tracer_cls = None  # otherwise a saved module would need this package to load
        return fx.GraphModule(model, graph, type(model).__name__), tracer, leaves


def _unreadable(model: nn.Module, reason: str) -> InputError:
    return InputError(f"compact: torch.fx can't trace this {type(model).__name__} ({reason}); {WAY_OUT}")


def _gives(module: nn.Module, examples: Sequence[Inputs], expected: list[list[torch.Tensor]], exactly: bool) -> bool:
    """Return whether a module gives the expected outputs, exactly or up to rounding."""
    match = _equal if exactly else outputs_match
    try:
        found = [_outputs(module, example) for example in examples]
    except CALL_ERRORS:
        return False
    return all(
        len(given) == len(wanted) and all(map(match, given, wanted))
        for given, wanted in zip(found, expected, strict=True)
    )


def _equal(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return found.shape == wanted.shape and torch.equal(found.nan_to_num(), wanted.nan_to_num())


def _outputs(module: nn.Module, inputs: Inputs) -> list[torch.Tensor]:
    with torch.no_grad():
        return tensors(module(*(x.clone() for x in inputs)))


def _reason(error: Exception) -> str:
    """Return what can't be read, and where."""
    frames = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)]
    text = str(error) if isinstance(error, UnreadableError) else _one_line(error)
    return f"{_place(user_line(frames))}{text}"


def _place(site: tuple[str, int]) -> str:
    file, line = site
    code = linecache.getline(file, line).strip() if line else ""
    return f"line {line} of {os.path.basename(file)}, {code[:100]!r}: " if code else ""


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
