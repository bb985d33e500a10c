"""Weights files: every common form is read, nothing in them is executed, and a bad one changes nothing."""

import io
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hyperflux import InputError
from hyperflux.backends.torch.weights_file import load_into, read_weights


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return network().state_dict()


def refused(path):
    with pytest.raises(InputError) as caught:
        read_weights(str(path))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        lambda weights: {"state_dict": weights, "epoch": 3},
        lambda weights: {"model": weights, "optimizer": {"state": {}}},
        lambda weights: {"model": {"state_dict": weights}},
        lambda weights: {f"module.{name}": tensor for name, tensor in weights.items()},
        lambda weights: {f"_orig_mod.{name}": tensor for name, tensor in weights.items()},
        lambda weights: {f"module._orig_mod.{name}": tensor for name, tensor in weights.items()},
        lambda weights: {f"_orig_mod.module.{name}": tensor for name, tensor in weights.items()},
    ],
)
def test_weights_of_torch_are_found_in_their_wrappers(tmp_path, weights, wrap):
    torch.save(wrap(weights), tmp_path / "file.pth")
    assert same(read_weights(str(tmp_path / "file.pth")), weights)


def test_safetensors(tmp_path, weights):
    save_file(weights, tmp_path / "file.safetensors")
    assert same(read_weights(str(tmp_path / "file.safetensors")), weights)


def test_a_module_called_module_keeps_its_name(tmp_path):
    weights = {"module.weight": torch.ones(2), "head.weight": torch.ones(1)}
    torch.save(weights, tmp_path / "file.pth")
    assert read_weights(str(tmp_path / "file.pth")).keys() == weights.keys()


class Executable:
    """Unpickling this would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_code_in_a_weights_file_is_not_run(tmp_path, weights, save):
    save({"state_dict": weights, "hook": Executable(tmp_path / "written")}, tmp_path / "file.pth")
    assert "nothing else is read, for safety" in refused(tmp_path / "file.pth")
    assert not (tmp_path / "written").exists()


def test_a_whole_pickled_module_is_refused(tmp_path):
    torch.save(network(), tmp_path / "file.pth")
    assert "save the model's state_dict() by itself" in refused(tmp_path / "file.pth")


def test_damaged_files_are_refused(tmp_path, weights):
    whole = io.BytesIO()
    torch.save(weights, whole)
    save_file(weights, tmp_path / "whole.safetensors")
    contents = {
        "cut.pth": whole.getvalue()[:500],
        "empty.pth": b"",
        "text.pth": b"hello",
        "cut.safetensors": (tmp_path / "whole.safetensors").read_bytes()[:60],
        "empty.safetensors": b"",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        kinds = "safetensors file" if name == "cut.safetensors" else "safetensors file or torch.save file"
        assert f"{name}: not a readable {kinds} (" in refused(tmp_path / name)
    assert "no such file" in refused(tmp_path / "nowhere.pth")
    assert "Is a directory" in refused(tmp_path)


@pytest.mark.parametrize(
    "content",
    [[torch.ones(2)], {"weight": 1.5}, {"state_dict": {"a": {"b": torch.ones(1)}}}, 3, {}, {0: torch.ones(1)}],
)
def test_what_is_not_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "file.pth")
    assert "is not a state_dict of tensors" in refused(tmp_path / "file.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("2.bias"), "tensor 2.bias is missing"),
        (lambda weights: weights.update(more=torch.ones(1)), "tensor more is unknown to mine"),
        (lambda weights: weights.update({"0.weight": torch.ones(4, 2)}), r"shape \(4, 2\); mine has \(4, 3\)"),
        (lambda weights: weights["1.running_var"].fill_(float("nan")), "1.running_var holds values that are not fin"),
    ],
)
def test_tensors_that_do_not_fit_change_nothing(weights, change, message):
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    change(weights)
    with pytest.raises(InputError, match=message):
        load_into(model, weights, "mine")
    assert same(model.state_dict(), before)


def test_all_parameters_and_buffers_are_replaced(weights):
    model = network().double()
    load_into(model, weights, "mine")
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], check_dtype=False, rtol=0, atol=0)
