"""Interruptions as they come: kill -9, Ctrl-C, SIGTERM, a full disk, two processes; each in processes of its own."""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from idx_files import write_mnist
from image_files import write_folder
from interrupted import left

from hyperflux import InputError, RunConfig, RunError
from hyperflux.runs.checkpoints.writer import CheckpointInterval
from hyperflux.runs.driver import execute
from hyperflux.runs.lock import LOCK, locked

HYPERFLUX = [sys.executable, "-c", "from hyperflux_cli.main import main; main()"]
RECIPE = """
dataset = "DATASET"
model = "MODEL"
sparsity = 0.8
device = "cpu"
[dense]
epochs = 3
[pruning]
epochs = 14
presence_learning_rate = 1e-2
[regrowth]
epochs = 12
"""
DATA = {"numpy": ("synthetic", "mlp:16-24-4"), "torch": ("digits", "mlp:64-32-10")}


def recipe(backend):
    dataset, model = DATA[backend]
    return RECIPE.replace("DATASET", dataset).replace("MODEL", model)


@pytest.fixture
def here(tmp_path):
    for backend in DATA:
        (tmp_path / f"{backend}.toml").write_text(recipe(backend))
    return tmp_path


def start(here, *arguments, command="prune", **how):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*HYPERFLUX, command, *arguments], cwd=here, env=environment, text=True, **pipes, **how)


def finished(process):
    """(exit code, lines on standard output, lines on standard error)."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out.splitlines(), err.splitlines()


def begin(backend="numpy", every="25", out="run"):
    return ["--recipe", f"{backend}.toml", "--backend", backend, "--out", out, "--checkpoint-every", every]


def wait_for(process, condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def has_epochs(here, number):
    """Whether the run has recorded so many epochs."""
    metrics = here / "run" / "metrics.jsonl"
    return metrics.exists() and len(metrics.read_bytes().splitlines()) >= number


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run in a single piece leaves, by backend."""
    known = {}

    def of(backend):
        if backend not in known:
            folder = tmp_path_factory.mktemp("whole")
            settings = {**tomllib.loads(recipe(backend)), "backend": backend}
            execute(RunConfig.from_dict(settings), folder / "run")
            known[backend] = left(folder / "run")
        return known[backend]

    return of


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_kill_9_at_random_moments(here, backend, whole):
    """Whatever it hits, a step, an evaluation or a checkpoint half written, the run goes on to the same end."""
    random = Random(backend)
    every = {"numpy": "5", "torch": "40"}[backend]
    arguments = begin(backend, every)
    for epochs in (0, 7, 19):
        process = start(here, *arguments)
        wait_for(process, lambda epochs=epochs: has_epochs(here, epochs) and (here / "run" / "checkpoint").is_dir())
        time.sleep(random.uniform(0, 0.05))
        process.kill()
        assert finished(process)[0] == -signal.SIGKILL
        arguments = ["--resume", "--out", "run", "--checkpoint-every", every]
    code, _, err = finished(start(here, *arguments))
    assert code == 0, err
    assert len(err) == 1
    assert err[0].startswith("hyperflux: run: the lock of process ")
    assert err[0].endswith(", which is no longer there, is taken over")
    assert left(here / "run") == whole(backend)


DYING = """
import os
from hyperflux_cli.main import main
call, left = os.{name}, {number}
def dying(*arguments):
    global left
    left -= 1
    if left == 0:
        os._exit(9)
    return call(*arguments)
os.{name} = dying
main()
"""


@pytest.mark.parametrize("number", [1, 2, 3, 4, 6, 9, 12])
@pytest.mark.parametrize("name", ["fsync", "replace", "unlink"])
def test_an_end_amid_a_write(here, whole, name, number):
    """The process ends where a file of the run, a checkpoint or the config is about to be flushed, renamed, removed."""
    command = [sys.executable, "-c", DYING.format(name=name, number=number), "prune", *begin(every="20")]
    assert subprocess.run(command, cwd=here, check=False, capture_output=True).returncode == 9
    begun = (here / "run" / "config.toml").exists() and (here / "run" / "checkpoint").exists()
    arguments = ["--resume", "--out", "run"] if begun else begin(out="again")
    assert finished(start(here, *arguments))[0] == 0
    assert left(here / arguments[arguments.index("--out") + 1]) == whole("numpy")


