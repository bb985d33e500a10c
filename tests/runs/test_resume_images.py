"""Folders of images that change while a run is stopped, or fail amid it: nothing is lost, one line says why."""

import pytest
from image_files import write_folder
from image_runs import QUICK, with_dropout
from interrupted import Breaker, left

from hyperflux import InputError, RunConfig
from hyperflux.errors import DataFileError, Interrupted
from hyperflux.runs.checkpoints.data_files import changed_data
from hyperflux.runs.checkpoints.writer import CheckpointInterval
from hyperflux.runs.driver import execute, resume

NEVER = CheckpointInterval.parse("2h")
SHORT = {**QUICK, "batch_size": 4, "workers": 0, "pruning": {**QUICK["pruning"], "epochs": 2}}
"""4 steps an epoch: 4 dense, 8 of pruning, 4 of regrowth."""


@pytest.fixture(autouse=True, scope="module")
def _small_crops():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("hyperflux.backends.torch.backend.build_model", with_dropout)
        patched.setattr("hyperflux.backends.torch.data.STREAMED_SIDE", 32)
        patched.setattr("hyperflux.backends.torch.data.STREAMED_RESIZE", 36)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an uninterrupted run on images of a size leaves, by that size; config.toml names other images."""
    found = {}
    for size in ((8, 8), (70, 72)):
        folder = tmp_path_factory.mktemp("whole")
        execute(settings(folder, size)[1], folder / "run")
        found[size] = outcome(folder / "run")[0]
    return found


def settings(tmp_path, size=(70, 72)):
    images = write_folder(tmp_path / "images", size=size, train=16, test=4)
    return images, RunConfig.from_dict({**SHORT, "data_dir": str(images)})


def outcome(folder):
    """What a run leaves but its warnings, which come second."""
    found = left(folder)
    del found["config.toml"]
    return found, found["report"].pop("warnings")


def stopped(config, folder, steps):
    with pytest.raises(Interrupted):
        execute(config, folder, every=NEVER, stop=Breaker(steps, clean=True))


@pytest.mark.parametrize(
    "name",
    ["train/ant/6.png", "train/bee/9.png", "train/bee/15.png", "test/bee/3.png"],
)
@pytest.mark.parametrize("steps", [None, 2, 4, 5])
def test_a_run_goes_on_to_the_bit_once_an_image_is_repaired(tmp_path, whole, name, steps):
    """Whether it was damaged from the start or while the run was stopped; no checkpoint is written but by the stop."""
    images, config = settings(tmp_path)
    good = (images / name).read_bytes()
    if steps is not None:
        stopped(config, tmp_path / "run", steps)
    (images / name).write_bytes(good[: len(good) // 2])
    with pytest.raises(DataFileError, match=f"{name}: can't be read .*put another .*prune --resume --out .*run$"):
        execute(config, tmp_path / "run", every=NEVER) if steps is None else resume(tmp_path / "run", every=NEVER)
    assert list((tmp_path / "run" / "checkpoint").iterdir())
    (images / name).write_bytes(good)
    said = []
    resume(tmp_path / "run", announce=said.append)
    assert not any("starts again" in line for line in said)
    found, warnings = outcome(tmp_path / "run")
    assert found == whole[70, 72]
    assert any(f"images have changed since this run started, such as {name}" in line for line in warnings)


@pytest.mark.parametrize("size", [(8, 8), (70, 72)])
def test_an_image_that_is_replaced_is_named_and_the_run_goes_on(tmp_path, size):
    images, config = settings(tmp_path, size)
    stopped(config, tmp_path / "run", 6)
    (images / "train" / "ant" / "4.png").write_bytes((images / "train" / "ant" / "2.png").read_bytes())
    said = []
    resume(tmp_path / "run", announce=said.append)
    line = "data set imagefolder: images have changed since this run started, such as train/ant/4.png"
    assert [text.startswith(line) for text in said] == [True]
    assert any(text.startswith(line) for text in outcome(tmp_path / "run")[1])


@pytest.mark.parametrize("size", [(8, 8), (70, 72)])
def test_an_image_that_is_gone_is_asked_for_and_nothing_is_lost(tmp_path, whole, size):
    images, config = settings(tmp_path, size)
    stopped(config, tmp_path / "run", 6)
    gone, kept = images / "train" / "bee" / "7.png", tmp_path / "kept.png"
    gone.rename(kept)
    before = sorted((path.name, path.read_bytes()) for path in (tmp_path / "run" / "checkpoint").iterdir())
    message = "train/bee/ holds 7 images, and held 8 when this run started; put its files back as they were"
    with pytest.raises(InputError, match=message):
        resume(tmp_path / "run")
    kept.rename(gone)
    assert sorted((path.name, path.read_bytes()) for path in (tmp_path / "run" / "checkpoint").iterdir()) == before
    resume(tmp_path / "run")
    assert outcome(tmp_path / "run")[0] == whole[size]


def test_images_of_other_names_are_asked_for(tmp_path):
    images, config = settings(tmp_path)
    stopped(config, tmp_path / "run", 6)
    (images / "train" / "bee" / "7.png").rename(images / "train" / "bee" / "8.png")
    with pytest.raises(InputError, match="train/bee/ holds images of other names than when this run started"):
        resume(tmp_path / "run")


def test_another_folder_of_the_same_names_is_another_data_set(tmp_path):
    images, config = settings(tmp_path, (8, 8))
    stopped(config, tmp_path / "run", 6)
    for number, path in enumerate(sorted(images.rglob("*.png"))):
        if number % 2:
            path.write_bytes((images / "test" / "ant" / "0.png").read_bytes())
    with pytest.raises(InputError, match="data set imagefolder: is not the one that this run started with"):
        resume(tmp_path / "run")


def test_data_without_files_are_the_same_or_another():
    with pytest.raises(InputError, match="data set mnist: is not the one"):
        changed_data("mnist", {}, {})


def test_junk_that_comes_while_a_run_is_stopped_changes_nothing(tmp_path, whole):
    images, config = settings(tmp_path, (8, 8))
    stopped(config, tmp_path / "run", 6)
    hidden = images / "train" / ".ipynb_checkpoints"
    hidden.mkdir()
    (hidden / "0-checkpoint.png").write_bytes((images / "train" / "ant" / "0.png").read_bytes())
    (images / "train" / "ant" / "Thumbs.db").write_bytes(b"x")
    resume(tmp_path / "run")
    assert outcome(tmp_path / "run")[0] == whole[8, 8]
