"""`hyperflux report` as a person meets it."""

import json
import shutil

import commands
import pytest

from hyperflux import RunConfig
from hyperflux.runs.driver import execute


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    settings = {"backend": "numpy", "dataset": "synthetic", "model": "mlp:16-24-4", "sparsity": 0.8}
    stages = {"dense": {"epochs": 1}, "pruning": {"epochs": 4}, "regrowth": {"epochs": 2}}
    for name, changed in (("one", {}), ("two", {"method": "magnitude"})):
        execute(RunConfig.from_dict({**settings, **stages, **changed}), folder / name)
    return folder


@pytest.fixture
def here(finished, tmp_path):
    """A working folder with two finished runs in `runs`."""
    shutil.copytree(finished, tmp_path / "runs")
    return tmp_path


def run(here, *arguments):
    return commands.run(here, "report", *arguments)


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_one_run_gets_its_report_in_its_own_folder_and_its_narrative_on_the_screen(here):
    done = run(here, "runs/one")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "Size: 96 of 480 weights are left, a density of 20 %: exactly the target."
    assert lines[-1] == "page in runs/one/report.html"
    assert any(line.startswith("The mask: ") for line in lines)
    page = (here / "runs/one/report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "hyperflux prune --recipe runs/one/config.toml --out runs/one-again" in page
    assert (here / "runs/one/report.md").read_text(encoding="utf-8").startswith("# mlp:16-24-4 on synthetic\n")
    assert not list((here / "runs/one").glob(".*"))


def test_several_runs_get_theirs_in_the_folder_that_holds_them_or_in_out(here):
    done = run(here, "runs/one", "runs/two")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["Hyperflux", "magnitude pruning", "page in runs/report.html"]
    assert run(here, "runs/one", "runs/two", "--out", "new/folder").stdout.endswith("page in new/folder/report.html\n")
    assert {"report.html", "report.md"} <= set(files_in(here / "new/folder"))
    assert "report.html" not in files_in(here / "runs/one")


def test_a_report_is_written_again_over_the_old_one(here):
    for _ in range(2):
        assert run(here, "runs/one").returncode == 0
    (here / "runs/two/report.md").write_text("old")
    assert run(here, "runs/two").returncode == 0
    assert (here / "runs/two/report.md").read_text(encoding="utf-8") != "old"


def damage(here, how):
    report = here / "runs/one/report.json"
    values = json.loads(report.read_text())
    match how:
        case "unfinished":
            report.unlink()
        case "torn":
            report.write_text(report.read_text()[:40])
        case "a number as text":
            report.write_text(json.dumps({**values, "final_accuracy": "high"}))
        case "layers of another kind":
            report.write_text(json.dumps({**values, "layers": [{"name": "fc1"}]}))
        case "no layers":
            report.write_text(json.dumps({**values, "layers": []}))
        case "no settings":
            (here / "runs/one/config.toml").unlink()
        case "torn telemetry":
            (here / "runs/one/telemetry.npz").write_bytes(b"PK")
        case "an epoch of another kind":
            (here / "runs/one/metrics.jsonl").write_text('{"epoch": "first"}\n')


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("unfinished", "runs/one is not the folder of a finished run"),
        ("torn", "metrics.jsonl or report.json is damaged"),
        ("a number as text", "final_accuracy: 'high' is not float"),
        ("layers of another kind", "not a LayerCount: surviving, total"),
        ("no layers", "layers: none, or one without weights"),
        ("no settings", "runs/one/config.toml: No such file"),
        ("torn telemetry", "telemetry.npz: damaged or of another version"),
        ("an epoch of another kind", "metrics.jsonl or report.json is damaged (not a EpochRow"),
    ],
)
def test_a_run_that_is_unfinished_or_damaged_gets_one_line(here, how, message):
    damage(here, how)
    assert message in refused(here, "runs/one")


def refused(here, *arguments):
    """The one line on standard error of a command that must refuse and leave nothing behind."""
    before = files_in(here)
    done = run(here, *arguments)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    assert done.stderr.startswith("hyperflux: ")
    assert files_in(here) == before
    return done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'RUN [RUN ...]'"),
        (["nowhere"], "nowhere is not the folder of a finished run"),
        (["runs"], "runs is not the folder of a finished run"),
        (["runs/one", "runs/../runs/one"], "one: given twice; name each run once"),
        (
            ["runs/one", "--out", "runs/one/config.toml"],
            "runs/one/config.toml: cannot be written to (File exists); name",
        ),
        (["runs/one", "--out", "/proc/report"], "name a folder with --out"),
    ],
)
def test_wrong_use_gets_one_line(here, arguments, message):
    assert message in refused(here, *arguments)


def test_a_page_that_is_a_folder_is_refused(here):
    (here / "runs/one/report.html").mkdir()
    assert "runs/one/report.html: cannot be written (Is a directory); name a folder with --out" in refused(
        here, "runs/one"
    )
