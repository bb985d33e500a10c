"""Pickles, counted before they are unpickled: what torch.save writes passes, what would take for ever does not."""

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict

import pytest
import torch
from bad_weights import doubled
from hypothesis import given
from hypothesis import strategies as st

from hyperflux.backends.torch import pickles
from hyperflux.backends.torch.pickles import check_pickle

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers()
NESTED = st.recursive(
    PLAIN | st.builds(torch.ones, st.integers(0, 3)),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(), inner)
        | st.dictionaries(st.text(), inner).map(OrderedDict)
        | st.lists(inner).map(tuple)
        | inner.map(lambda value: [value, value, (value,)])
    ),
    max_leaves=20,
)


def saved_pickle(content):
    """The pickle in a file of torch.save."""
    file = io.BytesIO()
    torch.save(content, file)
    with zipfile.ZipFile(file) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        return archive.read(name)


@given(NESTED)
def test_what_torch_saves_passes_up_to_its_end(content):
    file = io.BytesIO(saved_pickle(content) + b"more")
    check_pickle(file)
    assert file.read() == b"more"


@given(NESTED, st.integers(0, 5))
def test_what_python_pickles_passes(content, protocol):
    check_pickle(io.BytesIO(pickle.dumps(content, protocol)))


@given(st.lists(st.sampled_from([code for code in pickletools.opcodes if code.arg is None]), max_size=30))
def test_any_operations_are_counted_or_refused(operations):
    try:
        check_pickle(io.BytesIO(b"".join(code.code.encode("latin-1") for code in operations)))
    except ValueError as error:
        assert str(error)  # noqa: PT017


def refusal(content):
    with pytest.raises(ValueError, match=r"it holds|it fetches|pickle exhausted") as caught:
        check_pickle(io.BytesIO(content))
    return str(caught.value)


def test_values_are_counted(monkeypatch):
    monkeypatch.setattr(pickles, "MAX_VALUES", 100)
    check_pickle(io.BytesIO(b"\x80\x02" + b"]" * 98 + b"."))
    assert "more than 100 values" in refusal(b"\x80\x02" + b"]" * 99 + b".")


def test_what_is_fetched_counts_with_all_that_is_in_it(monkeypatch):
    monkeypatch.setattr(pickles, "MAX_VALUES", 100)
    check_pickle(io.BytesIO(doubled(levels=3)))
    assert "more than 100 values" in refusal(doubled(levels=5))


def test_a_tensor_takes_about_twenty(monkeypatch):
    saved = saved_pickle({f"layer{number}.weight": torch.ones(1) for number in range(100)})
    monkeypatch.setattr(pickles, "MAX_VALUES", 2500)
    check_pickle(io.BytesIO(saved))
    monkeypatch.setattr(pickles, "MAX_VALUES", 1500)
    refusal(saved)


@pytest.mark.parametrize("content", [b"", b"\x80\x02h\x07.", b"\x80\x02t.", b"\x80\x02q\x00.", b"\x80\x02(]"])
def test_what_is_no_pickle_is_refused(content):
    refusal(content)
