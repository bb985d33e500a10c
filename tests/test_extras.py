"""What works without the optional packages, and what a command says that needs one of them."""

import subprocess
import sys

import pytest
from idx_files import write_mnist

from hyperflux import InputError
from hyperflux.extras import require

OPTIONAL = ("torchvision", "timm", "onnx", "onnxscript", "onnxruntime")
MAIN = f"""
import sys
sys.modules.update(dict.fromkeys({OPTIONAL}))  # None stands for a module that is not there
from hyperflux_cli.main import main
"""
SHORT = ["--dense-epochs", "1", "--pruning-epochs", "2", "--regrowth-epochs", "1", "--sparsity", "0.8"]


def without_extras(here, code, *arguments):
    command = [sys.executable, "-c", MAIN + code, *arguments]
    return subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=300)


def test_prune_report_law_and_export_work_without_the_extras(tmp_path):
    (tmp_path / "sweep.csv").write_text("pressure,density\n1,0.5\n2,0.3\n4,0.17\n8,0.09\n16,0.05\n")
    commands = [
        ["prune", *SHORT, "--out", "run"],
        ["report", "run"],
        ["law", "--from", "sweep.csv", "--x", "pressure", "--y", "density"],
        ["export", "run", "--format", "safetensors"],
        ["export", "run", "--format", "torch-export"],
    ]
    code = f"for words in {commands!r}:\n    assert not main(words, standalone_mode=False)\n"
    code += f"assert not any(map(sys.modules.get, {OPTIONAL}))"
    done = without_extras(tmp_path, code)
    assert done.returncode == 0, done.stderr
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"report.html", "model-compact.safetensors", "model-compact.pt2"} <= written


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["prune", "--model", "timm:vit_tiny_patch16_224", "--dataset", "mnist"],
            "model timm:vit_tiny_patch16_224: timm is not installed; pip install 'hyperflux[vision]'",
        ),
        (
            ["prune", "--model", "resnet18", "--dataset", "mnist"],
            "model torchvision:resnet18: torchvision is not installed; pip install 'hyperflux[vision]'",
        ),
        (
            ["prune", "--dataset", "cifar10"],
            "data set cifar10: torchvision is not installed; pip install 'hyperflux[vision]'",
        ),
        (
            ["prune", "--dataset", "imagefolder"],
            "folders of images: torchvision is not installed; pip install 'hyperflux[vision]'",
        ),
    ],
    ids=["timm", "torchvision", "cifar10", "imagefolder"],
)
def test_a_command_that_needs_an_extra_says_how_to_install_it(tmp_path, arguments, line):
    write_mnist(tmp_path / "data")
    done = without_extras(tmp_path, "main()", *arguments, "--data-dir", "data", "--out", "run")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"hyperflux: {line}\n")
    assert not (tmp_path / "run").exists()


def test_require_gives_the_module():
    assert require("json.decoder", extra="none", needed_by="this test").JSONDecoder


def test_a_missing_dependency_of_an_installed_package_is_the_one_named(tmp_path, monkeypatch):
    (tmp_path / "half_there.py").write_text("import not_there.at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError) as error:
        require("half_there", extra="vision", needed_by="model x")
    assert str(error.value) == "model x: not_there is not installed; pip install 'hyperflux[vision]'"


def test_a_package_that_fails_on_import_is_one_line_too(tmp_path, monkeypatch):
    """torchvision for another torch: RuntimeError, operator torchvision::nms does not exist."""
    (tmp_path / "mismatched.py").write_text("raise RuntimeError('operator x\\ndoes not exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError) as error:
        require("mismatched", extra="vision", needed_by="model x")
    assert str(error.value) == (
        "model x: mismatched can't be imported (operator x does not exist); upgrade it by "
        "pip install 'hyperflux[vision]' -U"
    )
