"""A small inert interpreter of the pickle format, for the `data.pkl` of a torch file.

Nothing is imported, called or set: GLOBAL, REDUCE, BUILD and their relatives make nodes that say what
the file asked for, and the layer above gives meaning to the few that it knows. Opcodes: Lib/pickletools.py
(PEP 307, 3154 and 574). Text opcodes of protocols 0 and 1 are refused: torch never writes them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ...errors import InputError, printable

OPCODE_LIMIT = 2_000_000
STACK_LIMIT = 500_000
MEMO_LIMIT = 1_000_000
NESTING_LIMIT = 1_000
INTEGER_LIMIT = 16  # bytes
GLOBAL_LIMIT = 1_000  # distinct names; a checkpoint with optimizer and configs has tens


class PickleError(InputError):
    """A pickle that breaks a rule; the text says at which offset."""


@dataclass(eq=False, repr=False, slots=True)
class Global:
    """A name that the pickle asked to import. Nothing was imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return printable(f"{self.module}.{self.name}", 120)


@dataclass(eq=False, repr=False, slots=True)
class Dict:
    """A dict as the pairs that were set, in order, duplicates and unhashable keys included."""

    pairs: list[tuple[Any, Any]] = field(default_factory=list, kw_only=True)


@dataclass(eq=False, repr=False, slots=True)
class Call(Dict):
    """A call that the pickle asked for, with the items and the state that it then wanted set. Nothing was called."""

    func: Any
    args: Any
    elements: list[Any] = field(default_factory=list)
    states: list[Any] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        """Whether items, elements or a state were set on what the call returned."""
        return bool(self.pairs or self.elements or self.states)


@dataclass(eq=False, repr=False, slots=True)
class PersistentId:
    """What torch puts in place of a storage: the tuple that names it."""

    value: Any


@dataclass(eq=False, repr=False, slots=True)
class Set:
    """A set or frozenset; its elements are kept as a list because hashing them would be code of the file's choice."""

    elements: list[Any] = field(default_factory=list)


def load(data: bytes) -> tuple[Any, list[Global]]:
    """The root node of a pickle and every global that it names.

    >>> import pickle
    >>> root, names = load(pickle.dumps({"epoch": 3}, protocol=2))
    >>> root.pairs
    [('epoch', 3)]
    """
    return _Machine(data).run()


class _Machine:
    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.end = data, 0, len(data)
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.globals: dict[tuple[str, str], Global] = {}

    def fail(self, rule: str) -> PickleError:
        return PickleError(f"offset {self.at}: {rule}")

    def run(self) -> tuple[Any, list[Global]]:
        if self.data[:1] != b"\x80" or self.end < 2 or not 2 <= self.data[1] <= 5:
            raise self.fail("not a pickle of protocol 2 to 5")
        self.at, data, table = 2, self.data, _TABLE
        for _ in range(OPCODE_LIMIT):
            if self.at >= self.end:
                raise self.fail("ends without STOP")
            opcode = data[self.at]
            self.at += 1
            if known := table.get(opcode):
                operation, pushes = known
                value = operation(self)  # which may put another stack in place
                if pushes:
                    self.stack.append(value)
            elif opcode != ord("."):
                self.at -= 1
                raise self.fail(f"opcode {opcode:#04x} is not one that torch writes")
            elif self.at != self.end:
                raise self.fail("bytes after STOP")
            elif len(self.stack) != 1 or self.marks:
                raise self.fail("the stack does not hold one object at STOP")
            else:
                return self.stack[0], list(self.globals.values())
            if len(self.stack) > STACK_LIMIT or len(self.memo) > MEMO_LIMIT:
                raise self.fail("stack or memo beyond the limit")
        raise self.fail(f"more than {OPCODE_LIMIT} opcodes")

    # What stands in the pickle. Lengths are checked before anything is allocated.
    def take(self, count: int) -> bytes:
        if count > self.end - self.at:
            raise self.fail(f"asks for {count} bytes, {self.end - self.at} are left")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def blob(self, width: int) -> bytes:
        return self.take(self.number(width))

    def decoded(self, raw: bytes, what: str, errors: str = "strict") -> str:
        try:
            return raw.decode("utf-8", errors)
        except UnicodeDecodeError:
            raise self.fail(f"{what} that is not UTF-8") from None

    def text(self, width: int) -> str:
        return self.decoded(self.blob(width), "text", "surrogatepass")

    def integer(self, width: int) -> int:
        length = self.number(width)
        if length > INTEGER_LIMIT:
            raise self.fail(f"an integer of {length} bytes, more than the {INTEGER_LIMIT} that are accepted")
        return int.from_bytes(self.take(length), "little", signed=True)

    def line(self) -> str:
        stop = self.data.find(b"\n", self.at, self.at + 1024)
        if stop < 0:
            raise self.fail("a name without end")
        raw, self.at = self.data[self.at : stop], stop + 1
        return self.decoded(raw, "a name")

    def frame(self) -> None:
        if self.number(8) > self.end - self.at:
            raise self.fail("a frame beyond the end")

    # What is on the stack, and in the memo.
    def pop(self) -> Any:
        if not self.stack:
            raise self.fail("pops from an empty stack")
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack:
            raise self.fail("needs an object on the stack")
        return self.stack[-1]

    def mark(self) -> None:
        if len(self.marks) >= NESTING_LIMIT:
            raise self.fail("nested too deeply")
        self.marks.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        if not self.marks:
            raise self.fail("pops to a MARK that was never set")
        items, self.stack = self.stack, self.marks.pop()
        return items

    def tuple_of(self, count: int) -> tuple[Any, ...]:
        if len(self.stack) < count:
            raise self.fail("a tuple of more than the stack holds")
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        return items

    def put(self, index: int) -> None:
        self.memo[index] = self.top()

    def get(self, index: int) -> Any:
        if index not in self.memo:
            raise self.fail(f"reads memo {index}, which was never set")
        return self.memo[index]

    def append(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, (list, Call, Set)):
            raise self.fail("appends to something that is not a list")
        (target if isinstance(target, list) else target.elements).extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, Dict) or len(items) % 2:
            raise self.fail("sets items of something that is not a dict")
        target.pairs.extend(zip(items[::2], items[1::2], strict=True))

    # What would run code in a real unpickler.
    def name(self, module: Any, name: Any) -> Global:
        if not isinstance(module, str) or not isinstance(name, str):
            raise self.fail("a global whose name is not text")
        known = self.globals.setdefault((module, name), Global(module, name))
        if len(self.globals) > GLOBAL_LIMIT:
            raise self.fail(f"more than {GLOBAL_LIMIT} different globals")
        return known

    def reduce(self, *states: Any) -> Call:
        args, func = self.pop(), self.pop()
        return Call(func, args, states=[*states])

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if not isinstance(target, Call):
            raise self.fail("sets the state of a plain value")
        target.states.append(state)


