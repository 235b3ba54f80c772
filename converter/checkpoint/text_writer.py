"""A text file, written whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from ..errors import ConverterError, printable


def write_text(path: Path, text: str) -> None:
    """Write a file by way of another beside it, so that nobody ever reads half of it.

    Raises: `ConverterError` where that fails; the file is then as it was.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        try:
            with partial.open("x", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConverterError(f"{printable(path)}: cannot be written: {error.strerror or error}") from error
