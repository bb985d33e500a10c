"""Runs made by hand, with tables of telemetry that say what a test wants them to say."""

from pathlib import Path

import numpy as np

from hyperflux import RunConfig
from hyperflux.report.run import ReportedRun
from hyperflux.runs.schema import EpochRow, Outcome, RecordedRun
from hyperflux.schedules.base import LayerCount
from hyperflux.telemetry.columns import SCHEMA, flux_column

SIZES = {"fc1.weight": 1000, "fc2.weight": 1000}


def rows(table, dictionaries):
    """A table of the schema; what a row leaves out is 0, NaN for flux."""
    made = np.zeros(len(dictionaries), SCHEMA[table])
    for name in made.dtype.names:
        if "flux" in name:
            made[name] = np.nan
    for row, values in zip(made, dictionaries, strict=True):
        for name, value in values.items():
            row[name] = value
    return made


def tables(courses, *, pruning=100, every=10, pressure=0.5, flips=None, ages=None, sizes=None):
    """Telemetry of layers whose weights left, an interval each, are `courses` by name.

    `flips` is (layer, flips, weights), `ages` (layer, step, present, pruned).
    """
    sizes = sizes or SIZES
    count = len(next(iter(courses.values())))
    steps = [every * (number + 1) for number in range(count)]
    total = sum(sizes[name] for name in courses)
    network, layers, sample = [], [], []
    for number, step in enumerate(steps):
        left = sum(course[number] for course in courses.values())
        stage = "pruning" if step <= pruning else "regrowth"
        network.append(
            {
                "step": step,
                "stage": stage,
                "wanted": left / total,
                "pressure": pressure if stage == "pruning" else 0.0,
                "presence_lr": 1e-3,
                "total": total,
                "surviving": left,
                "pruned": 3 * (number + 1),
                "regrown": number,
                flux_column("pruned", 0.75): 1e-4,
                flux_column("pruned", 0.95): 4e-4,
                flux_column("restored", 0.25): -1e-4,
                flux_column("restored", 0.5): 5e-4,
                flux_column("restored", 0.75): 9e-4,
            }
        )
        for name, course in courses.items():
            layer = {"step": step, "layer": name, "total": sizes[name], "surviving": course[number]}
            layers.append({**layer, "pruned": 2, "regrown": 1, "regrown_ever": number})
    for number, step in enumerate([0, *steps]):
        for name in courses:
            fate = {"step": step, "layer": name, "index": 7, "t": 0.1 - 0.05 * number, "present": number <= 2}
            sample.append({**fate, "flips": int(number > 2)})
    first = next(iter(courses))
    flips = flips or [(first, 0, 10), (first, 1, 80), (first, 2, 6), (first, 3, 4)]
    ages = ages or [(first, 0, 10, 0), (first, 50, 6, 84)]
    return {
        "network": rows("network", network),
        "layers": rows("layers", layers),
        "sample": rows("sample", sample),
        "flips": np.array(flips, SCHEMA["flips"]),
        "ages": np.array(ages, SCHEMA["ages"]),
    }


def epochs(dense=2, pruning=4, regrowth=2):
    """metrics.jsonl of a run of so many epochs."""
    stages = ["dense"] * dense + ["pruning"] * pruning + ["regrowth"] * regrowth
    return [
        EpochRow(number, stage, 1 / number, 1 / number, 0.5, 1e-3, 1e-3, 0.5, 0.4 / number, 0.9, 5, 2)
        for number, stage in enumerate(stages, 1)
    ]


def subject(surviving=None, telemetry=None, label="a", folder="runs/a", sizes=None, config=None, **outcome):
    """A run with so many weights left by layer."""
    sizes = sizes or SIZES
    surviving = surviving or {"fc1.weight": 100, "fc2.weight": 100}
    left, total = sum(surviving.values()), sum(sizes[name] for name in surviving)
    values = {
        "method": "hyperflux",
        "controller": "default",
        "backend": "torch",
        "dataset": "digits",
        "model": "lenet300",
        "input_shape": [1, 8, 8],
        "classes": 10,
        "seed": 0,
        "target_sparsity": 0.9,
        "final_sparsity": 1 - left / total,
        "surviving_weights": left,
        "total_weights": total,
        "dense_accuracy": 0.98,
        "final_accuracy": 0.97,
        "seconds": 12.0,
        "layers": [LayerCount(name, sizes[name], left) for name, left in surviving.items()],
        "versions": {},
        "warnings": [],
        **outcome,
    }
    config = {"sparsity": values["target_sparsity"], **(config or {})}
    run = RecordedRun(RunConfig(**config), epochs(), Outcome(**values), telemetry)
    return ReportedRun(Path(folder), run, label)


def of_channels(left, totals, telemetry=None, **outcome):
    """A run with so many of so many channels left by layer, asked for 25 % of the FLOPs."""
    values = {
        "target_sparsity": None,
        "gates": "channels",
        "flops_ratio": 0.24,
        "parameters_ratio": 0.3,
        "compact_parameters": 600,
        "channels": [LayerCount(name, totals[name], count) for name, count in left.items()],
        **outcome,
    }
    config = {"gates": "channels", "flops": 0.25, "sparsity": None}
    return subject(telemetry=telemetry, config=config, **values)


def deep(layers=54, intervals=200):
    """A run of many layers: what a ResNet-50 leaves."""
    names = [f"layer{1 + number // 14}.{number % 14}.conv{1 + number % 3}.weight" for number in range(layers)]
    sizes = {name: 2000 + 300 * number for number, name in enumerate(names)}
    falling = np.geomspace(1, 0.02, intervals)
    courses = {
        name: [max(1, int(sizes[name] * share ** (0.5 + number / layers))) for share in falling]
        for number, name in enumerate(names)
    }
    telemetry = tables(courses, pruning=10 * intervals * 2 // 3, sizes=sizes)
    return subject({name: course[-1] for name, course in courses.items()}, telemetry, sizes=sizes, model="resnet50")
