"""A text file, written whole or not at all."""

from __future__ import annotations

import secrets
from pathlib import Path

from ..errors import ConverterError, printable
from ..system import replace


def write_text(path: Path, text: str) -> None:
    """Write a file by way of another beside it, so that nobody ever reads half of it.

    Raises: `ConverterError` where that fails; the file is then as it was.
    """
    # Not named after the file: the name would be too long where that of the file just fits.
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        try:
            with partial.open("x", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
                file.write(text)
            replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConverterError(f"{printable(path)}: cannot be written: {error.strerror or error}") from error
