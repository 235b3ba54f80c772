"""Changes to a torch archive: fields and order of the zip, and opcodes of the pickle in it, written anew with CRCs that
are right, so that the reader has to look for itself."""

from __future__ import annotations

import pickletools
import zipfile
from dataclasses import replace
from pathlib import Path
from random import Random

from zip_builder import Glob, Node, Part, assembled, build, call, pairs, stack_glob, storage, tensor, zip_file

from .confined import CANARY
from .mutations import ODD_NUMBERS, changed_bytes, odd

NAMES = ("data.pkl", "data/0", "data/1", "version", "byteorder", "data/../0", "/data/0", "code/x.py", "a\\b", "data/é")
FIELDS = ("flags", "method", "crc", "packed", "size", "version", "time", "date", "name", "extra", "magic")
END = ("disk", "first", "here", "total", "size", "offset", "comment")
# What runs code where a file is trusted; each would leave the canary behind.
HOSTILE = (
    ("posix", "system", (f"touch {CANARY}",)),
    ("os", "mkdir", (CANARY,)),
    ("builtins", "eval", (f"open('{CANARY}', 'w')",)),
    ("builtins", "exec", (f"open('{CANARY}', 'w')",)),
    ("subprocess", "Popen", (["touch", CANARY],)),
    ("_io", "open", (CANARY, "w")),
    ("pathlib", "Path.touch", (CANARY,)),
    ("torch.storage", "_load_from_bytes", (b"cos\nmkdir\n(S'canary'\ntR.",)),
)
KNOWN = (
    ("torch", "IntStorage"), ("torch", "HalfStorage"), ("torch", "ComplexFloatStorage"), ("torch", "QInt8Storage"),
    ("torch.storage", "UntypedStorage"), ("torch._utils", "_rebuild_tensor"), ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_sparse_tensor"), ("torch._utils", "_rebuild_qtensor"), ("collections", "OrderedDict"),
    ("torch", "Size"), ("torch", "float16"), ("torch", "device"), ("builtins", "set"), ("builtins", "dict"),
)  # fmt: skip


def read_parts(path: Path) -> tuple[str, list[Part]]:
    """The root folder and the members of an archive, in order."""
    with zipfile.ZipFile(path) as archive:
        names = [member.filename for member in archive.infolist()]
        root = names[0].partition("/")[0]
        return root, [Part(name.partition("/")[2], archive.read(name)) for name in names]


def changed_archive(chance: Random, path: Path) -> bytes:
    """The zip with a few of its fields, members or bytes changed."""
    if chance.random() < 0.3:
        return changed_bytes(chance, path.read_bytes())
    root, parts = read_parts(path)
    whole: dict[str, object] = {}
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        i, j, kind = chance.randrange(len(parts)), chance.randrange(len(parts)), chance.randrange(10)
        if kind <= 2:
            side, field = chance.choice(("local", "central")), chance.choice(FIELDS)
            parts[i] = replace(parts[i], **{side: getattr(parts[i], side) | {field: _field(chance, field)}})
        elif kind == 3:
            parts.insert(j, parts[i])
        elif kind == 4:
            parts[i], parts[j] = parts[j], parts[i]
        elif kind == 5 and len(parts) > 1:
            del parts[i]
        elif kind == 6:
            parts[i] = replace(parts[i], name=chance.choice((*NAMES, parts[j].name)))
        elif kind == 7:
            data = chance.choice((b"", parts[j].data, changed_bytes(chance, parts[i].data[:100_000])))
            parts[i] = replace(parts[i], data=data, gap=chance.choice((b"", b"", b"\0")))
        elif kind == 8:
            parts[i] = replace(parts[i], flags=chance.choice((0, 0x800, 8)), descriptor=chance.choice((16, 24)))
        else:
            whole[chance.choice(END)] = chance.choice((*ODD_NUMBERS[:6], len(parts))) & 0xFFFF
            whole[chance.choice(("before", "after", "tail"))] = chance.choice((b"", b"", b"x"))
            whole["zip64"] = chance.random() < 0.5
    return zip_file(parts, root, **whole)


def _field(chance: Random, field: str) -> object:
    if field in ("name", "extra"):
        return chance.choice((b"", b"archive/data/0", b"archive/data.pkl", b"\1\0\x08\0" + bytes(8), b"\xff" * 40))
    if field == "magic":
        return chance.choice((b"PK\3\4", b"PK\1\2", b"PK\0\0"))
    return abs(chance.choice(ODD_NUMBERS)) & (0xFFFFFFFF if field in ("crc", "packed", "size") else 0xFFFF)


def changed_pickle(chance: Random, path: Path) -> bytes:
    """The archive with a few opcodes of its pickle changed."""
    root, parts = read_parts(path)
    (place,) = (i for i, part in enumerate(parts) if part.name == "data.pkl")
    parts[place] = replace(parts[place], data=_changed_opcodes(chance, parts[place].data))
    return zip_file(parts, root)


def _changed_opcodes(chance: Random, data: bytes) -> bytes:
    found = [(code.name, at) for code, _, at in pickletools.genops(data)]
    ends = [*(at for _, at in found[1:]), len(data)]
    codes = [data[at:end] for (_, at), end in zip(found, ends, strict=True)]
    names = [name for name, _ in found]
    interesting = [i for i, name in enumerate(names) if name.startswith(("BIN", "LONG", "GLOBAL", "REDUCE", "TUPLE"))]
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        i, j, kind = chance.choice(interesting), chance.randrange(len(codes)), chance.randrange(9)
        if kind <= 2:
            codes[i] = _other(chance, names[i], codes[j])
        elif kind == 3:
            codes[j] = b""
        elif kind == 4:
            codes[i] += codes[i]
        elif kind == 5:
            codes[i], codes[j] = codes[j], codes[i]
        elif kind == 6:
            codes[j] = bytes(
                [chance.choice(b"().0123BCGIJKLMNRSTUVX]abcdefghijlopqrstu}\x80\x81\x85\x86\x87\x8a\x8e\x93\x95")]
            )
        else:
            codes[i] = _payload(chance) + chance.choice((b"0", b"0", b"")) + codes[i]
    return b"".join(codes)


def _other(chance: Random, name: str, code: bytes) -> bytes:
    """Something else of the kind that the opcode pushes; `code` where it pushes nothing that could be named."""
    if name.startswith(("BININT", "LONG")):
        return assembled(chance.choice(ODD_NUMBERS))
    if name.startswith("BINUNICODE"):
        return assembled(str(odd(chance)))
    if name == "GLOBAL":
        return assembled(Glob(*chance.choice(KNOWN)))
    return code


def _payload(chance: Random) -> bytes:
    """Opcodes that push a value by calling what must not be called, or a tensor of odd numbers."""
    module, name, arguments = chance.choice(HOSTILE)
    glob = chance.choice((Glob, stack_glob))(module, name)
    few = [chance.choice(ODD_NUMBERS) for _ in range(3)]
    node = chance.choice(
        (
            call(glob, *arguments),
            Node(glob, arguments, b"\x81"),  # NEWOBJ
            Node(b"(", glob, *arguments, b"o"),
            Node(b"(", *arguments, f"i{module}\n{name}\n".encode()),
            build(call(Glob("collections", "OrderedDict")), {"__setstate__": glob, "items": glob}),
            pairs(call(Glob("collections", "defaultdict"), glob), ("x", arguments)),
            tensor((few[0],), (few[1],), few[2]),
            tensor(source=storage("0", few[0], chance.choice(KNOWN)[1])),
        )
    )
    return assembled(node)
