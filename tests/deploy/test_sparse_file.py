"""sparse-safetensors: every tensor comes back bit for bit, files are small, and what it writes anybody can read."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, load_file
from sparse_files import content_sum, metadata_of, same_bits

from hyperflux import InputError, RunError
from hyperflux.deploy.sparse_file import read_sparse, sparse_content, sparse_tensors, write_sparse
from hyperflux.deploy.sparse_format import index_dtype
from hyperflux.deploy.tensor_bits import STORABLE

DTYPES = [getattr(torch, name) for name in STORABLE]
SPECIAL = {
    torch.float64: (0x8000000000000000, 0x7FF8000000000001, 0xFFF0000000000001, 1),
    torch.float32: (0x80000000, 0x7FC00001, 0xFF800001, 1),
    torch.bfloat16: (0x8000, 0x7FC1, 0xFF81, 1),
    torch.float16: (0x8000, 0x7E01, 0xFC01, 1),
}
"""Bits of −0.0, a quiet and a signalling NaN with a payload, and the smallest subnormal."""


def from_integers(bits, dtype, shape):
    """A tensor of these bits, given as non-negative integers."""
    array = np.array(bits, f"u{dtype.itemsize}").view(np.uint8)
    return torch.from_numpy(array.copy()).view(dtype).reshape(shape) if bits else torch.zeros(shape, dtype=dtype)


@st.composite
def tensors(draw):
    """Any dtype, 0 to 3 dimensions of 0 to 12, from all zero to none zero, bits of every kind."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 12), max_size=3))
    greatest = 1 if dtype == torch.bool else (1 << 8 * dtype.itemsize) - 1
    anything = st.integers(0, greatest) | st.sampled_from(SPECIAL.get(dtype, (1,)))
    places = math.prod(shape)
    filled = draw(st.dictionaries(st.integers(0, max(places - 1, 0)), anything, max_size=places))
    rest = draw(st.sampled_from([0, 0, 0, 1]))
    return from_integers([filled.get(place, rest) for place in range(places)], dtype, shape)


NAMES = st.lists(st.sampled_from(["a", "b", "weight", "indices", "values", "é"]), min_size=1, max_size=3).map(".".join)


@given(st.dictionaries(NAMES, tensors(), max_size=6))
def test_every_tensor_comes_back_bit_for_bit(network):
    """Names that end in .indices or .values, of the tensors' own, come up often."""
    back = sparse_tensors(sparse_content(network), "file")
    assert list(back) == sorted(network)
    assert all(same_bits(back[name], network[name]) for name in network)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (40, 50)], ids=str)
@pytest.mark.parametrize("filled", ["not", "at one place", "everywhere"])
def test_every_dtype_and_kind_of_shape(dtype, shape, filled):
    places = math.prod(shape)
    bits = [0 if filled == "not" else 1] * places
    if filled == "at one place":
        bits[1:] = [0] * len(bits[1:])
    tensor = from_integers(bits, dtype, shape)
    content = sparse_content({"layer": tensor})
    assert same_bits(sparse_tensors(content, "file")["layer"], tensor)
    one_place = dtype.itemsize + index_dtype(places).itemsize
    assert ("layer" in load(content)) == (sum(bits) * one_place >= tensor.nbytes)


@pytest.mark.parametrize("dtype", SPECIAL, ids=str)
def test_negative_zero_and_nan_payloads_are_places_that_are_not_zero(dtype):
    bits = [*SPECIAL[dtype], *[0] * 96]
    stored = load(sparse_content({"layer": from_integers(bits, dtype, (10, 10))}))
    assert stored["layer.indices"].tolist() == [0, 1, 2, 3]
    assert same_bits(stored["layer.values"], from_integers(list(SPECIAL[dtype]), dtype, (4,)))


@pytest.mark.parametrize(
    ("places", "width"),
    [(256, torch.uint8), (257, torch.uint16), (65_536, torch.uint16), (65_537, torch.uint32)],
)
def test_indices_are_as_wide_as_the_tensor_demands(places, width):
    tensor = torch.zeros(places)
    tensor[-1] = 3
    content = sparse_content({"layer": tensor})
    assert load(content)["layer.indices"].dtype == width
    assert same_bits(sparse_tensors(content, "file")["layer"], tensor)


def test_more_than_32_bits_of_places_take_64():
    assert index_dtype(1 << 32) == torch.uint32
    assert index_dtype((1 << 32) + 1) == torch.uint64


