"""One reading of a zip file or none."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import within
from zip_builder import (
    SIX,
    Part,
    Watched,
    assert_refused,
    parts,
    pickled,
    read_all,
    refused,
    save,
    storage,
    tensor,
    torch_file,
    zip_file,
)

from converter.checkpoint import open_checkpoint
from converter.checkpoint.file import InputFile
from converter.checkpoint.torch_file.archive import Archive
from converter.errors import InputError

PICKLE = pickled({"w": tensor()})
GOOD = {"w": ("float32", (2, 3), SIX["0"])}


def altered(name: str, **changes: Any) -> list[Part]:
    """The members of a good file, one of them changed."""
    made = parts(PICKLE, SIX)
    for part in made:
        if part.name == name:
            for key, value in changes.items():
                setattr(part, key, value)
    return made


def local(member: str = "data/0", /, **fields: Any) -> bytes:
    return zip_file(altered(member, local=fields))


def central(member: str = "data/0", /, **fields: Any) -> bytes:
    return zip_file(altered(member, central=fields))


def bare(**changes: Any) -> bytes:
    """Without a data descriptor."""
    return zip_file(altered("data/0", flags=0, **changes))


def more(*extra: Part) -> bytes:
    return zip_file([*parts(PICKLE, SIX), *extra])


def plain(**knobs: Any) -> bytes:
    return zip_file(parts(PICKLE, SIX), **knobs)


def wide(*values: int, kind: int = 1) -> bytes:
    """A ZIP64 extra field."""
    return struct.pack(f"<2H{len(values)}Q", kind, 8 * len(values), *values)


FORTY = {"size": 40, "packed": 40}
SATURATED = {"size": 0xFFFFFFFF, "packed": 0xFFFFFFFF}  # the sizes stand in a ZIP64 field


# ---------------------------------------------------------------- accepted


def rewritten(data: bytes, **kwargs: Any) -> bytes:
    """The archive as Python's zipfile writes it anew."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w") as new:
        for info in old.infolist():
            with new.open(zipfile.ZipInfo(info.filename), "w", **kwargs) as member:
                member.write(old.read(info))
    return stream.getvalue()