@pytest.mark.parametrize(
    ("backend", "number", "code"),
    [
        ("numpy", signal.SIGINT, 130),
        ("numpy", signal.SIGTERM, 143),
        ("numpy", signal.SIGHUP, 129),
        ("torch", signal.SIGINT, 130),
    ],
)
def test_a_signal_stops_after_the_step_and_say_how_to_go_on(here, backend, number, code, whole):
    process = start(here, *begin(backend, every="2h"))
    wait_for(process, lambda: has_epochs(here, 5))
    process.send_signal(number)
    got, _, err = finished(process)
    assert got == code
    line = f"hyperflux: stopped by {number.name}; continue with hyperflux prune --resume --out run"
    assert err == [line]
    assert not (here / "run" / LOCK).exists()
    epochs = len((here / "run" / "metrics.jsonl").read_text().splitlines())
    got, out, err = finished(start(here, "--resume", "--out", "run"))
    assert (got, err) == (0, [])
    assert out[0].startswith(f"epoch {epochs + 1:>2}/29 ")  # not one epoch was lost
    assert left(here / "run") == whole(backend)


STREAMED = """
dataset = "imagefolder"
data_dir = "images"
model = "mlp:150528-2-2"
sparsity = 0.5
batch_size = 4
workers = 1
device = "cpu"
dense = {epochs = 4}
pruning = {epochs = 4}
regrowth = {epochs = 1}
"""


