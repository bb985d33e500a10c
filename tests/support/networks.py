"""Small float64 networks of the three kinds that pruning must get right."""

import torch
from torch import nn


class Block(nn.Module):
    """A transformer block with packed attention."""

    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


class Transformer(nn.Module):
    """Two blocks over the rows of a small image."""

    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, 8, 8))
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.blocks(x.flatten(1).reshape(-1, 8, 8) + self.position).mean(1))


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 4))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


NETWORKS = {"mlp": mlp, "convolutional": convolutional, "transformer": Transformer}


def build(kind, seed=0, dtype=torch.float64):
    """A network of `NETWORKS`, its weights drawn by `seed`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return NETWORKS[kind]().to(dtype)


def batches(count, seed=0, size=16, dtype=torch.float64):
    """(images (size, 1, 8, 8), labels) that a small network can learn."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, 1, 8, 8, generator=generator, dtype=dtype)
    for _ in range(count):
        labels = torch.randint(4, (size,), generator=generator)
        yield centres[labels] + torch.randn(size, 1, 8, 8, generator=generator, dtype=dtype), labels
