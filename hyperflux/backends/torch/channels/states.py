"""Gates of channels under training: latent weights of every parameter, one t for all weights that read a channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hyperflux import spec
from hyperflux.backends.torch.channels.layout import ChannelLayout, Side
from hyperflux.backends.torch.kernels.plain import ParameterUpdate, any_differs
from hyperflux.backends.torch.presence import Presence
from hyperflux.backends.torch.presence_store import Saved
from hyperflux.backends.torch.weight_state import same_layout
from hyperflux.gates.costs import ALWAYS, WholeCost
from hyperflux.schedules.base import LayerCount, Ranking
from hyperflux.seeding import generator
from hyperflux.spec import initial_presence


@dataclass
class ChannelPresence(Presence):
    """t of all channels of a network, tensors of shape (J,), or of one layer's: views of these.

    Attributes:
        presence: t.
        first: Adam's first moment of t.
        second: Adam's second moment of t.
        pressure_mean: Contribution of pressure to `first`.
        prices: c/C of E16, each gate's share of the price, since the last control step.
        steps: Steps of the moments.
        dead_dropped: Whether masks also remove the weights that make closed channels.
    """

    presence: Tensor
    first: Tensor
    second: Tensor
    pressure_mean: Tensor
    prices: Tensor
    steps: int = 0
    dead_dropped: bool = False

    @classmethod
    def of(cls, presence: Tensor) -> ChannelPresence:
        """The presence parameters before the first step, without prices."""
        zeros = torch.zeros_like(presence)
        return cls(presence, zeros, zeros.clone(), zeros.clone(), zeros.clone())

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return {
            "presence": self.presence,
            "first": self.first,
            "second": self.second,
            "pressure_mean": self.pressure_mean,
            "prices": self.prices,
        }

    def numbers(self) -> dict[str, float]:
        """The count of steps."""
        return {"steps": self.steps}

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, float]) -> None:
        """Take saved values."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])
        self.steps = int(numbers["steps"])

    def part(self, channels: slice) -> ChannelPresence:
        """The presence parameters of some channels, as views."""
        presence, first, second, pressure_mean, prices = (tensor[channels] for tensor in self.tensors().values())
        return ChannelPresence(presence, first, second, pressure_mean, prices, self.steps)

    def move_to(self, device: torch.device) -> None:
        """Move all tensors to a device."""
        for name, tensor in self.tensors().items():
            setattr(self, name, tensor.to(device))


@dataclass
class _Slices:
    """The gates of a parameter's slices along a dimension.

    Attributes:
        dim: The dimension.
        gates: The gate of each slice; J where it has none.
    """

    dim: int
    gates: Tensor

    @classmethod
    def of(cls, side: Side | None, count: int, like: Tensor) -> _Slices | None:
        """The gates of a side, on the device of a tensor; None if there are none of `count` gates."""
        if side is None or (side.gates == ALWAYS).all():
            return None
        gates = np.where(side.gates == ALWAYS, count, side.gates)
        return cls(side.dim, torch.from_numpy(gates).to(like.device))

    def open(self, mask: Tensor, rank: int) -> Tensor:
        """The mask of slices, to be broadcast over a tensor of `rank` dimensions; `mask` is (J + 1,)."""
        shape = [-1 if dim == self.dim else 1 for dim in range(rank)]
        return mask.to(self.gates.device)[self.gates].view(shape)


