"""Warnings: each once, in the outcome too, and only when true."""

import numpy as np
import pytest
from crafted import subject
from hypothesis import assume, given
from hypothesis import strategies as st
from interrupted import quick
from scipy.stats import binom

from hyperflux.report.narrative import narrative, short_narrative
from hyperflux.runs.driver import execute
from hyperflux.runs.folder import read_run
from hyperflux.schedules.published import PublishedSchedule
from hyperflux.session.warnings import CHANCE, Warnings, at_chance, is_guessing, out_of_reach

BACKENDS = ["numpy", "torch"]
PUBLISHED = PublishedSchedule(0.05, 40, 30, 4, 3, presence_reset=0.5, presence_decay=0.5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_layers_and_an_accuracy_at_chance_are_announced_once_and_recorded(tmp_path, backend):
    """One of 240 weights is left: a layer has none, and the network can but guess."""
    told = []
    report = execute(quick(backend=backend, sparsity=1 - 1 / 240), tmp_path / "run", announce=told.append)
    (name,) = [layer.name for layer in report.layers if not layer.surviving]
    empty = [line for line in told if line.startswith(f"{name}: has nothing left after step ")]
    assert len(empty) == 1
    assert empty[0].endswith(f"prune less or, on the torch backend, exclude {name}")
    chance = [line for line in told if line.startswith("accuracy: ")]
    assert chance == [
        f"accuracy: {report.final_accuracy:.4f} after pruning is no better than guessing one of 4 classes; use a "
        "lower sparsity, or more epochs"
    ]
    assert report.warnings == told
    assert read_run(tmp_path / "run").outcome.warnings == told


def test_a_run_as_it_should_be_has_no_warnings(tmp_path):
    told = []
    assert execute(quick(), tmp_path / "run", announce=told.append).warnings == told == []


def test_a_published_run_that_misses_its_target_by_far_says_so(tmp_path):
    """E9, E10: with steps that just pass the check at the start."""
    pruning = {"epochs": 5, "presence_learning_rate": 1.2e-2}
    report = execute(quick(controller="published", pruning=pruning), tmp_path / "run")
    assert abs(1 - report.final_sparsity - 0.2) > 0.02
    (line,) = [line for line in report.warnings if line.startswith("density: after step ")]
    assert "it can get no closer to the target of 0.2 than" in line


def test_the_reach_of_the_published_course_by_hand():
    """E10: intervals of 10 steps at rates of 1e-3, then 5e-4, 2.5e-4, 1.25e-4."""
    assert [PUBLISHED.max_travel(step) for step in (0, 35, 40, 45, 69, 70, 90)] == pytest.approx(
        [48.75e-3, 13.75e-3, 8.75e-3, 6.25e-3, 0.125e-3, 0, 0]
    )


class Cloud:
    """A gate of these t after some steps."""

    def __init__(self, t, steps):
        self.t, self.steps, self.total = np.array(t), steps, len(t)

    def above(self, level):
        return int((self.t >= level).sum())


@given(st.lists(st.floats(-0.03, 0.03), min_size=1, max_size=60), st.integers(0, 70), st.randoms(use_true_random=False))
def test_what_is_called_out_of_reach_is_not_reached_by_any_walk_of_such_steps(t, steps, random):
    """E10: whichever way each t goes in the steps left, at most its learning rate a step."""
    gate, reach = Cloud(t, steps), PUBLISHED.max_travel(steps)
    end = Cloud(gate.t + [random.uniform(-reach, reach) for _ in t], 70)
    assume(out_of_reach(PUBLISHED, gate, "now") is not None)
    assert out_of_reach(PUBLISHED, end, "at the end") is not None


@given(st.integers(1, 20_000), st.integers(2, 1000), st.floats(0, 1))
def test_guessing_is_what_a_binomial_draw_may_well_be(samples, classes, share):
    right = round(share * samples)
    may_be = binom.sf(right - 1, samples, 1 / classes) >= CHANCE
    assert is_guessing(right / samples, samples, classes) == may_be


def test_a_dense_network_that_guesses_too_is_no_matter_of_pruning():
    assert at_chance(0.105, 360, 10, 0.98) is not None
    assert at_chance(0.105, 360, 10, None) is not None
    assert at_chance(0.105, 360, 10, 0.11) is None
    assert at_chance(0.2, 360, 10, 0.98) is None


def test_each_topic_is_told_once():
    told = []
    warnings = Warnings(told.append)
    for topic, line in (("a", "one"), ("b", None), ("a", "two"), ("b", "three")):
        warnings.warn_once(topic, line)
    assert told == ["one", "three"]
    assert warnings.lines == {"a": "one", "b": "three"}


def test_the_page_shows_warnings():
    run = subject(warnings=["fc1.weight: has no weight left after epoch 3", "2 steps were skipped"])
    for told in (narrative(run), short_narrative(run)):
        (said,) = [statement.text for statement in told if statement.topic == "Warnings"]
        assert said == "fc1.weight: has no weight left after epoch 3. 2 steps were skipped."
    assert "Warnings" not in {statement.topic for statement in narrative(subject())}
