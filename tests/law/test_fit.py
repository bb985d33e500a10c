"""E11: the fit of the pruning law, the points it leaves out, and what it is sure of."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tolerances import ROUNDING

from hyperflux import InputError, fit_pruning_law
from hyperflux.law.fit import compare_degrees

GRID = 2.0 ** np.arange(-5, 6)
PUBLISHED = ([0.125, 0.5, 2, 8, 32], [0.105, 0.0533, 0.0216, 0.0079, 0.0029])
seeds = st.integers(0, 2**32 - 1)


def exact(pressure, c=0.03, alpha0=0.5, alpha1=0.03):
    log_pressure = np.log(pressure)
    return c * np.exp(-alpha0 * log_pressure - alpha1 * log_pressure**2)


def noisy(seed, count, deviation=0.05, **constants):
    """(pressure, density, generator) of `count` points at random pressures around a law."""
    rng = np.random.default_rng(seed)
    pressure = np.exp(rng.uniform(-3, 3, count))
    return pressure, exact(pressure, **constants) * np.exp(rng.normal(0, deviation, count)), rng


def assert_is_least_squares(law, pressure, density):
    """The constants are those of NumPy's own polynomial fit."""
    polynomial = np.polyfit(np.log(pressure), np.log(density), law.degree)
    expected = [*(-polynomial[:-1]), np.exp(polynomial[-1])]
    assert [law.alpha1, law.alpha0, law.c][2 - law.degree :] == pytest.approx(expected, rel=1e-9, abs=1e-9)
    residual = np.log(density) - np.polyval(polynomial, np.log(pressure))
    assert law.r2 == pytest.approx(1 - np.var(residual) / np.var(np.log(density)), rel=1e-9)


@given(st.floats(0.01, 0.05), st.floats(0.1, 1), st.floats(0, 0.1))
def test_fit_recovers_the_constants_of_an_exact_law(c, alpha0, alpha1):
    """E11"""
    pressure = 2.0 ** np.arange(-3, 6)
    density = exact(pressure, c, alpha0, alpha1)
    law = fit_pruning_law(pressure, density)
    assert (law.c, law.alpha0, law.alpha1) == pytest.approx((c, alpha0, alpha1), abs=1e-9)
    assert law.r2 == pytest.approx(1, abs=1e-9)
    assert law.predict(pressure) == pytest.approx(density, rel=1e-9)
    assert law.outliers == ()


@given(seeds, st.floats(0.005, 0.05), st.floats(0.2, 1), st.floats(-0.05, 0.05), st.floats(1e-3, 0.2))
def test_fit_recovers_known_constants_under_noise_to_within_its_own_errors(seed, c, alpha0, alpha1, deviation):
    """E11: intervals of a level that fails once in a million; and they shrink with the noise."""
    pressure, density, _ = noisy(seed, 25, deviation, c=c, alpha0=alpha0, alpha1=alpha1)
    law = fit_pruning_law(pressure, np.minimum(density, 0.99))
    for name, constant in (("c", c), ("alpha0", alpha0), ("alpha1", alpha1)):
        low, high = law.interval(1 - 1e-6)[name]
        assert low < constant < high
    low, high = law.interval(0.95)["alpha0"]
    assert 0.02 * deviation < high - low < 2.5 * deviation


def test_published_sweep_is_close_to_a_law():
    """E11: the paper's pressure sweep of ResNet-50 on CIFAR-10 (docs/algorithm.md)."""
    law = fit_pruning_law(*PUBLISHED)
    assert law.r2 > 0.999
    assert law.alpha0 > 0
    assert law.alpha1 > 0


@given(seeds, st.integers(4, 40), st.sampled_from([1, 2]))
def test_fit_is_ordinary_least_squares_of_the_points_it_uses(seed, count, degree):
    pressure, density, _ = noisy(seed, count, 0.1)
    law = fit_pruning_law(pressure, density, degree=degree)
    used = np.delete(np.arange(count), law.outliers)
    assert len(law.outliers) <= 1
    assert_is_least_squares(law, pressure[used], density[used])
    assert law.pressure_range == pytest.approx((pressure[used].min(), pressure[used].max()))
    assert law.freedom == len(used) - degree - 1


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize("count", [7, 10, 20])
def test_clean_data_lose_a_point_in_less_than_one_set_of_a_hundred(count, degree):
    lost = 0
    for seed in range(400):
        pressure, density, _ = noisy(seed, count, 0.1)
        lost += bool(fit_pruning_law(pressure, density, degree=degree).outliers)
    assert stats.binomtest(lost, 400, 0.01, alternative="greater").pvalue > 0.05


