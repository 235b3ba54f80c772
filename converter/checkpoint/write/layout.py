"""Where each tensor of a new file will lie, decided before a byte of a tensor is written, and all that is no tensor.

A safetensors file is the one that `safetensors.torch.save_file` writes: by dtype rank from high to low, then by name;
compact JSON padded with spaces to 8 bytes (huggingface/safetensors, `safetensors/src/tensor.rs`).
A torch archive is a zip file of stored members (PKWARE APPNOTE 6.3, sections 4.3 to 4.5), its storages on multiples of
64 bytes, so that they can be mapped, as caffe2/serialize/inline_container.cc writes them. Unlike torch, whose writer
streams, sizes and CRC-32 stand in the local headers, where every other tool looks for them too.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod

from zlib_ng.zlib_ng import crc32

from ..dtypes import RANK, DType
from ..tensor import row_major
from ..torch_file.zip_directory import CENTRAL, END, END64, LOCAL, LOCATOR64

ALIGNMENT = 64
_VERSION, _UTF8, _DATE = 45, 0x0800, 0x21  # 4.5 knows ZIP64; 1 January 1980, the first day of zip
_PADDING = 0x4246  # torch's name for the extra field that is there for its length
_WIDE, _WIDE_COUNT = 0xFFFFFFFF, 0xFFFF


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor to be written: its key, dtype and shape."""

    key: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class FileLayout:
    """A file before its data.

    `frame(crcs)` gives all of it that is no tensor, as (offset, bytes): the same offsets and lengths whatever the
    CRC-32 of the tensors' bytes (by key; what is not known yet counts as 0); `size` is that of the whole file.
    """

    entries: tuple[TensorEntry, ...]
    size: int
    frame: Callable[[Mapping[str, int]], list[tuple[int, bytes]]]


def lay_out_safetensors(entries: Iterable[TensorEntry], metadata: dict[str, str] | None = None) -> FileLayout:
    """The layout of a file that holds these tensors. It has no checksums.

    >>> from converter.checkpoint.dtypes import F32
    >>> lay_out_safetensors([TensorEntry("b", F32, (2,)), TensorEntry("a", F32, ())]).size
    132
    """
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    position, ordered = 0, tuple(sorted(entries, key=lambda e: (-RANK[e.dtype], e.key)))
    for entry in ordered:
        offsets = [position, position := position + entry.nbytes]
        header[entry.key] = {"dtype": entry.dtype.code, "shape": list(entry.shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return FileLayout(ordered, len(head) + position, lambda crcs: [(0, head)])


@dataclass(frozen=True, slots=True)
class _Member:
    """One member of an archive: where its local header begins and its data, and what it holds."""

    name: bytes
    header: int
    start: int
    size: int
    holds: TensorEntry | bytes

    def frame(self, crcs: Mapping[str, int]) -> tuple[bytes, bytes]:
        """(all up to its data, or to its end where that is known; its entry in the central directory)."""
        content = self.holds if isinstance(self.holds, bytes) else b""
        crc = crcs.get(self.holds.key, 0) if isinstance(self.holds, TensorEntry) else crc32(content)
        size, wide = min(self.size, _WIDE), _zip64(self.size, self.size)
        room = self.start - self.header - LOCAL.size - len(self.name) - len(wide) - 4
        extra = wide + struct.pack("<2H", _PADDING, room) + b"Z" * room
        about = (_VERSION, _UTF8, 0, 0, _DATE, crc, size, size, len(self.name))
        local = LOCAL.pack(b"PK\x03\x04", *about, len(extra)) + self.name + extra
        extra = _zip64(self.size, self.size, self.header)
        placed = (len(extra), 0, 0, 0, 0, min(self.header, _WIDE))
        return local + content, CENTRAL.pack(b"PK\x01\x02", _VERSION, *about, *placed) + self.name + extra


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
    # Not `.format_version`: from it torch may calculate where storages lie, as its own writer lays them out.
    contents: list[tuple[str, TensorEntry | bytes]] = [("data.pkl", pickled(ordered)), ("byteorder", b"little")]
    contents += [(f"data/{i}", entry) for i, entry in enumerate(ordered)]
    members, header = list[_Member](), 0
    for name, holds in [*contents, ("version", b"3\n")]:
        raw, size = b"archive/" + name.encode(), len(holds) if isinstance(holds, bytes) else holds.nbytes
        start = header + LOCAL.size + len(raw) + len(_zip64(size, size)) + 4
        start += -start % ALIGNMENT
        members.append(_Member(raw, header, start, size, holds=holds))
        header = start + size
    directory = header

    def frame(crcs: Mapping[str, int]) -> list[tuple[int, bytes]]:
        frames = [member.frame(crcs) for member in members]
        central = b"".join(entry for _, entry in frames)
        count, stop, wide = len(members), directory + len(central), b""
        if count >= _WIDE_COUNT or directory >= _WIDE or len(central) >= _WIDE:
            wide = END64.pack(
                b"PK\x06\x06", END64.size - 12, _VERSION, _VERSION, 0, 0, count, count, len(central), directory
            ) + LOCATOR64.pack(b"PK\x06\x07", 0, stop, 1)
        short = min(count, _WIDE_COUNT)
        end = END.pack(b"PK\x05\x06", 0, 0, short, short, min(len(central), _WIDE), min(directory, _WIDE), 0)
        heads = [(member.header, head) for member, (head, _) in zip(members, frames, strict=True)]
        return [*heads, (directory, central + wide + end)]

    return FileLayout(ordered, directory + len(frame({})[-1][1]), frame)


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
