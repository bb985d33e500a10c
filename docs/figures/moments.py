"""Table of docs/performance.md, the update with moments in full and in bfloat16: python docs/figures/moments.py."""

import functools
from collections.abc import Callable, Sequence

import torch

from hyperflux.backends.torch.kernels.choice import Kernels
from hyperflux.backends.torch.kernels.plain import Share
from hyperflux.backends.torch.update import WeightState
from hyperflux.rotation import Turn, rotate

SIZES = (266_200, 2_400_000, 20_000_000)
LAYERS = 10
ROTATIONS = 15
PRESENCE = (-0.95, 0.05)


def held(weights: int, moments: str) -> tuple[Callable[[], None], int]:
    """An update of so many weights in ten layers, a twentieth of them present, and the bytes that it holds."""
    states = [
        WeightState.of(torch.randn(weights // LAYERS), torch.float32, number, "timed", PRESENCE, moments)
        for number in range(LAYERS)
    ]
    shares = [Share(state, 1e-3 * torch.randn_like(state.latent)) for state in states]
    outs = [torch.empty_like(state.latent) for state in states]
    kernels = Kernels()
    update = functools.partial(_update, kernels, shares, outs)
    update()
    tensors = [tensor for state in states for tensor in state.tensors().values()] + kernels.buffers()
    return update, sum(tensor.nbytes for tensor in tensors)


def main() -> None:
    """Measure and print."""
    print("| weights | full (ms) | bfloat16 (ms) | ratio | full (MB) | bfloat16 (MB) |")
    print("|---|---|---|---|---|---|")
    for size in SIZES:
        ways = {moments: held(size, moments) for moments in ("full", "bfloat16")}
        full, own = rotate({name: Turn.of(update) for name, (update, _) in ways.items()}, ROTATIONS)
        ratio = f"{own.ratio:.2f} [{own.lowest_ratio:.2f}–{own.highest_ratio:.2f}]"
        megabytes = " | ".join(f"{bytes_held / 1e6:.1f}" for _, bytes_held in ways.values())
        print(f"| {size:,} | {1e3 * full.seconds:.3g} | {1e3 * own.seconds:.3g} | {ratio} | {megabytes} |", flush=True)


@torch.no_grad()
def _update(kernels: Kernels, shares: Sequence[Share], outs: Sequence[torch.Tensor]) -> None:
    kernels.take_step(shares, 1e-6, 1e-3)
    for share, out in zip(shares, outs, strict=True):
        kernels.write_effective(share.state, out)


if __name__ == "__main__":
    main()
