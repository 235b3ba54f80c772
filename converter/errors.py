"""The errors that a user can cause, and how untrusted text is made safe to print.

Every error ends in one line and an exit code (0 done, 2 usage, 3 input rejected, 5 internal, or a disk that fails);
the command line prints `str(error)` and nothing else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec

HIDDEN = "***"  # in place of a secret
# A token of the hub, anybody's. A short one without a digit may be a name, such as hf_transfer.
TOKEN = re.compile(r"(?<![A-Za-z0-9])(?:hf|api_org)_(?:[A-Za-z0-9]{16,}|(?=[A-Za-z]*[0-9])[A-Za-z0-9]{6,})")


# The remedy for weights of element types that are not accepted, for the readers and for whoever knows the layout.
UNQUANTISED = "use the original weights, from before quantisation"


class ConverterError(Exception):
    """Base of everything this package raises on purpose; itself, a fault of neither the call nor the input."""

    exit_code = 5


class UsageError(ConverterError):
    """The call is wrong: a flag, a target, or a flag that contradicts the file."""

    exit_code = 2


class InputError(ConverterError):
    """The input is malformed, unsafe, or not something that can be converted."""

    exit_code = 3

    @classmethod
    def at(cls, path: str | os.PathLike[str], where: object, rule: str) -> InputError:
        """An error that names the file, the member or offset in it ('' for the whole), and the rule it breaks."""
        return cls(": ".join([printable(path), *([] if where == "" else [printable(where)]), rule]))


class AdapterError(InputError):
    """The input is an adapter, such as a LoRA, where a whole model is needed."""


_PACKAGES = {"bs4": "beautifulsoup4", "google.protobuf": "protobuf", "PIL": "Pillow"}  # where the names differ


def require(purpose: str, *modules: str, extra: str = "pipeline") -> None:
    """Raises: `UsageError` that says what to install, if one of these modules is missing.

    >>> require("counting sheep", "json", "sheep")
    Traceback (most recent call last):
    converter.errors.UsageError: counting sheep needs sheep: pip install 'convert-pixart[pipeline]'
    """

    def there(module: str) -> bool:
        with suppress(ModuleNotFoundError):  # of the package that it would be in
            return find_spec(module) is not None
        return False

    if missing := [_PACKAGES.get(module, module) for module in modules if not there(module)]:
        raise UsageError(f"{purpose} needs {' and '.join(missing)}: pip install 'convert-pixart[{extra}]'")


def explained(error: Exception | SystemExit) -> tuple[str, int]:
    """The message and the exit code; an unexpected error is raised again where PIXART_DEBUG is set.

    >>> explained(InputError("a.pth: truncated")), explained(KeyError("x"))
    (('a.pth: truncated', 3), ("internal error: KeyError: 'x'", 5))
    """
    if isinstance(error, ConverterError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        where = f"{printable(error.filename)}: " if error.filename else ""
        return f"{where}{error.strerror or error}", 5
    if os.environ.get("PIXART_DEBUG"):
        raise error
    return f"internal error: {type(error).__name__}: {printable(error)}", 5


_PARAMETER = re.compile(r"`([a-z][a-z0-9_]*)`")


def as_flags(text: str) -> str:
    """A message with parameters in backticks, as in every error here, with command-line flags instead.

    >>> as_flags("`image_size` is needed")
    '--image_size is needed'
    """
    return _PARAMETER.sub(r"--\1", text)


def printable(text: object, limit: int = 200) -> str:
    """Text from a file or a user, safe for a terminal and a log: one line, no control characters.

    >>> printable("a\\x1b[31mb\\n")
    'a\\\\x1b[31mb\\\\n'
    """
    # Cut before escaping: a hostile name may be megabytes long.
    raw = os.fspath(text) if isinstance(text, os.PathLike) else str(text)
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in raw[:limit])
    return shown if len(raw) <= limit else f"{shown}... ({len(raw)} characters)"


def shortened(names: Sequence[str], most: int) -> str:
    """The first names, and how many more there are.

    >>> shortened(["a", "b", "c", "d"], 2)
    'a, b and 2 more'
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def plural(count: int, noun: str) -> str:
    """A count of something.

    >>> plural(1, "case"), plural(4, "sample")
    ('1 case', '4 samples')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def human_bytes(count: int) -> str:
    """A size as people quote it, in decimal units: 2445000000 is '2.45 GB'."""
    size = float(count)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.2f} GB"
