"""The narrative of a run: every sentence follows from its tables, and so does its opposite."""

import pytest
from crafted import of_channels, subject, tables

from hyperflux.report.formatting import accuracy, counted, duration, listed, percent, points, shortened
from hyperflux.report.narrative import narrative, short_narrative

FLAT = {"fc1.weight": [100] * 20, "fc2.weight": [100] * 20}


def text_on(topic, run):
    """What the narrative says on a topic; empty if nothing."""
    return " ".join(finding.text for finding in narrative(run) if finding.topic == topic)


def course(**layers):
    """Telemetry in which `fc1` and `fc2` have so many weights left at the end of each of 20 intervals."""
    return tables({f"{name}.weight": left for name, left in layers.items()})


@pytest.mark.parametrize(
    ("left", "text"),
    [
        (100, "200 of 2,000 weights are left, a density of 10 %: exactly the target."),
        (105, "205 of 2,000 weights are left, a density of 10.2 %: 5 more than the target of 200 (2.5 % off)."),
        (90, "190 of 2,000 weights are left, a density of 9.5 %: 10 fewer than the target of 200 (5 % off)."),
    ],
)
def test_the_target_is_met_or_missed_by_so_many_weights(left, text):
    assert text_on("Size", subject({"fc1.weight": 100, "fc2.weight": left})) == text


def test_the_size_of_a_run_of_channels_is_what_they_cost():
    run = of_channels({"fc1": 30, "fc2": 2}, {"fc1": 60, "fc2": 40})
    assert text_on("Size", run) == (
        "32 of 100 channels are left, and 24 % of the dense network's FLOPs; the budget was 25 %. Compacted, the "
        "network has 600 parameters, 30 % of the dense one's, and takes 24 % of the FLOPs."
    )
    unknown = {"flops_ratio": None, "parameters_ratio": None, "compact_parameters": None}
    bare = of_channels({"fc1": 30, "fc2": 2}, {"fc1": 60, "fc2": 40}, **unknown)
    assert text_on("Size", bare) == (  # the density of the last epoch
        "32 of 100 channels are left, and 12.5 % of the dense network's FLOPs; the budget was 25 %."
    )
    assert text_on("Layers at the end", run) == (
        "fc2 (5 %) is starved: below a quarter of the network's share of 32 %. The densest, fc1, keeps 50 %."
    )


def test_channels_are_removed_left_and_come_back():
    totals = {"fc1": 60, "fc2": 40}
    flips = [("fc1", 0, 20), ("fc1", 1, 30), ("fc1", 2, 10), ("fc2", 3, 40)]
    course = {"fc1": [60] * 4 + [30] * 16, "fc2": [35] * 20}
    run = of_channels({"fc1": 30, "fc2": 35}, totals, tables(course, sizes=totals, flips=flips))
    assert text_on("Channels that came back", run) == (
        "Of the 80 channels ever removed, 50 (62.5 %) came back at least once. The most active channel flipped 3 "
        "times. Of the 30 channels left at the end, 10 (33.3 %) had been removed before."
    )
    assert text_on("What was pruned first", run) == (
        "fc1 lost half of its channels by step 50 (50 % into the pruning stage); fc2 kept more than half."
    )
    assert "times γ/J, the mean pressure on a channel." in text_on("Pressure and flux", run)
    taylor = of_channels({"fc1": 30, "fc2": 35}, totals, method="taylor", controller=None)
    assert text_on("Pressure and flux", taylor).startswith("Taylor pruning removes the channels")
    assert not any("weight" in finding.text for finding in [*narrative(run), *narrative(taylor)])


