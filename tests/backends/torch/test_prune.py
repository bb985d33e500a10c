"""`hyperflux.prune`: the forms that batches and outputs may have, and what is said of others before a step is taken."""

import copy
from collections import UserDict, namedtuple
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hyperflux
from hyperflux import InputError
from hyperflux.backends.torch.batch_forms import batches_on, leaves, samples_in
from hyperflux.backends.torch.outputs import AUXILIARY_WEIGHT, classification_loss, main_output
from hyperflux.backends.torch.training import Precision, train_epoch

CPU = torch.device("cpu")
X = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3
Pair = namedtuple("Pair", ["pictures", "classes"])
Triple = namedtuple("Triple", ["pictures", "classes", "weights"])
GoogLike = namedtuple("GoogLike", ["logits", "aux_logits2", "aux_logits1"])


@dataclass
class Output:
    logits: torch.Tensor
    hidden_states: torch.Tensor | None = None


class Network(nn.Module):
    """A classifier of rows of five numbers, with an output of any form made of its logits."""

    def __init__(self, wrap=lambda logits: logits):
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.wrap, self.seen = nn.Linear(5, 3), wrap, []

    def forward(self, inputs):
        self.seen.append(inputs)
        rows = next(leaf for leaf in leaves(inputs) if isinstance(leaf, torch.Tensor))
        logits = self.fc(rows)
        return self.wrap(logits) if self.training else logits


def prune(model, loader, **settings):
    settings = {"target_sparsity": 0.4, "pruning_epochs": 2, "regrowth_epochs": 1, "presence_lr": 0.1, **settings}
    return hyperflux.prune(model, loader, device="cpu", **settings)


def pruned_weights(loader, wrap=lambda logits: logits, **settings):
    model = Network(wrap)
    assert prune(model, loader, **settings).stage == "done"
    return model.fc.weight.detach()


BATCHES = {
    "list": [X, Y],
    "named tuple": Pair(X, Y),
    "dict": {"input": X, "label": Y},
    "the other order": {"targets": Y, "pixels": X},
    "mapping": UserDict({"x": X, "y": Y}),
    "arrays": (X.numpy(), Y.numpy()),
    "double arrays": (X.numpy().astype(np.float64), Y.numpy().astype(np.int32)),
    "arrays that can't be written": (np.broadcast_to(X.numpy(), X.shape), Y.numpy()[::-1][::-1]),
    "big-endian arrays": (X.numpy().astype(">f4"), Y.numpy().astype(">i2")),
    "nested inputs": ({"rows": [X], "length": 12}, Y),
    "classes in a list": (X, Y.tolist()),
    "small integers": (X, Y.to(torch.uint8)),
}


