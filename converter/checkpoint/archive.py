"""The strict zip reader for files that torch wrote.

A zip file can be read in more than one way (two directories, two members of a name, two opinions of
where a member starts), and scanners and loaders then disagree. Here there is one reading or none:
members are stored, follow one another without gaps from byte 0 to the central directory, and what
the directory says of a member equals what stands before and after its data.
Format: PKWARE APPNOTE 6.3, sections 4.3 to 4.5, and what torch/csrc/inline_container.cc writes.
"""

from __future__ import annotations

import bisect
import re
import struct
from dataclasses import dataclass

from .crc import crc32
from .file import InputFile

_END, _END64, _LOCATOR64 = struct.Struct("<4s4H2IH"), struct.Struct("<4sQ2H2I4Q"), struct.Struct("<4sIQI")
_CENTRAL, _LOCAL = struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s5H3I2H")
# An entry of the directory takes several times its bytes in memory; this is room for some 250,000 tensors.
_DIRECTORY_LIMIT = 16 << 20
_DESCRIPTOR_FLAG = 0x0008
_FLAGS = {0, _DESCRIPTOR_FLAG, 0x0800, 0x0800 | _DESCRIPTOR_FLAG}  # 0x0800: names are UTF-8
_MEMBER = re.compile(
    r"data\.pkl|data/[0-9A-Za-z_]+|byteorder|version|\.format_version|\.storage_alignment|\.data/serialization_id"
)
_TORCHSCRIPT = re.compile(r"constants\.pkl|code/.*|bytecode\.pkl|constants/.*")


@dataclass(frozen=True, slots=True)
class Member:
    """One stored member: its name below the root folder, CRC-32, and where its local header stands."""

    name: str
    size: int
    crc: int
    flags: int
    header: int
    raw_name: bytes


