"""Layers that hold 2:4, and their form for a GPU's kernels, held to torch's own conversion on the CPU."""

import commands
import pytest
import torch
from devices import needs_cuda
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from hyperflux import RunConfig
from hyperflux.backends.torch.compact.equivalence import outputs_match
from hyperflux.deploy.export import export
from hyperflux.deploy.gpu_latency import gpu_times
from hyperflux.deploy.latency import measure_run
from hyperflux.deploy.networks import load_networks
from hyperflux.deploy.semi_structured import pattern_layers, semi_structured, unfit
from hyperflux.gates.kinds import Pattern
from hyperflux.runs.driver import execute


def two_of_four(*shape, dim=1, seed=0):
    """A weight, two of every four of which are 0 along a dimension, at random places."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator).movedim(dim, -1)
    for start in range(0, weight.shape[-1], 4):
        group = weight[..., start : start + 4]
        group.scatter_(-1, torch.rand(group.shape, generator=generator).argsort(-1)[..., 2:], 0.0)
    return weight.movedim(-1, dim)


def holding(layer, dim=1):
    with torch.no_grad():
        layer.weight.copy_(two_of_four(*layer.weight.shape, dim=dim))
    return layer


def test_the_pattern_is_read_from_the_values():
    layers = {
        "linear": holding(nn.Linear(10, 3)),
        "sparser": nn.Linear(8, 3),
        "dense": nn.Linear(8, 3),
        "short": nn.Linear(2, 3),
        "convolution": holding(nn.Conv2d(8, 3, 3)),
        "wrong dimension": holding(nn.Conv2d(8, 8, 3), dim=0),
        "transposed": holding(nn.ConvTranspose2d(8, 6, 3), dim=0),
    }
    model = nn.ModuleDict(layers)
    nn.init.zeros_(layers["sparser"].weight)
    assert pattern_layers(model) == ["linear", "sparser", "convolution", "transposed"]
    assert pattern_layers(model, Pattern(1, 4)) == ["sparser"]
    with torch.no_grad():
        layers["linear"].weight[2, 4:8] = torch.tensor([1.0, 0.0, 2.0, 3.0])
    assert pattern_layers(model) == ["sparser", "convolution", "transposed"]


@given(
    outputs=st.sampled_from([1, 16, 31, 32, 48, 64, 96]),
    inputs=st.sampled_from([4, 16, 32, 60, 64, 96, 128, 192]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    seed=st.integers(0, 99),
)
def test_a_weight_that_fits_is_compressed_and_restored_to_the_bit(outputs, inputs, dtype, seed):
    """Half the values and their places hold all of it, and of one that does not hold the pattern they do not.

    Builds of torch with cuSPARSELt take multiples of 16, others of 32 and 64.
    """
    weight = two_of_four(outputs, inputs, seed=seed).to(dtype)
    fits_all = dtype != torch.float32 and outputs % 32 == inputs % 64 == 0
    fits_none = dtype == torch.float32 or outputs % 16 > 0 or inputs % 16 > 0
    assert (unfit(weight) == "") >= fits_all
    assert (unfit(weight) != "") >= fits_none
    if not fits_all:
        return
    values, places = sparse_semi_structured_from_dense_cutlass(weight)
    assert values.shape == (outputs, inputs // 2)
    assert torch.equal(sparse_semi_structured_to_dense_cutlass(values, places), weight)
    weight[seed % outputs, :4] = 1.0
    assert not torch.equal(
        sparse_semi_structured_to_dense_cutlass(*sparse_semi_structured_from_dense_cutlass(weight)), weight
    )


def test_without_a_gpu_every_layer_stays_dense_and_says_why():
    model = nn.Sequential(
        holding(nn.Linear(64, 32)),
        nn.Linear(32, 32),
        holding(nn.Conv1d(8, 4, 1)),
        nn.TransformerEncoderLayer(64, 2, 64),
    )
    copied, layers = semi_structured(model)
    reasons = {layer.name: layer.reason for layer in layers}
    assert not any(layer.sparse for layer in layers)
    assert reasons["0"] == "on cpu; the kernels need a CUDA device"
    assert reasons["1"] == "some four consecutive weights hold more than two that are not 0"
    assert reasons["2"] == "a convolution; the kernels multiply matrices"
    assert reasons["3.linear1"] == "a fused kernel reads its weight"
    assert copied[0] is not model[0]
    assert torch.equal(copied[0].weight, model[0].weight)


def test_what_the_kernels_do_not_take_is_said():
    assert unfit(torch.zeros(32, 64)) == "float32; the kernels take float16 and bfloat16"
    assert unfit(torch.zeros(10, 100).half()).startswith("10×100; the kernels take multiples of ")
    assert unfit(torch.zeros(64, 128).bfloat16()) == ""


@needs_cuda
def test_on_a_gpu_the_layers_that_fit_run_by_its_kernels():
    model = nn.Sequential(holding(nn.Linear(128, 256)), nn.ReLU(), nn.Linear(256, 64), holding(nn.Linear(64, 7)))
    model = model.to("cuda", torch.float16)
    sparse, layers = semi_structured(model)
    assert [layer.sparse for layer in layers] == [True, False, False]
    assert layers[2].reason.startswith("7×64; the kernels take multiples of")
    for batch in (1, 3, 64):
        x = torch.randn(batch, 128, device="cuda", dtype=torch.float16)
        assert outputs_match(sparse(x), model(x))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    settings = {"backend": "numpy", "dataset": "synthetic", "model": "mlp:16-64-32-4", "gates": "1:4"}
    stages = {"dense": {"epochs": 1}, "pruning": {"epochs": 2}, "regrowth": {"epochs": 1}}
    execute(RunConfig.from_dict({**settings, **stages}), folder)
    return folder


def test_compaction_that_breaks_the_pattern_is_said(finished):
    """A run of 1:4 leaves dead units; removing some of four inputs moves the others into other groups."""
    whole, compacted = (export(finished, "safetensors", compacted=compacted) for compacted in (False, True))
    assert whole.pattern_lost == []
    assert compacted.weights_after < whole.weights_after
    assert compacted.pattern_lost
    assert set(compacted.pattern_lost) <= {"fc1", "fc2", "fc3"}
    done = commands.run(".", "export", finished)
    assert "no longer hold the pattern of their gates: " in done.stdout
    assert "--no-compact keeps it" in done.stdout
    assert "pattern" not in commands.run(".", "export", finished, "--no-compact").stdout


def test_the_latency_bench_says_why_there_are_no_times_on_a_gpu(finished):
    if not torch.cuda.is_available():
        found = measure_run(finished, [1], 1, 1)
        lacking = "2:4: its kernels need a CUDA GPU of compute capability 8.0 or more, which this machine lacks"
        assert (found.gpu, found.notes[-1]) == ([], lacking)
    networks = load_networks(finished)
    for name in ("fc1", "fc2", "fc3"):
        nn.init.ones_(networks.pruned.get_submodule(name).weight)
    times, obstacle = gpu_times(networks, [1], 1)
    assert times == []
    assert obstacle.startswith("2:4: no layer holds two of every four weights; hyperflux prune --gates 2:4 makes")


@needs_cuda
def test_the_latency_bench_times_what_a_gpu_can_run(finished):
    times, obstacle = gpu_times(load_networks(finished), [2, 64], 1)
    assert obstacle == ""
    assert [batch.batch_size for batch in times] == [2, 64]
    assert [timing.variant for timing in times[0].timings] == ["dense", "masked", "2:4"]
