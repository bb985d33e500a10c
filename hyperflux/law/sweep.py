"""The pressure sweep, the data of the pruning law: constant pressures, each until the density has settled.

docs/pruning-law.md explains what counts as settled and where each pressure starts from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from hyperflux.backends import build_backend
from hyperflux.backends.base import Backend
from hyperflux.config import MAX_EPOCHS, RunConfig
from hyperflux.errors import InputError
from hyperflux.gates.kinds import require_weights
from hyperflux.io.atomic_write import new_folder, write_atomic
from hyperflux.io.did_you_mean import known_name
from hyperflux.io.ranges import as_integer, number_in, true_or_false
from hyperflux.io.safe_read import shown
from hyperflux.law.saliency import Saliency, measure
from hyperflux.runs.data_order import batch_ends, epoch_batches
from hyperflux.runs.driver import load_start, train_dense
from hyperflux.session.nonfinite import NotFiniteError
from hyperflux.spec import INITIAL_PRESENCE

METHODS = ("hyperflux", "magnitude")
SETTLED = 0.05
"""A density has settled once its logarithm has moved by less than this over `WINDOW` epochs."""
WINDOW = 10
MIN_EPOCHS = 20
"""No density counts as settled earlier: after a rise in pressure t needs time to fall."""
FIRST_CROSSING = 0.5
"""Pressure alone takes the greatest of the first t to 0 in this share of the first epoch."""
MAX_EXPONENT = 60.0
MAX_PRESSURES = 10_000

Watch = Callable[[str, float, int, float], None]
"""Called after each epoch: method, pressure (for magnitude: target density), epoch, density."""


@dataclass(frozen=True)
class SweepSettings:
    """Pressures 2^lowest, ..., 2^highest, `step` octaves apart, each for at most `max_epochs` epochs.

    Each pressure continues from the network that the last one left, or, if `independent`, from the dense network.
    `methods` is `METHODS` or its first.

    Raises:
        InputError: If a setting is out of range, or there are fewer than three pressures.

    """

    lowest: float = -7.0
    highest: float = 5.0
    step: float = 1.0
    max_epochs: int = 200
    independent: bool = False
    methods: tuple[str, ...] = ("hyperflux",)

    def __post_init__(self) -> None:
        exponents = f"it is an exponent of two, from -{MAX_EXPONENT:g} to {MAX_EXPONENT:g}"
        for name in ("lowest", "highest"):
            value = number_in(name, getattr(self, name), -MAX_EXPONENT, MAX_EXPONENT, "[]", exponents)
            object.__setattr__(self, name, value)  # a plain float, also of NumPy's numbers
        step = number_in("step", self.step, 0, ends="()", way="give a number of octaves above 0")
        object.__setattr__(self, "step", step)
        if (self.highest - self.lowest) / self.step >= MAX_PRESSURES:
            raise InputError(f"step: {self.step:g} makes more than {MAX_PRESSURES:,} pressures; give a longer one")
        if (count := len(self.pressures())) < 3:
            raise InputError(
                f"lowest and highest: {self.lowest:g} to {self.highest:g} in steps of {self.step:g} are {count} "
                "pressures; a law needs 3 or more"
            )
        object.__setattr__(self, "independent", true_or_false("independent", self.independent))
        epochs = as_integer(self.max_epochs)
        if epochs is None or not MIN_EPOCHS <= epochs <= MAX_EPOCHS:
            raise InputError(
                f"epochs: {shown(self.max_epochs)} a pressure; give {MIN_EPOCHS} or more, for a density to settle, "
                f"and at most {MAX_EPOCHS}"
            )
        object.__setattr__(self, "max_epochs", epochs)
        if not isinstance(self.methods, list | tuple):
            raise InputError(f"methods: {shown(self.methods)} is not a list of names")
        object.__setattr__(self, "methods", tuple(known_name("method", name, METHODS) for name in self.methods))
        if "hyperflux" not in self.methods or len(set(self.methods)) < len(self.methods):
            raise InputError(
                f"methods: {', '.join(self.methods) or 'none'}; give hyperflux, and magnitude if wanted, which takes "
                "the same densities"
            )

    def pressures(self) -> list[float]:
        """Every γ, in rising order."""
        count = math.floor((self.highest - self.lowest) / self.step + 1e-9) + 1
        return [2.0 ** (self.lowest + self.step * index) for index in range(max(0, count))]


@dataclass(frozen=True)
class SweepRow:
    """What one pressure led to; or magnitude pruning at the same density.

    Attributes:
        method: One of `METHODS`.
        pressure: γ; for magnitude pruning, that of Hyperflux at this density.
        density: Surviving share after the last epoch.
        surviving: Weights present after the last epoch.
        total: N.
        epochs: Epochs trained.
        settled: Whether the density has settled, see `has_settled`.
        accuracy: Of the test part after the last epoch, a fraction.
        saliencies: By `hyperflux.law.saliency.measure`.
        track: Density after each epoch.

    """

    method: str
    pressure: float
    density: float
    surviving: int
    total: int
    epochs: int
    settled: bool
    accuracy: float
    saliencies: dict[str, Saliency]
    track: tuple[float, ...]

    @property
    def fault(self) -> str | None:
        """Why this row is left out of the fit; None if it is used."""
        if self.surviving == 0:
            return "everything was pruned"
        if self.surviving == self.total:
            return "nothing was pruned"
        return None if self.settled else "did not settle"


def has_settled(track: Sequence[float]) -> bool:
    """Whether a density has settled, by `SETTLED`, `WINDOW` and `MIN_EPOCHS`; `track` has one for each epoch."""
    if len(track) < MIN_EPOCHS or track[-1] <= 0:
        return False
    return abs(math.log(track[-1] / track[-1 - WINDOW])) < SETTLED


def sweep(
    config: RunConfig, settings: SweepSettings, checkpoint: str, watch: Watch = lambda *_: None
) -> Iterator[SweepRow]:
    """Measure row by row: first Hyperflux at every pressure, then magnitude pruning at the densities that it reached.

    The sweep ends at a pressure that prunes everything.

    Args:
        config: Rates, batches and loss are those of its pruning stage, at the stage's first learning rate.
        settings: Pressures and methods.
        checkpoint: Weights file of the dense network.
        watch: Called after each epoch.

    Yields:
        Each row as soon as it is measured.

    Raises:
        InputError: If the network cannot be built or loaded.
        NotFiniteError: If a loss, gradient or weight is not finite.

    """
    course, rows = None, list[SweepRow]()
    for pressure in settings.pressures():
        if course is None or settings.independent:
            course = _Course(config, checkpoint, watch)
        rows.append(course.press(pressure, settings.max_epochs))
        yield rows[-1]
        if not rows[-1].surviving:
            break
    if "magnitude" not in settings.methods:
        return
    course = None
    for row in rows:
        if row.surviving:
            if course is None or settings.independent:
                course = _Course(config, checkpoint, watch)
            yield course.keep_largest(row)


def prepare(config: RunConfig, folder: Path, announce: Callable[[str], None] = lambda line: None) -> str:
    """Make the sweep's folder with its `config.toml`, and train the dense network there if the config names none.

    Nothing is written before the input has been checked.

    Args:
        config: The settings.
        folder: A folder that is empty or does not exist yet.
        announce: Receives a line if a weights file keeps the weights under keys or behind a prefix.

    Returns:
        Path of the weights file of the dense network.

    Raises:
        InputError: If the settings or the weights file do not fit, or the folder is not empty.

    """
    recorded = config.with_absolute_paths()
    require_weights(config.gate_kind)
    backend = build_backend(config)
    load_start(config, backend, announce)
    new_folder(folder, ["config.toml"])
    write_atomic(folder / "config.toml", tomli_w.dumps(recorded.to_dict()).encode())
    if config.checkpoint:
        return config.checkpoint
    train_dense(config, folder / "dense")
    return str(folder / "dense" / "dense.safetensors")


class _Course:
    """One network that a sweep takes from density to density."""

    def __init__(self, config: RunConfig, checkpoint: str, watch: Watch) -> None:
        self._config, self._watch = config, watch
        self._backend: Backend = build_backend(config)
        self._backend.load_weights(checkpoint)
        self._epoch = config.dense.epochs
        rate = config.pruning.presence_learning_rate
        steps = len(batch_ends(self._backend.samples, config.batch_size))
        low, high = INITIAL_PRESENCE
        scale = min(1.0, FIRST_CROSSING * steps * rate / high)
        self._gate = self._backend.start_gate((low * scale, high * scale))

    def press(self, pressure: float, max_epochs: int) -> SweepRow:
        """Train under a constant pressure until the density settles."""
        self._gate.pressure = pressure
        self._gate.presence_lr = self._config.pruning.presence_learning_rate
        track: list[float] = []
        while len(track) < max_epochs and not has_settled(track):
            track.append(self._train())
            self._watch("hyperflux", pressure, len(track), track[-1])
            if not track[-1]:
                break
        return self._row("hyperflux", pressure, track, has_settled(track))

    def keep_largest(self, like: SweepRow) -> SweepRow:
        """Train for as many epochs as `like` with as many of the largest weights; fewer if fewer are left already."""
        self._gate.pressure, self._gate.presence_lr = 0.0, None
        if like.surviving < self._gate.surviving():
            self._gate.meet_capacity(like.surviving, "magnitude")
        track: list[float] = []
        for epoch in range(1, like.epochs + 1):
            track.append(self._train())
            self._watch("magnitude", like.density, epoch, track[-1])
        return self._row("magnitude", like.pressure, track, like.settled)

    def _train(self) -> float:
        """Train one epoch; returns the density after it."""
        config, pruning = self._config, self._config.pruning
        self._epoch += 1
        try:
            self._backend.train_pruning(
                epoch_batches(config.seed, self._epoch, self._backend.samples, config.batch_size),
                learning_rate=pruning.learning_rate,
                label_smoothing=pruning.label_smoothing,
                after_step=lambda: None,
            )
            self._backend.require_finite()
        except NotFiniteError as error:
            raise error.at(
                f"under pressure {self._gate.pressure:g}; lower pruning.learning_rate ({pruning.learning_rate:g}) and "
                "run again"
            ) from error
        return self._gate.surviving() / self._gate.total

    def _row(self, method: str, pressure: float, track: list[float], settled: bool) -> SweepRow:
        return SweepRow(
            method=method,
            pressure=pressure,
            density=track[-1],
            surviving=self._gate.surviving(),
            total=self._gate.total,
            epochs=len(track),
            settled=settled,
            accuracy=self._backend.evaluate().accuracy,
            saliencies=measure(self._backend, self._config.pruning.label_smoothing),
            track=tuple(track),
        )
