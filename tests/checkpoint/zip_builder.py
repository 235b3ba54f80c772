"""Files as nobody should write them: zip archives and pickles, byte by byte, with every field open to change.

The defaults give what torch gives: members stored, a data descriptor behind each, data aligned to 64 bytes.
"""

from __future__ import annotations

import json
import os
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from makers import within

from converter.checkpoint import open_checkpoint
from converter.errors import InputError

# ---------------------------------------------------------------- zip


@dataclass
class Part:
    """One member of a zip. `local`, `central` override header fields by name; `gap` follows the member."""

    name: str
    data: bytes = b""
    flags: int = 0x0808
    descriptor: int = 16
    local: dict[str, Any] = field(default_factory=dict)
    central: dict[str, Any] = field(default_factory=dict)
    gap: bytes = b""


_LOCAL = ("magic", "version", "flags", "method", "time", "date", "crc", "packed", "size")
_CENTRAL = ("magic", "made", "version", "flags", "method", "time", "date", "crc", "packed", "size")
_END = ("magic", "disk", "first", "here", "total", "size", "offset", "comment")
_END64 = ("magic", "length", "made", "version", "disk", "first", "here", "total", "size", "offset")


def zip_file(parts: list[Part], root: str = "archive", *, before: bytes = b"", after: bytes = b"", tail: bytes = b"",
             zip64: bool = False, end64: dict[str, Any] | None = None, locator: dict[str, Any] | None = None,
             **end: Any) -> bytes:  # fmt: skip
    """A zip archive of these members; `tail` stands at the end of the central directory."""
    made, directory = bytearray(before), bytearray()
    for part in parts:
        raw = part.name.encode() if part.name.startswith("/") else f"{root}/{part.name}".encode()
        raw = raw.removeprefix(b"/")
        streamed = bool(part.flags & 8)
        crc, size, at = zlib.crc32(part.data), len(part.data), len(made)
        stated = {"crc": crc, "packed": size, "size": size}
        fields: dict[str, Any] = dict.fromkeys(_LOCAL, 0) | ({} if streamed else stated)
        fields |= {"magic": b"PK\x03\x04", "flags": part.flags, "name": raw, "extra": None} | part.local
        extra = fields["extra"]
        if extra is None:  # padded as torch pads it
            fill = -(at + 30 + len(fields["name"]) + 4) % 64
            extra = struct.pack("<2H", 0x4246, fill) + b"Z" * fill
        made += struct.pack("<4s5H3I2H", *(fields[name] for name in _LOCAL), len(fields["name"]), len(extra))
        made += fields["name"] + extra + part.data
        if streamed:
            form = "<4s3I" if part.descriptor == 16 else "<4sI2Q"
            made += struct.pack(form, b"PK\x07\x08", crc, size, size)
        made += part.gap
        fields = dict.fromkeys((*_CENTRAL, "comment", "disk", "internal", "external"), 0) | stated
        fields |= {"magic": b"PK\x01\x02", "flags": part.flags, "header": at, "name": raw, "extra": b""} | part.central
        directory += struct.pack("<4s6H3I", *(fields[name] for name in _CENTRAL))
        directory += struct.pack("<3H", len(fields["name"]), len(fields["extra"]), fields["comment"])
        directory += struct.pack("<2HI", fields["disk"], fields["internal"], fields["external"])
        directory += struct.pack("<I", fields["header"]) + fields["name"] + fields["extra"]
    directory += tail
    start, stop, count = len(made), len(made) + len(directory), len(parts)
    made += directory
    if zip64:
        wide = {"magic": b"PK\x06\x06", "length": 44, "made": 45, "version": 45, "disk": 0, "first": 0, "here": count,
                "total": count, "size": len(directory), "offset": start} | (end64 or {})  # fmt: skip
        made += struct.pack("<4sQ2H2I4Q", *(wide[name] for name in _END64))
        where = {"magic": b"PK\x06\x07", "disk": 0, "offset": stop, "disks": 1} | (locator or {})
        made += struct.pack("<4sIQI", where["magic"], where["disk"], where["offset"], where["disks"])
        end = {"here": min(count, 0xFFFF), "total": min(count, 0xFFFF), "size": 0xFFFFFFFF, "offset": 0xFFFFFFFF} | end
    last = {"magic": b"PK\x05\x06", "disk": 0, "first": 0, "here": count, "total": count, "size": len(directory),
            "offset": start, "comment": 0} | end  # fmt: skip
    made += struct.pack("<4s4H2IH", *(last[name] for name in _END))
    return bytes(made + after)


def parts(pickle: bytes, storages: dict[str, bytes] | None = None, byteorder: bytes | None = b"little") -> list[Part]:
    """The members of a torch archive, in torch's order."""
    head = [Part("data.pkl", pickle)] + ([Part("byteorder", byteorder)] if byteorder is not None else [])
    return [*head, *(Part(f"data/{name}", data) for name, data in (storages or {}).items()), Part("version", b"3\n")]


