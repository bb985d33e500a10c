"""A quick run, and whether two folders of it are of the same run but for the rounding of float64."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

# 250 samples: 8 batches of 29 and a last one of 18; 9 steps an epoch.
QUICK = {
    "dataset": "synthetic",
    "train_samples": 250,
    "model": "mlp:16-12-4",
    "dtype": "float64",
    "sparsity": 0.8,
    "device": "cpu",
    "batch_size": 29,
    "dense": {"epochs": 1},
    "pruning": {"epochs": 4, "presence_learning_rate": 3e-2},
    "regrowth": {"epochs": 2},
}


def require_the_same(folder, whole):
    """Masks and counts are the same, and all else to the rounding of float64."""
    for name in ("dense", "model"):
        require_close(folder / f"{name}.safetensors", whole / f"{name}.safetensors")
    rows = [[json.loads(line) for line in (at / "metrics.jsonl").read_text().splitlines()] for at in (folder, whole)]
    assert len(rows[0]) == len(rows[1])
    for row, expected in zip(*rows, strict=True):
        for key, value in expected.items():
            assert row[key] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-7)), key
    reports = [json.loads((at / "report.json").read_text()) for at in (folder, whole)]
    for report in reports:
        del report["seconds"]
    assert reports[0] == reports[1]
    with np.load(folder / "telemetry.npz") as found, np.load(whole / "telemetry.npz") as wanted:
        for name in ("flips", "ages"):
            assert np.array_equal(found[name], wanted[name])


def require_close(file, whole):
    """Zeros are the same, and all else to the rounding of float64."""
    tensors = load_file(file)
    for key, wanted in load_file(whole).items():
        np.testing.assert_allclose(tensors[key], wanted, rtol=1e-7, atol=1e-10)
        assert np.array_equal(tensors[key] != 0, wanted != 0)
