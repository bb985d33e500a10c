"""Whatever is handed in, the command answers in one line: hundreds of bad inputs through the whole command line.

Each ends within seconds with exit code 2 and one line on standard error, executes nothing, takes less than a gigabyte
and leaves no file behind.
"""

import pytest
from front_door import GIGABYTE, LONGEST, bad_input
from front_door_cases import GROUPS

BATCHES = (("options", "recipes"), ("reports", "metrics", "telemetry"), ("places", "weights", "checkpoints"),
           ("idx", "images", "tables"))  # fmt: skip


def test_every_group_is_in_one_batch_and_there_are_hundreds_of_cases():
    assert sorted(name for batch in BATCHES for name in batch) == sorted(GROUPS)
    assert sum(map(len, GROUPS.values())) >= 400


@pytest.mark.parametrize("groups", BATCHES, ids=", ".join)
def test_bad_input_gets_one_line_and_exit_code_2(tmp_path, groups):
    outcomes = bad_input(groups, tmp_path)
    assert len(outcomes) == sum(len(GROUPS[name]) for name in groups)
    wrong = [f"{outcome.name}: {what}" for outcome in outcomes for what in faults(outcome)]
    assert not wrong, "\n".join(wrong)


def faults(outcome):
    """What an outcome has that none may have."""
    lines = outcome.err.splitlines()
    if outcome.code != 2:
        yield f"exit code {outcome.code}: {outcome.err[-1000:]}"
    elif len(lines) != 1 or not lines[0].startswith("hyperflux: ") or not lines[0].isprintable():
        yield f"not one line: {outcome.err[:500]!r}"
    elif len(lines[0]) > 1020:
        yield f"a line of {len(lines[0])} characters"
    if outcome.out:
        yield f"on standard output: {outcome.out[:200]!r}"
    if outcome.left_behind:
        yield f"left behind: {outcome.left_behind}"
    if outcome.seconds > LONGEST:
        yield f"took {outcome.seconds:.1f} s"
    if outcome.peak_bytes > GIGABYTE:
        yield f"took {outcome.peak_bytes:,} bytes"
