"""What a gate may hold, as it is written."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflux import InputError
from hyperflux.gates.kinds import MAX_GROUP, Pattern, gate_kind, require_weights


@pytest.mark.parametrize("name", ["weights", "channels"])
def test_names(name):
    assert gate_kind(name) == name


@given(st.integers(1, 70), st.integers(1, 70))
def test_patterns(kept, group):
    """E18: N:M with N < M, in its one spelling; as text or as what it stands for."""
    for value in (f"{kept}:{group}", Pattern(kept, group)):
        if kept < group <= MAX_GROUP:
            assert gate_kind(value) == Pattern(kept, group)
            assert str(gate_kind(value)) == f"{kept}:{group}"
            assert gate_kind(value).density == kept / group
        else:
            with pytest.raises(InputError, match=r"give weights, channels, or N:M such as 2:4 with N < M <= 64$"):
                gate_kind(value)


ODD_TEXTS = ["", "Channels", "channels ", "2:4\n", " 2:4", "02:4", "2:04", "0:4", "4:2", "4:4", "-2:4", "2/4", "2:4:8"]
ODD = [*ODD_TEXTS, "1e0:4", "٢:٤", "2:999999999999", None, True, 2, 0.5, ["channels"], (2, 4), b"2:4", Pattern(0, 4)]


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_anything_else_is_refused_in_one_line(value):
    with pytest.raises(InputError) as told:
        gate_kind(value)
    assert re.fullmatch(r"gates: [^\n]* is not known; give weights, channels, or N:M [^\n]*", str(told.value))


@given(st.text(max_size=8))
def test_any_text_is_a_kind_or_refused(text):
    try:
        kind = gate_kind(text)
    except InputError:
        return
    assert str(kind) == text


def test_a_sweep_takes_single_weights_only():
    require_weights("weights")
    for kind in ("channels", Pattern(2, 4)):
        with pytest.raises(
            InputError, match=f"^gates {kind}: a pressure sweep prunes single weights; leave gates out$"
        ):
            require_weights(kind)