@pytest.mark.parametrize(
    ("dense", "final", "text"),
    [
        (0.98, 0.97, "97.00 % on test data, 1.00 points below the dense network's 98.00 %."),
        (0.98, 0.9825, "98.25 % on test data, 0.25 points above the dense network's 98.00 %."),
        (0.98, 0.98, "98.00 % on test data, the same as the dense network."),
        (
            None,
            0.9,
            "90.00 % on test data. The network was pruned from scratch, so there is no dense accuracy to compare with.",
        ),
    ],
)
def test_accuracy_is_compared_with_the_dense_network(dense, final, text):
    assert text_on("Accuracy", subject(dense_accuracy=dense, final_accuracy=final)) == text


def test_layers_come_in_the_order_in_which_they_lost_half():
    run = subject(telemetry=course(fc1=[600] * 12 + [500] * 8, fc2=[600, 400] + [300] * 18))
    assert text_on("What was pruned first", run) == (
        "Layers lost half of their weights in this order: fc2.weight by step 20 (20 % into the pruning stage) and "
        "fc1.weight by step 130 (30 % into the regrowth stage)."
    )


def test_layers_that_kept_more_than_half_are_named():
    run = subject(telemetry=course(fc1=[501] * 20, fc2=[900] * 4 + [300] * 16))
    assert text_on("What was pruned first", run) == (
        "fc2.weight lost half of its weights by step 50 (50 % into the pruning stage); fc1.weight kept more than half."
    )
    assert text_on("What was pruned first", subject(telemetry=course(fc1=[501] * 20, fc2=[502] * 20))) == (
        "No layer lost half of its weights."
    )


def test_of_many_layers_the_first_three_and_the_last_are_named():
    names = [f"layer{number}" for number in range(9)]
    sizes = dict.fromkeys(names, 100)
    falling = {name: [90] * number + [10] * (20 - number) for number, name in enumerate(names)}
    run = subject(dict.fromkeys(names, 10), tables(falling, sizes=sizes), sizes=sizes)
    text = text_on("What was pruned first", run)
    assert text.startswith(
        "The first to lose half of their weights: layer0 by step 10 (10 % into the pruning stage), layer1 by"
    )
    assert text.endswith("The last of 9: layer8 by step 90 (90 % into the pruning stage).")


@pytest.mark.parametrize(
    ("left", "text"),
    [
        ((150, 50), "No layer is starved: the sparsest, fc2.weight, keeps 5 % of its weights."),
        ((190, 10), "fc2.weight (1 %) is starved: below a quarter of the network's density of 10 %."),
        ((200, 0), "fc2.weight has no weights left: unless a shortcut leads around, nothing passes"),
    ],
)
def test_cut_and_starved_layers_are_named(left, text):
    found = text_on("Layers at the end", subject(dict(zip(("fc1.weight", "fc2.weight"), left, strict=True))))
    assert text in found
    assert found.endswith(f"The densest, fc1.weight, keeps {percent(left[0] / 1000)}.")
    assert sum(word in found for word in ("No layer", "%) is starved", "no weights left")) == 1


def test_a_network_of_one_layer_says_nothing_on_starving():
    assert text_on("Layers at the end", subject({"fc1.weight": 100})) == ""


@pytest.mark.parametrize(
    ("flips", "text"),
    [
        ([("a", 0, 2000)], "No weight was ever pruned."),
        ([("a", 0, 200), ("a", 1, 1800)], "None of the 1,800 pruned weights came back."),
        ([("a", 1, 2000)], "None of the 2,000 pruned weights came back."),
        (
            [("a", 0, 100), ("a", 1, 1500), ("a", 2, 60), ("b", 2, 40), ("a", 3, 290), ("b", 11, 10)],
            "Of the 1,900 weights ever pruned, 400 (21.1 %) came back at least once. The most active weight flipped 11 "
            "times. Of the 200 weights present at the end, 100 (50 %) had been pruned before.",
        ),
        (
            [("a", 1, 1990), ("a", 3, 10)],
            "Of the 2,000 weights ever pruned, 10 (0.5 %) came back at least once. The most active weight flipped 3 "
            "times.",
        ),
    ],
)
def test_weights_that_came_back_are_counted(flips, text):
    assert text_on("Weights that came back", subject(telemetry=tables(FLAT, flips=flips))) == text


