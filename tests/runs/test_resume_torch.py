"""What only the torch backend has to bring back: dropout, batch statistics, augmentation, scalers, workers, layouts."""

import pytest
import torch
from image_files import write_folder
from image_runs import QUICK, SGD, with_dropout
from interrupted import LastCheckpoint, broken_off, left
from torch import nn

from hyperflux import RunConfig
from hyperflux.backends.torch.data import STREAMED_SIDE
from hyperflux.runs.driver import execute

BREAKS = [3, 2, 6, 5]
"""Steps: within the dense stage, at the start of pruning, within an epoch, in regrowth."""


def resumed_as_whole(tmp_path, images, breaks=BREAKS, **changed):
    config = RunConfig.from_dict({**QUICK, "data_dir": str(images), **changed})
    outcomes = []
    for name, after, clean in (("whole", [], False), ("cut", breaks, False), ("stopped", breaks, True)):
        with pytest.MonkeyPatch.context() as patched:
            heard = LastCheckpoint(patched)
            broken_off(config, tmp_path / name, after, every="2", clean=clean)
            outcomes.append((left(tmp_path / name), heard.content()))
    assert outcomes[0] == outcomes[1] == outcomes[2]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("images"), train=32, test=8)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"optimizer": {"name": "adam", "weight_decay": 1e-3}},
        {"optimizer": {**SGD, "decay_all": False}, "augment": False},
        {"amp": "bfloat16"},
        {"amp": "float16"},
        {"channels_last": True},
        {"dtype": "float64", "controller": "published"},
        {"method": "magnitude"},
    ],
    ids=str,
)
def test_dropout_batch_statistics_and_augmentation_go_on(tmp_path, images, monkeypatch, changed):
    monkeypatch.setattr("hyperflux.backends.torch.backend.build_model", with_dropout)
    resumed_as_whole(tmp_path, images, **changed)


def test_dropout_does_draw(tmp_path, images, monkeypatch):
    """Otherwise the test above would say little."""
    monkeypatch.setattr("hyperflux.backends.torch.backend.build_model", with_dropout)
    losses = []
    for share in (0.3, 0.0):
        monkeypatch.setattr(nn.Dropout, "forward", lambda self, x, p=share: nn.functional.dropout(x, p, self.training))
        config = RunConfig.from_dict({**QUICK, "data_dir": str(images)})
        execute(config, tmp_path / str(share))
        losses.append((tmp_path / str(share) / "metrics.jsonl").read_text())
    assert losses[0] != losses[1]


@pytest.mark.parametrize("changed", [{}, {"channels_last": True}], ids=str)
def test_a_residual_network_goes_on(tmp_path, images, changed):
    resumed_as_whole(tmp_path, images, breaks=[6, 5], **changed)


@pytest.mark.parametrize("workers", [0, 1])
def test_streamed_images_go_on(tmp_path, monkeypatch, workers):
    monkeypatch.setattr("hyperflux.backends.torch.backend.build_model", with_dropout)
    monkeypatch.setattr("hyperflux.backends.torch.data.STREAMED_SIDE", 32)
    monkeypatch.setattr("hyperflux.backends.torch.data.STREAMED_RESIZE", 36)
    assert STREAMED_SIDE != 32
    images = write_folder(tmp_path / "images", size=(70, 72), train=16, test=4)
    small = {"batch_size": 4, "pruning": {**QUICK["pruning"], "epochs": 1}}
    resumed_as_whole(tmp_path, images, breaks=[3, 2, 4], workers=workers, **small)


def test_the_users_generators_are_left_alone(tmp_path, images, monkeypatch):
    monkeypatch.setattr("hyperflux.backends.torch.backend.build_model", with_dropout)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    config = RunConfig.from_dict({**QUICK, "data_dir": str(images)})
    broken_off(config, tmp_path / "run", [3, 7], every="2")
    assert torch.equal(torch.get_rng_state(), before)
