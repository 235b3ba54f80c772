"""A torch archive before its data: a zip file of stored members, as `torch.save` writes one, without torch.

Format: PKWARE APPNOTE 6.3, sections 4.3 to 4.5; the members, and storages that begin on multiples of 64 bytes (so that
they can be mapped), are those of caffe2/serialize/inline_container.cc. Unlike torch, whose writer streams, sizes and
CRC-32 stand in the local headers, where every other tool looks for them too.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from zlib_ng.zlib_ng import crc32

from ..tensor import row_major
from ..torch_file.zip_directory import CENTRAL, END, END64, LOCAL, LOCATOR64
from .layout import FileLayout, TensorEntry

ALIGNMENT = 64
_VERSION, _UTF8, _DATE = 45, 0x0800, 0x21  # 4.5 knows ZIP64; 1 January 1980, the first day of zip
_PADDING = 0x4246  # torch's name for the extra field that is there for its length
_WIDE, _WIDE_COUNT = 0xFFFFFFFF, 0xFFFF


@dataclass(frozen=True, slots=True)
class _Member:
    """One member of the archive: where its local header begins and its data, and what it holds where that is known."""

    name: bytes
    header: int
    start: int
    size: int
    content: bytes | None = None
    key: str = ""

    def crc(self, crcs: Mapping[str, int]) -> int:
        return crc32(self.content) if self.content is not None else crcs.get(self.key, 0)

    def local(self, crcs: Mapping[str, int]) -> bytes:
        """The local header and, up to the data, its extra fields."""
        wide = _zip64(self.size, self.size)
        room = self.start - self.header - LOCAL.size - len(self.name) - len(wide)
        extra = wide + struct.pack("<2H", _PADDING, room - 4) + b"Z" * (room - 4)
        short = min(self.size, _WIDE)
        fields = (b"PK\x03\x04", _VERSION, _UTF8, 0, 0, _DATE, self.crc(crcs), short, short)
        return LOCAL.pack(*fields, len(self.name), len(extra)) + self.name + extra

    def central(self, crcs: Mapping[str, int]) -> bytes:
        """Its entry in the central directory."""
        extra, size, header = _zip64(self.size, self.size, self.header), min(self.size, _WIDE), min(self.header, _WIDE)
        fields = (b"PK\x01\x02", _VERSION, _VERSION, _UTF8, 0, 0, _DATE, self.crc(crcs), size, size)
        return CENTRAL.pack(*fields, len(self.name), len(extra), 0, 0, 0, 0, header) + self.name + extra


def _zip64(*values: int) -> bytes:
    """The extra field for those values that are too large for 32 bits; nothing where none is."""
    wide = [value for value in values if value >= _WIDE]
    return struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""


def lay_out_torch(entries: Iterable[TensorEntry]) -> FileLayout:
    """The layout of `{"state_dict": {...}}`, as `torch.load(mmap=True, weights_only=True)` reads it.

    >>> from converter.checkpoint.dtypes import F32
    >>> layout = lay_out_torch([TensorEntry("a", F32, (2, 3))])
    >>> layout.size - sum(len(data) for _, data in layout.frame({})) == 2 * 3 * 4
    True
    """
    ordered = tuple(entries)
    members: list[_Member] = []

    def add(name: str, size: int, content: bytes | None = None, key: str = "") -> None:
        raw, header = b"archive/" + name.encode(), members[-1].start + members[-1].size if members else 0
        least = header + LOCAL.size + len(raw) + len(_zip64(size, size)) + 4
        members.append(_Member(raw, header, least + -least % ALIGNMENT, size, content=content, key=key))

    for name, content in (
        # Not `.format_version`: from it torch may calculate where storages lie, as its own writer lays them out.
        ("data.pkl", pickled(ordered)),
        ("byteorder", b"little"),
    ):
        add(name, len(content), content)
    for i, entry in enumerate(ordered):
        add(f"data/{i}", entry.nbytes, key=entry.key)
    add("version", 2, b"3\n")
    directory = members[-1].start + members[-1].size

    def end(crcs: Mapping[str, int]) -> bytes:
        """The central directory and what ends the file."""
        central = b"".join(member.central(crcs) for member in members)
        count, stop = len(members), directory + len(central)
        wide = b""
        if count >= _WIDE_COUNT or directory >= _WIDE or len(central) >= _WIDE:
            numbers = (count, count, len(central), directory)
            wide = END64.pack(b"PK\x06\x06", END64.size - 12, _VERSION, _VERSION, 0, 0, *numbers)
            wide += LOCATOR64.pack(b"PK\x06\x07", 0, stop, 1)
        short = min(count, _WIDE_COUNT)
        shown = (short, short, min(len(central), _WIDE), min(directory, _WIDE), 0)
        return central + wide + END.pack(b"PK\x05\x06", 0, 0, *shown)

    def frame(crcs: Mapping[str, int]) -> list[tuple[int, bytes]]:
        heads = [(member.header, member.local(crcs) + (member.content or b"")) for member in members]
        return [*heads, (directory, end(crcs))]

    return FileLayout(ordered, directory + len(end({})), frame)


def pickled(entries: Iterable[TensorEntry]) -> bytes:
    """`data.pkl`, in protocol 2: what `torch.save({"state_dict": OrderedDict(...)})` means, tensor i in `data/i`.

    >>> from pickle import loads
    >>> loads(pickled([]))
    {'state_dict': OrderedDict()}
    """
    pieces = [b"\x80\x02}", _text("state_dict"), _ORDERED, b"("]
    for i, entry in enumerate(entries):
        storage = b"(" + _text("storage") + _name("torch", entry.dtype.storage) + _text(str(i)) + _text("cpu")
        storage += _whole(entry.nbytes // entry.dtype.itemsize) + b"tQ"
        sizes = _tuple(entry.shape) + _tuple(row_major(entry.shape))
        tensor = _name("torch._utils", "_rebuild_tensor_v2") + b"(" + storage + _whole(0) + sizes
        pieces += [_text(entry.key), tensor, b"\x89", _ORDERED, b"tR"]  # it needs no gradient, and has no hooks
    return b"".join([*pieces, b"us."])


def _name(module: str, name: str) -> bytes:
    return b"c%s\n%s\n" % (module.encode(), name.encode())


_ORDERED = _name("collections", "OrderedDict") + b")R"  # an empty one


def _text(text: str) -> bytes:
    raw = text.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _whole(number: int) -> bytes:
    if number < 1 << 31:
        return b"J" + struct.pack("<i", number)
    raw = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def _tuple(numbers: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(_whole, numbers)) + b"t"
