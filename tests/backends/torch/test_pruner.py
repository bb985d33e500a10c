"""`Pruner` in other people's training loops: every way of stepping, copying and sharing weights that they have."""

import copy

import pytest
import torch
from networks import batches, build
from pruned import SETTINGS, pruned, same, train
from torch import nn
from torch.nn.functional import cross_entropy

import hyperflux
from hyperflux import InputError, Pruner


def test_a_whole_course_in_two_lines():
    """E10: pruning, regrowth, done; afterwards the mask stays; finalize leaves stock keys, exact zeros and no hook."""
    model, optimizer, pruner = pruned()
    assert (pruner.stage, pruner.step_count, pruner.pressure, pruner.sparsity) == ("pruning", 0, 0.0, 0.0)
    train(model, optimizer, 30)
    assert pruner.pressure > 0
    train(model, optimizer, 30, seed=1)
    assert pruner.stage == "regrowth"
    assert pruner.pressure == 0
    assert pruner.surviving == 653  # 0.4 of 1632, from here on
    train(model, optimizer, 20)
    assert (pruner.stage, pruner.step_count) == ("done", 80)
    masks = pruner.masks()
    train(model, optimizer, 5)
    assert same(pruner.masks(), masks)
    pruner.finalize()
    pruner.finalize()
    assert list(model.state_dict()) == list(build("mlp").state_dict())
    weights = dict(model.named_parameters())
    for name, mask in masks.items():
        assert torch.equal(weights[name][~mask], torch.zeros_like(weights[name][~mask]))
    surviving = sum(int(mask.sum()) for mask in masks.values())
    assert pruner.surviving == surviving == 653
    assert pruner.total == 64 * 24 + 24 * 4 == 1632
    assert [(row.name, row.total) for row in pruner.layers()] == [("1.weight", 1536), ("3.weight", 96)]
    before = weights["1.weight"].clone()
    train(model, optimizer, 1)
    assert not torch.equal(before == 0, weights["1.weight"] == 0), "a hook is still there"


@pytest.mark.parametrize("kind", ["mlp", "convolutional", "transformer"])
@pytest.mark.parametrize("steps", [0, 1, 7, 59, 60, 65, 79, 80, 90])
def test_finalize_leaves_the_wanted_number_of_weights_after_any_number_of_steps(kind, steps, caplog):
    """E12: and says so in the log where steps are missing."""
    model, optimizer, pruner = pruned(kind, target_sparsity=0.93)
    train(model, optimizer, steps)
    pruner.finalize()
    wanted = round(pruner.total * 0.07)
    assert pruner.surviving == wanted == sum(int(mask.sum()) for mask in pruner.masks().values())
    for name, mask in pruner.masks().items():
        assert torch.equal(model.get_parameter(name) == 0, ~mask)
    assert ("finalize() after" in caplog.text) == (steps < 80)


@pytest.mark.parametrize("left", [1, 1631])
def test_one_weight_may_be_left_or_pruned(left):
    """E12: the extremes, with whole layers starved."""
    model, optimizer, pruner = pruned(target_sparsity=1 - left / 1632)
    train(model, optimizer, 80)
    pruner.finalize()
    assert pruner.surviving == left


def test_a_weight_with_t_of_0_or_more_is_present_after_every_step():
    """E1: capacity moves t, never the gate."""
    model, optimizer, pruner = pruned()
    weights = dict(model.named_parameters())
    for seed in range(80):
        train(model, optimizer, 1, seed=seed)
        for name, t in pruner.presence().items():
            assert torch.equal(pruner.masks()[name], t >= 0)
            assert torch.equal(weights[name] != 0, t >= 0)


def test_the_published_course_is_not_brought_to_its_target():
    """E8 to E10 alone: where it ends it stays."""
    model, optimizer, pruner = pruned(controller="published")
    train(model, optimizer, 80)
    before = pruner.masks()
    pruner.finalize()
    assert same(pruner.masks(), before)


def test_parameters_keep_their_storage_outside_a_step():
    model, optimizer, _ = pruned()
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    train(model, optimizer, 3)
    assert [parameter.data_ptr() for parameter in model.parameters()] == pointers


def test_an_interrupted_prune_leaves_the_network_as_it_was_then():
    model = build("mlp", dtype=torch.float32)
    loader, seen = list(batches(10, dtype=torch.float32)), []

    def interrupt(pruner, loss):
        seen.append({name: mask.clone() for name, mask in pruner.masks().items()})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hyperflux.prune(model, loader, target_sparsity=0.9, pruning_epochs=50, device="cpu", on_epoch=interrupt)
    for name, mask in seen[0].items():
        assert torch.equal(model.get_parameter(name) == 0, ~mask)
    assert isinstance(Pruner(model, torch.optim.SGD(model.parameters(), lr=0.1), **SETTINGS), Pruner)


