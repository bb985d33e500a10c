"""What gets installed: every package of the source tree, and nothing named `cli` at the top."""

import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_is_listed_and_cli_installs_as_hyperflux_cli():
    """pyproject.toml lists packages by hand, because one of them changes its name."""
    sources = sorted(
        ".".join(file.parent.relative_to(ROOT).parts)
        for top in ("hyperflux", "cli")
        for file in (ROOT / top).rglob("__init__.py")
    )
    expected = sorted("hyperflux_cli" + name[3:] if name.startswith("cli") else name for name in sources)
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == expected


def test_the_installed_distribution_has_no_top_level_cli():
    top = distribution("hyperflux").read_text("top_level.txt")
    assert top is not None
    assert set(top.split()) == {"hyperflux", "hyperflux_cli"}


def data_files():
    """(package, path inside it) of every file of the packages that is not Python."""
    for top, installed in (("hyperflux", "hyperflux"), ("cli", "hyperflux_cli")):
        for file in sorted((ROOT / top).rglob("*")):
            if file.is_file() and file.suffix not in (".py", ".pyc"):
                folder = next(parent for parent in file.parents if (parent / "__init__.py").exists())
                parts = folder.relative_to(ROOT / top).parts
                yield ".".join((installed, *parts)), file.relative_to(folder)


@pytest.mark.parametrize(("package", "path"), list(data_files()), ids=str)
def test_every_file_that_is_not_python_is_installed(package, path):
    patterns = PROJECT["tool"]["setuptools"]["package-data"]
    assert any(path.match(pattern) for owner in ("*", package) for pattern in patterns.get(owner, ()))


def test_both_packages_say_that_they_are_typed():
    assert {("hyperflux", Path("py.typed")), ("hyperflux_cli", Path("py.typed"))} <= set(data_files())


EXTRAS = PROJECT["project"]["optional-dependencies"]


@pytest.mark.parametrize("dependency", [*PROJECT["project"]["dependencies"], *EXTRAS["vision"], *EXTRAS["onnx"]])
def test_every_dependency_has_a_lower_bound_and_a_line_that_justifies_it(dependency):
    name, bound = dependency.split(">=")
    assert bound
    lines = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith(f"| `{name}` | `>={bound}` |") for line in lines)


@pytest.mark.parametrize("extra", ["test", "docs"])
def test_a_development_dependency_has_its_line_too(extra):
    lines = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8").splitlines()
    for dependency in EXTRAS[extra]:
        if not dependency.startswith("hyperflux["):
            name, bound = dependency.split(">=")
            assert any(extra in line and f"| `{name}` | `>={bound}` |" in line for line in lines)