class Archive:
    """The index of a torch zip file. Nothing but the central directory is read on opening."""

    def __init__(self, file: InputFile) -> None:
        self.file = file
        entries, directory, start = self._directory()
        self.members: dict[str, Member] = {}
        self.root = ""
        for member in self._entries(directory, entries):
            if member.name in self.members:
                raise file.error(member.name, "two members have this name")
            self.members[member.name] = member
        if "data.pkl" not in self.members:
            raise file.error("zip", "an archive without data.pkl: not a checkpoint that torch.save wrote")
        # Where each member must end: at the next one, the last at the directory.
        self._starts = [*sorted(m.header for m in self.members.values()), start]
        if self._starts[0] != 0:
            raise file.error("offset 0", "bytes before the first member")
        if len(set(self._starts)) != len(self._starts):
            raise file.error("zip", "two members start at the same offset")
        if self._starts[-2] > start:
            raise file.error("zip", "a member starts behind the central directory")
        if "byteorder" in self.members and self.read("byteorder", 16) != b"little":
            raise file.error("byteorder", "not written on a little-endian machine: re-save it on one")

    def _directory(self) -> tuple[int, bytes, int]:
        """(number of entries, bytes, offset) of the central directory, which must touch the end records."""
        file, end = self.file, self.file.size - _END.size
        if end < 0:
            raise file.error("zip", "truncated: no end record")
        magic, disk, first, here, total, size, offset, comment = _END.unpack(file.read(end, _END.size))
        if magic != b"PK\x05\x06":
            raise file.error("zip", "no end record in the last 22 bytes: truncated, or followed by other bytes")
        if disk or first or here != total or comment:
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

    def _entries(self, directory: bytes, count: int) -> list[Member]:
        file, at, members = self.file, 0, []
        for _ in range(count):
            if at + _CENTRAL.size > len(directory):
                raise file.error("central directory", "ends inside an entry")
            (
                magic,
                _,
                _,
                flags,
                method,
                _,
                _,
                crc,
                packed,
                size,
                name_size,
                extra_size,
                comment,
                disk,
                _,
                _,
                header,
            ) = _CENTRAL.unpack_from(directory, at)
            at += _CENTRAL.size
            raw = directory[at : at + name_size]
            extra = directory[at + name_size : at + name_size + extra_size]
            at += name_size + extra_size
            if magic != b"PK\x01\x02" or at > len(directory):
                raise file.error("central directory", "malformed entry")
            name = self._name(raw)
            if flags not in _FLAGS or method or comment or disk:
                what = (
                    "encrypted"
                    if flags & 1
                    else "compressed"
                    if method
                    else f"flags {flags:#06x}, comment or disk number"
                )
                raise file.error(name, f"only plain stored members are accepted ({what})")
            size, packed, header = self._zip64(name, extra, size, packed, header)
            if size != packed:
                raise file.error(name, "stored and packed sizes differ")
            members.append(Member(name, size, crc, flags, header, raw))
        if at != len(directory):
            raise file.error("central directory", "bytes after the last entry")
        return members

    def _name(self, raw: bytes) -> str:
        """The name below the one root folder, checked against the fixed grammar."""
        try:
            root, slash, name = raw.decode().partition("/")
        except UnicodeDecodeError:
            raise self.file.error("central directory", f"a member name is not UTF-8: {raw[:40]!r}") from None
        if root.endswith(".npy"):
            raise self.file.error(root, "this is a NumPy .npz, not a torch checkpoint")
        if not slash or root in ("", ".", "..") or "\\" in root or not root.isprintable():
            raise self.file.error(root, "not below one root folder, as torch writes: not a torch checkpoint")
        if _TORCHSCRIPT.fullmatch(name):
            raise self.file.error(name, "this is a TorchScript program, not a state dict: save model.state_dict()")
        if not _MEMBER.fullmatch(name):
            raise self.file.error(f"{root}/{name}", "not a member that torch.save writes")
        self.root = self.root or root
        if root != self.root:
            raise self.file.error(name, "more than one root folder")
        return name

    def _zip64(self, name: str, extra: bytes, *fields: int) -> list[int]:
        """Put the 64-bit values of the ZIP64 extra field in place of the saturated 32-bit ones."""
        at = 0
        wide: bytes | None = None
        while at + 4 <= len(extra):
            kind, length = struct.unpack_from("<2H", extra, at)
            if kind == 1:
                if wide is not None:
                    raise self.file.error(name, "two ZIP64 fields")
                wide = extra[at + 4 : at + 4 + length]
            at += 4 + length
        if at != len(extra):
            raise self.file.error(name, "malformed extra field")
        values = list(fields)
        saturated = [i for i, value in enumerate(values) if value == 0xFFFFFFFF]
        if saturated:
            if wide is None or len(wide) < 8 * len(saturated):
                raise self.file.error(name, "ZIP64 field missing or short")
            for i, value in zip(saturated, struct.unpack_from(f"<{len(saturated)}Q", wide), strict=True):
                values[i] = value
        return values

    def locate(self, name: str) -> int:
        """The offset of a member's data, once its local header and descriptor agree with the directory."""
        file, member = self.file, self.members[name]
        end = self._starts[bisect.bisect_right(self._starts, member.header)]
        head = file.read(member.header, min(_LOCAL.size + len(member.raw_name), file.size - member.header), name)
        if len(head) < _LOCAL.size + len(member.raw_name):
            raise file.error(name, "local header outside the file")
        magic, _, flags, method, _, _, crc, packed, size, name_size, extra_size = _LOCAL.unpack_from(head)
        if (magic, flags, method, head[_LOCAL.size :]) != (
            b"PK\x03\x04",
            member.flags,
            0,
            member.raw_name,
        ) or name_size != len(member.raw_name):
            raise file.error(name, "the local header and the central directory disagree")
        start = member.header + _LOCAL.size + name_size + extra_size
        stop = start + member.size
        if flags & _DESCRIPTOR_FLAG:
            # Sizes and CRC stand behind the data; before it they are zero (or marked as 64-bit).
            stated = crc in (0, member.crc) and {packed, size} <= {0, member.size, 0xFFFFFFFF}
            length = end - stop
            expected = {
                16: struct.pack("<4s3I", b"PK\x07\x08", member.crc, *(member.size & 0xFFFFFFFF,) * 2),
                24: struct.pack("<4sI2Q", b"PK\x07\x08", member.crc, *(member.size,) * 2),
            }.get(length)
            stated = stated and expected is not None and (length == 24 or member.size < 1 << 32)
            if not stated or file.read(stop, length, name) != expected:
                raise file.error(
                    name,
                    "the data descriptor and the central directory disagree, or members overlap or leave a gap",
                )
        else:
            extra = file.read(start - extra_size, extra_size, name)
            if (crc, *self._zip64(name, extra, size, packed)) != (member.crc, member.size, member.size) or stop != end:
                raise file.error(
                    name,
                    "the local header and the central directory disagree, or members overlap or leave a gap",
                )
        return int(start)

    def read(self, name: str, limit: int) -> bytes:
        """A small member whole, its CRC verified."""
        member = self.members[name]
        if member.size > limit:
            raise self.file.error(name, f"{member.size} bytes, more than the {limit} that are accepted")
        data = self.file.read(self.locate(name), member.size, name)
        if crc32(data) != member.crc:
            raise self.file.error(name, "CRC-32 mismatch: the file is damaged")
        return data
