"""Exported files compute what the run's network computes, with nothing of this project in the process."""

import copy
import json
import subprocess
import sys

import onnx_extra
import pytest
import torch
from finished_runs import finished_run
from safetensors.torch import load_file, save_file
from sparse_files import metadata_of, same_bits
from tolerances import ROUNDING, ROUNDING_FLOAT32
from torch import nn

from hyperflux import InputError, RunError
from hyperflux.deploy import export as exporting
from hyperflux.deploy import export_options
from hyperflux.deploy.export import CHECKED_BATCHES, export
from hyperflux.deploy.formats import FORMATS
from hyperflux.deploy.networks import load_networks
from hyperflux.deploy.sparse_file import read_sparse

NAMES = [pytest.param(name, marks=onnx_extra.needed if name == "onnx" else ()) for name in export_options.EXTENSIONS]
RUNNABLE = [pytest.param(name, marks=onnx_extra.needed if name == "onnx" else ()) for name in onnx_extra.READERS]
ELSEWHERE = """
import sys
import torch
from safetensors.torch import load_file, save_file

path, batches, results = sys.argv[1:]
{reader}
with torch.no_grad():
    outputs = {{name: run(inputs) for name, inputs in load_file(batches).items()}}
save_file(outputs, results)
assert not any(name.startswith("hyperflux") for name in sys.modules), "the project was imported"
"""
"""A script that a person who gets the file would write."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A multilayer perceptron pruned so far that hidden units are dead."""
    return finished_run(tmp_path_factory.mktemp("runs") / "mlp", "mlp:16-24-4", density=0.06)


def run_elsewhere(path, name, batches, folder):
    """Outputs by name of the file for `batches`, from a process that knows nothing of the project."""
    save_file(batches, folder / "batches.safetensors")
    script = ELSEWHERE.format(reader=onnx_extra.READERS[name])
    arguments = [sys.executable, "-c", script, path, folder / "batches.safetensors", folder / "results.safetensors"]
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return load_file(folder / "results.safetensors")


def check_elsewhere(done, run, folder, rounding):
    """The file's predictions are the run's network's and its outputs too, for batches of many sizes."""
    networks = load_networks(run)
    torch.manual_seed(7)
    dtype = getattr(torch, networks.config.dtype)
    batches = {str(size): torch.randn(size, *networks.shape, dtype=dtype) for size in (1, 2, 5, 33)}
    results = run_elsewhere(done.file, done.format, batches, folder)
    assert results.keys() == batches.keys()
    for size, inputs in batches.items():
        with torch.no_grad():
            expected = networks.pruned(inputs)
        assert results[size].dtype == dtype
        assert torch.equal(results[size].argmax(1), expected.argmax(1))
        assert (results[size] - expected).abs().max() <= rounding * expected.abs().max()


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_process_without_hyperflux_computes_the_same(finished, tmp_path, name):
    done = export(finished, name, compacted=False, out=tmp_path / f"net{export_options.EXTENSIONS[name]}")
    check_elsewhere(done, finished, tmp_path, ROUNDING_FLOAT32)


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_compacted_network_too(finished, tmp_path, name):
    done = export(finished, name, out=tmp_path / f"net{export_options.EXTENSIONS[name]}")
    assert done.weights_after < done.weights_before
    check_elsewhere(done, finished, tmp_path, ROUNDING_FLOAT32)


@pytest.mark.parametrize("name", RUNNABLE)
def test_float64_stays_float64(tmp_path, name):
    run = finished_run(tmp_path / "run", dtype="float64")
    done = export(run, name, compacted=False, out=tmp_path / f"net{export_options.EXTENSIONS[name]}")
    check_elsewhere(done, run, tmp_path, ROUNDING)


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_convolutional_network_with_batch_norm(tmp_path, name):
    run = finished_run(tmp_path / "run", "resnet20", (1, 8, 8), 10, density=0.1, data="digits")
    done = export(run, name, compacted=False, out=tmp_path / f"net{export_options.EXTENSIONS[name]}")
    check_elsewhere(done, run, tmp_path, ROUNDING_FLOAT32)


@pytest.mark.parametrize("name", NAMES)
def test_the_figures_are_those_of_the_file(finished, tmp_path, name):
    done = export(finished, name, compacted=False, out=tmp_path / f"net{export_options.EXTENSIONS[name]}")
    model = load_networks(finished).pruned
    assert done.bytes == (tmp_path / f"net{export_options.EXTENSIONS[name]}").stat().st_size
    assert done.dense_bytes == (finished / "dense.safetensors").stat().st_size
    assert done.ratio == done.bytes / done.dense_bytes
    assert (done.weights_before, done.weights_after) == (16 * 24 + 24 + 24 * 4 + 4,) * 2
    assert done.nonzero == sum(int((parameter != 0).sum()) for parameter in model.parameters())
    assert done.changed == {}
    assert done.checked_batches == CHECKED_BATCHES
    assert done.largest_difference <= (0 if "safetensors" in name else ROUNDING_FLOAT32 * done.largest_output)
    assert done.largest_output > 0
    assert json.loads(json.dumps(done.to_dict()))["ratio"] == done.ratio


