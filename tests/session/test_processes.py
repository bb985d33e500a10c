"""The driver in several processes: the run of one process, whatever their number, also where it changes on the way."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import write_folder
from interrupted import left
from process_group_runs import (
    drawn,
    fill_the_disk,
    go,
    leave_a_layer_unused,
    spoil,
    stream_small_images,
    use_batch_norm,
    use_dropout,
)
from processes import run_together
from same_run import QUICK, require_close, require_the_same

from hyperflux import RunConfig, data
from hyperflux.backends.torch import data as torch_data
from hyperflux.backends.torch.training import BatchPart
from hyperflux.runs.driver import execute
from hyperflux.runs.lock import locked

IMAGES = {
    **QUICK,
    "dataset": "imagefolder",
    "train_samples": 0,
    "batch_size": 6,
    "optimizer": {"name": "sgd", "momentum": 0.9},
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder that a run in one process leaves, by its settings."""
    known = {}

    def of(settings):
        key = json.dumps(settings)
        if key not in known:
            known[key] = tmp_path_factory.mktemp("alone") / "run"
            execute(RunConfig.from_dict(settings), known[key])
        return known[key]

    return of


@pytest.mark.parametrize(
    ("size", "changed"),
    [
        (2, {}),
        (4, {}),
        (4, {"batch_size": 3, "train_samples": 40}),  # in every batch one process has no sample
        (2, {"controller": "published", "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-3}}),
        (2, {"method": "magnitude"}),
    ],
    ids=str,
)
def test_as_one_process(tmp_path, alone, size, changed):
    settings = {**QUICK, **changed}
    reports = run_together(go, size, settings, str(tmp_path / "run"))
    assert all(report["layers"] == reports[0]["layers"] for report in reports)
    require_the_same(tmp_path / "run", alone(settings))


@pytest.mark.parametrize("changed", [{"batch_size": 58, "train_samples": 237}, {"batch_size": 3, "train_samples": 40}])
def test_batch_norm_gets_no_lone_sample(tmp_path, changed):
    """Of a last batch of 5, or of batches of 3 and 4, four processes would have one each."""
    reports = run_together(go, 4, {**QUICK, **changed}, str(tmp_path / "run"), change=use_batch_norm)
    assert [report["surviving_weights"] for report in reports] == [48] * 4


@pytest.mark.parametrize("side", [8, 70])
def test_images_are_augmented_as_in_one_process(tmp_path, monkeypatch, side):
    """Those in memory, and those that other processes decode."""
    images = write_folder(tmp_path / "images", size=(side, side), train=20, test=6)
    monkeypatch.setattr(torch_data, "STREAMED_SIDE", 8)
    monkeypatch.setattr(torch_data, "STREAMED_RESIZE", 9)
    settings = {**IMAGES, "data_dir": str(images), "model": "mlp:192-3-2", "workers": 1}
    settings |= {"dense": {"epochs": 1, "learning_rate": 1e-3}, "pruning": {**QUICK["pruning"], "epochs": 1}}
    settings |= {"regrowth": {"epochs": 0}, "telemetry": "off"}
    run_together(go, 2, settings, str(tmp_path / "run"), change=stream_small_images)
    execute(RunConfig.from_dict(settings), tmp_path / "alone")
    require_close(tmp_path / "run" / "model.safetensors", tmp_path / "alone" / "model.safetensors")


def test_it_goes_on_with_other_numbers_of_processes(tmp_path, alone):
    """Each part is stopped amid an epoch; the sums of the loss of an epoch go along."""
    folder = str(tmp_path / "run")
    assert run_together(go, 2, QUICK, folder, stop_after=4)[0][0] == "Interrupted"
    assert run_together(go, 3, None, folder, resumed=True, stop_after=11)[0][0] == "Interrupted"
    assert run_together(go, 1, None, folder, resumed=True, stop_after=16)[0][0] == "Interrupted"
    run_together(go, 4, None, folder, resumed=True)
    require_the_same(Path(folder), alone(QUICK))


def test_dropout_and_batch_statistics_go_on_to_the_bit_with_as_many_processes(tmp_path):
    images = write_folder(tmp_path / "images", train=32, test=8)
    settings = {**IMAGES, "data_dir": str(images), "model": "resnet20", "dtype": "float32"}
    settings["pruning"] = {"epochs": 2, "presence_learning_rate": 4e-2}
    run_together(go, 2, settings, str(tmp_path / "whole"), change=use_dropout)
    cut = str(tmp_path / "cut")
    assert run_together(go, 2, settings, cut, stop_after=3, change=use_dropout)[0][0] == "Interrupted"
    assert run_together(go, 2, None, cut, resumed=True, stop_after=9, change=use_dropout)[0][0] == "Interrupted"
    run_together(go, 2, None, cut, resumed=True, change=use_dropout)
    assert left(tmp_path / "cut") == left(tmp_path / "whole")


def test_processes_draw_different_random_numbers():
    first, second, third = run_together(drawn, 3, QUICK)
    assert not set(first) & set(second)
    assert not set(second) & set(third)


def test_all_stop_after_the_same_step_where_one_is_told_to(tmp_path):
    ends = run_together(go, 2, QUICK, str(tmp_path / "run"), stop_after=13, stopping=1)
    line = f"stopped by SIGTERM; continue with hyperflux prune --resume --out {tmp_path / 'run'}"
    assert ends == [("Interrupted", line, False, 13), ("Interrupted", line, True, 13)]
    assert list((tmp_path / "run" / "checkpoint").iterdir())


def test_what_one_can_not_do_none_begins(tmp_path):
    """The one that failed tells it, the other ones end likewise; nothing is written."""
    settings = [QUICK, {**QUICK, "dataset": "mnist", "data_dir": str(tmp_path / "nothing")}, QUICK]
    ends = run_together(go, 3, settings, str(tmp_path / "run"))
    assert [end[0] for end in ends] == ["InputError"] * 3
    assert len({end[1] for end in ends}) == 1
    assert "is missing; give the folder that holds MNIST/raw" in ends[0][1]
    assert [end[2] for end in ends] == [True, False, True]
    assert not (tmp_path / "run").exists()


def test_processes_with_other_data_are_refused(tmp_path):
    ends = run_together(go, 2, [QUICK, {**QUICK, "train_samples": 249}], str(tmp_path / "run"))
    assert ends[0][:2] == ends[1][:2]
    assert [end[2] for end in ends] == [False, True]
    assert ends[0][1].startswith("config: rank 1 differs from rank 0")
    for name in "ab":
        write_folder(tmp_path / name, train=12, test=4)
    next((tmp_path / "b" / "train").rglob("*.png")).unlink()
    settings = [{**IMAGES, "data_dir": str(tmp_path / name), "model": "mlp:192-3-2"} for name in "ab"]
    ends = run_together(go, 2, settings, str(tmp_path / "run"))
    assert ends[0][0] == "InputError"
    assert ends[0][1].startswith("data: rank 1 differs from rank 0")
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_is_refused_in_all(tmp_path):
    with locked(tmp_path / "run", print):
        ends = run_together(go, 2, QUICK, str(tmp_path / "run"))
    assert [end[0] for end in ends] == ["InputError", "InputError"]
    assert "in use by process" in ends[1][1]


def test_a_model_with_unused_parameters_is_refused(tmp_path):
    ends = run_together(go, 2, QUICK, str(tmp_path / "run"), change=leave_a_layer_unused)
    line = "model: has parameters that do not affect its output; train it in a single process"
    assert [end[:3] for end in ends] == [("InputError", line, False), ("InputError", line, True)]


def test_a_full_disk_ends_all(tmp_path):
    ends = run_together(go, 2, QUICK, str(tmp_path / "run"), change=fill_the_disk)
    assert [(end[0], end[2]) for end in ends] == [("RunError", False), ("RunError", False)]
    assert ends[0][1].startswith("the disk is full; make room, then continue with hyperflux prune --resume")


def test_what_is_not_finite_in_one_stops_all_at_the_same_step(tmp_path):
    ends = run_together(go, 2, QUICK, str(tmp_path / "run"), change=partial(spoil, [17]))
    assert [(end[0], end[2]) for end in ends] == [("RunError", False), ("RunError", True)]
    assert ends[0][1] == ends[1][1]
    assert ends[0][1].startswith("the loss became nan at step ")
    assert ends[0][3] == ends[1][3]


def test_what_is_not_finite_in_one_is_skipped_by_all(tmp_path, monkeypatch):
    settings = {**QUICK, "on_nonfinite": "skip"}
    run_together(go, 2, settings, str(tmp_path / "run"), change=partial(spoil, [17, 90]))
    monkeypatch.setattr(data, "_standardised", data._standardised)
    spoil([17, 90])
    execute(RunConfig.from_dict(settings), tmp_path / "alone")
    require_the_same(tmp_path / "run", tmp_path / "alone")
    assert "steps were skipped" in (tmp_path / "run" / "report.json").read_text()


@given(st.integers(1, 300), st.integers(1, 9), st.integers(0, 2**32))
def test_shares_of_a_batch(batch, size, seed):
    """Each sample belongs to one process, and the mean of the weighted means is the mean."""
    shares = [BatchPart.of(batch, rank, size) for rank in range(size)]
    losses = np.random.default_rng(seed).normal(size=batch)
    owned = [range(batch)[share.rows] for share in shares if share.samples]
    assert [index for part in owned for index in part] == list(range(batch))
    assert all(len(range(batch)[share.rows]) >= min(2, batch) for share in shares)
    mean = sum(share.weight * losses[share.rows].mean() for share in shares) / size
    assert mean == pytest.approx(losses.mean(), abs=1e-12)
