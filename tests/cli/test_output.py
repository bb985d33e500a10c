"""What the command line does where its output can't be written: no traceback, no lost work, an exit code that tells."""

import json
import os
import subprocess
import sys

import pytest

COMMAND = [sys.executable, "-m", "hyperflux_cli"]
PRUNE = ["prune", "--backend", "numpy", "--dataset", "synthetic", "--model", "mlp:16-8-4", "--sparsity", "0.8",
         "--dense-epochs", "1", "--pruning-epochs", "2", "--regrowth-epochs", "1", "--out", "run"]  # fmt: skip
NARROW = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def start(here, *words, environment=None, **streams):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    return subprocess.Popen([*COMMAND, *words], cwd=here, env=environment, **streams)


def without_reader(here, *words, stream="stdout"):
    """Exit code of a command whose reader has left, and what it wrote to the other stream."""
    reader, writer = os.pipe()
    os.close(reader)
    other = {"stdout": "stderr", "stderr": "stdout"}[stream]
    process = start(here, *words, **{stream: writer, other: subprocess.PIPE})
    os.close(writer)
    out, err = process.communicate(timeout=120)
    return process.returncode, (out if stream == "stderr" else err).decode()


WORDS = (["recipes"], ["recipes", "lenet300-mnist"], ["--help"], ["prune", "--help"], ["--version"], [], PRUNE,
         [*PRUNE, "--json"])  # fmt: skip


@pytest.mark.parametrize("words", WORDS, ids=str)
def test_a_reader_that_leaves_ends_a_command_quietly(tmp_path, words):
    assert without_reader(tmp_path, *words) == (141, "")
    if words[:1] == ["prune"] and "--out" in words:
        assert (tmp_path / "run" / "report.json").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no full device")
@pytest.mark.parametrize("words", WORDS, ids=str)
def test_a_full_device_costs_the_output_and_says_so(tmp_path, words):
    with open("/dev/full", "w") as full:
        process = start(tmp_path, *words, stdout=full, stderr=subprocess.PIPE)
        _, err = process.communicate(timeout=120)
    line = "hyperflux: standard output can't be written (No space left on device); files are not affected\n"
    assert (process.returncode, err.decode()) == (1, line)
    if words[:1] == ["prune"] and "--out" in words:
        assert (tmp_path / "run" / "report.json").exists()


def test_an_error_that_nobody_can_read_keeps_its_exit_code(tmp_path):
    assert without_reader(tmp_path, "prune", "--model", "nothing", stream="stderr") == (2, "")


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_closed_stream_is_not_the_next_file_that_is_opened(tmp_path, closed):
    number = {"stdout": 1, "stderr": 2}[closed]
    for words, code in ((PRUNE, 0), (["prune", "--model", "nothing"], 2)):
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        done = start(tmp_path, *words, preexec_fn=lambda: os.close(number), **streams)
        out, err = done.communicate(timeout=120)
        assert done.returncode == code
        assert not (out if closed == "stdout" else err)
        if code and closed == "stderr":
            assert not out
    assert json.loads((tmp_path / "run" / "report.json").read_text())["format"] == 2


def commands():
    """The words of every command and of every group of commands."""
    from hyperflux_cli.main import main

    for name, command in main.commands.items():
        yield [name]
        yield from ([name, inner] for inner in getattr(command, "commands", ()))


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_help_is_of_characters_that_every_terminal_has(words):
    from click import Context
    from hyperflux_cli.main import main

    command = main
    for word in words:
        command = command.commands[word]
    assert command.get_help(Context(command)).isascii()


def test_a_narrow_encoding_gets_question_marks(tmp_path):
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "environment": NARROW}
    for words in (PRUNE, ["report", "run"], ["export", "run"]):
        process = start(tmp_path, *words, **streams)
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, b"")
        assert out.isascii()
    assert b"?" in out  # 24×16, a shape in the list of what export changed
    refused = start(tmp_path, "report", "größe", **streams)
    out, err = refused.communicate(timeout=120)
    assert (refused.returncode, out) == (2, b"")
    assert b"gr??e' has characters that ascii, the encoding of this shell, lacks; set PYTHONUTF8=1" in err
