"""`import hyperflux` costs nothing, and its public names are there."""

import subprocess
import sys

import pytest

import hyperflux


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
