"""Text where weights should be: mostly what a server said instead of sending them, kept under their name."""

from __future__ import annotations

import codecs
import re

from ..errors import HIDDEN, TOKEN, printable

_SHOWN = 160  # characters of it in the error line
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_BEARER = re.compile(r"(?<=bearer )\S+", re.IGNORECASE)


def text_in(head: bytes, *, whole: bool) -> str:
    """What is wrong with a file that begins with these bytes, where they are text; else ''.

    Args:
        whole: there is no more of it.

    >>> text_in(b"Entry not found", whole=True)
    "this is text, not weights: 'Entry not found' (a message from a server? then the download failed: fetch it again)"
    """
    text = _decoded(head, whole)
    if not text and head.lstrip(b" \t\r\n").startswith((b"<", b"{", b"[")):
        text = head.decode("latin-1")  # a page in an encoding of its own
    start = text.lstrip().lower()
    if not start:
        return ""
    if start.startswith("version https://git-lfs"):
        return "this is a Git-LFS pointer, not the weights: run `git lfs pull` and try again"
    if start.startswith("<"):
        return f"this is an HTML or XML page, not the weights{_quoted(_without_tags(text))} (a failed download?)"
    if start.startswith(("{", "[")):
        if '"weight_map"' in start:
            return "this is an index of shards, not the weights: give the folder that it lies in"
        return f"this is JSON text, not the weights{_quoted(text)} (a failed download, or a config?)"
    return (
        f"this is text, not weights{_quoted(text)} (a message from a server? then the download failed: fetch it again)"
    )


def _decoded(head: bytes, whole: bool) -> str:
    """The text that bytes are, '' where they are none."""
    mark, encoding = next(((mark, name) for mark, name in _BOMS if head.startswith(mark)), (b"", "utf-8"))
    data, odd = head[len(mark) :], 0.1
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(data, final=whole)
    except UnicodeDecodeError:
        # An old encoding of western languages: any byte is a character, so more is asked of them.
        if mark or sum(byte < 128 for byte in data) < 0.75 * len(data):
            return ""
        text, odd = data.decode("latin-1"), 0
    # Colours for a terminal and the like may be among them; a NUL is a number that is none.
    controls = sum(not (c.isprintable() or c.isspace()) for c in text)
    return text if "\0" not in text and controls <= odd * len(text) else ""


def _quoted(text: str) -> str:
    """Its beginning on one line, to stand behind a word."""
    line = _BEARER.sub(HIDDEN, TOKEN.sub(HIDDEN, " ".join(text.split())))  # nobody's secret is to end in a log
    more = "..." if len(line) > _SHOWN else ""
    return f": '{printable(line[:_SHOWN])}{more}'" if line else ""


def _without_tags(text: str) -> str:
    """The title of a page, or what it says between its tags."""
    title = re.search(r"<title[^<>]*>([^<]+)", text, re.IGNORECASE)
    return title[1] if title else re.sub(r"<[^<>]*>?", " ", text)