def test_accumulation_presses_once_a_step():
    model, optimizer, pruner = pruned(seed=1)
    for _ in range(3):
        for inputs, labels in batches(2):
            cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert pruner.step_count == 3


def test_clipping_acts_before_flux():
    """E3: t moves on the gradient that clipping left; with nothing left and no pressure, t stays."""
    model, optimizer, pruner = pruned(controller="published")  # which never moves the gate
    first = pruner.presence()
    inputs, labels = next(batches(1))
    cross_entropy(model(inputs), labels).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.0)
    optimizer.step()
    assert same(pruner.presence(), first)


def test_copies_and_averages_are_plain_sparse_modules():
    model, optimizer, _ = pruned()
    average = torch.optim.swa_utils.AveragedModel(model)
    train(model, optimizer, 50)
    average.update_parameters(model)
    copied = copy.deepcopy(model)
    inputs, _ = next(batches(1))
    assert torch.equal(copied(inputs), model(inputs))
    assert torch.equal(average(inputs), model(inputs))
    kept = {name: tensor.clone() for name, tensor in copied.state_dict().items()}
    train(model, optimizer, 5)
    assert same(copied.state_dict(), kept)
    assert isinstance(Pruner(copied, torch.optim.SGD(copied.parameters(), lr=0.1), **SETTINGS), Pruner)


def test_a_parameter_without_gradient_stays_as_it_is():
    model, optimizer, pruner = pruned(controller="published")
    train(model, optimizer, 30)
    before, t = pruner.latent(), pruner.presence()
    inputs, labels = next(batches(1))
    optimizer.zero_grad()
    cross_entropy(model(inputs), labels).backward()
    model[1].weight.grad = None
    optimizer.step()
    assert torch.equal(pruner.latent()["1.weight"], before["1.weight"])
    assert torch.equal(pruner.presence()["1.weight"], t["1.weight"])
    assert not torch.equal(pruner.presence()["3.weight"], t["3.weight"])


def test_frozen_layers_are_not_counted_and_never_touched():
    model = build("mlp")
    model[1].requires_grad_(False)
    first = model[1].weight.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(model, optimizer, **SETTINGS)
    train(model, optimizer, 80)
    assert pruner.total == 96
    assert torch.equal(model[1].weight, first)
    assert "frozen" in str(pruner.selection)


def test_groups_and_schedulers_keep_their_rates():
    model = build("mlp")
    optimizer = torch.optim.SGD(
        [{"params": model[1].parameters(), "lr": 0.2}, {"params": model[3].parameters()}], lr=0.1
    )
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    Pruner(model, optimizer, **SETTINGS)
    train(model, optimizer, 1)
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.05]


