"""The command line as a person meets it: run in processes of its own."""

import json
import tomllib

import pytest
import torch
from commands import run
from idx_files import write_mnist
from safetensors.torch import load_file

from hyperflux import recipes
from hyperflux.backends.torch.kernels.blocks import CPU_BLOCK

QUICK_RECIPE = """
dataset = "synthetic"
model = "mlp:16-24-4"
sparsity = 0.8
[dense]
epochs = 2
[pruning]
epochs = 10
presence_learning_rate = 1e-2
[regrowth]
epochs = 3
"""


@pytest.fixture
def here(tmp_path):
    """A working folder with a quick recipe in it."""
    (tmp_path / "quick.toml").write_text(QUICK_RECIPE)
    return tmp_path


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_prune_prints_epochs_and_an_outcome_that_agrees_with_its_report(here):
    done = run(here, "prune", "--recipe", "quick.toml", "--out", "out")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads((here / "out" / "report.json").read_text())
    lines = done.stdout.splitlines()
    assert sum(line.startswith("epoch") for line in lines) == 15
    assert "target" in lines[5]
    assert "pressure" in lines[5]
    assert f"{report['surviving_weights']:,} of 480 (density " in done.stdout
    assert f"pruned accuracy  {report['final_accuracy']:.4f}" in done.stdout
    assert "asked for 0.8" in done.stdout
    assert "fc2.weight" in done.stdout
    assert lines[-1] == "files in out"


