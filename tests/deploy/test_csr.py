"""Layers in CSR form compute what their dense layers compute."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sparse_networks import assert_same, thinned
from torch import nn

from hyperflux.deploy.csr import SparseLinear, SparsePointwise

DTYPES = (torch.float32, torch.float64)
SHAPES = ((), (0,), (1,), (2,), (7,), (1, 1), (2, 3), (3, 0), (2, 1, 4))
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def thin(layer, density, seed):
    """Set weights to zero, all of the last output's among them: an empty row."""
    with torch.no_grad():
        thinned(layer, density, seed).weight[-1] = 0
    return layer


@given(
    inputs=st.integers(1, 12),
    outputs=st.integers(1, 12),
    shape=st.sampled_from(SHAPES),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    bias=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
@torch.no_grad()
def test_a_sparse_linear_layer_is_the_dense_one(inputs, outputs, shape, density, bias, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    layer = thin(nn.Linear(inputs, outputs, bias, dtype=dtype), density, seed)
    x = torch.randn(*shape, inputs, dtype=dtype, generator=generator)
    result = SparseLinear.from_dense(layer)(x)
    assert_same(result, layer(x))
    assert result.is_contiguous()
    if x.dim() > 1:
        crossed = x.transpose(-1, -2).contiguous().transpose(-1, -2)
        assert_same(SparseLinear.from_dense(layer)(crossed), layer(x))


@given(
    inputs=st.integers(1, 6),
    outputs=st.integers(1, 6),
    sides=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    stride=st.integers(1, 3),
    batch=st.sampled_from([None, 0, 1, 3]),
    density=st.sampled_from([0.0, 0.3, 1.0]),
    bias=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
@torch.no_grad()
def test_a_sparse_pointwise_convolution_is_the_dense_one(
    inputs, outputs, sides, stride, batch, density, bias, dtype, seed
):
    generator = torch.Generator().manual_seed(seed)
    kind = CONVOLUTIONS[len(sides)]
    layer = thin(kind(inputs, outputs, 1, stride, bias=bias, dtype=dtype), density, seed)
    x = torch.randn(*([] if batch is None else [batch]), inputs, *sides, dtype=dtype, generator=generator)
    result = SparsePointwise.from_dense(layer)(x)
    assert_same(result, layer(x))
    assert result.is_contiguous()
    if x.dim() == 4 and batch:
        assert_same(SparsePointwise.from_dense(layer)(x.to(memory_format=torch.channels_last)), layer(x))


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return thin(nn.Linear(6, 4), 0.5, 1)


def test_only_nonzero_values_are_kept_in_ordinary_buffers(layer):
    state = SparseLinear.from_dense(layer).state_dict()
    assert list(state) == ["crow_indices", "col_indices", "values", "bias"]
    assert len(state["values"]) == len(state["col_indices"]) == int(layer.weight.count_nonzero())
    assert state["values"].dtype == torch.float32
    assert state["crow_indices"].dtype == state["col_indices"].dtype == torch.int32
    assert all(tensor.layout == torch.strided for tensor in state.values())


def test_its_memory_is_its_own(layer):
    sparse, x = SparseLinear.from_dense(layer), torch.randn(3, 6)
    expected = layer(x).detach()
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
    assert_same(sparse(x), expected)


def copied(sparse, how):
    match how:
        case "pickle":
            return pickle.loads(pickle.dumps(sparse))
        case "deepcopy":
            return copy.deepcopy(sparse)
        case "torch.save":
            file = io.BytesIO()
            torch.save(sparse, file)
            file.seek(0)
            return torch.load(file, weights_only=False)


@pytest.mark.parametrize("how", ["pickle", "deepcopy", "torch.save"])
def test_a_copy_computes_the_same_from_memory_of_its_own(layer, how):
    sparse, x = SparseLinear.from_dense(layer), torch.randn(3, 6)
    other = copied(sparse, how)
    sparse.values.zero_()
    assert_same(other(x), layer(x))
    other.values.zero_()
    assert_same(other(x), layer.bias.expand(3, 4))


def test_a_conversion_of_the_dtype_holds_for_the_computation(layer):
    sparse, x = SparseLinear.from_dense(layer).double(), torch.randn(3, 6, dtype=torch.float64)
    assert sparse.values.dtype == torch.float64
    assert_same(sparse(x), layer.double()(x))


@pytest.mark.parametrize("assign", [False, True])
def test_a_loaded_state_is_what_computes(layer, assign):
    other = SparseLinear.from_dense(layer)
    other.values.zero_()
    other.load_state_dict(SparseLinear.from_dense(layer).state_dict(), assign=assign)
    x = torch.randn(3, 6)
    assert_same(other(x), layer(x))


def test_a_state_with_an_index_outside_the_matrix_is_refused(layer):
    sparse = SparseLinear.from_dense(layer)
    damaged = {**sparse.state_dict(), "col_indices": sparse.col_indices + 6}
    with pytest.raises(RuntimeError, match="col_indices"):
        SparseLinear.from_dense(layer).load_state_dict(damaged)


def test_print_shows_the_sizes(layer):
    kept = int(layer.weight.count_nonzero())
    assert str(SparseLinear.from_dense(layer)) == f"SparseLinear(inputs=6, outputs=4, nonzero={kept}, bias=True)"


def test_the_input_has_the_name_that_torchs_layers_give_it(layer):
    x, image = torch.randn(3, 6), torch.randn(2, 6, 4, 4)
    assert_same(SparseLinear.from_dense(layer)(input=x), layer(x))
    convolution = thinned(nn.Conv2d(6, 4, 1), 0.2)
    assert_same(SparsePointwise.from_dense(convolution)(input=image), convolution(image))
