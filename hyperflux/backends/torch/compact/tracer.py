"""A tracer for torch.fx that knows what the sizes are, and sees what a graph of calls would lose."""

from __future__ import annotations

import inspect
import operator
import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from hyperflux.backends.torch.compact.execution import Inputs, execute_node
from hyperflux.backends.torch.compact.global_state import changed_settings, global_state
from hyperflux.backends.torch.compact.layer_types import layer_type
from hyperflux.backends.torch.compact.nodes import SHAPE_READS, is_getitem, read_name

Site = tuple[str, int]
"""File and line of a branch."""


class UnreadableError(TraceError):
    """A forward does what a graph of calls can't show; the message says what."""


class SizedProxy(fx.Proxy):
    """A value in the graph. It is a number for Python where that number is the same for every size of input."""

    def __index__(self) -> int:
        """Return the number, as for `range`."""
        return int(self.tracer.number(self))  # type: ignore[attr-defined]

    __int__ = __index__

    def __float__(self) -> float:
        """Return the number."""
        return float(self.tracer.number(self))  # type: ignore[attr-defined]

    def __len__(self) -> int:
        """Return the length of a tuple, or of a first dimension that has one size."""
        return self.tracer.length(self)  # type: ignore[attr-defined, no-any-return]


class SizeTracer(fx.Tracer):
    """Traces `forward`, and executes the graph so far wherever Python asks for a size.

    A branch on sizes is taken as in all executions. Where it could be taken otherwise in another size, the graph
    checks that it is not. Where executions differ, `choices` says which way to go, and `sites` lists the places.

    Attributes:
        sites: Where branches were taken by choice.
    """

    def __init__(
        self, inputs: int, examples: Sequence[Inputs], leaves: Sequence[str], choices: dict[Site, bool]
    ) -> None:
        """Prepare for one trace.

        Args:
            inputs: Number of positional arguments that `forward` is called with; the others keep their defaults.
            examples: The inputs of every execution.
            leaves: Paths of modules that are kept as single calls.
            choices: By place, which way to go; true for places that are not listed.
        """
        super().__init__()
        self._count, self._leaves, self._choices = inputs, leaves, choices
        self._results: list[dict[fx.Node, Any]] = [{} for _ in examples]
        self._inputs = [iter(example) for example in examples]
        self._executing = False
        self.sites: set[Site] = set()

    def unreadable_path(self) -> str:
        """Return the innermost module that was being read and is not yet kept as a single call; empty for the root."""
        paths = [name for name, _ in self.module_stack.values() if name not in self._leaves]
        return paths[-1] if paths else ""

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Return the function to trace, and the module and one placeholder per input as its arguments."""
        self._state = global_state()
        count = self._count
        parameters = inspect.signature(root_fn).parameters.values()
        named = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD][1:]
        names = [*named, *(f"input_{number}" for number in range(len(named), count))][:count]
        return root_fn, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in names)]

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Add a call to the graph, unless it is made under settings that the graph does not hold."""
        if not self._executing and (changed := changed_settings(self._state)):
            raise UnreadableError(f"forward changes {' and '.join(changed)}, which the graph would lose")
        return super().create_node(*args, **kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return what stands for a node's result."""
        return SizedProxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module is one call: layers of torch and their plain subclasses, and what can't be read."""
        if module_qualified_name in self._leaves or layer_type(m) is not type(m):
            return True
        return bool(super().is_leaf_module(m, module_qualified_name))

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call a module, really where the graph so far is executed."""
        return forward(*args, **kwargs) if self._executing else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return an attribute of a module, a parameter itself where the graph so far is executed."""
        return attr_val if self._executing else super().getattr(attr, attr_val, parameter_proxy_cache)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Decide a branch: by the sizes, if it depends on nothing else."""
        values = [bool(value) for value in self._scalars(obj.node, "branches on")]
        if len(set(values)) > 1:
            site = _site()
            self.sites.add(site)
            return self._choices.get(site, True)
        if not self._is_fixed(obj.node):
            holds = self.create_proxy("call_function", operator.truth if values[0] else operator.not_, (obj,), {})
            text = f"compacted for inputs whose size goes the other way at line {_site()[1]} of forward"
            self.create_proxy("call_function", torch._assert, (holds, text), {})
        return values[0]

    def number(self, obj: fx.Proxy) -> Any:
        """Return a number that Python asks for."""
        values = self._scalars(obj.node, "needs the number behind")
        if len(set(values)) > 1 or not self._is_fixed(obj.node):
            raise UnreadableError("it needs the number behind a size that differs between inputs")
        return values[0]

    def length(self, obj: fx.Proxy) -> int:
        """Return the number of parts of a tuple, or of slices of a tensor."""
        lengths = {len(value) for value in self._values(obj.node)}
        if len(lengths) > 1:
            raise UnreadableError("it loops over parts whose number differs between inputs")
        return lengths.pop()

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Iterate over the parts of a tuple."""
        if not all(isinstance(value, tuple | list | Tensor) for value in self._values(obj.node)):
            raise UnreadableError(f"it loops over a {type(self._values(obj.node)[0]).__name__}")
        return (obj[number] for number in range(self.length(obj)))  # type: ignore[index]

    def _scalars(self, node: fx.Node, use: str) -> list[Any]:
        values = self._values(node)
        if any(isinstance(value, Tensor) for value in values) or self._reads_values(node):
            raise UnreadableError(f"it {use} the values of a tensor")
        return values

    def _values(self, node: fx.Node) -> list[Any]:
        """Return a node's result in every execution."""
        if not self._results:
            raise UnreadableError("it branches on a size or a value")
        self._executing = True
        state = torch.get_rng_state()
        try:
            for results, inputs in zip(self._results, self._inputs, strict=True):
                for other in self.graph.nodes:
                    if other not in results:
                        with torch.no_grad():
                            results[other] = execute_node(self.root, other, results, inputs)
                    if other is node:
                        break
            return [results[node] for results in self._results]
        finally:
            self._executing = False
            torch.set_rng_state(state)

    def _is_fixed(self, node: fx.Node) -> bool:
        """Return whether a scalar is the same for inputs of every size: all that it is computed from is."""
        values = [results[node] for results in self._results]
        if isinstance(values[0], Tensor):
            return False
        from_tensor = any(isinstance(self._results[0].get(source), Tensor) for source in node.all_input_nodes)
        if from_tensor or is_getitem(node):
            return all(value == values[0] for value in values)
        return all(self._is_fixed(source) for source in node.all_input_nodes)

    def _reads_values(self, node: fx.Node) -> bool:
        """Return whether a scalar is computed from more than the shapes and kinds of tensors."""
        result = self._results[0]
        if any(isinstance(result[source], Tensor) for source in node.all_input_nodes):
            return read_name(node) not in SHAPE_READS
        return any(self._reads_values(source) for source in node.all_input_nodes)


def user_line(frames: Iterable[tuple[str, int]]) -> Site:
    """Return the innermost of some frames, outermost first, that is neither torch's nor this package's."""
    ours = (os.path.dirname(torch.__file__), os.path.dirname(__file__))
    found = ("", 0)
    for file, line in frames:
        if not file.startswith((*ours, "<frozen", "<eval_with_key")):
            found = (file, line)
    return found


def _site() -> Site:
    """Return the place in the user's code that is being traced."""
    return user_line((frame.filename, frame.lineno or 0) for frame in traceback.extract_stack())
