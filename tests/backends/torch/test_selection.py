"""Which parameters are prunable: by kind, by pattern, and what is refused."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils.prune import l1_unstructured

from hyperflux import InputError
from hyperflux.backends.torch.selection import select


def chosen(model, include=None, exclude=None, trained=None):
    trained = model.parameters() if trained is None else trained
    return list(select(model, torch.optim.SGD(trained, lr=0.1), include, exclude).prunable)


def refused(model, include=None, exclude=None):
    with pytest.raises(InputError) as caught:
        chosen(model, include, exclude)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def network():
    """Parameter names 0.0.weight, 0.1.*, head.fc1.*, head.fc2.*."""
    head = nn.Sequential()
    head.add_module("fc1", nn.Linear(4, 3))
    head.add_module("fc2", nn.Linear(3, 2, bias=False))
    model = nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4)))
    model.add_module("head", head)
    return model


class TestByKind:
    @pytest.mark.parametrize(
        "layer",
        [
            nn.Linear(3, 4),
            nn.Conv1d(2, 3, 2),
            nn.Conv2d(2, 3, 2),
            nn.Conv3d(2, 3, 2),
            nn.ConvTranspose1d(2, 3, 2),
            nn.ConvTranspose2d(2, 3, 2),
            nn.ConvTranspose3d(2, 3, 2),
        ],
    )
    def test_weights_of_linear_and_convolution_layers(self, layer):
        assert chosen(layer) == ["weight"]

    def test_projections_of_attention(self):
        assert chosen(nn.MultiheadAttention(4, 2)) == ["in_proj_weight", "out_proj.weight"]
        separate = nn.MultiheadAttention(4, 2, kdim=3, vdim=5)
        assert chosen(separate) == ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"]

    def test_not_norms_embeddings_recurrent_weights_and_bare_parameters(self):
        model = nn.ModuleList([nn.BatchNorm1d(3), nn.LayerNorm(3), nn.Embedding(3, 3), nn.LSTM(3, 3), nn.PReLU()])
        model.register_parameter("cls_token", nn.Parameter(torch.zeros(1, 1, 3)))
        assert "no prunable weight (not of a prunable kind)" in refused(model)

    def test_a_module_without_parameters(self):
        model = nn.ReLU()
        with pytest.raises(InputError, match="ReLU: no prunable weight"):
            chosen(model, trained=[nn.Parameter(torch.ones(1))])

    def test_only_what_is_trained(self):
        model = network()
        model[0][0].weight.requires_grad_(False)
        selection = select(model, torch.optim.SGD(model.head.fc1.parameters(), lr=0.1))
        assert list(selection.prunable) == ["head.fc1.weight"]
        assert selection.left_out["0.0.weight"] == "frozen (requires_grad is False)"
        assert selection.left_out["head.fc2.weight"] == "not in the optimizer"

    def test_wrappers_do_not_show_in_names(self):
        names = ["0.0.weight", "head.fc1.weight", "head.fc2.weight"]
        assert chosen(network()) == names
        assert chosen(torch.compile(network())) == names
        assert chosen(nn.DataParallel(network())) == names
        assert chosen(torch.compile(nn.DataParallel(network()))) == names


class TestTied:
    def test_one_weight_under_its_first_name(self):
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        assert chosen(model) == ["0.weight"]

    def test_either_owners_name_matches(self):
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        assert chosen(model, include="1") == ["0.weight"]
        assert chosen(model, exclude="1") == ["2.weight"]

    def test_a_head_tied_to_an_embedding_is_an_embedding_unless_named(self):
        model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 3), nn.Linear(3, 5, bias=False))
        model[2].weight = model[0].weight
        assert chosen(model) == ["1.weight"]
        assert chosen(model, include=["0.weight", "1"]) == ["0.weight", "1.weight"]


class TestPatterns:
    @pytest.mark.parametrize(
        ("include", "names"),
        [
            ("head.fc1.weight", ["head.fc1.weight"]),
            ("head.fc1", ["head.fc1.weight"]),
            ("head", ["head.fc1.weight", "head.fc2.weight"]),
            ("*.fc?", ["head.fc1.weight", "head.fc2.weight"]),
            ("*", ["0.0.weight", "head.fc1.weight", "head.fc2.weight"]),
            (["head.fc2", "0"], ["0.0.weight", "head.fc2.weight"]),
            (re.compile(r"fc\d\.w"), ["head.fc1.weight", "head.fc2.weight"]),
            (re.compile(r"^0"), ["0.0.weight"]),
            (nn.Conv2d, ["0.0.weight"]),
            (nn.Linear, ["head.fc1.weight", "head.fc2.weight"]),
            ("0.1.weight", ["0.1.weight"]),
            (("head.fc1.bias", "head.fc2"), ["head.fc1.bias", "head.fc2.weight"]),
        ],
    )
    def test_include(self, include, names):
        assert chosen(network(), include) == names

    @pytest.mark.parametrize(
        ("exclude", "names"),
        [
            ("head", ["0.0.weight"]),
            ("0", ["head.fc1.weight", "head.fc2.weight"]),
            (nn.Linear, ["0.0.weight"]),
            (re.compile("fc1"), ["0.0.weight", "head.fc2.weight"]),
            ("head.fc1.bias", ["0.0.weight", "head.fc1.weight", "head.fc2.weight"]),
            ((nn.Conv2d, "head.fc1"), ["head.fc2.weight"]),
        ],
    )
    def test_exclude(self, exclude, names):
        assert chosen(network(), exclude=exclude) == names

    def test_exclude_takes_from_what_include_kept(self):
        assert chosen(network(), include="head", exclude="*.fc2") == ["head.fc1.weight"]

    def test_a_type_covers_what_is_inside_its_modules(self):
        model = nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8), nn.Linear(4, 2))
        assert chosen(model, exclude=nn.TransformerEncoderLayer) == ["1.weight"]

    @pytest.mark.parametrize(
        ("pattern", "message"),
        [
            ("head.fc3", "'head.fc3' is not known"),
            ("*.bias?", "'*.bias?' is not known"),
            (re.compile("fc9"), "'fc9' matches no"),
            (nn.Conv3d, "'Conv3d' matches no"),
        ],
    )
    def test_a_pattern_that_matches_nothing_is_refused(self, pattern, message):
        assert message in refused(network(), include=pattern)
        assert message in refused(network(), exclude=pattern)
        assert message in refused(network(), include=["head", pattern])

    @pytest.mark.parametrize("pattern", [3, int, [None]])
    def test_what_is_no_pattern_is_refused(self, pattern):
        assert "give a name, a compiled regular expression or a type of module" in refused(network(), include=pattern)

    def test_patterns_whose_matching_would_take_minutes_are_refused(self):
        assert "has 100,000 characters, more than 1,000" in refused(network(), include="[" * 100_000)
        assert "2,000 are too many" in refused(network(), exclude=["*"] * 2000)


class TestRefused:
    @pytest.mark.parametrize(
        "wrap",
        [
            nn.utils.parametrizations.weight_norm,
            nn.utils.parametrizations.spectral_norm,
            lambda layer: l1_unstructured(layer, "weight", 2),
        ],
    )
    def test_weights_that_are_recomputed(self, wrap):
        model = network()
        wrap(model.head.fc1)
        assert "head.fc1.weight: recomputed from other parameters" in refused(model)
        assert "head.fc1.weight" in refused(model, include="head")
        assert chosen(model, exclude="head.fc1") == ["0.0.weight", "head.fc2.weight"]
        assert chosen(model, include="head.fc2") == ["head.fc2.weight"]

    def test_weights_that_are_not_there_yet(self):
        model = nn.Sequential(nn.LazyLinear(3))
        assert "0.weight: not initialised yet; pass one batch through the model first" in refused(model)

    def test_sparse_embeddings(self):
        model = nn.Sequential(nn.Embedding(3, 3, sparse=True))
        assert "sparse gradients" in refused(model, include="0.weight")


def test_the_selection_prints_every_parameter_with_its_reason():
    model = network()
    selection = select(model, torch.optim.SGD(model.parameters(), lr=0.1), exclude="head.fc2")
    assert str(selection).splitlines() == [
        "0.0.weight       36 weights, prunable",
        "head.fc1.weight  12 weights, prunable",
        "0.1.weight       not of a prunable kind",
        "0.1.bias         not of a prunable kind",
        "head.fc1.bias    not of a prunable kind",
        "head.fc2.weight  excluded",
    ]
