"""Small runs on folders of images."""

import torch
from torch import nn

SGD = {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4}
# 4 steps an epoch: 4 dense, 12 of pruning, 4 of regrowth.
QUICK = {
    "dataset": "imagefolder",
    "model": "resnet20",
    "sparsity": 0.6,
    "batch_size": 8,
    "device": "cpu",
    "optimizer": SGD,
    "dense": {"epochs": 1, "learning_rate": 0.01},
    "pruning": {"epochs": 3, "learning_rate": 0.01, "presence_learning_rate": 4e-2},
    "regrowth": {"epochs": 1, "learning_rate": 0.01},
}


def with_dropout(name, shape, classes, seed):
    """A small network that draws random numbers in training and keeps batch statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(3),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(36, classes),
        )
