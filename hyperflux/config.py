"""The settings of a run, validated and immutable. CLI options, recipes and `config.toml` all come from here."""

from __future__ import annotations

import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

from hyperflux.data import DATASETS, IMAGE_DATASETS, WITHOUT_FILES, data_folder
from hyperflux.errors import InputError
from hyperflux.gates.kinds import BUDGETS, Budget, Gates, Pattern, gate_kind
from hyperflux.io.arguments import require_mapping
from hyperflux.io.did_you_mean import known_name, unknown_name
from hyperflux.io.ranges import (
    MAX_INTEGER,
    as_bool,
    as_integer,
    as_number,
    count_in,
    fraction,
    integer_in,
    number_in,
    whole_number,
)
from hyperflux.io.safe_read import CONTROLS, shown
from hyperflux.models import check_model, is_mlp
from hyperflux.schedules.base import PruningSchedule
from hyperflux.schedules.controllers import PublishedController
from hyperflux.schedules.default import DefaultCourse
from hyperflux.schedules.factory import CONTROLLERS, METHODS, pruning_schedule
from hyperflux.session.nonfinite import ON_NONFINITE
from hyperflux.telemetry.levels import level

BACKENDS = ("torch", "numpy")
MAX_RATE = 1e38
"""Largest learning rate and weight decay; beyond 3e38 torch has no number for them in float32."""
MAX_EPOCHS = 100_000
"""Longest stage, and all stages together. A larger number is taken for a typing error."""
MAX_SAMPLES = (1 << 31) - 1
"""Largest batch, and largest number of training samples."""
MAX_WORKERS = 256
DTYPES = ("float32", "float64")
AMP = ("off", "bfloat16", "float16")
DEFAULT_SPARSITY = 0.95
RETIRED = {"moments": "full"}
"""Settings of older versions: name -> the only value that is still accepted."""

T = TypeVar("T")


