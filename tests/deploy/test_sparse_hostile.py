"""A sparse-safetensors file is not trusted: damage is found, and nothing in it takes memory or crashes."""

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from sparse_files import crafted, same_bits

from hyperflux import InputError
from hyperflux.deploy.sparse_file import read_sparse, sparse_content, sparse_tensors

NETWORK = {
    "fc.weight": torch.eye(20),
    "fc.bias": torch.linspace(-1, 1, 7).bfloat16(),
    "mask": torch.zeros(5, 9, dtype=torch.bool),
    "count": torch.tensor(3),
}
WHOLE = sparse_content(NETWORK, {"producer": "a test"})
INDICES, VALUES = torch.tensor([1, 5], dtype=torch.uint8), torch.tensor([1.0, 2.0])


def refusal(content, **limits):
    """The one line with which these bytes are refused."""
    with pytest.raises(InputError) as caught:
        sparse_tensors(content, "some.file", **limits)
    message = str(caught.value)
    assert message.startswith("some.file: ")
    assert message.isprintable()
    assert len(message) < 300
    return message


def read_or_line(content, **limits):
    """The tensors of these bytes, or the line with which they are refused."""
    try:
        return sparse_tensors(content, "file", **limits)
    except InputError as error:
        return str(error)


def refused_or_same(content):
    found = read_or_line(content)
    if isinstance(found, str):
        assert found.isprintable()
    else:
        assert found.keys() == NETWORK.keys()
        assert all(same_bits(found[name], NETWORK[name]) for name in NETWORK)


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_a_changed_byte_is_found_or_harmless(place, change):
    refused_or_same(WHOLE[:place] + bytes([WHOLE[place] ^ change]) + WHOLE[place + 1 :])


@pytest.mark.parametrize("bit", range(8))
def test_every_flipped_bit_is_found_or_harmless(bit):
    for place in range(len(WHOLE)):
        refused_or_same(WHOLE[:place] + bytes([WHOLE[place] ^ 1 << bit]) + WHOLE[place + 1 :])


@given(st.integers(0, len(WHOLE)), st.integers(0, 40), st.binary(max_size=40))
def test_bytes_left_out_or_put_in_are_found_or_harmless(place, left_out, put_in):
    refused_or_same(WHOLE[:place] + put_in + WHOLE[place + left_out :])


@given(st.binary(max_size=200))
def test_noise_is_refused(content):
    assert "is not a readable .safetensors file" in refusal(content)


def test_every_cut_is_refused():
    for length in range(len(WHOLE)):
        refusal(WHOLE[:length])


def entry(shape, dtype="float32"):
    return {"w": {"shape": shape, "dtype": dtype}}


def parts(indices=INDICES, values=VALUES):
    return {"w.indices": indices, "w.values": values}


def test_the_crafted_file_that_the_following_spoil_is_good():
    back = sparse_tensors(crafted(entry([2, 3]), parts()), "file")
    assert torch.equal(back["w"], torch.tensor([[0.0, 1, 0], [0, 0, 2]]))


