"""What a file is, by its first bytes; and what it is instead, where it is no checkpoint: often the text that a server
sent instead of the weights."""

from __future__ import annotations

import codecs
import re

from ..errors import HIDDEN, TOKEN, printable
from .file import InputFile

_HEAD = 2048  # bytes that are looked at
_RESAVE = "re-save it with a current torch: torch.save(torch.load(PATH, weights_only=True, map_location='cpu'), NEW)"
_NOT_WEIGHTS = "not a torch or safetensors checkpoint"
# Files that are given in place of a checkpoint: (offset, magic bytes, what the file is and what to do).
_OTHERS = (
    (0, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19", f"a legacy torch file (the default before torch 1.6): {_RESAVE}"),
    (0, b"\x80", "a bare pickle, not a torch archive: re-save it with torch.save"),
    (0, b"\x89HDF", f"an HDF5 file (Keras), {_NOT_WEIGHTS}"),
    (0, b"GGUF", f"a GGUF file, {_NOT_WEIGHTS}"),
    (0, b"\x93NUMPY", f"a NumPy array, {_NOT_WEIGHTS}"),
    (0, b"\x1f\x8b", "gzip-compressed: decompress it first"),
    (0, b"\x28\xb5\x2f\xfd", "zstd-compressed: decompress it first"),
    (0, b"\xfd7zXZ", "xz-compressed: decompress it first"),
    (0, b"BZh", "bzip2-compressed: decompress it first"),
    (0, b"7z\xbc\xaf", "a 7-Zip archive: unpack it first"),
    (0, b"Rar!\x1a\x07", "a RAR archive: unpack it first"),
    (0, b"PK\x05\x06", "an empty zip archive: nothing is in it (an interrupted download or packing?)"),
    (0, b"PK\x07\x08", "one part of a split zip archive: join the parts and unpack them first"),
    (0, b"\x89PNG", "a PNG image"),
    (0, b"%PDF", "a PDF document"),
    (0, b"RIFF", "a RIFF file (WebP, WAV)"),
    (257, b"ustar", "a tar archive: if torch before 0.4 wrote it, re-save it with a current torch, else unpack it"),
)
_SHOWN = 160  # characters of it in the error line
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_BEARER = re.compile(r"(?<=bearer )\S+", re.IGNORECASE)


def container_of(file: InputFile) -> str:
    """'zip' or 'safetensors', by the first bytes. Raises: `InputError` that says what any other file is."""
    head = file.read(0, min(file.size, _HEAD))
    if not head:
        raise file.error("", "empty")
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    # A safetensors file begins with the length of its header, and the header with '{'.
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40:
        return "safetensors"
    for offset, magic, what in _OTHERS:
        if head[offset : offset + len(magic)] == magic:
            raise file.error("offset 0", f"this is {what}")
    if text := text_in(head, whole=len(head) == file.size):
        raise file.error("offset 0", text)
    if not any(head):
        raise file.error("offset 0", "this begins with zeros (an unfinished download?)")
    raise file.error("offset 0", f"neither a torch archive nor a safetensors file (it begins with {head[:8].hex(' ')})")


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
        title = re.search(r"<title[^<>]*>([^<]+)", text, re.IGNORECASE)
        shown = title[1] if title else re.sub(r"<[^<>]*>?", " ", text)
        return f"this is an HTML or XML page, not the weights{_quoted(shown)} (a failed download?)"
    if start.startswith(("{", "[")):
        if '"weight_map"' in start:
            return "this is an index of shards, not the weights: give the folder that it lies in"
        return f"this is JSON text, not the weights{_quoted(text)} (a failed download, or a config?)"
    what = "a message from a server? then the download failed: fetch it again"
    return f"this is text, not weights{_quoted(text)} ({what})"


def _decoded(head: bytes, whole: bool) -> str:
    """The text that bytes are, '' where they are none."""
    mark, encoding = next(((mark, name) for mark, name in _BOMS if head.startswith(mark)), (b"", "utf-8"))
    data, odd = head[len(mark) :], 0.1
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(data, final=whole)
    except UnicodeDecodeError:
        # An old encoding of western languages: any byte is a character, so most must be ASCII.
        if mark or sum(byte < 128 for byte in data) < 0.75 * len(data):
            return ""
        text, odd = data.decode("latin-1"), 0
    # Terminal colours and the like may be among them; a NUL may not.
    controls = sum(not (c.isprintable() or c.isspace()) for c in text)
    return text.lstrip("\ufeff") if "\0" not in text and controls <= odd * len(text) else ""


def _quoted(text: str) -> str:
    """Its beginning on one line, to follow a word."""
    line = _BEARER.sub(HIDDEN, TOKEN.sub(HIDDEN, " ".join(text.split())))  # nobody's secret is to end in a log
    more = "..." if len(line) > _SHOWN else ""
    return f": '{printable(line[:_SHOWN])}{more}'" if line else ""
