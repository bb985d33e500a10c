"""Every public callable of the package with arguments that it takes, and values to put in their place."""

import inspect
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import hyperflux
from hyperflux.deploy.sparse_file import write_sparse
from hyperflux.schedules.default import DefaultSchedule

DOCS = Path(__file__).parents[2] / "docs"
FORMULAS = (
    "hyperflux.spec.",
    "hyperflux.schedules.curves.",
    "hyperflux.schedules.controllers.ShiftController",
    "hyperflux.schedules.controllers.PublishedControllerState",
    "hyperflux.schedules.simulation.",
    "hyperflux.gates.costs.",
)
"""The specification, its costs and its simulation: arrays and numbers of the algorithm go through them unchecked."""
DOORS = (
    "hyperflux.backends.torch.selection.select",
    "hyperflux.deploy.export.export",
    "hyperflux.backends.torch.flops.count_cost",
    "hyperflux.deploy.latency.measure_run",
    "hyperflux.deploy.networks.load_networks",
    "hyperflux.deploy.sparse_file.write_sparse",
    "hyperflux.law.sweep.SweepSettings",
    "hyperflux.schedules.controllers.PublishedController",
    "hyperflux.schedules.factory.pruning_schedule",
    "hyperflux.schedules.magnitude.MagnitudeSchedule",
    "hyperflux.schedules.published.PublishedSchedule",
)
"""Public functions that the pages describe by their command or their class, not by their path."""


def public_callables():
    """All by dotted path: the package's own names with the methods of classes, those on the pages, and `DOORS`."""
    paths = {f"hyperflux.{name}" for name in hyperflux.__all__} | set(DOORS)
    for page in DOCS.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        for module, names in re.findall(r"from (hyperflux[\w.]*) import ([\w, ]+)", text):
            paths |= {f"{module}.{name.strip()}" for name in names.split(",")}
        paths |= set(re.findall(r"`(hyperflux(?:\.\w+)+)", text))
    found = {path: value for path in sorted(paths) if callable(value := _resolved(path))}
    return {
        called: function
        for path, value in found.items()
        if not path.startswith(FORMULAS)
        for called, function in _with_methods(path, value, path.count(".") == 1)
        if _parameters(function)
    }


def _resolved(path):
    try:
        return pkgutil.resolve_name(path)
    except (AttributeError, ImportError):
        return None


def _with_methods(path, value, methods):
    """The callable, and if it is a class and `methods`, also its public methods; no exceptions."""
    if isinstance(value, type) and issubclass(value, Exception):
        return
    yield path, value
    if isinstance(value, type) and methods:
        for name, member in vars(value).items():
            if not name.startswith("_") and not isinstance(member, property) and callable(getattr(value, name)):
                yield f"{path}.{name}", getattr(value, name)


def _parameters(function):
    return [name for name in inspect.signature(function).parameters if name != "self"]


@dataclass(frozen=True)
class Call:
    """A call that works.

    Attributes:
        build: Makes what is called, given a folder of material; `self` is bound.
        valid: Makes the arguments by name, new ones for each call.
        check: What has to hold of a result.
        aliases: A pattern of other words for a parameter in messages.
    """

    build: Callable[[Path], Callable[..., Any]]
    valid: Callable[[Path], Mapping[str, Any]]
    check: Callable[[Any], object] = lambda result: None
    aliases: Mapping[str, str] = field(default_factory=dict)


