"""Comparisons: fair (one dense network a seed), resumable, and their table and plot say what the runs did."""

import csv
import json
import shutil
import tomllib
from dataclasses import replace

import pytest
from file_layer import content

from hyperflux import InputError, RunConfig
from hyperflux.report import comparison
from hyperflux.runs.compare import Comparison, Plan, execute_plan
from hyperflux.runs.folder import read_run
from hyperflux.runs.schema import BEFORE_GATES

BASE = RunConfig.from_dict(
    {
        "backend": "numpy",
        "dataset": "synthetic",
        "model": "mlp:16-24-4",
        "dense": {"epochs": 2},
        "pruning": {"epochs": 4, "presence_learning_rate": 1e-2},
        "regrowth": {"epochs": 2},
    }
)


def plan(folder, **changed):
    settings = {"methods": ("hyperflux", "published", "magnitude"), "shares": (0.5, 0.8), "seeds": (0, 1)}
    return Plan(BASE, folder=folder, **{**settings, **changed})


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder, said = tmp_path_factory.mktemp("comparison"), []
    return folder, execute_plan(plan(folder), said.append), said


def test_every_method_starts_from_the_dense_network_of_its_seed(done):
    folder, rows, said = done
    assert said[:2] == ["dense network, seed 0", "dense network, seed 1"]
    assert len(said) == 2 + 12
    for seed in (0, 1):
        dense = (folder / f"dense-{seed}" / "dense.safetensors").read_bytes()
        for method in ("hyperflux", "published", "magnitude"):
            run = folder / f"{method}-0.8-{seed}"
            assert (run / "dense.safetensors").read_bytes() == dense
            outcome = read_run(run).outcome
            assert (outcome.method, outcome.seed) == ("magnitude" if method == "magnitude" else "hyperflux", seed)
    assert [(row.method, row.share) for row in rows] == [
        (method, sparsity) for sparsity in (0.5, 0.8) for method in ("hyperflux", "published", "magnitude")
    ]


def test_a_row_is_the_mean_of_its_runs(done):
    folder, rows, _ = done
    row = next(row for row in rows if (row.method, row.share) == ("magnitude", 0.8))
    first, second = (read_run(folder / f"magnitude-0.8-{seed}").outcome.final_accuracy for seed in (0, 1))
    assert row.accuracy == pytest.approx((first + second) / 2)
    assert row.spread == pytest.approx(abs(first - second) / 2**0.5)
    assert (row.density, row.seeds) == (pytest.approx(96 / 480), 2)


def test_what_is_there_is_not_repeated_and_what_is_unfinished_is_begun_anew(done):
    folder, rows, _ = done
    (folder / "magnitude-0.5-1" / "report.json").unlink()
    kept = (folder / "magnitude-0.5-0" / "report.json").stat().st_mtime_ns
    said = []
    again = execute_plan(plan(folder), said.append)
    assert said == ["run 9 of 12: magnitude-0.5-1"]
    assert (folder / "magnitude-0.5-0" / "report.json").stat().st_mtime_ns == kept
    assert [(row.accuracy, row.density) for row in again] == [(row.accuracy, row.density) for row in rows]


def one_unfinished(folder, copy):
    """A copy of one run of a comparison, not finished, with its dense network; and the plan of that run."""
    for name in ("dense-1", "magnitude-0.5-1"):
        shutil.copytree(folder / name, copy / name)
    (copy / "magnitude-0.5-1" / "report.json").unlink()
    return copy, plan(copy, methods=("magnitude",), shares=(0.5,), seeds=(1,))


@pytest.mark.parametrize("name", ["note.txt", "report.html", "checkpoint/note.part", "checkpoint", "telemetry.npz"])
def test_what_a_user_keeps_in_an_unfinished_run_is_named_and_nothing_is_removed(done, tmp_path, name):
    folder, one = one_unfinished(done[0], tmp_path / "runs")
    run = folder / "magnitude-0.5-1"
    kept = run / name
    match name:
        case "checkpoint":
            kept.symlink_to(tmp_path)
        case "telemetry.npz":
            kept.unlink()
            kept.mkdir()
        case _:
            kept.parent.mkdir(exist_ok=True)
            kept.write_text("mine")
    before = content(folder)
    with pytest.raises(InputError, match=f"{name}: is .*(another folder|folder itself)"):
        execute_plan(one, print)
    assert content(folder) == before
    kept.rmdir() if name == "telemetry.npz" else kept.unlink()
    said = []
    execute_plan(one, said.append)
    assert said == ["run 1 of 1: magnitude-0.5-1"]