@pytest.mark.parametrize("name", ["safetensors", "sparse-safetensors"])
def test_weights_are_the_runs_to_the_bit_and_say_where_they_come_from(finished, tmp_path, name):
    export(finished, name, compacted=False, out=tmp_path / "net.sparse.safetensors")
    read = load_file if name == "safetensors" else read_sparse
    own, back = load_file(finished / "model.safetensors"), read(tmp_path / "net.sparse.safetensors")
    assert own.keys() == back.keys()
    assert all(same_bits(own[key], back[key]) for key in own)
    notes = metadata_of((tmp_path / "net.sparse.safetensors").read_bytes())
    assert notes["format"] == "pt"
    assert notes["model"] == "mlp:16-24-4"
    assert json.loads(notes["input_shape"]) == [16]
    assert json.loads(notes["changed"]) == {}


@pytest.mark.parametrize("name", ["safetensors", "sparse-safetensors"])
def test_compacted_weights_say_what_changed(finished, tmp_path, name):
    done = export(finished, name, out=tmp_path / "net.sparse.safetensors")
    units = done.changed["fc1.weight"][1][0]
    assert units < 24
    assert done.changed["fc1.bias"] == ([24], [units])
    assert done.changed["fc2.weight"] == ([4, 24], [4, units])
    assert "fc2.bias" not in done.changed
    read = load_file if name == "safetensors" else read_sparse
    back = read(tmp_path / "net.sparse.safetensors")
    assert list(back["fc2.weight"].shape) == [4, units]
    notes = metadata_of((tmp_path / "net.sparse.safetensors").read_bytes())
    assert json.loads(notes["changed"])["fc2.weight"] == [[4, 24], [4, units]]


def test_lenet_at_98_percent_takes_a_twentieth(tmp_path):
    run = finished_run(tmp_path / "run", "lenet300", (1, 28, 28), 10, density=0.02, data="mnist")
    done = export(run, "sparse-safetensors", compacted=False)
    assert done.ratio <= 0.05
    assert done.weights_before == 266_610
    assert done.largest_difference == 0


def test_default_files_go_into_the_runs_folder_and_are_replaced(tmp_path):
    run = finished_run(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    names = ("safetensors", "sparse-safetensors", "torch-export", "torchscript")
    written = [export(run, name, compacted=False).file for name in names for _ in range(2)]
    endings = ("safetensors", "sparse.safetensors", "pt2", "pt")
    assert sorted(set(written)) == sorted(str(run / f"model-whole.{ending}") for ending in endings)
    assert all((run / name).read_bytes() == content for name, content in before.items())
    assert len(list(run.iterdir())) == len(before) + len(names)


def wrong(content, model):
    """A file that lost its last bias on the way."""
    damaged = copy.deepcopy(model)
    with torch.no_grad():
        damaged.fc2.bias += 0.01
    return damaged


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (wrong, "the torchscript file computes different outputs: off by 0.01 .largest output"),
        (lambda content, model: lambda inputs: model(inputs) * torch.nan, "computes different outputs: off by nan"),
        (lambda content, model: lambda inputs: model(inputs)[:, :1], "computes different outputs"),
        (
            lambda content, model: lambda inputs: model(inputs[:, :3]),
            "does not run on every batch size: RuntimeError: ",
        ),
    ],
)
def test_a_file_that_computes_something_else_is_not_kept(finished, tmp_path, monkeypatch, function, message):
    monkeypatch.setitem(FORMATS, "torchscript", FORMATS["torchscript"]._replace(function=function))
    with pytest.raises(RunError, match=message):
        export(finished, "torchscript", compacted=False, out=tmp_path / "net.pt")
    assert not list(tmp_path.iterdir())


class Undecided(nn.Module):
    """What it computes depends on the inputs' values, which no tracing exporter follows."""

    def forward(self, inputs):
        return inputs if inputs.sum() > 0 else -inputs


@pytest.mark.parametrize("name", [param for param in RUNNABLE if param.values[0] != "torchscript"])
def test_a_network_that_does_not_go_into_a_format_gets_one_line(finished, tmp_path, monkeypatch, name):
    networks = load_networks(finished)
    undecided = exporting.RunNetworks(networks.config, networks.dense, Undecided(), networks.shape)
    monkeypatch.setattr(exporting, "load_networks", lambda folder: undecided)
    with pytest.raises(RunError, match=f"^mlp:16-24-4 can't be exported to {name}: ") as caught:
        export(finished, name, compacted=False, out=tmp_path / f"net{export_options.EXTENSIONS[name]}")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_network_that_can_not_be_compacted_is_offered_whole(finished, tmp_path, monkeypatch):
    networks = load_networks(finished)
    undecided = exporting.RunNetworks(networks.config, networks.dense, Undecided(), networks.shape)
    monkeypatch.setattr(exporting, "load_networks", lambda folder: undecided)
    with pytest.raises(InputError, match=r"^compact: torch.fx can't trace .*; --no-compact exports the whole network$"):
        export(finished, "safetensors", out=tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


def test_onnx_without_its_packages_names_what_installs_them(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(export_options, "ONNX_PACKAGES", ("json", "no_such_package", "nor_this"))
    with pytest.raises(
        InputError, match=r"no_such_package, nor_this are not installed; pip install 'hyperflux\[onnx\]'"
    ):
        export(finished, "onnx", compacted=False, out=tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