@pytest.mark.parametrize(
    ("table", "stored", "message"),
    [
        (entry([2, 2]), parts(), "has indices that do not rise, or reach beyond its 4 elements"),
        (entry([2, 3]), parts(INDICES.flip(0)), "has indices that do not rise, or reach beyond its 6 elements"),
        (entry([2, 3]), parts(torch.tensor([5, 5], dtype=torch.uint8)), "has indices that do not rise"),
        (entry([1]), parts(), "has parts of shape [2] and [2]"),
        (entry([0]), parts(), "has parts of shape [2] and [2]"),
        (entry([2, 3]), parts(INDICES[:1]), "has parts of shape [1] and [2]"),
        (entry([2, 3]), parts(INDICES[None], VALUES[None]), "has parts of shape [1, 2] and [1, 2]"),
        (entry([2, 3]), parts(INDICES.to(torch.int64)), "has parts of dtype int64 and float32"),
        (entry([2, 3]), parts(INDICES.to(torch.uint16)), "has parts of dtype uint16 and float32"),
        (entry([257]), parts(), "has parts of dtype uint8 and float32"),
        (entry([2, 3], "float64"), parts(), "has parts of dtype uint8 and float32"),
        (entry([2, 3], "float31"), parts(), "has no shape or no known dtype"),
        (entry([2, 3], ["float32"]), parts(), "has no shape or no known dtype"),
        ({"w": {"shape": [2, 3]}}, parts(), "has no shape or no known dtype"),
        ({"w": [2, 3]}, parts(), "has no shape or no known dtype"),
        (entry([-2, -3]), parts(), "has the impossible shape [-2, -3]"),
        (entry([2.0, 3]), parts(), "has the impossible shape [2.0, 3]"),
        (entry([True, 6]), parts(), "has the impossible shape [True, 6]"),
        (entry("23"), parts(), "has the impossible shape '23'"),
        (entry(6), parts(), "has the impossible shape 6"),
        (entry([1] * 65), parts(), "has the impossible shape [1, 1, "),
        (entry([1 << 63]), parts(), "has the impossible shape"),
        (entry([1 << 40, 1 << 40, 0]), parts(), "has the impossible shape"),
        (entry([2, 3]), {"w.indices": INDICES}, "is not stored as indices and values"),
        (entry([2, 3]), {"w.values": VALUES}, "is not stored as indices and values"),
        (entry([2, 3]), {**parts(), "w": torch.ones(2, 3)}, "is not stored as indices and values"),
        ("[]", parts(), "its table of shapes is not a JSON object"),
        ("{", parts(), "its table of shapes is not JSON"),
        ("[" * 100_000, parts(), "its table of shapes is not JSON"),
        ("", parts(), "its table of shapes is not JSON"),
        ('{"\\u001b[31m\\n": 3}', parts(), "tensor '\\x1b[31m\\n' has no shape or"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(table, stored, message):
    """The sum of these files is right: whoever wrote them meant it."""
    assert message in refusal(crafted(table, stored))


def test_bytes_that_are_no_bool_are_refused():
    odd = torch.tensor([1, 2], dtype=torch.uint8).view(torch.bool)
    assert "has booleans other than 0 and 1" in refusal(crafted({}, {"w": odd}))
    assert "has booleans other than 0 and 1" in refusal(crafted(entry([2, 3], "bool"), parts(values=odd)))


@pytest.mark.parametrize("shape", [[1 << 48], [1 << 24, 1 << 24], [1 << 16] * 3], ids=str)
def test_a_claim_of_a_petabyte_takes_no_memory(shape):
    content = crafted(entry(shape), parts(INDICES.to(torch.uint64)))
    assert "asks for 1,125,899,906,842,624 bytes of memory, more than max_bytes" in refusal(content)
    assert "more than this machine has" in refusal(content, max_bytes=1 << 62)


def test_the_limit_holds_for_all_tensors_together_and_to_the_byte():
    both = {name.replace("w", other): part.clone() for other in "uv" for name, part in parts().items()}
    content = crafted({"u": entry([6])["w"], "v": entry([6])["w"]}, both)
    assert "asks for 48 bytes of memory, more than max_bytes (47)" in refusal(content, max_bytes=47)
    assert sparse_tensors(content, "file", max_bytes=48).keys() == {"u", "v"}


def test_a_dense_claim_beyond_the_file_is_refused():
    header = b'{"w":{"dtype":"F32","shape":[1125899906842624],"data_offsets":[0,4503599627370496]}}'
    assert "is not a readable .safetensors file" in refusal(len(header).to_bytes(8, "little") + header + bytes(8))
    assert "is not a readable .safetensors file" in refusal((1 << 50).to_bytes(8, "little") + bytes(100))


def test_a_dtype_that_torch_does_not_read_is_refused():
    header = b'{"w":{"dtype":"F8_E8M0","shape":[8],"data_offsets":[0,8]}}'
    assert "is not a readable .safetensors file" in refusal(len(header).to_bytes(8, "little") + header + bytes(8))


def test_other_versions_and_ordinary_files_are_refused_by_name():
    assert "has version '2' of sparse-safetensors; this hyperflux reads version 1; install a newer" in refusal(
        crafted(entry([2, 3]), parts(), **{"sparse-safetensors": "2"})
    )
    ordinary = "is an ordinary .safetensors file, not a sparse one; read it with a safetensors library"
    assert ordinary in refusal(save(NETWORK))
    assert ordinary in refusal(save(NETWORK, {"format": "pt"}))


def test_a_sum_that_is_wrong_or_missing_is_refused():
    assert "is damaged: its content does not match its checksum" in refusal(
        crafted(entry([2, 3]), parts(), sha256="0" * 64)
    )
    assert "does not match its checksum" in refusal(save(parts(), {"sparse-safetensors": "1", "sparse": "{}"}))
    assert "does not match its checksum" in refusal(save(parts(), {"sparse-safetensors": "1"}))


SIZES = st.integers(0, 9) | st.sampled_from([-1, 300, 1 << 32, 1 << 62, 1 << 63, 1 << 70, 0.5, None, True, "3"])
INDEX_LISTS = st.sets(st.integers(0, 40), max_size=4).map(sorted) | st.lists(st.integers(0, 255), max_size=4)
WIDTHS = st.sampled_from([torch.uint8] * 4 + [torch.uint16, torch.uint32, torch.uint64, torch.int64])


@given(
    st.lists(SIZES, max_size=3) | SIZES,
    INDEX_LISTS,
    st.sampled_from([0, 0, 0, 1]),
    WIDTHS,
    st.sampled_from(["float32", "float32", "int32", "bool", "float99"]),
)
def test_whatever_a_file_claims_is_refused_or_given(shape, indices, more, width, dtype):
    """Where it is given, the shape is the one claimed and the values stand in their places."""
    values = torch.ones(len(indices) + more)
    content = crafted(entry(shape, dtype), parts(torch.tensor(indices, dtype=width), values))
    found = read_or_line(content, max_bytes=1 << 24)
    if isinstance(found, str):
        assert found.isprintable()
    else:
        tensor = found["w"]
        assert list(tensor.shape) == shape
        assert tensor.flatten().nonzero().flatten().tolist() == indices
        assert tensor.sum() == len(values)


def test_a_path_that_is_no_file_is_refused(tmp_path):
    for path in (tmp_path / "nowhere", tmp_path, tmp_path / "x" / "y", "/dev/zero"):
        with pytest.raises(InputError, match="no such file"):
            read_sparse(type(tmp_path)(path))


def test_a_file_larger_than_the_limit_is_not_read(tmp_path):
    (tmp_path / "huge").touch()
    os.truncate(tmp_path / "huge", 1 << 37)
    with pytest.raises(InputError, match=r"huge: has 137,438,953,472 bytes, more than max_bytes \(68,719,476,736\)"):
        read_sparse(tmp_path / "huge")
