"""How far can the last layer be pressed? LeNet-300-100 where only fc3 (100 x 10 weights) is pruned.

    python docs/figures/bottleneck.py OUT_DIR [DATA_DIR]

Prints one row per pressure and draws bottleneck.png. The pressure is 5^j and rises every ten epochs, for a hundred
epochs. N is that of the whole network, as in the paper. The figures are in docs/findings.md.
"""

from __future__ import annotations

from laboratory import arguments, epochs, trained

from hyperflux.report.style import COLOURS, figure, save
from hyperflux.spec import INITIAL_PRESENCE

LEVELS = 10
"""Pressures 5^0 to 5^9."""
EPOCHS = 10
"""Epochs at each pressure."""
SEEDS = {"digits": (0, 1, 2), "mnist": (0,)}


def main() -> None:
    """Run the experiment on each data set."""
    out, sets = arguments("docs/figures/bottleneck.py")
    drawn, axes = figure(7.0, 4.2)
    for dataset, data_dir in sets:
        print(f"| {dataset}: seed | pressure | weights left of 1,000 | outputs connected | accuracy |")
        print("|---|---|---|---|---|", flush=True)
        for seed in SEEDS[dataset]:
            config, backend = trained(dataset, data_dir, out, seed, include=["fc3.weight"])
            whole = sum(tensor.size for name, tensor in backend.tensors().items() if name.endswith("weight"))
            gate = backend.start_gate(INITIAL_PRESENCE)
            gate.presence_lr = config.pruning.presence_learning_rate
            track = []
            for level in range(LEVELS):
                gate.pressure = 5.0**level * gate.total / whole
                for _ in epochs(config, backend, EPOCHS):
                    track.append(gate.surviving())
                outputs = (backend.tensors()["fc3.weight"] != 0).any(axis=1).sum()
                row = f"{seed} | {5**level:,} | {track[-1]} | {outputs} of 10 | {backend.evaluate().accuracy:.2%}"
                print(f"| {row} |", flush=True)
            colour = COLOURS[sets.index((dataset, data_dir))]
            axes.plot(range(1, len(track) + 1), track, color=colour, linewidth=1, label=dataset if seed == 0 else None)
    axes.set(yscale="log", xlabel="epoch (pressure times 5 every 10)", ylabel="weights left in fc3 (of 1,000)")
    axes.legend(frameon=False)
    save(drawn, out / "bottleneck.png")


if __name__ == "__main__":
    main()
