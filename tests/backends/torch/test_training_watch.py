"""Optimizers that the Pruner does not follow, and parameters that join later: said when it happens."""

import subprocess
import sys

import pytest
import torch
from networks import batches, build
from pruned import SETTINGS, pruned, same, train
from torch import nn
from torch.nn.functional import cross_entropy

from hyperflux import InputError, Pruner


def test_a_step_of_another_optimizer_is_reported_at_once_and_follow_is_the_way_on(caplog):
    model, optimizer, pruner = pruned()
    train(model, optimizer, 20)
    other = torch.optim.AdamW(model.parameters(), lr=1e-3)
    assert not caplog.records
    train(model, other, 1)
    assert len(caplog.records) == 1
    assert "AdamW trains weights under a Pruner" in caplog.text
    assert "follow(optimizer)" in caplog.text
    train(model, other, 5)
    assert len(caplog.records) == 1
    message = r"1\.weight: was trained by AdamW.* pruned in 20 steps.*follow\(optimizer\)"
    for end in (pruner.finalize, pruner.state_dict, optimizer.step):
        with pytest.raises(InputError, match=message):
            end()
    pruner.follow(other)
    assert pruner.step_count == 20
    train(model, other, 60)
    pruner.finalize()
    assert sum(int((model[i].weight != 0).sum()) for i in (1, 3)) == 653
    assert len(caplog.records) == 1


def test_following_a_new_optimizer_in_time_loses_nothing(caplog):
    """The new optimizer does what the old one would: plain SGD has no state."""
    make = lambda p: torch.optim.SGD(p, lr=0.05)  # noqa: E731
    model, optimizer, pruner = pruned(make=make)
    twin, its_optimizer, its_pruner = pruned(make=make)
    for part in range(8):
        train(model, optimizer, 10, seed=part)
        train(twin, its_optimizer, 10, seed=part)
        optimizer = make(model.parameters())
        pruner.follow(optimizer)
    assert same(model.state_dict(), twin.state_dict())
    assert same(pruner.presence(), its_pruner.presence())
    assert same(pruner.latent(), its_pruner.latent())
    assert pruner.stage == "done"
    assert not caplog.records


def test_an_old_optimizer_no_longer_prunes():
    model, optimizer, pruner = pruned()
    train(model, optimizer, 10)
    pruner.follow(torch.optim.SGD(model.parameters(), lr=0.1))
    masks = pruner.masks()
    train(model, optimizer, 1)
    assert pruner.step_count == 10
    assert same(pruner.masks(), masks)


class Sharpness(torch.optim.Optimizer):
    """A wrapper in the manner of SAM: it perturbs, calls the closure's work from outside, and steps its base."""

    def __init__(self, base):
        super().__init__(base.param_groups, {})
        self.base = base

    def step(self):
        self.base.step()


def test_a_wrapper_that_steps_the_followed_optimizer_is_no_bypass(caplog):
    model = build("mlp")
    base = torch.optim.SGD(model.parameters(), lr=0.05)
    wrapper = Sharpness(base)
    pruner = Pruner(model, base, **SETTINGS)
    train(model, wrapper, 80)
    pruner.finalize()
    assert pruner.surviving == 653
    assert not caplog.records


def test_an_optimizer_inside_the_followed_one_is_no_bypass(caplog):
    model = build("mlp")
    wrapper = Sharpness(torch.optim.SGD(model.parameters(), lr=0.05))
    pruner = Pruner(model, wrapper, **SETTINGS)
    train(model, wrapper, 80)
    pruner.finalize()
    assert pruner.surviving == 653
    assert not caplog.records


def test_optimizers_of_other_models_are_none_of_its_business(caplog):
    model, optimizer, _ = pruned()
    other = build("mlp", seed=1)
    its = torch.optim.SGD(other.parameters(), lr=0.1)
    train(other, its, 3)
    train(model, optimizer, 3)
    biases = torch.optim.SGD([model[1].bias, model[3].bias], lr=0.1)
    train(model, biases, 3)
    assert not caplog.records


@pytest.mark.parametrize("how", ["group", "unfreeze", "other optimizer", "new layer"])
def test_weights_that_join_later_are_reported_when_they_do(how, caplog):
    model = build("mlp")
    optimizer = torch.optim.SGD((model[3] if how in ("group", "other optimizer") else model).parameters(), lr=0.1)
    model[1].requires_grad_(how not in ("unfreeze",))
    pruner = Pruner(model, optimizer, **SETTINGS)
    train(model, optimizer, 10)
    assert not caplog.records
    name = "1.weight"
    if how == "group":
        optimizer.add_param_group({"params": list(model[1].parameters())})
    elif how == "unfreeze":
        model[1].requires_grad_(True)
    elif how == "new layer":
        model.append(nn.Linear(4, 4).double())
        optimizer.add_param_group({"params": list(model[4].parameters())})
        name = "4.weight"
    else:
        train(model, torch.optim.SGD(model[1].parameters(), lr=0.1), 1)
    train(model, optimizer, 1)
    assert len(caplog.records) == 1
    assert f"{name}: trained, but not pruned" in caplog.text
    train(model, optimizer, 69)
    pruner.finalize()
    assert len(caplog.records) == 1
    held = [model.get_parameter(name) for name in pruner.selection.prunable]
    assert sum(int((parameter != 0).sum()) for parameter in held) == pruner.surviving == round(0.4 * pruner.total)


@pytest.mark.parametrize("how", ["excluded", "another Pruner"])
def test_weights_left_dense_on_purpose_are_not_reported(how, caplog):
    model = build("mlp")
    one, other = torch.optim.SGD(model[3].parameters(), lr=0.1), torch.optim.SGD(model[1].parameters(), lr=0.1)
    pruner = Pruner(model, one, **SETTINGS, **({"exclude": "1"} if how == "excluded" else {}))
    second = Pruner(model, other, **SETTINGS) if how == "another Pruner" else None
    for inputs, labels in batches(80):
        model.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        one.step()
        other.step()
    pruner.finalize()
    assert int((model[3].weight != 0).sum()) == round(0.4 * 96)
    if second is not None:
        second.finalize()
        assert int((model[1].weight != 0).sum()) == round(0.4 * 1536)
    assert not caplog.records


def test_a_pruner_that_was_dropped_blocks_nothing_and_warns_of_nothing(caplog):
    """As in a notebook whose cell runs again."""
    model, optimizer, pruner = pruned()
    train(model, optimizer, 10)
    del optimizer, pruner
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer, 1)
    assert not caplog.records
    pruner = Pruner(model, optimizer, **SETTINGS)
    train(model, optimizer, 80)
    pruner.finalize()
    assert pruner.surviving == 653


def test_no_hook_is_left_when_no_pruner_is():
    """In a process of its own, because other tests keep Pruners."""
    code = """if True:
        from torch import nn, optim
        from torch.optim.optimizer import _global_optimizer_pre_hooks as hooks
        import hyperflux
        model = nn.Linear(8, 8)
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        settings = {"target_sparsity": 0.5, "pruning_steps": 9, "regrowth_steps": 9}
        assert not hooks
        pruner = hyperflux.Pruner(model, optimizer, **settings)
        assert len(hooks) == 1
        pruner.finalize()
        assert not hooks
        pruner = hyperflux.Pruner(model, optimizer, **settings)
        assert len(hooks) == 1
        pruner.release()
        assert not hooks
    """
    subprocess.run([sys.executable, "-c", code], check=True)
