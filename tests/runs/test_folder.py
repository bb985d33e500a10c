"""A run's folder: whole files or none, and reading back what was written."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from hyperflux import InputError, RunConfig, RunError
from hyperflux.runs.folder import RunFolder, read_outcome, read_run
from hyperflux.runs.schema import BEFORE_GATES, EpochRow, Outcome
from hyperflux.schedules.base import LayerCount

ROW = EpochRow(1, "pruning", 0.9, 0.8, 1.5, 1e-3, 1e-3, 0.5, 0.6, 0.97, 12, 3)
OUTCOME = Outcome(
    method="hyperflux",
    controller="default",
    backend="numpy",
    dataset="digits",
    model="lenet300",
    input_shape=[1, 8, 8],
    classes=10,
    seed=0,
    target_sparsity=0.95,
    final_sparsity=0.94,
    surviving_weights=6,
    total_weights=100,
    dense_accuracy=0.98,
    final_accuracy=0.97,
    seconds=1.25,
    layers=[LayerCount("a", 100, 6)],
    versions={},
)


def test_what_is_written_is_read_back(tmp_path):
    folder = RunFolder.create(tmp_path / "run", RunConfig(seed=3))
    folder.add_epoch(ROW)
    folder.add_epoch(replace(ROW, epoch=2, stage="regrowth"))
    folder.finish(OUTCOME)
    run = read_run(tmp_path / "run")
    assert run.config == RunConfig(seed=3)
    assert run.epochs == [ROW, replace(ROW, epoch=2, stage="regrowth")]
    assert run.outcome == OUTCOME
    assert read_outcome(tmp_path / "run") == OUTCOME
    written = json.loads((tmp_path / "run" / "report.json").read_text())
    assert written == OUTCOME.to_dict()
    assert written["layers"] == [{"name": "a", "total": 100, "surviving": 6}]


def test_rows_are_on_disk_as_soon_as_they_are_added(tmp_path):
    folder = RunFolder.create(tmp_path, RunConfig())
    folder.add_epoch(ROW)
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["density"] == 0.9


def test_tensors_keep_their_bits(tmp_path):
    tensors = {"fc1.weight": np.array([[0.0, 1e-45], [-1.5, 3e38]], np.float32), "fc1.bias": np.array([0.1])}
    RunFolder.create(tmp_path, RunConfig()).add_tensors("model", tensors)
    read = load_file(tmp_path / "model.safetensors")
    assert {name: tensor.tobytes() for name, tensor in read.items()} == {n: t.tobytes() for n, t in tensors.items()}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["config.toml", "report.json"], "holds another run"),
        (["config.toml"], "holds an unfinished run"),
        (["notes.txt"], "is not empty"),
    ],
)
def test_a_folder_in_use_is_refused_and_left_as_it_is(tmp_path, files, message):
    for name in files:
        (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=f"{message}.*--out"):
        RunFolder.create(tmp_path, RunConfig())
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(files, "mine")


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(InputError, match="cannot be used as a run's folder"):
        RunFolder.create(tmp_path / "run" / "below", RunConfig())
    with pytest.raises(InputError, match="cannot be used as a run's folder"):
        RunFolder.create(tmp_path / "run", RunConfig())


def test_a_failed_write_leaves_no_part_behind(tmp_path):
    folder = RunFolder.create(tmp_path, RunConfig())
    (tmp_path / "report.json").mkdir()  # the rename onto a folder fails, as it would on a broken disk
    with pytest.raises(RunError, match=r"report\.json: cannot be written"):
        folder.finish(OUTCOME)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.toml", "metrics.jsonl", "report.json"]


@pytest.mark.parametrize("damage", ["missing", "torn", "foreign"])
def test_a_damaged_run_is_refused(tmp_path, damage):
    folder = RunFolder.create(tmp_path, RunConfig())
    folder.add_epoch(ROW)
    folder.finish(OUTCOME)
    metrics = tmp_path / "metrics.jsonl"
    match damage:
        case "missing":
            metrics.unlink()
        case "torn":
            metrics.write_text(metrics.read_text()[:-20])
        case "foreign":
            metrics.write_text('{"epoch": 1}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl"):
        read_run(tmp_path)


def test_a_folder_names_its_version_and_one_from_before_there_was_any_is_read(tmp_path):
    folder = RunFolder.create(tmp_path / "run", RunConfig())
    folder.add_epoch(ROW)
    folder.finish(OUTCOME)
    report = tmp_path / "run" / "report.json"
    values = json.loads(report.read_text())
    assert values.pop("format") == 2
    for name in BEFORE_GATES:
        del values[name]
    report.write_text(json.dumps(values))
    assert read_run(tmp_path / "run").outcome == replace(OUTCOME, format=1)
    report.write_text(json.dumps({**values, "format": 3, "invented_later": 1, "versions": {"hyperflux": "9.0"}}))
    with pytest.raises(InputError, match=r"written by hyperflux 9\.0 in format 3; hyperflux .* reads format 2"):
        read_run(tmp_path / "run")


def test_a_report_from_before_there_were_warnings_has_none_and_odd_ones_are_refused(tmp_path):
    folder = RunFolder.create(tmp_path / "run", RunConfig())
    folder.finish(OUTCOME)
    path = tmp_path / "run" / "report.json"
    values = json.loads(path.read_text())
    assert values.pop("warnings") == []
    path.write_text(json.dumps(values))
    assert read_run(tmp_path / "run").outcome.warnings == []
    for odd in ("a", [3], ["a\x1b[31m"], None):
        path.write_text(json.dumps({**values, "warnings": odd}))
        with pytest.raises(InputError, match="warnings"):
            read_run(tmp_path / "run")


OF_CHANNELS = replace(
    OUTCOME,
    target_sparsity=None,
    gates="channels",
    flops_ratio=0.25,
    parameters_ratio=0.2,
    compact_parameters=20,
    channels=[LayerCount("fc1", 20, 5)],
)


def channel_run(folder, **changed):
    """The folder of a run of channels, its report.json with other values."""
    record = RunFolder.create(folder, RunConfig(gates="channels", flops=0.25))
    record.add_epoch(ROW)
    record.finish(OF_CHANNELS)
    report = folder / "report.json"
    report.write_text(json.dumps({**json.loads(report.read_text()), **changed}))
    return folder


def test_a_run_of_channels_is_read_back(tmp_path):
    run = read_run(channel_run(tmp_path / "run"))
    assert run.outcome == OF_CHANNELS
    assert (run.reached, run.outcome.gated) == (0.25, OF_CHANNELS.channels)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"channels": []}, "channels: none"),
        ({"channels": [{"name": "fc1", "total": 20, "surviving": 21}]}, "channels: one has more channels left"),
        ({"channels": [{"name": "fc1", "total": 0, "surviving": 0}]}, "channels: none, or one without"),
        ({"channels": [{"name": "fc1", "total": 20, "surviving": 5}] * 2}, "channels: two of one name"),
        ({"gates": "weights"}, "channels or target_sparsity: not those of gates of weights"),
        ({"gates": "4:2"}, "gates: '4:2' is not known"),
        ({"gates": "weights", "channels": []}, "channels or target_sparsity"),
        ({"gates": "weights", "channels": [], "target_sparsity": 0.95}, "not those of config.toml"),
        ({"target_sparsity": 0.75}, "not those of config.toml"),
        ({"flops_ratio": None}, "some are there, some not"),
        ({"compact_parameters": -1}, "compact_parameters: -1 is out of range"),
        ({"parameters_ratio": float("nan")}, "parameters_ratio: nan is out of range|NaN"),
        ({"flops_ratio": -0.1}, "flops_ratio: -0.1 is out of range"),
        ({"format": 1, "target_sparsity": 2.0}, "target_sparsity: 2.0 is out of range"),
    ],
)
def test_channels_that_cannot_be_are_refused(tmp_path, changed, message):
    with pytest.raises(InputError, match=message):
        read_run(channel_run(tmp_path / "run", **changed))
