"""Files that earlier versions left are read with the numbers they were written with, or refused plainly.

Every folder next to this file holds the same kinds of files, made by `make.py`. Where a later version no longer reads
one of them, its test here becomes one of the refusal.
"""

import importlib.util
import json
import shutil
from pathlib import Path

import commands
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from hyperflux import InputError
from hyperflux.runs.checkpoints.file import checksum
from hyperflux.runs.checkpoints.folder import CheckpointFolder
from hyperflux.runs.driver import resume
from hyperflux.runs.folder import read_outcome, read_run
from hyperflux.runs.schema import FORMAT

HERE = Path(__file__).parent
VERSIONS = sorted(path.name for path in HERE.iterdir() if (path / "expected.json").exists())
UNFINISHED = ("unfinished-torch", "unfinished-numpy")

_spec = importlib.util.spec_from_file_location("golden_make", HERE / "make.py")
make = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make)


@pytest.fixture(params=VERSIONS)
def golden(request, tmp_path):
    """A copy of one version's files."""
    return Path(shutil.copytree(HERE / request.param, tmp_path / "golden"))


def expected(golden, name):
    return json.loads((golden / "expected.json").read_text(encoding="utf-8"))[name]


def ones(mask):
    """How many weights a mask in hexadecimal digits has."""
    return int(mask, 16).bit_count()


def test_there_are_golden_files():
    assert VERSIONS


def test_the_masks_that_are_expected_are_those_of_a_network_being_pruned(golden):
    """160 weights, 40 of which are to be left: some are gone, not all."""
    for name in (*UNFINISHED, "pruner"):
        assert 0 < sum(map(ones, expected(golden, name)["masks"].values())) < 160


def test_a_finished_run_is_read_with_its_numbers(golden):
    numbers, report = expected(golden, "finished"), read_outcome(golden / "finished")
    assert (report.surviving_weights, report.total_weights) == (numbers["surviving_weights"], 160) == (40, 160)
    assert {layer.name: layer.surviving for layer in report.layers} == numbers["layers"]
    assert report.final_accuracy == numbers["final_accuracy"]
    assert report.dense_accuracy == numbers["dense_accuracy"]
    run = read_run(golden / "finished")
    assert [row.stage for row in run.epochs] == ["dense"] + ["pruning"] * 4 + ["regrowth"] * 2
    assert run.epochs[-1].accuracy == numbers["final_accuracy"]
    assert run.epochs[-1].density == 0.25
    assert sum(row.pruned - row.regrown for row in run.epochs) == 120
    assert run.telemetry is not None


def test_a_finished_run_has_a_report(golden):
    done = commands.run(golden, "report", "finished")
    assert (done.returncode, done.stderr) == (0, "")
    summary = (golden / "finished" / "report.md").read_text(encoding="utf-8")
    for name, surviving in expected(golden, "finished")["layers"].items():
        assert any(name in line and f" {surviving} " in line for line in summary.splitlines())


def test_a_finished_run_is_exported_to_the_bit(golden):
    done = commands.run(golden, "export", "finished", "--no-compact", "--out", "network.safetensors")
    assert (done.returncode, done.stderr) == (0, "")
    own, exported = load_file(golden / "finished/model.safetensors"), load_file(golden / "network.safetensors")
    assert own.keys() == exported.keys()
    assert all(np.array_equal(own[name], exported[name]) for name in own)
    layers = expected(golden, "finished")["layers"]
    assert {name: np.count_nonzero(exported[name]) for name in layers} == layers


@pytest.mark.parametrize("name", UNFINISHED)
def test_a_checkpoint_has_the_masks_it_was_written_with(golden, name):
    lines = []
    saved = CheckpointFolder(golden / name / "checkpoint").last(lines.append)
    assert lines == []
    assert make.checkpoint_masks(saved.arrays) == expected(golden, name)["masks"]


@pytest.mark.parametrize("name", UNFINISHED)
def test_an_unfinished_run_goes_on_to_its_target(golden, name):
    lines = []
    report = resume(golden / name, announce=lines.append)
    assert (report.surviving_weights, report.total_weights) == (40, 160)
    assert [row.epoch for row in read_run(golden / name).epochs] == [1, 2, 3, 4, 5, 6, 7]
    assert not (golden / name / "checkpoint").exists()
    assert all("results may differ in the last bits" in line for line in lines)  # other versions, nothing else


def test_a_saved_pruner_goes_on(golden):
    numbers = expected(golden, "pruner")
    saved = torch.load(golden / "pruner.pt", weights_only=True)
    model, optimizer, pruner = make.training_loop()
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    pruner.load_state_dict(saved["pruner"])
    assert (pruner.step_count, pruner.surviving) == (numbers["step_count"], numbers["surviving"])
    assert {name: make.bits(mask) for name, mask in pruner.masks().items()} == numbers["masks"]
    make.train(model, optimizer, 12 - pruner.step_count)
    pruner.finalize()
    assert sum(int(parameter.count_nonzero()) for parameter in model.parameters() if parameter.ndim > 1) == 40


def test_a_finished_run_of_a_newer_format_is_refused(golden):
    path = golden / "finished" / "report.json"
    report = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**report, "format": FORMAT + 1}), encoding="utf-8")
    for command in ("report", "export"):
        done = commands.run(golden, command, "finished")
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
        assert "newer" in done.stderr


@pytest.mark.parametrize("name", UNFINISHED)
@pytest.mark.parametrize(("change", "word"), [(1, "newer"), (-1, "older")])
def test_a_checkpoint_of_another_format_is_refused(golden, name, change, word):
    folder = golden / name / "checkpoint"
    for path in folder.iterdir():
        with safe_open(path, "numpy") as file:
            metadata = file.metadata()
        metadata["format"] = str(int(metadata["format"]) + change)
        save_file(load_file(path), path, metadata)
        path.rename(folder / f"{path.name[:6]}-{checksum(path.read_bytes())}.safetensors")
    with pytest.raises(InputError, match=f"format .* {word} hyperflux") as refusal:
        resume(golden / name)
    assert "\n" not in str(refusal.value)


def test_a_saved_pruner_of_another_format_is_refused(golden):
    saved = torch.load(golden / "pruner.pt", weights_only=True)["pruner"]
    _, _, pruner = make.training_loop()
    with pytest.raises(InputError, match="format"):
        pruner.load_state_dict({**saved, "format": saved["format"] + 1})
    assert pruner.step_count == 0