def network():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def optimizer_of(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def pruner_arguments(folder=None):
    model = network()
    return {
        "model": model,
        "optimizer": optimizer_of(model),
        "target_sparsity": 0.5,
        "flops": None,
        "parameters": None,
        "latency": None,
        "gates": "weights",
        "gate_inputs": False,
        "example_input": None,
        "latency_table": None,
        "pruning_steps": 400,
        "regrowth_steps": 200,
        "include": ["0", "2"],
        "exclude": None,
        "presence_lr": 1e-3,
        "controller": "default",
        "seed": 0,
        "telemetry": "off",
        "process_group": None,
    }


def scheduled(folder=None):
    kept = ("model", "optimizer", "include", "exclude", "seed", "telemetry", "process_group")
    return {
        "plan": None,
        **{name: pruner_arguments()[name] for name in kept[2:]},
        **_trained(),
        "schedule": schedule(),
        "warnings": None,
    }


def _trained():
    model = network()
    return {"model": model, "optimizer": optimizer_of(model)}


def schedule():
    return DefaultSchedule(18, 9, 400, 200)


def pruned(folder=None):
    inputs = torch.randn(8, 4)
    kept = (
        "target_sparsity", "flops", "parameters", "latency", "gates", "gate_inputs", "include", "exclude",
        "presence_lr", "controller", "seed",
    )  # fmt: skip
    own = {name: value for name, value in pruner_arguments().items() if name in kept}
    return {
        **own,
        **_trained(),
        "train_loader": [(inputs, torch.arange(8) % 2)],
        "pruning_epochs": 3,
        "regrowth_epochs": 1,
        "loss": nn.CrossEntropyLoss(),
        "device": "cpu",
        "amp": "off",
        "on_epoch": lambda pruner, loss: None,
    }


def readable(pruner):
    """Its state is read by torch.load without trusting it, and taken back."""
    import io

    file = io.BytesIO()
    torch.save(pruner.state_dict(), file)
    file.seek(0)
    pruner.load_state_dict(torch.load(file, weights_only=True))
    pruner.release()


def plain(settings):
    """All numbers of a dataclass are Python's own."""
    for name, value in vars(settings).items():
        assert not isinstance(value, np.generic | np.ndarray | torch.Tensor) or name == "root", (name, value)


def law():
    return hyperflux.fit_pruning_law([1.0, 2, 4, 8, 16], [0.4, 0.3, 0.2, 0.12, 0.07])


def law_arguments(folder=None):
    return dict(vars(law()))


def sparse_file(folder):
    write_sparse(folder / "one.safetensors", {"a": torch.ones(2)})
    return folder / "one.safetensors"


TRACED = {"example_input": "example input|can't trace"}


def plainly(value):
    """A build that ignores the material."""
    return lambda folder: value


def calls():
    """The rows of the table, by dotted path."""
    from hyperflux.backends.torch.flops import count_cost
    from hyperflux.backends.torch.selection import select
    from hyperflux.deploy.compact import compact, compaction
    from hyperflux.deploy.export import export
    from hyperflux.deploy.latency import measure_run
    from hyperflux.deploy.networks import load_networks
    from hyperflux.deploy.semi_structured import semi_structured
    from hyperflux.deploy.sparse import sparsify
    from hyperflux.deploy.sparse_file import read_sparse
    from hyperflux.law import compare_degrees
    from hyperflux.law.sweep import SweepSettings
    from hyperflux.schedules.controllers import PublishedController
    from hyperflux.schedules.default import DefaultCourse
    from hyperflux.schedules.factory import pruning_schedule
    from hyperflux.schedules.magnitude import MagnitudeSchedule
    from hyperflux.schedules.published import PublishedSchedule

    example = {"model": network(), "example_input": torch.ones(2, 4)}
    compacted = {**example, "drop_inputs": False}
    points = {"pressure": [1.0, 2, 4, 8, 16], "density": [0.4, 0.3, 0.2, 0.12, 0.07]}
    config, pruner = hyperflux.RunConfig(), hyperflux.Pruner(**pruner_arguments())
    of = "hyperflux."
    return {
        f"{of}Pruner": Call(plainly(hyperflux.Pruner), pruner_arguments, readable),
        f"{of}Pruner.with_schedule": Call(plainly(hyperflux.Pruner.with_schedule), scheduled, readable),
        f"{of}Pruner.load_state_dict": Call(
            plainly(pruner.load_state_dict),
            lambda folder: {"saved": pruner.state_dict()},
            aliases={"saved": "pruner state"},
        ),
        f"{of}Pruner.follow": Call(
            plainly(pruner.follow), lambda folder: {"optimizer": optimizer_of(pruner.model)}, plainly(None)
        ),
        f"{of}Pruner.apply_masks": Call(plainly(pruner.apply_masks), lambda folder: {"model": network()}),
        f"{of}prune": Call(plainly(hyperflux.prune), pruned, lambda pruner: pruner.state_dict()),
        f"{of}compact": Call(plainly(compact), lambda folder: compacted, aliases=TRACED),
        f"{of}deploy.compact.compaction": Call(plainly(compaction), lambda folder: compacted, aliases=TRACED),
        f"{of}fit_pruning_law": Call(plainly(hyperflux.fit_pruning_law), lambda folder: {**points, "degree": 2}, plain),
        f"{of}law.compare_degrees": Call(plainly(compare_degrees), lambda folder: points),
        f"{of}law.sweep.SweepSettings": Call(
            plainly(SweepSettings),
            lambda folder: dict(vars(SweepSettings())),
            plain,
            {"max_epochs": "epochs", "methods": "method"},
        ),
        f"{of}PruningLaw": Call(plainly(hyperflux.PruningLaw), law_arguments, plain),
        f"{of}PruningLaw.predict": Call(plainly(law().predict), lambda folder: {"pressure": 2.0}),
        f"{of}PruningLaw.predict_interval": Call(
            plainly(law().predict_interval), lambda folder: {"pressure": 2.0, "level": 0.9}
        ),
        f"{of}PruningLaw.interval": Call(plainly(law().interval), lambda folder: {"level": 0.9}),
        f"{of}PruningLaw.pressure_for": Call(plainly(law().pressure_for), lambda folder: {"density": 0.2}),
        f"{of}PruningLaw.pressure_interval": Call(
            plainly(law().pressure_interval), lambda folder: {"density": 0.2, "level": 0.9}
        ),
        f"{of}RunConfig": Call(
            plainly(hyperflux.RunConfig), lambda folder: dict(vars(config)), plain, {"dataset": "data set"}
        ),
        f"{of}RunConfig.from_dict": Call(
            plainly(hyperflux.RunConfig.from_dict),
            lambda folder: {"values": {"seed": 3}},
            aliases={"values": "setting"},
        ),
        f"{of}RunConfig.schedule": Call(
            plainly(config.schedule), lambda folder: {"total": 1000, "epoch_steps": 10}, plain, {"total": "weights of"}
        ),
        f"{of}backends.torch.selection.select": Call(
            plainly(select), lambda folder: {**_trained(), "include": None, "exclude": None}
        ),
        f"{of}deploy.export.export": Call(
            plainly(export),
            lambda folder: {"folder": folder / "run", "name": "safetensors", "compacted": True, "out": None},
            aliases={"name": "format"},
        ),
        f"{of}backends.torch.flops.count_cost": Call(plainly(count_cost), lambda folder: example),
        f"{of}deploy.latency.measure_run": Call(
            plainly(measure_run),
            lambda folder: {"folder": folder / "run", "batch_sizes": [2], "rotations": 1, "threads": 1},
            aliases={"batch_sizes": "batch size"},
        ),
        f"{of}deploy.networks.load_networks": Call(plainly(load_networks), lambda folder: {"folder": folder / "run"}),
        f"{of}deploy.sparse.sparsify": Call(plainly(sparsify), lambda folder: {**example, "rotations": 1}),
        f"{of}deploy.semi_structured.semi_structured": Call(
            plainly(semi_structured), lambda folder: {"model": network()}
        ),
        f"{of}deploy.sparse_file.read_sparse": Call(
            plainly(read_sparse), lambda folder: {"path": sparse_file(folder), "max_bytes": 10_000}
        ),
        f"{of}deploy.sparse_file.write_sparse": Call(
            plainly(write_sparse),
            lambda folder: {"path": folder / "two.safetensors", "tensors": {"a": torch.ones(2)}, "notes": None},
        ),
        f"{of}schedules.controllers.PublishedController": Call(
            plainly(PublishedController), lambda folder: {"step": 0.3}, plain
        ),
        f"{of}schedules.default.DefaultCourse": Call(
            plainly(DefaultCourse), lambda folder: dict(vars(DefaultCourse())), plain
        ),
        f"{of}schedules.default.DefaultSchedule": Call(
            plainly(DefaultSchedule),
            lambda folder: {n: v for n, v in vars(schedule()).items() if n != "trajectory"},
            plain,
        ),
        f"{of}schedules.magnitude.MagnitudeSchedule": Call(
            plainly(MagnitudeSchedule), lambda folder: dict(vars(MagnitudeSchedule(18, 9, 400, 200))), plain
        ),
        f"{of}schedules.published.PublishedSchedule": Call(
            plainly(PublishedSchedule),
            lambda folder: {n: v for n, v in vars(PublishedSchedule(0.5, 40, 20, 4, 2)).items() if n != "trajectory"},
            plain,
        ),
        f"{of}schedules.factory.pruning_schedule": Call(
            plainly(pruning_schedule),
            lambda folder: {
                "total": 18, "sparsity": 0.5, "pruning_steps": 400, "regrowth_steps": 200, "method": "hyperflux",
                "controller": "published", "presence_lr": 1e-2, "presence_reset": 1.0, "presence_decay": 0.75,
                "epoch_steps": 10, "network": "mine", "argument": "sparsity",
            },
            plain,
            {"total": "weights of", "pruning_steps": "steps of about"},
        ),
    }  # fmt: skip


ODD = {
    "None": lambda: None,
    "text": lambda: "0.9",
    "NumPy's text": lambda: np.str_("0.9"),
    "bytes": lambda: b"3",
    "zero": lambda: 0,
    "three": lambda: 3,
    "minus one": lambda: -1,
    "a huge int": lambda: 10**400,
    "a fraction": lambda: 0.5,
    "percent": lambda: 90,
    "a whole float": lambda: 10.0,
    "NaN": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "True": lambda: True,
    "a complex number": lambda: 0.5j,
    "Decimal": lambda: Decimal("0.5"),
    "Fraction": lambda: Fraction(1, 2),
    "np.int64": lambda: np.int64(10),
    "np.uint8": lambda: np.uint8(1),
    "np.float32": lambda: np.float32(0.5),
    "np.float64": lambda: np.float64(0.5),
    "np.bool_": lambda: np.True_,
    "np.complex64": lambda: np.complex64(0.5),
    "np.array(10)": lambda: np.array(10),
    "np.array(0.5)": lambda: np.array(0.5),
    "np.array([1, 2])": lambda: np.array([1, 2]),
    "an empty array": lambda: np.zeros(0),
    "an array of texts": lambda: np.array(["0.5"]),
    "a date": lambda: np.datetime64("2020-01-01"),
    "torch's int": lambda: torch.tensor(10),
    "torch's float": lambda: torch.tensor(0.5),
    "torch's float with a gradient": lambda: torch.tensor(0.5, requires_grad=True),
    "torch's bool": lambda: torch.tensor(True),
    "torch's complex": lambda: torch.tensor(0.5j),
    "a meta tensor": lambda: torch.tensor(0.5, device="meta"),
    "a tensor": lambda: torch.tensor([0.5, 0.25]),
    "a tensor of one": lambda: torch.tensor([10]),
    "an empty list": lambda: [],
    "a list": lambda: [1],
    "a list of None": lambda: [None],
    "a nested list": lambda: [[1], [2, 3]],
    "a tuple": lambda: (1, 2),
    "a set": lambda: {1},
    "a dictionary": lambda: {"a": 1},
    "a dictionary of numbers": lambda: {1: 2},
    "an object": object,
    "a function": lambda: lambda *given: None,
    "a generator": lambda: (number for number in [1]),
    "a class": lambda: nn.Linear,
    "a class of optimizers": lambda: torch.optim.SGD,
    "a module": network,
    "a list of modules": lambda: [network()],
    "parameters": lambda: network().parameters(),
    "an optimizer": lambda: optimizer_of(network()),
    "a list of optimizers": lambda: [optimizer_of(network())],
    "a scheduler": lambda: torch.optim.lr_scheduler.StepLR(optimizer_of(network()), 3),
    "a scaler": lambda: torch.amp.GradScaler("cpu"),
    "a path": lambda: Path("nowhere"),
    "a path of bytes": lambda: type("Odd", (), {"__fspath__": lambda self: b"x"})(),
    "a device": lambda: torch.device("cpu"),
    "a dtype": lambda: torch.float32,
}
"""Values to put in the place of an argument."""
