"""`apply_masks`: averages over training become as sparse as the model."""

import copy

import pytest
import torch
from networks import build
from pruned import pruned, same, train
from timm.utils import ModelEmaV2, ModelEmaV3
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hyperflux import InputError

AVERAGES = {
    "torch's EMA": lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9)),
    "torch's SWA": AveragedModel,
    "timm's V3": lambda model: ModelEmaV3(model, decay=0.9),
    "timm's V2": lambda model: ModelEmaV2(model, decay=0.9),
}


@pytest.mark.parametrize("kind", AVERAGES)
def test_an_average_is_dense_until_the_masks_are_applied(kind):
    model, optimizer, pruner = pruned(dtype=torch.float32)
    average = AVERAGES[kind](model)
    for seed in range(80):
        train(model, optimizer, 1, seed=seed, dtype=torch.float32)
        getattr(average, "update_parameters", getattr(average, "update", None))(model)
    pruner.finalize()
    weights = {name: average.module.get_parameter(name) for name in pruner.masks()}
    assert sum(int((weight != 0).sum()) for weight in weights.values()) > 653
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    pruner.apply_masks(average)
    for name, mask in pruner.masks().items():
        assert torch.equal(weights[name], torch.where(mask, before[name], 0.0))
    assert sum(int((weight != 0).sum()) for weight in weights.values()) == 653


def test_other_parameters_stay_and_a_compiled_copy_is_looked_through():
    model, optimizer, pruner = pruned()
    train(model, optimizer, 80)
    other = build("mlp", seed=3)
    dense = copy.deepcopy(other)
    pruner.apply_masks(torch.compile(other, backend="eager"))
    assert torch.equal(other[1].bias, dense[1].bias)
    assert torch.equal(other[1].weight, torch.where(pruner.masks()["1.weight"], dense[1].weight, 0.0))


@pytest.mark.parametrize("model", [None, "model", torch.ones(3), dict])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(InputError, match=r"model: .* is not a module"):
        pruned()[2].apply_masks(model)


def test_another_architecture_is_refused_and_stays_as_it_is():
    _, _, pruner = pruned()
    other = build("convolutional")
    with pytest.raises(InputError, match=r"model: Sequential has no parameter 3\.weight"):
        pruner.apply_masks(other)
    wider = build("mlp")
    wider[3] = torch.nn.Linear(24, 5).double()
    before = copy.deepcopy(wider.state_dict())
    with pytest.raises(InputError, match=r"model: 3\.weight has shape \(5, 24\), but its mask \(4, 24\)"):
        pruner.apply_masks(wider)
    assert same(wider.state_dict(), before)
