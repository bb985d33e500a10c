"""Provenance of a checkpoint: the run's settings, data, dense weights and library versions."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hyperflux._version import __version__
from hyperflux.backends.base import Backend
from hyperflux.config import RETIRED, RunConfig
from hyperflux.errors import InputError
from hyperflux.gates.kinds import BUDGETS
from hyperflux.io import fingerprints
from hyperflux.io.safe_read import shown

CHANGEABLE = ("data_dir", "checkpoint", "workers", "on_nonfinite")
"""Settings in config.toml that may change before a run resumes: locations, and what to do with a non-finite step."""


@dataclass(frozen=True)
class Provenance:
    """What a checkpoint was made from.

    Attributes:
        config: The run's settings, without those that may change.
        data: Fingerprint of the data.
        dense_weights: Fingerprint of the weights file; None if the run trains its own start.
        versions: Library versions.
        device: The device and its threads, see `Backend.place`.
    """

    config: dict[str, Any]
    data: str
    dense_weights: str | None
    versions: dict[str, str]
    device: str

    @classmethod
    def of(cls, config: RunConfig, backend: Backend) -> Provenance:
        """The provenance of a run. Raises InputError if the weights file can't be read."""
        weights = fingerprints.of_file(config.checkpoint) if config.checkpoint else None
        settings = {name: value for name, value in config.to_dict().items() if name not in CHANGEABLE}
        return cls(settings, backend.fingerprint(), weights, versions(backend), backend.place())

    def require_same_on_all_ranks(self, every: Sequence[Provenance]) -> None:
        """Raise InputError if any rank has other settings, data, weights or versions than rank 0."""
        for name in ("config", "data", "dense_weights", "versions"):
            for rank, other in enumerate(every):
                if getattr(other, name) != getattr(every[0], name):
                    raise InputError(
                        f"{name.replace('_', ' ')}: rank {rank} differs from rank 0; start all ranks with the same "
                        "settings, files and versions"
                    )

    def require(self, saved: Provenance, announce: Callable[[str], None]) -> None:
        """Raise InputError if a checkpoint has other settings or weights; announce other versions."""
        config, started = _complete(self.config), _complete(saved.config)
        if changed := [name for name in {**config, **started} if config.get(name) != started.get(name)]:
            raise InputError(
                f"{changed[0]}: is {config.get(changed[0])!r} in config.toml, but the run started with "
                f"{shown(started.get(changed[0]))}; put it back, or start a new run with --recipe"
            )
        if self.dense_weights != saved.dense_weights:
            raise InputError("checkpoint: the weights file is not the one that this run started with; put it back")
        now, then = ({**each.versions, "device": each.device} for each in (self, saved))
        for name, value in now.items():
            if value != then.get(name):
                announce(
                    f"{name} is {value}, the run started with {then.get(name)}: results may differ in the last bits"
                )


def _complete(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the defaults of those that an older version did not have, and without those it had before."""
    defaults = {name: value for name, value in RunConfig().to_dict().items() if name not in BUDGETS}
    return {name: value for name, value in {**defaults, **settings}.items() if name not in RETIRED}


def versions(backend: Backend) -> dict[str, str]:
    """Versions of everything that can affect a run's numbers."""
    own = {"hyperflux": __version__, "numpy": np.__version__, "python": platform.python_version()}
    return {**own, **backend.versions()}
