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


@pytest.mark.parametrize(
    "dependency", [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["onnx"]]
)
def test_every_dependency_has_a_lower_bound_and_a_line_that_justifies_it(dependency):
    name, bound = dependency.split(">=")
    assert bound
    lines = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith(f"| `{name}` | `>={bound}` |") for line in lines)
