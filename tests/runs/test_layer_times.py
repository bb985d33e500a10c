"""Runs under a budget of time: layer times are kept with the run, which goes on with these and is read with them."""

import json
import os
import re
import shutil

import pytest
from click.testing import CliRunner
from hyperflux_cli.main import main
from interrupted import Breaker, PowerCut, broken_off, left, quick
from replicas import of_weights

from hyperflux import InputError
from hyperflux.backends.torch.channels import latency
from hyperflux.runs.checkpoints.writer import CheckpointInterval
from hyperflux.runs.driver import execute, resume
from hyperflux.runs.folder import read_run
from hyperflux.runs.lock import LOCK

EVERY = CheckpointInterval.parse("7")


@pytest.fixture
def measured(monkeypatch):
    """The number of measurements; every call takes as long as its weights say, and longer each time."""
    times = []

    def drawn(calls, wait):
        times.append(len(calls))
        return of_weights(calls, len(times))

    monkeypatch.setattr(latency, "_nanoseconds", drawn)
    return times


def timed(**settings):
    return quick(**{"backend": "torch", "sparsity": None, "gates": "channels", "latency": 0.7, **settings})


def test_a_run_that_goes_on_measures_nothing_and_ends_as_one_that_was_not_broken_off(tmp_path, measured):
    found = []
    for name, after, clean in (("whole", [], False), ("cut", [5, 20, 3], False), ("stopped", [30, 20], True)):
        measured.clear()
        broken_off(timed(), tmp_path / name, after, clean=clean)
        assert len(measured) == 1
        found.append((left(tmp_path / name), (tmp_path / name / "latency.json").read_bytes()))
    assert found[0] == found[1] == found[2]
    run = read_run(tmp_path / "cut")
    assert run.times.nanoseconds == 4001
    assert run.times.batch_size == 32
    assert 0.4 < run.reached <= 0.7
    assert run.outcome.target_sparsity is None


def test_only_a_budget_of_time_is_measured(tmp_path, measured):
    execute(quick(backend="torch", sparsity=None, gates="channels", flops=0.7), tmp_path / "run")
    assert not measured
    assert not (tmp_path / "run" / "latency.json").exists()
    assert read_run(tmp_path / "run").times is None


def test_a_run_that_ended_before_it_began_leaves_nothing_that_is_in_the_way(tmp_path, measured):
    (tmp_path / "run").mkdir()
    for name in (LOCK, "latency.json", ".latency.json.part"):
        (tmp_path / "run" / name).write_text("")
    execute(timed(), tmp_path / "run")
    assert read_run(tmp_path / "run").times.nanoseconds == 4001


def test_a_budget_that_is_out_of_reach_leaves_no_folder(tmp_path, measured):
    with pytest.raises(InputError, match=r"^latency: 0\.2 leaves 800 of .* one channel of every layer"):
        execute(timed(latency=0.2), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The folder of a run that was broken off, and that of a finished one."""
    here = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(latency, "_nanoseconds", lambda calls, wait: of_weights(calls, 0))
        with pytest.raises(PowerCut):
            execute(timed(), here / "cut", every=EVERY, stop=Breaker(30, clean=False))
        execute(timed(), here / "whole")
    return here


def edited(change):
    def write(file):
        values = json.loads(file.read_text())
        change(values)
        file.write_text(json.dumps(values))

    return write


def outside(file):
    file.replace(file.parent.parent / "times")
    file.symlink_to("../times")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "No such file or directory; without its layer times this run can't go on"),
        (outside, "is a link that leads out of its folder"),
        (lambda file: (file.unlink(), os.mkfifo(file)), "is a pipe or a device, not a file"),
        (lambda file: os.truncate(file, 1 << 40), "more than the 16,777,216 that such a file may have"),
        (lambda file: file.write_bytes(b"\xff"), "latency.json is damaged ("),
        (lambda file: file.write_text("[" * 100_000), "latency.json is damaged ("),
        (edited(lambda values: values.update(nanoseconds=-1)), "latency.json is damaged (nanoseconds: none that was"),
        (edited(lambda values: values["layers"][0].update(name="\x1b[2J")), "latency.json is damaged (name: "),
    ],
)
def test_a_file_that_no_run_wrote_is_refused_in_one_line(begun, tmp_path, damage, message):
    for name, act in (("cut", resume), ("whole", read_run)):
        folder = shutil.copytree(begun / name, tmp_path / name)
        damage(folder / "latency.json")
        with pytest.raises(InputError, match=re.escape(message)) as told:
            act(folder)
        assert "\n" not in str(told.value)
        (tmp_path / "times").unlink(missing_ok=True)


def test_other_times_than_the_run_was_started_with_are_refused(begun, tmp_path):
    folder = shutil.copytree(begun / "cut", tmp_path / "cut")
    edited(lambda values: values["layers"][0]["nanoseconds"][0].__setitem__(0, 170))(folder / "latency.json")
    with pytest.raises(InputError, match=r"latency\.json is not what the run was started with; put it back, or run "):
        resume(folder)


def test_times_of_another_network_are_refused(begun, tmp_path):
    folder = shutil.copytree(begun / "cut", tmp_path / "cut")
    edited(lambda values: values["layers"][0].update(name="conv"))(folder / "latency.json")
    with pytest.raises(
        InputError, match=r"^latency: the table of layer times is of another network, as layer fc1 shows"
    ):
        resume(folder)


def test_the_command_line_and_the_report_show_the_table(tmp_path, measured, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = "--dataset synthetic --train-samples 250 --model mlp:16-12-4 --gates channels --latency 0.7 --out run"
    stages = "--dense-epochs 0 --pruning-epochs 3 --regrowth-epochs 1 --device cpu --batch-size 50"
    done = CliRunner().invoke(main, ["prune", *options.split(), *stages.split()], catch_exceptions=False)
    assert done.exit_code == 0
    assert re.fullmatch(
        r"hyperflux: the dense network takes 0\.004001 ms for a batch of 50 in float32 on cpu with \d+ threads?; times "
        r"of its layers are in latency\.json\n",
        done.stderr,
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["fc1", "16", "12", "0.000869", "0.000485", "0.000165"] in lines
    assert any(line[:3] == ["microseconds,", "batch", "50"] for line in lines)
    page = CliRunner().invoke(main, ["report", "run"], catch_exceptions=False)
    assert page.exit_code == 0
    written = "".join(path.read_text() for path in tmp_path.rglob("*.md"))
    assert "milliseconds by layer" in written
    assert "0.000869" in written