def test_a_comparison_that_has_moved_goes_on(done, tmp_path):
    """Its runs name the dense weights where they were."""
    folder, one = one_unfinished(done[0], tmp_path / "moved")
    (row,) = execute_plan(one, lambda line: None)
    assert row.density == 0.5
    assert tomllib.loads((folder / "magnitude-0.5-1" / "config.toml").read_text())["checkpoint"].startswith(str(folder))


def test_a_folder_of_other_settings_is_refused_and_left_alone(done):
    folder, *_ = done
    before = (folder / "hyperflux-0.5-0" / "config.toml").read_bytes()
    other = Plan(RunConfig.from_dict({**BASE.to_dict(), "batch_size": 16}), ("hyperflux",), (0.5,), (0,), folder)
    with pytest.raises(
        InputError, match=r"hyperflux-0\.5-0: holds a run of other settings; name another folder with --out"
    ):
        execute_plan(other, print)
    assert (folder / "hyperflux-0.5-0" / "config.toml").read_bytes() == before


def test_the_same_folder_under_another_name_goes_on(done, monkeypatch):
    folder, rows, _ = done
    monkeypatch.chdir(folder.parent)
    said = []
    again = execute_plan(plan(folder.relative_to(folder.parent)), said.append)
    # the test above has repeated a run, which took another time
    assert [replace(row, seconds=0.0) for row in again] == [replace(row, seconds=0.0) for row in rows]
    assert said == []


def test_another_checkpoint_of_the_same_name_is_another_run(done, tmp_path):
    folder, *_ = done
    for number in (0, 1):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "w.safetensors").write_bytes((folder / "dense-0" / "dense.safetensors").read_bytes())
    first, second = (
        Plan(
            RunConfig.from_dict({**BASE.to_dict(), "checkpoint": str(tmp_path / str(number) / "w.safetensors")}),
            ("hyperflux",), (0.5,), (0,), tmp_path / "out",
        )
        for number in (0, 1)
    )  # fmt: skip
    execute_plan(first, lambda text: None)
    with pytest.raises(InputError, match="holds a run of other settings"):
        execute_plan(second, lambda text: None)


def test_a_plan_that_one_method_cannot_follow_is_refused_before_any_run(tmp_path):
    base = RunConfig.from_dict({**BASE.to_dict(), "pruning": {"epochs": 1}})
    with pytest.raises(InputError, match="too few for presence parameters"):
        execute_plan(Plan(base, ("hyperflux", "published"), (0.5,), (0,), tmp_path / "out"), print)
    assert not (tmp_path / "out").exists()


def test_a_damaged_report_is_found_before_any_run(done):
    folder, *_ = done
    report = folder / "hyperflux-0.8-1" / "report.json"
    whole = report.read_bytes()
    report.write_text("{}")
    with pytest.raises(InputError, match=r"report\.json is damaged"):
        execute_plan(plan(folder), print)
    report.write_bytes(whole)


def test_from_scratch_there_is_no_dense_network(tmp_path):
    base = RunConfig.from_dict({**BASE.to_dict(), "dense": {"epochs": 0}})
    (row,) = execute_plan(Plan(base, ("hyperflux",), (0.5,), (0,), tmp_path), lambda text: None)
    assert row.dense_accuracy is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hyperflux-0.5-0"]
    assert "none" in comparison.markdown([row])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"methods": ("hyperflx",)}, "did you mean hyperflux"),
        ({"methods": ()}, "methods: none"),
        ({"shares": (0.5, 0.5)}, r"sparsities: 0\.5, 0\.5; give one or more, each once"),
        ({"shares": (95.0,)}, "for 95 % give 0.95"),
        ({"seeds": (-1,)}, "seed: -1"),
    ],
)
def test_wrong_plans_are_refused_before_anything_runs(tmp_path, changed, message):
    with pytest.raises(InputError, match=message):
        plan(tmp_path / "new", **changed)
    assert not (tmp_path / "new").exists()