@given(seeds, st.sampled_from([(1, 1, 13), (2, 1, 13), (1, 3, 16), (2, 3, 16), (2, 9, 24)]))
def test_gross_outliers_are_named_and_left_out(seed, case):
    degree, wrong, count = case
    pressure, density, rng = noisy(seed, count, 0.02, alpha1=0.03 if degree == 2 else 0.0)
    planted = rng.choice(count, wrong, replace=False)
    density[planted] *= np.exp(rng.choice([-1, 1], wrong) * rng.uniform(8, 16, wrong))
    density = density / density.max() / 2
    law = fit_pruning_law(pressure, density, degree=degree)
    assert set(planted) <= set(law.outliers)
    assert len(law.outliers) <= wrong + 1
    rest = np.delete(np.arange(count), law.outliers)
    assert_is_least_squares(law, pressure[rest], density[rest])


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize("planted", [(0,), (10,), (5,), (9, 10), (0, 4, 10), (1, 2, 3)])
def test_exactly_the_planted_outliers_are_named_even_at_the_ends_and_side_by_side(degree, planted):
    curvature = 0.03 if degree == 2 else 0.0
    clean = exact(GRID, alpha1=curvature) * np.exp(np.random.default_rng(1).normal(0, 0.02, 11))
    density = clean.copy()
    density[list(planted)] /= 20
    law = fit_pruning_law(GRID, density, degree=degree)
    assert law.outliers == planted
    rest = np.delete(np.arange(11), planted)
    assert_is_least_squares(law, GRID[rest], density[rest])


def test_an_outlier_of_an_exact_law_is_named():
    """No residual at all among the others: nothing is divided by zero."""
    density = exact(GRID)
    density[3] *= 1.01
    law = fit_pruning_law(GRID, density)
    assert law.outliers == (3,)
    assert law.alpha0 == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize(("count", "degree"), [(5, 1), (6, 2)])
def test_few_points_are_all_used(count, degree):
    """One more, and the point is left out."""
    density = exact(GRID, alpha1=0.0)
    density[2] /= 50
    assert fit_pruning_law(GRID[:count], density[:count], degree=degree).outliers == ()
    assert fit_pruning_law(GRID[: count + 1], density[: count + 1], degree=degree).outliers == (2,)


def test_points_that_alone_would_leave_the_law_undetermined_are_kept():
    pressure = np.array([1.0] * 8 + [2, 4])
    density = np.array([0.1, 0.1001] * 4 + [0.05, 0.001])
    assert fit_pruning_law(pressure, density).outliers == ()


def test_many_points_are_sampled_and_still_found_out():
    pressure, density, _ = noisy(0, 400, 0.02)
    density[::40] /= 10
    assert fit_pruning_law(pressure, density).outliers == tuple(range(0, 400, 40))


def test_intervals_of_the_linear_law_are_those_of_scipys_regression():
    pressure, density, _ = noisy(3, 9, alpha1=0.0)
    law, theirs = fit_pruning_law(pressure, density, degree=1), stats.linregress(np.log(pressure), np.log(density))
    t = stats.t.ppf(0.95, 7)
    assert law.interval(0.9)["alpha0"] == pytest.approx(
        (-theirs.slope - t * theirs.stderr, -theirs.slope + t * theirs.stderr)
    )
    ends = np.log(law.interval(0.9)["c"])
    assert ends == pytest.approx([theirs.intercept + sign * t * theirs.intercept_stderr for sign in (-1, 1)])
    assert set(law.interval()) == {"c", "alpha0"}


