"""JSON by others, read strictly and within bounds: a file, or the header of one."""

from __future__ import annotations

import codecs
import json
from math import isfinite
from pathlib import Path
from typing import Any

from ..errors import printable
from .file import InputFile

JSON_LIMIT = 25_000_000  # bytes of a file
# An empty list takes three bytes of a file and seventy of memory; a tensor has one object and two lists.
NODE_LIMIT = 500_000


def read_json(path: Path, kept: dict[Path, bytes] | None = None, *, infinite: bool = False) -> Any:
    """What a JSON file says, read strictly: no duplicate keys, nothing without bounds. The byte order mark that editors
    on Windows put before UTF-8 is no part of it.

    Args:
        kept: takes up the bytes, by their path.
        infinite: accept Infinity and -Infinity, which are no JSON; diffusers writes them into a scheduler's config.
    """
    with InputFile(path) as file:
        if file.size > JSON_LIMIT:
            raise file.error("", f"{file.size} bytes of JSON, more than the {JSON_LIMIT} that are accepted")
        data = file.read(0, file.size)
        if kept is not None:
            kept[path] = data
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data[:4]:
            raise file.error("", "not valid JSON: it is in UTF-16 or UTF-32: save it as UTF-8")
        text = data.removeprefix(codecs.BOM_UTF8)
        if text.startswith(codecs.BOM_UTF8):
            raise file.error("", "not valid JSON: it begins with two byte order marks: save it as UTF-8 without one")
        return parse_json(file, "", text, infinite=infinite)


def has_byte_order_mark(path: Path) -> bool:
    """Whether a file begins with a byte order mark: `read_json` reads past it, and diffusers does not."""
    with InputFile(path) as file:
        return file.read(0, min(file.size, 3)) == codecs.BOM_UTF8


def parse_json(file: InputFile, what: str, data: bytes, *, infinite: bool = False) -> Any:
    """Strict JSON: no duplicate keys, no NaN, no infinity unless allowed, no half characters, no runaway nesting."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) != len(pairs):
            raise ValueError("a duplicate key")
        return content

    def constant(text: str) -> float:
        if infinite and text in ("Infinity", "-Infinity"):
            return float(text)
        raise ValueError(f"{text} is not JSON")

    def number(text: str) -> float:
        return value if isfinite(value := float(text)) else constant(text)

    if data.count(b"[") + data.count(b"{") > NODE_LIMIT:
        raise file.error(what, f"more than {NODE_LIMIT} lists and objects")
    try:
        content = json.loads(data.decode(), object_pairs_hook=unique, parse_constant=constant, parse_float=number)
        if b"\\ud" in data.lower():
            json.dumps(content, ensure_ascii=False).encode()
        return content
    except RecursionError:
        raise file.error(what, "nested too deeply") from None
    except UnicodeEncodeError:
        raise file.error(what, "not valid JSON: an unpaired surrogate") from None
    except ValueError as error:
        raise file.error(what, f"not valid JSON: {printable(error, 120)}") from None
