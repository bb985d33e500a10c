"""A model whose parameters are no longer those under the Pruner, and what moves without leaving the model."""

import copy

import pytest
import torch
from networks import batches, build
from pruned import SETTINGS, pruned, same, train
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils import weight_norm as old_weight_norm

from hyperflux import InputError, Pruner


def assign(model):
    model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True)


def convert(model):
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        model.to(torch.float32).to(torch.float64)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


CHANGES = {
    "assigned": assign,
    "converted": convert,
    "layer replaced": lambda model: model.__setitem__(1, nn.Linear(64, 24).double()),
    "parameter replaced": lambda model: setattr(model[1], "weight", nn.Parameter(model[1].weight.detach().clone())),
    "layer removed": lambda model: model.__delitem__(1),
    "weight norm": lambda model: parametrizations.weight_norm(model[1]),
    "old weight norm": lambda model: old_weight_norm(model[1]),
    "spectral norm": lambda model: parametrizations.spectral_norm(model[1]),
    "parametrization": lambda model: parametrize.register_parametrization(model[1], "weight", Doubled()),
    "torch's pruning": lambda model: prune.random_unstructured(model[1], "weight", 0.2),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("steps", [0, 5, 80])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_reported_at_the_next_step_and_at_the_end(change, steps):
    """Before the first step, in the middle and after the last; nothing is called done over a dense module."""
    model, optimizer, pruner = pruned()
    train(model, optimizer, steps)
    CHANGES[change](model)
    count = pruner.step_count
    optimizer.zero_grad()
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    with pytest.raises(InputError, match=r"1\.weight: is (another|recomputed|no longer)"):
        optimizer.step()
    assert pruner.step_count == count
    for end in (pruner.finalize, pruner.state_dict):
        with pytest.raises(InputError, match=r"1\.weight: is "):
            end()
    pruner.release()


WRAPS = {
    "compiled": lambda model: model.__setitem__(1, torch.compile(model[1], backend="eager")),
    "nested": lambda model: model.__setitem__(1, nn.Sequential(model[1])),
    "checkpointed": lambda model: model.__setitem__(1, _checkpointed(model[1])),
    "other module, same parameter": lambda model: model.__setitem__(1, _twin(model[1])),
    "moved": lambda model: model.to("cpu").double(),
}


def _checkpointed(module):
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    return checkpoint_wrapper(module)


def _twin(module):
    twin = nn.Linear(module.in_features, module.out_features).double()
    twin.weight, twin.bias = module.weight, module.bias
    return twin


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_wrapped_layer_is_still_pruned(wrap):
    model, optimizer, pruner = pruned()
    twin, its_optimizer, its_pruner = pruned()
    train(model, optimizer, 5)
    WRAPS[wrap](model)
    train(model, optimizer, 75, seed=1)
    pruner.finalize()
    train(twin, its_optimizer, 5)
    train(twin, its_optimizer, 75, seed=1)
    its_pruner.finalize()
    assert same(pruner.masks(), its_pruner.masks())
    kept = sum(int((parameter != 0).sum()) for parameter in model.parameters() if parameter.dim() == 2)
    assert kept == pruner.surviving == 653


@pytest.mark.parametrize("change", [assign, convert])
def test_follow_goes_on_with_the_new_parameters(change):
    """As if nothing had been replaced: w of pruned weights, t and moments are kept."""
    model, optimizer, pruner = pruned(make=lambda p: torch.optim.SGD(p, lr=0.05))
    twin, its_optimizer, its_pruner = pruned(make=lambda p: torch.optim.SGD(p, lr=0.05))
    train(model, optimizer, 50)
    change(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pruner.follow(optimizer)
    train(model, optimizer, 30, seed=1)
    pruner.finalize()
    train(twin, its_optimizer, 50)
    train(twin, its_optimizer, 30, seed=1)
    its_pruner.finalize()
    assert pruner.step_count == 80
    if change is assign:
        assert same(model.state_dict(), twin.state_dict())
    kept = sum(int((parameter != 0).sum()) for parameter in model.parameters() if parameter.dim() == 2)
    assert kept == pruner.surviving == 653


def test_follow_refuses_what_it_cannot_go_on_with_and_changes_nothing():
    model, optimizer, pruner = pruned()
    train(model, optimizer, 10)
    with pytest.raises(InputError, match=r"1\.weight: the optimizer does not train it"):
        pruner.follow(torch.optim.SGD(model[3].parameters(), lr=0.1))
    with pytest.raises(InputError, match="LBFGS"):
        pruner.follow(torch.optim.LBFGS(model.parameters()))
    with pytest.raises(InputError, match="optimizer"):
        pruner.follow(model)
    train(model, optimizer, 10)
    assert pruner.step_count == 20
    kept = model[1]
    model[1] = nn.Linear(64, 23).double()
    with pytest.raises(InputError, match=r"1\.weight: has shape \(23, 64\) now, but \(24, 64\)"):
        pruner.follow(torch.optim.SGD(model.parameters(), lr=0.1))
    model[1] = kept
    train(model, optimizer, 10)
    assert pruner.step_count == 30
    pruner.finalize()
    with pytest.raises(InputError, match="finished"):
        pruner.follow(optimizer)


def test_a_frozen_layer_need_not_be_in_the_optimizer_that_is_followed():
    model, optimizer, pruner = pruned()
    train(model, optimizer, 20)
    model[1].requires_grad_(False)
    head = torch.optim.SGD(model[3].parameters(), lr=0.1)
    pruner.follow(head)
    train(model, head, 60)
    pruner.finalize()
    assert sum(int((model[i].weight != 0).sum()) for i in (1, 3)) == 653


def test_untying_is_reported():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Linear(64, 64).double(), nn.Linear(64, 64).double()
            self.other.weight = self.one.weight

        def forward(self, x):
            return self.other(self.one(x.flatten(1)).relu())

    model = Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Pruner(model, optimizer, **SETTINGS)
    train(model, optimizer, 3)
    model.other.weight = nn.Parameter(model.one.weight.detach().clone())
    with pytest.raises(InputError, match=r"one\.weight: is another Parameter"):
        train(model, optimizer, 1)


def test_a_copy_of_the_model_is_no_change():
    model, optimizer, pruner = pruned()
    train(model, optimizer, 40)
    before = copy.deepcopy(model)
    model.load_state_dict(before.state_dict())
    train(model, optimizer, 40)
    pruner.finalize()
    inputs, _ = next(batches(1))
    assert model(inputs).shape == build("mlp")(inputs).shape
