"""What the experiments of docs/findings.md share: a trained LeNet-300-100 and a loop that trains it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from hyperflux import recipes
from hyperflux.backends import build_backend
from hyperflux.backends.base import Backend
from hyperflux.config import RunConfig
from hyperflux.runs.data_order import epoch_batches
from hyperflux.runs.driver import train_dense

RECIPES = {"digits": "digits", "mnist": "lenet300-mnist"}


def arguments(usage: str) -> tuple[Path, list[tuple[str, str]]]:
    """OUT_DIR and a list of (data set, its folder): always digits, and mnist if DATA_DIR is given."""
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(f"usage: python {usage} OUT_DIR [DATA_DIR]")
    sets = [("digits", ""), *([("mnist", sys.argv[2])] if len(sys.argv) == 3 else [])]
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    return out, sets


def trained(dataset: str, data_dir: str, out: Path, seed: int = 0, **changes: object) -> tuple[RunConfig, Backend]:
    """The recipe's settings with `changes`, and a backend with its dense network, which is trained once into `out`."""
    settings = {**recipes.load(RECIPES[dataset]), "data_dir": data_dir, "seed": seed}
    folder = out / f"dense-{dataset}-{seed}"
    if not (folder / "dense.safetensors").exists():
        train_dense(RunConfig.from_dict(settings), folder)
    config = RunConfig.from_dict({**settings, **changes})
    backend = build_backend(config)
    backend.load_weights(str(folder / "dense.safetensors"))
    return config, backend


def epochs(
    config: RunConfig, backend: Backend, count: int, after_step: Callable[[], None] = lambda: None
) -> Iterator[int]:
    """Train for `count` epochs at the pruning stage's first rate. Yields each epoch's number, from 1, at its end."""
    for epoch in range(1, count + 1):
        backend.train_pruning(
            epoch_batches(config.seed, epoch, backend.samples, config.batch_size),
            learning_rate=config.pruning.learning_rate,
            label_smoothing=config.pruning.label_smoothing,
            after_step=after_step,
        )
        yield epoch