class TestBatches:
    @pytest.mark.parametrize("form", BATCHES)
    def test_forms_that_leave_no_doubt_train_as_pairs_of_tensors(self, form):
        assert torch.equal(pruned_weights([BATCHES[form]] * 4), pruned_weights([(X, Y)] * 4))

    def test_targets_may_be_probabilities(self):
        found = pruned_weights([(X, nn.functional.one_hot(Y).float())] * 4)
        torch.testing.assert_close(found, pruned_weights([(X, Y)] * 4))

    def test_the_model_gets_its_inputs_as_they_are(self):
        model = Network()
        prune(model, [({"rows": X, "pair": Pair(X, [1, "two"])}, Y)] * 4)
        seen = model.seen[0]
        assert isinstance(seen["pair"], Pair)
        assert seen["pair"].classes == [1, "two"]
        assert torch.equal(seen["rows"], X)

    @pytest.mark.parametrize("targets", [{"y": Y, "boxes": [X]}, (Y, Y), Pair(Y, X)], ids=["dict", "tuple", "named"])
    def test_nested_targets_go_to_the_users_loss(self, targets):
        def loss(outputs, found):
            assert type(found) is type(targets)
            classes = found["y"] if isinstance(found, dict) else found[0]
            return nn.functional.cross_entropy(outputs, classes, label_smoothing=0.1)

        assert torch.equal(pruned_weights([(X, targets)] * 4, loss=loss), pruned_weights([(X, Y)] * 4))

    @pytest.mark.parametrize(("batch", "found"), [
        ((X, Y, torch.ones(12)), "a tuple of 3 parts"),
        (Triple(X, Y, Y), "a Triple of 3 parts"),
        ((X,), "a tuple of 1 part"),
        ([], "a list of 0 parts"),
        (X, r"a tensor of shape \(12, 5\) and type float32"),
        (X[:2], r"a tensor of shape \(2, 5\)"),
        (X[:2].numpy(), r"an array of shape \(2, 5\)"),
        ({"input": X, "mask": X, "label": Y}, "a dict with the keys input, mask, label"),
        ({"image": X, "mask": Y}, "a dict with the keys image, mask"),
        ({"label": Y, "target": Y}, "a dict with the keys label, target"),
        ("ab", "of type str"),
        (None, "of type NoneType"),
    ])  # fmt: skip
    def test_other_forms_are_described_with_what_a_batch_has_to_be(self, batch, found):
        model = Network()
        before = copy.deepcopy(model.state_dict())
        message = rf"train_loader: batch 1 is {found}.* pair \(inputs, targets\); give a loader of pairs"
        with pytest.raises(InputError, match=message):
            prune(model, [batch] * 4)
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        assert not model.seen

    def test_a_later_batch_is_named_by_its_number(self):
        with pytest.raises(InputError, match="batch 3 is a tuple of 3 parts"):
            prune(Network(), [(X, Y), (X, Y), (X, Y, Y)])

    @pytest.mark.parametrize("batch", [(X[:0], Y[:0]), {"x": X[:0].numpy(), "y": []}])
    def test_a_batch_without_samples_is_refused(self, batch):
        with pytest.raises(InputError, match="batch 1 holds no sample"):
            prune(Network(), [batch] * 2)

    def test_an_array_of_words_is_refused(self):
        with pytest.raises(InputError, match=r"batch 1 holds an array of shape \(12,\) and type <U3, which no tensor"):
            prune(Network(), [(X, np.array(["cat"] * 12))])

    def test_the_mean_loss_counts_samples_and_not_keys(self):
        model, mean = Network(), nn.CrossEntropyLoss()
        loader = [({"rows": X, "more": X}, Y), ({"rows": X[:3], "more": X}, Y[:3])]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        done = train_epoch(model, loader, optimizer, mean, Precision("off", CPU))
        rows = torch.cat([X, X[:3]]), torch.cat([Y, Y[:3]])
        assert done.samples == 15
        assert done.loss / done.samples == pytest.approx(mean(model.fc(rows[0]), rows[1]).item(), rel=1e-5)


OUTPUTS = {
    "dict": lambda logits: {"logits": logits, "features": logits * 2},
    "segmentation": lambda logits: {"out": logits},
    "dataclass": Output,
    "only one": lambda logits: (logits,),
    "auxiliary heads that are off": lambda logits: GoogLike(logits, None, None),
}


