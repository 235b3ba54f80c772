"""An inert interpreter: it agrees with pickle on plain values, runs nothing, and no input makes it fail otherwise."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import pickletools
import random
import struct
import sys
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from makers import within
from zip_builder import Glob, Node, assembled, build, call, pairs, pickled, stack_glob

from converter.checkpoint.torch_file import unpickle
from converter.checkpoint.torch_file.unpickle import Call, Dict, Global, PersistentId, PickleError, Set, load

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 127), (1 << 127) - 1),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.dictionaries(st.one_of(st.text(), st.integers(0, 99)), inner),
        st.frozensets(st.integers(0, 300)),
        st.sets(st.text(max_size=3)),
    ),
    max_leaves=20,
)


def plain(node: Any) -> Any:
    """The Python value that a node stands for."""
    if isinstance(node, Call):
        name = str(node.func)
        if name in ("__builtin__.set", "builtins.set", "__builtin__.frozenset", "builtins.frozenset"):
            return {plain(x) for x in node.args[0]}
        if name == "_codecs.encode":  # how protocol 2 spells bytes
            return node.args[0].encode(node.args[1])
        if name == "__builtin__.bytes":
            return b""
        assert name in ("builtins.bytearray", "__builtin__.bytearray"), name
        return plain(node.args[0])
    if isinstance(node, Dict):
        return {plain(key): plain(value) for key, value in node.pairs}
    if isinstance(node, Set):
        return {plain(x) for x in node.elements}
    if isinstance(node, list):
        return [plain(x) for x in node]
    return tuple(plain(x) for x in node) if isinstance(node, tuple) else node


@given(VALUES, st.integers(2, 5), st.booleans())
@settings(max_examples=100)
def test_plain_values_are_what_pickle_reads(value: Any, protocol: int, optimised: bool) -> None:
    data = pickle.dumps(value, protocol)
    found, _ = load(pickletools.optimize(data) if optimised else data)
    assert plain(found) == pickle.loads(data) == value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_long_values(protocol: int) -> None:
    value = {
        "text": "ä" * 70_000,
        "bytes": bytes(70_000),
        "list": list(range(3000)),
        "long": -(1 << 127),
        "two": (1, 2),
    }
    value["again"] = value["list"]
    found, _ = load(pickle.dumps(value, protocol))
    assert plain(found) == value
    again = dict(found.pairs)
    assert again["list"] is again["again"]


def test_what_a_call_becomes() -> None:
    root, names = load(pickle.dumps(OrderedDict(a=1), 2))
    assert isinstance(root, Call)
    assert isinstance(root.func, Global)
    assert (root.func.module, root.func.name, root.args, root.pairs) == ("collections", "OrderedDict", (), [("a", 1)])
    assert [str(name) for name in names] == ["collections.OrderedDict"]
    assert root.func is names[0]


def test_duplicate_and_unhashable_keys_are_kept_for_the_layer_above() -> None:
    root, _ = load(pickled(pairs(Node(b"}"), ("a", 1), ("a", 2), ([], 3))))
    assert root.pairs == [("a", 1), ("a", 2), ([], 3)]


# ---------------------------------------------------------------- nothing runs


class Runs:
    """Pickles as a call of `func`."""

    def __init__(self, func: Any, *args: Any, state: Any = None) -> None:
        self.reduced = (func, args) if state is None else (func, args, state)

    def __reduce__(self) -> Any:
        return self.reduced


def payloads(marker: str) -> dict[str, bytes]:
    """Pickles that leave the file `marker` behind when a real unpickler reads them."""
    code, shell = f"open({marker!r}, 'w').close()", f"touch {marker}"
    run = f"__import__('os').system({shell!r})"
    made: dict[str, Any] = {
        "os.system": pickle.dumps({"a": Runs(os.system, shell)}, 2),
        "eval": pickle.dumps({"a": Runs(eval, run)}, 4),
        "exec": pickle.dumps([Runs(exec, code)], 5),
        "STACK_GLOBAL": call(stack_glob("builtins", "exec"), code),
        "a dotted name": call(stack_glob("torch.serialization", "os.system"), shell),
        "NEWOBJ_EX": Node(Glob("builtins", "exec"), (code,), {}, b"\x92"),
        "a call of a call": call(call(Glob("builtins", "getattr"), Glob("builtins", "__dict__"), "exec"), code),
        "BUILD": build(call(Glob("types", "SimpleNamespace")), {"__reduce__": call(Glob("builtins", "exec"), code)}),
        "BUILD with __setstate__": build(call(Glob("functools", "partial"), Glob("os", "system")),
                                         (Glob("os", "system"), (shell,), {}, {})),
        "dropped before STOP": Node(call(Glob("builtins", "exec"), code), b"0", 1),
        "only in the memo": Node(call(Glob("os", "system"), shell), b"q\x000", None),
        "as a key": pairs(Node(b"}"), (call(Glob("os", "system"), shell), 1)),
        "as a persistent id": Node(call(Glob("builtins", "eval"), run), b"Q"),
        "as arguments": Node(Glob("collections", "OrderedDict"), call(Glob("builtins", "eval"), run), b"R"),
        "in a set": Node(b"\x8f(", call(Glob("builtins", "eval"), run), b"\x90"),
        "in a frozenset": Node(b"(", call(Glob("builtins", "eval"), run), b"\x91"),
    }  # fmt: skip
    return {name: pickled(value, 4) if isinstance(value, Node) else value for name, value in made.items()}


class Obliging(pickle.Unpickler):
    def persistent_load(self, pid: Any) -> Any:
        return pid


@pytest.mark.parametrize("name", payloads(""))
def test_no_payload_runs(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "ran"
    data = payloads(str(marker))[name]
    modules = set(sys.modules)
    load(data)
    assert not marker.exists()
    assert set(sys.modules) == modules
    if name not in ("a call of a call", "BUILD", "NEWOBJ_EX"):  # these end in an error first, elsewhere
        with contextlib.suppress(Exception):
            Obliging(io.BytesIO(data)).load()
        ran = marker.exists()
        assert ran or name in ("BUILD with __setstate__", "as arguments", "a dotted name"), "the payload is no payload"


def test_a_module_that_is_named_is_not_imported() -> None:
    sys.modules.pop("this", None)
    root, names = load(
        pickled([Glob("this", "c"), call(Glob("antigravity", "webbrowser.open"), "x"), stack_glob("this", "d")])
    )
    assert "this" not in sys.modules
    assert [str(name) for name in names] == ["this.c", "antigravity.webbrowser.open", "this.d"]
    assert str(root[0]) == "this.c"


# ---------------------------------------------------------------- refused

REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "offset 0: not a pickle of protocol 2 to 5"),
    "protocol only": (b"\x80", "not a pickle of protocol 2 to 5"),
    "protocol 0": (pickle.dumps([1], 0), "not a pickle of protocol 2 to 5"),
    "protocol 1": (pickle.dumps([1], 1), "not a pickle of protocol 2 to 5"),
    "protocol 6": (b"\x80\x06N.", "not a pickle of protocol 2 to 5"),
    "protocol twice": (b"\x80\x02\x80\x02N.", "offset 2: opcode 0x80"),
    "no STOP": (b"\x80\x02N", "offset 3: ends without STOP"),
    "bytes after STOP": (b"\x80\x02N.N", "offset 4: bytes after STOP"),
    "a second pickle": (pickled(1) + pickled(2), "bytes after STOP"),
    "nothing at STOP": (b"\x80\x02.", "does not hold one object at STOP"),
    "two at STOP": (b"\x80\x02NN.", "does not hold one object at STOP"),
    "a mark at STOP": (b"\x80\x02N(N.", "does not hold one object at STOP"),
    "pop of nothing": (b"\x80\x020.", "offset 3: pops from an empty stack"),
    "pop past a mark": (b"\x80\x02N(0.", "pops from an empty stack"),
    "no mark": (b"\x80\x02Nt.", "pops to a MARK that was never set"),
    "no mark to pop": (b"\x80\x021.", "MARK that was never set"),
    "dup of nothing": (b"\x80\x022.", "needs an object on the stack"),
    "a tuple of nothing": (b"\x80\x02N\x86.", "a tuple of more than the stack holds"),
    "append of nothing": (b"\x80\x02a.", "pops from an empty stack"),
    "append to a tuple": (b"\x80\x02)Na.", "not a list"),
    "append to a dict": (b"\x80\x02}Na.", "not a list"),
    "items of a list": (b"\x80\x02]NNs.", "not a dict"),
    "odd items": (b"\x80\x02}(Nu.", "not a dict"),
    "state of a dict": (b"\x80\x02}}b.", "sets the state of a plain value"),
    "state of a global": (b"\x80\x02ca\nb\n}b.", "sets the state of a plain value"),
    "reduce of nothing": (b"\x80\x02NR.", "pops from an empty stack"),
    "memo put of nothing": (b"\x80\x02q\x00.", "needs an object on the stack"),
    "memo never set": (b"\x80\x02Nq\x01h\x00.", "reads memo 0, which was never set"),
    "long memo never set": (b"\x80\x02j\xff\xff\xff\xff.", "reads memo 4294967295, which was never set"),
    "memoize nothing": (b"\x80\x04\x94.", "needs an object on the stack"),
    "text beyond the end": (b"\x80\x02X\xff\xff\xff\xffa.", "asks for 4294967295 bytes, 2 are left"),
    "text of 2^63": (b"\x80\x04\x8d" + b"\xff" * 8 + b".", "asks for 18446744073709551615 bytes"),
    "bytes beyond the end": (b"\x80\x03B\xff\xff\xff\x7fa.", "asks for 2147483647 bytes"),
    "bytes of 2^63": (b"\x80\x04\x8e" + b"\xff" * 8 + b".", "asks for 18446744073709551615 bytes"),
    "bytearray of 2^63": (b"\x80\x05\x96" + b"\xff" * 8 + b".", "asks for 18446744073709551615 bytes"),
    "negative string length": (b"\x80\x02T\xff\xff\xff\xff.", "asks for 4294967295 bytes"),
    "frame beyond the end": (b"\x80\x04\x95" + b"\xff" * 8 + b"N.", "a frame beyond the end"),
    "argument cut off": (b"\x80\x02M\x01", "asks for 2 bytes, 1 are left"),
    "float cut off": (b"\x80\x02G\x01", "asks for 8 bytes"),
    "a long integer": (b"\x80\x02\x8a\xff" + bytes(255) + b".", "an integer of 255 bytes"),
    "a very long integer": (b"\x80\x02\x8b\xff\xff\xff\x7f.", "an integer of 2147483647 bytes"),
    "text that is not UTF-8": (b"\x80\x02X\x01\0\0\0\xff.", "text that is not UTF-8"),
    "a name that is not UTF-8": (b"\x80\x02c\xff\n\n.", "a name that is not UTF-8"),
    "a name without end": (b"\x80\x02cos.system", "a name without end"),
    "a name of a megabyte": (b"\x80\x02c" + b"a" * 1_000_000 + b"\nb\n.", "a name without end"),
    "a name that is no text": (b"\x80\x04K\x01K\x02\x93.", "a global whose name is not text"),
    "out-of-band buffer": (b"\x80\x05\x97.", "opcode 0x97"),
    "extension registry": (b"\x80\x02\x82\x01.", "opcode 0x82"),
    "INST": (b"\x80\x02(ios\nsystem\n.", "opcode 0x69 is not one that torch writes"),
    "OBJ": (b"\x80\x02(cos\nsystem\no.", "opcode 0x6f"),
    "PERSID": (b"\x80\x02Pid\n.", "opcode 0x50"),
    "a mark in a mark ...": (b"\x80\x02" + b"(" * 2000 + b".", "nested too deeply"),
    "a large stack": (b"\x80\x02" + b"N" * 600_000 + b".", "stack or memo beyond the limit"),
    "too many opcodes": (b"\x80\x02" + b"N0" * 1_000_001 + b"N.", "more than 2000000 opcodes"),
    "too many globals": (pickled([Glob("m", str(n)) for n in range(1001)]), "more than 1000 different globals"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_malformed_pickles_are_refused(name: str) -> None:
    data, fragment = REFUSED[name]
    with within(20), pytest.raises(PickleError) as caught:
        load(data)
    line = str(caught.value)
    assert fragment in line
    assert line.startswith("offset ")
    assert line.isprintable()


@pytest.mark.parametrize("code", range(256))
def test_no_opcode_is_invented_and_what_torch_never_writes_is_refused(code: int) -> None:
    names = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
    try:
        load(b"\x80\x02N" + bytes([code]) + b"\n\n\n\n.")
        line = ""
    except PickleError as error:
        line = str(error)
    refused = line == f"offset 3: opcode {code:#04x} is not one that torch writes"
    assert refused == (names.get(code, "none") in UNUSED)


UNUSED = {
    "none", "DICT", "EXT1", "EXT2", "EXT4", "FLOAT", "GET", "INST", "INT", "LIST", "LONG", "NEXT_BUFFER", "OBJ",
    "PERSID", "PROTO", "PUT", "READONLY_BUFFER", "STRING", "UNICODE",
}  # fmt: skip


def test_the_memo_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpickle, "MEMO_LIMIT", 10)
    with pytest.raises(PickleError, match="stack or memo beyond the limit"):
        load(b"\x80\x04N" + b"\x94" * 11 + b".")


# ---------------------------------------------------------------- no recursion, no expansion

DEEP = 200_000
DEEP_PICKLES = {
    "tuples": b"\x80\x02)" + b"\x85" * DEEP + b".",
    "lists": b"\x80\x02]" + b"q\x000]h\x00a" * (DEEP // 5) + b".",
    "persistent ids": b"\x80\x02)" + b"Q" * DEEP + b".",
    "calls": b"\x80\x02N" + b")R" * DEEP + b".",
    "calls of calls": b"\x80\x02Nq\x000)" + b"q\x010h\x00h\x01R" * (DEEP // 4) + b".",
    "dicts": b"\x80\x02}" + b"q\x000}Nh\x00s" * (DEEP // 5) + b".",
    "states": b"\x80\x02N)R" + b"q\x000N)Rh\x00b" * (DEEP // 6) + b".",
    "doubled tuples": b"\x80\x02)" + b"2\x86" * (DEEP // 2) + b".",
    "doubled lists": b"\x80\x02]" + b"q\x000](h\x00h\x00e" * (DEEP // 8) + b".",
}


@pytest.mark.parametrize("name", DEEP_PICKLES)
def test_deep_and_shared_structures_are_linear(name: str) -> None:
    with within(20):
        root, _ = load(DEEP_PICKLES[name])
        assert root is not None
        del root


def test_a_list_in_itself() -> None:
    root, _ = load(b"\x80\x02]q\x00h\x00a.")
    assert root[0] is root
    root, _ = load(b"\x80\x02}q\x00Nh\x00s.")
    assert root.pairs[0][1] is root


@pytest.mark.parametrize("name", ["lengths", "integers", "wide text"])
def test_memory_is_bounded(name: str) -> None:
    data = {
        "lengths": b"\x80\x02]" + b"(X\x00\x00\x00\x7f" + b"N.",
        "integers": b"\x80\x02\x8b" + struct.pack("<I", 1 << 30) + bytes(100) + b".",
        "wide text": pickled("a" * (1 << 20) + "\U0001f600"),
    }[name]
    tracemalloc.start()
    try:
        with contextlib.suppress(PickleError):
            load(data)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------- anything at all


def try_load(data: bytes) -> Any:
    try:
        return load(data)
    except PickleError as error:
        line = str(error)
    assert line.isprintable()
    assert line.startswith("offset ")
    return None


@given(st.binary(max_size=300))
@example(b"N.")
@settings(max_examples=300)
def test_random_bytes(data: bytes) -> None:
    try_load(data)
    try_load(b"\x80\x04" + data)
    try_load(b"\x80\x02(" + data + b"t.")


BASE = pickled(
    [{"a": (1, 2.5, "text"), "b": [None, True]}, call(Glob("m", "n"), 1), Node(("storage",), b"Q"), b"bytes"]
)


def test_random_mutations() -> None:
    random.seed(3)
    for _ in range(2500):
        data = bytearray(BASE)
        for _ in range(random.randint(1, 4)):
            at = random.randrange(2, len(data))
            data[at : at + random.randint(0, 2)] = random.choice(
                [b"", bytes([random.randrange(256)]), data[at : at + 5]]
            )
        try_load(bytes(data))


SNIPPETS: list[Callable[[], bytes]] = [
    lambda: random.choice([b"(", b")", b"]", b"}", b"N", b"\x88", b"\x8f", b"0", b"1", b"2"]),
    lambda: random.choice([b"t", b"a", b"e", b"u", b"s", b"\x90", b"\x91", b"\x85", b"\x86", b"\x87"]),
    lambda: random.choice([b"R", b"b", b"Q", b"\x81", b"\x92", b"\x93", b"\x94", b"cm\nn\n"]),
    lambda: random.choice([b"q", b"h"]) + bytes([random.randrange(4)]),
    lambda: assembled(random.choice([1, -1, 1 << 40, 2.5, "a", b"b", "state", ()])),
]


def test_opcode_soup() -> None:
    """Opcodes that make sense one by one, in any order; some of these are whole pickles."""
    random.seed(5)
    whole = 0
    for _ in range(3000):
        soup = b"".join(random.choice(SNIPPETS)() for _ in range(random.randint(1, 14)))
        whole += try_load(b"\x80\x04" + soup + b".") is not None
        whole += try_load(b"\x80\x04]" + soup + b"(1.") is not None
    assert whole > 50


def test_a_persistent_id_holds_what_was_on_the_stack() -> None:
    root, _ = load(pickled(Node(("storage", 1), b"Q")))
    assert isinstance(root, PersistentId)
    assert root.value == ("storage", 1)
