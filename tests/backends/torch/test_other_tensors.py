"""Tensors other than dense ones, as parameters and as inputs: refused by name, or taken."""

import pytest
import torch
from torch import nn

import hyperflux
from hyperflux import InputError, Pruner, compact
from hyperflux.backends.torch.flops import count_cost
from hyperflux.deploy.sparse import sparsify

OTHERS = {
    "meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "sparse csr": lambda x: x.to_sparse_csr(),
    "nested": lambda x: torch.nested.nested_tensor(list(x)),
    "jagged": lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged),
    "quantised": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    "complex": lambda x: x.to(torch.complex64),
    "float8": lambda x: x.to(torch.float8_e4m3fn),
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*(nested|Sparse|sparse|quantiz).*"),
    pytest.mark.filterwarnings("ignore:.*is deprecated.*"),
]


def network():
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4))


def refusal(call):
    """The line with which a call is refused; empty if it is taken. Any other error is a failure."""
    try:
        call()
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", ["meta", "sparse", "sparse csr", "complex", "float8"])
def test_a_parameter_that_cannot_be_pruned_is_refused_by_name(kind):
    model = network()
    model[0].weight = nn.Parameter(OTHERS[kind](model[0].weight.data))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    line = refusal(lambda: Pruner(model, optimizer, target_sparsity=0.8, pruning_steps=30, regrowth_steps=10))
    assert line.startswith(("0.weight: is ", "0.weight: holds "))
    assert "\n" not in line


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("use", [compact, count_cost, sparsify])
def test_an_example_of_another_kind_is_refused_or_taken(use, kind):
    line = refusal(lambda: use(network(), OTHERS[kind](torch.randn(3, 20))))
    assert not line or "example" in line
    assert "\n" not in line


@pytest.mark.parametrize("kind", OTHERS)
def test_a_batch_of_another_kind_is_refused_or_taken(kind):
    loader = [(OTHERS[kind](torch.randn(8, 20)), torch.randint(4, (8,)))] * 3
    settings = {"target_sparsity": 0.5, "pruning_epochs": 2, "device": "cpu"}
    line = refusal(lambda: hyperflux.prune(network(), loader, **settings))
    assert not line or "batch" in line
    assert "\n" not in line
