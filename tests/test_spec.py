"""E1 to E7 against their definitions, written out anew in plain Python."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tolerances import CENTRAL_DIFFERENCE, ROUNDING

from hyperflux import spec

finite = st.floats(-1e3, 1e3)
sizes = st.integers(1, 30)
# Presence parameters crowd around the gate's edge: 0, -0 and their neighbours.
edge = st.sampled_from([0.0, -0.0, np.nextafter(0, 1), np.nextafter(0, -1), -1e-300])
presences = st.one_of(edge, st.floats(-2, 2))
pressures = st.floats(0, 1e6)


@st.composite
def situations(draw):
    """(g, w, t) of one size."""
    size = draw(sizes)
    return tuple(draw(arrays(np.float64, size, elements=kind)) for kind in (finite, finite, presences))


@given(situations())
@example((np.ones(4), np.ones(4), np.array([0.0, -0.0, np.nextafter(0, 1), np.nextafter(0, -1)])))
def test_gate_is_one_from_zero_on(situation):
    """E1: H(0) = 1, so a weight lives exactly while t >= 0."""
    presence = situation[2]
    assert spec.gate(presence).dtype == np.bool_
    assert spec.gate(presence).tolist() == [t >= 0 for t in presence.tolist()]


@given(situations())
def test_effective_weight_is_the_latent_one_or_an_exact_zero(situation):
    """E2"""
    _, weights, presence = situation
    theta = spec.effective_weights(weights, spec.gate(presence))
    assert theta.tolist() == [w if t >= 0 else 0.0 for w, t in zip(weights.tolist(), presence.tolist(), strict=True)]


def test_pruned_weights_are_positive_zeros_whatever_stood_there():
    """E2: neither -0 nor nan leaks out of a pruned weight."""
    theta = spec.effective_weights(np.array([-1.0, np.inf, np.nan]), np.zeros(3, bool))
    assert theta.tobytes() == np.zeros(3).tobytes()


@given(situations())
def test_straight_through_gradients_match_their_definition(situation):
    """E3: g m for the weights, κ g w for t, for present and pruned weights alike."""
    gradient, weights, presence = situation
    for_weights, for_presence = spec.straight_through(gradient, weights, spec.gate(presence))
    rows = list(zip(gradient.tolist(), weights.tolist(), presence.tolist(), strict=True))
    assert for_weights.tolist() == [g if t >= 0 else 0.0 for g, _, t in rows]
    np.testing.assert_allclose(for_presence, [0.25 * g * w for g, w, _ in rows], rtol=ROUNDING)


@given(situations())
def test_restoring_flux_answers_for_pruned_weights_only(situation):
    """E4: the descent direction of t, which is minus its E3 gradient, where pruned; 0 where present."""
    gradient, weights, presence = situation
    flux = spec.restoring_flux(gradient, weights, spec.gate(presence))
    rows = zip(gradient.tolist(), weights.tolist(), presence.tolist(), strict=True)
    np.testing.assert_allclose(flux, [0.0 if t >= 0 else -0.25 * g * w for g, w, t in rows], rtol=ROUNDING)


@given(arrays(np.float64, 5, elements=presences), pressures, st.integers(5, 10**7))
def test_pressure_gradient_is_that_of_its_loss(presence, pressure, total):
    """E5: raising one t by h raises L_p = (γ/N) Σ t by h·γ/N, whether the weight is present or pruned."""

    def loss(t):
        return pressure / total * math.fsum(t)

    for index in range(len(presence)):
        raised = presence.copy()
        raised[index] += 1.0
        change = loss(raised) - loss(presence)
        allowed = 1e-14 * pressure / total * 20  # cancellation in the difference of two sums of at most 11
        assert spec.pressure_gradient(pressure, total) == pytest.approx(change, rel=0, abs=max(allowed, 1e-300))


def test_presence_update_is_bias_corrected_adam():
    """E6: three steps of Adam on one t, computed by hand with Python floats."""
    presence, moments = np.array([0.5]), spec.Moments.zeros_like(np.zeros(1))
    t, m, v = 0.5, 0.0, 0.0
    for count, gradient in enumerate([0.2, -1.0, 3.0], start=1):
        presence, moments = spec.update_presence(presence, np.array([gradient]), moments, 1e-3)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        t -= 1e-3 * (m / (1 - 0.9**count)) / (math.sqrt(v / (1 - 0.999**count)) + 1e-8)
        assert presence[0] == pytest.approx(t, rel=ROUNDING)
    assert moments.steps == 3


def test_first_presence_step_is_the_learning_rate():
    """E6: without bias correction it would be 0.316 of it."""
    presence, _ = spec.update_presence(np.zeros(2), np.array([5.0, -0.01]), spec.Moments.zeros_like(np.zeros(2)), 1e-3)
    np.testing.assert_allclose(presence, [-1e-3, 1e-3], rtol=2e-6)  # ε / 0.01 = 1e-6


@given(
    arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(2, 6)), elements=st.floats(-20, 20)),
    st.floats(0, 0.9),
    st.randoms(use_true_random=False),
)
def test_smoothed_cross_entropy_and_its_gradient(logits, smoothing, random):
    """E7: against the definition in plain Python, and the gradient against central differences."""
    batch, classes = logits.shape
    labels = np.array([random.randrange(classes) for _ in range(batch)])

    def by_definition(z):
        total = 0.0
        for row, label in zip(z.tolist(), labels.tolist(), strict=True):
            log_sum = max(row) + math.log(math.fsum(math.exp(x - max(row)) for x in row))
            for k, x in enumerate(row):
                wanted = smoothing / classes + (1 - smoothing if k == label else 0.0)
                total -= wanted * (x - log_sum)
        return total / batch

    loss, gradient = spec.smoothed_cross_entropy(logits, labels, smoothing)
    assert loss == pytest.approx(by_definition(logits), rel=ROUNDING, abs=ROUNDING)
    for index in np.ndindex(logits.shape):
        up, down = logits.copy(), logits.copy()
        up[index] += 1e-5
        down[index] -= 1e-5
        assert gradient[index] == pytest.approx((by_definition(up) - by_definition(down)) / 2e-5, abs=1e-8)


def state_of(weights, presence, moments=None):
    return spec.State(weights, presence, moments or spec.Moments.zeros_like(presence))


@given(arrays(np.float64, sizes, elements=presences))
def test_nothing_moves_without_pressure_and_flux(presence):
    """E5, E6: γ = 0 and g = 0 leave t and w as they are, to the bit."""
    before = state_of(np.ones_like(presence), presence)
    after = spec.step(
        before,
        loss_gradient=np.zeros_like,
        update_weights=lambda w, gradient: w - 0.1 * gradient,
        pressure=0.0,
        presence_learning_rate=1e-3,
        total=presence.size,
    )
    assert after.presence.tobytes() == presence.tobytes()
    assert after.weights.tobytes() == before.weights.tobytes()


@st.composite
def adam_histories(draw):
    """Moments that Adam can be in after `steps` gradients, each array one of its own."""
    size = draw(sizes)
    moments = spec.Moments.zeros_like(np.zeros(size))
    for gradient in draw(st.lists(arrays(np.float64, size, elements=st.floats(-10, 10)), max_size=4)):
        _, moments = spec.adam_direction(gradient, moments)
    return moments


def after_one_step(moments, flux, pressure):
    """State after a step from t = 0 and w = 1/κ, so that the gradient of t is `flux` plus the pressure's."""
    return spec.step(
        state_of(np.full(flux.size, 1 / spec.KAPPA), np.zeros(flux.size), moments),
        loss_gradient=lambda theta: flux,
        update_weights=lambda w, gradient: w,
        pressure=pressure,
        presence_learning_rate=1e-3,
        total=flux.size,
    )