def children(process):
    """Numbers of the processes that a process has started, where the system tells."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return list(map(int, listed.read_text().split())) if listed.exists() else []


@pytest.fixture
def streamed(here):
    """The start of a run whose images a worker decodes, in a process group of its own."""
    write_folder(here / "images", size=(70, 70), train=16, test=4)
    (here / "streamed.toml").write_text(STREAMED)
    return lambda: start(here, "--recipe", "streamed.toml", "--out", "run", start_new_session=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_reaches_the_workers_too_harms_nothing(here, streamed, number):
    """A terminal, `timeout`, a scheduler signal all processes, some twice. Workers load what the step needs."""
    process = streamed()
    wait_for(process, lambda: has_epochs(here, 1))

    def signalled_all_the_while():
        """To the workers alone: a run whose worker has ended would fail."""
        for child in children(process):
            with suppress(ProcessLookupError):
                os.kill(child, number)
        return has_epochs(here, 6)

    wait_for(process, signalled_all_the_while)
    os.killpg(process.pid, number)
    os.killpg(process.pid, number)
    code, _, err = finished(process)
    line = f"hyperflux: stopped by {number.name}; continue with hyperflux prune --resume --out run"
    assert (code, err) == (128 + number, [line])
    assert list((here / "run" / "checkpoint").iterdir())


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds workers in /proc")
def test_a_worker_that_is_killed_is_one_line_and_the_run_goes_on(here, streamed):
    process = streamed()
    wait_for(process, lambda: has_epochs(here, 3) and children(process))
    for child in children(process):
        os.kill(child, signal.SIGKILL)
    code, _, err = finished(process)
    assert (code, len(err)) == (1, 1)
    assert "hyperflux: a process that decodes images has ended (" in err[0]
    assert err[0].endswith("set fewer workers in config.toml; then go on with hyperflux prune --resume --out run")
    assert not (here / "run" / LOCK).exists()
    code, _, err = finished(start(here, "--resume", "--out", "run"))
    assert (code, err) == (0, [])  # from the last step


def test_a_hang_up_that_nohup_keeps_away_is_not_heard(here):
    process = start(here, *begin(), preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    wait_for(process, lambda: has_epochs(here, 2))
    process.send_signal(signal.SIGHUP)
    assert finished(process)[0] == 0


def test_a_second_ctrl_c_stops_at_once(here):
    process = start(here, *begin())
    wait_for(process, lambda: has_epochs(here, 2))
    process.send_signal(signal.SIGSTOP)  # so that both come within one step
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    code, _, err = finished(process)
    assert (code, err) == (-signal.SIGTERM, [])


def small_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, resource.RLIM_INFINITY))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def test_a_full_disk_ends_the_run_with_the_way_out_and_it_goes_on_later(here, whole):
    code, _, err = finished(start(here, *begin(), preexec_fn=small_files))
    assert (code, len(err)) == (1, 1)
    assert (
        "cannot be written (File too large); make room, then continue with hyperflux prune --resume --out run" in err[0]
    )
    assert finished(start(here, "--resume", "--out", "run"))[0] == 0
    assert left(here / "run") == whole("numpy")


def removed(folder):
    shutil.rmtree(folder)


def replaced(folder):
    shutil.rmtree(folder)
    folder.write_text("mine")


def of_checkpoints_replaced(folder):
    shutil.rmtree(folder / "checkpoint")
    (folder / "checkpoint").write_text("mine")


def read_only(folder):
    if os.geteuid() == 0:
        pytest.skip("nothing is read-only for the superuser")
    (folder / "checkpoint").chmod(0o555)
    folder.chmod(0o555)


@pytest.mark.parametrize("spoil", [removed, replaced, of_checkpoints_replaced, read_only])
def test_a_folder_that_can_not_be_written_any_more_ends_the_run_in_one_line(tmp_path, spoil):
    config, folder = RunConfig.from_dict({**tomllib.loads(recipe("numpy")), "backend": "numpy"}), tmp_path / "run"

    def observe(row):
        if row.epoch == 5:
            spoil(folder)

    with pytest.raises(RunError, match=r"cannot be (written|read)"):
        execute(config, folder, observe, every=CheckpointInterval.parse("5"))


def test_two_processes_on_one_folder(here):
    first = start(here, *begin(every="2h"))
    wait_for(first, lambda: has_epochs(here, 1))
    first.send_signal(signal.SIGSTOP)
    try:
        for arguments in (begin(), ["--resume", "--out", "run"]):
            code, _, err = finished(start(here, *arguments))
            assert code == 2
            assert err == [
                f"hyperflux: run: in use by process {first.pid} on {socket.gethostname()}; "
                "wait for it or name another folder with --out"
            ]
    finally:
        first.send_signal(signal.SIGCONT)
    assert finished(first)[0] == 0
    assert not (here / "run" / LOCK).exists()


def test_a_comparison_leaves_the_runs_of_another_alone(here):
    plan = ["--recipe", "numpy.toml", "--backend", "numpy", "--sparsities", "0.8", "--seeds", "0", "--out", "runs"]
    first = start(here, *plan, command="compare")
    wait_for(first, lambda: (here / "runs" / "hyperflux-0.8-0" / "metrics.jsonl").exists())
    first.send_signal(signal.SIGSTOP)
    try:
        code, _, err = finished(start(here, *plan, command="compare"))
    finally:
        first.send_signal(signal.SIGCONT)
    assert (code, len(err)) == (2, 1)
    assert f"runs/hyperflux-0.8-0: in use by process {first.pid} on " in err[0]
    assert finished(first)[0] == 0


def test_two_processes_that_start_at_once_on_one_folder(here):
    runs = [finished(process) for process in [start(here, *begin()) for _ in range(3)]]
    assert sorted(code for code, *_ in runs)[:1] == [0]
    refused = [err for code, _, err in runs if code]
    assert len(refused) == 2
    assert all(len(err) == 1 and ("in use by" in err[0] or "holds" in err[0]) for err in refused)
    assert (here / "run" / "report.json").exists()


def test_a_lock_of_another_host_is_never_taken_over(tmp_path):
    (tmp_path / LOCK).write_text(json.dumps({"process": 12, "host": "elsewhere"}))
    message = r"in use by process 12 on elsewhere; if that one is no longer there, remove .*/lock"
    with pytest.raises(InputError, match=message), locked(tmp_path, print):
        pass
    assert (tmp_path / LOCK).exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"process": "x"}'])
def test_a_torn_lock_that_nobody_holds_is_free(tmp_path, content):
    (tmp_path / LOCK).write_text(content)
    said = []
    with locked(tmp_path, said.append):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()
    assert said == []
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sparsity", "0.9"], "--sparsity: 0.9 differs from the run in run, which has 0.8; leave it out"),
        (["--pruning-epochs", "3"], "--pruning-epochs: 3 differs from the run in run, which has 14"),
        (["--recipe", "torch.toml"], "--dataset: 'digits' differs from the run in run, which has 'synthetic'"),
        (["--recipe", "digits"], "differs from the run in run"),
        (["--include", "fc1"], "--include: ['fc1'] differs from the run in run, which has []"),
        (["--checkpoint-every", "soon"], "checkpoint-every: 'soon'; give a number of steps such as 500"),
    ],
)
def test_options_that_disagree_with_the_run_are_refused_by_name(here, begun, arguments, message):
    before = {path.name: path.stat().st_mtime_ns for path in begun.iterdir()}
    code, out, err = finished(start(here, "--resume", "--out", "run", *arguments))
    assert (code, out, len(err)) == (2, [], 1)
    assert message in err[0]
    assert {path.name: path.stat().st_mtime_ns for path in begun.iterdir()} == before


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped in pruning."""
    here = tmp_path_factory.mktemp("stopped")
    (here / "numpy.toml").write_text(recipe("numpy"))
    process = start(here, *begin())
    wait_for(process, lambda: has_epochs(here, 5))
    process.send_signal(signal.SIGINT)
    assert finished(process)[0] == 130
    return here / "run"


