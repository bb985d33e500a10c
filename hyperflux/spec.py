"""Hyperflux in plain NumPy: the specification, E1 to E7 and E12 of docs/algorithm.md. Read this file first.

Symbols, as in the paper (Barbulescu, Alexoaie, Busoniu, "Hyperflux: Pruning Reveals Importance", arXiv 2504.05349v4):

    N          number of prunable weights in the whole network
    w  (N,)    latent weights: what the weight optimizer trains, pruned or not
    t  (N,)    presence parameters, one a weight: a weight lives while t >= 0
    m  (N,)    mask: True where the weight is present
    θ  (N,)    effective weights w·m: what the network computes with
    g  (N,)    gradient of the data loss with respect to θ
    κ          slope of the straight-through estimator
    γ >= 0     pressure

Every function is pure: arrays in, new arrays out, nothing changed in place. Arrays are float64 (or float32, which is
kept) of any one shape; "(N,)" says that all arrays of a call have the same shape. Only `pressure_gradient` and `step`
need N itself, because a call may hold one layer of a larger network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]

KAPPA = 0.25
"""κ: the sigmoid's derivative at 0."""
INITIAL_PRESENCE = (0.2, 0.5)
"""The interval (a, 2.5a), a = 0.2, from which the first t are drawn: every weight starts present (E2)."""
ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8


@dataclass(frozen=True)
class Moments:
    """Adam's running means of a gradient and of its square, each (N,), and the number of steps behind them."""

    first: Array
    second: Array
    steps: int

    @classmethod
    def zeros_like(cls, parameters: Array) -> Moments:
        """Moments before the first step."""
        return cls(np.zeros_like(parameters), np.zeros_like(parameters), 0)


@dataclass(frozen=True)
class State:
    """What one training step carries to the next: w, t and Adam's moments of t, each (N,)."""

    weights: Array
    presence: Array
    moments: Moments


def initial_presence(count: int, rng: np.random.Generator, interval: tuple[float, float] = INITIAL_PRESENCE) -> Array:
    """Draw `count` presence parameters uniformly from `interval`, float64."""
    return rng.uniform(*interval, size=count)


def gate(presence: Array) -> Mask:
    """Mask of the present weights, m_i = H(t_i) with H(0) = 1 (E1)."""
    return presence >= 0


def effective_weights(weights: Array, mask: Mask) -> Array:
    """Weights the network computes with, θ_i = w_i m_i; a pruned weight is an exact +0 (E2)."""
    return np.where(mask, weights, weights.dtype.type(0))


def straight_through(gradient: Array, weights: Array, mask: Mask) -> tuple[Array, Array]:
    """Gradients of the data loss for w, g_i m_i, and for t, κ g_i w_i, pruned or not (E3).

    `gradient` is g = ∂L/∂θ. The gate's derivative is 0 almost everywhere; κ stands in for it.
    """
    return np.where(mask, gradient, gradient.dtype.type(0)), KAPPA * gradient * weights


def restoring_flux(gradient: Array, weights: Array, mask: Mask) -> Array:
    """Restoring flux −κ g_i w_i of pruned weights, 0 where the weight is present (E4).

    Flux is ∂L/∂t_i while t_i < 0, the gradient's answer to the removal of weight i. Where the restoring flux is
    positive the loss would fall, to first order, if the weight came back; descent then lifts t_i.
    """
    return np.where(mask, gradient.dtype.type(0), -KAPPA * gradient * weights)


def pressure_gradient(pressure: float, total: int) -> float:
    """Gradient γ/N of the pressure loss L_p = (γ/N) Σ t_i on every t, pruned or not (E5).

    `total` is N, of the whole network even where the other arrays at hand are one layer's.
    """
    return pressure / total


def adam_direction(gradient: Array, moments: Moments) -> tuple[Array, Moments]:
    """Adam's bias-corrected direction m̂/(√v̂ + ε), to be scaled by the learning rate, and the moments after it.

    Kingma and Ba 2015, with `ADAM_BETAS` and `ADAM_EPSILON`.
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


def running_pressure(mean: float, pressure: float, total: int) -> float:
    """The share of pressure in Adam's first moment, after a step under `pressure`: the same for every weight."""
    beta1, _ = ADAM_BETAS
    return beta1 * mean + (1 - beta1) * pressure_gradient(pressure, total)


def running_flux(moments: Moments, pressure_mean: float) -> Array:
    """Running mean over about ten steps of −κ g w, of pruned and present weights alike; 0 before the first step.

    It is Adam's bias-corrected first moment of t, less its share of pressure, `running_pressure`.
    """
    beta1, _ = ADAM_BETAS
    return (pressure_mean - moments.first) / (1 - beta1 ** max(1, moments.steps))


def typical_flux(moments: Moments) -> float:
    """Mean over weights of √v̂, the size of κ g w + γ/N by Adam's bias-corrected second moment; 0 before a step."""
    _, beta2 = ADAM_BETAS
    return float(np.sqrt(moments.second / (1 - beta2 ** max(1, moments.steps))).mean())


def meet_capacity(presence: Array, kept: int) -> tuple[Array, float]:
    """Lower every t by the same τ, the `kept`-th largest, so that exactly `kept` weights are present (E12).

    Gives the new t and τ, which is negative where too few weights were present. Nothing in E1 to E6 depends on the
    level of t, only on its sign and its changes: t − τ under the gate H is t under a gate at τ. Of equal t at the gate
    the first ones stay. `presence` is of the whole network, (N,); 1 <= kept <= N.
    """
    tau = np.partition(presence, -kept)[-kept]
    shifted = presence - tau
    at_gate = np.flatnonzero(shifted == 0)
    surplus = np.count_nonzero(shifted >= 0) - kept
    shifted[at_gate[len(at_gate) - surplus :]] = -np.finfo(presence.dtype).tiny
    return shifted, float(tau)


def smoothed_cross_entropy(logits: Array, labels: NDArray[np.integer[Any]], smoothing: float) -> tuple[float, Array]:
    """Mean cross-entropy with label smoothing, and its gradient for the logits (E7).

    `logits` is (batch, classes), `labels` (batch,) of class indices. The wanted distribution is 1 − smoothing on the
    label plus smoothing/classes on every class.
    """
    batch, classes = logits.shape
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    wanted = np.full_like(logits, smoothing / classes)
    wanted[np.arange(batch), labels] += 1 - smoothing
    loss = -(wanted * log_probabilities).sum() / batch
    return float(loss), (np.exp(log_probabilities) - wanted) / batch


def step(
    state: State,
    *,
    loss_gradient: Callable[[Array], Array],
    update_weights: Callable[[Array, Array], Array],
    pressure: float,
    presence_learning_rate: float | None,
    total: int,
) -> State:
    """One training step of Hyperflux, E1 to E6 in the paper's order.

    `loss_gradient` maps θ to g (the network and its loss: E7), `update_weights` maps (w, its gradient) to the new w
    (the user's own optimizer: momentum and weight decay act on pruned weights too). `total` is N. With a rate of None
    the mask is settled: t and its moments stay as they are.
    """
    mask = gate(state.presence)  # E1
    theta = effective_weights(state.weights, mask)  # E2
    gradient = loss_gradient(theta)
    for_weights, for_presence = straight_through(gradient, state.weights, mask)  # E3; where pruned, E4
    weights = update_weights(state.weights, for_weights)
    if presence_learning_rate is None:
        return State(weights, state.presence, state.moments)
    for_presence = for_presence + pressure_gradient(pressure, total)  # E5
    presence, moments = update_presence(state.presence, for_presence, state.moments, presence_learning_rate)  # E6
    return State(weights, presence, moments)
