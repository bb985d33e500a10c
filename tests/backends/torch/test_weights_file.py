"""Weights files: every common form is read, nothing in them is executed, and a bad one changes nothing."""

import io
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from safetensors_files import content_of
from torch import nn
from torch.optim.swa_utils import AveragedModel

from hyperflux import InputError
from hyperflux.backends.torch.weights_file import load_from, load_into, read_checkpoint
from hyperflux.io.weights_file import FLOATING, WHOLE


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return network().state_dict()


def refused(path):
    with pytest.raises(InputError) as caught:
        load_from(network(), str(path), "mine")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def loaded(path):
    """The state_dict after loading, and where the weights were."""
    model = network()
    place = load_from(model, str(path), "mine")
    return model.state_dict(), place


def prefixed(prefix, weights):
    return {prefix + name: tensor for name, tensor in weights.items()}


@pytest.mark.parametrize(
    ("wrap", "place"),
    [
        (lambda w: w, ""),
        (lambda w: {"state_dict": w, "epoch": 3}, "under ['state_dict']"),
        (lambda w: {"model_state_dict": w, "optimizer_state_dict": {"state": {}}}, "under ['model_state_dict']"),
        (lambda w: {"model": w, "optimizer": {"state": {0: {"step": torch.ones(())}}}}, "under ['model']"),
        (lambda w: {"model": {"state_dict": w}}, "under ['model']['state_dict']"),
        (lambda w: {"epoch": 3, "ema": {"shadow": prefixed("module.", w)}},
         "under ['ema']['shadow'] with the prefix module."),
        (lambda w: {"model": w, "same again": w}, "under ['model']"),
        (lambda w: {"state_dict": {**prefixed("model.net.", w), "metric.sum": torch.ones(1)}, "loops": {"a": {}}},
         "under ['state_dict'] with the prefix model.net."),
        (lambda w: prefixed("module.", w), "with the prefix module."),
        (lambda w: prefixed("_orig_mod.", w), ""),
        (lambda w: prefixed("module._orig_mod.", w), "with the prefix module."),
        (lambda w: prefixed("_orig_mod.module.", w), "with the prefix module."),
        (lambda w: {name.replace(".", "._orig_mod.", 1): t for name, t in w.items()}, ""),
    ],
)  # fmt: skip
def test_weights_of_torch_are_found_and_their_place_is_named(tmp_path, weights, wrap, place):
    torch.save(wrap(weights), tmp_path / "file.ckpt")
    found, where = loaded(tmp_path / "file.ckpt")
    assert same(found, weights)
    assert where == place


def test_an_averaged_model_is_found(tmp_path, weights):
    model = network()
    model.load_state_dict(weights)
    torch.save({"ema": AveragedModel(model).state_dict()}, tmp_path / "file.pt")
    assert same(loaded(tmp_path / "file.pt")[0], weights)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w, other: {"model": w, "model_ema": other},
        lambda w, other: {"state_dict": {**prefixed("student.", w), **prefixed("teacher.", other)}},
        lambda w, other: {**w, **prefixed("ema.", other)},
    ],
)
def test_different_weights_that_all_fit_are_refused(tmp_path, weights, wrap):
    other = {name: tensor + 1 for name, tensor in weights.items()}
    torch.save(wrap(weights, other), tmp_path / "file.pt")
    assert "holds different weights that all fit mine" in refused(tmp_path / "file.pt")


def test_of_two_sets_of_names_the_one_with_the_right_shapes_is_taken(tmp_path, weights):
    small = {name: tensor[:1] if tensor.ndim else tensor for name, tensor in weights.items()}
    torch.save({**prefixed("student.", small), **prefixed("teacher.", weights)}, tmp_path / "file.pt")
    found, where = loaded(tmp_path / "file.pt")
    assert same(found, weights)
    assert where == "with the prefix teacher."


def test_what_does_not_fit_is_listed_both_ways(tmp_path, weights):
    weights["fc.bias"] = weights.pop("2.bias")
    weights["2.weight"] = torch.ones(7, 4)
    torch.save({"state_dict": prefixed("net.", weights)}, tmp_path / "file.pt")
    assert refused(tmp_path / "file.pt").endswith(
        "the tensors under ['state_dict'] with the prefix net. are not those of mine; missing: 2.bias (2,); "
        "unknown: fc.bias (2,); of another shape: 2.weight (7, 4) instead of (2, 4)"
    )


def test_a_file_of_many_names_is_searched_in_linear_time(tmp_path):
    names = {f"a{number}." * 20 + "weight": torch.ones(1) for number in range(20_000)}
    torch.save(names, tmp_path / "file.pt")
    assert "missing: 0.weight (4, 3)" in refused(tmp_path / "file.pt")


def test_dictionaries_that_hold_themselves_are_searched_once(tmp_path, weights):
    content = {"weights": weights}
    content |= {f"self {number}": content for number in range(30)}
    content["weights"]["2.bias"] = torch.zeros(2)
    torch.save(content, tmp_path / "file.pt")
    assert loaded(tmp_path / "file.pt")[1] == "under ['weights']"


def test_safetensors(tmp_path, weights):
    save_file(weights, tmp_path / "file.safetensors")
    assert same(loaded(tmp_path / "file.safetensors")[0], weights)
    save_file(prefixed("model.", weights), tmp_path / "file.safetensors")
    assert same(loaded(tmp_path / "file.safetensors")[0], weights)


