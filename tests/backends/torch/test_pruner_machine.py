"""What people do to model, optimizer and Pruner while it prunes, in any order.

After `finalize()` has returned, the module's own parameters hold exactly the promised number of weights that are not 0;
and whatever made that impossible was said at the first step after it happened.
"""

import copy
import logging
import pickle

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrize

from hyperflux import InputError, Pruner

LAYERS = st.sampled_from(["body", "head"])
SPARSITY = 0.7


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(9, 7), nn.Linear(7, 3)

    def forward(self, x):
        return self.head(self.body(x).relu())


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


class Log(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


class PruningSession(RuleBasedStateMachine):
    """`replaced` and `written` name the layers that the next step must refuse; `joined` is what it must warn of."""

    @initialize(momentum=st.sampled_from([0.0, 0.9]))
    def start(self, momentum):
        self.log = Log()
        logging.getLogger("hyperflux").addHandler(self.log)
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(16, 9, generator=generator, dtype=torch.float64)
        self.labels = torch.randint(3, (16,), generator=generator)
        self.momentum = momentum
        self.begin(seed=0)

    def begin(self, seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = Net().double()
        self.optimizer = self.new_optimizer()
        self.pruner = self.new_pruner()
        self.replaced, self.written, self.parametrized, self.joined = set(), set(), set(), False
        self.reported = set()

    def new_optimizer(self):
        return torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=self.momentum)

    def new_pruner(self):
        return Pruner(
            self.model,
            self.optimizer,
            include=["body", "head"],
            target_sparsity=SPARSITY,
            pruning_steps=20,
            regrowth_steps=10,
            presence_lr=0.05,
        )

    @property
    def broken(self):
        return self.replaced | self.written | self.parametrized

    def backward(self):
        self.model.zero_grad()
        weight = next(self.model.parameters())
        cross_entropy(self.model(self.inputs.to(weight.dtype)), self.labels).backward()

    def note_written(self, layer):
        """The layer is written if it is not θ: writes may cancel out."""
        name = f"{layer}.weight"
        parameter = self.pruner.selection.prunable[name]
        effective = self.pruner.latent()[name].masked_fill(~self.pruner.masks()[name], 0).to(parameter.dtype)
        (self.written.discard if torch.equal(parameter, effective) else self.written.add)(layer)

    def step(self):
        self.backward()
        self.optimizer.step()

    @rule(steps=st.integers(1, 12))
    def train(self, steps):
        before = self.pruner.step_count
        if self.broken:
            with pytest.raises(InputError, match="|".join(rf"{layer}\.weight: " for layer in self.broken)):
                self.step()
            assert self.pruner.step_count == before
            return
        for _ in range(steps):
            self.step()
        assert self.pruner.step_count == before + steps
        if self.joined:
            assert any("extra.weight: trained, but not pruned" in line for line in self.log.lines)

    @rule(adaptive=st.booleans())
    def train_with_another_optimizer(self, adaptive):
        kind = torch.optim.AdamW if adaptive else torch.optim.Adagrad
        other = kind(self.model.parameters(), lr=1e-2)
        held = {name: self.pruner.selection.prunable[f"{name}.weight"] for name in ("body", "head")}
        before = {name: parameter.detach().clone() for name, parameter in held.items()}
        said = len(self.log.lines)
        self.backward()
        other.step()
        changed = {name for name, parameter in held.items() if not torch.equal(parameter, before[name])}
        for name in changed:
            self.note_written(name)
        if changed and (kind.__name__, self.pruner.step_count) not in self.reported:
            self.reported.add((kind.__name__, self.pruner.step_count))
            assert any(f"{kind.__name__} trains weights under a Pruner" in line for line in self.log.lines[said:])

    @rule()
    def follow_a_new_optimizer(self):
        optimizer = self.new_optimizer()
        if self.parametrized:
            with pytest.raises(InputError, match="is no longer a parameter"):
                self.pruner.follow(optimizer)
            return
        self.pruner.follow(optimizer)
        self.optimizer = optimizer
        self.replaced, self.written = set(), set()

    @rule(layer=LAYERS)
    def replace_layer(self, layer):
        old = getattr(self.model, layer)
        if layer not in self.parametrized:
            setattr(self.model, layer, nn.Linear(old.in_features, old.out_features).to(old.weight.dtype))
            self.replaced.add(layer)

    @precondition(lambda self: not self.parametrized)
    @rule()
    def assign_a_state(self):
        self.model.load_state_dict({k: v.clone() for k, v in self.model.state_dict().items()}, assign=True)
        self.replaced |= {"body", "head"}

    @rule(layer=LAYERS)
    def parametrize_layer(self, layer):
        module = getattr(self.model, layer)
        if layer in self.parametrized:
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
            self.parametrized.remove(layer)
        else:
            parametrize.register_parametrization(module, "weight", Doubled(), unsafe=True)
            self.parametrized.add(layer)

    @rule(layer=LAYERS, how=st.sampled_from(["data", "in place", "new storage"]), shrink=st.booleans())
    def write(self, layer, how, shrink):
        parameter = self.pruner.selection.prunable[f"{layer}.weight"]
        factor = 0.5 if shrink else 2.0
        if how == "data":
            parameter.data.mul_(factor)
        elif how == "in place":
            with torch.no_grad():
                parameter.mul_(factor)
        else:
            parameter.data = parameter.data * factor
        self.note_written(layer)

    @rule()
    def resync(self):
        self.pruner.resync()
        self.written = set()

    @rule(layer=LAYERS, trainable=st.booleans())
    def freeze(self, layer, trainable):
        """One of the two layers stays trainable."""
        getattr(self.model, layer).requires_grad_(trainable)
        getattr(self.model, "head" if layer == "body" else "body").requires_grad_(True)

    @precondition(lambda self: not hasattr(self.model, "extra"))
    @rule()
    def add_a_layer(self):
        """It takes no part in the forward pass, so its weights have no gradient, but the optimizer holds them."""
        self.model.extra = nn.Linear(3, 3).to(next(self.model.parameters()).dtype)
        self.optimizer.add_param_group({"params": list(self.model.extra.parameters())})
        patterns = self.pruner._watch._include
        self.joined = "extra" in patterns

    @rule(way=st.sampled_from(["deepcopy", "pickle"]))
    def go_on_with_copies(self, way):
        way = "deepcopy" if self.parametrized else way  # torch can't pickle parametrized modules
        everything = (self.model, self.optimizer, self.pruner)
        copied = copy.deepcopy(everything) if way == "deepcopy" else pickle.loads(pickle.dumps(everything))
        self.pruner.release()
        self.model, self.optimizer, self.pruner = copied

    @rule()
    def save_train_and_load(self):
        if self.broken:
            with pytest.raises(InputError):
                self.pruner.state_dict()
            return
        saved, before = self.pruner.state_dict(), self.pruner.step_count
        masks = self.pruner.masks()
        self.step()
        self.pruner.load_state_dict(saved)
        assert self.pruner.step_count == before
        assert all(torch.equal(mask, masks[name]) for name, mask in self.pruner.masks().items())

    @rule()
    def lower_precision(self):
        self.model.float()

    @rule(seed=st.integers(0, 3))
    def finalize_and_begin_again(self, seed):
        if self.broken:
            with pytest.raises(InputError):
                self.pruner.finalize()
            return
        self.pruner.finalize()
        weights = [self.model.get_parameter("body.weight"), self.model.get_parameter("head.weight")]
        assert sum(int((weight != 0).sum()) for weight in weights) == round((1 - SPARSITY) * 84)
        self.begin(seed)

    def teardown(self):
        if hasattr(self, "pruner"):
            self.pruner.release()
            logging.getLogger("hyperflux").removeHandler(self.log)


TestPruningSession = PruningSession.TestCase
TestPruningSession.settings = settings(max_examples=40, stateful_step_count=25)
