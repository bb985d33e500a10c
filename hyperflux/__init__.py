"""Hyperflux: pruning neural networks while they train (Barbulescu, Alexoaie, Busoniu, arXiv 2504.05349v4).

Public names are loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hyperflux._version import __version__ as __version__

if TYPE_CHECKING:
    from hyperflux.backends.torch.prune import prune as prune
    from hyperflux.backends.torch.pruner import Pruner as Pruner
    from hyperflux.config import RunConfig as RunConfig
    from hyperflux.deploy.compact import compact as compact
    from hyperflux.errors import InputError as InputError
    from hyperflux.errors import RunError as RunError
    from hyperflux.law.fit import PruningLaw as PruningLaw
    from hyperflux.law.fit import fit_pruning_law as fit_pruning_law

_HOMES = {
    "Pruner": "backends.torch.pruner",
    "InputError": "errors",
    "PruningLaw": "law.fit",
    "RunConfig": "config",
    "RunError": "errors",
    "compact": "deploy.compact",
    "fit_pruning_law": "law.fit",
    "prune": "backends.torch.prune",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hyperflux' has no attribute {name!r}")
    return getattr(import_module(f"hyperflux.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
