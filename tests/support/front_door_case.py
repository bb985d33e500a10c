"""One case of bad input, and the good material that cases spoil."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

SMALL = {"dataset": "synthetic", "model": "mlp:16-24-4", "sparsity": 0.8}
STAGES = {"dense": {"epochs": 1}, "pruning": {"epochs": 3}, "regrowth": {"epochs": 1}}


@dataclass(frozen=True)
class Material:
    """`run` is the folder of a small finished run with telemetry."""

    run: Path

    @classmethod
    def make(cls, folder):
        from hyperflux import RunConfig
        from hyperflux.runs.driver import execute

        execute(RunConfig.from_dict({"backend": "numpy", **SMALL, **STAGES}), folder / "run")
        return cls(folder / "run")

    def copy_run(self, folder, name="run"):
        """A copy of the run in a folder."""
        return Path(shutil.copytree(self.run, folder / name))


@dataclass(frozen=True)
class Case:
    """Words after `hyperflux`, and what they find: `prepare(folder, material)` fills the working folder."""

    name: str
    arguments: Sequence[str]
    prepare: Callable[[Path, Material], object] = lambda folder, material: None


def short(value):
    """A name for a case, made of what is in it."""
    text = value if isinstance(value, str) else repr(value)
    return text.encode("ascii", "backslashreplace").decode()[:60]
