"""Parts of a whole. A part, such as `controlnet.`, is what the names in it begin with; of the whole itself it is ''."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")


def below(named: Mapping[str, Value], part: str) -> dict[str, Value]:
    """What stands under names that begin with a part, by the rest of them.

    >>> below({"a.fc": 1, "a.out": 2, "b.fc": 3}, "a.")
    {'fc': 1, 'out': 2}
    """
    return {name[len(part) :]: value for name, value in named.items() if name.startswith(part)}


def joined(parts: Mapping[str, Mapping[str, Value]]) -> dict[str, Value]:
    """What stands in each part, under the names that it has in the whole.

    >>> joined({"a.": {"fc": 1, "out": 2}, "b.": {"fc": 3}})
    {'a.fc': 1, 'a.out': 2, 'b.fc': 3}
    """
    return {part + name: value for part, named in parts.items() for name, value in named.items()}