def setting(default: Any, help: str, flag: str | None = None) -> Any:
    """A dataclass field with a line of help; with a `flag` it is also an option of `hyperflux prune`."""
    return field(default=default, metadata={"help": help, "flag": flag})


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer of the weights, in every stage (E6). Momentum and Nesterov are for SGD only."""

    name: Literal["sgd", "adam"] = setting("adam", "sgd or adam")
    momentum: float = setting(0.0, "momentum of sgd, from 0 to below 1")
    nesterov: bool = setting(False, "Nesterov momentum of sgd")
    weight_decay: float = setting(0.0, "weight decay: this times the parameter is added to its gradient")
    decay_all: bool = setting(True, "apply weight decay to biases and normalisation layers too")

    def __post_init__(self) -> None:
        _settle(self, "optimizer.")
        known_name("optimizer", self.name, ("sgd", "adam"))
        number_in("optimizer.momentum", self.momentum, 0, 1)
        number_in("optimizer.weight_decay", self.weight_decay, 0, MAX_RATE, "[]")
        if self.name == "adam" and (self.momentum or self.nesterov):
            raise InputError("optimizer: momentum and nesterov belong to sgd; leave them out for adam")
        if self.nesterov and not self.momentum:
            raise InputError("optimizer.nesterov: needs a momentum above 0")


@dataclass(frozen=True)
class DenseSettings:
    """Training before pruning; skipped where a weights file is given."""

    epochs: int = setting(30, "epochs of training before pruning", "--dense-epochs")
    learning_rate: float = setting(1e-3, "weights' learning rate in the first epoch")
    final_learning_rate: float = setting(1e-5, "weights' learning rate at the end, reached on a cosine")
    label_smoothing: float = setting(0.05, "label smoothing of the loss, from 0 to below 1 (E7)")

    def __post_init__(self) -> None:
        _settle(self, "dense.")
        _check_stage("dense", self, min_epochs=0)


@dataclass(frozen=True)
class PruningSettings:
    """The first stage of Hyperflux: weights are removed (E10)."""

    epochs: int = setting(60, "epochs in which weights are pruned", "--pruning-epochs")
    learning_rate: float = setting(1e-3, "weights' learning rate in the first epoch")
    final_learning_rate: float = setting(1e-3, "weights' learning rate at the end, reached on a cosine")
    label_smoothing: float = setting(0.1, "label smoothing of the loss, from 0 to below 1 (E7)")
    presence_learning_rate: float = setting(1e-3, "learning rate of the presence parameters t (E6)")
    controller_step: float = setting(0.3, "step Δ of the published controller (E9)")

    def __post_init__(self) -> None:
        _settle(self, "pruning.")
        _check_stage("pruning", self, min_epochs=1)
        number_in("pruning.presence_learning_rate", self.presence_learning_rate, 0, MAX_RATE, "(]")
        PublishedController(self.controller_step)


@dataclass(frozen=True)
class RegrowthSettings:
    """The second stage of Hyperflux: no pressure, and t's learning rate falls to 0 (E10).

    `presence_reset` and `presence_decay` apply to the published controller only.
    """

    epochs: int = setting(
        40, "epochs after pruning, without pressure: weights may return, then the mask freezes", "--regrowth-epochs"
    )
    learning_rate: float = setting(1e-3, "weights' learning rate in the first epoch")
    final_learning_rate: float = setting(1e-6, "weights' learning rate at the end, reached on a cosine")
    label_smoothing: float = setting(0.1, "label smoothing of the loss, from 0 to below 1 (E7)")
    presence_reset: float = setting(0.1, "t's learning rate restarts at this multiple of its rate in the pruning stage")
    presence_decay: float = setting(0.95, "t's learning rate is multiplied by this after each epoch")

    def __post_init__(self) -> None:
        _settle(self, "regrowth.")
        _check_stage("regrowth", self, min_epochs=0)
        number_in("regrowth.presence_reset", self.presence_reset, 0)
        number_in("regrowth.presence_decay", self.presence_decay, 0, 1, "[]")


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run. Equal configurations give bit-identical runs on the same machine."""

    backend: str = setting("torch", "library that trains the network: torch or numpy", "--backend")
    dataset: str = setting(
        "digits", "data to train on: digits, mnist, cifar10, cifar100, imagenet, imagefolder or synthetic", "--dataset"
    )
    data_dir: str = setting("", "folder with the data set's files  [default: $HYPERFLUX_DATA or ./data]", "--data-dir")
    train_samples: int = setting(0, "train on this many samples only; 0 means all", "--train-samples")
    augment: bool = setting(True, "crop and flip colour images at random")
    model: str = setting(
        "lenet300",
        "network to prune: lenet300, mlp:IN-...-OUT, resnet20, resnet18, resnet50, vgg19, deit_tiny, deit_small, "
        "torchvision:NAME or timm:NAME",
        "--model",
    )
    include: tuple[str, ...] = setting(
        (), "prune only layers or parameters of this name, wildcards allowed; may be repeated", "--include"
    )
    exclude: tuple[str, ...] = setting(
        (), "don't prune layers or parameters of this name, wildcards allowed; may be repeated", "--exclude"
    )
    method: str = setting(
        "hyperflux",
        "pruning method: hyperflux, magnitude (smallest first), or taylor (for gates of channels)",
        "--method",
    )
    controller: str = setting(
        "default",
        "how hyperflux meets the sparsity: default (exactly) or published (as in the paper, nearly)",
        "--controller",
    )
    gates: str = setting("weights", "what a gate holds: weights, channels, or N:M such as 2:4", "--gates")
    gate_inputs: bool = setting(
        False, "with gates of channels: gate the input features too, so that fewer are read", "--gate-inputs"
    )
    sparsity: float | None = setting(
        None,
        f"share of the weights to remove, between 0 and 1  [default: {DEFAULT_SPARSITY}, without another budget]",
        "--sparsity",
    )
    flops: float | None = setting(None, "with gates of channels: share of the dense network's FLOPs to keep", "--flops")
    parameters: float | None = setting(
        None, "with gates of channels: share of the dense network's parameters to keep", "--parameters"
    )
    latency: float | None = setting(
        None, "with gates of channels: share of the dense network's time per batch to keep", "--latency"
    )
    batch_size: int = setting(32, "samples per step", "--batch-size")
    seed: int = setting(0, "seed of the weights, of pruning and of the order of the data", "--seed")
    checkpoint: str = setting(
        "", "weights file (safetensors or torch.save) to start from instead of dense training", "--checkpoint"
    )
    dtype: str = setting("float32", "number format of the weights: float32 or float64")
    device: str = setting("auto", "where to train: cuda, mps or cpu; auto takes the first one available", "--device")
    telemetry: str = setting("light", "how much to record about pruning: off, light or full", "--telemetry")
    amp: str = setting("off", "mixed precision: off, bfloat16 or float16", "--amp")
    channels_last: bool = setting(False, "store images channels last, which is faster on recent GPUs")
    compile: bool = setting(False, "compile the network with torch.compile")
    workers: int = setting(4, "number of processes that decode large images")
    on_nonfinite: str = setting(
        "stop", "if a loss, gradient or weight is infinite or NaN: stop the run, or skip the step", "--on-nonfinite"
    )
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    dense: DenseSettings = field(default_factory=DenseSettings)
    pruning: PruningSettings = field(default_factory=PruningSettings)
    regrowth: RegrowthSettings = field(default_factory=RegrowthSettings)
    course: DefaultCourse = field(default_factory=DefaultCourse)

    def __post_init__(self) -> None:
        _settle(self, "")
        names = {
            "backend": BACKENDS,
            "data set": (*DATASETS, *IMAGE_DATASETS),
            "method": METHODS,
            "controller": CONTROLLERS,
            "dtype": DTYPES,
            "amp": AMP,
            "on_nonfinite": ON_NONFINITE,
        }
        for kind, known in names.items():
            known_name(kind, self.dataset if kind == "data set" else getattr(self, kind), known)
        if (epochs := self.dense.epochs + self.pruning.epochs + self.regrowth.epochs) > MAX_EPOCHS:
            raise InputError(f"epochs: {epochs:,} in all stages together are too many; give {MAX_EPOCHS:,} or fewer")
        check_model(self.model)
        level(self.telemetry)
        if self.backend == "numpy":
            self._require_what_numpy_can()
        self._settle_budget()
        object.__setattr__(self, "course", self.course.settled(groups=self.gate_kind != "weights"))
        integer_in("train_samples", self.train_samples, 0, MAX_SAMPLES)
        integer_in("workers", self.workers, 0, MAX_WORKERS)
        integer_in("batch_size", self.batch_size, 1, MAX_SAMPLES)
        integer_in("seed", self.seed, 0, MAX_INTEGER)

    @property
    def gate_kind(self) -> Gates:
        """What a gate holds."""
        return gate_kind(self.gates)

    @property
    def budget(self) -> tuple[Budget, float]:
        """What bounds the pruned network, and its share: to remove where it is the sparsity, else to keep."""
        kind = self.gate_kind
        if isinstance(kind, Pattern):
            return "sparsity", 1 - kind.density
        return next((name, share) for name in BUDGETS if (share := getattr(self, name)) is not None)

    def _settle_budget(self) -> None:
        """Give the sparsity its default where no budget is set. Raises InputError for budgets and gates that clash."""
        kind, given = self.gate_kind, [name for name in BUDGETS if getattr(self, name) is not None]
        if isinstance(kind, Pattern):
            if given:
                raise InputError(f"{given[0]}: gates {kind} leave {kind} of the weights; leave the budget out")
        elif len(given) > 1:
            raise InputError(f"{given[0]} and {given[1]}: only one of them can bound the network; leave one out")
        elif not given:
            object.__setattr__(self, "sparsity", DEFAULT_SPARSITY)
        elif given != ["sparsity"] and kind != "channels":
            raise InputError(f"{given[0]}: is a budget for gates of channels; add --gates channels, or give --sparsity")
        for budget in given:
            fraction(budget, getattr(self, budget))
        if kind != "channels":
            for name, wanted in {"method taylor": self.method == "taylor", "gate_inputs": self.gate_inputs}.items():
                if wanted:
                    raise InputError(f"{name}: is for gates of channels; add --gates channels")
        if kind != "weights" and self.method == "hyperflux" and self.controller == "published":
            raise InputError("controller published: prunes single weights; leave it out for other gates")

    def _require_what_numpy_can(self) -> None:
        """Raise InputError for settings that only the torch backend supports."""
        only_torch = {
            f"data set {self.dataset}": self.dataset in IMAGE_DATASETS,
            f"model {self.model}": not is_mlp(self.model),
            "include and exclude": bool(self.include or self.exclude),
            f"device {self.device}": self.device not in ("auto", "cpu"),
            f"amp {self.amp}": self.amp != "off",
            "compile": self.compile,
            "latency": self.latency is not None,
        }
        for what, wanted in only_torch.items():
            if wanted:
                raise InputError(f"{what}: the NumPy backend can't; use --backend torch")

    def schedule(self, total: int, epoch_steps: int) -> PruningSchedule[Any]:
        """The schedule of both stages.

        Args:
            total: N, the number of prunable weights.
            epoch_steps: Optimizer steps per epoch.

        Raises:
            InputError: See `hyperflux.schedules.factory.pruning_schedule`.
        """
        total, epoch_steps = whole_number("total", total, 1), whole_number("epoch_steps", epoch_steps, 1, MAX_SAMPLES)
        pruning, regrowth = self.pruning, self.regrowth
        published = PublishedController(pruning.controller_step)
        return pruning_schedule(
            total,
            self.budget[1],
            pruning.epochs * epoch_steps,
            regrowth.epochs * epoch_steps,
            method=self.method,
            controller=self.course if self.controller == "default" else published,
            presence_lr=pruning.presence_learning_rate,
            presence_reset=regrowth.presence_reset,
            presence_decay=regrowth.presence_decay,
            epoch_steps=epoch_steps,
            network=self.model,
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """Settings from nested tables such as those of a TOML file. Missing settings take their defaults.

        Raises:
            InputError: A key is unknown, or a value has the wrong type or is out of range.
        """
        require_mapping("values", values, "the settings by name")
        kept = dict(values)
        for name, only in RETIRED.items():
            if kept.pop(name, only) != only:
                raise InputError(f"{name}: {shown(values[name])} is no longer supported; leave the setting out")
        return _build(cls, kept, "")

    def with_absolute_paths(self) -> RunConfig:
        """The same settings with the paths that they stand for here and now, to be used in any folder and environment.

        `data_dir` of data sets that need no files stays as it is. Raises InputError if a path can't be recorded.
        """
        data_dir, checkpoint = self.data_dir, self.checkpoint
        try:
            if self.dataset not in WITHOUT_FILES:
                data_dir = os.path.abspath(data_folder(data_dir))
            return replace(self, data_dir=data_dir, checkpoint=checkpoint and os.path.abspath(checkpoint))
        except OSError as error:
            raise InputError(
                f"data_dir and checkpoint: no path of this folder ({error.strerror}); change to another"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """All settings as nested tables; `from_dict` turns them back into an equal configuration."""
        return _tables(self)


def _tables(settings: Any) -> dict[str, Any]:
    """A settings dataclass as nested tables."""
    values = {f.name: getattr(settings, f.name) for f in fields(settings)}
    return {name: _plain(value) for name, value in values.items() if value is not None}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return _tables(value)
    return list(value) if isinstance(value, tuple) else value


def _build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """A settings dataclass from a table; `where` is its prefix in the file, such as "pruning."."""
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise unknown_name("setting", f"{where}{name}", [where + known_name for known_name in known])
    return cls(**values)


def _settle(settings: Any, where: str) -> None:
    """Give every field of a settings dataclass the type that it says; `where` is its prefix in messages."""
    for name, kind in typing.get_type_hints(type(settings)).items():
        object.__setattr__(settings, name, _checked(where + name, getattr(settings, name), kind))


def _checked(name: str, value: Any, kind: Any) -> Any:
    """`value` as the field's type: NumPy's numbers become Python's, an int serves as a float, a table as settings."""
    if is_dataclass(kind):
        return _table(name, value, typing.cast(type, kind))
    if value is None and type(None) in typing.get_args(kind):
        return None
    kind = next((one for one in typing.get_args(kind) if one is float), kind)  # of float | None
    integer = as_integer(value)
    if integer is not None and abs(integer) > MAX_INTEGER:
        raise InputError(f"{name}: is out of range; an integer lies between -{MAX_INTEGER} and {MAX_INTEGER}")
    plain = integer if kind is int else as_number(value) if kind is float else as_bool(value) if kind is bool else None
    if plain is not None:
        return plain
    if typing.get_origin(kind) is tuple:
        if not (isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)):
            raise InputError(f"{name}: {shown(value)} is not a list of strings")
        return tuple(_text(name, item) for item in value)
    expected = str if typing.get_origin(kind) is Literal else kind
    if expected is str and isinstance(value, str):
        return _text(name, value)
    raise InputError(f"{name}: {shown(value)} is not {expected.__name__}")


def _table(name: str, value: Any, kind: type[T]) -> T:
    """Settings of a `kind`, or a table of them."""
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise InputError(f"{name}: {shown(value)} is not a table")
    return _build(kind, value, f"{name}.")


def _text(name: str, value: str) -> str:
    """`value`. Raises InputError for control characters and text that is not UTF-8."""
    if CONTROLS.search(value):
        raise InputError(f"{name}: {shown(value)} holds a control character or is not UTF-8; use another name")
    return str.__str__(value)  # a plain text, also of NumPy's


def _check_stage(stage: str, settings: DenseSettings | PruningSettings | RegrowthSettings, min_epochs: int) -> None:
    """Raise InputError for epochs, learning rates or a label smoothing out of range."""
    count_in(f"{stage}.epochs", settings.epochs, min_epochs, MAX_EPOCHS, f"--{stage}-epochs")
    number_in(f"{stage}.learning_rate", settings.learning_rate, 0, MAX_RATE, "[]")
    number_in(f"{stage}.final_learning_rate", settings.final_learning_rate, 0, MAX_RATE, "[]")
    number_in(f"{stage}.label_smoothing", settings.label_smoothing, 0, 1)
