"""Pick the rule of a call, by the exact type of a module or the name of a function or method."""

from __future__ import annotations

from typing import Any

from torch import fx, nn
from torch.nn.utils import parametrize

from hyperflux.backends.torch.compact.abstract_tensor import AbstractTensor
from hyperflux.backends.torch.compact.attention import Attention, MatrixProduct
from hyperflux.backends.torch.compact.batch_norm import BatchNorm, FunctionalBatchNorm
from hyperflux.backends.torch.compact.data_movement import DataMovement, is_data_movement
from hyperflux.backends.torch.compact.layer_types import layer_type
from hyperflux.backends.torch.compact.layers import NORMS, TRANSPOSED, GroupedConvolution, LinearOrConvolution
from hyperflux.backends.torch.compact.nodes import call_name, is_getitem
from hyperflux.backends.torch.compact.ops import Elementwise, Op, Opaque, Reduction, Source
from hyperflux.backends.torch.compact.trace import Trace

ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh,
    nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink,
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
"""Modules that are elementwise in evaluation mode."""
ELEMENTWISE = {
    "add", "sub", "mul", "truediv", "div", "neg", "iadd", "isub", "imul", "itruediv", "subtract", "multiply", "divide",
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "tanh", "hardtanh",
    "hardswish", "hardsigmoid", "softplus", "softsign", "logsigmoid", "exp", "sqrt", "rsqrt", "abs", "square", "clamp",
    "float", "double", "half", "bfloat16", "to", "type", "type_as", "contiguous", "clone", "detach",
}  # fmt: skip
"""Elementwise functions and methods; a trailing underscore marks their in-place versions."""
DROPOUTS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "stochastic_depth"}
DATA_MOVEMENT = {
    "view", "reshape", "flatten", "permute", "transpose", "swapaxes", "movedim", "t", "unsqueeze", "squeeze", "chunk",
    "split", "unbind", "narrow", "expand", "cat", "concat", "stack", "getitem", "pad", "index_select", "roll", "flip",
    "pixel_shuffle", "unflatten",
}  # fmt: skip
POOL_MODULES = {
    kind: int(kind.__name__[-2])
    for kind in (
        nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
        nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    )
}  # fmt: skip
"""Pooling modules, and the number of last dimensions along which they pool."""
POOL_FUNCTIONS = {
    f"{kind}_pool{dims}d": dims for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for dims in (1, 2, 3)
}
REDUCTIONS = {"mean", "sum", "amax", "amin", "softmax", "log_softmax", "normalize"}
"""Functions that reduce or normalize along the dimensions `dim`, along all without it."""
PRUNABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)


def rule(trace: Trace, node: fx.Node) -> Op:
    """Return the rule of a node that gives tensors.

    May raise any of `execution.CALL_ERRORS`, where a call does not take what its rule tries; it is opaque then.
    """
    if node.op in ("placeholder", "get_attr"):
        return Source(trace, node)
    if node.op == "call_module":
        return _module_rule(trace, node)
    first = trace.tensor_of(node.args[0]) if node.args else None
    if is_getitem(node) and first is None:
        return Op(trace, node)  # picks a tuple's part: the same tensors as its source's
    found = _function_rule(trace, node, first) if _is_torch_function(node) else None
    return found or Opaque(trace, node, f"compaction does not support {call_name(node)}")


def _function_rule(trace: Trace, node: fx.Node, first: AbstractTensor | None) -> Op | None:
    """Return the rule of a function or method of torch, or None."""
    name = call_name(node).strip("_")
    if name in DATA_MOVEMENT and _adds_only_constants(node):
        return DataMovement(trace, node)
    if trace.tensor_of(node) is None:
        return None
    if name in ELEMENTWISE or (name in DROPOUTS and not _is_training(node)):
        return Elementwise(trace, node)
    if name in ("matmul", "bmm") and len(trace.operands(node)) == 2:
        return MatrixProduct(trace, node)
    if name == "scaled_dot_product_attention" and Attention.supports(node):
        return Attention(trace, node)
    if first is None:
        return None
    if name in POOL_FUNCTIONS and not node.kwargs.get("return_indices"):
        return Reduction(trace, node, range(-POOL_FUNCTIONS[name], 0))
    if name == "interpolate":
        return Reduction(trace, node, range(2, len(first.shape)))
    if name in REDUCTIONS:
        return Reduction(trace, node, _dims(trace, node, len(first.shape)))
    if name == "layer_norm":
        return Reduction(trace, node, range(-len(_tuple(trace.resolve(node.args[1]))), 0))
    if name == "batch_norm" and FunctionalBatchNorm.supports(node):
        return FunctionalBatchNorm(trace, node)
    return None