def test_json_is_the_report_and_nothing_else(here):
    done = run(here, "prune", "--recipe", "quick.toml", "--seed", "5", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    printed = json.loads(done.stdout)
    assert printed.pop("folder") == "runs/synthetic-mlp-16-24-4-0.8-5"
    assert printed == json.loads((here / "runs/synthetic-mlp-16-24-4-0.8-5/report.json").read_text())
    assert printed["seed"] == 5


def test_options_override_the_recipe(here):
    options = {
        "--backend": "numpy",
        "--dataset": "synthetic",
        "--model": "mlp:16-8-4",
        "--sparsity": "0.7",
        "--batch-size": "64",
        "--seed": "2",
        "--dense-epochs": "1",
        "--pruning-epochs": "9",
        "--regrowth-epochs": "1",
    }
    pairs = [word for pair in options.items() for word in pair]
    assert run(here, "prune", "--recipe", "quick.toml", "--out", "out", *pairs).returncode == 0
    config = tomllib.loads((here / "out" / "config.toml").read_text())
    assert (config["model"], config["sparsity"], config["batch_size"], config["seed"]) == ("mlp:16-8-4", 0.7, 64, 2)
    assert [config[stage]["epochs"] for stage in ("dense", "pruning", "regrowth")] == [1, 9, 1]
    assert config["pruning"]["presence_learning_rate"] == 1e-2  # the recipe's, where no option speaks


def test_compare_prints_one_table_and_goes_on_where_it_was(here):
    arguments = ["compare", "--recipe", "quick.toml", "--backend", "numpy", "--sparsities", "0.5, 0.8", "--seeds", "3"]
    arguments += ["--methods", "hyperflux,published,magnitude", "--out", "out"]
    done = run(here, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[:3] for line in lines if line[:1] == ["20.00%"]] == [
        ["20.00%", "hyperflux", "20.000%"],
        ["20.00%", "published", next(line[2] for line in lines if line[:2] == ["20.00%", "published"])],
        ["20.00%", "magnitude", "20.000%"],
    ]
    assert {"comparison.md", "comparison.csv", "comparison.json", "comparison.png"} <= set(files_in(here / "out"))
    again = run(here, *arguments, "--json")
    assert (again.returncode, again.stderr) == (0, "")
    assert json.loads(again.stdout) == json.loads((here / "out" / "comparison.json").read_text())


def test_bench_step_measures_its_variants_side_by_side(here):
    arguments = ("bench", "step", "--model", "mlp:784-8-10", "--batch-size", "4", "--rotations", "3")
    done = run(here, *arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    rows = found["times"]
    assert [row["variant"] for row in rows] == [
        "dense",
        "gate",
        "gate and default course",
        "default course, light telemetry",
    ]
    assert rows[0]["ratio"] == 1
    assert all(0 < row["lowest_ratio"] <= row["ratio"] <= row["highest_ratio"] for row in rows)
    dense, gate, course, watched = (row["held_bytes"] for row in found["memory"])
    weights, block = 784 * 8 + 8 * 10, 4 * CPU_BLOCK
    assert dense == 2 * 4 * (weights + 18)  # the network and SGD's momentum
    assert gate == course == dense + 16 * weights + block
    padded = -(-weights // 64) * 64
    assert watched == course + 6 * weights + padded + padded // 8
    update = found["update"]
    assert (update["kernel"], update["weights"], update["needed_bytes"]) == ("fused", weights, 48 * weights)
    assert 48 <= update["moved_bytes"] / weights < 70
    assert "agrees with the plain one; 6,352 weights; it moves 68 bytes a weight, any must move 48" in " ".join(
        run(here, *arguments).stdout.split()
    )


def test_from_scratch_says_that_there_was_no_dense_network(here):
    done = run(here, "prune", "--recipe", "quick.toml", "--backend", "numpy", "--dense-epochs", "0", "--out", "out")
    assert done.returncode == 0
    assert "dense accuracy   none: pruned from scratch" in done.stdout
    assert json.loads((here / "out" / "report.json").read_text())["dense_accuracy"] is None


def test_recipes_lists_each_with_what_it_is_for_and_shows_one(here):
    listed = run(here, "recipes").stdout.splitlines()
    assert [line.split()[0] for line in listed] == recipes.names()
    assert any(line.startswith("lenet300-mnist ") and "the paper's epochs" in line for line in listed)
    shown = run(here, "recipes", "lenet300-mnist").stdout
    assert shown == recipes.text("lenet300-mnist")


def test_help_and_version(here):
    assert "prune" in run(here).stdout
    assert run(here).returncode == 0
    assert "--sparsity FLOAT" in run(here, "prune", "--help").stdout
    assert run(here, "--version").stdout.startswith("hyperflux, version ")


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
        (["--dataset", "digts"], "data set 'digts' is not known; did you mean digits?"),
        (["--model", "lenet30"], "model 'lenet30' is not known; did you mean lenet300"),
        (["--model", "mlp:784-10"], "use mlp:64-10 or lenet300"),
        (["--recipe", "lenet300-mnst"], "did you mean lenet300-mnist or lenet300-mnist-short?"),
        (["--recipe", "no-such.toml"], "no-such.toml: No such file"),
        (["--backend", "nmpy"], "did you mean numpy?"),
        (["--sparsity", "0"], "sparsity: 0.0 is not a fraction"),
        (["--sparsity", "1"], "sparsity: 1.0 is not a fraction"),
        (["--sparsity", "-0.5"], "sparsity: -0.5 is not a fraction"),
        (["--sparsity", "95"], "for 95 % give 0.95"),
        (["--sparsity", "nan"], "sparsity: nan is not a fraction"),
        (["--sparsity", "0.999999999"], "leaves none of the 50,200 weights of lenet300; give a fraction from 2e-05"),
        (["--sparsity", "1e-9"], "leaves all of the 50,200 weights"),
        (["--sparsity", "much"], "'much' is not a valid float"),
        (["--pruning-epochs", "0"], "pruning.epochs: 0 is too few; give --pruning-epochs 1 or more"),
        (["--controller", "published", "--pruning-epochs", "3"], "give --pruning-epochs 11"),
        (["--controller", "pid"], "controller 'pid' is not known; did you mean published?"),
        (["--method", "magntude"], "method 'magntude' is not known; did you mean magnitude?"),
        (["--pruning-epochs", "99999999999"], "is too many; give --pruning-epochs 100000 or fewer"),
        (["--dense-epochs", "-1"], "dense.epochs: -1 is too few; give --dense-epochs 0 or more"),
        (["--model", "mlp:64-9999999999-10"], "739,999,999,926 weights; an MLP has at most 100,000,000"),
        (["--recipe", ""], "recipe '' is not known"),
        (["--model", "resnet20", "--dataset", "synthetic"], "model resnet20: needs images"),
        (["--model", "timm:resnet500"], "timm model 'resnet500' is not known; did you mean resnet"),
        (["--device", "tpu"], "device 'tpu' is not known"),
        (["--amp", "int8"], "amp 'int8' is not known; known: off, bfloat16, float16"),
        (["--exclude", "fc9"], "exclude: parameter 'fc9' is not known"),
        (["--exclude", "*"], "model MLP: no prunable weight (excluded, not of a prunable kind)"),
        (["--dataset", "cifar10", "--data-dir", "nowhere"], "cifar-10-batches-py/ is missing or damaged"),
        (["--dataset", "imagefolder", "--data-dir", "nowhere"], "images under nowhere: needs the folders train/"),
        (["--regrowth-epochs", "-1"], "regrowth.epochs: -1 is too few"),
        (["--batch-size", "0"], "batch_size: 0 is out of range"),
        (["--seed", "-1"], "seed: -1 is out of range"),
        (["--dataset", "mnist", "--data-dir", "nowhere"], "train-images-idx3-ubyte.gz) is missing"),
        (["--checkpoint", "nowhere.safetensors"], "weights file nowhere.safetensors: no such file"),
        (["--checkpoint", "quick.toml"], "weights file quick.toml: not a readable safetensors file"),
        (["--out", "quick.toml/below"], "quick.toml/below: cannot be used as a run's folder"),
        (["--out", "/proc/run"], "/proc/run: cannot be used as a run's folder"),
        (["--out", "."], "is not empty; name another folder with --out"),
        (["--no-such-option"], "No such option"),
        (["surprise"], "unexpected extra argument"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(here, arguments, message):
    assert message in refused(here, "prune", *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "--methods", "hyperflux,magntude"], "method 'magntude' is not known; did you mean magnitude?"),
        (["compare", "--sparsities", "0.9,much"], "'0.9,much': give values separated by commas"),
        (["compare", "--sparsities", "90"], "for 90 % give 0.9"),
        (["compare", "--flops", "0.5"], "flops: is a budget for gates of channels"),
        (["compare", "--gates", "channels", "--flops", "25"], "for 25 % give 0.25"),
        (["compare", "--gates", "channels", "--flops", "0.5", "--parameters", "0.5"], "--flops and --parameters: only"),
        (["compare", "--gates", "2:4", "--sparsities", "0.5"], "--sparsities: gates 2:4 leave 2:4 of the weights"),
        (["compare", "--gates", "channels", "--flops", "0.5,0.5"], "flops: 0.5, 0.5; give one or more, each once"),
        (["compare", "--gates", "channels", "--methods", "published"], "controller published: prunes single weights"),
        (["compare", "--seeds", ""], "seeds: none; give one or more"),
        (["bench", "step", "--model", "resnet21"], "did you mean resnet20"),
        (["bench", "step", "--rotations", "0"], "rotations: 0 is too few"),
    ],
)
def test_bad_input_to_other_commands_gets_one_line_too(here, arguments, message):
    assert message in refused(here, *arguments)


def test_an_unknown_command_or_recipe_is_refused(here):
    assert "No such command 'prun'" in refused(here, "prun")
    assert "did you mean digits?" in refused(here, "recipes", "digit")


def test_a_truncated_idx_file_is_refused(here):
    raw = write_mnist(here / "data", zipped=True)
    whole = (raw / "t10k-images-idx3-ubyte.gz").read_bytes()
    (raw / "t10k-images-idx3-ubyte.gz").write_bytes(whole[: len(whole) // 2])
    message = refused(here, "prune", "--dataset", "mnist", "--data-dir", "data")
    assert "t10k-images-idx3-ubyte.gz: cannot be read" in message


def test_a_folder_that_holds_another_run_is_refused_and_kept(here):
    assert run(here, "prune", "--recipe", "quick.toml", "--out", "out").returncode == 0
    kept = (here / "out" / "report.json").read_bytes()
    assert "out holds another run" in refused(here, "prune", "--recipe", "quick.toml", "--seed", "1", "--out", "out")
    assert (here / "out" / "report.json").read_bytes() == kept


def test_a_checkpoint_of_another_model_is_refused(here):
    assert run(here, "prune", "--recipe", "quick.toml", "--out", "out").returncode == 0
    message = refused(here, "prune", "--checkpoint", "out/model.safetensors")
    assert "weights file out/model.safetensors: the tensors are not those of lenet300; missing: " in message


def test_a_checkpoint_of_a_training_script_is_found_and_named(here):
    assert run(here, "prune", "--recipe", "quick.toml", "--out", "out").returncode == 0
    weights = {f"model.net.{name}": tensor for name, tensor in load_file(here / "out" / "dense.safetensors").items()}
    torch.save({"epoch": 3, "state_dict": weights}, here / "last.ckpt")
    for file in ("out/dense.safetensors", "last.ckpt"):
        done = run(
            here, "prune", "--recipe", "quick.toml", "--checkpoint", file, "--out", file.partition(".")[0] + "-run"
        )
        assert done.returncode == 0
    assert done.stderr == (
        "hyperflux: weights file last.ckpt: the weights are those under ['state_dict'] with the prefix model.net.\n"
    )
    one, other = (here / name / "model.safetensors" for name in ("out/dense-run", "last-run"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sparsity = ", "not valid TOML"),
        ("sparsty = 0.5", "did you mean sparsity?"),
        ("[pruning]\nepochs = 1.5", "pruning.epochs: 1.5 is not int"),
        ("pruning = 3", "pruning: 3 is not a table"),
    ],
)
def test_a_bad_recipe_file_is_refused(here, text, message):
    (here / "bad.toml").write_text(text)
    assert message in refused(here, "prune", "--recipe", "bad.toml", "--regrowth-epochs", "1")


def test_a_bad_recipe_is_refused_even_where_an_option_touches_the_same_table(here):
    (here / "bad.toml").write_text("pruning = 3")
    assert "pruning: 3 is not a table" in refused(here, "prune", "--recipe", "bad.toml", "--pruning-epochs", "20")


def test_a_run_that_fails_exits_with_1_and_one_line(here):
    text = QUICK_RECIPE.replace("[dense]", '[optimizer]\nname = "sgd"\n[dense]\nlearning_rate = 1e30')
    (here / "diverges.toml").write_text(text)
    done = run(here, "prune", "--recipe", "diverges.toml", "--out", "out", "--json")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert "lower dense.learning_rate" in done.stderr
