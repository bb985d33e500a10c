"""Nested mappings as flat ones: `{"gate": {"steps": a}}` as `{"gate/steps": a}`, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def flatten(nested: Mapping[str, Mapping[str, T]]) -> dict[str, T]:
    """Every value under `OUTER/INNER`, its two keys."""
    return {f"{outer}/{inner}": value for outer, part in nested.items() for inner, value in part.items()}


def subtree(flat: Mapping[str, T], outer: str) -> dict[str, T]:
    """The values under one outer key, by their inner keys: the inverse of `flatten`."""
    return {name.removeprefix(f"{outer}/"): value for name, value in flat.items() if name.startswith(f"{outer}/")}