@pytest.fixture
def begun(here, stopped):
    """A copy of it."""
    shutil.copytree(stopped, here / "run")
    return here / "run"


def test_the_same_command_with_resume_goes_on_and_a_finished_run_says_so(here, begun):
    assert finished(start(here, *begin(), "--resume"))[0] == 0
    report = json.loads((begun / "report.json").read_text())
    code, out, err = finished(start(here, "--resume", "--out", "run", "--json"))
    assert (code, err) == (0, ["hyperflux: run: this run is finished; there is nothing left to do"])
    assert json.loads(out[0]) == {**report, "folder": "run"}


def test_without_resume_the_user_is_told_of_it(here, begun):
    code, _, err = finished(start(here, *begin()))
    assert code == 2
    assert "run holds an unfinished run; go on with hyperflux prune --resume --out run; name another" in err[0]


def test_data_that_have_moved_are_named_with_resume_and_others_refused(here, monkeypatch):
    monkeypatch.delenv("HYPERFLUX_DATA", raising=False)
    write_mnist(here / "data")
    (here / "numpy.toml").write_text(recipe("numpy").replace("synthetic", "mnist").replace("16-24-4", "784-4-10"))
    process = start(here, *begin())
    wait_for(process, lambda: has_epochs(here, 5))
    process.send_signal(signal.SIGINT)
    assert finished(process)[0] == 130
    (here / "data").rename(here / "moved")
    code, _, err = finished(start(here, "--resume", "--out", "run"))
    assert (code, len(err)) == (2, 1)
    assert "is missing; give the folder that holds MNIST/raw by --data-dir" in err[0]
    code, _, err = finished(start(here, "--resume", "--out", "run", "--checkpoint", "w.safetensors"))
    assert (code, len(err)) == (2, 1)
    assert "--checkpoint: 'w.safetensors' differs from the run in run, which has ''" in err[0]
    assert finished(start(here, "--resume", "--out", "run", "--data-dir", "moved"))[::2] == (0, [])


def test_resume_needs_the_folder(here):
    code, _, err = finished(start(here, "--resume"))
    assert (code, err) == (2, ["hyperflux: --resume: also needs --out, the folder of the run to continue"])
    code, _, err = finished(start(here, "--resume", "--out", "nowhere"))
    assert (code, err) == (2, ["hyperflux: nowhere: holds no run; name the folder of one with --out"])
    assert not (here / "nowhere").exists()