def _is_torch_function(node: fx.Node) -> bool:
    """Return whether a call is a method, or a function of torch or Python and not a user's of the same name."""
    home = getattr(node.target, "__module__", None)
    known = ("torch", "_operator", "operator", "torchvision")
    return node.op == "call_method" or home is None or home.split(".")[0] in known


def _module_rule(trace: Trace, node: fx.Node) -> Op:
    module: Any = trace.submodule(node)
    kind, operands = layer_type(module), trace.operands(node)
    if node.target in trace.unreadable:
        return Opaque(trace, node, trace.unreadable[str(node.target)])
    if module._forward_hooks or module._forward_pre_hooks or parametrize.is_parametrized(module):
        return Opaque(trace, node, "it has hooks or a parametrization")
    if len(operands) != 1 or trace.tensor_of(node) is None:
        return Opaque(trace, node, f"compaction does not support {kind.__name__}")
    if kind in ACTIVATIONS or (kind is nn.PReLU and module.num_parameters == 1):
        return Elementwise(trace, node)
    if kind in POOL_MODULES and not getattr(module, "return_indices", False):
        return Reduction(trace, node, range(-POOL_MODULES[kind], 0))
    if kind in (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d):
        return Reduction(trace, node, range(2, len(operands[0].shape)))
    if kind in (nn.Softmax, nn.LogSoftmax) and module.dim is not None:
        return Reduction(trace, node, [module.dim])
    if kind is nn.LayerNorm:
        return Reduction(trace, node, range(-len(module.normalized_shape), 0))
    if is_data_movement(kind):
        return DataMovement(trace, node)
    if kind in PRUNABLE or kind in NORMS:
        return _layer_rule(trace, node, module)
    return Opaque(trace, node, f"compaction does not support {kind.__name__}")


def _layer_rule(trace: Trace, node: fx.Node, module: Any) -> Op:
    """Return the rule of a layer with weights; opaque if something else depends on its shape."""
    kind = layer_type(module)
    called = [n for n in trace.graph.nodes if n.op == "call_module"]
    calls = [n for n in called if any(part is module for part in trace.submodule(n).modules())]
    own_parameters = list(module.parameters())
    own = {id(parameter) for parameter in own_parameters}
    others = [m for m in trace.module.modules() if m is not module and own & {id(p) for p in m._parameters.values()}]
    read = [n for n in trace.graph.nodes if n.op == "get_attr" and str(n.target).startswith(f"{node.target}.")]
    if len(calls) > 1 or others or read:
        return Opaque(trace, node, "its weights are used more than once")
    if not all(parameter.numel() for parameter in own_parameters):
        return Opaque(trace, node, "it has a parameter of 0 elements")
    if kind in NORMS and module.running_mean is None:
        return Opaque(trace, node, "it has no running statistics")
    if kind in NORMS:
        return BatchNorm(trace, node)
    if kind is not nn.Linear and len(trace.operands(node)[0].shape) != len(module.kernel_size) + 2:
        return Opaque(trace, node, "its input has no batch dimension")
    if kind is nn.Linear or module.groups == 1:
        return LinearOrConvolution(trace, node)
    if kind in TRANSPOSED:
        return Opaque(trace, node, "it is a transposed convolution of several groups")
    return GroupedConvolution(trace, node)


def _adds_only_constants(node: fx.Node) -> bool:
    """Return whether a call is no padding, or one that pads with a constant."""
    mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
    return call_name(node) != "pad" or str(mode) == "constant"


def _is_training(node: fx.Node) -> bool:
    """Return whether a dropout is active; tracing in evaluation mode records its flag as False."""
    flags = [value for value in (*node.args, *node.kwargs.values()) if isinstance(value, bool)]
    return not flags or bool(flags[0])


def _dims(trace: Trace, node: fx.Node, count: int) -> list[int]:
    """Return the dimensions of a reduction, all of `count` if it names none."""
    named = node.kwargs.get("dim", node.kwargs.get("axis", node.args[1] if len(node.args) > 1 else None))
    found = trace.resolve(named)
    return list(range(count)) if found is None or found == () else list(_tuple(found))


def _tuple(value: object) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)  # type: ignore[return-value]
