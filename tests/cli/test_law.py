"""`hyperflux law` as a person meets it: run in processes of its own, through the installed entry point."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import commands
import numpy as np
import pytest

HYPERFLUX = [sys.executable, "-c", "from hyperflux_cli.main import main; main()"]
RECIPE = """
backend = "numpy"
dataset = "synthetic"
model = "mlp:16-24-4"
batch_size = 128
[dense]
epochs = 2
[pruning]
presence_learning_rate = 4e-2
"""
POINTS = """gamma, left
0.125, 0.105
0.5, 0.0533
2, 0.0216
8, 0.0079
32, 0.0029
"""
SWEEP = ["--recipe", "quick.toml", "--lowest", "-5", "--highest", "1", "--step", "2", "--epochs", "60"]


@pytest.fixture
def here(tmp_path):
    """A working folder with a quick recipe and somebody's measurements in it."""
    (tmp_path / "quick.toml").write_text(RECIPE)
    (tmp_path / "points.csv").write_text(POINTS)
    return tmp_path


def start(here, *arguments):
    environment = {key: value for key, value in os.environ.items() if key != "HYPERFLUX_DATA"}
    return subprocess.Popen(
        [*HYPERFLUX, "law", *arguments],
        cwd=here,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a suite that was started in the background hands down that Ctrl-C is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def run(here, *arguments):
    return commands.run(here, "law", *arguments)


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_sweep_prints_what_its_folder_holds(here):
    done = run(here, *SWEEP, "--methods", "hyperflux,magnitude", "--sparsity", "0.7,0.9", "--out", "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert files_in(here / "out") == [
        "config.toml", "dense", "dense/config.toml", "dense/dense.safetensors", "dense/metrics.jsonl", "law.csv",
        "law.json", "law.png", "saliencies.csv", "saliencies.png",
    ]  # fmt: skip
    law = json.loads((here / "out" / "law.json").read_text())["law"]
    with (here / "out" / "law.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["pressure"]) for row in rows] == [2.0**-5, 2.0**-3, 0.5, 2.0]
    for row in rows:
        assert f"{float(row['density']):.3%}" in done.stdout
    assert f"{law['linear']['alpha0']:.4g} (" in done.stdout
    assert f"{law['quadratic']['alpha1']:.4g} (" in done.stdout
    for asked in law["pressures"]:
        assert f"{100 * asked['sparsity']:g} % sparsity: pressure {asked['pressure']:.3g} (95 %: " in done.stdout
    assert done.stdout.splitlines()[-1] == "tables and plots in out"
    assert "…" not in done.stdout


def test_json_of_a_sweep_is_its_law_json(here):
    done = run(here, *SWEEP, "--seed", "3", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    printed = json.loads(done.stdout)
    assert printed.pop("folder") == "runs/law-synthetic-mlp-16-24-4-3"
    assert printed == json.loads((here / "runs/law-synthetic-mlp-16-24-4-3/law.json").read_text())


def test_the_folders_own_config_repeats_the_sweep(here):
    assert run(here, *SWEEP, "--out", "out").returncode == 0
    again = run(here, *SWEEP[2:], "--recipe", "out/config.toml", "--out", "again")
    assert again.returncode == 0
    for name in ("law.csv", "law.json", "saliencies.csv", "config.toml"):
        assert (here / "again" / name).read_bytes() == (here / "out" / name).read_bytes()


def test_a_file_of_ones_own_is_fitted(here):
    done = run(here, "--from", "points.csv", "--x", "gamma", "--y", "left", "--sparsity", "0.98", "--out", "out")
    assert (done.returncode, done.stderr) == (0, "")
    slope, intercept = np.polyfit(np.log([0.125, 0.5, 2, 8, 32]), np.log([0.105, 0.0533, 0.0216, 0.0079, 0.0029]), 1)
    assert f"{-slope:.4g} (" in done.stdout
    assert f"{np.exp(intercept):.4g} (" in done.stdout
    assert "98 % sparsity: pressure 1.91 (95 %: " in done.stdout
    assert files_in(here / "out") == ["law.json", "law.png"]
    before = files_in(here)
    alone = run(here, "--from", "points.csv", "--x", "gamma", "--y", "left", "--json")
    assert json.loads(alone.stdout)["linear"]["alpha0"] == pytest.approx(-slope)
    assert files_in(here) == before


def test_what_a_kill_left_before_the_first_file_is_no_obstacle(here):
    fitted = ["--from", "points.csv", "--x", "gamma", "--y", "left"]
    for words, part in ((SWEEP, ".config.toml.part"), (fitted, ".law.png.part")):
        out = here / f"begun{part}"
        out.mkdir()
        (out / part).write_text("half")
        assert run(here, *words, "--out", str(out)).returncode == 0
        assert not (out / part).exists()


def test_interrupted_it_leaves_what_was_measured_so_far(here):
    process = start(
        here, "--recipe", "quick.toml", "--out", "out", "--lowest", "-5", "--highest", "0", "--step", "0.01"
    )
    for _ in range(600):
        if (here / "out" / "law.csv").exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(err.strip().splitlines()) == 1
    assert (here / "out" / "law.csv").read_text().startswith("pressure,density")
    assert "law.json" not in files_in(here / "out")


def test_a_sweep_that_determines_no_law_fails_and_keeps_its_rows(here):
    done = run(here, "--recipe", "quick.toml", "--lowest", "40", "--highest", "42", "--out", "out")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "this sweep determines no law (pressure: 0 different values; " in done.stderr
    assert {"law.csv", "law.json", "saliencies.csv"} <= set(files_in(here / "out"))
    assert json.loads((here / "out" / "law.json").read_text())["law"] is None
    assert "not fitted: pressure 1.1e+12, density 0: everything was pruned" in done.stdout


def test_the_options_defaults_are_those_of_the_settings():
    from hyperflux_cli.law import law

    from hyperflux.law.sweep import SweepSettings

    given = {parameter.name: parameter.default for parameter in law.params}
    settings = SweepSettings()
    assert {name: given[name] for name in ("lowest", "highest", "step", "epochs", "methods")} == {
        "lowest": settings.lowest,
        "highest": settings.highest,
        "step": settings.step,
        "epochs": settings.max_epochs,
        "methods": ",".join(settings.methods),
    }


def test_fitting_a_file_loads_no_torch(here):
    code = (
        "import sys; from hyperflux_cli.main import main\n"
        "main(['law', '--from', 'points.csv', '--x', 'gamma', '--y', 'left'], standalone_mode=False)\n"
        "print({'torch', 'sklearn', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def refused(here, *arguments):
    """The one line on standard error of a command that must refuse its input and leave nothing behind."""
    before = files_in(here)
    done = run(here, *arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("hyperflux: ")
    assert files_in(here) == before
    return done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lowest", "4", "--highest", "1"], "a law needs 3 or more"),
        (["--highest", "much"], "'much' is not a valid float"),
        (["--epochs", "3"], "epochs: 3 a pressure; give 20 or more"),
        (["--methods", "hyperflux,magntude"], "did you mean magnitude?"),
        (["--sparsity", "95"], "for 95 % give 0.95"),
        (["--sparsity", "a,b"], "'a,b': give values separated by commas"),
        (["--dataset", "digts"], "did you mean digits?"),
        (["--checkpoint", "nowhere.safetensors"], "nowhere.safetensors: no such file"),
        (["--recipe", "quick.toml", "--out", "."], "is not empty; name another folder with --out"),
        (["--recipe", "quick.toml", "--out", "quick.toml/x"], "quick.toml/x: cannot be used as a folder"),
        (["--from", "nowhere.csv"], "nowhere.csv: No such file or directory; --from takes a CSV file"),
        (["--from", "."], "Is a directory"),
        (["--from", "points.csv"], "has no column 'pressure', but gamma, left; see --x and --y"),
        (["--from", "points.csv", "--x", "gamma", "--y", "gamma"], "density: every value has to lie between 0 and 1"),
        (["--from", "points.csv", "--x", "left", "--y", "left", "--out", "."], "is not empty"),
        (["--pruning-epochs", "3"], "No such option"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(here, arguments, message):
    assert message in refused(here, *arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "bad.csv: is empty; its first line has to name the columns"),
        (b"pressure,density\n", "bad.csv: has no row below the names"),
        (b"pressure,density\n1,0.5\n2,many\n", "bad.csv: line 3, column density: 'many' is not a number"),
        (b"pressure,density\n1,0.5\n2\n", "bad.csv: line 3, column density: '' is not a number"),
        (b"pressure,density\n1,0.5\n2,0.2\n", "pressure: 2 different values; degree 2 needs 3 or more"),
        (b"pressure,density\n1,0.5\n2,0.5\n3,0.5\n", "density: no spread, every value is 0.5"),
        (b"pressure,density\n1,0.5\n2,0.2\n3,20\n", "density: every value has to lie between 0 and 1"),
        (b"pressure,density\n1,\xff\n", "bad.csv: not a readable CSV file"),
    ],
)
def test_a_bad_file_is_refused(here, content, message):
    (here / "bad.csv").write_bytes(content)
    assert message in refused(here, "--from", "bad.csv")


def test_a_file_from_a_spreadsheet_is_read(here):
    """A byte order mark, Windows line ends, other columns, an empty row."""
    lines = ["note,pressure,density", "a,1,0.2", ",,", "b,2,0.1", '"c,d",4,0.06']
    (here / "sheet.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    done = run(here, "--from", "sheet.csv", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["quadratic"]["freedom"] == 0
