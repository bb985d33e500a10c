"""The Pruner against autograd through E1 to E5 with separate w and t: θ and masks to the bit, t to rounding."""

import pytest
import torch
from autograd_oracle import AutogradOracle
from networks import NETWORKS, batches, build
from timm.optim import Lion
from tolerances import ROUNDING
from torch import optim

from hyperflux import Pruner, spec

OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.05),
    "momentum": lambda p: optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=5e-4, foreach=False),
    "nesterov": lambda p: optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True, weight_decay=5e-4),
    "foreach": lambda p: optim.SGD(p, lr=0.02, momentum=0.9, foreach=True),
    "fused sgd": lambda p: optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=5e-4, fused=True),
    "adam": lambda p: optim.Adam(p, lr=3e-3),
    "adamw": lambda p: optim.AdamW(p, lr=3e-3, weight_decay=0.05),
    "fused adamw": lambda p: optim.AdamW(p, lr=3e-3, weight_decay=0.05, fused=True),
    "nadam": lambda p: optim.NAdam(p, lr=3e-3),
    "radam": lambda p: optim.RAdam(p, lr=3e-3),
    "rmsprop": lambda p: optim.RMSprop(p, lr=1e-3),
    "adagrad": lambda p: optim.Adagrad(p, lr=1e-2),
    "timm lion": lambda p: Lion(p, lr=1e-3, weight_decay=0.01),
}
STEPS = 150


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_pruner_follows_autograd_bit_for_bit(kind, optimizer):
    model, twin = build(kind), build(kind)
    pruner = Pruner(
        model,
        trained_by := OPTIMIZERS[optimizer](model.parameters()),
        target_sparsity=0.5,
        pruning_steps=STEPS,
        regrowth_steps=0,
        presence_lr=0.01,
        controller="published",  # E1 to E6 alone: the default course also moves the gate (E12)
    )
    oracle = AutogradOracle(twin, pruner.presence(), OPTIMIZERS[optimizer], presence_lr=0.01)
    flipped = dict.fromkeys(pruner.masks(), 0)
    for inputs, labels in batches(STEPS):
        before = pruner.masks()
        oracle.step(inputs, labels, pruner.pressure)
        trained_by.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), labels, label_smoothing=0.1).backward()
        trained_by.step()
        effective, parameters = oracle.effective(), dict(model.named_parameters())
        for name, mask in pruner.masks().items():
            assert torch.equal(mask, oracle.presence[name] >= 0)
            assert torch.equal(parameters[name], effective[name])
            flipped[name] += int((mask ^ before[name]).sum())
    for name, parameter in twin.named_parameters():
        if name in flipped:
            assert flipped[name] > 0, "the run tried nothing"
            torch.testing.assert_close(pruner.presence()[name], oracle.presence[name].data, rtol=0, atol=ROUNDING)
        else:
            assert torch.equal(dict(model.named_parameters())[name], parameter)
    for (name, buffer), other in zip(model.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(buffer, other), name


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_default_course_is_autograd_and_capacity(kind):
    """E12 after every step of E1 to E6: the specification's capacity on the oracle's own t; both stages."""
    model, twin, make = build(kind), build(kind), OPTIMIZERS["momentum"]
    optimizer = make(model.parameters())
    pruner = Pruner(model, optimizer, target_sparsity=0.8, pruning_steps=100, regrowth_steps=100, presence_lr=0.01)
    schedule = pruner.session.schedule
    oracle = AutogradOracle(twin, pruner.presence(), make, presence_lr=0.01)
    for step, (inputs, labels) in enumerate(batches(200), start=1):
        for group in oracle.presence_optimizer.param_groups:
            group["lr"] = pruner.gate.presence_lr or 0.0
        oracle.step(inputs, labels, pruner.pressure)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), labels, label_smoothing=0.1).backward()
        optimizer.step()
        if step <= 130:  # then the mask has settled
            together = torch.cat([t.data.flatten() for t in oracle.presence.values()]).numpy()
            moved = torch.from_numpy(spec.meet_capacity(together, schedule.target_count(step))[0])
            for t, part in zip(
                oracle.presence.values(), moved.split([t.numel() for t in oracle.presence.values()]), strict=True
            ):
                t.data.copy_(part.view_as(t))
        effective, parameters = oracle.effective(), dict(model.named_parameters())
        for name, mask in pruner.masks().items():
            assert torch.equal(mask, oracle.presence[name] >= 0)
            assert torch.equal(parameters[name], effective[name])
            torch.testing.assert_close(pruner.presence()[name], oracle.presence[name].data, rtol=0, atol=ROUNDING)
    assert pruner.stage == "done"
    assert pruner.surviving == schedule.final_count
