"""Copies and pickles of a Pruner: together with model and optimizer they work, alone too; never a dead copy."""

import copy
import io
import pickle

import pytest
import torch
from networks import build
from pruned import SETTINGS, pruned, same, train
from torch import nn

from hyperflux import InputError, Pruner


def through_torch_save(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "torch.save": through_torch_save,
}


@pytest.mark.parametrize("telemetry", ["off", "full"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("steps", [0, 45, 70])
def test_a_copy_of_all_three_goes_on_as_the_original_does(way, steps, telemetry):
    """To the bit, and neither touches the other."""
    model, optimizer, pruner = pruned(telemetry=telemetry)
    train(model, optimizer, steps)
    copied, its_optimizer, its_pruner = WAYS[way]((model, optimizer, pruner))
    for each, its in ((copied, its_optimizer), (model, optimizer)):
        train(each, its, 80 - steps, seed=1)
    for each in (pruner, its_pruner):
        each.finalize()
        assert (each.step_count, each.stage, each.surviving) == (80, "done", 653)
    assert same(copied.state_dict(), model.state_dict())
    assert sum(int((copied[i].weight != 0).sum()) for i in (1, 3)) == 653
    for name, table in pruner.telemetry().items():
        assert its_pruner.telemetry()[name].tobytes() == table.tobytes(), name


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_of_the_pruner_alone_has_its_own_model(way):
    model, optimizer, pruner = pruned()
    train(model, optimizer, 40)
    copied = WAYS[way](pruner)
    train(copied.model, copied.gate.optimizer, 40, seed=1)
    copied.finalize()
    assert sum(int((copied.model[i].weight != 0).sum()) for i in (1, 3)) == 653
    assert pruner.step_count == 40
    train(model, optimizer, 40, seed=1)
    pruner.finalize()
    assert same(copied.model.state_dict(), model.state_dict())


@pytest.mark.parametrize("way", WAYS)
def test_a_finished_pruner_can_be_returned_from_a_worker(way):
    model, optimizer, pruner = pruned()
    train(model, optimizer, 80)
    pruner.finalize()
    train(model, optimizer, 1)  # further training is dense, and a copy does not undo it
    copied = WAYS[way](pruner)
    assert copied.surviving == 653
    assert same(copied.masks(), pruner.masks())
    assert same(copied.model.state_dict(), model.state_dict())
    copied.finalize()
    assert same(copied.model.state_dict(), model.state_dict())


@pytest.mark.parametrize("way", WAYS)
def test_a_module_that_holds_its_own_pruner_can_be_copied(way):
    """As a Lightning module does."""
    module = Holder()
    train(module, module.optimizer, 30)
    copied = WAYS[way](module)
    train(copied, copied.optimizer, 50, seed=1)
    copied.pruner.finalize()
    assert copied.pruner.model is copied
    assert sum(int((copied.network[i].weight != 0).sum()) for i in (1, 3)) == 653
    train(module, module.optimizer, 50, seed=1)
    assert module.pruner.step_count == 80


class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = build("mlp")
        self.optimizer = torch.optim.SGD(self.parameters(), lr=0.05)
        self.pruner = Pruner(self, self.optimizer, **SETTINGS)

    def forward(self, x):
        return self.network(x)


def test_a_pruner_of_several_processes_is_not_copied():
    _, _, pruner = pruned(process_group=torch.distributed.ProcessGroup(0, 2), controller="published", presence_lr=0.05)
    for way in WAYS.values():
        with pytest.raises(InputError, match=r"save its state_dict\(\)"):
            way(pruner)


def test_a_copied_model_is_free_for_another_pruner():
    model, optimizer, _ = pruned()
    train(model, optimizer, 10)
    copied = copy.deepcopy(model)
    assert Pruner(copied, torch.optim.SGD(copied.parameters(), lr=0.1), **SETTINGS).total == 1632
