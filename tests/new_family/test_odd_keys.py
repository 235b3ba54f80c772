"""Whatever the two lists of keys: a draft that imports, or one line; never an internal error, never hours."""

from __future__ import annotations

import time
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from converter.errors import InputError
from converter.new_family import KeyList, draft, render

COMMON = ["qkv", "q", "k", "v", "to_q", "fc1", "fc2", "e", "o", "weight", "bias", "0", "1", "2", "01", "10"]
COMMON += ["blocks", "norm_out", "proj", "attn", "mlp", "pos_embed", "s", "w1", "w2"]
ODD = ["class", "None", "lambda", "é", "", "{}", "{", '"', "'", "a b", "\\", "x" * 99, "9" * 20, "__init__", "\n", "%s"]
segments = st.one_of(*[st.sampled_from(COMMON)] * 8, st.sampled_from(ODD), st.text(max_size=3))
names = st.lists(segments, min_size=1, max_size=6).map(".".join)
shapes = st.lists(st.sampled_from([0, 1, 2, 3, 4, 4, 8, 12, 16, 256, 257, 1 << 39]), max_size=5).map(tuple)
lists = st.one_of(
    st.dictionaries(names, shapes, min_size=1, max_size=12),
    st.dictionaries(names, st.sampled_from([(), (4,), (8, 4)]), min_size=1, max_size=25),
)
fields = st.dictionaries(
    st.sampled_from(["hidden_size", "_class_name", 'a"', "é\n"]),
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5),
    max_size=3,
)


def imported(text: str) -> dict[str, Any]:
    module: dict[str, Any] = {}
    exec(compile(text.replace("converter.register(FAMILY)", ""), "drafted.py", "exec"), module)
    return module


@settings(max_examples=60)
@given(lists, st.none() | lists, fields)
@example({"qkv.0.o": (4,), "qkv.e": (4,)}, None, {})
@example({"1": ()}, {"s.fc1": ()}, {})
@example({"e": (), "e.weight": (4, 4)}, None, {})
@example({"a": ()}, {"b.0.c.d": ()}, {})
@example({"qkv.None": ()}, None, {})
@example({"a.0.b.c": (4,), "a.7": (4,)}, {"a.0.b.c": (4,), "a.7": (4,)}, {})
def test_a_draft_that_imports(
    ours: dict[str, tuple[int, ...]], theirs: dict[str, tuple[int, ...]] | None, config: dict[str, Any]
) -> None:
    made = draft(KeyList('a"""\n.json', ours), KeyList("b", theirs, config) if theirs is not None else None)
    module = imported(render("drafted", made))
    module["KEYS"].survey({key: SimpleNamespace(shape=shape) for key, shape in ours.items()})
    # Every key is accounted for: a row matches it, or it is listed.
    listed = {*made.unmatched_source}
    for key in ours:
        told = any(row.match(key) for row in module["KEYS"].rows) or key in listed
        assert told or any(row.matches(key) for row in map(Listed, listed)), key


class Listed:
    """A path without a row: all its keys are told by it."""

    def __init__(self, path: str) -> None:
        from converter.mapping.rows import matcher

        self.matches = matcher(path)


MANY = {
    "odd ones": {f"é{i}": (4,) for i in range(50_000)},
    "paths": {f"a{i}.b": (4,) for i in range(50_000)},
    "uneven ones": {f"a.{i}.b.c": (i,) for i in range(1, 20_000)},
    "of one shape": {f"a{i}.fc1": (4, 4) for i in range(200)},
    "long ones that repeat": {"a_b" * 90 + f"{i}": (4, 4) for i in range(40)},
}


@pytest.mark.parametrize("name", MANY)
def test_many_keys_take_no_time(name: str) -> None:
    began = time.process_time()
    theirs = {key[::-1]: shape for key, shape in MANY[name].items()}
    with suppress(InputError):
        imported(render("drafted", draft(KeyList("a", MANY[name]), KeyList("b", theirs))))
    assert time.process_time() - began < 10
