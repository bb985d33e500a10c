"""What does the regrowth stage add? LeNet-300-100 on digits (three seeds) and MNIST (one), at 99.5 % sparsity.

    python docs/figures/regrowth.py OUT_DIR [DATA_DIR]

Prints one row for each way to spend the same number of epochs. The figures are in docs/findings.md.
"""

from __future__ import annotations

import statistics
from typing import Any

from laboratory import arguments, trained

from hyperflux.config import RunConfig
from hyperflux.runs.driver import execute
from hyperflux.runs.folder import read_run

SEEDS = {"digits": (0, 1, 2), "mnist": (0,)}
EPOCHS = {"digits": (60, 40), "mnist": (10, 8)}
WAYS: dict[str, dict[str, Any]] = {
    "default course": {},
    "regrowth on the mask of the pruning stage": {"course": {"freeze_at": 0.0}},
    "no regrowth stage, its epochs spent on pruning": {"epochs": 0},
    "published course": {"controller": "published"},
}
"""What each way changes in the run's settings."""


def settings(config: RunConfig, changes: dict[str, Any], dataset: str, checkpoint: str) -> RunConfig:
    """The settings of one run. Every way takes the same number of epochs."""
    values = config.to_dict()
    pruning, regrowth = EPOCHS[dataset]
    if changes.get("epochs") == 0:
        pruning, regrowth = pruning + regrowth, 0
    values["pruning"]["epochs"], values["regrowth"]["epochs"] = pruning, regrowth
    changed = {name: value for name, value in changes.items() if name != "epochs"}
    return RunConfig.from_dict({**values, "sparsity": 0.995, "checkpoint": checkpoint, **changed})


def main() -> None:
    """Run every way with every seed."""
    out, sets = arguments("docs/figures/regrowth.py")
    for dataset, data_dir in sets:
        print(
            f"| {dataset} | density before regrowth | after | weights that came back in it | accuracy before | after |"
        )
        print("|---|---|---|---|---|---|")
        for number, (name, changes) in enumerate(WAYS.items()):
            rows = []
            for seed in SEEDS[dataset]:
                config, _ = trained(dataset, data_dir, out, seed)
                folder = out / f"regrowth-{dataset}-{number}-{seed}"
                if not (folder / "report.json").exists():
                    checkpoint = str(out / f"dense-{dataset}-{seed}" / "dense.safetensors")
                    execute(settings(config, changes, dataset, checkpoint), folder)
                run = read_run(folder)
                before = [row for row in run.epochs if row.stage == "pruning"][-1]
                came_back = sum(row.regrown or 0 for row in run.epochs if row.stage == "regrowth")
                last = run.epochs[-1]
                rows.append((before.density, last.density, came_back, before.accuracy, last.accuracy))
            density, final, came_back, accuracy, best = (statistics.mean(column) for column in zip(*rows, strict=True))
            spread = f" ± {statistics.stdev(row[-1] for row in rows):.2%}" if len(rows) > 1 else ""
            print(
                f"| {name} | {density:.3%} | {final:.3%} | {came_back:.0f} | {accuracy:.2%} | {best:.2%}{spread} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