def test_tied_weights_count_once():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).double()
    model[2].weight = model[0].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(model, optimizer, **SETTINGS)
    assert pruner.total == 64
    for _ in range(60):
        optimizer.zero_grad()
        model(torch.ones(2, 8, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
    assert model[2].weight is model[0].weight
    assert torch.equal(model[2].weight == 0, ~pruner.masks()["0.weight"])


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_leaves_everything_untouched(fused):
    make = lambda p: torch.optim.SGD(p, lr=0.05, fused=fused)  # noqa: E731
    model, optimizer, pruner = pruned(dtype=torch.float32, make=make)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    train(model, optimizer, 20, dtype=torch.float32)
    before, weights = pruner.state_dict(), {k: v.clone() for k, v in model.state_dict().items()}
    inputs, labels = next(batches(1, dtype=torch.float32))
    optimizer.zero_grad()
    scaler.scale(cross_entropy(model(inputs), labels) * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    after = pruner.state_dict()
    assert (after["gate"]["steps"], after["schedule"]) == (20, before["schedule"])
    assert all(
        same_state(after["gate"]["parameters"][k], before["gate"]["parameters"][k])
        for k in before["gate"]["parameters"]
    )
    assert same(model.state_dict(), weights)


def same_state(ours, theirs):
    return all(
        torch.equal(ours[key], theirs[key]) if isinstance(ours[key], torch.Tensor) else ours[key] == theirs[key]
        for key in theirs
    )


def test_a_fused_optimizer_under_a_scaler_sees_unscaled_flux():
    """E4: a scale that is a power of two changes no bit of flux, t or w."""
    make = lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True)  # noqa: E731
    model, optimizer, pruner = pruned(dtype=torch.float32, make=make)
    twin, its_optimizer, its_pruner = pruned(dtype=torch.float32, make=make)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for inputs, labels in batches(40, dtype=torch.float32):
        optimizer.zero_grad()
        scaler.scale(cross_entropy(model(inputs), labels)).backward()
        scaler.step(optimizer)
        scaler.update()
    train(twin, its_optimizer, 40, dtype=torch.float32)
    assert pruner.sparsity > 0
    assert same(pruner.flux(), its_pruner.flux())
    assert same(pruner.presence(), its_pruner.presence())
    assert same(model.state_dict(), twin.state_dict())


def test_flux_is_the_running_mean_less_pressure():
    """E4, E5: at the first step it is −κ g w, whatever the pressure."""
    model, optimizer, pruner = pruned()
    pruner.gate.pressure = 1e3
    weight = model[1].weight.detach().clone()
    inputs, labels = next(batches(1))
    cross_entropy(model(inputs), labels).backward()
    gradient = model[1].weight.grad.clone()
    optimizer.step()
    torch.testing.assert_close(pruner.flux()["1.weight"], -0.25 * gradient * weight, rtol=0, atol=1e-12)


def test_a_compiled_model_is_pruned_under_its_stock_names():
    model, twin = build("mlp"), build("mlp")
    compiled = torch.compile(model, backend="aot_eager")
    optimizer, its = (torch.optim.SGD(m.parameters(), lr=0.05) for m in (compiled, twin))
    pruner, its_pruner = Pruner(compiled, optimizer, **SETTINGS), Pruner(twin, its, **SETTINGS)
    train(compiled, optimizer, 60)
    train(twin, its, 60)
    assert list(pruner.masks()) == ["1.weight", "3.weight"]
    assert same(pruner.masks(), its_pruner.masks())


def test_what_cannot_be_pruned_is_refused_with_the_reason():
    model, optimizer, pruner = pruned()
    with pytest.raises(InputError, match="already under a Pruner"):
        Pruner(model, torch.optim.SGD(model.parameters(), lr=0.1), **SETTINGS)
    with pytest.raises(InputError, match="closure"):
        optimizer.step(lambda: 0.0)
    pruner.finalize()
    with pytest.raises(InputError, match="LBFGS"):
        Pruner(model, torch.optim.LBFGS(model.parameters()), **SETTINGS)
    nn.utils.parametrizations.weight_norm(model[1])
    with pytest.raises(InputError, match=r"1\.weight: recomputed from other parameters"):
        Pruner(model, torch.optim.SGD(model.parameters(), lr=0.1), **SETTINGS)
    assert Pruner(model, torch.optim.SGD(model.parameters(), lr=0.1), exclude="1", **SETTINGS).total == 96


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_sparsity": 95}, "for 95 % give 0.95"),
        ({"target_sparsity": 0.9999}, "leaves none"),
        ({"pruning_steps": 0}, "pruning_steps: 0"),
        ({"regrowth_steps": 1.5}, "regrowth_steps: 1.5"),
        ({"presence_lr": 0.0}, "presence_lr: 0.0"),
        ({"controller": "pid"}, "controller 'pid' is not known"),
        ({"include": "nothing"}, "include: prunable weight 'nothing' is not known"),
        ({"exclude": "4.weigth"}, "exclude: parameter '4.weigth' is not known"),
        ({"exclude": "*"}, "no prunable weight"),
    ],
)
def test_wrong_arguments_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        pruned(**settings)


def test_prune_runs_the_whole_course_without_a_loop():
    model, losses = build("convolutional", dtype=torch.float32), []
    loader = list(batches(30, dtype=torch.float32))
    pruner = hyperflux.prune(
        model, loader, target_sparsity=0.5, pruning_epochs=3, regrowth_epochs=1, presence_lr=0.02, device="cpu",
        on_epoch=lambda _, loss: losses.append(loss),
    )  # fmt: skip
    assert (pruner.stage, pruner.step_count, len(losses)) == ("done", 120, 4)
    kept = sum(int((module.weight != 0).sum()) for module in (model[0], model[4], model[9]))
    assert kept == round(pruner.total / 2)
    with pytest.raises(InputError, match="train_loader: has no length"):
        hyperflux.prune(model, iter(loader), target_sparsity=0.5)
