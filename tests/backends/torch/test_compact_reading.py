"""What compaction reads of a module: wrappers, subclasses, checks on shapes; what it can't read is said truly."""

import pytest
import torch
from called import Called
from same_function import same
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hyperflux import InputError
from hyperflux.backends.torch.compact.layer_types import layer_type
from hyperflux.deploy.compact import compact, compaction


def linear(inputs, outputs, kind=nn.Linear):
    """A layer whose first two outputs are dead."""
    made = kind(inputs, outputs)
    made.weight.data[:2] = 0.0
    return made


def network(forward):
    return Called(forward, a=linear(6, 8), b=linear(8, 3)).eval()


def plain(s, x):
    return s.b(torch.relu(s.a(x)))


def autocast(s, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = s.a(x)
    return s.b(x.float())


def default_dtype(s, x):
    torch.set_default_dtype(torch.float64)
    try:
        return (plain(s, x) + torch.ones(x.shape[0], 1)).float()
    finally:
        torch.set_default_dtype(torch.float32)


def default_device(s, x):
    with torch.device("cpu"):
        return plain(s, x) + torch.ones(x.shape[0], 1)


def deterministic(s, x):
    torch.use_deterministic_algorithms(True)
    try:
        return plain(s, x)
    finally:
        torch.use_deterministic_algorithms(False)


def chosen_kernel(s, x):
    with sdpa_kernel(SDPBackend.MATH):
        return plain(s, x)


def seeded(s, x):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return plain(s, x + torch.rand(x.shape))


def without_cudnn(s, x):
    with torch.backends.cudnn.flags(enabled=False):
        return plain(s, x)


CONTEXTS = {
    autocast: "forward changes autocast",
    default_dtype: "forward changes the default dtype",
    default_device: "forward changes a mode of torch functions",
    deterministic: "forward changes deterministic algorithms",
    chosen_kernel: "forward changes the kernels of attention",
    seeded: "forward changes torch's random numbers",
    without_cudnn: "forward changes the backends of torch",
}


@pytest.mark.parametrize("forward", CONTEXTS)
def test_a_context_that_the_graph_would_lose_is_refused_by_name_and_kept_in_a_submodule(forward):
    with pytest.raises(InputError, match=f"line .*: {CONTEXTS[forward]}.* move it into a submodule"):
        compact(network(forward), torch.randn(2, 6))
    model = nn.Sequential(
        linear(6, 9), nn.ReLU(), linear(9, 6), network(forward), linear(3, 4), nn.ReLU(), linear(4, 2)
    )
    done = compaction(model.eval(), torch.randn(2, 6))
    assert list(done.left_alone) == ["3"]
    assert CONTEXTS[forward] in done.left_alone["3"]
    assert done.removed["0"].outputs == (0, 1)
    fresh = torch.randn(5, 6)
    torch.testing.assert_close(done.module(fresh), model(fresh))


def without_gradients(s, x):
    with torch.no_grad():
        x = s.a(x)
    return s.b(x)


def in_inference_mode(s, x):
    with torch.inference_mode():
        x = s.a(x)
    return s.b(x)


def drawn_once(s, x):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        table = torch.rand(6)
    return plain(s, x + table)


@pytest.mark.parametrize("forward", [without_gradients, in_inference_mode, drawn_once])
def test_a_context_that_changes_no_output_may_be_lost(forward):
    model, fresh = network(forward), torch.randn(4, 6)
    done = compaction(model, torch.randn(2, 6))
    assert done.removed["a"].outputs == (0, 1)
    with torch.no_grad():
        torch.testing.assert_close(done.module(fresh), model(fresh))


@pytest.mark.parametrize("context", [torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16)])
def test_the_result_does_not_depend_on_the_callers_context(context):
    model, fresh = network(plain), torch.randn(4, 6)
    with context:
        small = compact(model, torch.randn(2, 6))
    assert not any(parameter.is_inference() for parameter in small.parameters())
    torch.testing.assert_close(small(fresh), model(fresh))


def counting(s, x):
    s.count = getattr(s, "count", 0) + 1
    return plain(s, x) * s.count


def by_type(s, x):
    return plain(s, x) if isinstance(x, torch.Tensor) else s.a(x)


def by_value(s, x):
    return plain(s, x) if x.max().item() > -100 else x


def by_parity(s, x):
    return plain(s, x) * (2 if x.shape[0] % 2 else 1)


def by_parity_of_size(s, x):
    return plain(s, x) * 2 if x.shape[0] % 2 == 0 else plain(s, x)


def noisy(s, x):
    return plain(s, x + torch.randn_like(x))


class Answer:
    pass


REFUSED = {
    counting: "random in evaluation mode or changes its own state",
    noisy: "random in evaluation mode or changes its own state",
    by_type: "its graph gives other outputs; forward depends on types",
    by_value: "branches on the values of a tensor",
    by_parity: "branches on a size, and neither branch is right for every size",
    by_parity_of_size: "branches on a size, and neither branch is right for every size",
    lambda s, x: Answer(): "must return a tensor, or a tuple, list or dict",
    lambda s, x: plain(s, x["x"]): "can't take the example input",
}


