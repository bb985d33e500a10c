"""Run layers in CSR form where that is measurably faster on this machine."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hyperflux.backends.torch.arguments import example_taken, require_module, require_tensor
from hyperflux.deploy.csr import CsrMatrix, SparseLinear, SparsePointwise
from hyperflux.io.ranges import count_in
from hyperflux.timing import MAX_ROUNDS, Turn, interleave

ROTATIONS = 15
"""Interleaved timings of a layer's two versions before one is chosen."""
MAX_TIME_RATIO = 0.9
"""CSR is chosen where it takes at most this fraction of the dense layer's time."""
MAX_DENSITY = 0.5
"""Density above which CSR is not tried: float32 values and their indices would take more memory than dense."""

FUSED_MODULES = (nn.TransformerEncoderLayer,)
"""Modules that pass the weights of their layers to a fused kernel."""


@dataclass(frozen=True)
class LayerChoice:
    """How one linear layer or 1×1 convolution runs, and why.

    Attributes:
        name: The layer.
        density: Fraction of its weights that are not zero.
        dense_seconds: Seconds of the dense layer on all its inputs in one call of the network, None if not measured.
        csr_seconds: The same in CSR form.
        sparse: Whether it runs in CSR form.
        reason: A few words.
    """

    name: str
    density: float
    dense_seconds: float | None
    csr_seconds: float | None
    sparse: bool
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)


def sparsify(
    model: nn.Module, example_input: Tensor, rotations: int = ROTATIONS
) -> tuple[nn.Module, list[LayerChoice]]:
    """Copy a network for inference, with layers in CSR form where that is clearly faster at this batch size.

    Candidates are linear layers and 1×1 convolutions (one group, no padding). Each is timed dense and in CSR form,
    interleaved, on the inputs that reach it in a call of the network, with torch's current number of threads. If the
    whole network is then no faster, all layers stay dense.

    Args:
        model: The network; it stays as it is.
        example_input: Inputs (batch, ...); the choices hold for this batch size.
        rotations: Interleaved timings per layer.

    Returns:
        The copy, in evaluation mode and frozen, all dense unless on the CPU; and the choice for each candidate.

    Raises:
        InputError: The network can't take the example, or `rotations` is below 1.
    """
    rotations = count_in("rotations", rotations, 1, MAX_ROUNDS)
    require_module("model", model)
    require_tensor("example_input", example_input)
    dense = copy.deepcopy(model).eval().requires_grad_(False)
    with torch.no_grad():
        owners = [module for module in dense.modules() if isinstance(module, FUSED_MODULES)]
        fused = {child for owner in owners for child in owner.children()}
        trials = {
            name: _Trial(module, rotations, module in fused)
            for name, module in dense.named_modules()
            if _is_candidate(module)
        }
        _run_trials(dense, example_input, list(trials.values()))
        choices = [trial.choice(name) for name, trial in trials.items()]
        winners = [trials[choice.name] for choice in choices if choice.sparse]
        if not winners:
            return dense, choices
        sparse = replace_modules(dense, {trial.layer: trial.csr for trial in winners if trial.csr})
        try:
            obstacle = "" if _is_faster(sparse, dense, example_input, rotations) else "the whole network was no faster"
        except AttributeError as error:
            obstacle = f"the network reads an attribute that CSR layers lack ({error})"
    if not obstacle:
        return sparse, choices
    return dense, [replace(choice, sparse=False, reason=obstacle) if choice.sparse else choice for choice in choices]


def replace_modules(model: nn.Module, versions: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Copy a network with some of its modules replaced.

    Args:
        model: The network; it stays as it is.
        versions: Replacements by original module. Each is used, not copied, under every name of the original.

    Returns:
        The copy; if `model` itself is replaced, its replacement.
    """
    result = copy.deepcopy(model)
    for name, module in model.named_modules(remove_duplicate=False):
        if module in versions:
            if not name:
                return versions[module]
            owner, _, own_name = name.rpartition(".")
            setattr(result.get_submodule(owner), own_name, versions[module])
    return result


def _run_trials(dense: nn.Module, example_input: Tensor, trials: Sequence[_Trial]) -> None:
    """Time each layer when its inputs arrive, so that only one layer's inputs are held at a time."""
    hooks = [trial.layer.register_forward_pre_hook(trial, with_kwargs=True) for trial in trials]
    try:
        with example_taken():
            dense(example_input)
    finally:
        for hook in hooks:
            hook.remove()


def _is_candidate(module: nn.Module) -> bool:
    """Return whether CSR can run a module; exact types only, since a subclass may use its weight differently."""
    if type(module) is nn.Linear:
        return True
    return (
        isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        and type(module) in (nn.Conv1d, nn.Conv2d, nn.Conv3d)
        and module.groups == 1
        and set(module.kernel_size) == {1}
        and (module.padding in ("valid", "same") or set(module.padding) == {0})
    )


def _csr_version(layer: nn.Module) -> CsrMatrix:
    if isinstance(layer, nn.Linear):
        return SparseLinear.from_dense(layer)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return SparsePointwise.from_dense(layer)


class _Trial:
    """A hook that times a layer's two versions on each input that arrives."""

    def __init__(self, layer: nn.Module, rotations: int, is_fused: bool) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        self.layer, self.rotations = layer, rotations
        self.density = float(weight.count_nonzero()) / max(weight.numel(), 1)
        self.csr: CsrMatrix | None = None
        self.dense_seconds = self.csr_seconds = 0.0
        self.reason = "the network never calls it"
        if weight.device.type != "cpu":
            self.reason = f"on {weight.device.type}; CSR layers need the CPU"
        elif layer._forward_hooks or layer._forward_pre_hooks:
            self.reason = "has hooks, which CSR would lose"
        elif is_fused:
            self.reason = "a fused kernel reads its weight"
        elif self.density > MAX_DENSITY:
            self.reason = "too dense to try"
        else:
            self.csr = _csr_version(layer).eval()

    def __call__(self, layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        """Time both versions on the input of this call."""
        inputs, csr = args[0] if args else kwargs["input"], self.csr
        if csr is None or not inputs.numel():
            return
        try:
            csr(inputs)
        except RuntimeError as error:  # a dtype or a build of torch without these kernels
            self.csr, self.reason = None, f"torch can't run it in CSR form ({str(error).splitlines()[0]})"
            return
        versions = {"dense": layer.forward, "csr": csr.forward}
        turns = {name: Turn.of(functools.partial(version, inputs)) for name, version in versions.items()}
        dense, sparse = interleave(turns, self.rotations)
        self.dense_seconds += dense.seconds
        self.csr_seconds += dense.seconds * sparse.ratio

    def choice(self, name: str) -> LayerChoice:
        """Return the choice that the times give."""
        if self.csr is None or not self.dense_seconds:
            return LayerChoice(name, self.density, None, None, False, self.reason)
        wins = self.csr_seconds <= MAX_TIME_RATIO * self.dense_seconds
        reason = "CSR is faster" if wins else "CSR is not clearly faster"
        return LayerChoice(name, self.density, self.dense_seconds, self.csr_seconds, wins, reason)


def _is_faster(sparse: nn.Module, dense: nn.Module, example_input: Tensor, rotations: int) -> bool:
    """Return whether the whole network is faster."""
    versions = {"dense": dense, "csr": sparse}
    turns = {name: Turn.of(functools.partial(network, example_input)) for name, network in versions.items()}
    return interleave(turns, rotations)[1].ratio < 1
