"""Flux under every torch optimizer and its options, held to autograd: sign, scale and order of what it does to g."""

import inspect

import pytest
import torch
from autograd_oracle import AutogradOracle
from hypothesis import event, given, settings
from hypothesis import strategies as st
from networks import batches, build
from tolerances import ROUNDING
from torch import optim
from torch.nn.functional import cross_entropy

from hyperflux import Pruner

WITHOUT_CLOSURE = sorted(
    name
    for name, found in vars(optim).items()
    if inspect.isclass(found) and issubclass(found, optim.Optimizer) and found not in (optim.Optimizer, optim.LBFGS)
)
CHOICES = {
    "maximize": [False, True],
    "foreach": [None, False, True],
    "fused": [None, True],
    "capturable": [False, False, False, True],
    "differentiable": [False, False, False, True],
    "amsgrad": [False, True],
    "decoupled_weight_decay": [False, True],
    "centered": [False, True],
    "momentum": [0.0, 0.9],
    "weight_decay": [0.0, 0.1],
}
SCALE = 1024.0


def parameters_for(name, model):
    """Muon takes matrices only."""
    return [parameter for parameter in model.parameters() if name != "Muon" or parameter.ndim == 2]


def scaled(optimizer, scale):
    """What a GradScaler tells a fused optimizer, which unscales gradients within its step."""
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(scale), torch.tensor(0.0)


def failure(step):
    """Type of the error that a step raises, or None."""
    try:
        step()
    except Exception as error:
        return type(error)
    return None


@pytest.mark.parametrize("name", WITHOUT_CLOSURE)
@settings(max_examples=20)
@given(data=st.data())
def test_no_option_of_an_optimizer_spoils_the_flux(name, data):
    """E1 to E6: θ, w and masks to the bit, t to rounding. Where torch refuses the options, the network stays pruned."""
    kind = getattr(optim, name)
    known = inspect.signature(kind).parameters
    options = {key: data.draw(st.sampled_from(values), key) for key, values in CHOICES.items() if key in known}
    model, twin = build("mlp"), build("mlp")

    def made(parameters):
        of = model if next(iter(parameters)) is next(model.parameters()) else twin
        return kind(parameters_for(name, of), lr=0.01, **options)

    if failure(lambda: made(model.parameters())):
        event("torch refuses the options")
        return
    ascends = options.get("maximize", False)
    optimizer = made(model.parameters())
    scale = SCALE if options.get("fused") and data.draw(st.booleans(), "scaled") else 1.0
    if scale > 1:
        scaled(optimizer, scale)
    schedule = {"target_sparsity": 0.5, "pruning_steps": 40, "regrowth_steps": 0, "presence_lr": 0.02}
    pruner = Pruner(model, optimizer, **schedule, controller="published")
    oracle = AutogradOracle(twin, pruner.presence(), made, 0.02, ascends)
    for inputs, labels in batches(8):
        theirs = failure(lambda inputs=inputs, labels=labels: oracle.step(inputs, labels, pruner.pressure))
        optimizer.zero_grad()
        sign = -1.0 if ascends else 1.0
        (sign * scale * cross_entropy(model(inputs), labels, label_smoothing=0.1)).backward()
        assert failure(optimizer.step) is theirs
        effective = {
            key: torch.where(t >= 0, pruner.latent()[key], 0) for key, t in pruner.presence().items()
        }  # fmt: skip
        assert all(torch.equal(model.get_parameter(key), theta) for key, theta in effective.items())
        if theirs:
            event("torch refuses to step")
            return
        for key, t in pruner.presence().items():
            torch.testing.assert_close(t, oracle.presence[key].data, rtol=0, atol=ROUNDING)
            assert torch.equal(t >= 0, oracle.presence[key] >= 0)
            assert torch.equal(pruner.latent()[key], twin.get_parameter(key))
    event("compared")
