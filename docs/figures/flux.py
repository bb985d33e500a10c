"""Do weights with a high flux come back and stay? Does the flux of survivors follow the pressure?

    python docs/figures/flux.py OUT_DIR [DATA_DIR]

Prints both tables for LeNet-300-100 on digits and MNIST, and draws flux-return-DATASET.png and flux-survivors.png. The
figures are in docs/findings.md.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from laboratory import arguments, epochs, trained

from hyperflux import spec
from hyperflux.backends.numpy.mlp import MLP
from hyperflux.data import load_dataset
from hyperflux.models import layer_sizes
from hyperflux.report.style import COLOURS, figure, save
from hyperflux.runs.driver import feasible_schedule
from hyperflux.schedules.default import LOWEST_AT
from hyperflux.schedules.scheduler import PruningScheduler
from hyperflux.seeding import generator
from hyperflux.telemetry.flux import running_flux

MOMENTS = 40
"""How often the flux of every pruned weight is recorded while the density falls."""
EDGES = (-np.inf, 0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, np.inf)
"""Bins of restoring flux, in multiples of the pressure γ/N on each weight."""
PRESSURES = tuple(2.0**power for power in range(-6, 3))
SETTLING_EPOCHS = {"digits": 100, "mnist": 12}
REMOVED = 200
"""Survivors removed one at a time, to measure the flux that each would have."""
SAMPLES = 4000


class Returns:
    """Records which weights are pruned, with which flux, and whether they are present a moment later."""

    def __init__(self, gate: Any, every: int, last: int) -> None:
        self._gate, self._every, self._last = gate, every, last
        self.noted: list[tuple[Any, Any, Any]] = []

    def after_step(self) -> None:
        """Record the mask and flux/(γ/N) of every weight, at each moment until the density is lowest."""
        gate = self._gate
        if gate.steps % self._every == 0 and gate.steps <= self._last and gate.pressure > 0:
            ratio = running_flux(gate.state.moments, gate.pressure_mean) * gate.total / gate.pressure
            self.noted.append((gate.mask(), ratio.astype(np.float32), gate.steps))

    def finish(self) -> None:
        """Do nothing: the last mask is read in `table`."""

    def table(self) -> list[tuple[str, int, float, float, float]]:
        """Per bin of flux: pruned weights in it, shares present one moment later, two in a row, and at the end."""
        rows, final = [], self._gate.mask()
        for low, high in pairwise(EDGES):
            seen = next_one = next_two = at_end = 0
            for (mask, ratio, _), (later, *_), (latest, *_) in zip(
                self.noted, self.noted[1:], self.noted[2:], strict=False
            ):
                chosen = ~mask & (ratio >= low) & (ratio < high)
                seen += np.count_nonzero(chosen)
                next_one += np.count_nonzero(later[chosen])
                next_two += np.count_nonzero(later[chosen] & latest[chosen])
                at_end += np.count_nonzero(final[chosen])
            text = (
                f"{low:g} to {high:g}"
                if np.isfinite([low, high]).all()
                else "below 0"
                if high == 0
                else f"over {low:g}"
            )
            shares = [count / seen if seen else np.nan for count in (next_one, next_two, at_end)]
            rows.append((text, seen, *shares))
        return rows


def returning(dataset: str, data_dir: str, out: Path) -> None:
    """Run the default course at 98 % sparsity; print and draw how many weights return, by flux."""
    config, backend = trained(dataset, data_dir, out, backend="numpy", sparsity=0.98)
    schedule = feasible_schedule(config, backend)
    gate = backend.start_gate(schedule.initial_presence)
    scheduler = PruningScheduler(schedule, gate)
    falling = round(LOWEST_AT * schedule.pruning_steps)
    scheduler.watcher = returns = Returns(gate, falling // MOMENTS, falling)
    for _ in epochs(config, backend, config.pruning.epochs + config.regrowth.epochs, scheduler.after_step):
        pass
    scheduler.finish()
    rows = returns.table()
    print(f"| {dataset}: flux / (γ/N) | pruned weights | back a moment later | and still a moment after | in the end |")
    print("|---|---|---|---|---|")
    for text, seen, *shares in rows:
        print(f"| {text} | {seen:,} | {' | '.join(f'{share:.2%}' for share in shares)} |", flush=True)
    drawn, axes = figure(7.0, 3.6)
    for offset, colour, column, label in (
        (-0.27, COLOURS[0], 2, "back a moment later"),
        (0.0, COLOURS[1], 3, "and still there another moment later"),
        (0.27, COLOURS[2], 4, "present in the end"),
    ):
        axes.bar(np.arange(len(rows)) + offset, [100 * row[column] for row in rows], 0.25, color=colour, label=label)
    axes.set_xticks(range(len(rows)), [row[0] for row in rows], fontsize=8)
    axes.set(xlabel="restoring flux of a pruned weight, in multiples of γ/N", ylabel="% of these weights")
    axes.set_title(f"lenet300 on {dataset}, 98 % sparsity")
    axes.legend(frameon=False)
    save(drawn, out / f"flux-return-{dataset}.png")


def survivors(dataset: str, data_dir: str, out: Path) -> list[tuple[float, float, Any]]:
    """Train under each pressure in turn and remove survivors one by one: (density, γ/N, sorted fluxes) per pressure."""
    config, backend = trained(dataset, data_dir, out, backend="numpy")
    gate: Any = backend.start_gate(spec.INITIAL_PRESENCE)
    gate.presence_lr = config.pruning.presence_learning_rate
    data = load_dataset(dataset, data_dir)
    mlp = MLP(layer_sizes(config.model, data.features, data.classes))
    inputs = data.train_inputs[:SAMPLES].reshape(-1, data.features)
    labels = data.train_labels[: len(inputs)]
    print(f"| {dataset}: pressure | density | γ/N | flux when removed: least | 5 % | median | above γ/N | loss rises |")
    print("|---|---|---|---|---|---|---|---|")
    found = []
    for pressure in PRESSURES:
        gate.pressure = pressure
        for _ in epochs(config, backend, SETTLING_EPOCHS[dataset]):
            pass
        theta, tensors = gate.effective_weights(), backend.tensors()
        biases = np.concatenate([tensor for name, tensor in tensors.items() if name.endswith("bias")])

        def loss_and_gradient(weights: Any, biases: Any = biases) -> tuple[float, Any]:
            values = mlp.forward(weights, biases, inputs)
            loss, of_logits = spec.smoothed_cross_entropy(values[-1], labels, config.pruning.label_smoothing)
            return loss, mlp.backward(weights, values, of_logits)[0]

        base, _ = loss_and_gradient(theta)
        present = np.flatnonzero(gate.mask())
        fluxes, rises = [], []
        for weight in generator(0, "removed").choice(present, min(REMOVED, len(present)), replace=False):
            without = theta.copy()
            without[weight] = 0
            loss, gradient = loss_and_gradient(without)
            fluxes.append(-spec.KAPPA * gradient[weight] * theta[weight])
            rises.append(loss > base)
        ordered, level = np.sort(fluxes), pressure / gate.total
        density = gate.surviving() / gate.total
        print(
            f"| {pressure:g} | {density:.3%} | {level:.2e} | {ordered[0]:.2e} | {ordered[len(ordered) // 20]:.2e} | "
            f"{ordered[len(ordered) // 2]:.2e} | {np.mean(ordered > level):.0%} | {np.mean(rises):.0%} |",
            flush=True,
        )
        found.append((density, level, ordered))
    return found


def main() -> None:
    """Run both experiments on each data set."""
    out, sets = arguments("docs/figures/flux.py")
    drawn, axes = figure(7.0, 4.2)
    for colour, (dataset, data_dir) in zip(COLOURS, sets, strict=False):
        returning(dataset, data_dir, out)
        found = survivors(dataset, data_dir, out)
        level = [level for _, level, _ in found]
        axes.plot(level, [np.median(fluxes) for *_, fluxes in found], "o-", color=colour, label=f"{dataset}: median")
        axes.plot(level, [fluxes[len(fluxes) // 20] for *_, fluxes in found], "v:", color=colour, label="lowest 5 %")
    axes.plot(level, level, color="#555555", linewidth=1, label="γ/N itself")
    axes.set(xscale="log", yscale="log", xlabel="γ/N", ylabel="restoring flux of a survivor when removed")
    axes.legend(frameon=False)
    save(drawn, out / "flux-survivors.png")


if __name__ == "__main__":
    main()