def test_gates_of_channels_are_compared_by_flops(tmp_path):
    base = RunConfig.from_dict({**BASE.to_dict(), "sparsity": None, "gates": "channels", "model": "mlp:16-24-12-4"})
    both = Plan(base, ("hyperflux", "taylor"), (0.6, 0.3), (0, 1), tmp_path, "flops")
    rows = execute_plan(both, lambda line: None)
    assert [(row.method, row.budget, row.share) for row in rows] == [
        (method, "flops", share) for share in (0.6, 0.3) for method in ("hyperflux", "taylor")
    ]
    outcomes = [read_run(tmp_path / f"taylor-flops0.3-{seed}").outcome for seed in (0, 1)]
    assert [outcome.method for outcome in outcomes] == ["taylor", "taylor"]
    last = rows[-1]
    assert last.flops_ratio == pytest.approx(sum(outcome.flops_ratio for outcome in outcomes) / 2)
    assert last.compact_parameters == sum(outcome.compact_parameters for outcome in outcomes) / 2
    assert last.reached == last.flops_ratio <= 0.3
    comparison.write(rows, tmp_path, "a title")
    heading, _, *lines = (tmp_path / "comparison.md").read_text().splitlines()
    assert heading.startswith("| FLOPs asked for | method | density | FLOPs | parameters |")
    assert lines[-1].startswith(f"| 30.00% | taylor | {last.density:.3%} | {last.flops_ratio:.2%} | ")
    with (tmp_path / "comparison.csv").open() as file:
        assert [float(row["parameters_ratio"]) for row in csv.DictReader(file)] == [
            row.parameters_ratio for row in rows
        ]


def test_a_budget_that_no_network_can_meet_is_refused_before_any_run(tmp_path):
    base = RunConfig.from_dict({**BASE.to_dict(), "sparsity": None, "gates": "channels"})
    with pytest.raises(InputError, match=r"parameters: 0\.001 leaves"):
        execute_plan(Plan(base, ("hyperflux",), (0.5, 0.001), (0,), tmp_path / "out", "parameters"), print)
    assert not (tmp_path / "out").exists()


def test_a_pattern_is_compared_without_a_budget(tmp_path):
    base = RunConfig.from_dict({**BASE.to_dict(), "sparsity": None, "gates": "2:4"})
    (row,) = execute_plan(Plan(base, ("hyperflux",), (0.5,), (0,), tmp_path), lambda line: None)
    assert (row.density, (tmp_path / "hyperflux-2of4-0").is_dir()) == (0.5, True)


def test_a_comparison_from_before_gates_could_hold_channels_goes_on(done, tmp_path):
    folder = tmp_path / "old"
    shutil.copytree(done[0], folder)
    for config in folder.glob("*/config.toml"):
        lines = config.read_text().splitlines(keepends=True)
        config.write_text("".join(line for line in lines if not line.startswith("gate")))
    for report in folder.glob("*/report.json"):
        values = json.loads(report.read_text())
        kept = {name: value for name, value in values.items() if name not in BEFORE_GATES}
        report.write_text(json.dumps({**kept, "format": 1}))
    said = []
    rows = execute_plan(plan(folder), said.append)
    assert [(row.accuracy, row.density) for row in rows] == [(row.accuracy, row.density) for row in done[1]]
    assert said == []


def test_a_table_from_before_there_were_other_budgets_is_replaced(done, tmp_path):
    _, rows, _ = done
    old = [{name: 0.5 for name in comparison.BEFORE_GATES} | {"method": "hyperflux"}]
    (tmp_path / "comparison.json").write_text(json.dumps(old))
    comparison.require_own(tmp_path)
    comparison.write(rows, tmp_path, "a title")
    assert len(json.loads((tmp_path / "comparison.json").read_text())) == len(rows)


def test_files_of_a_comparison(done, tmp_path):
    _, rows, _ = done
    comparison.require_own(tmp_path)
    comparison.write(rows, tmp_path, "a title")
    comparison.require_own(tmp_path)
    assert [Comparison(**row) for row in json.loads((tmp_path / "comparison.json").read_text())] == rows
    with (tmp_path / "comparison.csv").open() as file:
        assert [row["method"] for row in csv.DictReader(file)] == [row.method for row in rows]
    lines = (tmp_path / "comparison.md").read_text().splitlines()
    assert len(lines) == 2 + len(rows)
    assert lines[2].startswith("| 50.00% | hyperflux | 50.000% | ")
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", comparison.NAMES)
@pytest.mark.parametrize("text", ["my notes", "[1]", '[{"method": 1}]', "[" * 100_000])
def test_a_file_of_that_name_that_it_has_not_written_is_not_replaced(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"{name}: would be replaced, and was not written by hyperflux compare"):
        comparison.require_own(tmp_path)


def test_the_plot_draws_each_method_at_the_density_it_reached(done, monkeypatch):
    _, rows, _ = done
    drawn = []
    monkeypatch.setattr(comparison, "png", lambda figure: drawn.append(figure) or b"")
    comparison.plot(rows, "a title")
    (axes,) = drawn[0].axes
    lines = {container.get_label(): container.lines[0] for container in axes.containers}
    assert list(lines) == ["hyperflux", "published", "magnitude"]
    expected = sorted(100 * row.density for row in rows if row.method == "published")
    assert lines["published"].get_xdata().tolist() == pytest.approx(expected)
    assert axes.get_xlabel() == "density (% of the weights left)"
