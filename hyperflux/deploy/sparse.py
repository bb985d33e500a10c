"""Sparse execution where it wins: layers run from CSR form if this machine is measurably faster that way."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hyperflux.deploy.csr import CsrMatrix, SparseLinear, SparsePointwise
from hyperflux.errors import InputError
from hyperflux.io.ranges import count_in
from hyperflux.timing import MAX_ROUNDS, Turn, interleave

ROTATIONS = 15
"""Turns of a layer's two versions before one is chosen."""
CLEAR_MARGIN = 0.9
"""CSR is chosen where it takes at most this share of the dense layer's time."""
WORTH_TRYING = 0.5
"""Density above which CSR is not tried: float32 values and their indices would take more memory than dense."""

READERS = (nn.TransformerEncoderLayer,)
"""Modules that hand the weights of their layers to a kernel of their own."""


@dataclass(frozen=True)
class LayerChoice:
    """How one linear layer or 1×1 convolution runs, and why.

    `density` is the share of non-zero weights. The times are seconds on all the inputs that one call of the network
    brings to the layer; both are None where they were not measured. `reason` is a few words.
    """

    name: str
    density: float
    dense_seconds: float | None
    csr_seconds: float | None
    sparse: bool
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def sparsify(
    model: nn.Module, example_input: Tensor, rotations: int = ROTATIONS
) -> tuple[nn.Module, list[LayerChoice]]:
    """A copy of `model` for inference, its layers in CSR form where that is clearly faster at this batch size.

    Linear layers and 1×1 convolutions (one group, no padding) are candidates. Each is timed dense and as CSR, in
    rotation, on the inputs that reach it when the network sees `example_input`, with the threads that torch has now.
    Should the whole be no faster in the end, all stay dense. The copy is in evaluation mode and frozen; on other
    devices than the CPU it is dense. Raises InputError where the network can't take the example.
    """
    count_in("rotations", rotations, 1, MAX_ROUNDS)
    dense = copy.deepcopy(model).eval().requires_grad_(False)
    with torch.no_grad():
        read = {child for module in dense.modules() if isinstance(module, READERS) for child in module.children()}
        trials = {
            name: _Trial(module, rotations, module in read)
            for name, module in dense.named_modules()
            if _is_candidate(module)
        }
        _run_trials(dense, example_input, list(trials.values()))
        choices = [trial.choice(name) for name, trial in trials.items()]
        winners = [trials[choice.name] for choice in choices if choice.sparse]
        if not winners:
            return dense, choices
        sparse = with_layers(dense, {trial.layer: trial.csr for trial in winners if trial.csr})
        try:
            obstacle = "" if _faster(sparse, dense, example_input, rotations) else "the whole was no faster"
        except AttributeError as error:
            obstacle = f"the network reads what a CSR layer lacks ({error})"
    if not obstacle:
        return sparse, choices
    return dense, [replace(choice, sparse=False, reason=obstacle) if choice.sparse else choice for choice in choices]


def with_layers(model: nn.Module, versions: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """A copy of `model` in which some of its modules, under every name that they have, are replaced."""
    result = copy.deepcopy(model)
    for name, module in model.named_modules(remove_duplicate=False):
        if module in versions:
            if not name:
                return versions[module]
            owner, _, own_name = name.rpartition(".")
            setattr(result.get_submodule(owner), own_name, versions[module])
    return result


def _run_trials(dense: nn.Module, example_input: Tensor, trials: Sequence[_Trial]) -> None:
    """Time the layers, each when its inputs arrive: so no more than one layer's inputs are kept."""
    hooks = [trial.layer.register_forward_pre_hook(trial, with_kwargs=True) for trial in trials]
    try:
        dense(example_input)
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"example_input: the network can't take it ({reason}); give a batch of the network's own inputs"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()


def _is_candidate(module: nn.Module) -> bool:
    """Of exactly these types: a subclass may do something else with its weight."""
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
        return SparseLinear.of(layer)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return SparsePointwise.of(layer)


class _Trial:
    """A hook that times a layer's two versions on each input that arrives."""

    def __init__(self, layer: nn.Module, rotations: int, read: bool) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        self.layer, self.rotations = layer, rotations
        self.density = float(weight.count_nonzero()) / max(weight.numel(), 1)
        self.csr: CsrMatrix | None = None
        self.dense_seconds = self.csr_seconds = 0.0
        self.reason = "never called by itself"
        if weight.device.type != "cpu":
            self.reason = f"on {weight.device.type}; CSR is for the CPU"
        elif layer._forward_hooks or layer._forward_pre_hooks:
            self.reason = "has hooks, which would be lost"
        elif read:
            self.reason = "its owner reads its weight"
        elif self.density > WORTH_TRYING:
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
            self.csr, self.reason = None, f"torch has no CSR for it here ({str(error).splitlines()[0]})"
            return
        versions = {"dense": layer.forward, "csr": csr.forward}
        turns = {name: Turn.of(functools.partial(version, inputs)) for name, version in versions.items()}
        dense, sparse = interleave(turns, self.rotations)
        self.dense_seconds += dense.seconds
        self.csr_seconds += dense.seconds * sparse.ratio

    def choice(self, name: str) -> LayerChoice:
        """What the times say."""
        if self.csr is None or not self.dense_seconds:
            return LayerChoice(name, self.density, None, None, False, self.reason)
        wins = self.csr_seconds <= CLEAR_MARGIN * self.dense_seconds
        reason = "CSR is faster" if wins else "CSR is not clearly faster"
        return LayerChoice(name, self.density, self.dense_seconds, self.csr_seconds, wins, reason)


def _faster(sparse: nn.Module, dense: nn.Module, example_input: Tensor, rotations: int) -> bool:
    """Whether the whole network gains."""
    versions = {"dense": dense, "csr": sparse}
    turns = {name: Turn.of(functools.partial(network, example_input)) for name, network in versions.items()}
    return interleave(turns, rotations)[1].ratio < 1
