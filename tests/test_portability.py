"""The package on systems that are not POSIX: nothing at import or in a run needs what Windows lacks."""

import ast
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import hyperflux_cli
import pytest
from without_posix import MODULES, OS_NAMES, SIGNAL_NAMES

import hyperflux
from hyperflux.runs.lock import LOCK

PACKAGES = (hyperflux, hyperflux_cli)
MODULES_OF_OURS = [
    module.name
    for package in PACKAGES
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not module.name.endswith("__main__")
]
FILES = [path for package in PACKAGES for path in sorted(Path(package.__file__).parent.rglob("*.py"))]
OTHERS = """
import asyncio, concurrent.futures, multiprocessing.pool, subprocess, tempfile, shutil, webbrowser, zipfile
import click, filelock, rich.console, rich.live, rich.progress, rich.table, safetensors.numpy, safetensors.torch
import matplotlib.figure, numpy, PIL.Image, scipy.stats, sklearn.datasets, timm, tomli_w, torch, torch.fx, torchvision
import torch._dynamo, torch.distributed, torch.nn.parallel, torch.utils.data, torchvision.datasets
import torchvision.transforms.v2
"""
STAND_IN = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent / "support")!r})
{OTHERS}
from without_posix import remove_posix
remove_posix()
"""


def without_posix(code, *arguments, **how):
    command = [sys.executable, "-W", "ignore", "-c", STAND_IN + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **how)


def test_every_module_is_imported():
    assert len(MODULES_OF_OURS) > 100
    done = without_posix("import importlib\nfor name in sys.argv[1:]: importlib.import_module(name)", *MODULES_OF_OURS)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_network_is_pruned_reported_and_exported(tmp_path):
    settings = ["--dense-epochs", "1", "--pruning-epochs", "2", "--regrowth-epochs", "1", "--model", "mlp:64-8-10"]
    commands = [["prune", "--backend", name, *settings, "--out", name] for name in ("numpy", "torch")]
    code = "from hyperflux_cli.main import main\n"
    for command in [*commands, ["report", "torch"], ["export", "torch"]]:
        code += f"try:\n    main({command!r})\nexcept SystemExit as end:\n    assert not end.code\n"
    done = without_posix(code, cwd=tmp_path, env={**os.environ, "PYTHONIOENCODING": "cp1252"}, encoding="cp1252")
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("numpy", "torch"):
        report = json.loads((tmp_path / name / "report.json").read_text(encoding="utf-8"))
        assert report["surviving_weights"] == round(0.05 * (64 * 8 + 8 * 10))
        assert not (tmp_path / name / LOCK).exists()


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(path.parts[-2:]))
def test_no_file_names_what_windows_lacks(path):
    """Names that only some systems have are looked up by `getattr`; on Windows `os.kill` ends a process at once."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    used = {(node.value.id, node.attr) for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}  # fmt: skip
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    taken = {(node.module, alias.name) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
             for alias in node.names}  # fmt: skip
    missing = {("os", "kill")} | {("os", name) for name in OS_NAMES} | {("signal", name) for name in SIGNAL_NAMES}
    assert not imported & MODULES
    assert not (used | taken) & missing
