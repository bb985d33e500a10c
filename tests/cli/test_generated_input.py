"""Generated input through the whole command line: taken, or refused in one line, within ten seconds and a gigabyte.

The limits are those of `front_door.py`: seconds of the processor, and memory beyond what the libraries take.
"""

import pytest
from front_door import LONGEST, ROOM, bad_input
from generated import GROUPS


@pytest.mark.parametrize("group", GROUPS)
def test_generated_input_is_taken_or_refused_in_one_line(tmp_path, group):
    outcomes = bad_input([group], tmp_path)
    assert [outcome.name for outcome in outcomes] == [case.name for case in GROUPS[group]]
    wrong = [f"{outcome.name}: {what}" for outcome in outcomes for what in faults(outcome)]
    assert not wrong, "\n".join(wrong)


def faults(outcome):
    """What an outcome has that none may have."""
    lines = outcome.err.splitlines()
    if outcome.code not in (0, 2):
        yield f"exit code {outcome.code}: {outcome.err[-1500:]}"
    elif outcome.code == 0 and not all(line.startswith("hyperflux: ") for line in lines):
        yield f"on standard error: {outcome.err[:500]!r}"
    elif outcome.code == 2 and not (len(lines) == 1 and lines[0].startswith("hyperflux: ") and lines[0].isprintable()):
        yield f"not one line: {outcome.err[:500]!r}"
    if outcome.code == 2 and (outcome.left_behind or outcome.out):
        yield f"left behind: {outcome.left_behind}, {outcome.out[:200]!r}"
    if "'executed'" in outcome.left_behind or any(".part" in name for name in outcome.left_behind):
        yield f"left behind: {outcome.left_behind}"
    if outcome.seconds > LONGEST:
        yield f"took {outcome.seconds:.1f} s"
    if outcome.taken_bytes > ROOM:
        yield f"took {outcome.taken_bytes:,} bytes"
