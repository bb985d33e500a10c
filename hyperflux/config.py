"""The settings of a run: validated, immutable, and the one source of CLI options, recipes and `config.toml`."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeVar

from hyperflux.data import DATASETS, IMAGE_DATASETS
from hyperflux.errors import InputError
from hyperflux.io.did_you_mean import unknown_name
from hyperflux.io.ranges import as_integer, as_number, count_in, integer_in, number_in
from hyperflux.io.safe_read import CONTROLS, shown
from hyperflux.models import check_model, is_mlp
from hyperflux.schedules.base import PruningSchedule
from hyperflux.schedules.controllers import PublishedController
from hyperflux.schedules.default import DefaultSchedule
from hyperflux.schedules.feasibility import require_fraction, target_count
from hyperflux.schedules.magnitude import MagnitudeSchedule
from hyperflux.schedules.published import PublishedSchedule
from hyperflux.session.nonfinite import ON_NONFINITE
from hyperflux.telemetry.levels import level

BACKENDS = ("torch", "numpy")
METHODS = ("hyperflux", "magnitude")
CONTROLLERS = ("default", "published")
MAX_EPOCHS = 100_000
"""The longest stage: what lies above is a slip of the keyboard."""
MAX_SAMPLES = (1 << 31) - 1
"""The largest batch, and the most training samples."""
MAX_WORKERS = 256
MAX_INTEGER = (1 << 63) - 1
"""What TOML promises to hold, and every library takes as a seed."""
DTYPES = ("float32", "float64")
AMP = ("off", "bfloat16", "float16")
RETIRED = {"moments": "full"}
"""Settings of older versions, and the value that is now the only one."""

T = TypeVar("T")


def setting(default: Any, help: str, flag: str | None = None) -> Any:
    """A field with a line of help; with a `flag` it is also an option of `hyperflux prune`."""
    return field(default=default, metadata={"help": help, "flag": flag})


@dataclass(frozen=True)
class OptimizerSettings:
    """The weights' optimizer, in every stage (E6). Momentum and Nesterov belong to SGD."""

    name: Literal["sgd", "adam"] = setting("adam", "sgd or adam")
    momentum: float = setting(0.0, "momentum of sgd, below 1")
    nesterov: bool = setting(False, "Nesterov momentum of sgd")
    weight_decay: float = setting(0.0, "added to every gradient, times the parameter")
    decay_all: bool = setting(True, "weight decay on biases and norms too")

    def __post_init__(self) -> None:
        if self.name not in ("sgd", "adam"):
            raise unknown_name("optimizer", self.name, ("sgd", "adam"))
        number_in("optimizer.momentum", self.momentum, 0, 1)
        number_in("optimizer.weight_decay", self.weight_decay, 0)
        if self.name == "adam" and (self.momentum or self.nesterov):
            raise InputError("optimizer: momentum and nesterov belong to sgd; leave them out for adam")
        if self.nesterov and not self.momentum:
            raise InputError("optimizer.nesterov: needs a momentum above 0")


@dataclass(frozen=True)
class DenseSettings:
    """Training before pruning; skipped where a weights file is given."""

    epochs: int = setting(30, "epochs of dense training before pruning", "--dense-epochs")
    learning_rate: float = setting(1e-3, "weights' learning rate in the first epoch")
    final_learning_rate: float = setting(1e-5, "where the cosine ends")
    label_smoothing: float = setting(0.05, "of the cross-entropy (E7)")

    def __post_init__(self) -> None:
        _check_stage("dense", self, min_epochs=0)


@dataclass(frozen=True)
class PruningSettings:
    """The first stage of Hyperflux (E10)."""

    epochs: int = setting(60, "epochs of the pruning stage", "--pruning-epochs")
    learning_rate: float = setting(1e-3, "weights' learning rate in the first epoch")
    final_learning_rate: float = setting(1e-3, "where the cosine ends")
    label_smoothing: float = setting(0.1, "of the cross-entropy (E7)")
    presence_learning_rate: float = setting(1e-3, "learning rate of t (E6)")
    controller_step: float = setting(0.3, "Δ of the published controller (E9)")

    def __post_init__(self) -> None:
        _check_stage("pruning", self, min_epochs=1)
        number_in("pruning.presence_learning_rate", self.presence_learning_rate, 0, ends="()")
        PublishedController(self.controller_step)


