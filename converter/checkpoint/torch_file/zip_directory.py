"""The central directory of a zip file, read strictly, before anyone asks what its entries mean.

Format: PKWARE APPNOTE 6.3, sections 4.3 to 4.5.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ..file import InputFile

_END, _END64, _LOCATOR64 = struct.Struct("<4s4H2IH"), struct.Struct("<4sQ2H2I4Q"), struct.Struct("<4sIQI")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
# An entry of the directory takes several times its bytes in memory; this is room for some 250,000 tensors.
_DIRECTORY_LIMIT = 16 << 20
_COMMENT_LIMIT = 0xFFFF


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry, its fields under the names of the format: `made` by which version on which system, `comment` the
    length of one, `name` and `extra` as they stand."""

    made: int
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


def read_directory(file: InputFile, comment: int = 0) -> tuple[list[Entry], int]:
    """(entries, offset) of the central directory, which must touch the end records, and those the end of the file.

    Args:
        comment: the bytes behind the end record, see `comment_behind`.
    """
    count, directory, start = _found(file, comment)
    at, entries = 0, []
    for _ in range(count):
        if at + _CENTRAL.size > len(directory):
            raise file.error("central directory", "ends inside an entry")
        fields = _CENTRAL.unpack_from(directory, at)
        made, needed, flags, method, _, _, crc, packed, size, named, extended, comment_size = fields[1:13]
        disk, internal, external, header = fields[13:]
        name = at + _CENTRAL.size
        extra, at = name + named, name + named + extended + comment_size
        if fields[0] != b"PK\x01\x02" or at > len(directory):
            raise file.error("central directory", "malformed entry")
        told = made, needed, flags, method, crc, packed, size, comment_size, disk, internal, external, header
        entries.append(Entry(*told, directory[name:extra], directory[extra : extra + extended]))
    if at != len(directory):
        raise file.error("central directory", "bytes after the last entry")
    return entries, start


def comment_behind(file: InputFile) -> int:
    """The length of the comment that ends the file, 0 for none: torch writes none, and many a zip tool does."""
    size = min(file.size, _COMMENT_LIMIT + _END.size)
    tail = file.read(file.size - size, size)
    at = tail.rfind(b"PK\x05\x06", 0, size - _END.size + 4)
    length = size - at - _END.size
    return length if at >= 0 and tail[at + _END.size - 2 : at + _END.size] == struct.pack("<H", length) else 0


def _found(file: InputFile, comment: int) -> tuple[int, bytes, int]:
    """(number of entries, bytes, offset) of the directory."""
    end = file.size - _END.size - comment
    if end < 0:
        raise file.error("zip", "truncated: no end record")
    magic, disk, first, here, total, size, offset, stated = _END.unpack(file.read(end, _END.size))
    if magic != b"PK\x05\x06":
        raise file.error("zip", "no end record in the last 22 bytes: truncated, or followed by other bytes")
    if disk or first or here != total or stated != comment:
        raise file.error("zip end record", "multi-disk archives and comments are not accepted")
    stop = end
    locator = end - _LOCATOR64.size
    if locator >= 0 and file.read(locator, 4) == b"PK\x06\x07":
        _, disk, stop, disks = _LOCATOR64.unpack(file.read(locator, _LOCATOR64.size))
        if disk or disks != 1 or stop + _END64.size != locator:
            raise file.error("zip64 locator", "does not point at the record before it")
        magic, length, _, _, disk, first, here64, total64, size64, offset64 = _END64.unpack(
            file.read(stop, _END64.size)
        )
        if magic != b"PK\x06\x06" or length != _END64.size - 12 or disk or first or here64 != total64:
            raise file.error("zip64 end record", "malformed")
        for short, full, limit in (
            (total, total64, 0xFFFF),
            (size, size64, 0xFFFFFFFF),
            (offset, offset64, 0xFFFFFFFF),
        ):
            if short not in (full, limit):
                raise file.error("zip64 end record", "disagrees with the end record")
        total, size, offset = total64, size64, offset64
    if offset + size != stop:
        raise file.error("zip end record", "the central directory does not end where the end record starts")
    if size > _DIRECTORY_LIMIT or total * _CENTRAL.size > size:
        raise file.error("zip end record", f"a central directory of {size} bytes with {total} entries")
    return total, file.read(offset, size, "central directory"), offset
