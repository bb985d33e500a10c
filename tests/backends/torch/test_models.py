"""Models by name: every one builds, counts its prunable weights right, and takes a step of each stage."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from hyperflux import InputError, Pruner, recipes
from hyperflux.backends.torch.models import build_model, count_numbers
from hyperflux.backends.torch.selection import select
from hyperflux.models import initial_mlp


def resnet50_weights(stem):
    """Bottlenecks 1×1, 3×3, 1×1 of 3, 4, 6, 3 blocks, a 1×1 shortcut at the head of each stage, and the classifier."""
    count, inputs = stem, 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            count += inputs * width + 9 * width**2 + 4 * width**2 + (inputs * 4 * width if block == 0 else 0)
            inputs = 4 * width
    return count + 2048 * 10


def resnet18_weights(stem):
    count, inputs = stem, 64
    for width in (64, 128, 256, 512):
        count += 9 * inputs * width + 3 * 9 * width**2 + (inputs * width if inputs != width else 0)
        inputs = width
    return count + 512 * 10


def deit_weights(width, patch):
    """12 blocks of qkv, projection and two layers of 4 times the width; patch embedding and head."""
    return 12 * (3 + 1 + 4 + 4) * width**2 + 3 * patch**2 * width + 10 * width


CHANNELS = [3, 64, 64, 128, 128, *[256] * 4, *[512] * 8]
VGG19 = sum(9 * a * b for a, b in pairwise(CHANNELS)) + 512 * 10
RESNET20 = 9 * (3 * 16 + 6 * 16**2 + 16 * 32 + 5 * 32**2 + 32 * 64 + 5 * 64**2) + 640

SMALL = {
    "lenet300": 3072 * 300 + 300 * 100 + 1000,
    "mlp:3072-20-10": 3072 * 20 + 200,
    "resnet20": RESNET20,
    "resnet18": resnet18_weights(27 * 64),
    "resnet50": 23_467_712,
    "vgg19": VGG19,
    "deit_tiny": deit_weights(192, 4),
    "deit_small": deit_weights(384, 4),
    "torchvision:mobilenet_v3_small": None,  # no formula of ours: counted by its modules
    "timm:resnet10t": None,
}


@pytest.mark.parametrize("name", SMALL)
def test_every_model_takes_a_step_of_each_stage_and_counts_its_weights(name):
    model = build_model(name, (3, 32, 32), 10, seed=0).float()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    pruner = Pruner(model, optimizer, target_sparsity=0.9, pruning_steps=1, regrowth_steps=1, presence_lr=0.35)
    kinds = (nn.Linear, nn.Conv2d)
    assert pruner.total == sum(module.weight.numel() for module in model.modules() if isinstance(module, kinds))
    if SMALL[name] is not None:
        assert pruner.total == SMALL[name]
    inputs, labels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1])
    for after in ("regrowth", "done"):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        assert pruner.stage == after
    assert 0 < pruner.surviving < pruner.total
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_resnet50_of_the_formula_is_the_published_count():
    assert resnet50_weights(27 * 64) == 23_467_712


@pytest.mark.parametrize(("name", "weights"), [("resnet50", resnet50_weights(147 * 64)), ("deit_tiny", None)])
def test_large_images_get_the_usual_stem(name, weights):
    model = build_model(name, (3, 224, 224), 10, seed=0)
    selection = select(model, torch.optim.SGD(model.parameters(), lr=0.1))
    expected = weights or deit_weights(192, 16)
    assert sum(parameter.numel() for parameter in selection.prunable.values()) == expected


def test_deit_recipes_prune_the_blocks_alone():
    """The published experiment: qkv, proj, fc1 and fc2 of every block; patch embedding and head stay dense."""
    model = build_model("deit_tiny", (3, 32, 32), 10, seed=0)
    include = recipes.load("deit-tiny-cifar10")["include"]
    selection = select(model, torch.optim.SGD(model.parameters(), lr=0.1), include)
    assert sum(parameter.numel() for parameter in selection.prunable.values()) == 12 * 12 * 192**2
    assert len(selection.prunable) == 48


def test_weights_depend_on_the_seed_alone():
    state = torch.random.get_rng_state()
    first, again, other = (build_model("resnet20", (3, 32, 32), 10, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])


def test_an_mlp_is_drawn_as_on_every_backend():
    model = build_model("mlp:16-8-4", (16,), 4, seed=3)
    for name, array in initial_mlp((16, 8, 4), 3).items():
        np.testing.assert_array_equal(model.state_dict()[name].numpy(), array)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("resnet20", (16,), "needs images"),
        ("torchvision:resnet1", (3, 32, 32), "torchvision model 'resnet1' is not known; did you mean resnet"),
        ("timm:nope", (3, 32, 32), "timm model 'nope' is not known"),
        ("torchvision:mobilenet_v2", (1, 28, 28), "can't take images of shape"),
        ("torchvision:fcn_resnet50", (3, 32, 32), "torchvision model 'fcn_resnet50' is not known"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(name, shape, message):
    with pytest.raises(InputError, match=message) as caught:
        build_model(name, shape, 10, seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["mlp:3072-7-5", "lenet300", "resnet20", "resnet18", "vgg19", "deit_tiny"])
def test_the_numbers_of_a_network_are_counted_without_building_it(name):
    numbers = sum(tensor.numel() for tensor in build_model(name, (3, 32, 32), 5, seed=0).state_dict().values())
    state = torch.get_rng_state()
    assert count_numbers(name, (3, 32, 32), 5) == numbers
    assert torch.equal(torch.get_rng_state(), state)


def test_what_can_not_be_counted_is_none():
    assert count_numbers("resnet20", (16,), 5) is None
    assert count_numbers("timm:no_such_network", (3, 32, 32), 5) is None
    assert count_numbers("torchvision:regnet_y_400mf", (3, 32, 32), 5) is None


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_with_auxiliary_classifiers_are_built_without(name):
    """They would be pruned and counted, though no prediction uses them; Inception's can't take this size."""
    model = build_model(f"torchvision:{name}", (3, 224, 224), 4, seed=0)
    assert not [key for key in model.state_dict() if "aux" in key.lower()]
    assert model.train()(torch.randn(2, 3, 224, 224)).shape == (2, 4)


class InTraining(nn.Module):
    """A network whose output differs in training."""

    def __init__(self, wrap):
        super().__init__()
        self.norm, self.fc, self.wrap = nn.BatchNorm1d(12), nn.Linear(12, 3), wrap

    def forward(self, images):
        logits = self.fc(self.norm(images.flatten(1)))
        return self.wrap(logits) if self.training else logits


def test_a_network_is_tried_in_training_and_left_as_it_was(monkeypatch):
    module = InTraining(lambda logits: {"logits": logits, "aux": logits})
    monkeypatch.setattr("hyperflux.backends.torch.models._build", lambda *_: module)
    model = build_model("timm:one", (3, 2, 2), 3, seed=0)
    assert model.training
    assert (int(model.norm.num_batches_tracked), float(model.norm.running_var.sum())) == (0, 12)


def too_small(logits):
    raise RuntimeError("the image is too small")


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (too_small, r"model timm:one: can't take images of shape \(3, 2, 2\) in training \(the image is too small\)"),
        (lambda logits: (logits, logits), "model timm:one: does not return 3 logits per sample in training"),
        (lambda logits: logits[:, :2], "model timm:one: does not return 3 logits per sample in training"),
    ],
)
def test_what_fails_in_training_alone_is_said_when_it_is_built(monkeypatch, wrap, message):
    monkeypatch.setattr("hyperflux.backends.torch.models._build", lambda *_: InTraining(wrap))
    with pytest.raises(InputError, match=message):
        build_model("timm:one", (3, 2, 2), 3, seed=0)
