"""Compaction is exact, goes to its fixed point, and lists all that it removes."""

import copy
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prunable_networks import FAMILIES, Residual, networks
from same_function import same
from torch import nn

from hyperflux import InputError
from hyperflux.backends.torch.compact.removed import channel_counts
from hyperflux.backends.torch.models import build_model
from hyperflux.deploy.compact import RemovedChannels, compact, compaction


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_the_smaller_network_is_the_same_function(family, data):
    model, inputs = data.draw(networks(family))
    before = copy.deepcopy(model.state_dict())
    done = compaction(model, inputs[: data.draw(st.integers(1, 4))])
    with torch.no_grad():
        for batch in (4, 1, 3):
            fresh = torch.randn(batch, *inputs.shape[1:], dtype=torch.float64)
            same(model(fresh), done.module(fresh))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_it_keeps_its_dtype(family, dtype, data):
    """`compaction` itself compares the outputs."""
    model, inputs = data.draw(networks(family))
    done = compaction(model.to(dtype), inputs.to(dtype))
    assert done.module(inputs.to(dtype)).dtype == dtype
    assert {parameter.dtype for parameter in done.module.parameters()} == {dtype}


@given(networks("residual"))
@settings(max_examples=15, deadline=None)
def test_images_of_other_sizes_are_taken_as_before(drawn):
    model, inputs = drawn
    done = compaction(model, inputs)
    for side in (4, 9):
        fresh = torch.randn(2, inputs.shape[1], side, 2 * side, dtype=torch.float64)
        same(model(fresh), done.module(fresh))


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_every_removed_channel_is_listed_and_a_second_time_there_is_none(family, data):
    model, inputs = data.draw(networks(family))
    done = compaction(model, inputs)
    left = dict(done.module.named_modules())
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.BatchNorm1d | nn.BatchNorm2d):
            cut, (inputs_before, outputs_before) = (
                done.removed.get(name, RemovedChannels()),
                channel_counts(module),
            )
            if name in left:
                now = channel_counts(left[name])
                assert now == (inputs_before - len(set(cut.inputs)), outputs_before - len(set(cut.outputs)))
            else:
                assert len(set(cut.inputs)) == inputs_before
                assert len(set(cut.outputs)) == outputs_before
    again = compaction(done.module, inputs)
    assert again.removed == {}
    assert again.weights_after == done.weights_after