def test_a_module_called_module_keeps_its_name(tmp_path):
    model = nn.ModuleDict({"module": nn.Linear(1, 1), "head": nn.Linear(1, 1)})
    torch.save(model.state_dict(), tmp_path / "file.pth")
    assert load_from(model, str(tmp_path / "file.pth"), "mine") == ""


VALUES = [[-1.0, 0.5, 2.0]] * 4


def one_layer(weight, tmp_path, name="file.pt"):
    """Load a layer (4, 3) whose weight is saved as given; returns the weight."""
    model = nn.Linear(3, 4)
    torch.save({"weight": weight, "bias": torch.zeros(4)}, tmp_path / name)
    load_from(model, str(tmp_path / name), "mine")
    return model.weight.detach()


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.double(),
        lambda t: t.half(),
        lambda t: t.bfloat16(),
        lambda t: t.to(torch.float8_e4m3fn),
        lambda t: t.to(torch.float8_e5m2),
        lambda t: t.to(torch.float8_e4m3fnuz),
        lambda t: t.to(torch.float8_e5m2fnuz),
        lambda t: t.to_sparse(),
        lambda t: torch.quantize_per_tensor(t, 0.5, 0, torch.qint8),
        lambda t: t[:1].expand(4, 3),
        lambda t: t.T.contiguous().T,
        lambda t: nn.Parameter(t),
    ],
)
@pytest.mark.filterwarnings("ignore")  # torch's, on its beta layouts and deprecated quantization
def test_values_of_every_floating_dtype_and_layout_are_kept(tmp_path, change):
    assert one_layer(change(torch.tensor(VALUES)), tmp_path).tolist() == VALUES


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(4, 3, dtype=torch.complex64), "weight holds complex64, whose imaginary part would be lost"),
        *((torch.ones(4, 3).to(dtype), f"weight holds {str(dtype)[6:]}, not floating point numbers; save it as float32")
          for dtype in (torch.bool, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.int64, torch.uint64)),
        (torch.ones(4, 3, device="meta"), "weight holds no values (device meta)"),
        (torch.full((4, 3), 1e300, dtype=torch.float64), "weight holds values that are beyond float32"),
        (torch.full((4, 3), torch.inf), "weight holds values that are not finite"),
        (torch.zeros(4, 3, dtype=torch.uint8).view(torch.float4_e2m1fn_x2) if hasattr(torch, "float4_e2m1fn_x2")
         else torch.ones(4, 3, dtype=torch.complex128), "weight holds "),
    ],
    ids=lambda value: str(value)[-60:] if isinstance(value, str) else str(value.dtype),
)  # fmt: skip
def test_what_is_no_real_finite_number_is_refused_by_tensor_and_dtype(tmp_path, weight, message):
    with pytest.raises(InputError) as caught:
        one_layer(weight, tmp_path)
    assert f"tensor {message}" in str(caught.value)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested")
def test_a_nested_tensor_is_refused(tmp_path):
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    with pytest.raises(InputError, match="tensor weight is nested"):
        one_layer(nested, tmp_path)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_a_sparse_tensor_larger_than_memory_is_refused_by_its_shape(tmp_path):
    huge = torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.int64), torch.ones(1), (1 << 30, 1 << 30))
    with pytest.raises(InputError, match="of another shape: weight"):
        one_layer(huge, tmp_path)


@pytest.mark.parametrize(("value", "good"), [(7.0, True), (7.5, False), (1e30, False), (float("nan"), False)])
def test_a_count_keeps_its_value_or_is_refused(weights, value, good):
    model = network()
    weights["1.num_batches_tracked"] = torch.tensor(value)
    if good:
        load_into(model, weights, "mine")
        assert model.state_dict()["1.num_batches_tracked"] == 7
    else:
        with pytest.raises(InputError, match=r"1\.num_batches_tracked holds float32, with values that are not int64"):
            load_into(model, weights, "mine")


@given(st.sampled_from([*FLOATING, *WHOLE, "C64", "F4", "F6_E2M3", "F6_E3M2"]), st.binary(min_size=128, max_size=128))
def test_every_dtype_of_safetensors_is_read_right_or_refused(tmp_path_factory, kind, data):
    """Read right: what torch's own reader gives, as float32."""
    path = tmp_path_factory.mktemp("file") / "file.safetensors"
    path.write_bytes(content_of("weight", kind, (4, 4), data))
    model = nn.Linear(4, 4, bias=False)
    try:
        load_from(model, str(path), "mine")
    except InputError as error:
        assert f"tensor weight holds {kind}" in str(error) or kind in (*FLOATING, *WHOLE)  # noqa: PT017
        assert "tensor weight holds" in str(error)  # noqa: PT017
        assert kind not in FLOATING or "not finite" in str(error) or "beyond" in str(error)  # noqa: PT017
    else:
        assert kind in FLOATING
        assert torch.equal(model.weight, read_checkpoint(str(path))["weight"].to(torch.float32))


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
    [[torch.ones(2)], {"weight": 1.5}, {"state_dict": {"a": {"b": 1}}}, 3, {}, {0: torch.ones(1)}],
)
def test_what_is_not_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "file.pth")
    assert "is not a state_dict of tensors" in refused(tmp_path / "file.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("2.bias"), r"not those of mine; missing: 2.bias \(2,\)"),
        (lambda weights: weights.update(more=torch.ones(1)), r"not those of mine; unknown: more \(1,\)"),
        (lambda weights: weights.update({"0.weight": torch.ones(4, 2)}), r"0.weight \(4, 2\) instead of \(4, 3\)"),
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
