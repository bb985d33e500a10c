"""Which rule a call gets: by the exact type of a module, or the name of a function or method."""

from __future__ import annotations

from typing import Any

from torch import fx, nn
from torch.nn.utils import parametrize

from hyperflux.deploy.compact.attention import Attention, Product
from hyperflux.deploy.compact.layers import NORMS, TRANSPOSED, GroupedConvolution, Layer
from hyperflux.deploy.compact.movement import Movement, is_moving_module
from hyperflux.deploy.compact.norms import ChannelNorm, FunctionalNorm
from hyperflux.deploy.compact.ops import Elementwise, Fibers, Op, Opaque, Source
from hyperflux.deploy.compact.runs import Trace
from hyperflux.deploy.compact.slots import Slot
from hyperflux.deploy.compact.tracing import called, picks

ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh,
    nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink,
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
"""Modules of one element each in evaluation mode."""
ELEMENTWISE = {
    "add", "sub", "mul", "truediv", "div", "neg", "iadd", "isub", "imul", "itruediv", "subtract", "multiply", "divide",
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "tanh", "hardtanh",
    "hardswish", "hardsigmoid", "softplus", "softsign", "logsigmoid", "exp", "sqrt", "rsqrt", "abs", "square", "clamp",
    "float", "double", "half", "bfloat16", "to", "type", "type_as", "contiguous", "clone", "detach",
}  # fmt: skip
"""Functions and methods of one element each; with an underscore at the end they work in place."""
DROPOUTS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "stochastic_depth"}
MOVING = {
    "view", "reshape", "flatten", "permute", "transpose", "swapaxes", "movedim", "t", "unsqueeze", "squeeze", "chunk",
    "split", "unbind", "narrow", "expand", "cat", "concat", "stack", "getitem", "pad", "index_select", "roll", "flip",
    "pixel_shuffle",
}  # fmt: skip
POOLS = {
    kind: int(kind.__name__[-2])
    for kind in (
        nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
        nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    )
}  # fmt: skip
"""And the dimensions, the last ones, along which they pool."""
POOLING = {f"{kind}_pool{dims}d": dims for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for dims in (1, 2, 3)}
REDUCTIONS = {"mean", "sum", "amax", "amin", "softmax", "log_softmax", "normalize"}
"""Along the dimensions that `dim` names, all of them without it."""
CUTTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)


def rule(trace: Trace, node: fx.Node) -> Op:
    """The rule of a node that computes tensors."""
    if node.op in ("placeholder", "get_attr"):
        return Source(trace, node)
    if node.op == "call_module":
        return _of_module(trace, node)
    first = trace.slot(node.args[0]) if node.args else None
    if picks(node) and first is None:
        return Op(trace, node)  # a part of a tuple: the same tensors as its source's
    found = _of_function(trace, node, first) if _is_torchs(node) else None
    return found or Opaque(trace, node, f"{called(node)} is not known to compaction")


def _of_function(trace: Trace, node: fx.Node, first: Slot | None) -> Op | None:
    """The rule of a function or method of torch; None where there is none."""
    name = called(node).strip("_")
    if name in MOVING and _pads_with_constants(node):
        return Movement(trace, node)
    if trace.slot(node) is None:
        return None
    if name in ELEMENTWISE or (name in DROPOUTS and not _trains(node)):
        return Elementwise(trace, node)
    if name in ("matmul", "bmm") and len(trace.inputs(node)) == 2:
        return Product(trace, node)
    if name == "scaled_dot_product_attention" and Attention.plain(node):
        return Attention(trace, node)
    if first is None:
        return None
    if name in POOLING and not node.kwargs.get("return_indices"):
        return Fibers(trace, node, range(-POOLING[name], 0))
    if name == "interpolate":
        return Fibers(trace, node, range(2, len(first.shape)))
    if name in REDUCTIONS:
        return Fibers(trace, node, _dims(trace, node, len(first.shape)))
    if name == "layer_norm":
        return Fibers(trace, node, range(-len(_tuple(trace.number(node.args[1]))), 0))
    if name == "batch_norm" and FunctionalNorm.plain(trace, node):
        return FunctionalNorm(trace, node)
    return None


