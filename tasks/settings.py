"""Nested settings under dotted names, and which of them differ."""

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["flatten_settings", "setting_differences"]


def flatten_settings(value: Any, name: str = "") -> dict[str, str]:
    """Dotted name -> value as text; lists without mappings in them are values."""
    if isinstance(value, Mapping):
        items = [(str(key), each) for key, each in value.items()]
    elif isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
        items = [(str(index), each) for index, each in enumerate(value)]
    else:
        return {name: str(value)}
    found: dict[str, str] = {}
    for key, each in items:
        found |= flatten_settings(each, f"{name}.{key}" if name else key)
    return found


def setting_differences(
    a: Mapping[str, str], b: Mapping[str, str]
) -> Iterator[tuple[str, str, str]]:
    """(name, in A, in B) of what differs, in A's order; "" where one has no such setting."""
    for name in dict.fromkeys([*a, *b]):
        first, second = a.get(name, ""), b.get(name, "")
        if first != second:
            yield name, first, second
