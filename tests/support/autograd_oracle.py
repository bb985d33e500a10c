"""The second oracle: E1 to E5 by torch's autograd, with w and t as separate parameters, and torch's Adam on t (E6)."""

import torch
from torch import nn
from torch.func import functional_call


class StraightThroughGate(torch.autograd.Function):
    """H(t), with κ = 1/4 in the place of its derivative."""

    @staticmethod
    def forward(ctx, presence):
        return (presence >= 0).to(presence.dtype)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 0.25


class AutogradOracle:
    """`model` trained with gates on the parameters in `presence` (name -> first t); the rest as it is.

    `build` makes the weights' optimizer from all of the model's parameters, in their order. With `ascends` it
    maximises, and gets the gradients of −L; t descends on L all the same.
    """

    def __init__(self, model, presence, build, presence_lr, ascends=False):
        self.model = model
        self.presence = {name: nn.Parameter(first.clone()) for name, first in presence.items()}
        self.optimizer = build(model.parameters())
        self.presence_optimizer = torch.optim.Adam(self.presence.values(), lr=presence_lr)
        self.ascends = ascends
        self.total = sum(t.numel() for t in self.presence.values())

    def effective(self):
        weights = dict(self.model.named_parameters())
        return {name: weights[name] * StraightThroughGate.apply(t) for name, t in self.presence.items()}

    def step(self, inputs, labels, pressure):
        logits = functional_call(self.model, self.effective(), (inputs,))
        data_loss = nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
        pressure_loss = pressure / self.total * sum(t.sum() for t in self.presence.values())
        self.optimizer.zero_grad()
        self.presence_optimizer.zero_grad()
        (data_loss + pressure_loss).backward()
        if self.ascends:
            for parameter in self.model.parameters():
                parameter.grad.neg_()
        self.optimizer.step()
        self.presence_optimizer.step()
