"""`scripts/depgraph.py`, which prunes a run's dense network with Torch-Pruning; most of it needs that package."""

import copy
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from finished_runs import finished_run

from hyperflux import RunConfig
from hyperflux.backends.torch.data import load_data
from hyperflux.backends.torch.flops import count_cost
from hyperflux.backends.torch.models import build_model
from hyperflux.backends.torch.training import Precision, tally
from hyperflux.runs.driver import execute
from hyperflux.runs.folder import read_run

SCRIPT = Path(__file__).parents[1] / "scripts" / "depgraph.py"
MODEL = "mlp:64-24-16-10"
EPOCHS = {"dense": {"epochs": 2}, "pruning": {"epochs": 3}, "regrowth": {"epochs": 1}}


@pytest.fixture(scope="module")
def depgraph():
    spec = importlib.util.spec_from_file_location("depgraph", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["depgraph"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    yield module
    del sys.modules["depgraph"]


@pytest.fixture
def package():
    return pytest.importorskip("torch_pruning")


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("depgraph") / "run"
    execute(RunConfig.from_dict({"model": MODEL, "sparsity": 0.8, **EPOCHS}), folder)
    return folder


def test_a_missing_package_is_one_line(depgraph, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    assert depgraph.main(["run", "--flops", "0.5"]) == 2
    assert capsys.readouterr() == ("", "depgraph: torch-pruning is not installed; pip install torch-pruning\n")


@pytest.mark.parametrize(
    ("options", "unit"),
    [
        (["--flops", "0.3", "--importance", "taylor"], "flops"),
        (["--parameters", "0.3"], "parameters"),
        (["--sparsity", "0.7", "--rounds", "3"], "weights"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_run_pruned_by_torch_pruning(depgraph, package, digits_run, tmp_path, capsys, options, unit):
    out = tmp_path / "rival.json"
    assert depgraph.main([str(digits_run), *options, "--out", str(out), "--save"]) == 0
    printed = capsys.readouterr()
    assert depgraph.INPUTS_STAY in printed.err
    assert out.read_text() == printed.out
    result = json.loads(printed.out)

    most, first, second = 0.3 * result["dense"][unit], result["widths"]["fc1"], result["widths"]["fc2"]
    dearest = {"weights": 64 + second, "parameters": 65 + second, "flops": 2 * (64 + second)}[unit]
    assert most - dearest < result[unit] <= most
    assert result["weights"] == 64 * first + first * second + second * 10
    assert result["widths"]["fc3"] == 10

    model = torch.load(tmp_path / "rival.json.pt", weights_only=False)
    cost = count_cost(model, torch.zeros(1, 64))
    assert (cost.parameters, cost.dense_flops) == (result["parameters"], result["flops"])
    data = load_data(read_run(digits_run).config, torch.device("cpu"))
    tested = tally(model, data.test_batches(), Precision("off", torch.device("cpu")))
    assert tested.correct / tested.samples == result["accuracy"] > 0.2


def test_the_same_command_gives_the_same_network(depgraph, package, digits_run, tmp_path):
    for name in ("a", "b"):
        assert depgraph.main([str(digits_run), "--sparsity", "0.7", "--out", str(tmp_path / name), "--save"]) == 0
    one, other = (torch.load(tmp_path / f"{name}.pt", weights_only=False).state_dict() for name in ("a", "b"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def pruned_resnet(depgraph, package):
    """A ResNet-20 with random statistics, what pruning made of it, where its elements were, and layers left whole."""
    dense = build_model("resnet20", (3, 8, 8), 10, seed=0).eval()
    drawn = torch.Generator().manual_seed(0)
    for buffer in dense.buffers():
        if buffer.ndim:
            buffer.uniform_(0.5, 1.5, generator=drawn)
    model, twin, example = copy.deepcopy(dense), copy.deepcopy(dense), torch.zeros(1, 3, 8, 8)
    target = depgraph.Target("flops", 0.9, example)
    pruning = depgraph.ChannelPruning(model, target, package.importance.GroupMagnitudeImportance(p=2))
    history = pruning.prune(target.course(model, 1, 1)[1])
    return dense, model, depgraph.kept_elements(twin, history, example), pruning.left_whole


def test_layers_that_share_a_padded_shortcut_stay_whole_and_the_others_lose_the_same_channels(depgraph, package):
    """Torch-Pruning takes padding of channels for an operation that keeps their places."""
    dense, model, kept, left_whole = pruned_resnet(depgraph, package)
    assert left_whole == ["0", *(f"{block}.conv2" for block in range(3, 12))]
    before, after = dict(dense.named_parameters()), dict(model.named_parameters())
    for name, elements in kept.items():
        assert torch.equal(before[name].flatten()[elements], after[name].flatten())

    with torch.no_grad():
        for block in range(3, 12):
            norm = dense[block].bn1
            closed = torch.ones(len(norm.weight), dtype=torch.bool)
            closed[kept[f"{block}.bn1.weight"]] = False
            norm.weight[closed] = norm.bias[closed] = 0
        images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(model(images), dense(images))
    assert count_cost(model, images).dense_flops <= 0.9 * count_cost(dense, images).dense_flops


def test_a_round_keeps_the_optimizer_state_of_what_stays(depgraph, package, digits_run):
    config = read_run(digits_run).config
    data = load_data(config, torch.device("cpu"))
    model = build_model(MODEL, data.shape, 10, seed=0).float()
    rival = depgraph.Rival(config, model, data, depgraph.Target("sparsity", 0.5, torch.zeros(1, 64)), "group-norm", 1)
    for parameter in model.parameters():
        moments = {"exp_avg": parameter.detach().clone(), "exp_avg_sq": parameter.detach().square()}
        rival._optimizer.state[parameter] = {"step": torch.tensor(7.0), **moments}
    epoch = next(epoch for epoch in depgraph.planned_epochs(config) if epoch.stage == "pruning")
    rival._round(1000, epoch, loss=None)
    assert depgraph.weights_of(model) <= 1000
    for parameter in model.parameters():
        state = rival._optimizer.state[parameter]
        assert torch.equal(state["exp_avg"], parameter)
        assert torch.equal(state["exp_avg_sq"], parameter.detach().square())
        assert state["step"] == 7


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ([], "budget: give one of --flops, --parameters and --sparsity"),
        (["--flops", "0.5", "--sparsity", "0.5"], "budget: give one of --flops, --parameters and --sparsity"),
        (["--flops", "25"], "flops: 25.0 is not a fraction between 0 and 1 (both excluded); for 25 % give 0.25"),
        (["--flops", "0.5", "--save"], "--save: writes next to the result; add --out FILE"),
        (["--flops", "0.5", "--rounds", "0"], "rounds: 0 is too few; give --rounds 1 or more"),
        (["--flops", "0.5", "--out", "config.toml"], "config.toml: exists; name another file with --out"),
        (
            ["--sparsity", "0.99"],
            "sparsity: 0.99 can't be reached; Torch-Pruning stops at 20 prunable weights, and 4 are wanted",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(depgraph, package, tmp_path, monkeypatch, capsys, options, line):
    monkeypatch.chdir(finished_run(tmp_path / "run"))
    assert depgraph.main([".", *options]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"depgraph: {line}"


def test_a_folder_that_holds_no_run_is_one_line(depgraph, package, tmp_path, capsys):
    assert depgraph.main([str(tmp_path), "--flops", "0.5"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("depgraph: ")
    assert "is not the folder of a finished run" in line
