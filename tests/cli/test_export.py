"""`hyperflux export` from the command line."""

import json
import shutil

import commands
import onnx_extra
import pytest
from finished_runs import finished_run
from safetensors.torch import load_file

from hyperflux.deploy.export_options import EXTENSIONS
from hyperflux.deploy.sparse_file import read_sparse


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("finished") / "run", density=0.1)


@pytest.fixture
def here(finished, tmp_path):
    """A working folder with a finished run in `runs/one`."""
    shutil.copytree(finished, tmp_path / "runs" / "one")
    return tmp_path


def run(here, *arguments):
    return commands.run(here, "export", *arguments)


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_sizes_weights_and_the_difference_are_printed(here):
    done = run(here, "runs/one", "--no-compact", "--format", "sparse-safetensors")
    assert (done.returncode, done.stderr) == (0, "")
    dense, size = ((here / "runs/one" / name).stat().st_size for name in ("dense.safetensors", FILE))
    lines = done.stdout.splitlines()
    assert lines[0] == f"dense file          {dense:,} bytes"
    assert lines[1] == f"this file           {size:,} bytes, {size / dense:.4f} of the dense file"
    own, back = load_file(here / "runs/one/model.safetensors"), read_sparse(here / "runs/one" / FILE)
    nonzero = sum(int(tensor.count_nonzero()) for tensor in own.values())
    assert lines[2] == f"weights             508 before, 508 after, {nonzero} non-zero"
    assert lines[3].startswith("largest difference  0 (largest output 0.")
    assert lines[4] == "compared            with the run's network, on random inputs of batch size 1, 3, 64"
    assert lines[5:] == ["", f"wrote sparse-safetensors to runs/one/{FILE}"]
    assert own.keys() == back.keys()
    assert all(own[name].equal(back[name]) for name in own)


FILE = "model-whole.sparse.safetensors"


def test_json_is_one_line_and_says_where_the_file_is(here):
    done = run(here, "runs/one", "--no-compact", "--json", "--out", "net.safetensors")
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 1)
    values = json.loads(done.stdout)
    assert (values["file"], values["format"], values["compacted"]) == ("net.safetensors", "safetensors", False)
    assert values["bytes"] == (here / "net.safetensors").stat().st_size
    assert (values["largest_difference"], values["checked_batches"]) == (0, [1, 3, 64])


@pytest.mark.parametrize("name", ["torch-export", "torchscript", pytest.param("onnx", marks=onnx_extra.needed)])
def test_exporters_keep_silent(here, name):
    done = run(here, "runs/one", "--no-compact", "--json", "--format", name)
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 1)
    assert json.loads(done.stdout)["file"] == f"runs/one/model-whole{EXTENSIONS[name]}"


def test_by_default_the_network_is_compacted_and_the_lines_say_what_changed(here):
    done = run(here, "runs/one")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    units = load_file(here / "runs/one/model-compact.safetensors")["fc1.bias"].numel()
    assert units < 24
    assert f"fc2.weight: 4×24 to 4×{units}" in lines
    assert not any(line.startswith("fc1.bias") for line in lines)
    assert lines[-2].startswith("these weights fit only the compacted network; --format torch-export runs")
    assert lines[-1] == "wrote safetensors to runs/one/model-compact.safetensors"


def refused(here, *arguments):
    """The one line on standard error of a command that must refuse and leave nothing behind."""
    before = files_in(here)
    done = run(here, *arguments)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    assert done.stderr.startswith("hyperflux: ")
    assert files_in(here) == before
    return done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'RUN'"),
        (["nowhere"], "nowhere is not the folder of a finished run"),
        (["runs"], "runs is not the folder of a finished run"),
        (["runs/one", "--format", "pickle"], "Invalid value for '--format': 'pickle' is not one of 'safetensors', "),
        (["runs/one", "--out", "runs/one/model.safetensors"], "runs/one/model.safetensors: already exists; give --out"),
        (["runs/one", "--out", "runs"], "runs: already exists; give --out a new name"),
        (["runs/one", "--out", "no/such.safetensors"], "no/such.safetensors: the folder no does not exist; create it"),
        (
            ["runs/one", "--out", "net.onnx"],
            "net.onnx: has the extension of onnx, but the format is safetensors; change --format",
        ),
        (["runs/one", "--out", "x" * 300], "can't be written (File name too long); give --out another name"),
        (["runs/one", "--out", "/proc/net.safetensors", "--no-compact"], "cannot be written (No such file"),
    ],
)
def test_wrong_use_gets_one_line(here, arguments, message):
    assert message in refused(here, *arguments)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "report.json").unlink(), "runs/one is not the folder of a finished run"),
        (lambda run: (run / "dense.safetensors").unlink(), "weights file runs/one/dense.safetensors: no such file"),
        (lambda run: (run / "model.safetensors").write_bytes(b"torn"), "model.safetensors: not a readable safetensors"),
        (
            lambda run: (run / FILE).mkdir(),
            f"runs/one/{FILE}: cannot be written (Is a directory); give --out another name",
        ),
    ],
)
def test_a_run_or_place_that_will_not_do_gets_one_line(here, spoil, message):
    spoil(here / "runs/one")
    assert message in refused(here, "runs/one", "--no-compact", "--format", "sparse-safetensors")


def test_help_says_what_to_do_with_compacted_weights(here):
    done = run(here, "--help")
    assert done.returncode == 0
    assert all(f"  {name} " in done.stdout for name in EXTENSIONS)
    assert "use torch-export or onnx to run without the class" in " ".join(done.stdout.split())