def _is_torchs(node: fx.Node) -> bool:
    """Whether a function is torch's or Python's own, and not a user's of the same name; methods are."""
    home = getattr(node.target, "__module__", None)
    known = ("torch", "_operator", "operator", "torchvision")
    return node.op == "call_method" or home is None or home.split(".")[0] in known


def _of_module(trace: Trace, node: fx.Node) -> Op:
    module: Any = trace.submodule(node)
    kind, slots = type(module), trace.inputs(node)
    if module._forward_hooks or module._forward_pre_hooks or parametrize.is_parametrized(module):
        return Opaque(trace, node, "it has hooks or a parametrization")
    if len(slots) != 1 or trace.slot(node) is None:
        return Opaque(trace, node, f"{kind.__name__} is not known to compaction")
    if kind in ACTIVATIONS or (kind is nn.PReLU and module.num_parameters == 1):
        return Elementwise(trace, node)
    if kind in POOLS and not getattr(module, "return_indices", False):
        return Fibers(trace, node, range(-POOLS[kind], 0))
    if kind is nn.Upsample:
        return Fibers(trace, node, range(2, len(slots[0].shape)))
    if kind in (nn.Softmax, nn.LogSoftmax) and module.dim is not None:
        return Fibers(trace, node, [module.dim])
    if kind is nn.LayerNorm:
        return Fibers(trace, node, range(-len(module.normalized_shape), 0))
    if is_moving_module(module):
        return Movement(trace, node)
    if kind in CUTTABLE or kind in NORMS:
        return _cuttable(trace, node, module)
    return Opaque(trace, node, f"{kind.__name__} is not known to compaction")


def _cuttable(trace: Trace, node: fx.Node, module: Any) -> Op:
    """A layer, unless something else depends on its shape."""
    kind = type(module)
    calls = [n for n in trace.graph.nodes if n.op == "call_module" and trace.submodule(n) is module]
    own = {id(parameter) for parameter in module.parameters()}
    others = [m for m in trace.module.modules() if m is not module and own & {id(p) for p in m._parameters.values()}]
    read = [n for n in trace.graph.nodes if n.op == "get_attr" and str(n.target).startswith(f"{node.target}.")]
    if len(calls) > 1 or others or read:
        return Opaque(trace, node, "its weights are used more than once")
    if kind in NORMS and module.running_mean is None:
        return Opaque(trace, node, "it keeps no statistics")
    if kind in NORMS:
        return ChannelNorm(trace, node)
    if kind is not nn.Linear and len(trace.inputs(node)[0].shape) != len(module.kernel_size) + 2:
        return Opaque(trace, node, "its input has no batch")
    if kind is nn.Linear or module.groups == 1:
        return Layer(trace, node)
    if kind in TRANSPOSED:
        return Opaque(trace, node, "a transposed convolution of groups")
    return GroupedConvolution(trace, node)


def _pads_with_constants(node: fx.Node) -> bool:
    """Whether a call that may be a padding takes what it adds from nowhere else."""
    mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
    return called(node) != "pad" or str(mode) == "constant"


def _trains(node: fx.Node) -> bool:
    """Whether a dropout drops; in evaluation mode its flag was recorded as False."""
    flags = [value for value in (*node.args, *node.kwargs.values()) if isinstance(value, bool)]
    return not flags or bool(flags[0])


def _dims(trace: Trace, node: fx.Node, count: int) -> list[int]:
    """The dimensions that a reduction names; all where it names none."""
    named = node.kwargs.get("dim", node.kwargs.get("axis", node.args[1] if len(node.args) > 1 else None))
    found = trace.number(named)
    return list(range(count)) if found is None or found == () else list(_tuple(found))


def _tuple(value: object) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)  # type: ignore[return-value]
