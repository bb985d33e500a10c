"""Compaction through what stands between layers: attention, calls that move elements, sizes, constants."""

import pytest
import torch
from prunable_networks import Transformer
from same_function import same
from torch import nn

from hyperflux.deploy.compact import RemovedChannels, compaction


def test_a_head_that_nobody_reads_goes_whole():
    torch.manual_seed(0)
    model = Transformer(features=5, heads=3, width=2, hidden=4, tokens=4, picked=True).double().eval()
    model.proj.weight.data[:, 2:4] = 0.0  # the second head
    inputs = torch.randn(2, 4, 5, dtype=torch.float64)
    done = compaction(model, inputs)
    same(model(inputs), done.module(inputs))
    assert done.removed["qkv"].outputs == (2, 3, 8, 9, 14, 15)
    assert done.removed["proj"].inputs == (2, 3)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_torchs_own_transformer_loses_dead_heads_and_units(batch_first, norm_first):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 4, 16, batch_first=batch_first, norm_first=norm_first, activation="gelu")
    model = nn.TransformerEncoder(layer, 2, nn.LayerNorm(8), enable_nested_tensor=False).double().eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()
    first, second = model.layers
    first.self_attn.out_proj.weight.data[:, 2:4] = 0.0  # nobody reads the second head
    second.self_attn.in_proj_weight.data[16:18] = 0.0  # the first head's values are constants
    second.linear2.weight.data[:, 3:9] = 0.0
    inputs = torch.randn(3, 5, 8, dtype=torch.float64)
    done = compaction(model, inputs)
    same(model(inputs), done.module(inputs))
    assert done.removed == {
        "layers.0.self_attn.in_proj": RemovedChannels((), (2, 3, 10, 11, 18, 19)),
        "layers.0.self_attn.out_proj": RemovedChannels((2, 3), ()),
        "layers.1.self_attn.in_proj": RemovedChannels((), (0, 1, 8, 9, 16, 17)),
        "layers.1.self_attn.out_proj": RemovedChannels((0, 1), ()),
        "layers.1.linear1": RemovedChannels((), tuple(range(3, 9))),
        "layers.1.linear2": RemovedChannels(tuple(range(3, 9)), ()),
    }


class Calls(nn.Module):
    """A network whose forward is a function of itself and its inputs."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.called = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.called(self, x)


def by_hand(s, x):
    """Attention with the heads in the batch."""
    heads = s.a(x).view(-1, 5, 4, 2).transpose(1, 2).reshape(x.shape[0] * 4, -1, 2)
    mixed = torch.bmm(heads, heads.transpose(1, 2).softmax(-1) @ heads)
    return s.c(mixed.reshape(-1, 4, 5, 2).transpose(1, 2).flatten(2))


def gated(s, x):
    signal, gate = s.a(x).chunk(2, 1)
    return s.b(signal * gate.sigmoid())


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


AWKWARD = {
    "heads in the batch": (by_hand, {"a": (8, 8), "c": (8, 8)}, {"c": (slice(None), slice(2, 4))}, (5, 8)),
    "a sum over all": (lambda s, x: s.a(x) + s.b(x).sum(0), {"a": (4, 5), "b": (4, 5)}, {"b": slice(None)}, (4,)),
    "a parameter alone": (lambda s, x: s.p.cumsum(1) + s.a(x), {"a": (4, 5)}, {"a": slice(None)}, (4,)),
    "a size in sums": (lambda s, x: s.b(s.a(x) * s.a(x).size(1) ** -1), {"a": (4, 5), "b": (5, 3)}, {"a": 2}, (4,)),
    "chunks": (gated, {"a": (4, 8), "b": (4, 3)}, {"a": [1, 5]}, (4,)),
    "joined channels": (
        lambda s, x: s.c(torch.cat([s.a(x), s.b(x)], 1)),
        {"a": (4, 5), "b": (4, 6), "c": (11, 3)},
        {"c": (slice(None), slice(5, 11))},
        (4,),
    ),
    "a part a sample": (lambda s, x: s.a(torch.cat(x.split(1, 0), 0)), {"a": (4, 5)}, {"a": 2}, (4,)),
    "flat tokens": (
        lambda s, x: s.b(torch.relu(s.a(x)).view(-1, 5)).view(x.size(0), -1),
        {"a": (4, 5), "b": (5, 3)},
        {"a": [0, 3]},
        (6, 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", AWKWARD)
@pytest.mark.parametrize("batch", [1, 3])
def test_nothing_depends_on_the_batch_of_the_example(name, batch):
    forward, sizes, zeros, shape = AWKWARD[name]
    layers = {part: nn.Linear(*size) for part, size in sizes.items()}
    model = Calls(forward, p=nn.Parameter(drawn(1, 5)), **layers).double().eval()
    for part, places in zeros.items():
        getattr(model, part).weight.data[places] = 0.0
    done = compaction(model, drawn(batch, *shape))
    for fresh in (drawn(1, *shape), drawn(4, *shape), drawn(7, *shape)):
        same(model(fresh), done.module(fresh))


@pytest.mark.parametrize("name", ["chunks", "joined channels", "flat tokens"])
def test_channels_go_through_calls_that_move_them(name):
    forward, sizes, zeros, shape = AWKWARD[name]
    model = Calls(forward, **{part: nn.Linear(*size, bias=False) for part, size in sizes.items()}).double().eval()
    for part, places in zeros.items():
        getattr(model, part).weight.data[places] = 0.0
    inputs = drawn(2, *shape)
    done = compaction(model, inputs)
    assert done.weights_after < done.weights_before
    assert done.removed
    assert done.left_alone == {}
    same(model(inputs), done.module(inputs))


def test_a_channel_that_varies_at_the_border_is_no_constant_of_every_size():
    model = nn.Sequential(
        nn.Conv2d(3, 5, 1),
        nn.ReLU(),
        nn.Conv2d(5, 4, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )  # fmt: skip
    model = model.double().eval()
    model[0].weight.data[1], model[0].bias.data[1] = 0.0, 1.0
    model[2].weight.data[2] = 0.0
    model[2].weight.data[2, 1] = 1.0  # reads the constant alone
    done = compaction(model, drawn(1, 3, 4, 4))
    for side in (4, 8):
        fresh = drawn(2, 3, side, side)
        same(model(fresh), done.module(fresh))


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        mask = torch.ones(3, 3, dtype=torch.bool).triu(1)
        return self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]


def test_attention_with_a_mask_is_left_alone():
    model, inputs = Masked().double().eval(), torch.randn(2, 3, 4, dtype=torch.float64)
    model.attention.out_proj.weight.data[:, 2:4] = 0.0
    done = compaction(model, inputs)
    same(model(inputs), done.module(inputs))
    assert done.left_alone["attention"] == "compaction does not support MultiheadAttention"


class ByName(nn.Module):
    """A linear layer that is called with its input by name."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.last(torch.relu(self.first(input=x)))


@pytest.mark.parametrize("drop_inputs", [False, True])
def test_a_layer_may_get_its_input_by_name(drop_inputs):
    torch.manual_seed(0)
    model = ByName().double().eval()
    model.first.weight.data[:, 2:4] = 0.0
    inputs = torch.randn(4, 6, dtype=torch.float64)
    done = compaction(model, inputs, drop_inputs=drop_inputs)
    same(model(inputs), done.module(inputs[:, done.inputs] if drop_inputs else inputs))
    assert done.module.first.in_features == 4
