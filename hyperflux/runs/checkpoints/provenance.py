"""What a checkpoint belongs to: the run's settings, its data, its dense weights, the libraries that trained it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hyperflux._version import __version__
from hyperflux.io import fingerprints
from hyperflux.backends.base import Backend
from hyperflux.config import RunConfig
from hyperflux.errors import InputError

CHANGEABLE = ("data_dir", "checkpoint", "workers", "on_nonfinite")
"""Settings that may change in a run's config.toml before it goes on: where things lie, on which no result depends, and
what happens to a step that could not be taken.
"""


@dataclass(frozen=True)
class Provenance:
    """`data` and `dense_weights` are fingerprints, the latter None where the run trains its own; `device` is told by
    the backend's `place`.
    """

    config: dict[str, Any]
    data: str
    dense_weights: str | None
    versions: dict[str, str]
    device: str

    @classmethod
    def of(cls, config: RunConfig, backend: Backend) -> Provenance:
        """That of a run. Raises InputError where the file of dense weights can't be read."""
        weights = fingerprints.of_file(config.checkpoint) if config.checkpoint else None
        settings = {name: value for name, value in config.to_dict().items() if name not in CHANGEABLE}
        return cls(settings, backend.fingerprint(), weights, versions(backend), backend.place())

    def require_alike(self, every: Sequence[Provenance]) -> None:
        """Raise InputError where processes that are to train together have come with different things."""
        for name in ("config", "data", "dense_weights", "versions"):
            for number, origin in enumerate(every):
                if getattr(origin, name) != getattr(every[0], name):
                    raise InputError(
                        f"{name.replace('_', ' ')}: process {number} does not have those of process 0; start all with "
                        "the same settings, files and versions"
                    )

    def require(self, saved: Provenance, announce: Callable[[str], None]) -> None:
        """Raise InputError where `saved`, of a checkpoint, is of other settings, data or weights; announce others."""
        if changed := [name for name, value in self.config.items() if saved.config.get(name) != value]:
            raise InputError(
                f"{changed[0]}: is {self.config[changed[0]]!r} in config.toml, but the run began with "
                f"{saved.config.get(changed[0])!r}; put it back, or begin a new run with --recipe"
            )
        if self.data != saved.data:
            raise InputError(
                f"data set {self.config['dataset']}: is not the one that this run began with; name the folder of that "
                "one as data_dir in the run's config.toml, or begin a new run"
            )
        if self.dense_weights != saved.dense_weights:
            raise InputError(
                "checkpoint: the file of dense weights is not the one that this run began with; put it back"
            )
        now, then = ({**origin.versions, "device": origin.device} for origin in (self, saved))
        for name, value in now.items():
            if value != then.get(name):
                announce(f"{name} is {value}, the run began with {then.get(name)}: its end may differ in the last bits")


def versions(backend: Backend) -> dict[str, str]:
    """Versions of everything that has a part in a run's numbers."""
    own = {"hyperflux": __version__, "numpy": np.__version__, "python": platform.python_version()}
    return {**own, **backend.versions()}
