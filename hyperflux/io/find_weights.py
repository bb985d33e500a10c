"""Find a network's weights in what a training script saved: under keys of its own, and prefixes before every name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from hyperflux.errors import InputError
from hyperflux.io.safe_read import shown

T = TypeVar("T")
Shape = tuple[int, ...]

WRAPPING = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of a name that torch.compile, FSDP and activation checkpointing put anywhere in it."""
MAX_DEPTH = 6
"""Levels of nested dictionaries that are searched."""
MAX_PREFIX = 16
"""Most parts of a prefix, such as the two of `model.net.`."""
LISTED = 4
"""Tensors named of each kind of misfit."""


@dataclass(frozen=True)
class FoundWeights(Generic[T]):
    """Tensors by the network's own names, and where they were, in words.

    `place` is empty for the network's own names at the top of the file.
    """

    tensors: dict[str, T]
    place: str


def find_weights(
    content: Any,
    own: Mapping[str, Shape],
    network: str,
    *,
    shape_of: Callable[[Any], Shape | None],
    same: Callable[[T, T], bool],
) -> FoundWeights[T]:
    """Find the tensors of a network in nested dictionaries.

    Args:
        content: What a file holds.
        own: The shapes of the network's parameters and buffers, by name.
        network: The network's name, for messages.
        shape_of: The shape of a tensor; None if it has none, and then any fits.
        same: Whether two tensors are equal.

    Returns:
        All tensors of the network, in its order.

    Raises:
        InputError: There is no dictionary of tensors; its names and shapes are not the network's, which are listed
            both ways; or weights that fit are there more than once, and differ.
    """
    candidates = [found for keys, table in _tables(content) for found in _candidates(keys, table, own)]
    if not candidates:
        raise InputError("is not a state_dict of tensors")

    def misfits_of(tensors: Mapping[str, T]) -> list[str]:
        return misfits({name: shape_of(tensor) for name, tensor in tensors.items()}, own)

    complete = [found for found in candidates if not misfits_of(found.chosen(own))]
    if len(complete) > 1:
        _require_same([(found.place, found.chosen(own)) for found in complete], network, same)
    nearest = min(complete, key=lambda found: found.size, default=max(candidates, key=lambda found: found.matches))
    if wrong := misfits_of(nearest.everything()):
        raise misfit(network, wrong, nearest.place)
    return FoundWeights(nearest.chosen(own), nearest.place)


def misfits(found: Mapping[str, Shape | None], own: Mapping[str, Shape]) -> list[str]:
    """What keeps tensors of these shapes from being a network's, by kind: missing, unknown, of another shape."""
    kinds = {
        "missing": [f"{name} {shape}" for name, shape in own.items() if name not in found],
        "unknown": [f"{name} {shape or ''}".rstrip() for name, shape in found.items() if name not in own],
        "of another shape": [
            f"{name} {found[name]} instead of {shape}"
            for name, shape in own.items()
            if found.get(name) is not None and found[name] != shape
        ],
    }
    return [f"{kind}: {_few(names)}" for kind, names in kinds.items() if names]


def misfit(network: str, wrong: list[str], place: str = "") -> InputError:
    """The error for tensors that are not the network's, by what `misfits` found."""
    where = f" {place}" if place else ""
    return InputError(f"the tensors{where} are not those of {network}; {'; '.join(wrong)}")


@dataclass(frozen=True)
class _Candidate:
    """A dictionary of tensors, seen behind a prefix: `matches` names of `size` are the network's."""

    keys: tuple[str, ...]
    prefix: str
    table: Mapping[str, Any]
    matches: int
    size: int

    @property
    def place(self) -> str:
        keys = "".join(f"[{shown(key)}]" for key in self.keys)
        parts = ([f"under {keys}"] if keys else []) + ([f"with the prefix {self.prefix}"] if self.prefix else [])
        return " ".join(parts)

    def chosen(self, own: Iterable[str]) -> dict[str, Any]:
        """The network's tensors by its own names, as far as they are there."""
        return {name: self.table[self.prefix + name] for name in own if self.prefix + name in self.table}

    def everything(self) -> dict[str, Any]:
        """All tensors behind the prefix."""
        return {name[len(self.prefix) :]: t for name, t in self.table.items() if name.startswith(self.prefix)}


def _require_same(sets: Sequence[tuple[str, dict[str, T]]], network: str, same: Callable[[T, T], bool]) -> None:
    """Raise InputError if weights that were found in several places differ."""
    (place, first), *others = sets
    for other_place, other in others:
        if not all(same(first[name], other[name]) for name in first):
            raise InputError(
                f"holds different weights that all fit {network}: {place or 'at its top'}, and {other_place}; save "
                "those to start from by themselves"
            )


def _tables(content: Any) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """(keys, tensors by name) of every dictionary that holds tensors, the outer ones first."""
    seen: set[int] = set()
    level: list[tuple[tuple[str, ...], Any]] = [((), content)]
    for _ in range(MAX_DEPTH):
        following = []
        for keys, table in level:
            if not isinstance(table, Mapping) or id(table) in seen:
                continue
            seen.add(id(table))
            tensors = {name: value for name, value in table.items() if isinstance(name, str) and _is_array(value)}
            if tensors:
                yield keys, _without_wrapping(tensors)
            following += [((*keys, str(key)), value) for key, value in table.items() if isinstance(value, Mapping)]
        level = following


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype")


def _without_wrapping(tensors: dict[str, Any]) -> dict[str, Any]:
    """The tensors under names without the parts of `WRAPPING`, unless two would get the same name."""
    plain = {".".join(part for part in name.split(".") if part not in WRAPPING): t for name, t in tensors.items()}
    return plain if len(plain) == len(tensors) else tensors


def _candidates(keys: tuple[str, ...], table: dict[str, Any], own: Mapping[str, Shape]) -> Iterator[_Candidate]:
    """The table behind each of the prefixes that give most names of the network."""
    sizes = Counter(prefix for name in table for prefix in _prefixes(name))
    matches = Counter(prefix for name in table for prefix in _prefixes(name) if name[len(prefix) :] in own)
    most = max(matches.values(), default=0)
    for prefix in [prefix for prefix, count in matches.items() if count == most] or [""]:
        yield _Candidate(keys, prefix, table, most, sizes[prefix])


def _prefixes(name: str) -> Iterator[str]:
    """ "", "a." and "a.b." of "a.b.c"."""
    yield ""
    end = 0
    for _ in range(MAX_PREFIX):
        if not (end := name.find(".", end) + 1):
            return
        yield name[:end]


def _few(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
