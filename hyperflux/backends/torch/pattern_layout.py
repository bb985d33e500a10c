"""N:M patterns on torch's weights: along which dimension the groups lie, and how many weights they leave (E18)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hyperflux.errors import InputError
from hyperflux.gates.kinds import Pattern

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Inputs:
    """Where the inputs of a weight lie.

    Attributes:
        dim: The dimension.
        length: Inputs in a row, of which groups are made.
        sections: Rows that follow each other in the dimension: the groups of a transposed convolution.
    """

    dim: int
    length: int
    sections: int = 1

    @classmethod
    def of(cls, name: str, parameter: Tensor, model: nn.Module) -> Inputs:
        """The inputs of a parameter of a model. Raises InputError if it has a single dimension."""
        if parameter.ndim < 2:
            raise InputError(f"{name}: has no dimension of inputs for gates of a pattern; exclude it")
        for module in model.modules():
            if isinstance(module, _TRANSPOSED) and module._parameters.get("weight") is parameter:
                return cls(0, len(parameter) // module.groups, module.groups)
        return cls(1, parameter.shape[1])

    def rows(self, tensor: Tensor) -> Tensor:
        """A view of the weight or a tensor like it, (..., length)."""
        return torch.unflatten(tensor, self.dim, (self.sections, self.length)).movedim(self.dim + 1, -1)

    def kept(self, pattern: Pattern) -> int:
        """Weights that a pattern leaves of a row."""
        whole, rest = divmod(self.length, pattern.group)
        return whole * pattern.kept + min(rest, pattern.kept)

    def words(self, pattern: Pattern) -> str:
        """What a pattern means for the weight."""
        inputs = f"{self.length:,} input{'s' if self.length > 1 else ''} (dimension {self.dim})"
        if self.length <= pattern.kept:
            return f"{inputs}, too few for {pattern}: all stay"
        if self.length < pattern.group:
            return f"{inputs}, fewer than {pattern.group}: {pattern.kept} of them stay"
        rest = self.length % pattern.group
        last = f", {min(rest, pattern.kept)} of the last {rest}" if rest else ""
        return f"{pattern} along {inputs}{last}"


@dataclass(frozen=True)
class PatternLayout:
    """The pattern of a network's prunable weights.

    Attributes:
        pattern: N:M.
        inputs: The inputs of every prunable parameter by name.
        total: Weights of all of them.
        kept: Weights that the pattern leaves: N of every group, of a shorter one min(N, its length).
    """

    pattern: Pattern
    inputs: dict[str, Inputs]
    total: int
    kept: int

    @classmethod
    def of(cls, model: nn.Module, prunable: Mapping[str, Tensor], pattern: Pattern) -> PatternLayout:
        """The pattern on the prunable parameters of a model. Raises InputError if one has no inputs."""
        inputs = {name: Inputs.of(name, parameter, model) for name, parameter in prunable.items()}
        sizes = {name: parameter.numel() for name, parameter in prunable.items()}
        kept = sum(sizes[name] // own.length * own.kept(pattern) for name, own in inputs.items())
        return cls(pattern, inputs, sum(sizes.values()), kept)

    def described(self) -> dict[str, str]:
        """What the pattern means for each parameter, by name."""
        return {name: own.words(self.pattern) for name, own in self.inputs.items()}


def groups_of(rows: Tensor, group: int) -> list[Tensor]:
    """Views of rows (..., length) as groups (..., count, M), and of the last, shorter ones (..., 1, rest)."""
    whole = rows.shape[-1] // group * group
    parts = []
    if whole:
        parts.append(torch.unflatten(rows[..., :whole], -1, (whole // group, group)))
    if whole < rows.shape[-1]:
        parts.append(rows[..., whole:].unsqueeze(-2))
    return parts