_Operations = dict[bytes, Callable[[_Machine], Any]]
# What an opcode pushes on the stack.
_VALUES: _Operations = {
    b"N": lambda s: None, b"\x88": lambda s: True, b"\x89": lambda s: False, b"2": _Machine.top,
    b"K": lambda s: s.number(1), b"M": lambda s: s.number(2),
    b"J": lambda s: int.from_bytes(s.take(4), "little", signed=True),
    b"\x8a": lambda s: s.integer(1), b"\x8b": lambda s: s.integer(4),
    b"G": lambda s: struct.unpack(">d", s.take(8))[0],
    b"X": lambda s: s.text(4), b"\x8c": lambda s: s.text(1), b"\x8d": lambda s: s.text(8),
    b"U": lambda s: s.blob(1), b"T": lambda s: s.blob(4), b"C": lambda s: s.blob(1), b"B": lambda s: s.blob(4),
    b"\x8e": lambda s: s.blob(8), b"\x96": lambda s: s.blob(8),
    b")": lambda s: (), b"t": lambda s: tuple(s.pop_mark()),
    b"\x85": lambda s: s.tuple_of(1), b"\x86": lambda s: s.tuple_of(2), b"\x87": lambda s: s.tuple_of(3),
    b"]": lambda s: [], b"}": lambda s: Dict(), b"\x8f": lambda s: Set(), b"\x91": lambda s: Set(s.pop_mark()),
    b"h": lambda s: s.get(s.number(1)), b"j": lambda s: s.get(s.number(4)),
    b"c": lambda s: s.name(s.line(), s.line()), b"\x93": lambda s: s.name(*[s.pop(), s.pop()][::-1]),
    b"R": _Machine.reduce, b"\x81": _Machine.reduce, b"\x92": lambda s: s.reduce(s.pop()),
    b"Q": lambda s: PersistentId(s.pop()),
}  # fmt: skip
# And what it does without.
_ACTIONS: _Operations = {
    b"(": _Machine.mark, b"0": _Machine.pop, b"1": _Machine.pop_mark, b"\x95": _Machine.frame,
    b"a": lambda s: s.append([s.pop()]), b"e": lambda s: s.append(s.pop_mark()),
    b"\x90": lambda s: s.append(s.pop_mark()),
    b"s": lambda s: s.set_items([s.pop(), s.pop()][::-1]), b"u": lambda s: s.set_items(s.pop_mark()),
    b"q": lambda s: s.put(s.number(1)), b"r": lambda s: s.put(s.number(4)), b"\x94": lambda s: s.put(len(s.memo)),
    b"b": _Machine.build,
}  # fmt: skip
_TABLE = {ord(code): (operation, True) for code, operation in _VALUES.items()} | {
    ord(code): (operation, False) for code, operation in _ACTIONS.items()
}
