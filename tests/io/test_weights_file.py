"""Weights files for NumPy: every dtype of safetensors is read right or refused by tensor and dtype."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from safetensors_files import content_of

from hyperflux import InputError
from hyperflux.io.weights_file import COMPLEX, FLOATING, IN_NUMPY, WHOLE, read_weights

PACKED = ("F4", "F6_E2M3", "F6_E3M2")


@given(st.sampled_from([*IN_NUMPY, "BF16"]), st.binary(min_size=128, max_size=128))
def test_floating_point_numbers_are_those_of_torch(tmp_path_factory, kind, data):
    path = tmp_path_factory.mktemp("file") / "file.safetensors"
    path.write_bytes(content_of("weight", kind, (4, 4), data))
    expected = load(path.read_bytes())["weight"]
    found = read_weights(str(path))["weight"]
    assert np.array_equal(found, expected.float().numpy() if kind == "BF16" else expected.numpy(), equal_nan=True)


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (
            [kind for kind in FLOATING if kind.startswith("F8")],
            "numbers that NumPy lacks; use --backend torch, or save",
        ),
        (WHOLE, "not floating point numbers"),
        (COMPLEX[:1], "complex numbers, whose imaginary part would be lost; save real weights"),
        (PACKED, "packed numbers that can't be read without their scales; save it as float32"),
    ],
)
def test_other_dtypes_are_refused_by_tensor_and_dtype(tmp_path, kinds, message):
    for kind in kinds:
        path = tmp_path / "file.safetensors"
        path.write_bytes(content_of("fc1.weight", kind, (4, 4), bytes(128)))
        with pytest.raises(InputError) as caught:
            read_weights(str(path))
        assert str(caught.value).startswith(f"weights file {path}: tensor fc1.weight holds {kind}, {message}")


def test_a_file_of_torch_save_is_refused_with_the_backend_that_reads_it(tmp_path):
    torch.save({"fc1.weight": torch.ones(1)}, tmp_path / "file.pt")
    with pytest.raises(InputError, match=r"not a readable safetensors file .*other kinds .* need --backend torch"):
        read_weights(str(tmp_path / "file.pt"))


def test_no_elements_and_no_dimensions_are_read(tmp_path):
    tensors = {"empty": torch.ones(0, 3), "one": torch.tensor(2.5)}
    (tmp_path / "file.safetensors").write_bytes(save(tensors))
    found = read_weights(str(tmp_path / "file.safetensors"))
    assert (found["empty"].shape, found["one"].shape, float(found["one"])) == ((0, 3), (), 2.5)
