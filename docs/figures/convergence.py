"""Does the density settle under a constant pressure? LeNet-300-100 on digits and MNIST, from three starts.

    python docs/figures/convergence.py OUT_DIR [DATA_DIR]

Prints where each run ends and draws convergence-DATASET.png. The figures are in docs/findings.md.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from laboratory import arguments, epochs, trained

from hyperflux.report.style import COLOURS, figure, save
from hyperflux.seeding import generator
from hyperflux.spec import INITIAL_PRESENCE

EPOCHS = {"digits": 300, "mnist": 40}
PRESSURES = (2**-4, 2**-2, 2**0)


def present(gate: Any) -> None:
    """All weights are present, with t drawn as in the paper."""


def half(gate: Any) -> None:
    """Prune a random half of the weights."""
    for name, state in gate.states.items():
        gone = generator(0, f"half of {name}").random(tuple(state.presence.shape)) < 0.5
        state.presence[gone] *= -1
    gate.write_effective()


def sparse(gate: Any) -> None:
    """Prune all but a random tenth of the weights."""
    gate.meet_capacity(round(0.1 * gate.total))


STARTS: dict[str, Callable[[Any], None]] = {"all present": present, "half pruned": half, "90 % pruned": sparse}


def main() -> None:
    """Run every start under every pressure."""
    out, sets = arguments("docs/figures/convergence.py")
    for dataset, data_dir in sets:
        drawn, axes = figure(7.0, 4.2)
        print(
            f"| {dataset}: pressure | start | mean density, epochs {EPOCHS[dataset] * 4 // 5} on | range | accuracy |"
        )
        print("|---|---|---|---|---|", flush=True)
        for colour, pressure in zip(COLOURS, PRESSURES, strict=False):
            for style, (name, prepare) in zip(("-", "--", ":"), STARTS.items(), strict=True):
                config, backend = trained(dataset, data_dir, out)
                gate = backend.start_gate(INITIAL_PRESENCE)
                prepare(gate)
                gate.pressure, gate.presence_lr = pressure, config.pruning.presence_learning_rate
                track = [gate.surviving() / gate.total]
                for _ in epochs(config, backend, EPOCHS[dataset]):
                    track.append(gate.surviving() / gate.total)
                last = track[-len(track) // 5 :]
                spread = f"{min(last):.3%} to {max(last):.3%}"
                print(
                    f"| {pressure:g} | {name} | {statistics.mean(last):.3%} | {spread} | "
                    f"{backend.evaluate().accuracy:.2%} |",
                    flush=True,
                )
                label = f"γ = {pressure:g}" if style == "-" else None
                axes.plot(100 * np.array(track), style, color=colour, label=label, linewidth=1.2)
        for style, name in zip(("-", "--", ":"), STARTS, strict=True):
            axes.plot([], [], style, color="#555555", label=name)
        axes.set(yscale="log", xlabel="epoch", ylabel="density (% of the weights left)", title=f"lenet300 on {dataset}")
        axes.legend(frameon=False, ncols=2)
        save(drawn, out / f"convergence-{dataset}.png")


if __name__ == "__main__":
    main()
