"""The central directory of a zip file, read strictly, and which zip it is where torch did not write it.

Format: PKWARE APPNOTE 6.3, sections 4.3 to 4.5.
"""

from __future__ import annotations

import struct
from collections import namedtuple
from collections.abc import Iterable

from ...errors import printable, shortened
from ..file import InputFile
from ..weight_names import SUFFIXES

LOCAL, CENTRAL = struct.Struct("<4s5H3I2H"), struct.Struct("<4s6H3I5H2I")
END, END64, LOCATOR64 = struct.Struct("<4s4H2IH"), struct.Struct("<4sQ2H2I4Q"), struct.Struct("<4sIQI")
# An entry of the directory takes several times its bytes in memory; this is room for some 250,000 tensors.
_DIRECTORY_LIMIT = 16 << 20
_COMMENT_LIMIT = 0xFFFF
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".xz", ".zst", ".bz2", ".rar")  # that may hold one
_WRITTEN_BY_TORCH = (0, 45)  # `made_by` as torch writes it, and as this tool does
_MACOS = ("._", ".DS_Store")  # what macOS puts in, and "__MACOSX/"


# The fields of the format (`made_by`: which version on which system), then name and extra fields as they stand.
ZipEntry = namedtuple(
    "ZipEntry",
    """magic made_by needed flags method time date crc packed size name_size extra_size comment_size disk internal
    external header name extra""",
)


def read_directory(file: InputFile, comment_size: int = 0) -> tuple[list[ZipEntry], int]:
    """(entries, offset) of the central directory, which must touch the end records, and those the end of the file.

    Args:
        comment_size: the bytes after the end record, see `trailing_comment`.
    """
    count, directory, start = _locate(file, comment_size)
    at, entries = 0, []
    for _ in range(count):
        if at + CENTRAL.size > len(directory):
            raise file.error("central directory", "ends inside an entry")
        fields = CENTRAL.unpack_from(directory, at)
        name_size, extra_size, comment_size = fields[10:13]
        name = at + CENTRAL.size
        extra, stop = name + name_size, name + name_size + extra_size
        entries.append(ZipEntry._make((*fields, directory[name:extra], directory[extra:stop])))
        at = stop + comment_size
        if fields[0] != b"PK\x01\x02" or at > len(directory):
            raise file.error("central directory", "malformed entry")
    if at != len(directory):
        raise file.error("central directory", "bytes after the last entry")
    return entries, start


def trailing_comment(file: InputFile) -> int:
    """The length of the comment that ends the file, 0 for none: torch writes none, and many a zip tool does."""
    size = min(file.size, _COMMENT_LIMIT + END.size)
    tail = file.read(file.size - size, size)
    at = tail.rfind(b"PK\x05\x06", 0, size - END.size + 4)
    length = size - at - END.size
    return length if at >= 0 and tail[at + END.size - 2 : at + END.size] == struct.pack("<H", length) else 0


def _locate(file: InputFile, comment_size: int) -> tuple[int, bytes, int]:
    """(number of entries, their bytes, where these begin)."""
    end = file.size - END.size - comment_size
    if end < 0:
        raise file.error("zip", "truncated: no end record")
    magic, disk, first, here, total, size, offset, stated = END.unpack(file.read(end, END.size))
    if magic != b"PK\x05\x06":
        raise file.error("zip", "no end record in the last 22 bytes: truncated, or followed by other bytes")
    if disk or first or here != total or stated != comment_size:
        raise file.error("zip end record", "multi-disk archives and comments are not accepted")
    stop = end
    locator = end - LOCATOR64.size
    if locator >= 0 and file.read(locator, 4) == b"PK\x06\x07":
        _, disk, stop, disks = LOCATOR64.unpack(file.read(locator, LOCATOR64.size))
        if disk or disks != 1 or stop + END64.size != locator:
            raise file.error("zip64 locator", "does not point at the record before it")
        record = END64.unpack(file.read(stop, END64.size))
        magic, length, _, _, disk, first, here64, total64, size64, offset64 = record
        if magic != b"PK\x06\x06" or length != END64.size - 12 or disk or first or here64 != total64:
            raise file.error("zip64 end record", "malformed")
        if not (total in (total64, 0xFFFF) and size in (size64, 0xFFFFFFFF) and offset in (offset64, 0xFFFFFFFF)):
            raise file.error("zip64 end record", "disagrees with the end record")
        total, size, offset = total64, size64, offset64
    if offset + size != stop:
        raise file.error("zip end record", "the central directory does not end where the end record starts")
    if size > _DIRECTORY_LIMIT or total * CENTRAL.size > size:
        raise file.error("zip end record", f"a central directory of {size} bytes with {total} entries is not accepted")
    return total, file.read(offset, size, "central directory"), offset


def around(entries: Iterable[ZipEntry]) -> str:
    """What to say of a zip that holds checkpoints, and which; '' for any other.

    >>> around([ZipEntry._make([b"PK\\x01\\x02", *[0] * 16, b"models/base.pth", b""])])
    'this is a zip that holds models/base.pth: unpack it first'
    """
    names = [name for name in _names(entries) if not name.startswith("__MACOSX/")]
    files = [name for name in names if not name.rpartition("/")[2].startswith(_MACOS)]
    if any(name.rpartition("/")[2] == "data.pkl" for name in files):
        return ""
    for suffixes in (SUFFIXES, _ARCHIVES):
        if inner := [name for name in files if name.lower().endswith(suffixes)]:
            one = "" if len(inner) == 1 else ", and give one of them, or their folder"
            shown = shortened([printable(name, 80) for name in inner], 3)
            return f"this is a zip that holds {shown}: unpack it first{one}"
    return ""


def repacked_hint(entries: Iterable[ZipEntry]) -> str:
    """What to add to an error if the members are those of a torch file, packed by another tool: one that
    compresses, adds entries of folders, or signs what it writes."""
    entries = list(entries)
    names = set(_names(entries))
    another = any(e.method or e.made_by not in _WRITTEN_BY_TORCH or e.name.endswith(b"/") for e in entries)
    for name in names:
        root = name.removesuffix("data.pkl")
        whole = root != name and root[-1:] in ("", "/") and {f"{root}version", f"{root}data/0"} & names
        if whole and (another or root.count("/") != 1):
            return (
                ": a torch file that was unpacked and packed again by another tool; fetch the original again, or where "
                "torch still loads it, save it anew: "
                "torch.save(torch.load(PATH, weights_only=True, map_location='cpu'), NEW)"
            )
    return ""


def _names(entries: Iterable[ZipEntry]) -> list[str]:
    return [entry.name.decode(errors="replace").replace("\\", "/") for entry in entries]
