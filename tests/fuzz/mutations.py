"""Changes to text, bytes and JSON values: what every format is made of."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from random import Random
from typing import Any

LARGEST = 60_000  # of what a repetition makes: enough to see time or memory that grows with the square
ODD_NUMBERS = (0, -1, 1, 2, 3, 7, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64)
ODD_TEXTS = (
    "", "0", "a.b", ".", "..", "../x", "/etc/passwd", "a\0b", "\x1b[31m", "\u202e", "\ud800", "{}", "{0}", "%s",
    "é" * 300, 'a"]; open("canary", "w") #', "'''\nopen('canary', 'w')\n'''", "\\", "F32", "I64", "weight",
    "x" * 5000,
)  # fmt: skip
ODD_VALUES = (None, True, False, [], {}, 0.5, -0.0, 1e308, float("nan"), float("inf"), [[]], {"": {}})


def odd(chance: Random) -> Any:
    """A value that nobody expects."""
    return chance.choice(chance.choice((ODD_NUMBERS, ODD_TEXTS, ODD_VALUES)))


def changed_bytes(chance: Random, data: bytes) -> bytes:
    """A few changes at random places: bits, bytes, runs left out, doubled, moved, repeated, cut off."""
    made = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        start = chance.randrange(len(made) + 1)
        stop = min(len(made), start + chance.choice((1, 1, 2, 4, 8, 40, 400)))
        run, kind = made[start:stop], chance.randrange(8)
        if kind == 0 and run:
            made[start] ^= 1 << chance.randrange(8)
        elif kind == 1 and run:
            made[start] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, 0x0A, 0x22, chance.randrange(256)))
        elif kind == 2:
            del made[start:stop]
        elif kind == 3:
            made[start:start] = run
        elif kind == 4:
            del made[start:stop]
            to = chance.randrange(len(made) + 1)
            made[to:to] = run
        elif kind == 5 and run:
            made[start:stop] = run * min(chance.choice((2, 9, 1000, LARGEST)), LARGEST // len(run))
        elif kind == 6:
            made[start:start] = chance.randbytes(chance.choice((1, 4, 30)))
        elif chance.random() < 0.3:
            del made[start:]
    return bytes(made)


def changed_text(chance: Random, text: str) -> str:
    """Changes to lines and tokens, such as people and tools make to settings; now and then to bytes."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        lines = text.splitlines(keepends=True) or [""]
        i, j, kind = chance.randrange(len(lines)), chance.randrange(len(lines)), chance.randrange(9)
        if kind == 0:
            del lines[i]
        elif kind == 1:
            lines.insert(j, lines[i])
        elif kind == 2:
            lines[i], lines[j] = lines[j], lines[i]
        elif kind in (3, 4):
            token = chance.choice((str(odd(chance)), json.dumps(odd(chance)), "1979-05-27", "0x10", "[" * 2000, "1_0"))
            tokens = re.findall(r'"[^"]*"|[\w.-]+|\s+|.', lines[i])
            place = chance.randrange(len(tokens) or 1)
            lines[i] = "".join([*tokens[:place], token, *tokens[place + 1 :]])
        elif kind == 5:
            line = lines[i].rstrip("\n")
            lines[i] = line * min(chance.choice((3, 200, LARGEST)), LARGEST // (len(line) or 1)) + "\n"
        elif kind == 6:  # a dotted key of many parts
            lines.insert(i, ".".join("ab"[k % 2] for k in range(chance.choice((5, 500, LARGEST // 2)))) + " = 1\n")
        elif kind == 7:  # tables that differ in a name
            several = range(chance.choice((3, 60, 2000)))
            lines[i:i] = [line.replace("t9", f"t{k}") for k in several for line in lines[j : j + 7]]
        else:
            return changed_bytes(chance, "".join(lines).encode("utf-8", "replace")).decode("utf-8", "surrogateescape")
        text = "".join(lines)
    return text


def changed_json(chance: Random, text: str) -> str:
    """Changes to the values, names and structure of a JSON text; now and then to the text itself."""
    if chance.random() < 0.15:
        return changed_bytes(chance, text.encode()).decode("utf-8", "surrogateescape")
    value = json.loads(text)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        holder = chance.choice([place for place in _holders(value) if place] or [{"": value}])
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key, other = chance.choice(keys), chance.choice(keys)
        chance.choice(_JSON)(chance, holder, key, other)
    made = json.dumps(value)
    if chance.random() < 0.1:  # a name twice
        made = re.sub(r'"([^"]+)": ', r'"\1": 0, "\1": ', made, count=1)
    if chance.random() < 0.05:
        made = chance.choice(("[" * 5000, '{"a":' * 5000, "\ufeff", "//", "\0")) + made
    return made


def _holders(value: Any) -> list[Any]:
    found, waiting = [], [value]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict | list):
            found.append(node)
            waiting += node.values() if isinstance(node, dict) else node
    return found


def _renamed(chance: Random, holder: Any, key: Any, other: Any) -> None:
    if isinstance(holder, dict):
        name = chance.choice((str(odd(chance)), f"{key}.0", f"{key}x", str(key).replace("0", "7"), str(key)[:-1]))
        holder[name] = holder.pop(key)


def _bent(chance: Random, holder: Any, key: Any, other: Any) -> None:
    value = holder[key]
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        holder[key] = odd(chance)
    elif isinstance(value, str):
        holder[key] = chance.choice((value[:-1], value + value, value.upper(), value[::-1], f"{value}/../{value}"))
    else:
        holder[key] = chance.choice((value + 1, value - 1, -value, value * 2, value * 1.5, str(value), [value]))


def _many(chance: Random, holder: Any, key: Any, other: Any) -> None:
    if isinstance(holder, dict):
        for i in range(chance.choice((20, 700))):
            holder[f"{key}.{i}" if chance.random() < 0.5 else f"{i}.{key}"] = holder[key]
    else:
        holder += [holder[key]] * chance.choice((9, 2000))


_JSON: tuple[Callable[[Random, Any, Any, Any], object], ...] = (
    lambda chance, holder, key, other: holder.__setitem__(key, odd(chance)),
    lambda chance, holder, key, other: holder.pop(key),
    lambda chance, holder, key, other: holder.__setitem__(key, json.loads(json.dumps(holder[other]))),
    _renamed,
    _bent,
    _bent,
    _many,
)
