"""What other settings of the default course do: LeNet-300-100 on MNIST at 0.2 % density.

python docs/figures/course.py DATA_DIR OUT_DIR [SEED ...] trains the dense network of each seed once, then prunes it by
the default course and by each variation of it, 10 + 8 epochs.
"""

import statistics
import sys
from pathlib import Path

from hyperflux import recipes
from hyperflux.config import RunConfig
from hyperflux.runs.driver import execute, train_dense

VARIATIONS: dict[str, dict[str, float]] = {
    "the default course without undershoot": {"undershoot": 1.0},
    "at the target only at the end of the pruning stage": {"undershoot": 1.0, "lowest_at": 1.0},
    "the mask is frozen only at the end of regrowth": {"undershoot": 1.0, "freeze_at": 1.0},
    "a tenth of the controller's gain": {"undershoot": 1.0, "gain": 30.0},
}


def main(data: str, out: str, seeds: list[int]) -> None:
    """Print a row for each variation."""
    settings = {**recipes.load("lenet300-mnist"), "data_dir": data, "sparsity": 0.998}
    settings["pruning"]["epochs"], settings["regrowth"]["epochs"] = 10, 8
    folder = Path(out)
    for seed in seeds:
        if not (folder / f"dense-{seed}").exists():
            train_dense(RunConfig.from_dict({**settings, "seed": seed}), folder / f"dense-{seed}")
    print("| course | seeds | accuracy |\n|---|---|---|", flush=True)
    for number, (text, course) in enumerate(VARIATIONS.items()):
        accuracies = []
        for seed in seeds:
            checkpoint = str(folder / f"dense-{seed}" / "dense.safetensors")
            config = RunConfig.from_dict({**settings, "seed": seed, "checkpoint": checkpoint, "course": course})
            accuracies.append(execute(config, folder / f"variation-{number}-{seed}").final_accuracy)
        print(f"| {text} | {len(seeds)} | {statistics.mean(accuracies):.2%} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], [int(seed) for seed in sys.argv[3:]] or [0, 1, 2])
