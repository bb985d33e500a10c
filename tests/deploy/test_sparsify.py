"""Networks with layers in CSR form: the same outputs, and a list that says what runs how. No test asserts a time."""

import pytest
import torch
from devices import needs_cuda
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_networks import assert_same, mlp, thinned
from torch import nn

from hyperflux import InputError
from hyperflux.deploy.csr import CsrMatrix, SparseLinear
from hyperflux.deploy.sparse import MAX_TIME_RATIO, replace_modules, sparsify


class Residual(nn.Module):
    """1×1 convolutions, with and without stride, a 3×3 one, a grouped one, a linear layer on three dimensions."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 16, 1, stride=2, bias=False)
        self.grouped = nn.Conv2d(16, 16, 1, groups=4)
        self.padded = nn.Conv2d(16, 8, 1, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        y = torch.relu(self.stem(x))
        y = self.padded(self.grouped(self.wide(y)))
        return self.head(y.flatten(2).transpose(1, 2)).mean(1)


def assert_consistent(sparse, choices):
    """What the list says is what the module is, by the rule that the times give."""
    for choice in choices:
        assert isinstance(sparse.get_submodule(choice.name), CsrMatrix) == choice.sparse
        if choice.sparse:
            assert choice.csr_seconds <= MAX_TIME_RATIO * choice.dense_seconds
            assert choice.reason == "CSR is faster"
        elif choice.csr_seconds is not None and choice.csr_seconds <= MAX_TIME_RATIO * choice.dense_seconds:
            assert choice.reason == "the whole network was no faster"


@settings(max_examples=15)
@given(
    batch=st.integers(1, 40),
    density=st.sampled_from([0.0, 0.02, 0.5]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@torch.no_grad()
def test_outputs_are_those_of_the_dense_network(batch, density, dtype):
    model, x = thinned(mlp(400, 200, 30, dtype=dtype), density), torch.randn(batch, 400, dtype=dtype)
    sparse, choices = sparsify(model, x, rotations=2)
    assert_same(sparse(x), model(x))
    assert [choice.name for choice in choices] == ["0", "2"]
    assert_consistent(sparse, choices)


@torch.no_grad()
def test_candidates_are_linear_layers_and_plain_1x1_convolutions():
    torch.manual_seed(0)
    model, x = thinned(Residual(), 0.3).train(), torch.randn(2, 3, 8, 8)
    sparse, choices = sparsify(model, x, rotations=2)
    assert [choice.name for choice in choices] == ["wide", "head"]
    assert all(choice.csr_seconds > 0 for choice in choices)
    assert choices[0].density == int(model.wide.weight.count_nonzero()) / 128
    assert_consistent(sparse, choices)
    assert_same(sparse(x), model.eval()(x))


@torch.no_grad()
def test_the_model_stays_and_the_copy_is_frozen_in_evaluation_mode():
    model = thinned(nn.Sequential(nn.Linear(300, 300), nn.Dropout(0.5), nn.Linear(300, 10)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sparse, _ = sparsify(model, torch.randn(4, 300), rotations=1)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in [*model.modules(), *sparse.modules()])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module.training for module in sparse.modules())
    assert not any(parameter.requires_grad for parameter in sparse.parameters())


@torch.no_grad()
def test_a_traced_graph_and_a_single_layer_work_too():
    x = torch.randn(32, 200)
    for model in (torch.fx.symbolic_trace(thinned(mlp(200, 400, 10))), thinned(nn.Linear(200, 400))):
        sparse, choices = sparsify(model, x, rotations=2)
        assert choices
        assert_same(sparse(x), model(x))


@torch.no_grad()
def test_layers_are_replaced_by_name_wherever_they_stand():
    model, x = thinned(mlp(20, 20, 20), 0.2), torch.randn(3, 20)
    for network in (model, torch.fx.symbolic_trace(model), nn.Sequential(*model, model[0])):
        layers = {network.get_submodule(name) for name in ("0", "2")}
        replaced = replace_modules(network, {layer: SparseLinear.from_dense(layer) for layer in layers})
        names = [name for name, module in network.named_modules(remove_duplicate=False) if module in layers]
        assert all(isinstance(replaced.get_submodule(name), SparseLinear) for name in names)
        assert len({replaced.get_submodule(name) for name in names}) == 2 <= len(names)
        assert all(isinstance(network.get_submodule(name), nn.Linear) for name in names)
        assert_same(replaced(x), network(x))
    only = nn.Linear(20, 20)
    assert isinstance(replace_modules(only, {only: SparseLinear.from_dense(only)}), SparseLinear)


@torch.no_grad()
def test_a_layer_that_is_called_twice_is_timed_on_both_inputs():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(10, 10)

        def forward(self, x):
            return self.layer(input=self.layer(x))

    model, x = thinned(Twice(), 0.2), torch.randn(2, 10)
    sparse, (choice,) = sparsify(model, x, rotations=1)
    assert choice.dense_seconds > 0
    assert_same(sparse(x), model(x))


class Own(nn.Linear):
    """A layer of a type of its own, which may do anything with its weight."""


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Linear(8, 8), "too dense to try"),
        (thinned(nn.Linear(8, 8, dtype=torch.bfloat16)), "torch can't run it in CSR form"),
        (Own(8, 8), None),
    ],
)
@torch.no_grad()
def test_other_layers_stay_dense_and_the_list_says_why(layer, reason):
    x = torch.randn(2, 8, dtype=layer.weight.dtype)
    sparse, choices = sparsify(nn.Sequential(layer), x, rotations=1)
    assert type(sparse[0]) is type(layer)
    assert [choice.reason.startswith(reason) for choice in choices] == ([] if reason is None else [True])
    assert not any(choice.sparse or choice.dense_seconds or choice.csr_seconds for choice in choices)


@torch.no_grad()
def test_a_layer_with_hooks_stays_and_so_do_its_hooks():
    layer = thinned(nn.Linear(8, 8))
    layer.register_forward_hook(lambda module, inputs, outputs: 2 * outputs)
    x = torch.randn(2, 8)
    sparse, (choice,) = sparsify(nn.Sequential(layer), x, rotations=1)
    assert choice.reason == "has hooks, which CSR would lose"
    assert torch.equal(sparse(x), layer(x))


@torch.no_grad()
def test_a_fused_encoder_that_reads_its_layers_weights_still_works():
    torch.manual_seed(0)
    encoder = thinned(nn.TransformerEncoderLayer(16, 2, 64, batch_first=True), 0.1).eval()
    x = torch.randn(2, 5, 16)
    sparse, choices = sparsify(encoder, x, rotations=1)
    assert_same(sparse(x), encoder(x))
    assert {choice.name: choice.reason for choice in choices} == dict.fromkeys(
        ["linear1", "linear2"], "a fused kernel reads its weight"
    )


class Reader(nn.Module):
    """A module that uses the weight of a layer that it also calls."""

    def __init__(self):
        super().__init__()
        self.layer = thinned(nn.Linear(600, 600), 0.001)

    def forward(self, x):
        return self.layer(x) + x @ self.layer.weight


@torch.no_grad()
def test_a_network_that_reads_the_weight_of_a_layer_stays_dense():
    model, x = Reader(), torch.randn(64, 600)
    sparse, (choice,) = sparsify(model, x)
    assert not choice.sparse
    assert torch.equal(sparse(x), model(x))


@needs_cuda
def test_on_cuda_everything_stays_dense():
    model, x = thinned(mlp(20, 20, 20)).cuda(), torch.randn(2, 20, device="cuda")
    sparse, choices = sparsify(model, x)
    assert [choice.reason for choice in choices] == ["on cuda; CSR layers need the CPU"] * 2
    assert torch.equal(sparse(x), model(x))


def test_what_the_network_cannot_take_is_refused():
    model = mlp(20, 20)
    with pytest.raises(InputError, match="example_input: the network can't take it"):
        sparsify(model, torch.randn(2, 21))
    with pytest.raises(InputError, match="rotations: 0 is too few"):
        sparsify(model, torch.randn(2, 20), rotations=0)
    assert not any(module._forward_pre_hooks for module in model.modules())