def test_intervals_of_the_quadratic_law_are_those_of_numpys_covariance():
    pressure, density, _ = noisy(4, 12)
    x, y = np.log(pressure), np.log(density)
    law = fit_pruning_law(pressure, density)
    polynomial, covariance = np.polyfit(x, y, 2, cov=True)
    t = stats.t.ppf(0.975, 9)
    half = t * np.sqrt(np.diag(covariance))
    assert law.interval()["alpha1"] == pytest.approx((-polynomial[0] - half[0], -polynomial[0] + half[0]))
    assert law.interval()["alpha0"] == pytest.approx((-polynomial[1] - half[1], -polynomial[1] + half[1]))
    at = np.array([1.7**2, 1.7, 1.0])
    deviation = np.sqrt(law.scale**2 + at @ covariance @ at)
    low, high = law.predict_interval([np.exp(1.7)])
    middle = np.polyval(polynomial, 1.7)
    assert np.log([low[0], high[0]]) == pytest.approx([middle - t * deviation, middle + t * deviation])


@pytest.mark.parametrize("degree", [1, 2])
def test_95_percent_intervals_hold_the_truth_in_95_percent_of_sets(degree):
    """E11: constants, a new density, and the pressure that gave it. Three binomial deviations either way."""
    true = {"c": 0.03, "alpha0": 0.5, "alpha1": 0.03 if degree == 2 else 0.0}
    sets, held = 600, dict.fromkeys([*list(true)[: degree + 1], "density", "pressure"], 0)
    for seed in range(sets):
        pressure, density, rng = noisy(seed, 10, 0.1, **true)
        law = fit_pruning_law(pressure, density, degree=degree)
        for name, (low, high) in law.interval().items():
            held[name] += low < true[name] < high
        new_pressure = np.exp(rng.uniform(-2, 2))
        new_density = exact(new_pressure, **true) * np.exp(rng.normal(0, 0.1))
        low, high = law.predict_interval(new_pressure)
        held["density"] += bool(low < new_density < high)
        low, high = law.pressure_interval(new_density)
        held["pressure"] += low < new_pressure < high
    for name, count in held.items():
        assert count / sets == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / sets)), name


@given(seeds, st.sampled_from([1, 2]), st.floats(0.005, 0.06))
def test_pressure_for_inverts_the_law_and_its_interval_the_band(seed, degree, density):
    pressure, densities, _ = noisy(seed, 12, 0.05, alpha1=0.01)
    law = fit_pruning_law(pressure, densities, degree=degree)
    found = law.pressure_for(density)
    assert law.predict(found) == pytest.approx(density, rel=ROUNDING * 1e3)
    assert law.predict(found * 1.001) < law.predict(found)
    low, high = law.pressure_interval(density)
    assert low < found < high
    if low > 0:
        assert law.predict_interval(low)[0] == pytest.approx(density, rel=1e-6)
    if high < np.inf:
        assert law.predict_interval(high)[1] == pytest.approx(density, rel=1e-6)
    inside = np.geomspace(max(low, found / 100), min(high, found * 100), 20)[1:-1]
    lower, upper = law.predict_interval(inside)
    assert (lower < density).all()
    assert (upper > density).all()


def test_an_interval_that_never_ends_is_open():
    """Two of the five published points less: the band of so few holds 50 % all the way down."""
    low, high = fit_pruning_law(*PUBLISHED).pressure_interval(0.5)
    assert low == 0
    assert high < 0.1


def test_as_many_points_as_constants_say_nothing_about_their_error():
    law = fit_pruning_law(GRID[:3], [0.2, 0.15, 0.1])
    assert law.freedom == 0
    assert law.predict(GRID[:3]) == pytest.approx([0.2, 0.15, 0.1])
    assert law.interval()["alpha0"] == (-np.inf, np.inf)
    assert law.interval()["c"] == (0, np.inf)
    assert law.predict_interval(1.0) == (0, np.inf)
    assert law.pressure_interval(0.12) == (0, np.inf)
    assert compare_degrees(GRID[:3], [0.2, 0.15, 0.1]).p_value == 1


@pytest.mark.parametrize(
    ("alpha1", "density", "message"),
    [
        (0.05, 0.9, r"stays below 0\.105 and can't give 0\.9"),
        (-0.05, 0.0001, r"stays above 0\.00\d+ and can't give 0\.0001"),
        (0.0, 1.0, "density: 1.0 is not a fraction"),
        (0.0, float("nan"), "density: nan is not a fraction"),
    ],
)
def test_densities_that_the_law_does_not_reach_are_refused(alpha1, density, message):
    law = fit_pruning_law(GRID, exact(GRID, alpha1=alpha1))
    with pytest.raises(InputError, match=message):
        law.pressure_for(density)
    with pytest.raises(InputError, match=message):
        law.pressure_interval(density)


