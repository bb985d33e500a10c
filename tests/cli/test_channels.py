"""`hyperflux prune --gates channels`: what it prints, and the compacted network that it leaves beside the run."""

import json
import shutil

import pytest
import torch
from commands import run
from safetensors.torch import load_file

from hyperflux.deploy.networks import load_networks
from hyperflux.runs.folder import read_run

RECIPE = """
backend = "numpy"
dataset = "synthetic"
model = "mlp:16-24-12-4"
gates = "channels"
flops = 0.4
[dense]
epochs = 1
[pruning]
epochs = 6
presence_learning_rate = 1e-2
[regrowth]
epochs = 2
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A working folder with a run in `out`, and what the command printed."""
    here = tmp_path_factory.mktemp("channels")
    (here / "channels.toml").write_text(RECIPE)
    return here, run(here, "prune", "--recipe", "channels.toml", "--out", "out")


@pytest.fixture
def here(finished, tmp_path):
    """A copy of the working folder."""
    shutil.copytree(finished[0] / "out", tmp_path / "out")
    return tmp_path


def test_the_summary_says_what_is_left_of_flops_parameters_and_channels(finished):
    folder, done = finished
    assert (done.returncode, done.stderr) == (0, "")
    outcome = read_run(folder / "out").outcome
    assert outcome.flops_ratio <= 0.4
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert f"FLOPs            {outcome.flops_ratio:.4f} of the dense network's (at most 0.4)" in lines
    assert f"parameters       {outcome.parameters_ratio:.4f} of the dense network's" in lines
    left = [layer.surviving for layer in outcome.channels]
    assert f"channels left    {sum(left)} of 36" in lines
    assert [line.split()[:3] for line in lines if line.startswith(("fc1", "fc2"))] == [
        ["fc1", "24", str(left[0])],
        ["fc2", "12", str(left[1])],
    ]
    costs = next(line.split() for line in lines if line.startswith("parameters  ") and "dense" not in line)
    assert costs[2] == f"{outcome.compact_parameters:,}"
    assert [line.split()[:3] for line in lines if line.startswith("microseconds")] == [
        ["microseconds,", "batch", "1"],
        ["microseconds,", "batch", "64"],
    ]


def test_the_files_compute_what_the_run_does(finished):
    folder = finished[0] / "out"
    outcome, networks = read_run(folder).outcome, load_networks(folder)
    weights = load_file(folder / "compact.safetensors")
    assert sum(tensor.numel() for tensor in weights.values()) == outcome.compact_parameters
    program = torch.export.load(folder / "compact.pt2").module()
    inputs = networks.example(5)
    assert torch.allclose(program(inputs), networks.pruned(inputs), atol=1e-6)


def test_what_can_not_be_written_costs_one_line_and_not_the_run_and_resume_writes_it(here):
    out = here / "out"
    (out / "compact.pt2").unlink()
    (out / ".compact.pt2.part").mkdir()
    failed = run(here, "prune", "--resume", "--out", "out", "--json")
    assert failed.returncode == 0
    *_, line = failed.stderr.splitlines()
    assert "the run is finished, but its compacted network could not be written" in line
    assert line.endswith("try hyperflux export out --format torch-export")
    assert json.loads(failed.stdout)["compact"] is None
    (out / ".compact.pt2.part").rmdir()
    kept = (out / "compact.safetensors").stat().st_mtime_ns
    again = run(here, "prune", "--resume", "--out", "out", "--json")
    assert again.returncode == 0
    values = json.loads(again.stdout)
    small = values.pop("compact")
    assert values.pop("folder") == "out"
    assert values == json.loads((out / "report.json").read_text())
    assert (here / small["program"]).is_file()
    assert (out / "compact.safetensors").stat().st_mtime_ns == kept
    assert small["compacted"]["parameters"] == values["compact_parameters"] < small["dense"]["parameters"] == 760
    assert [time["batch_size"] for time in small["times"]] == [1, 64]
    assert all(time["dense_seconds"] > 0 and time["compacted_seconds"] > 0 for time in small["times"])


def test_export_and_latency_take_a_run_of_channels(here):
    exported = run(here, "export", "out", "--json")
    assert exported.returncode == 0
    assert json.loads(exported.stdout)["weights_after"] == read_run(here / "out").outcome.compact_parameters
    timed = run(here, "bench", "latency", "out", "--batch-sizes", "2", "--rotations", "1", "--json")
    assert timed.returncode == 0
    costs = json.loads(timed.stdout)["costs"]
    ratio = costs["compacted"]["dense_flops"] / costs["dense"]["dense_flops"]
    assert ratio == pytest.approx(read_run(here / "out").outcome.flops_ratio)
