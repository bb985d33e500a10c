"""One pruning session: what it does after each step, on every path into it."""

import itertools

import pytest
import torch
from interrupted import quick
from networks import batches, build
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hyperflux import Pruner
from hyperflux.backends import build_backend
from hyperflux.runs.data_order import epoch_batches
from hyperflux.runs.driver import feasible_schedule
from hyperflux.session.warnings import Warnings

COURSES = {
    "default": {},
    "published": {"controller": "published", "pruning": {"epochs": 4, "presence_learning_rate": 3e-2}},
    "magnitude": {"method": "magnitude"},
}


class Writes(TorchDispatchMode):
    """Counts the operations that write to the storage of each of some tensors."""

    def __init__(self, tensors):
        super().__init__()
        self.counts = dict.fromkeys((tensor.data_ptr() for tensor in tensors), 0)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for argument, value in itertools.zip_longest(operation._schema.arguments, args):
            value = kwargs.get(argument.name) if value is None else value
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in value if isinstance(value, list | tuple) else [value]:
                    if isinstance(tensor, torch.Tensor) and tensor.data_ptr() in self.counts:
                        self.counts[tensor.data_ptr()] += 1
        return operation(*args, **kwargs)

    def taken(self):
        """The counts since the last call."""
        taken, self.counts = list(self.counts.values()), dict.fromkeys(self.counts, 0)
        return taken


@pytest.mark.parametrize("course", COURSES)
def test_the_driver_writes_the_effective_weights_once_per_step(course):
    """E2, E12: a control step moves t before θ is written."""
    config = quick(backend="torch", dtype="float32", **COURSES[course])
    backend = build_backend(config)
    session = backend.start_pruning(feasible_schedule(config, backend), Warnings(lambda line: None))
    writes, seen = Writes(backend.prunable_parameters()), []
    with writes:
        for epoch in range(1, 1 + config.pruning.epochs + config.regrowth.epochs):
            backend.train_pruning(
                epoch_batches(0, epoch, backend.samples, config.batch_size),
                learning_rate=0.01,
                label_smoothing=0.1,
                after_step=lambda: seen.append(writes.taken()),
            )
    assert session.stage == "done"
    assert len(seen) == session.scheduler.last_step
    assert all(counts == [1, 1] for counts in seen)


@pytest.mark.parametrize("controller", ["default", "published"])
def test_a_pruner_writes_the_effective_weights_once_per_step(controller):
    model = build("mlp", dtype=torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(
        model,
        optimizer,
        target_sparsity=0.9,
        pruning_steps=20,
        regrowth_steps=10,
        presence_lr=0.05,
        controller=controller,
    )
    writes = Writes(pruner.selection.prunable.values())
    with writes:
        for inputs, labels in batches(30, dtype=torch.float32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            assert set(writes.taken()) == {1}
    assert pruner.stage == "done"


@pytest.mark.parametrize("backend", ["torch", "numpy"])
@pytest.mark.parametrize("course", COURSES)
def test_both_backends_are_steered_by_the_same_session(backend, course):
    """Each step is one step of the schedule, and the masks meet its target count at every control step."""
    config = quick(backend=backend, **COURSES[course])
    trained = build_backend(config)
    schedule = feasible_schedule(config, trained)
    session = trained.start_pruning(schedule, Warnings(lambda line: None), "light")
    seen = []

    def after_step():
        seen.append((session.gate.steps, session.gate.surviving(), session.stage))

    for epoch in range(1, 1 + config.pruning.epochs + config.regrowth.epochs):
        order = epoch_batches(0, epoch, trained.samples, config.batch_size)
        trained.train_pruning(order, learning_rate=0.01, label_smoothing=0.1, after_step=after_step)
    steps = schedule.pruning_steps + schedule.regrowth_steps
    assert [step for step, *_ in seen] == list(range(1, steps + 1))
    assert [stage for *_, stage in seen].index("regrowth") == schedule.pruning_steps - 1
    if course != "published":
        pruning = seen[: schedule.pruning_steps]
        assert [count for _, count, _ in pruning] == [schedule.target_count(step) for step, *_ in pruning]
    session.finish()
    tables = session.recorder.tables()
    assert (
        tables["network"]["surviving"][-1]
        == session.gate.surviving()
        == sum(layer.surviving for layer in trained.layers())
    )