def test_the_smaller_of_both_ways_is_taken():
    """Of 200 float32 the places take 1 byte and the values 4: dense at 160 places, which is 800 bytes either way."""
    for nonzero in (159, 160):
        stored = load(sparse_content({"layer": (torch.arange(200) < nonzero).float()}))
        assert ("layer" in stored) == (nonzero == 160)


def pruned(*shapes, density=0.02):
    """Weights of these shapes with round(density · N) entries that are not 0, and a bias for each."""
    generator = torch.Generator().manual_seed(0)
    network = {}
    for number, shape in enumerate(shapes, start=1):
        weight, places = torch.zeros(math.prod(shape)), math.prod(shape)
        left = torch.randperm(places, generator=generator)[: round(density * places)]
        weight[left] = torch.randn(len(left), generator=generator)
        network[f"layer{number}.weight"] = weight.reshape(shape)
        network[f"layer{number}.bias"] = torch.randn(shape[0], generator=generator)
    return network


@pytest.mark.parametrize(
    "shapes", [[(300, 784), (100, 300), (10, 100)], [(64, 3, 3, 3), (128, 64, 3, 3), (10, 128)]], ids=["lenet", "conv"]
)
def test_a_network_of_98_percent_sparsity_takes_a_twentieth(tmp_path, shapes):
    network = pruned(*shapes)
    write_sparse(tmp_path / "file.safetensors", network)
    assert (tmp_path / "file.safetensors").stat().st_size <= 0.05 * sum(tensor.nbytes for tensor in network.values())
    back = read_sparse(tmp_path / "file.safetensors")
    assert all(same_bits(back[name], network[name]) for name in network)


def test_the_parts_are_read_by_the_library_and_put_together_by_hand(tmp_path):
    network = pruned((300, 70))
    write_sparse(tmp_path / "file.safetensors", network, {"producer": "a test"})
    stored = load_file(tmp_path / "file.safetensors")
    assert sorted(stored) == ["layer1.bias", "layer1.weight.indices", "layer1.weight.values"]
    weight = torch.zeros(300 * 70)
    weight[stored["layer1.weight.indices"].long()] = stored["layer1.weight.values"]
    assert torch.equal(weight.reshape(300, 70), network["layer1.weight"])
    metadata = metadata_of((tmp_path / "file.safetensors").read_bytes())
    assert metadata["producer"] == "a test"
    assert metadata["sparse"] == '{"layer1.weight": {"dtype": "float32", "shape": [300, 70]}}'
    assert metadata["sha256"] == content_sum(metadata["sparse"], stored)


def test_tensors_that_share_or_stride_memory_are_written_as_they_look():
    weight = torch.arange(12.0).reshape(3, 4)
    network = {
        "tied": weight,
        "again": weight,
        "transposed": weight.T,
        "part": weight[1:, ::2],
        "wide": weight[:1].expand(9, 4),
    }
    back = sparse_tensors(sparse_content(network), "file")
    assert all(same_bits(back[name], network[name]) for name in network)


def test_what_is_read_can_be_changed():
    back = sparse_tensors(sparse_content({"dense": torch.ones(3), "sparse": torch.zeros(9, 9)}), "file")
    for tensor in back.values():
        tensor += 1
    assert back["dense"].tolist() == [2, 2, 2]
    assert back["sparse"].eq(1).all()


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("__metadata__", torch.ones(1), "tensor '__metadata__': .safetensors files can't hold"),
        ("\ud800", torch.ones(1), r"tensor '\\ud800': .safetensors files can't hold"),
        ("w", torch.ones(1, dtype=torch.complex128), "tensor 'w' can't be stored: it has dtype complex128 "),
        ("w", torch.eye(3).to_sparse(), "tensor 'w' can't be stored: it has .*sparse_coo"),
        ("w", torch.ones(3, device="meta"), "tensor 'w' can't be stored: it has no data"),
    ],
)
def test_what_the_format_can_not_hold_is_refused_and_nothing_is_written(tmp_path, name, tensor, message):
    with pytest.raises(InputError, match=message):
        write_sparse(tmp_path / "file", {name: tensor})
    assert not list(tmp_path.iterdir())


def test_a_disk_that_refuses_is_a_failure(tmp_path):
    with pytest.raises(RunError, match="cannot be written"):
        write_sparse(tmp_path / "nowhere" / "file", {"w": torch.ones(1)})
