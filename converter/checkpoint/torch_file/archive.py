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
import stat
import struct

from zlib_ng.zlib_ng import crc32

from ...errors import InputError
from ..file import InputFile
from .zip_directory import LOCAL, ZipEntry, around, read_directory, repacked_hint, trailing_comment

_DESCRIPTOR_FLAG = 0x0008
_FLAGS = {0, _DESCRIPTOR_FLAG, 0x0800, 0x0800 | _DESCRIPTOR_FLAG}  # 0x0800: names are UTF-8
_MEMBER = re.compile(
    r"data\.pkl|data/[0-9A-Za-z_]+|byteorder|version|\.format_version|\.storage_alignment|\.data/serialization_id"
)
_VERSION = 45  # what is needed to read ZIP64; more is needed for what torch never does
_UNIX = 3  # the system whose file modes stand in the upper half of the external attributes
# Extra fields that give a member another name, or make a link of it: Unicode path, PKWARE Unix, ASi Unix.
_AMBIGUOUS_FIELDS = {0x7075, 0x000D, 0x756E}
_NOT_TORCH = ": not a torch checkpoint"
_TORCHSCRIPT = re.compile(r"constants\.pkl|code/.*|bytecode\.pkl|constants/.*")


class Archive:
    """The index of a torch zip file. Nothing but the central directory is read on opening.

    Attributes: `members`, the entries by their names below the root folder, sizes and offsets of ZIP64 put in;
    `checksummed`: torch can leave checksums out, and then writes 0 for every member; a single 0
    among others is the checksum of its member, or damage.
    """

    def __init__(self, file: InputFile) -> None:
        self.file = file
        entries, start = self._directory()
        self.members: dict[str, ZipEntry] = {}
        self.root = ""
        try:
            for entry in entries:
                name = self._name(entry.name)
                if name in self.members:
                    raise file.error(name, "two members have this name")
                self.members[name] = self._member(name, entry)
        except InputError as error:
            hint = repacked_hint(entries)
            raise InputError(str(error).removesuffix(_NOT_TORCH) + hint if hint else str(error)) from None
        self.checksummed = any(member.crc for member in self.members.values())
        if "data.pkl" not in self.members:
            raise file.error("zip", "an archive without data.pkl: not a checkpoint that torch.save wrote")
        # Where each member must end: at the next one, the last at the directory.
        self._starts = [*sorted(m.header for m in self.members.values()), start]
        if self._starts[0] != 0:
            raise file.error("offset 0", "bytes before the first member")
        if len(set(self._starts)) != len(self._starts):
            raise file.error("zip", "two members start at the same offset")
        if self._starts[-2] > start:
            raise file.error("zip", "a member starts inside or after the central directory")
        if "byteorder" in self.members and self.read("byteorder", 16) != b"little":
            raise file.error("byteorder", "not written on a little-endian machine: re-save it on one")

    def _directory(self) -> tuple[list[ZipEntry], int]:
        try:
            entries, start = read_directory(self.file)
            other = around(entries)
        except InputError:
            # What torch writes has no comment. It is read only to say which other zip this is.
            if not (
                (comment := trailing_comment(self.file)) and (other := around(read_directory(self.file, comment)[0]))
            ):
                raise
        if other:
            raise self.file.error("zip", other)
        return entries, start

    def _member(self, name: str, entry: ZipEntry) -> ZipEntry:
        """The member that an entry describes, if it is one that torch writes."""
        if entry.flags not in _FLAGS or entry.method or entry.comment_size or entry.disk:
            what = f"flags {entry.flags:#06x}, comment or disk number"
            if entry.flags & 1 or entry.method:
                what = "encrypted" if entry.flags & 1 else "compressed"
            raise self.file.error(name, f"only plain stored members are accepted ({what})")
        # A plain file to every reader: without attributes, as torch writes it, or as tools on Unix do, with a mode.
        mode, dos = divmod(entry.external, 1 << 16)
        ordinary = mode == 0 or (entry.made_by >> 8 == _UNIX and stat.S_IFMT(mode) in (0, stat.S_IFREG))
        text = entry.internal in (0, 1)  # whether it looks like text
        if dos or not (ordinary and text and entry.needed <= _VERSION):
            what = f"external {entry.external:#010x}, internal {entry.internal:#x}, version needed {entry.needed}"
            rule = f"attributes that torch never writes, by which readers may disagree on what it is ({what})"
            raise self.file.error(name, rule)
        fields = entry.size, entry.packed, entry.header
        size, packed, header = self._zip64(name, entry.extra, *fields)
        if size != packed:
            raise self.file.error(name, "stored and packed sizes differ")
        return entry._replace(size=size, packed=packed, header=header)

    def _name(self, raw: bytes) -> str:
        """The name below the one root folder, checked against the fixed grammar."""
        try:
            root, slash, name = raw.decode().partition("/")
        except UnicodeDecodeError:
            raise self.file.error("central directory", f"a member name is not UTF-8: {raw[:40]!r}") from None
        if root.endswith(".npy"):
            raise self.file.error(root, "this is a NumPy .npz, not a torch checkpoint")
        if not slash or root in ("", ".", "..") or "\\" in root or not root.isprintable():
            raise self.file.error(root, f"not below one root folder, as torch writes{_NOT_TORCH}")
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
            elif kind in _AMBIGUOUS_FIELDS:
                raise self.file.error(name, f"extra field {kind:#06x}, which torch never writes: another name or kind")
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
        head = file.read(member.header, min(LOCAL.size + len(member.name), file.size - member.header), name)
        if len(head) < LOCAL.size + len(member.name):
            raise file.error(name, "local header outside the file")
        magic, _, flags, method, _, _, crc, packed, size, name_size, extra_size = LOCAL.unpack_from(head)
        if (magic, flags, method, head[LOCAL.size :], name_size) != (
            b"PK\x03\x04", member.flags, 0, member.name, len(member.name)
        ):  # fmt: skip
            raise file.error(name, "the local header and the central directory disagree")
        start = member.header + LOCAL.size + name_size + extra_size
        stop = start + member.size
        if flags & _DESCRIPTOR_FLAG:
            # Sizes and CRC follow the data; before it they are zero (or marked as 64-bit).
            what, length = "data descriptor", end - stop
            descriptors = {24: struct.pack("<4sI2Q", b"PK\x07\x08", member.crc, member.size, member.size)}
            if member.size < 1 << 32:
                descriptors[16] = struct.pack("<4s3I", b"PK\x07\x08", member.crc, member.size, member.size)
            agree = crc in (0, member.crc) and {packed, size} <= {0, member.size, 0xFFFFFFFF} and length in descriptors
            agree = agree and file.read(stop, length, name) == descriptors[length]
        else:
            what, extra = "local header", file.read(start - extra_size, extra_size, name)
            expected = (member.crc, member.size, member.size, end)
            agree = (crc, *self._zip64(name, extra, size, packed), stop) == expected
        if not agree:
            rule = f"the {what} and the central directory disagree, or members overlap or leave a gap"
            raise file.error(name, rule)
        return int(start)

    def read(self, name: str, limit: int) -> bytes:
        """A small member whole, its CRC verified where there is one."""
        member = self.members[name]
        if member.size > limit:
            raise self.file.error(name, f"{member.size} bytes, more than the {limit} that are accepted")
        data = self.file.read(self.locate(name), member.size, name)
        if self.checksummed and crc32(data) != member.crc:
            raise self.file.error(name, "CRC-32 mismatch: the file is damaged")
        return data
