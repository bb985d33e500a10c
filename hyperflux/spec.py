"""Hyperflux in plain NumPy, to be read with docs/algorithm.md: one training step, capacity, and the loop that prunes.

Paper: Barbulescu, Alexoaie, Busoniu, "Hyperflux: Pruning Reveals Importance", arXiv 2504.05349v4. Its symbols:

    N          number of prunable weights in the whole network
    w  (N,)    latent weights: what the weight optimizer trains, pruned or not
    t  (N,)    presence parameters, one per weight: a weight lives while t >= 0. Where a gate holds several weights
               (E15), there are J gates, and t and its moments are (J,)
    m  (N,)    mask: True where the weight is present
    θ  (N,)    effective weights w·m: what the network computes with
    g  (N,)    gradient of the data loss with respect to θ
    κ          slope of the straight-through estimator
    γ >= 0     pressure
    η_t        learning rate of t

The file reads from top to bottom: E1 to E7, gates of several weights (E15, E16), `step`, which calls all but E7 once,
capacity (E12), budgets (E17), N of M (E18), and `train`, which runs a whole course. Schedules and controllers (E8 to
E10, E13, E14) see numbers only and live in `hyperflux.schedules`.

Every function is pure, but that `initial_presence` draws from its generator: arrays in, new arrays out, nothing
changed in place. Arrays are float64 (float32 is kept) of any
one shape; "(N,)" says that all arrays of a call have the same shape. Only `pressure_gradient` and `step` need N itself,
because a call may hold one layer of a larger network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]
S = TypeVar("S")

KAPPA = 0.25
"""κ: the sigmoid's derivative at 0 (E3)."""
INITIAL_PRESENCE = (0.2, 0.5)
"""The interval (a, 2.5a), a = 0.2, from which the first t are drawn: every weight starts present (E2)."""
ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8


def gate(presence: Array) -> Mask:
    """Mask of the present weights, m_i = H(t_i) with H(0) = 1 (E1)."""
    return presence >= 0


def effective_weights(weights: Array, mask: Mask) -> Array:
    """Weights the network computes with, θ_i = w_i m_i; a pruned weight is an exact +0 (E2)."""
    return np.where(mask, weights, weights.dtype.type(0))


def initial_presence(count: int, rng: np.random.Generator, interval: tuple[float, float] = INITIAL_PRESENCE) -> Array:
    """Draw the first t, `count` of them, uniformly from `interval`; float64. See E2."""
    return rng.uniform(*interval, size=count)


def straight_through(gradient: Array, weights: Array, mask: Mask) -> tuple[Array, Array]:
    """Gradients of the data loss for w, g_i m_i, and for t, κ g_i w_i, pruned or not (E3).

    `gradient` is g = ∂L/∂θ. The gate's derivative is 0 almost everywhere; κ takes its place.
    """
    return np.where(mask, gradient, gradient.dtype.type(0)), KAPPA * gradient * weights


def restoring_flux(gradient: Array, weights: Array, mask: Mask) -> Array:
    """Restoring flux −κ g_i w_i of pruned weights, 0 where the weight is present (E4).

    The flux κ g_i w_i of a pruned weight is, to first order, κ times the change of the loss if the weight were
    restored. Where the restoring flux is positive the loss would fall; descent then lifts t_i.
    """
    return np.where(mask, gradient.dtype.type(0), -KAPPA * gradient * weights)


def pressure_gradient(pressure: float, total: int) -> float:
    """Gradient γ/N of the pressure loss L_p = (γ/N) Σ t_i on every t, pruned or not (E5).

    `total` is N, of the whole network even where the other arrays at hand are one layer's.
    """
    return pressure / total


@dataclass(frozen=True)
class Moments:
    """Adam's running means of a gradient and of its square, each (N,), after `steps` steps."""

    first: Array
    second: Array
    steps: int

    @classmethod
    def zeros_like(cls, parameters: Array) -> Moments:
        """Moments before the first step."""
        return cls(np.zeros_like(parameters), np.zeros_like(parameters), 0)


def adam_direction(gradient: Array, moments: Moments) -> tuple[Array, Moments]:
    """Adam's bias-corrected direction m̂/(√v̂ + ε), to be scaled by the learning rate, and the moments after it.

    Source: Kingma and Ba 2015, with `ADAM_BETAS` and `ADAM_EPSILON`.
    """
    beta1, beta2 = ADAM_BETAS
    steps = moments.steps + 1
    first = beta1 * moments.first + (1 - beta1) * gradient
    second = beta2 * moments.second + (1 - beta2) * gradient**2
    mean = first / (1 - beta1**steps)
    root = np.sqrt(second / (1 - beta2**steps))
    return mean / (root + ADAM_EPSILON), Moments(first, second, steps)


