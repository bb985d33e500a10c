"""What `hyperflux export` offers: formats, their file extensions and packages, and output paths. Imports no torch."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from hyperflux.errors import InputError
from hyperflux.io.did_you_mean import known_name

EXTENSIONS = {
    "safetensors": ".safetensors",
    "sparse-safetensors": ".sparse.safetensors",
    "torch-export": ".pt2",
    "torchscript": ".pt",
    "onnx": ".onnx",
}
"""File extensions by format."""
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""What the extra `hyperflux[onnx]` installs."""


def output_path(folder: Path, name: str, compact: bool, out: Path | None) -> Path:
    """Return the file that an export writes.

    Args:
        folder: The run's folder.
        name: The format.
        compact: Whether the network is compacted.
        out: A new file, or None for the default in the run's folder, which may be replaced.

    Returns:
        `out`, or `model-compact` or `model-whole` with the format's extension.

    Raises:
        InputError: The format is unknown, `out` exists, has no folder, or has the extension of another format.
    """
    known_name("format", name, EXTENSIONS)
    if out is None:
        return folder / f"model-{'compact' if compact else 'whole'}{EXTENSIONS[name]}"
    try:
        if out.exists() or out.is_symlink():
            raise InputError(f"{out}: already exists; give --out a new name or remove this file")
        if not out.parent.is_dir():
            raise InputError(f"{out}: the folder {out.parent} does not exist; create it or give --out another name")
    except OSError as error:
        raise InputError(f"{out}: can't be written ({error.strerror}); give --out another name") from error
    matching = [other for other, extension in EXTENSIONS.items() if out.name.endswith(extension)]
    if matching and name not in matching:
        raise InputError(
            f"{out}: has the extension of {matching[-1]}, but the format is {name}; change --format or the name"
        )
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