ACCEPTED: dict[str, Callable[[], bytes]] = {
    "as torch writes": plain,
    "descriptors of 24 bytes": lambda: zip_file([Part(p.name, p.data, descriptor=24) for p in parts(PICKLE, SIX)]),
    "flags 8": lambda: zip_file([Part(p.name, p.data, flags=8) for p in parts(PICKLE, SIX)]),
    "flags 0": lambda: zip_file([Part(p.name, p.data, flags=0) for p in parts(PICKLE, SIX)]),
    "flags 0x0800": lambda: zip_file([Part(p.name, p.data, flags=0x0800) for p in parts(PICKLE, SIX)]),
    "rewritten by zipfile": lambda: rewritten(plain()),
    "rewritten by zipfile with ZIP64 fields": lambda: rewritten(plain(), force_zip64=True),
    "no byteorder": lambda: zip_file(parts(PICKLE, SIX, byteorder=None)),
    "a small ZIP64": lambda: plain(zip64=True),
    "sizes before the data too": lambda: local(size=24, packed=24, crc=zlib.crc32(SIX["0"])),
    "sizes marked as 64-bit before the data": lambda: local(size=0xFFFFFFFF, packed=0xFFFFFFFF),
    "ZIP64 fields of a small member": lambda: central(**SATURATED, extra=wide(24, 24)),
    "another extra field": lambda: central(extra=wide(7, kind=0x5455) + wide()),
    "a Unicode root": lambda: plain(root="模型 v1"),
    "a damaged member that is not used": lambda: more(Part("data/1", b"x", central={"crc": 1})),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_valid_archives_are_read(tmp_path: Path, name: str) -> None:
    assert read_all(save(tmp_path, ACCEPTED[name]())) == GOOD


@pytest.mark.slow
def test_over_65535_members(tmp_path: Path) -> None:
    count = 65_600
    extra = [Part(f"data/x{n}", flags=0, local={"extra": b""}) for n in range(count)]
    data = zip_file([*parts(PICKLE, SIX), *extra], zip64=True)
    path = save(tmp_path, data)
    with within(20), InputFile(path) as file:
        assert len(Archive(file).members) == count + 4
    assert read_all(path) == GOOD
    with zipfile.ZipFile(path) as known:  # that the forgery is what others understand by ZIP64
        assert len(known.infolist()) == count + 4
    assert_refused(
        save(tmp_path, zip_file([*parts(PICKLE, SIX), *extra], here=64, total=64)), "bytes after the last entry"
    )


def sparse(path: Path, size: int, crc: int, descriptor: int, flags: int = 0x0808) -> int:
    """A torch archive whose storage is `size` zero bytes that take no disk; returns where the data starts."""
    pickle = pickled({"w": tensor((2,), (1,), size // 4 - 2, source=storage(count=size // 4))})
    data = next(p for p in parts(pickle, {"0": b""}) if p.name == "data/0")
    head = zip_file(parts(pickle)[:2])
    stop = head.index(b"PK\x01\x02")
    streamed = bool(flags & 8)
    saturated = 0xFFFFFFFF if size >= 0xFFFFFFFF else size
    extra = wide(size, size) if not streamed and size >= 0xFFFFFFFF else b""
    with path.open("wb") as file:
        file.write(head[:stop])
        raw = f"archive/{data.name}".encode()
        stated = (0, 0, 0) if streamed else (crc, saturated, saturated)
        file.write(
            struct.pack("<4s5H3I2H", b"PK\x03\x04", 0, flags, 0, 0, 0, *stated, len(raw), len(extra)) + raw + extra
        )
        start = file.tell()
        file.truncate(start + size)
        file.seek(start + size)
        if descriptor:
            form = "<4sI2Q" if descriptor == 24 else "<4s3I"
            file.write(struct.pack(form, b"PK\x07\x08", crc, *((size if descriptor == 24 else size & 0xFFFFFFFF),) * 2))
        directory_at = file.tell()
        entries = head[stop : head.index(b"PK\x05\x06")]
        field = wide(size, size)
        entries += struct.pack("<4s6H3I", b"PK\x01\x02", 0, 45, flags, 0, 0, 0, crc, 0xFFFFFFFF, 0xFFFFFFFF)
        entries += struct.pack("<5H2I", len(raw), len(field), 0, 0, 0, 0, stop) + raw + field
        file.write(entries)
        end = file.tell()
        file.write(struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 3, 3, len(entries), directory_at))
        file.write(struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1))
        file.write(struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 3, 3, len(entries), 0xFFFFFFFF, 0))
    return start


@pytest.mark.slow
def test_a_member_over_4_gib(tmp_path: Path) -> None:
    size = (1 << 32) + 4096
    path = tmp_path / "big.pth"
    start = sparse(path, size, 0xB875D37F, 24)  # the CRC-32 of so many zeros
    with open_checkpoint(path) as checkpoint:
        assert checkpoint["w"].storage.start == start
        assert checkpoint["w"].read() == bytes(8)  # the last two elements, once all of it had the right CRC
    assert path.stat().st_blocks * 512 < 1 << 20


@pytest.mark.parametrize(("descriptor", "flags", "good"), [(24, 0x0808, True), (0, 0x0800, True), (16, 0x0808, False)])
def test_the_headers_of_a_member_over_4_gib(tmp_path: Path, descriptor: int, flags: int, good: bool) -> None:
    path = tmp_path / "big.pth"
    start = sparse(path, (1 << 32) + 8, 1, descriptor, flags)
    with InputFile(path) as file:
        if good:
            assert Archive(file).locate("data/0") == start
        else:
            with refused(path, "data descriptor"):
                Archive(file).locate("data/0")


# ---------------------------------------------------------------- refused

DISAGREE = "the local header and the central directory disagree"
DESCRIPTOR = "the data descriptor and the central directory disagree"
REFUSED: dict[str, tuple[Callable[[], bytes], tuple[str, ...]]] = {
    # The end
    "truncated": (lambda: plain()[:-1], ("zip", "no end record in the last 22 bytes")),
    "shorter than an end record": (lambda: plain()[:15], ("truncated: no end record",)),
    "bytes after": (lambda: plain(after=b"\n"), ("no end record in the last 22 bytes",)),
    "a second archive after": (lambda: plain() + plain(), ("does not end where the end record starts",)),
    "bytes before": (lambda: b"PK\x03\x04" + plain(), ("does not end where the end record starts",)),
    "bytes before, offsets right": (lambda: plain(before=b"PK\3\4" + bytes(60)), ("bytes before the first member",)),
    "a comment": (lambda: plain(comment=3, after=b"hey"), ("no end record in the last 22",)),
    "a comment that is not there": (lambda: plain(comment=3), ("comments are not accepted",)),
    "many disks": (lambda: plain(disk=1), ("multi-disk",)),
    "another first disk": (lambda: plain(first=1), ("multi-disk",)),
    "entries on other disks": (lambda: plain(here=3), ("multi-disk",)),
    "fewer entries than there are": (lambda: plain(here=3, total=3), ("bytes after the last entry",)),
    "more entries than there are": (lambda: plain(here=5, total=5), ("central directory", "ends inside an entry")),
    "absurdly many entries": (lambda: plain(here=9999, total=9999), ("with 9999 entries",)),
    "bytes between directory and end": (lambda: plain(tail=b"x" * 50), ("bytes after the last entry",)),
    "directory of another size": (lambda: plain(size=9), ("does not end where the end record starts",)),
    "directory elsewhere": (lambda: plain(offset=64), ("does not end where the end record starts",)),
    "not an entry": (lambda: central(magic=b"PK\x01\x03"), ("malformed entry",)),
    "an end record only": (lambda: b"PK\x03\x04" + zip_file([], offset=4), ("without data.pkl",)),
    # ZIP64
    "locator elsewhere": (lambda: plain(zip64=True, locator={"offset": 0}), ("zip64 locator",)),
    "locator beyond": (lambda: plain(zip64=True, locator={"offset": 1 << 63}), ("zip64 locator",)),
    "locator of disks": (lambda: plain(zip64=True, locator={"disks": 2}), ("zip64 locator",)),
    "record without magic": (lambda: plain(zip64=True, end64={"magic": b"PK\6\5"}), ("zip64 end record: malformed",)),
    "record of another length": (lambda: plain(zip64=True, end64={"length": 45}), ("zip64 end record",)),
    "record on another disk": (lambda: plain(zip64=True, end64={"disk": 1}), ("zip64 end record",)),
    "record with entries elsewhere": (lambda: plain(zip64=True, end64={"here": 3}), ("zip64 end record",)),
    "two counts": (lambda: plain(zip64=True, total=3, here=3), ("disagrees with the end record",)),
    "two sizes": (lambda: plain(zip64=True, size=3), ("disagrees with the end record",)),
    "two offsets": (lambda: plain(zip64=True, offset=3), ("disagrees with the end record",)),
    "huge directory": (lambda: plain(zip64=True, end64={"size": 1 << 63}), ("does not end where",)),
    "huge count": (
        lambda: plain(zip64=True, here=0xFFFF, total=0xFFFF, end64={"here": 1 << 60, "total": 1 << 60}),
        (f"with {1 << 60} entries",),
    ),
    "no field": (lambda: central(**SATURATED), ("data/0", "ZIP64 field missing or short")),
    "a short field": (lambda: central(**SATURATED, extra=wide(24)), ("missing or short",)),
    "two fields": (lambda: central(**SATURATED, extra=wide(24, 24) * 2), ("two ZIP64 fields",)),
    "a field beyond its end": (lambda: central(extra=b"\x01\x00\x09\x00"), ("data/0", "malformed extra field")),
    "a torn field": (lambda: central(extra=b"\x01"), ("data/0", "malformed extra field")),
    "a huge member": (lambda: central(**SATURATED, extra=wide(1 << 63, 1 << 63)), (DESCRIPTOR,)),
    # Members
    "compressed": (lambda: central(method=8), ("data/0", "only plain stored members", "compressed")),
    "encrypted": (lambda: central(flags=0x0809), ("data/0", "encrypted")),
    "strong encryption": (lambda: central(flags=0x0848), ("flags 0x0848",)),
    "patched data": (lambda: central(flags=0x0828), ("flags 0x0828",)),
    "masked headers": (lambda: central(flags=0x2808), ("flags 0x2808",)),
    "on another disk": (lambda: central(disk=1), ("disk number",)),
    "packed size differs": (lambda: central(packed=23), ("stored and packed sizes differ",)),
    "duplicate": (lambda: more(Part("data/0", b"other")), ("data/0", "two members have this name")),
    "duplicate data.pkl": (lambda: more(Part("data.pkl", PICKLE)), ("data.pkl", "two members have this name")),
    "two roots": (lambda: more(Part("/other/data/1")), ("more than one root folder",)),
    "no root": (lambda: more(Part("/data1")), ("not below one root folder",)),
    "parent as root": (lambda: plain(root=".."), ("not below one root folder",)),
    "absolute": (lambda: more(Part("//etc/passwd")), ("not below one root folder",)),
    "up": (lambda: more(Part("../data/1")), ("not a member that torch.save writes",)),
    "up below data": (lambda: more(Part("data/../1")), ("not a member that torch.save writes",)),
    "backslash": (lambda: more(Part("data\\1")), ("not a member that torch.save writes",)),
    "a folder": (lambda: more(Part("data/")), ("not a member that torch.save writes",)),
    "a line break": (lambda: more(Part("data/1\n")), (r"data/1\n", "not a member that torch.save writes")),
    "a terminal's command": (lambda: more(Part("data/\x1b[2J")), (r"\x1b[2J",)),
    "a nul": (lambda: more(Part("data/1\0.pkl")), (r"\x00",)),
    "a long name": (lambda: more(Part("data/" + "." * 60_000)), ("(60013 characters)",)),
    "not UTF-8": (lambda: central(name=b"archive/data/\xff"), ("not UTF-8",)),
    "TorchScript": (lambda: more(Part("code/__torch__.py")), ("TorchScript",)),
    "TorchScript constants": (lambda: more(Part("constants.pkl")), ("TorchScript",)),
    "no data.pkl": (lambda: zip_file([Part("data/0", SIX["0"])]), ("without data.pkl",)),
    "big-endian": (lambda: zip_file(parts(PICKLE, SIX, b"big")), ("byteorder", "not written on a little-endian")),
    "a long byteorder": (lambda: zip_file(parts(PICKLE, SIX, b"little" + bytes(99))), ("byteorder", "105 bytes")),
    "damaged byteorder": (lambda: central("byteorder", crc=7), ("byteorder",)),
    # Where members lie
    "same place": (lambda: central(header=0), ("two members start at the same offset",)),
    "behind the directory": (lambda: central(header=1 << 30), ("starts inside or after the central directory",)),
    "at the directory": (lambda: central(header=plain().index(b"PK\1\2")), ("two members start at the same offset",)),
    "on another header": (lambda: central("version", header=65), (DESCRIPTOR, "data.pkl")),
    "overlap": (lambda: central(size=40, packed=40), (DESCRIPTOR, "members overlap")),
    "a gap": (lambda: zip_file(altered("data/0", gap=b"hidden")), (DESCRIPTOR, "leave a gap")),
    "a gap, no descriptors": (lambda: bare(gap=b"hidden"), (DISAGREE, "leave a gap")),
    "overlap, no descriptors": (lambda: bare(local=FORTY, central=FORTY), (DISAGREE, "members overlap")),
    # Central and local
    "local magic": (lambda: local(magic=b"PK\x03\x05"), ("data/0", DISAGREE)),
    "local name": (lambda: local(name=b"archive/data/1"), ("data/0", DISAGREE)),
    "local name shorter": (lambda: local(name=b"archive/data"), ("data/0", DISAGREE)),
    "local name longer": (lambda: local(name=b"archive/data/00"), ("data/0", DISAGREE)),
    "local flags": (lambda: local(flags=8), ("data/0", DISAGREE)),
    "local method": (lambda: local(method=8), ("data/0", DISAGREE)),
    "local size": (lambda: local(size=23), ("data/0", DESCRIPTOR)),
    "local packed size": (lambda: local(packed=25), ("data/0", DESCRIPTOR)),
    "local CRC": (lambda: local(crc=1), ("data/0", DESCRIPTOR)),
    "data that starts later": (lambda: central(size=16, packed=16), ("data/0", DESCRIPTOR)),
    "central CRC": (lambda: central(crc=1), ("data/0", DESCRIPTOR)),
    "central size": (lambda: central(size=20, packed=20), ("data/0", DESCRIPTOR)),
    "no descriptors, size": (lambda: bare(local={"size": 20}), ("data/0", DISAGREE)),
    "no descriptors, packed": (lambda: bare(local={"packed": 20}), ("data/0", DISAGREE)),
    "no descriptors, CRC": (lambda: bare(local={"crc": 20}), ("data/0", DISAGREE)),
    "no descriptors, zero sizes": (lambda: bare(local={"size": 0, "packed": 0}), (DISAGREE,)),
    "local ZIP64 field": (lambda: bare(local=SATURATED | {"extra": wide(24, 20)}), ("data/0", DISAGREE)),
    "local ZIP64 field missing": (lambda: bare(local=SATURATED | {"extra": b""}), ("data/0", "ZIP64 field missing")),
    # Data
    "damaged weights": (lambda: plain().replace(SIX["0"], bytes([1]) + SIX["0"][1:]), ("data/0", "CRC-32 mismatch")),
    "damaged key": (
        lambda: plain().replace(b"\0w(c", b"\0v(c").replace(b"X\x01\0\0\0wc", b"X\x01\0\0\0vc"),
        ("data.pkl", "CRC-32 mismatch"),
    ),
    "a CRC of zero": (lambda: bare(local={"crc": 0}, central={"crc": 0}), ("CRC-32 mismatch",)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_malformed_archives_are_refused(tmp_path: Path, name: str) -> None:
    make, fragments = REFUSED[name]
    path = save(tmp_path, make())
    with refused(path, *fragments), InputFile(path) as file:
        opened = Archive(file)
        for member in opened.members:
            opened.read(member, 1 << 63)
    assert_refused(path)


def test_a_directory_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "big.pth"
    path.write_bytes(b"PK\x03\x04")
    size = 17 << 20
    with path.open("r+b") as file:
        file.truncate(size + 4)
        file.seek(size + 4)
        file.write(struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 9, 9, size, 4, 0))
    assert_refused(path, f"a central directory of {size} bytes")


def test_a_pickle_beyond_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from converter.checkpoint.torch_file import reader as torchfile

    monkeypatch.setattr(torchfile, "PICKLE_LIMIT", len(PICKLE) - 1)
    assert_refused(save(tmp_path, plain()), "data.pkl", f"more than the {len(PICKLE) - 1} that are accepted")


def test_what_torch_accepts_in_silence(tmp_path: Path) -> None:
    """The measured reasons for this reader: the same file in front of torch.load."""
    damaged = REFUSED["damaged weights"][0]()
    assert torch.load(io.BytesIO(damaged), weights_only=True)["w"][0, 0] != 0
    assert_refused(save(tmp_path, damaged), "CRC-32 mismatch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twice = more(Part("data/0", struct.pack("<6f", *range(6, 12))))
        assert torch.load(io.BytesIO(twice), weights_only=True)["w"][0, 0] == 0
        with zipfile.ZipFile(io.BytesIO(twice)) as other:
            assert struct.unpack("<6f", other.read("archive/data/0"))[0] == 6
    assert_refused(save(tmp_path, twice), "two members have this name")


def test_opening_reads_no_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 1 << 20
    data = torch_file({"w": tensor((size // 4,), (1,), source=storage(count=size // 4))}, {"0": bytes(size)})
    path = save(tmp_path, data)
    watched = Watched(monkeypatch, path)
    with open_checkpoint(path) as checkpoint:
        assert len(checkpoint) == 1
        assert (opening := watched.read) < 4096
        checkpoint["w"].read()
        assert watched.read - opening < size + 1024  # once


# ---------------------------------------------------------------- anything at all


def look(path: Path, data: bytes) -> Any:
    """What an archive holds, or None where it is refused; anything else fails the test."""
    path.write_bytes(data)
    try:
        with InputFile(path) as file:
            opened = Archive(file)
            return {name: opened.read(name, 1 << 20) for name in opened.members}
    except InputError as error:
        line = str(error)
    assert line.isprintable()
    return None


@given(st.binary(max_size=200), st.booleans())
@settings(max_examples=150)
def test_random_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes, ended: bool) -> None:
    path = tmp_path_factory.getbasetemp() / "random.zip"
    look(path, data + (struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, len(data), 0, 0) if ended else b""))


def test_random_mutations(tmp_path: Path) -> None:
    """Some bytes of the headers overwritten, with what breaks arithmetic: all that is still read is the same."""
    random.seed(7)
    base = plain(zip64=True)
    truth = look(tmp_path / "m", base)
    assert truth is not None
    spots = [n for n in range(len(base)) if not SIX["0"].startswith(base[n : n + 24])]
    for _ in range(1500):
        data = bytearray(base)
        for _ in range(random.randint(1, 3)):
            at = random.choice(spots)
            value = random.choice([b"\0", b"\xff", b"\xff\xff\xff\xff", b"\0\0\0\x80", bytes([random.randrange(256)])])
            data[at : at + len(value)] = value
        found = look(tmp_path / "m", bytes(data[: len(base)]))
        assert found is None or set(found.values()) <= set(truth.values())


def test_the_members_of_genuine_files(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "w.pth")
    with InputFile(tmp_path / "w.pth") as file, zipfile.ZipFile(tmp_path / "w.pth") as known:
        assert list(Archive(file).members) == [name.partition("/")[2] for name in known.namelist()]


# ---------------------------------------------------------------- without checksums


def unsummed(state: Any) -> bytes:
    stream = io.BytesIO()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, stream)
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(stream) as known:
        assert {info.CRC for info in known.infolist()} == {0}
    return stream.getvalue()


def test_an_archive_without_checksums_is_read_and_said_to_be_one(tmp_path: Path) -> None:
    state = {"w": torch.arange(6.0).reshape(2, 3), "view": torch.arange(12.0).reshape(3, 4).T, "none": torch.ones(0)}
    path = save(tmp_path, unsummed({"state_dict": state, "epoch": 3}))
    with open_checkpoint(path) as checkpoint:
        assert len(checkpoint.notes) == 1
        assert checkpoint.notes[0].startswith("hostile.pth carries no checksums")
        assert all(tensor.storage.crc is None for tensor in checkpoint.values())
        for key, tensor in checkpoint.items():
            assert torch.equal(tensor.torch(), state[key]), key
            assert b"".join(bytes(part) for _, part in tensor.chunks()) == tensor.read()
    torch.save(state, path)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.notes == []
        assert all(type(tensor.storage.crc) is int for tensor in checkpoint.values())


def zeroed(names: Sequence[str], data: bytes) -> bytes:
    """The archive with the CRC of these members set to 0, in the directory and behind the data."""
    made = bytearray(data)
    with zipfile.ZipFile(io.BytesIO(data)) as known:
        for info in known.infolist():
            if info.filename in names:
                crc = struct.pack("<I", info.CRC)
                for magic, at in ((b"PK\x07\x08", 4), (b"PK\x01\x02", 16)):
                    place = data.index(magic, info.header_offset)
                    while data[place + at : place + at + 4] != crc:
                        place = data.index(magic, place + 1)
                    made[place + at : place + at + 4] = bytes(4)
    return bytes(made)


@given(st.data())
@settings(max_examples=25)
def test_a_checksum_of_zero_among_others_is_damage(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Only where all are 0 were they left out; the same bytes or none in either case."""
    stream = io.BytesIO()
    torch.save({"a": torch.arange(3.0), "b": torch.ones(5)}, stream)
    base = stream.getvalue()
    names = [f"archive/{name}" for name in ("data.pkl", "byteorder", "data/0", "data/1")]
    rest = [info.filename for info in zipfile.ZipFile(stream).infolist() if info.filename not in names]
    chosen = data.draw(st.sets(st.sampled_from(names)))
    path = save(tmp_path_factory.getbasetemp(), zeroed([*chosen, *data.draw(st.sampled_from([[], rest]))], base))
    with InputFile(path) as file:
        checksummed = any(info.CRC for info in zipfile.ZipFile(path).infolist())
        if chosen and checksummed:
            with refused(path, "CRC-32 mismatch"):
                read_all(path)
        else:
            assert Archive(file).checksummed is checksummed
            assert read_all(path)["a"][2] == torch.arange(3.0).numpy().tobytes()


def test_damage_in_an_archive_without_checksums_is_no_error_of_the_archive(tmp_path: Path) -> None:
    """That is what the note is for."""
    data = unsummed({"w": torch.arange(6.0)})
    spot = data.index(struct.pack("<3f", 1, 2, 3))
    path = save(tmp_path, data[:spot] + b"\1" + data[spot + 1 :])
    assert read_all(path)["w"][2] != torch.arange(6.0).numpy().tobytes()


# ---------------------------------------------------------------- attributes


FIELDS = {"made": ("<H", 4), "needed": ("<H", 6), "time": ("<H", 12), "date": ("<H", 14), "crc": ("<I", 16),
          "comment": ("<H", 32), "disk": ("<H", 34), "internal": ("<H", 36), "external": ("<I", 38)}  # fmt: skip


@cache
def by_torch() -> bytes:
    stream = io.BytesIO()
    torch.save({"w": torch.arange(6.0).reshape(2, 3)}, stream)
    return stream.getvalue()


def attributed(field: str, value: int, member: str = "data/0") -> bytes:
    """A file as torch writes it, with one field of one entry of the directory changed."""
    made, (form, at) = bytearray(by_torch()), FIELDS[field]
    name = f"archive/{member}".encode()
    place = made.index(b"PK\x01\x02")
    while made[place + 46 : place + 46 + len(name)] != name:
        place = made.index(b"PK\x01\x02", place + 1)
    struct.pack_into(form, made, place + at, value)
    return bytes(made)


MEMBERS = st.sampled_from(["data.pkl", "data/0", "version", "byteorder"])


@given(MEMBERS, st.one_of(st.integers(0, 31).map(lambda bit: 1 << bit), st.integers(1, (1 << 32) - 1)))
@settings(max_examples=60)
def test_attributes_that_torch_never_writes_are_refused(
    tmp_path_factory: pytest.TempPathFactory, member: str, value: int
) -> None:
    path = save(tmp_path_factory.getbasetemp(), attributed("external", value, member))
    assert_refused(path, f": {member}: attributes that torch never writes", f"external {value:#010x}")


@given(MEMBERS, st.sampled_from(sorted(FIELDS)), st.data())
@settings(max_examples=80)
def test_any_field_changed_is_refused_or_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, member: str, field: str, data: st.DataObject
) -> None:
    value = data.draw(st.integers(0, 0xFFFFFFFF if field in ("crc", "external") else 0xFFFF))
    path = save(tmp_path_factory.getbasetemp(), attributed(field, value, member))
    try:
        found = read_all(path)
    except InputError:
        return
    assert found == GOOD


@pytest.mark.parametrize(("mode", "good"), [
    (0o600, True), (0o100644, True), (0o100444, True),
    (0o120777, False), (0o40755, False), (0o10644, False), (0o60644, False),
])  # fmt: skip
def test_the_mode_that_a_tool_on_unix_gives_says_a_plain_file_or_nothing(tmp_path: Path, mode: int, good: bool) -> None:
    path = save(tmp_path, central(made=(3 << 8) + 20, version=20, external=mode << 16))
    if good:
        assert read_all(path) == GOOD
    else:
        assert_refused(path, "data/0", "attributes that torch never writes", f"external {mode << 16:#010x}")


def test_a_second_name_in_an_extra_field_is_refused(tmp_path: Path) -> None:
    other = b"\1" + struct.pack("<I", zlib.crc32(b"archive/data/0")) + b"archive/data/1"
    path = save(tmp_path, central(extra=struct.pack("<2H", 0x7075, len(other)) + other))
    assert_refused(path, "data/0", "extra field 0x7075")
