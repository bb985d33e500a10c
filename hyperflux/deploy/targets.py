"""The formats of `hyperflux export` by name, and where their files go. Loads no torch."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from hyperflux.errors import InputError
from hyperflux.io.did_you_mean import unknown_name

EXTENSIONS = {
    "safetensors": ".safetensors",
    "sparse-safetensors": ".sparse.safetensors",
    "torch-export": ".pt2",
    "torchscript": ".pt",
    "onnx": ".onnx",
}
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""What the extra `hyperflux[onnx]` installs."""


def target_file(folder: Path, name: str, compact: bool, out: Path | None) -> Path:
    """The file that an export of the run in `folder` goes to: `out`, or one beside the run's own that it may replace.

    Raises InputError for a format that is not known, an `out` that exists, or an ending of another format.
    """
    if name not in EXTENSIONS:
        raise unknown_name("format", name, EXTENSIONS)
    if out is None:
        return folder / f"model-{'compact' if compact else 'whole'}{EXTENSIONS[name]}"
    try:
        if out.exists() or out.is_symlink():
            raise InputError(f"{out}: exists; name a new file with --out or remove this one")
        if not out.parent.is_dir():
            raise InputError(f"{out}: there is no folder {out.parent}; make it or name another file with --out")
    except OSError as error:
        raise InputError(f"{out}: can't be written ({error.strerror}); name another file with --out") from error
    meant = [other for other, extension in EXTENSIONS.items() if out.name.endswith(extension)]
    if meant and name not in meant:
        raise InputError(f"{out}: ends like {meant[-1]}, and the format is {name}; give --format or another name")
    return out


def missing_for_onnx() -> list[str]:
    """The optional packages for ONNX that are not installed."""
    return [name for name in ONNX_PACKAGES if find_spec(name) is None]


def require_onnx() -> None:
    """Raise InputError where one of the optional packages for ONNX is missing."""
    if missing := missing_for_onnx():
        raise InputError(
            f"format onnx: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed; "
            "pip install 'hyperflux[onnx]' brings all it needs"
        )