@pytest.mark.parametrize("forward", REFUSED)
def test_what_cannot_be_read_is_refused_with_the_true_reason(forward):
    with pytest.raises(InputError, match=REFUSED[forward]) as caught:
        compact(network(forward), torch.randn(2, 6))
    assert "\n" not in str(caught.value)


def checked(s, x):
    batch, features = x.shape
    assert features == 6, "features"
    if x.dim() != 2 or features % 2:
        raise ValueError("shape")
    parts = list(s.a(x).chunk(2, 1))
    parts.extend(part * 2 for part in s.a2(x).split(4, 1))
    for number in range(features):
        x = x + number
    return s.b(torch.cat(parts, 1)) + x.sum(1, keepdim=True) / batch


def test_checks_and_loops_on_shapes_are_read():
    model = Called(checked, a=linear(6, 8), a2=linear(6, 8), b=nn.Linear(16, 3)).double().eval()
    done = compaction(model, torch.randn(2, 6, dtype=torch.float64))
    assert done.left_alone == {}
    assert done.removed["a"].outputs == (0, 1)
    for batch in (1, 2, 5):
        fresh = torch.randn(batch, 6, dtype=torch.float64)
        same(model(fresh), done.module(fresh))


def test_wrappers_are_looked_through():
    model, fresh = nn.Sequential(linear(6, 8), nn.ReLU(), linear(8, 3)).eval(), torch.randn(4, 6)
    with_part = nn.Sequential(torch.compile(model), nn.Linear(3, 2)).eval()
    in_place = nn.Sequential(*model).eval()
    in_place.compile()
    for wrapped in (torch.compile(model), nn.DataParallel(model), in_place):
        done = compaction(wrapped, fresh)
        assert done.removed["0"].outputs == (0, 1)
        torch.testing.assert_close(done.module(fresh), model(fresh))
    assert compaction(with_part, fresh).removed["0.0"].outputs == (0, 1)


def exported(model):
    return torch.export.export(model, (torch.randn(2, 6),)).module()


OTHERS = {
    torch.jit.script: "can't read TorchScript; give the module",
    exported: "torch.export has fixed sizes; give",
    str: "model: a str is not a module; give a torch.nn.Module",
}


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize("wrap", OTHERS)
def test_what_is_no_plain_module_is_named(wrap):
    with pytest.raises(InputError, match=OTHERS[wrap]):
        compact(wrap(nn.Linear(6, 3)), torch.randn(2, 6))


class Named(nn.Linear):
    """Changes nothing."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.calls = 0

    def norm(self):
        return self.weight.norm()


class Doubled(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


class Replaced(nn.Linear):
    """Its weight is computed, as where torch or a user changes the class of a module that exists."""

    @property
    def weight(self):
        return self._parameters["weight"] + 1


def replaced(inputs, outputs):
    made = nn.Linear(inputs, outputs)
    made.__class__ = Replaced
    return made


def test_a_subclass_counts_as_its_layer_only_if_it_changes_nothing():
    assert layer_type(Named(2, 3)) is nn.Linear
    assert layer_type(nn.Linear(2, 3)) is nn.Linear
    assert layer_type(Doubled(2, 3)) is Doubled
    assert layer_type(replaced(2, 3)) is Replaced
    assert layer_type(nn.MultiheadAttention(4, 2).out_proj) is nn.Linear
    for kind in (Named, Doubled, replaced):
        model = nn.Sequential(linear(6, 8, kind), nn.ReLU(), linear(8, 3)).double().eval()
        done = compaction(model, torch.randn(2, 6, dtype=torch.float64))
        assert ("0" in done.removed) == (kind is Named)
        fresh = torch.randn(5, 6, dtype=torch.float64)
        same(model(fresh), done.module(fresh))


def with_empty(s, x):
    return s.b(torch.cat([s.a(x), s.c(x[:, : s.c.in_features])], 1))


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize("where", ["between", "no inputs", "no outputs"])
def test_parameters_of_no_elements_do_not_matter(where):
    if where == "between":
        model = nn.Sequential(nn.Linear(6, 0), nn.ReLU(), nn.Linear(0, 4), linear(4, 3))
    else:
        empty = nn.Linear(0, 5) if where == "no inputs" else nn.Linear(6, 0)
        model = Called(with_empty, a=linear(6, 8), b=nn.Linear(8 + empty.out_features, 3), c=empty)
    model = model.double().eval()
    done = compaction(model, torch.randn(2, 6, dtype=torch.float64))
    fresh = torch.randn(5, 6, dtype=torch.float64)
    same(model(fresh), done.module(fresh))
    assert set(done.left_alone.values()) == {"it has a parameter of 0 elements"}
