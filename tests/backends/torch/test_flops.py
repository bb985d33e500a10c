"""Parameters and FLOPs against numbers worked out by hand."""

import pytest
import torch
from sparse_networks import mlp, thinned
from torch import nn

from hyperflux import InputError
from hyperflux.backends.torch.flops import Cost, count_cost
from hyperflux.backends.torch.models import build_model


def ones(layer):
    """The layer with weights and biases of 1, so that nothing is zero by chance."""
    for parameter in layer.parameters():
        nn.init.ones_(parameter)
    return layer


def zeroed(layer, count):
    """The layer with its first `count` weights zero."""
    with torch.no_grad():
        layer.weight.view(-1)[:count] = 0
    return layer


@pytest.mark.parametrize(
    ("layer", "shape", "uses"),
    [
        (nn.Linear(3, 4), (3,), 1),
        (nn.Linear(3, 4, bias=False), (5, 3), 5),
        (nn.Conv1d(4, 6, 3, dilation=2), (4, 8), 8 - 2 * 2),
        (nn.Conv2d(4, 6, 3, padding=1), (4, 8, 8), 8 * 8),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False), (4, 8, 8), 4 * 4),
        (nn.Conv2d(4, 4, 5, groups=4), (4, 8, 8), 4 * 4),
        (nn.Conv3d(2, 3, (1, 2, 3)), (2, 4, 4, 4), 4 * 3 * 2),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2), (4, 8, 8), 8 * 8),
    ],
    ids=str,
)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_layer_costs_two_flops_a_use_of_each_weight(layer, shape, uses, batch):
    x, weights = torch.ones(batch, *shape), layer.weight.numel()
    biases = 0 if layer.bias is None else layer.bias.numel()
    whole = count_cost(ones(layer), x)
    assert whole == Cost(weights + biases, weights + biases, 2 * uses * weights, 2 * uses * weights)
    pruned = count_cost(zeroed(layer, weights - 2), x)
    assert pruned == Cost(weights + biases, 2 + biases, 2 * uses * weights, 2 * uses * 2)
    assert count_cost(zeroed(layer, weights), x).sparse_flops == 0


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.inner(x, x, x)[0]


@pytest.mark.parametrize("training", [True, False])
def test_attention_counts_its_packed_projections_and_its_two_products(training):
    """5 tokens of 8 features: 3·8·8 and 8·8 weights each token, two heads of 5×5 products of 4, twice."""
    model, x = ones(Attention()).train(training), torch.randn(3, 5, 8)
    products = 2 * 2 * 2 * 5 * 5 * 4
    whole = count_cost(model, x)
    assert (whole.dense_flops, whole.sparse_flops) == (2 * 5 * 256 + products,) * 2
    with torch.no_grad():
        model.inner.in_proj_weight[8:16] = 0
        model.inner.out_proj.weight[0] = 0
    assert count_cost(model, x) == Cost(288, 288 - 64 - 8, whole.dense_flops, 2 * 5 * (256 - 64 - 8) + products)
    assert all(module.training == training for module in model.modules())


def test_a_fused_encoder_is_counted_step_by_step():
    model, x = ones(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).eval(), torch.randn(2, 5, 8)
    assert count_cost(model, x).dense_flops == 2 * 5 * (256 + 2 * 8 * 16) + 2 * 2 * 2 * 5 * 5 * 4
    assert torch.backends.mha.get_fastpath_enabled()


class Tied(nn.Module):
    """One weight, used by a layer and by a function."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False)

    def forward(self, x):
        return self.layer(x) @ self.layer.weight


def test_a_shared_weight_counts_once_as_parameters_and_at_every_use():
    model = Tied()
    zeroed(ones(model.layer), 6)
    assert count_cost(model, torch.ones(2, 4)) == Cost(16, 10, 64, 40)


def test_a_network_adds_up_and_stays_as_it_was():
    model, x = thinned(mlp(20, 30, 10), 0.3), torch.randn(4, 20)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    left = sum(int(model[index].weight.count_nonzero()) for index in (0, 2))
    for network in (model, torch.fx.symbolic_trace(model)):
        assert count_cost(network, x) == Cost(940, left + 40, 2 * 900, 2 * left)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_known_network():
    """ResNet-20: 3×3 convolutions of 16, 32 and 64 channels, then 64 × 10."""
    products = 9 * (3 * 16 + 6 * 16 * 16) * 1024 + 9 * (16 * 32 + 5 * 32 * 32) * 256
    products += 9 * (32 * 64 + 5 * 64 * 64) * 64 + 640
    cost = count_cost(build_model("resnet20", (3, 32, 32), 10, 0), torch.randn(1, 3, 32, 32))
    assert (cost.parameters, cost.dense_flops) == (269_722, 2 * products)


def test_an_example_without_samples_is_refused():
    with pytest.raises(InputError, match="example_input: the batch is empty"):
        count_cost(nn.Linear(3, 4), torch.ones(0, 3))