@dataclass
class ReaderState:
    """What is kept of one parameter, in at least float32.

    Attributes:
        latent: w.
        channels: The presence parameters of the network.
        reads: The gates of the slices that read channels; None if none has a gate.
        makes: The gates of the slices that make channels, likewise.
    """

    latent: Tensor
    channels: ChannelPresence
    reads: _Slices | None
    makes: _Slices | None

    def tensors(self) -> dict[str, Tensor]:
        """The latent weights."""
        return {"latent": self.latent}

    def numbers(self) -> dict[str, float]:
        """Nothing else."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, float]) -> None:
        """Take saved values."""
        self.latent.copy_(tensors["latent"])

    def follow(self, parameter: Tensor) -> bool:
        """Move to the parameter's device and memory layout; returns whether either had changed."""
        if self.latent.device == parameter.device and same_layout(self.latent, parameter):
            return False
        self.latent = torch.empty_like(parameter, dtype=self.latent.dtype).copy_(self.latent)
        for side in (self.reads, self.makes):
            if side is not None:
                side.gates = side.gates.to(parameter.device)
        return True

    def mask(self) -> Tensor:
        """The mask m, bool, of the parameter's shape."""
        return self.mask_with(self.channels.dead_dropped)

    def mask_with(self, makers: bool) -> Tensor:
        """The mask of the weights that read open channels, and with `makers` make open ones too."""
        return self._broadcast_mask(makers).expand(self.latent.shape)

    def write_effective(self, out: Tensor) -> None:
        """Write θ = w·m into `out`, rounded to its dtype; a pruned weight becomes an exact +0 (see E2)."""
        out.copy_(self.latent)
        self.remove_closed(out)

    def remove_closed(self, values: Tensor) -> None:
        """Set to +0 what the mask removes, in place."""
        values.masked_fill_(~self._broadcast_mask(self.channels.dead_dropped), 0)

    def _broadcast_mask(self, makers: bool) -> Tensor:
        opened = torch.nn.functional.pad(self.channels.mask(), (0, 1), value=True)
        found = torch.ones((1,) * self.latent.ndim, dtype=torch.bool, device=self.latent.device)
        for side in (self.reads, self.makes if makers else None):
            if side is not None:
                found = found & side.open(opened, self.latent.ndim)
        return found

    def column_sums(self, values: Tensor) -> Tensor:
        """Sums over the weights that read each channel, (channels,)."""
        assert self.reads is not None
        return values.sum([dim for dim in range(values.ndim) if dim != self.reads.dim])