def update_presence(presence: Array, gradient: Array, moments: Moments, learning_rate: float) -> tuple[Array, Moments]:
    """One Adam step on t, without weight decay; `gradient` is κ g w + γ/N (E6)."""
    direction, moments = adam_direction(gradient, moments)
    return presence - learning_rate * direction, moments


def smoothed_cross_entropy(logits: Array, labels: NDArray[np.integer[Any]], smoothing: float) -> tuple[float, Array]:
    """Mean cross-entropy with label smoothing, and its gradient for the logits (E7).

    `logits` is (batch, classes), `labels` (batch,) of class indices. The target distribution is 1 − smoothing on the
    label plus smoothing/classes on every class.
    """
    batch, classes = logits.shape
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    target = np.full_like(logits, smoothing / classes)
    target[np.arange(batch), labels] += 1 - smoothing
    loss = -(target * log_probabilities).sum() / batch
    return float(loss), (np.exp(log_probabilities) - target) / batch


@dataclass(frozen=True)
class Gates:
    """Which weights each gate holds, and what it costs (E15, E16).

    A channel's gate holds the weights that read the channel, not those that make it: it would be deaf there.

    Attributes:
        of: The gate of each weight, (N,), from 0 to J − 1, or −1 for a weight without a gate, which is always present.
        costs: c, (J,), at least 0: what removing each gate saves. See `Cost.prices`.
    """

    of: NDArray[np.intp]
    costs: Array

    def spread(self, mask: Mask) -> Mask:
        """Mask of the weights, m_i = H(t_j(i)), (N,), from that of the gates, (J,)."""
        return np.append(mask, True)[self.of]

    def gathered(self, slopes: Array) -> Array:
        """Gradient of the data loss for t, κ Σ_{i in G_j} g_i w_i, (J,), from `slopes` κ g_i w_i, (N,) (E15)."""
        gated = self.of >= 0
        total: Array = np.bincount(self.of[gated], slopes[gated], len(self.costs)).astype(slopes.dtype)
        return total

    def norms(self, weights: Array) -> Array:
        """Euclidean norm of the weights of each gate, (J,): what magnitude pruning ranks gates by."""
        norms: Array = np.sqrt(self.gathered(weights**2))
        return norms

    def pressure_gradient(self, pressure: float) -> Array:
        """Gradient γ c_j/C of the pressure loss L_p = γ Σ (c_j/C) t_j on t, (J,), where C = Σ c_j (E16)."""
        slopes: Array = pressure * self.costs / self.costs.sum()
        return slopes


@dataclass(frozen=True)
class State:
    """What one training step carries to the next: w, t and Adam's moments of t, each (N,); with `Gates` t is (J,)."""

    weights: Array
    presence: Array
    moments: Moments


def step(
    state: State,
    *,
    loss_gradient: Callable[[Array], Array],
    update_weights: Callable[[Array, Array], Array],
    pressure: float,
    presence_learning_rate: float | None,
    total: int,
    gates: Gates | None = None,
) -> State:
    """One training step of Hyperflux, E1 to E6 in the paper's order.

    Args:
        state: w, t and moments before the step.
        loss_gradient: θ -> g: the network and its loss (E7).
        update_weights: (w, g·m) -> the next w: the user's own optimizer. Its momentum and weight decay act on pruned
            weights too.
        pressure: γ.
        presence_learning_rate: η_t, or None once the mask is frozen: t and its moments then stay as they are.
        total: N.
        gates: The gates, if they hold several weights each; None for one weight a gate.

    """
    mask = gate(state.presence)  # E1
    if gates is not None:
        mask = gates.spread(mask)  # E15
    theta = effective_weights(state.weights, mask)  # E2
    gradient = loss_gradient(theta)
    for_weights, for_presence = straight_through(gradient, state.weights, mask)  # E3; where pruned, E4
    weights = update_weights(state.weights, for_weights)
    if presence_learning_rate is None:
        return State(weights, state.presence, state.moments)
    if gates is None:
        for_presence = for_presence + pressure_gradient(pressure, total)  # E5
    else:
        for_presence = gates.gathered(for_presence)  # E15
        for_presence = for_presence + gates.pressure_gradient(pressure).astype(for_presence.dtype)  # E16
    presence, moments = update_presence(state.presence, for_presence, state.moments, presence_learning_rate)  # E6
    return State(weights, presence, moments)


