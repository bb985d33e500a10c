"""The torch side of the driver: image networks end to end, with every option of speed, and what is refused."""

import shutil

import numpy as np
import pytest
import torch
from image_files import write_folder
from safetensors.numpy import load_file

from hyperflux import InputError, RunConfig
from hyperflux.backends.torch.training import choose_device
from hyperflux.runs.driver import execute

# 8 steps an epoch; t falls by about 0.08 an epoch from 0.2 to 0.5: the first weights go in the third epoch.
QUICK = {
    "dataset": "imagefolder",
    "model": "resnet20",
    "sparsity": 0.6,
    "batch_size": 8,
    "device": "cpu",
    "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4},
    "dense": {"epochs": 1, "learning_rate": 0.01},
    "pruning": {"epochs": 5, "learning_rate": 0.01, "presence_learning_rate": 1e-2},
    "regrowth": {"epochs": 2, "learning_rate": 0.01},
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("images"), train=64, test=16)


@pytest.fixture
def go(images, tmp_path):
    """Run with these settings; gives the report and the final tensors."""

    def execute_with(**settings):
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        report = execute(RunConfig.from_dict({"data_dir": str(images), **QUICK, **settings}), folder)
        return report, load_file(folder / "model.safetensors")

    return execute_with


def pruned_weights(report, tensors):
    """Every prunable layer's zeros are just those that the report counts."""
    for layer in report.layers:
        assert np.count_nonzero(tensors[layer.name]) == layer.surviving
    return report.total_weights - report.surviving_weights


def test_a_network_of_image_folders_ends_with_its_exact_zeros(go):
    report, tensors = go()
    assert (report.backend, report.total_weights) == ("torch", 268_336 - 8 * 64)
    assert pruned_weights(report, tensors) > 0
    assert all(np.isfinite(array).all() for array in tensors.values())
    again, same = go()
    assert again.layers == report.layers
    assert all(np.array_equal(tensors[name], same[name]) for name in tensors)
    _, other = go(augment=False)
    assert not np.array_equal(tensors["0.weight"], other["0.weight"])


@pytest.mark.parametrize(
    "settings",
    [
        {"amp": "bfloat16"},
        {"amp": "float16"},
        {"channels_last": True},
        {"amp": "bfloat16", "channels_last": True, "dtype": "float64"},
        {"optimizer": {"name": "adam"}},
        {"optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 0.1, "decay_all": False}},
    ],
)
def test_options_train_and_prune(go, settings):
    report, tensors = go(**settings)
    assert pruned_weights(report, tensors) > 0
    assert all(np.isfinite(array).all() for array in tensors.values())


def test_memory_layout_changes_no_more_than_rounding(go):
    plain, tensors = go(dtype="float64")
    report, same = go(dtype="float64", channels_last=True)
    assert report.layers == plain.layers
    for name in tensors:
        np.testing.assert_allclose(same[name], tensors[name], rtol=1e-6, atol=1e-9)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_is_pruned_alike(go):
    plain, tensors = go(model="mlp:192-8-2", dtype="float64")
    report, same = go(model="mlp:192-8-2", dtype="float64", compile=True)
    assert report.layers == plain.layers
    for name in tensors:
        np.testing.assert_allclose(same[name], tensors[name], rtol=1e-9, atol=1e-12)


def test_decay_of_vectors_is_a_setting(go):
    decay = {"name": "sgd", "weight_decay": 0.5}
    (_, all_decay), (_, some) = (go(optimizer={**decay, "decay_all": decay_all}) for decay_all in (True, False))
    scale = "1.weight"  # of the first batch norm: it starts at 1, and decay takes a third of it in 64 steps
    assert np.abs(all_decay[scale]).mean() < 0.9 < np.abs(some[scale]).mean()


def test_include_and_exclude_choose_the_layers(go):
    report, tensors = go(include=("*.conv1",), exclude=("3.*",))
    assert report.layers
    assert all(layer.name.endswith("conv1.weight") and not layer.name.startswith("3.") for layer in report.layers)
    pruned_weights(report, tensors)
    with pytest.raises(InputError, match="include: prunable weight 'conv9' is not known"):
        go(include=("conv9",))


def test_a_stock_checkpoint_of_the_library_starts_a_run(go, tmp_path):
    from torchvision.models import get_model

    torch.save(get_model("mobilenet_v3_small", num_classes=2).state_dict(), tmp_path / "stock.pth")
    settings = {"model": "torchvision:mobilenet_v3_small", "checkpoint": str(tmp_path / "stock.pth")}
    with pytest.raises(InputError, match=r"nowhere\.pth: no such file"):
        go(model="torchvision:mobilenet_v3_small", checkpoint=str(tmp_path / "nowhere.pth"))
    report, tensors = go(**settings)
    assert report.model == "torchvision:mobilenet_v3_small"
    pruned_weights(report, tensors)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "tpu"}, "device 'tpu' is not known"),
        ({"device": "cuda:99"}, "device cuda:99: not available on this machine; use --device auto"),
        ({"amp": "fp8"}, "amp 'fp8' is not known"),
        ({"model": "mlp:10-8-2"}, "10"),
        ({"data_dir": "nowhere"}, "needs the folders train/ and test/ or val/"),
    ],
)
def test_what_cannot_be_had_is_refused_before_anything_is_written(go, tmp_path, settings, message):
    with pytest.raises(InputError, match=message) as caught:
        go(**settings)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_each_process_of_a_machine_takes_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [choose_device("cuda", rank) for rank in range(2)] == [torch.device("cuda"), torch.device("cuda:1")]
    with pytest.raises(InputError, match=r"^device cuda:2: there is none for local rank 2, this machine has 2;"):
        choose_device("auto", 2)
    with pytest.raises(InputError, match=r"^device cuda:2: not available on this machine"):
        choose_device("cuda:2", 1)
