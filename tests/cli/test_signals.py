"""Ctrl-C in a command's first moments, and signals in its last: one line or none, and an exit code that is true."""

import os
import signal
import subprocess
import sys

import pytest

PRUNE = ["prune", "--backend", "numpy", "--dataset", "synthetic", "--model", "mlp:16-8-4", "--sparsity", "0.8",
         "--dense-epochs", "0", "--pruning-epochs", "1", "--regrowth-epochs", "0", "--out", "run"]  # fmt: skip
AT_IMPORT = """
import signal, sys
from hyperflux_cli.__main__ import main
class Interrupting:
    def find_spec(self, name, *_):
        if name == {name!r}:
            sys.meta_path.remove(self)
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
sys.argv = ["hyperflux", *{words!r}]
main()
"""
AFTER = """
import atexit, signal, sys
from hyperflux_cli.__main__ import main
atexit.register(signal.raise_signal, signal.{number})
sys.argv = ["hyperflux", *{words!r}]
main()
"""
AT_END = """
import signal, sys
from hyperflux_cli import display
from hyperflux_cli.__main__ import main
shown = display.print_summary
def interrupted(*arguments):
    signal.raise_signal(signal.{number})
    shown(*arguments)
display.print_summary = interrupted
sys.argv = ["hyperflux", *{words!r}]
main()
"""


def ended(here, code):
    """Exit code, standard output and standard error of a program that Ctrl-C may end."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=here,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        # a suite that was started in the background hands down that Ctrl-C is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", ["hyperflux_cli.main", "click", "hyperflux_cli.law", "rich.console", "numpy"])
def test_ctrl_c_during_an_import_is_one_line(tmp_path, name):
    code = AT_IMPORT.format(name=name, words=PRUNE)
    assert ended(tmp_path, code) == (130, "", "hyperflux: interrupted\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("words", [["recipes"], ["--version"], ["prune", "--model", "nothing"]], ids=" ".join)
def test_a_signal_that_comes_after_the_end_changes_nothing(tmp_path, words, number):
    code, out, err = ended(tmp_path, AFTER.format(number=number, words=words))
    assert code == (2 if "nothing" in words else 0)
    assert len(err.splitlines()) == (1 if code else 0)
    assert bool(out) != bool(code)


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_run_whose_report_is_written_is_finished_whatever_comes(tmp_path, number):
    code, out, err = ended(tmp_path, AT_END.format(number=number, words=PRUNE))
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "files in run"