class TestOutputs:
    @pytest.mark.parametrize("form", OUTPUTS)
    def test_the_logits_are_found_by_name(self, form):
        assert torch.equal(pruned_weights([(X, Y)] * 4, OUTPUTS[form]), pruned_weights([(X, Y)] * 4))

    def test_transformers_outputs(self):
        outputs = pytest.importorskip("transformers.modeling_outputs")
        wrap = lambda logits: outputs.SequenceClassifierOutput(logits=logits)  # noqa: E731
        assert torch.equal(pruned_weights([(X, Y)] * 4, wrap), pruned_weights([(X, Y)] * 4))

    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    def test_auxiliary_heads_add_their_share(self, smoothing):
        logits = [torch.randn(12, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
        each = [nn.functional.cross_entropy(head, Y, label_smoothing=smoothing) for head in logits]
        assert AUXILIARY_WEIGHT == 0.3
        found = classification_loss(GoogLike(*logits), Y, label_smoothing=smoothing)
        torch.testing.assert_close(found, each[0] + 0.3 * each[1] + 0.3 * each[2])
        mapped = {"out": logits[0], "aux": logits[1], "boxes": logits[2]}
        torch.testing.assert_close(classification_loss(mapped, Y, label_smoothing=smoothing), each[0] + 0.3 * each[1])

    @pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
    def test_torchvisions_networks_with_auxiliary_heads(self, name):
        models = pytest.importorskip("torchvision.models")
        model = models.get_model(name, weights=None, num_classes=3, init_weights=False)
        side = 96 if name == "googlenet" else 299
        images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
        pruner = hyperflux.prune(
            model, [(images, torch.tensor([0, 1]))], target_sparsity=0.3, pruning_epochs=1, regrowth_epochs=0,
            presence_lr=1.0, device="cpu",
        )  # fmt: skip
        assert pruner.stage == "done"
        with torch.no_grad():
            assert main_output(model.eval()(images)).shape == (2, 3)

    @pytest.mark.parametrize(("wrap", "found"), [
        (lambda logits: (logits, logits), "a tuple of 2 parts"),
        (lambda logits: {"a": logits, "b": logits}, "a dict with the keys a, b"),
        (lambda logits: {"logits": None}, "a dict with the keys logits"),
        (lambda logits: None, "of type NoneType"),
        (lambda logits: 3.5, "of type float"),
    ])  # fmt: skip
    def test_other_outputs_need_a_loss(self, wrap, found):
        with pytest.raises(InputError, match=f"the model's output is {found}, and cross-entropy.*; give a loss"):
            prune(Network(wrap), [(X, Y)] * 4)

    def test_the_users_loss_gets_the_output_as_it_is(self):
        mean = partial(nn.functional.cross_entropy, label_smoothing=0.1)
        found = pruned_weights([(X, Y)] * 4, lambda logits: (logits, "more"), loss=lambda out, y: mean(out[0], y))
        assert torch.equal(found, pruned_weights([(X, Y)] * 4))


class TestTheFirstBatch:
    @pytest.mark.parametrize(("batch", "message"), [
        ((X[:, :4], Y), r"the model can't take the inputs of the first batch, which are a tensor of shape \(12, 4\)"),
        ((X.double(), Y), r"can't take the inputs of the first batch.*type float64 \(RuntimeError"),
        (("words", Y), "can't take the inputs of the first batch, which are of type str"),
        ((X, Y[:5]), r"cross-entropy can't take outputs.*\(12, 3\).*and targets.*\(5,\)"),
        ((X, Y + 7), r"cross-entropy can't take outputs.*Target \d+ is out of bounds"),
        ((X, Y > 0), r"cross-entropy can't take outputs.*type bool"),
        ((X, (Y, Y)), "the targets are a tuple of 2 parts, and cross-entropy takes one tensor of classes; give a loss"),
        ((X, {"y": Y}), "the targets are a dict with the keys y"),
    ])  # fmt: skip
    def test_what_model_and_loss_can_not_take_is_said_before_a_step(self, batch, message):
        model = Network()
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(InputError, match=message) as caught:
            prune(model, [batch] * 4)
        assert "\n" not in str(caught.value)
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        assert not nn.utils.parametrize.is_parametrized(model.fc)

    @pytest.mark.parametrize(("loss", "message"), [
        (lambda out, y: out["logits"].mean(), r"the loss can't take outputs that are a tensor"),
        (lambda out, y: 1.5, "loss: is of type float, and has to be a tensor of one number"),
        (lambda out, y: out, r"loss: is a tensor of shape \(12, 3\).*depends on the outputs"),
    ])  # fmt: skip
    def test_a_loss_that_does_not_fit(self, loss, message):
        with pytest.raises(InputError, match=message):
            prune(Network(), [(X, Y)] * 4, loss=loss)

    def test_a_failure_later_on_is_the_users_own(self):
        class Tired(Network):
            def forward(self, inputs):
                if len(self.seen) == 5:
                    raise RuntimeError("tired")
                return super().forward(inputs)

        with pytest.raises(RuntimeError, match=r"^tired$"):
            prune(Tired(), [(X, Y)] * 4)


PARTS = st.recursive(
    st.just(X) | st.integers() | st.text(max_size=2) | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    | st.tuples(inner, inner) | st.builds(Pair, inner, inner),
)  # fmt: skip


@settings(max_examples=40)
@given(PARTS, PARTS)
def test_nested_parts_keep_their_form(inputs, targets):
    ((found, wanted),) = batches_on(CPU, torch.float32, [(inputs, targets)])
    assert repr((found, wanted)) == repr((inputs, targets))
    assert samples_in(found) == (12 if "tensor" in repr(found) else 1)


@given(st.lists(PARTS, max_size=4).map(tuple) | PARTS)
def test_every_batch_is_a_pair_or_refused(batch):
    paired = (isinstance(batch, tuple | list) and len(batch) == 2) or (
        isinstance(batch, dict) and len(batch) == 2 and sum(name == "y" for name in batch) == 1
    )
    if paired:
        assert len(list(batches_on(CPU, torch.float32, [batch]))) == 1
    else:
        with pytest.raises(InputError, match=r"has to be a pair \(inputs, targets\)"):
            list(batches_on(CPU, torch.float32, [batch]))