@dataclass(frozen=True)
class RegrowthSettings:
    """The second stage of Hyperflux (E10): no pressure, and a learning rate of t that dies away.

    Its reset and decay are those of the published controller.
    """

    epochs: int = setting(40, "epochs of the regrowth stage", "--regrowth-epochs")
    learning_rate: float = setting(1e-3, "weights' learning rate in the first epoch")
    final_learning_rate: float = setting(1e-6, "where the cosine ends")
    label_smoothing: float = setting(0.1, "of the cross-entropy (E7)")
    presence_reset: float = setting(0.1, "t's learning rate restarts at this multiple of the pruning stage's")
    presence_decay: float = setting(0.95, "factor on t's learning rate each epoch")

    def __post_init__(self) -> None:
        _check_stage("regrowth", self, min_epochs=0)
        number_in("regrowth.presence_reset", self.presence_reset, 0)
        number_in("regrowth.presence_decay", self.presence_decay, 0, 1, "[]")


@dataclass(frozen=True)
class RunConfig:
    """A whole run. Two equal configurations give the same run on the same machine."""

    backend: str = setting("torch", "what trains: torch or numpy", "--backend")
    dataset: str = setting(
        "digits", "digits, mnist, cifar10, cifar100, imagenet, imagefolder or synthetic", "--dataset"
    )
    data_dir: str = setting("", "folder of the data set's files  [$HYPERFLUX_DATA or ./data]", "--data-dir")
    train_samples: int = setting(0, "train on so many samples only; 0 takes all", "--train-samples")
    augment: bool = setting(True, "random crops and flips of colour images")
    model: str = setting(
        "lenet300",
        "lenet300, mlp:IN-...-OUT, resnet20, resnet18, resnet50, vgg19, deit_tiny, deit_small, torchvision:NAME or "
        "timm:NAME",
        "--model",
    )
    include: tuple[str, ...] = setting((), "prune only what has this name, wildcards allowed; repeatable", "--include")
    exclude: tuple[str, ...] = setting((), "keep what has this name dense; repeatable", "--exclude")
    method: str = setting("hyperflux", "how to prune: hyperflux or magnitude", "--method")
    controller: str = setting(
        "default", "of hyperflux: default, which meets the sparsity exactly, or published", "--controller"
    )
    sparsity: float = setting(0.95, "wanted sparsity, a fraction", "--sparsity")
    batch_size: int = setting(32, "samples a step", "--batch-size")
    seed: int = setting(0, "seed of weights, presence parameters and data order", "--seed")
    checkpoint: str = setting(
        "", "weights file (safetensors or torch.save) to start from instead of dense training", "--checkpoint"
    )
    dtype: str = setting("float32", "float32 or float64")
    device: str = setting("auto", "cuda, mps or cpu; auto takes the first there is", "--device")
    telemetry: str = setting("light", "how closely to watch pruning: off, light or full", "--telemetry")
    amp: str = setting("off", "mixed precision: off, bfloat16 or float16", "--amp")
    channels_last: bool = setting(False, "memory layout of images, faster on recent GPUs")
    compile: bool = setting(False, "compile the network with torch.compile")
    workers: int = setting(4, "processes that decode large images")
    on_nonfinite: str = setting(
        "stop", "where a loss, gradient or weight is not finite: stop, or skip the step", "--on-nonfinite"
    )
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    dense: DenseSettings = field(default_factory=DenseSettings)
    pruning: PruningSettings = field(default_factory=PruningSettings)
    regrowth: RegrowthSettings = field(default_factory=RegrowthSettings)

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise unknown_name("backend", self.backend, BACKENDS)
        if self.dataset not in (*DATASETS, *IMAGE_DATASETS):
            raise unknown_name("data set", self.dataset, (*DATASETS, *IMAGE_DATASETS))
        named = {
            "method": METHODS,
            "controller": CONTROLLERS,
            "dtype": DTYPES,
            "amp": AMP,
            "on_nonfinite": ON_NONFINITE,
        }
        for name, known in named.items():
            if getattr(self, name) not in known:
                raise unknown_name(name, getattr(self, name), known)
        check_model(self.model)
        level(self.telemetry)
        if self.backend == "numpy":
            self._require_what_numpy_can()
        require_fraction(self.sparsity)
        integer_in("train_samples", self.train_samples, 0, MAX_SAMPLES)
        integer_in("workers", self.workers, 0, MAX_WORKERS)
        integer_in("batch_size", self.batch_size, 1, MAX_SAMPLES)
        integer_in("seed", self.seed, 0, MAX_INTEGER)

    def _require_what_numpy_can(self) -> None:
        """Raise InputError for settings that only the torch backend follows."""
        only_torch = {
            f"data set {self.dataset}": self.dataset in IMAGE_DATASETS,
            f"model {self.model}": not is_mlp(self.model),
            "include and exclude": bool(self.include or self.exclude),
            f"device {self.device}": self.device not in ("auto", "cpu"),
            f"amp {self.amp}": self.amp != "off",
            "compile": self.compile,
        }
        for what, wanted in only_torch.items():
            if wanted:
                raise InputError(f"{what}: the NumPy backend can't; use --backend torch")

    def schedule(self, total: int, epoch_steps: int) -> PruningSchedule[Any]:
        """The course of both stages over a network of `total` prunable weights, at `epoch_steps` steps an epoch.

        Raises InputError where the sparsity leaves no weight or every one.
        """
        kept = target_count(total, self.sparsity, self.model)
        pruning, regrowth = self.pruning, self.regrowth
        steps = (pruning.epochs * epoch_steps, regrowth.epochs * epoch_steps)
        if self.method == "magnitude":
            return MagnitudeSchedule(total, kept, *steps)
        if self.controller == "default":
            return DefaultSchedule(total, kept, *steps, pruning.presence_learning_rate)
        return PublishedSchedule(
            1 - self.sparsity,
            *steps,
            pruning.epochs,
            regrowth.epochs,
            pruning.presence_learning_rate,
            regrowth.presence_reset,
            regrowth.presence_decay,
            PublishedController(pruning.controller_step),
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """Settings from nested tables, as TOML gives them; what is left out takes its default.

        Raises InputError for an unknown key, a value of the wrong type or one out of range.
        """
        kept = dict(values)
        for name, only in RETIRED.items():
            if kept.pop(name, only) != only:
                raise InputError(f"{name}: {shown(values[name])} is no longer supported; leave the setting out")
        return _build(cls, kept, "")

    def to_dict(self) -> dict[str, Any]:
        """Nested tables of every setting: `from_dict` gives an equal configuration back."""
        return _tables(self)


def _tables(settings: Any) -> dict[str, Any]:
    """A settings dataclass as tables."""
    values = {f.name: getattr(settings, f.name) for f in fields(settings)}
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return _tables(value)
    return list(value) if isinstance(value, tuple) else value


def _build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """A settings dataclass from a table that stands at `where` ("pruning.") in its file."""
    hints = typing.get_type_hints(cls)
    known: dict[str, Any] = {}
    for name, value in values.items():
        if name not in hints:
            raise unknown_name("setting", where + name, [where + known_name for known_name in hints])
        kind = hints[name]
        if is_dataclass(kind) and isinstance(value, Mapping):
            known[name] = _build(typing.cast(type, kind), value, f"{where}{name}.")
        else:
            known[name] = _checked(where + name, value, kind)
    return cls(**known)


def _checked(name: str, value: Any, kind: Any) -> Any:
    """`value` as the field's type: NumPy's numbers become Python's, and an int serves as a float."""
    integer = as_integer(value)
    if integer is not None and abs(integer) > MAX_INTEGER:
        raise InputError(f"{name}: is out of range; an integer lies between -{MAX_INTEGER} and {MAX_INTEGER}")
    number = integer if kind is int else as_number(value) if kind is float else None
    if number is not None:
        return number
    if typing.get_origin(kind) is tuple:
        if not (isinstance(value, list | tuple) and all(type(item) is str for item in value)):
            raise InputError(f"{name}: {shown(value)} is not a list of strings")
        return tuple(_text(name, item) for item in value)
    expected = str if typing.get_origin(kind) is Literal else kind
    if is_dataclass(expected) or type(value) is not expected:
        wanted = "a table" if is_dataclass(expected) else expected.__name__
        raise InputError(f"{name}: {shown(value)} is not {wanted}")
    return _text(name, value) if expected is str else value


def _text(name: str, value: str) -> str:
    """Raise InputError for a text that could be neither written down nor shown."""
    if CONTROLS.search(value):
        raise InputError(f"{name}: {shown(value)} holds a control character or is not UTF-8; use another name")
    return value


def _check_stage(stage: str, settings: DenseSettings | PruningSettings | RegrowthSettings, min_epochs: int) -> None:
    """Raise InputError for epochs, learning rates or a label smoothing out of range."""
    count_in(f"{stage}.epochs", settings.epochs, min_epochs, MAX_EPOCHS, f"--{stage}-epochs")
    number_in(f"{stage}.learning_rate", settings.learning_rate, 0)
    number_in(f"{stage}.final_learning_rate", settings.final_learning_rate, 0)
    number_in(f"{stage}.label_smoothing", settings.label_smoothing, 0, 1)
