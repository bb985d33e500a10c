"""Models by name, as numbers that every backend builds from."""

from __future__ import annotations

from hyperflux.errors import InputError
from hyperflux.naming import unknown

LENET_HIDDEN = (300, 100)


def check_model(name: str) -> None:
    """Raise InputError unless `name` is `lenet300` or `mlp:IN-...-OUT`."""
    if name.startswith("mlp:"):
        _parse_mlp(name)
    elif name != "lenet300":
        raise unknown("model", name, ["lenet300", "mlp:784-300-100-10"])


def layer_sizes(name: str, features: int, classes: int) -> tuple[int, ...]:
    """Units of each layer of an MLP, input and output included, for data of `features` and `classes`.

    Raises InputError for an unknown model, and for an `mlp:` whose ends do not fit the data.
    """
    check_model(name)
    if name == "lenet300":
        return (features, *LENET_HIDDEN, classes)
    sizes = _parse_mlp(name)
    if (sizes[0], sizes[-1]) != (features, classes):
        fitting = "-".join(map(str, (features, *sizes[1:-1], classes)))
        raise InputError(
            f"model {name}: the data has {features} features and {classes} classes; use mlp:{fitting} or lenet300"
        )
    return sizes


def _parse_mlp(name: str) -> tuple[int, ...]:
    parts = name.removeprefix("mlp:").split("-")
    if len(parts) < 2 or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise InputError(f"model {name!r}: give two or more layer sizes above 0, as in mlp:784-300-100-10")
    return tuple(map(int, parts))