def torch_file(root: Any, storages: dict[str, bytes] | None = None, **knobs: Any) -> bytes:
    """A torch archive whose pickle is the assembled `root` (or these very bytes)."""
    return zip_file(parts(root if isinstance(root, bytes) else pickled(root), storages), **knobs)


# ---------------------------------------------------------------- pickle


class Node:
    """Something that assembles itself."""

    def __init__(self, *pieces: Any) -> None:
        self.pieces = pieces

    def emit(self) -> bytes:
        """Raw bytes as they are, everything else assembled."""
        return b"".join(piece if isinstance(piece, bytes) else assembled(piece) for piece in self.pieces)


class Glob(Node):
    def __init__(self, module: str, name: str) -> None:
        super().__init__(f"c{module}\n{name}\n".encode())


def stack_glob(module: str, name: str) -> Node:
    return Node(module, name, b"\x93")


def call(func: Any, *args: Any) -> Node:
    return Node(func, args, b"R")


def build(target: Any, state: Any) -> Node:
    return Node(target, state, b"b")


def pairs(target: Any, *items: tuple[Any, Any]) -> Node:
    """A dict, or anything else, with these items set: unlike a dict's, they may repeat."""
    return Node(target, b"(", *(x for item in items for x in item), b"u")


def ordered(*items: tuple[Any, Any]) -> Node:
    return pairs(call(Glob("collections", "OrderedDict")), *items)


def assembled(value: Any) -> bytes:
    """The opcodes that push `value`."""
    if isinstance(value, Node):
        return value.emit()
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        if 0 <= value < 256:
            return b"K" + bytes([value])
        raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(raw)]) + raw
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        raw = value.encode("utf-8", "surrogatepass")
        return b"X" + struct.pack("<I", len(raw)) + raw
    if isinstance(value, bytes):
        return b"B" + struct.pack("<I", len(value)) + value
    if isinstance(value, tuple):
        return b"(" + b"".join(map(assembled, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(assembled, value)) + b"e"
    assert isinstance(value, dict), value
    return b"}(" + b"".join(assembled(x) for item in value.items() for x in item) + b"u"


def pickled(value: Any, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + assembled(value) + b"."


def storage(name: Any = "0", count: Any = 6, kind: str = "FloatStorage", location: str = "cpu") -> Node:
    return Node(("storage", Glob("torch", kind), name, location, count), b"Q")


def tensor(shape: Any = (2, 3), strides: Any = (3, 1), offset: Any = 0, *extra: Any, source: Any = None) -> Node:
    """A call of `_rebuild_tensor_v2`, by default on the storage of SIX."""
    source = storage() if source is None else source
    return call(Glob("torch._utils", "_rebuild_tensor_v2"), source, offset, shape, strides, False, ordered(), *extra)


SIX = {"0": struct.pack("<6f", *range(6))}

# ---------------------------------------------------------------- safetensors


def safetensors_file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


# ---------------------------------------------------------------- what a reader makes of it


def save(folder: Path, data: bytes, name: str = "hostile.pth") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def read_all(path: Any, weights: str | None = None) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every tensor of a checkpoint: dtype, shape, bytes."""
    with open_checkpoint(path, weights) as checkpoint:
        return {key: (tensor.dtype.name, tensor.shape, tensor.read()) for key, tensor in checkpoint.items()}


class Watched:
    """How many bytes of a file were read since."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
        self.read, preadv, source = 0, os.preadv, path.stat()

        def counting(fd: int, views: Any, at: int) -> int:
            self.read += len(views[0]) * os.path.samestat(os.fstat(fd), source)
            return preadv(fd, views, at)

        monkeypatch.setattr(os, "preadv", counting)


WHOLE = re.compile(
    r": (empty|not a regular file but .*|not a JSON object|not valid JSON: .*|nested too deeply|a PEFT adapter .*"
    r"|a torch distributed checkpoint: .*|holds (both|no weights).*|\d+ bytes of JSON, .*|bytes .* lie outside .*"
    r"|No such file or directory|Too many levels of symbolic links|File name too long|Permission denied)$"
)


@contextmanager
def refused(path: Any, *fragments: str) -> Iterator[None]:
    """The block ends in an InputError of one printable line that names the file and says all of these."""
    with pytest.raises(InputError) as caught:
        yield
    line = str(caught.value)
    assert caught.value.exit_code == 3
    assert line.isprintable(), line
    # Only what is wrong with a file or folder as a whole has no place in it.
    places = 0 if WHOLE.search(line) else 1
    assert line.count(": ") >= 1 + places, f"not file, place and rule: {line}"
    assert not re.search(r": (file|folder): ", line), f"a place that says nothing: {line}"
    assert Path(path).name in line, line
    assert len(line) < 2500
    for fragment in fragments:
        assert fragment in line, line


def assert_refused(path: Any, *fragments: str) -> None:
    with within(20), refused(path, *fragments):
        read_all(path)