def meet_capacity(presence: Array, count: int) -> tuple[Array, float]:
    """Lower every t by the same τ, the `count`-th largest, so that exactly `count` weights are present (E12).

    E1 to E6 use the sign of t and its changes, never its level: t − τ under the gate H is t under a gate at τ. Of equal
    t at the gate the first ones stay.

    Args:
        presence: t of the whole network, (N,).
        count: Weights, or gates, to leave present, 0 <= count <= N.

    Returns:
        The new t, and τ, which is negative where too few weights were present.

    """
    tau = np.partition(presence, -count)[-count] if count else presence.max()
    shifted = presence - tau
    at_gate = np.flatnonzero(shifted == 0)
    surplus = np.count_nonzero(shifted >= 0) - count
    shifted[at_gate[len(at_gate) - surplus :]] = -np.finfo(presence.dtype).tiny
    return shifted, float(tau)


class Cost(Protocol):
    """What a network costs with some of its gates open: its parameters, say, or its FLOPs.

    It need not be a sum over gates: a channel costs less when its neighbours are gone.
    """

    @property
    def layers(self) -> NDArray[np.intp]:
        """The layer that each gate belongs to, (J,), by any numbers."""

    def total(self, present: Mask) -> float:
        """Cost with the gates of a mask, (J,), open. It never falls when a gate comes back."""

    def prices(self, present: Mask) -> Array:
        """The prices c of E16, (J,): what closing each open gate would save now, and opening each closed one cost."""


def meet_budget(presence: Array, cost: Cost, budget: float, regrow: bool = True) -> tuple[Array, float]:
    """Lower every t by the same τ so that the largest network within a budget is left (E17).

    Gates close in the order of t. In every layer the gate with the largest t is out of reach of τ, since the output of
    a layer without inputs no longer depends on its input.

    Args:
        presence: t, (J,).
        cost: Cost of the network with some gates open.
        budget: Largest cost allowed. Where the gates out of reach cost more, they alone are left.
        regrow: Whether closed gates may open; not by a baseline, even where they would fit.

    Returns:
        The new t, and τ.

    """
    ranked = np.argsort(-presence, kind="stable")
    held = np.zeros(presence.size, np.bool_)
    held[ranked[np.unique(cost.layers[ranked], return_index=True)[1]]] = True
    ranked = np.argsort(-np.where(held, np.inf, presence), kind="stable")
    least, most = int(np.count_nonzero(held)), presence.size
    if not regrow:
        most = int(np.count_nonzero(held | gate(presence)))
    while least < most:
        count = (least + most + 1) // 2
        mask = np.zeros(presence.size, np.bool_)
        mask[ranked[:count]] = True
        least, most = (count, most) if cost.total(mask) <= budget else (least, count - 1)
    return _meet_capacity_beside(presence, held, least)


def meet_pattern(presence: Array, kept: int, count: int) -> tuple[Array, float]:
    """Leave exactly `count` weights present, and at least `kept` of every group: N of M (E18).

    The `kept` largest t of a group are out of reach of τ; all others compete for the places that are left. Once there
    is none, nothing is shifted: the largest of a group stay at the gate or above, all others below it.

    Args:
        presence: t, (groups, M): a row holds M weights that follow each other along the input dimension.
        kept: N of N:M, 1 <= kept <= M.
        count: Weights to leave present, groups·kept <= count <= groups·M.

    Returns:
        The new t, and τ.

    """
    held = np.zeros(presence.shape, np.bool_)
    np.put_along_axis(held, np.argsort(-presence, axis=1, kind="stable")[:, :kept], True, axis=1)
    return _meet_capacity_beside(presence, held, count)


def _meet_capacity_beside(presence: Array, held: Mask, count: int) -> tuple[Array, float]:
    """E12 for the t that are not held; those that are held stay at 0 or above, and count among the `count` present.

    If they take all places nothing is shifted: the others go below the gate, if they are not yet.
    """
    places, tau = count - int(np.count_nonzero(held)), 0.0
    others = np.minimum(presence[~held], -np.finfo(presence.dtype).tiny)
    if places > 0:
        others, tau = meet_capacity(presence[~held], places)
    shifted = np.maximum(presence - tau, 0)
    shifted[~held] = others
    return shifted, tau


def magnitude_presence(weights: Array, presence: Array) -> Array:
    """The t of magnitude pruning, the baseline: |w|, and −1 where pruned, so that capacity keeps the largest |w|."""
    return np.where(gate(presence), np.abs(weights), -1).astype(presence.dtype)


def taylor_presence(presence: Array, moments: Moments) -> Array:
    """The t of Taylor pruning, a baseline for gates of many weights: √v̂, and −1 where pruned.

    Without pressure v̂ is the running mean of (κ Σ_{i in G_j} g_i w_i)²: κ² times the squared change of the loss, to
    first order, if gate j were closed. Source: Molchanov et al. 2019, arXiv 1906.10771.
    """
    return np.where(gate(presence), typical_slopes(moments), -1).astype(presence.dtype)


def density(presence: Array) -> float:
    """Share of the weights that are present, s = Σm/N."""
    return np.count_nonzero(gate(presence)) / presence.size