@given(adam_histories(), st.data())
def test_more_pressure_never_leaves_a_higher_t(moments, data):
    """E5, E6: from one state, more pressure leaves every first moment higher and every t lower, or equal.

    For t this holds where Adam's direction rises with its gradient h, which is where β1 (1 − β2) m h <= (1 − β1) β2 v
    (m, v: the moments before the step): always on a first step, and never far from the v that h itself built. The
    test below shows the other side.
    """
    flux = data.draw(arrays(np.float64, moments.first.size, elements=st.floats(-10, 10)))
    low, high = sorted(data.draw(st.tuples(pressures, pressures)))
    less, more = after_one_step(moments, flux, low), after_one_step(moments, flux, high)
    assert (more.moments.first >= less.moments.first).all()
    rises = np.logical_and.reduce(
        [
            0.9 * 0.001 * moments.first * (flux + pressure / flux.size) <= 0.1 * 0.999 * moments.second
            for pressure in (low, high)
        ]
    )
    assert (more.presence <= less.presence + 1e-15)[rises].all()


@given(st.data())
def test_more_pressure_never_leaves_a_higher_t_on_the_first_step(data):
    """E5, E6: without a past there is no exception."""
    flux = data.draw(arrays(np.float64, sizes, elements=st.floats(-10, 10)))
    low, high = sorted(data.draw(st.tuples(pressures, pressures)))
    fresh = spec.Moments.zeros_like(flux)
    assert (after_one_step(fresh, flux, high).presence <= after_one_step(fresh, flux, low).presence + 1e-15).all()


def test_adam_with_a_past_can_move_less_under_more_pressure():
    """E6: a gradient that outgrows its past enlarges Adam's divisor faster than its mean (docs: boundary cases)."""
    _, moments = spec.adam_direction(np.array([1.0]), spec.Moments.zeros_like(np.zeros(1)))
    moved = [-after_one_step(moments, np.zeros(1), pressure).presence[0] for pressure in (1.0, 2.0)]
    assert moved[0] == pytest.approx(1e-3, rel=1e-6)
    assert moved[1] < moved[0]