@pytest.mark.parametrize(
    ("ages", "text"),
    [
        ([("a", 0, 200, 1800)], "The mask never changed."),
        (
            [("a", 0, 100, 0), ("a", 150, 100, 1800)],
            "The mask settled: its last change came by step 150 of 200, and the final network trained for the "
            "remaining 25 % of the run.",
        ),
        (
            [("a", 0, 100, 0), ("a", 150, 80, 1790), ("a", 190, 15, 4), ("b", 200, 5, 6)],
            "The mask was still changing at the end: in the last tenth of the run, 20 weights came back to stay (10 % "
            "of those present) and 10 were pruned for good.",
        ),
        (
            [("a", 200, 0, 2000)],
            "The mask was still changing at the end: in the last tenth of the run, 0 weights came back to stay and "
            "2,000 were pruned for good.",
        ),
    ],
)
def test_whether_the_mask_had_settled(ages, text):
    assert text_on("The mask", subject(telemetry=tables(FLAT, ages=ages))) == text


def test_pressure_comes_with_its_range_its_peak_and_its_flux():
    telemetry = tables(FLAT)
    telemetry["network"]["pressure"][:10] = [0, 0, 0.1, 0.2, 0.4, 0.8, 0.4, 0.2, 0.2, 0.2]
    text = text_on("Pressure and flux", subject(telemetry=telemetry))
    assert text == (
        "Pressure γ ranged from 0.1 to 0.8. It peaked at step 60 (60 % into the pruning stage) and ended the stage at "
        "0.2. It was 0 for 20 % of the stage. The restoring flux of weights that had just come back was typically "
        "5 times γ/N."
    )
    assert text_on("Pressure and flux", subject(telemetry=tables(FLAT, pressure=0))) == "The pressure was always 0."


def test_magnitude_pruning_has_no_pressure_and_says_so():
    run = subject(telemetry=tables(FLAT, pressure=0), method="magnitude", controller=None)
    assert (
        text_on("Pressure and flux", run)
        == "Magnitude pruning removes the smallest weights; it has neither pressure nor flux."
    )


def test_without_telemetry_the_narrative_says_what_is_missing_and_how_to_get_it():
    topics = [finding.topic for finding in narrative(subject())]
    assert topics == ["Size", "Accuracy", "Layers at the end", "Telemetry"]
    assert "Run it again with --telemetry light" in text_on("Telemetry", subject())
    assert text_on("Telemetry", subject(telemetry=tables(FLAT))) == ""


def test_the_short_narrative_is_part_of_the_whole():
    run = subject(telemetry=tables(FLAT))
    assert set(short_narrative(run)) < set(narrative(run))


@pytest.mark.parametrize(
    ("fraction", "text"),
    [(0, "0 %"), (1, "100 %"), (0.5, "50 %"), (0.02, "2 %"), (0.9995, "99.95 %"), (0.000457, "0.0457 %"),
     (0.1234, "12.3 %"), (0.985, "98.5 %"), (1.5, "150 %"), (0.99999, "99.999 %"), (0.1, "10 %")],
)  # fmt: skip
def test_percent(fraction, text):
    assert percent(fraction) == text


def test_other_words():
    assert (accuracy(0.98333), points(-0.0037), points(0.001)) == ("98.33 %", "−0.37 points", "+0.10 points")
    assert [duration(s) for s in (0.5, 72.82, 600, 60 * 125)] == ["0.5 s", "72.8 s", "10 min", "2 h 5 min"]
    assert listed(["a"]) == "a"
    assert listed(list("abcdef")) == "a, b, c and 3 more"
    assert (counted(1, "weight"), counted(2000, "weight")) == ("1 weight", "2,000 weights")
    assert (shortened("layer1.conv", 6), shortened("naïve\n", 9)) == ("….conv", "na?ve?")