def typical_slopes(moments: Moments) -> Array:
    """√v̂, the typical size of each κ g w + γ/N, 0 before the first step. See E13.

    v̂ is Adam's bias-corrected second moment of t.
    """
    _, beta2 = ADAM_BETAS
    slopes: Array = np.sqrt(moments.second / (1 - beta2 ** max(1, moments.steps)))
    return slopes


def typical_flux(moments: Moments) -> float:
    """Mean of √v̂ over all t. See E13."""
    return float(typical_slopes(moments).mean())


Ranking = Literal["presence", "magnitude", "taylor"]
"""What capacity keeps the largest of: t, or what a baseline puts in its place."""


@dataclass(frozen=True)
class StepSettings:
    """What every optimizer step applies until the next control step.

    Attributes:
        pressure: γ.
        presence_lr: η_t, the learning rate of t; None freezes t and with it the mask.
    """

    pressure: float
    presence_lr: float | None


@dataclass(frozen=True)
class Observation:
    """What a schedule observes at a control step.

    Attributes:
        shift: τ of E12, by which every t was lowered at this control step; 0 if capacity did not act.
        density: Measures the density now, a fraction.
        flux: Measures the typical flux now.
    """

    shift: float
    density: Callable[[], float]
    flux: Callable[[], float]


class Schedule(Protocol[S]):
    """When to prune how far: the part of `hyperflux.schedules.base.PruningSchedule` that the algorithm uses.

    `S` is the state of the schedule, plain numbers.
    """

    @property
    def pruning_steps(self) -> int:
        """Steps of the pruning stage."""

    @property
    def regrowth_steps(self) -> int:
        """Steps of the regrowth stage."""

    @property
    def ranking(self) -> Ranking:
        """What capacity keeps the largest of."""

    def initial_state(self) -> S:
        """The state before the first step."""

    def settings(self, state: S) -> StepSettings:
        """Pressure and rate of t until the next control step."""

    def next_control_step(self, state: S) -> int:
        """The step after which the schedule acts next."""

    def target_count(self, step: int) -> int | None:
        """Weights that the control step after `step` leaves present; None where pressure and flux alone decide."""

    def advance(self, state: S, observation: Observation) -> S:
        """The state after a control step: the controller's work."""


def train(
    state: State,
    schedule: Schedule[S],
    loss_gradient: Callable[[int, Array], Array],
    update_weights: Callable[[int, Array, Array], Array],
    gates: Gates | None = None,
    cost: Cost | None = None,
) -> Iterator[State]:
    """The algorithm: prune a network while it trains, through pruning and regrowth to the end.

    Args:
        state: w, t and moments of the whole network before the first step.
        schedule: `DefaultSchedule`, `PublishedSchedule` or `MagnitudeSchedule` of `hyperflux.schedules`.
        loss_gradient: (n, θ) -> g on the batch of step n, which counts from 1.
        update_weights: (n, w, g·m) -> the next w, by the user's own optimizer and its rate in step n.
        gates: The gates, if they hold several weights each.
        cost: Cost of a network with some gates open, in the unit in which `schedule` counts. If None, every gate costs
            1, and `gates` keep their own costs.

    Yields:
        The state after every step. The last one is the outcome: its θ is the pruned network.

    """
    total, end = state.presence.size, schedule.pruning_steps + schedule.regrowth_steps
    schedule_state = schedule.initial_state()
    if gates is not None and cost is not None:
        gates = replace(gates, costs=cost.prices(gate(state.presence)))  # E16
    for n in range(1, end + 1):
        settings = schedule.settings(schedule_state)
        state = step(  # E1 to E6
            state,
            loss_gradient=partial(loss_gradient, n),
            update_weights=partial(update_weights, n),
            pressure=settings.pressure,
            presence_learning_rate=settings.presence_lr,
            total=total,
            gates=gates,
        )
        while (control := schedule.next_control_step(schedule_state)) <= n:
            presence, shift = state.presence, 0.0
            if (budget := schedule.target_count(control)) is not None:  # E8, E14
                if schedule.ranking == "magnitude":
                    ranked = state.weights if gates is None else gates.norms(state.weights)
                    presence = magnitude_presence(ranked, presence)
                elif schedule.ranking == "taylor":
                    presence = taylor_presence(presence, state.moments)
                if cost is None:
                    presence, shift = meet_capacity(presence, budget)  # E12
                else:
                    presence, shift = meet_budget(presence, cost, budget, schedule.ranking == "presence")  # E17
            state = State(state.weights, presence, state.moments)
            if gates is not None and cost is not None:
                gates = replace(gates, costs=cost.prices(gate(presence)))  # E16
            observation = Observation(shift, partial(density, presence), partial(typical_flux, state.moments))
            schedule_state = schedule.advance(schedule_state, observation)  # E9 or E13
        yield state
