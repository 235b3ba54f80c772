"""A text file, written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ..errors import ConverterError, printable


def write_text(path: Path, text: str) -> None:
    """Write a file by way of another beside it, so that nobody ever reads half of it.

    Raises: `ConverterError` where that fails; the file is then as it was.
    """
    try:
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
        try:
            with os.fdopen(fd, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(name, 0o666 & ~umask)  # as any other new file; a temporary one is its owner's alone
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise ConverterError(f"{printable(path)}: cannot be written: {error.strerror or error}") from error