@given(situations(), pressures)
def test_step_is_its_equations_in_order(situation, pressure):
    """E1 to E6 through `step`: the network sees θ, the optimizer sees (w, g m), t sees κ g w + γ/N."""
    gradient, weights, presence = situation
    seen = {}

    def loss_gradient(theta):
        seen["theta"] = theta
        return gradient

    def update_weights(w, weight_gradient):
        seen["w"], seen["weight_gradient"] = w, weight_gradient
        return w - 1.0

    after = spec.step(
        state_of(weights, presence),
        loss_gradient=loss_gradient,
        update_weights=update_weights,
        pressure=pressure,
        presence_learning_rate=1e-3,
        total=100,
    )
    present = presence >= 0
    assert seen["theta"].tolist() == np.where(present, weights, 0).tolist()
    assert seen["w"] is weights
    assert seen["weight_gradient"].tolist() == np.where(present, gradient, 0).tolist()
    assert after.weights.tolist() == (weights - 1).tolist()
    expected, moments = spec.update_presence(
        presence, 0.25 * gradient * weights + pressure / 100, spec.Moments.zeros_like(presence), 1e-3
    )
    np.testing.assert_allclose(after.presence, expected, rtol=ROUNDING, atol=1e-15)
    np.testing.assert_allclose(after.moments.first, moments.first, rtol=ROUNDING)


@given(situations(), st.sampled_from([np.float32, np.float64]))
def test_dtype_is_kept(situation, dtype):
    gradient, weights, presence = (array.astype(dtype) for array in situation)
    after = spec.step(
        state_of(weights, presence),
        loss_gradient=lambda theta: gradient,
        update_weights=lambda w, weight_gradient: w - weight_gradient,
        pressure=1.0,
        presence_learning_rate=1e-3,
        total=10,
    )
    arrays_after = (after.weights, after.presence, after.moments.first, after.moments.second)
    assert {array.dtype for array in arrays_after} == {np.dtype(dtype)}


def test_initial_presence_lies_in_its_interval_and_every_weight_starts_present():
    """E2: t ~ Uniform(a, 2.5a) with a = 0.2."""
    presence = spec.initial_presence(10_000, np.random.default_rng(0))
    assert presence.min() >= 0.2
    assert presence.max() <= 0.5
    assert abs(presence.mean() - 0.35) < 4 * (0.3 / math.sqrt(12)) / 100  # four standard errors
    assert spec.gate(presence).all()


def test_numerical_gradient_of_the_gate_path():
    """E4: κ g w is, to first order, κ times the loss difference between keeping and removing the weight."""
    hessian_free = np.array([0.3, -0.2])  # L(θ) = c·θ is linear: first order is exact
    weights = np.array([2.0, -1.5])
    for index in range(2):
        with_weight, without = np.zeros(2), np.zeros(2)
        with_weight[index] = weights[index]
        difference = 0.25 * (hessian_free @ with_weight - hessian_free @ without)
        flux = spec.restoring_flux(hessian_free, weights, np.zeros(2, bool))
        assert -flux[index] == pytest.approx(difference, rel=CENTRAL_DIFFERENCE)


many_ties = st.lists(st.sampled_from([0.0, -0.0, 0.25, -0.25, 5e-324, -5e-324]) | st.floats(-3, 3), min_size=1)


@given(many_ties, st.data())
def test_capacity_leaves_exactly_as_many_weights_as_it_says(presence, data):
    """E12: for every number of weights, with many equal t."""
    t = np.array(presence)
    kept = data.draw(st.integers(1, len(t)))
    moved, shift = spec.meet_capacity(t, kept)
    mask = spec.gate(moved)
    assert np.count_nonzero(mask) == kept
    assert shift == sorted(presence, reverse=True)[kept - 1]
    assert t[mask].min() >= t[~mask].max(initial=-np.inf), "a weight with a larger t was pruned"
    tied = np.flatnonzero(t == shift)
    assert mask[tied].tolist() == sorted(mask[tied].tolist(), reverse=True), "a later one of equal t stayed"
    np.testing.assert_allclose(moved, t - shift, rtol=0, atol=np.finfo(float).tiny)


@given(many_ties, st.data())
def test_capacity_met_again_moves_nothing(presence, data):
    """E12 is idempotent, to the bit."""
    kept = data.draw(st.integers(1, len(presence)))
    moved, _ = spec.meet_capacity(np.array(presence), kept)
    again, shift = spec.meet_capacity(moved, kept)
    assert shift == 0
    np.testing.assert_array_equal(again, moved)


def test_a_settled_mask_leaves_t_and_its_moments_and_trains_the_weights():
    rng = np.random.default_rng(0)
    state = spec.State(rng.normal(size=6), rng.normal(size=6), spec.Moments(rng.normal(size=6), rng.random(6), 3))
    after = spec.step(
        state,
        loss_gradient=lambda theta: np.ones(6),
        update_weights=lambda w, gradient: w - gradient,
        pressure=5.0,
        presence_learning_rate=None,
        total=6,
    )
    assert after.presence is state.presence
    assert after.moments is state.moments
    np.testing.assert_array_equal(after.weights, state.weights - spec.gate(state.presence))


def test_typical_flux_is_the_root_of_the_corrected_second_moment():
    moments = spec.Moments(np.zeros(2), np.array([0.001, 0.004]), 1)
    assert spec.typical_flux(moments) == pytest.approx(1.5)
    assert spec.typical_flux(spec.Moments.zeros_like(np.zeros(3))) == 0