def test_a_law_that_rises_with_pressure_has_no_pressure_to_give():
    law = fit_pruning_law(GRID, exact(GRID, alpha0=-0.1, alpha1=0.0), degree=1)
    with pytest.raises(InputError, match="does not fall with pressure"):
        law.pressure_for(0.02)


def test_comparison_prefers_the_law_that_made_the_data():
    rng = np.random.default_rng(0)
    noise = np.exp(rng.normal(0, 0.03, 11))
    straight, bent = (compare_degrees(GRID, exact(GRID, alpha1=alpha1) * noise) for alpha1 in (0.0, 0.06))
    assert straight.preferred is straight.linear
    assert straight.p_value > 0.05
    assert bent.preferred is bent.quadratic
    assert bent.p_value < 1e-4
    x, y = np.log(GRID), np.log(exact(GRID, alpha1=0.0) * noise)
    unexplained = np.polyfit(x, y, 1, full=True)[1][0]
    assert straight.linear.aicc == pytest.approx(11 * np.log(unexplained / 11) + 6 + 24 / 7)
    assert compare_degrees(GRID, exact(GRID, alpha1=0.0)).preferred.degree == 1


def test_both_laws_of_a_comparison_use_the_same_points():
    density = exact(GRID)
    density[4] /= 30
    both = compare_degrees(GRID, density)
    assert both.linear.outliers == both.quadratic.outliers == (4,)


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize(
    ("pressure", "density", "message"),
    [
        ([1, 2, 3], [0.1, 0.2], "same length"),
        ([[1, 2, 3]], [[0.1, 0.2, 0.3]], "same length"),
        ([0, 1, 2], [0.3, 0.2, 0.1], "pressure: every value"),
        ([-1, 1, 2], [0.3, 0.2, 0.1], "pressure: every value"),
        ([1, 2, float("inf")], [0.3, 0.2, 0.1], "pressure: every value"),
        ([1, 2, float("nan")], [0.3, 0.2, 0.1], "pressure: every value"),
        ([1, 2, 3], [0.3, 0.2, 1.0], "density: every value .* and 1 does not"),
        ([1, 2, 3], [0.3, 0.2, 0.0], "density: every value .* and 0 does not"),
        ([1, 2, 3], [0.3, 0.2, float("nan")], "density: every value .* and nan does not"),
        ([1e300, 1e301, 1e302], [0.3, 1e-9, 1e-18], "pressure: all values are too far from 1, where the law"),
        ([1, 2, 3], [0.2, 0.2, 0.2], "density: no spread, every value is 0.2"),
        ([1, 1, 1], [0.3, 0.2, 0.1], "pressure: 1 different values; degree . needs . or more"),
        (["a", 2, 3], [0.3, 0.2, 0.1], "two lists of numbers"),
        ([], [], "pressure: 0 different values"),
    ],
)
def test_data_that_determine_no_law_are_refused(pressure, density, message, degree):
    with pytest.raises(InputError, match=message) as refusal:
        fit_pruning_law(pressure, density, degree=degree)
    assert "\n" not in str(refusal.value)


def test_pressures_that_hardly_differ_are_refused():
    with pytest.raises(InputError, match="pressure: the values lie too close together to tell a law"):
        fit_pruning_law([1, 1 + 1e-15, 1 + 2e-15, 1 + 4e-15], [0.3, 0.2, 0.1, 0.05])


def test_two_pressures_make_a_line_and_no_parabola():
    pressure, density = [1, 1, 2, 2], [0.3, 0.31, 0.1, 0.1]
    assert fit_pruning_law(pressure, density, degree=1).alpha1 == 0
    with pytest.raises(InputError, match="2 different values; degree 2 needs 3 or more"):
        fit_pruning_law(pressure, density)


def test_wrong_questions_are_refused():
    law = fit_pruning_law(*PUBLISHED)
    with pytest.raises(InputError, match="degree: 3 is neither"):
        fit_pruning_law(*PUBLISHED, degree=3)
    with pytest.raises(InputError, match="level: 95 is not a fraction"):
        law.interval(95)
    with pytest.raises(InputError, match="pressure: every value"):
        law.predict([1.0, 0.0])
