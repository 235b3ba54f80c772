"""The central directory of a zip file, read strictly, before anyone asks what its entries mean.

Format: PKWARE APPNOTE 6.3, sections 4.3 to 4.5.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ..file import InputFile

LOCAL, CENTRAL = struct.Struct("<4s5H3I2H"), struct.Struct("<4s6H3I5H2I")
END, END64, LOCATOR64 = struct.Struct("<4s4H2IH"), struct.Struct("<4sQ2H2I4Q"), struct.Struct("<4sIQI")
# An entry of the directory takes several times its bytes in memory; this is room for some 250,000 tensors.
_DIRECTORY_LIMIT = 16 << 20
_COMMENT_LIMIT = 0xFFFF


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """One entry, its fields under the names of the format: `made_by` which version on which system, `comment` the
    length of one, `name` and `extra` as they stand."""

    made_by: int
    needed: int
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    comment: int
    disk: int
    internal: int
    external: int
    header: int
    name: bytes
    extra: bytes


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
        magic, made_by, needed, flags, method, _, _, crc, packed, size, *rest = CENTRAL.unpack_from(directory, at)
        name_size, extra_size, comment, disk, internal, external, header = rest
        name = at + CENTRAL.size
        extra, at = name + name_size, name + name_size + extra_size + comment
        if magic != b"PK\x01\x02" or at > len(directory):
            raise file.error("central directory", "malformed entry")
        fields = made_by, needed, flags, method, crc, packed, size, comment, disk, internal, external, header
        entries.append(ZipEntry(*fields, directory[name:extra], directory[extra : extra + extra_size]))
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
    """(number of entries, bytes, offset) of the directory."""
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
