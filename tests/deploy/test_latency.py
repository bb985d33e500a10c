"""The latency bench: what it compares, refuses and reports. No test asserts a time."""

import json

import commands
import onnx_extra
import pytest
import torch
from click.testing import CliRunner
from hyperflux_cli import bench
from sparse_networks import assert_same, mlp, thinned

from hyperflux import InputError, RunConfig, RunError
from hyperflux.backends.torch.compact.equivalence import ROUNDING, require_matching_outputs
from hyperflux.backends.torch.flops import Cost
from hyperflux.deploy import latency
from hyperflux.deploy.latency import BatchTimes, Latency, measure_run, time_batch
from hyperflux.deploy.onnx_file import onnx_content, onnx_function
from hyperflux.deploy.sparse import LayerChoice
from hyperflux.runs.driver import execute
from hyperflux.timing import Timing


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    settings = {"backend": "numpy", "dataset": "synthetic", "model": "mlp:16-24-4", "sparsity": 0.8}
    stages = {"dense": {"epochs": 1}, "pruning": {"epochs": 2}, "regrowth": {"epochs": 1}}
    execute(RunConfig.from_dict({**settings, **stages}), folder)
    return folder


@pytest.fixture
def networks():
    """A dense network, its pruned one, and that again in place of the compacted."""
    return mlp(20, 30, 5).eval(), thinned(mlp(20, 30, 5), 0.2).eval(), thinned(mlp(20, 30, 5), 0.2).eval()


def test_all_variants_of_a_batch_are_timed_against_the_dense_network(networks):
    dense, masked, compacted = networks
    other = torch.fx.symbolic_trace(compacted)
    times = time_batch(dense, masked, compacted, {"other": other}, torch.randn(3, 20), rotations=2)
    assert times.batch_size == 3
    assert [timing.variant for timing in times.timings] == ["dense", "masked", "compacted", "compacted + CSR", "other"]
    assert times.timings[0].ratio == 1
    assert all(timing.seconds > 0 for timing in times.timings)
    assert [layer.name for layer in times.layers] == ["0", "2"]


def test_a_variant_with_other_outputs_is_refused(networks):
    dense, masked, compacted = networks
    with pytest.raises(RunError, match="compacted: its outputs differ from the pruned network's by"):
        time_batch(dense, masked, dense, {}, torch.randn(3, 20), rotations=1)
    with pytest.raises(RunError, match="other: its outputs differ"):
        time_batch(dense, masked, compacted, {"other": lambda x: masked(x) + 1}, torch.randn(3, 20), rotations=1)


@pytest.mark.parametrize(("dtype", "rounding"), [(dtype, ROUNDING[dtype]) for dtype in (torch.float32, torch.float64)])
def test_agreement_is_equality_to_rounding_of_the_largest_output(dtype, rounding):
    reference = torch.tensor([[-50.0, 1.0]], dtype=dtype)
    require_matching_outputs("it", reference, reference)
    require_matching_outputs("it", 0 * reference, 0 * reference)
    require_matching_outputs("it", reference + 49 * rounding, reference)
    for wrong in (reference + 51 * rounding, reference * torch.nan, reference[0], reference.half()):
        with pytest.raises(RunError, match="it: "):
            require_matching_outputs("it", wrong, reference)


@onnx_extra.needed
@torch.no_grad()
def test_onnx_runtime_computes_the_same_at_any_batch_size(networks):
    *_, compacted = networks
    content = onnx_content(torch.fx.symbolic_trace(compacted), torch.randn(2, 20))
    forward, size = onnx_function(content, threads=1), len(content)
    assert size > 4 * 755
    for batch in (1, 2, 7):
        x = torch.randn(batch, 20)
        assert_same(forward(x), compacted(x))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (([], 1, 1), "batch_sizes: the list is empty"),
        (([1, 0], 1, 1), "batch size: 0 is too few"),
        (([1], 0, 1), "rotations: 0 is too few"),
        (([1], 1, 0), "threads: 0 is too few"),
    ],
)
def test_counts_that_make_no_sense_are_refused(finished, counts, message):
    with pytest.raises(InputError, match=message):
        measure_run(finished, *counts)


def run(*arguments):
    return commands.run(".", "bench", "latency", *arguments)


def test_the_command_refuses_what_is_no_run_in_one_line(tmp_path):
    for arguments, message in (
        ([tmp_path / "nowhere"], "is not the folder of a finished run"),
        ([tmp_path, "--batch-sizes", "1,many"], "'1,many': give values separated by commas"),
        ([], "Missing argument 'RUN'"),
    ):
        done = run(*arguments)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
        assert message in done.stderr


def test_the_command_reports_times_costs_and_files(finished):
    done = run(finished, "--batch-sizes", "1,5", "--rotations", "2", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert [batch["batch_size"] for batch in found["batches"]] == [1, 5]
    assert set(found["costs"]) == {"dense", "masked", "compacted"}
    assert found["costs"]["dense"]["dense_flops"] == found["costs"]["masked"]["dense_flops"] == 2 * 480
    assert found["costs"]["masked"]["sparse_flops"] == 2 * 96
    assert found["file_bytes"]["dense safetensors"] == (finished / "dense.safetensors").stat().st_size


def test_the_tables_say_what_was_found(tmp_path, monkeypatch):
    layer = LayerChoice("fc1", 0.02, 2e-6, 1e-6, True, "CSR is faster")
    dense = LayerChoice("fc2", 0.9, None, None, False, "too dense to try")
    batch = BatchTimes(16, [Timing("dense", 1234.5e-6, 1.0, 1.0, 1.0)], [layer, dense])
    costs, files = {"masked": Cost(1000, 20, 2000, 40)}, {"sparse safetensors": 12_345}
    measured = Latency(1, 30, [batch], costs, files, ["ONNX Runtime: not here"])
    monkeypatch.setattr(latency, "measure_run", lambda *arguments: measured)
    done = CliRunner().invoke(bench.latency, [str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0
    lines = [line.split() for line in done.output.splitlines()]
    assert lines[1] == ["16", "dense", "1,234.5", "1.000", "1.000", "1.000"]
    assert " ".join(lines[2]) == "in CSR form at batch 16: fc1 (0.50 of its dense time)"
    assert ["masked", "1,000", "20", "2,000", "40"] in lines
    assert ["sparse", "safetensors", "12,345"] in lines
    assert lines[-1] == ["ONNX", "Runtime:", "not", "here"]
