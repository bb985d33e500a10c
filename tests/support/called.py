"""A network whose forward is a function."""

from torch import nn


class Called(nn.Module):
    """Calls `forward(self, *inputs)`; its parts are given by name."""

    def __init__(self, called, **parts):
        super().__init__()
        self.called = called
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs):
        return self.called(self, *inputs)
