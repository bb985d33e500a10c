"""Small networks under a Pruner, and how they are trained and compared."""

import torch
from networks import batches, build
from torch.nn.functional import cross_entropy

from hyperflux import Pruner

SETTINGS = {"target_sparsity": 0.6, "pruning_steps": 60, "regrowth_steps": 20, "presence_lr": 0.02}


def pruned(kind="mlp", dtype=torch.float64, make=None, **settings):
    model = build(kind, dtype=dtype)
    optimizer = (make or (lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)))(model.parameters())
    return model, optimizer, Pruner(model, optimizer, **{**SETTINGS, **settings})


def train(model, optimizer, steps, seed=0, dtype=torch.float64):
    for inputs, labels in batches(steps, seed=seed, dtype=dtype):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