def masked(model, density=0.2):
    """A network of a library with random weights, random batch statistics, and channels without a weight."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    for module in model.double().eval().modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            spread = [1] * (module.weight.ndim - 2)
            module.weight.data = torch.randn(module.weight.shape, generator=generator, dtype=torch.float64) * 0.1
            module.weight.data *= drawn(module.weight.shape) < density
            module.weight.data *= (drawn(module.weight.shape[0]) < 0.7).view(-1, 1, *spread)
        elif isinstance(module, nn.BatchNorm2d):
            module.running_var, module.bias.data = 0.5 + drawn(module.num_features), drawn(module.num_features) - 0.5
    return model


@pytest.mark.parametrize(
    "name",
    ["resnet20", "resnet18", "deit_tiny", "torchvision:mobilenet_v3_small", "torchvision:shufflenet_v2_x0_5"],
)
def test_networks_by_name_get_smaller_and_stay_the_same_function(name):
    side = 64 if name.startswith("torchvision") else 32
    model = masked(build_model(name, (3, side, side), 10, seed=0))
    inputs = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    done = compaction(model, inputs)
    with torch.no_grad():
        same(model(inputs), done.module(inputs))
    assert done.weights_after < 0.8 * done.weights_before
    assert done.left_alone == {}


def perceptron(*sizes):
    torch.manual_seed(0)
    layers = [part for i, o in pairwise(sizes) for part in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).double().eval()


def test_a_dead_network_gives_its_constant():
    model = perceptron(6, 5, 4, 3)
    for layer in model:
        if isinstance(layer, nn.Linear):
            layer.weight.data.zero_()
    done = compaction(model, torch.randn(2, 6, dtype=torch.float64))
    inputs = torch.randn(7, 6, dtype=torch.float64)
    assert torch.equal(done.module(inputs), model[-1].bias.expand(7, 3))
    assert done.weights_after < 20


def test_a_unit_without_inputs_is_folded_into_the_next_bias():
    model = perceptron(4, 3, 2)
    model[0].weight.data[1], model[0].bias.data[1] = 0.0, 2.0
    done = compaction(model, torch.randn(1, 4, dtype=torch.float64))
    assert done.removed == {"0": RemovedChannels((), (1,)), "2": RemovedChannels((1,), ())}
    expected = model[2].bias + 2.0 * model[2].weight[:, 1]
    torch.testing.assert_close(done.module.get_submodule("2").bias, expected, rtol=1e-15, atol=0)


def test_constants_behind_zero_padding_are_merged_into_one_channel():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 4, 3, padding=1)).double().eval()
    model[0].weight.data[2:] = 0.0
    inputs = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    done = compaction(model, inputs)
    same(model(inputs), done.module(inputs))
    assert len(done.removed["2"].inputs) == 5  # of six constants one stays


def test_without_padding_no_constant_stays():
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.Tanh(), nn.Conv2d(8, 4, 3)).double().eval()
    model[0].weight.data[2:] = 0.0
    assert compaction(model, torch.randn(1, 2, 9, 9, dtype=torch.float64)).removed["2"].inputs == (2, 3, 4, 5, 6, 7)


def test_a_dead_branch_goes_whole():
    branch = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1), nn.BatchNorm2d(3))
    model = nn.Sequential(Residual(branch, nn.Identity(), True), nn.Conv2d(3, 2, 1)).double().eval()
    branch[0].weight.data.zero_()
    inputs = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    branch[2].weight.data.zero_()
    done = compaction(model, inputs)
    same(model(inputs), done.module(inputs))
    assert {name for name, module in done.module.named_modules() if isinstance(module, nn.Conv2d)} == {"1"}
    assert done.removed["0.branch.0"] == RemovedChannels((0, 1, 2), (0, 1, 2, 3))


def test_features_that_nobody_reads_are_reported_and_dropped_on_request():
    model = perceptron(6, 5, 3)
    model[0].weight.data[:, [1, 4]] = 0.0
    inputs = torch.randn(8, 6, dtype=torch.float64)
    done = compaction(model, inputs)
    assert (done.unread, done.inputs) == ({"0": (1, 4)}, None)
    same(model(inputs), done.module(inputs))
    dropped = compaction(model, inputs, drop_inputs=True)
    assert dropped.inputs.tolist() == [0, 2, 3, 5]
    same(model(inputs), dropped.module(inputs[:, dropped.inputs]))


def test_dropping_inputs_is_refused_where_no_linear_layer_reads_them():
    with pytest.raises(InputError, match="drop_inputs needs one input that goes to one linear layer"):
        compact(nn.Conv2d(3, 4, 1), torch.randn(1, 3, 4, 4), drop_inputs=True)


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Overwriting(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        x = self.fc(x)
        y = torch.nn.functional.relu(x, inplace=True)
        return x + 2 * y


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (
            Branching(),
            torch.randn(1, 3),
            "torch.fx can't trace this Branching .*'return x if x.sum.*branches on the values of a tensor",
        ),
        (Overwriting(), torch.randn(1, 3), "changes a tensor in place that add reads again"),
        (nn.Linear(3, 3), torch.randn(1, 4), "can't take the example input"),
    ],
)
def test_what_cannot_be_traced_is_refused_in_one_line(model, inputs, message):
    with pytest.raises(InputError, match=message) as caught:
        compact(model, inputs)
    assert "\n" not in str(caught.value)


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(torch.relu(self.inner(torch.relu(self.inner(x)))))


def test_what_is_left_alone_is_said():
    model = Shared().double()
    model.inner.weight.data[2] = 0.0
    inputs = torch.randn(3, 4, dtype=torch.float64)
    done = compaction(model, inputs)
    assert done.left_alone == {"inner": "its weights are used more than once"}
    same(model.eval()(inputs), done.module(inputs))
    unknown = compaction(nn.Sequential(nn.Conv2d(2, 4, 1), nn.GroupNorm(2, 4)), torch.randn(1, 2, 3, 3))
    assert unknown.left_alone == {"1": "compaction does not support GroupNorm"}


def test_a_layer_with_hooks_is_left_alone():
    model = perceptron(4, 3, 2)
    model[0].weight.data[1] = 0.0
    model[0].register_forward_hook(lambda module, inputs, output: output + 1)
    inputs = torch.randn(3, 4, dtype=torch.float64)
    done = compaction(model, inputs)
    assert done.left_alone == {"0": "it has hooks or a parametrization"}
    same(model(inputs), done.module(inputs))


def test_the_original_and_its_mode_stay_as_they_are_and_the_result_is_in_evaluation_mode():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2)).train()
    assert not compact(model, torch.randn(2, 4)).training
    assert model.training


def test_the_result_is_loaded_without_this_package(tmp_path):
    model = perceptron(6, 5, 3)
    model[0].weight.data[1] = 0.0
    inputs = torch.randn(2, 6, dtype=torch.float64)
    torch.save(compact(model, inputs), tmp_path / "small.pt")
    torch.save((inputs, model(inputs).detach()), tmp_path / "pair.pt")
    code = """if True:
        import sys, torch
        model = torch.load(sys.argv[1] + "/small.pt", weights_only=False)
        inputs, wanted = torch.load(sys.argv[1] + "/pair.pt")
        assert "hyperflux" not in sys.modules
        torch.testing.assert_close(model(inputs), wanted, rtol=1e-12, atol=1e-12)
    """
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=tmp_path, timeout=120)