class ChannelStates:
    """A `PresenceStore` with one gate per group of channels, at the weights that read them (E15 to E17).

    Attributes:
        states: The state of every parameter by name.
        channels: The presence parameters, layer by layer.
        total: Cost of the dense network.
    """

    def __init__(
        self,
        layout: ChannelLayout,
        cost: WholeCost,
        parameters: Mapping[str, nn.Parameter],
        dtype: torch.dtype,
        seed: int,
        initial: tuple[float, float],
    ) -> None:
        """Draw t for every channel, by seed and by the layer that makes it.

        Args:
            layout: The gates.
            cost: What the network costs.
            parameters: The prunable parameters by name.
            dtype: dtype of w and t.
            seed: Seed of t.
            initial: Interval of the first t (see E2).
        """
        readers, makers = layout.readers(), layout.makers()
        device = next(parameters[name].device for name in readers)
        drawn = [
            initial_presence(size, generator(seed, f"{name} presence"), initial) for name, size in layout.sizes.items()
        ]
        self.channels = ChannelPresence.of(torch.from_numpy(np.concatenate(drawn)).to(device, dtype))
        self.states = {
            name: ReaderState(
                parameter.detach().to(dtype, copy=True),
                self.channels,
                _Slices.of(readers.get(name), layout.gates, parameter),
                _Slices.of(makers.get(name), layout.gates, parameter),
            )
            for name, parameter in parameters.items()
        }
        self._cost, self._sizes = cost, layout.sizes
        self.total = cost.total(np.ones(cost.gates, np.bool_))
        self._order, self._lengths = self._gathering(layout.gates)
        self._set_prices()

    def _gathering(self, count: int) -> tuple[Tensor, Tensor]:
        """The order in which the columns of all readers lie gate by gate, and each gate's number of columns."""
        gates = np.concatenate([state.reads.gates.cpu().numpy() for state in self._readers()])
        order = np.argsort(gates, kind="stable")[: np.count_nonzero(gates < count)]
        lengths = np.bincount(gates, minlength=count + 1)[:count]
        device = self.channels.presence.device
        return torch.from_numpy(order).to(device), torch.from_numpy(lengths).to(device)

    def _readers(self) -> list[Any]:
        return [state for state in self.states.values() if state.reads is not None]

    def presence(self) -> Mapping[str, ChannelPresence]:
        """The presence parameters by the layer that makes the channels."""
        found, start = {}, 0
        for name, size in self._sizes.items():
            found[name] = self.channels.part(slice(start, start + size))
            start += size
        return found

    def saved(self) -> Mapping[str, Saved]:
        """The states of the parameters, and the presence parameters."""
        return {**self.states, "gates of channels": self.channels}

    def mask(self) -> spec.Mask:
        """The mask of the gates, (J,); waits for the device."""
        found: spec.Mask = self.channels.mask().cpu().numpy()
        return found

    def layers(self) -> list[LayerCount]:
        """All and open channels of every layer; waits for the device."""
        parts = np.split(self.mask(), np.cumsum(list(self._sizes.values()))[:-1])
        return [LayerCount(name, len(own), int(own.sum())) for name, own in zip(self._sizes, parts, strict=True)]

    def weights(self) -> list[LayerCount]:
        """Weights of every parameter, and those that read and make open channels; waits for the device."""
        return [
            LayerCount(name, state.latent.numel(), int(state.mask_with(makers=True).sum()))
            for name, state in self.states.items()
        ]

    def surviving(self) -> int:
        """Cost of what is open; waits for the device."""
        return self._cost.total(self.mask())

    def above(self, level: float) -> int:
        """Number of t at `level` or above; waits for the device."""
        return int((self.channels.presence >= level).sum())

    @torch.no_grad()
    def typical_flux(self) -> float:
        """Mean over gates of √v̂; waits for the device."""
        return float(self.channels.root_of_second_moment().mean())

    def meet_capacity(self, count: int, near: float, ranking: Ranking) -> float:
        """Lower every t by the same τ, so that as many gates stay open as a cost of `count` allows. Returns τ."""
        presence = self._ranked(ranking).cpu().numpy()
        shifted, tau = spec.meet_budget(presence, self._cost, count, regrow=ranking == "presence")
        self.channels.presence.copy_(torch.from_numpy(shifted))
        self._set_prices()
        return tau

    def _ranked(self, ranking: Ranking) -> Tensor:
        """The t, or for a baseline the norm of each gate's weights or its typical slope; −1 where closed."""
        if ranking == "presence":
            return self.channels.presence
        if ranking == "magnitude":
            squares = {id(state): state.latent**2 for state in self._readers()}
            saliency = self._gathered(squares).sqrt_()
        else:
            saliency = self.channels.root_of_second_moment()
        return saliency.masked_fill_(~self.channels.mask(), -1)

    def _set_prices(self) -> None:
        prices = self._cost.prices(self.mask())
        self.channels.prices.copy_(torch.from_numpy(prices / max(prices.sum(), np.finfo(float).tiny)))

    def drop_dead(self) -> None:
        """From now on the masks also remove the weights that make closed channels."""
        self.channels.dead_dropped = True

    def take_step(self, updates: Sequence[ParameterUpdate], pressure: float, learning_rate: float | None) -> None:
        """Turn every g into g·m, and move t by one step on κ Σ g w + γ c/C (see E3, E6, E15 and E16)."""
        slopes = None
        if learning_rate is not None:
            readers = [update for update in updates if update.state.reads is not None]
            slopes = self._gathered({id(update.state): self._product(update) for update in readers})
        for update in updates:
            update.state.remove_closed(update.gradient)
        if slopes is not None and learning_rate is not None:
            pressed = pressure * self.channels.prices
            self.channels.count_step(pressed)
            self.channels.move(slopes.add_(pressed), learning_rate)

    @staticmethod
    def _product(update: ParameterUpdate) -> Tensor:
        """κ g w of every weight."""
        gradient = update.gradient if update.scale is None else update.gradient / update.scale.to(update.gradient)
        return (update.kappa * gradient).mul_(update.state.latent)

    def _gathered(self, values: Mapping[int, Tensor]) -> Tensor:
        """Sums over the weights of each gate, (J,), of values by identity of a state; 0 for states without any."""
        device, columns = self.channels.presence.device, []
        for state in self._readers():
            own = values.get(id(state))
            zeros = self.channels.presence.new_zeros(len(state.reads.gates))
            columns.append(zeros if own is None else state.column_sums(own).to(device))
        return torch.segment_reduce(torch.cat(columns)[self._order], "sum", lengths=self._lengths)

    def write_effective(self, states: Sequence[ReaderState], out: Sequence[Tensor]) -> None:
        """Write each θ = w·m into its `out`."""
        for state, effective in zip(states, out, strict=True):
            state.write_effective(effective)

    def differs(self, states: Sequence[ReaderState], values: Sequence[Tensor]) -> list[tuple[list[int], Tensor]]:
        """Whether `values` differ from θ = w·m: numbers of states, and a bool for each."""
        found = []
        for number, (state, own) in enumerate(zip(states, values, strict=True)):
            effective = torch.empty_like(own)
            state.write_effective(effective)
            found.append(([number], any_differs(effective, own).view(1)))
        return found

    def buffers(self) -> list[Tensor]:
        """Nothing."""
        return []

    def forget(self) -> None:
        """After a move: t lies where the first reader does."""
        device = self._readers()[0].latent.device
        self.channels.move_to(device)
        self._order, self._lengths = self._order.to(device), self._lengths.to(device)
