"""Arrays of several owners under one roof: `{"gate": {"steps": a}}` as `{"gate/steps": a}`, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def flatten(parts: Mapping[str, Mapping[str, T]]) -> dict[str, T]:
    """All values of all parts, the part's name and a slash before each own name."""
    return {f"{owner}/{name}": value for owner, part in parts.items() for name, value in part.items()}


def subtree(values: Mapping[str, T], owner: str) -> dict[str, T]:
    """The values of one part, by their own names."""
    return {name.removeprefix(f"{owner}/"): value for name, value in values.items() if name.startswith(f"{owner}/")}
