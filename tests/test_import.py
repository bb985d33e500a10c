"""`import hyperflux` costs nothing, its public names are there, and its rooms build on each other in one order."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hyperflux

PACKAGE = Path(hyperflux.__file__).parent


def in_a_fresh_process(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_loads_neither_torch_nor_scikit_learn_nor_matplotlib():
    heavy = in_a_fresh_process(
        "import sys, hyperflux; print({'torch', 'sklearn', 'matplotlib', 'scipy', 'numpy'} & set(sys.modules))"
    )
    assert heavy.strip() == "set()"


def test_the_command_line_starts_without_scikit_learn_and_torch():
    loaded = in_a_fresh_process(
        "import sys, hyperflux_cli.main; print({'torch', 'sklearn', 'matplotlib', 'scipy'} & set(sys.modules))"
    )
    assert loaded.strip() == "set()"


@pytest.mark.parametrize("name", hyperflux.__all__)
def test_public_names_resolve(name):
    assert getattr(hyperflux, name) is not None
    assert name in dir(hyperflux)


def test_other_names_do_not():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        hyperflux.nothing  # noqa: B018


ROOMS = [
    {"_version", "errors"},
    {"io", "extras"},
    {"seeding", "timing", "spec"},
    {"schedules", "gates"},
    {"telemetry"},
    {"session"},
    {"data", "models", "recipes"},
    {"config"},
    {"backends"},
    {"runs"},
    {"law"},
    {"report", "deploy"},
]
"""Rooms of the package, and modules of its root. Each one may import those of the lines above it."""


def test_every_room_has_its_place():
    found = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert sorted(found - {"__init__"}) == sorted(set.union(*ROOMS))


def test_no_room_imports_one_that_builds_on_it():
    place = {room: number for number, rooms in enumerate(ROOMS) for room in rooms}
    upwards = []
    for file in sorted(PACKAGE.rglob("*.py")):
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if room != "__init__" and isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hyperflux"):
                inside = node.module.split(".")[1:]
                targets = {inside[0]} if inside else {alias.name for alias in node.names}
                upwards += [(str(file), other) for other in targets - {room} if place.get(other, 99) >= place[room]]
    assert upwards == []
