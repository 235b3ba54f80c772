"""One line of a table: what it may say, which keys it matches, and when two lines are ambiguous."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from converter.mapping import Computed, Copies, Extra, KeyMapping, Parameter, Refused, Sparse, ZeroInit
from converter.mapping.dims import parse_pattern
from converter.mapping.rows import Row, matcher, overlap, spell

# Words that a careless comparison takes for one another.
WORDS = st.sampled_from(["a", "b", "0", "1", "10", "00", "01", "²", "weight", "bias", "{}"])
PATHS = st.lists(WORDS, min_size=1, max_size=4).map(".".join).filter(lambda path: path.count("{}") < 2)
SUFFIXES = ("", ".weight", ".bias")


def keys_of(path: str) -> set[str]:
    """Keys that a path means, with every index that occurs in the words above."""
    indices = (0, 1, 10, 7) if "{}" in path else (None,)
    return {path.replace("{}", str(index)) + suffix for index in indices for suffix in SUFFIXES}


def test_a_rename() -> None:
    row = Row.parse("a.{}.b [3D D]", "x.{}.y")
    assert (row.source, row.targets, row.pattern) == ("a.{}.b", ("x.{}.y",), parse_pattern("3D D"))
    assert not row.sparse
    assert row.part_pattern == row.pattern


@pytest.mark.parametrize(
    ("text", "value", "suffixes"),
    [
        ("a [D]", "x", {".weight", ".bias"}),
        ("a", ("x", "y"), {".weight", ".bias"}),
        ("a", Sparse("x"), {".weight", ".bias"}),
        ("a.weights", "x.rebias", {".weight", ".bias"}),
        ("a [6 D]", Parameter("x"), {""}),
        ("a", Parameter(("x", "y")), {""}),
        ("a", Sparse(Parameter("x")), {""}),
        ("a", Copies(("x", "y")), {".weight", ".bias"}),
        ("a [D E]", Copies(Parameter("x.{}")), {""}),
        ("a.weight", Copies("x.{}.weight"), {""}),
        ("a.weight [D]", "x.weight", {""}),
        ("a.bias", "x", {""}),
        ("a", ("x", "y.weight"), {""}),
        ("a", Extra("x"), None),
        ("a", Computed(print), None),
        ("a", Refused("f", "why"), None),
    ],
)
def test_a_row_says_whether_its_path_is_a_module_or_a_parameter(text: str, value: Any, suffixes: set[str]) -> None:
    row = Row.parse(text, value)
    assert row.suffixes == suffixes
    assert row.sparse is (suffixes is None or isinstance(value, Sparse))


@pytest.mark.parametrize(
    "value", ["x.{}", ("x.{}", "y.{}"), Parameter("x.{}"), Sparse("x.{}"), Copies(("x.{}", "y.{}"))]
)
def test_what_starts_at_zero_is_otherwise_the_same_row(value: Any) -> None:
    plain, marked = Row.parse("a.{} [2D]", value), Row.parse("a.{} [2D]", ZeroInit(value))
    assert (plain.zero_init, marked.zero_init) == (False, True)
    assert replace(marked, zero_init=False) == plain
    keys = KeyMapping({"a.{} [2D]": ZeroInit(value), "c.{}": "d.{}"})
    assert [row.zero_init for row in keys.targets.rows] == [True] * len(plain.targets) + [False]


def test_a_split_shares_out_its_first_dimension() -> None:
    assert Row.parse("a [3D D]", ("x", "y", "z")).part_pattern == parse_pattern("D D")
    assert Row.parse("a [2D]", ("x", "y", "z")).part_pattern == parse_pattern("2D/3")
    assert Row.parse("a [6 D]", ("x", "y")).part_pattern == parse_pattern("3 D")
    assert Row.parse("a", ("x", "y")).part_pattern == ()
    assert Row.parse("a [3D D]", Copies(("x", "y"))).part_pattern == parse_pattern("3D D")


def test_copies_are_written_in_every_block_where_the_source_is_in_none() -> None:
    row = Row.parse("a", Copies(("x.{}.y", "z")))
    assert (type(row.operation), row.spread, row.sparse) == (Copies, True, False)
    assert row.written(None, ".bias", {"x": 2}) == ("x.0.y.bias", "x.1.y.bias", "z.bias")
    row = Row.parse("a.{}", Copies(("x.{}", "y.{}.z")))
    assert (type(row.operation), row.spread) == (Copies, False)
    assert row.written(3, "", {}) == ("x.3", "y.3.z")
    assert not Row.parse("a", "x").spread


def test_a_pattern_is_of_the_weight_and_a_bias_has_its_first_dimension() -> None:
    row = Row.parse("a [3D D]", "x")
    assert row.shape_pattern(".bias") == parse_pattern("3D")
    assert row.shape_pattern(".weight") == row.shape_pattern("") == parse_pattern("3D D")


@pytest.mark.parametrize("value", [Computed(print), Extra(), Extra("x"), Refused("f", "why"), Sparse("x")])
def test_rows_that_may_be_absent(value: Any) -> None:
    assert Row.parse("a", value).sparse


@pytest.mark.parametrize(
    ("text", "value", "says"),
    [
        ("a [D", "x", "ends with"),
        ("a [D]x", "x", "ends with"),
        ("a[D]", "x", "not a dotted path"),
        ("a [D E*2]", "x", "not a dimension"),
        ("", "x", "not a dotted path"),
        ("a..b", "x", "not a dotted path"),
        (".a", "x", "not a dotted path"),
        ("a-b", "x", "not a dotted path"),
        ("a\n", "x", "not a dotted path"),
        ("a{}", "x{}", "not a dotted path"),
        ("a.{}.{}", "x.{}.{}", "at most one"),
        ("a", "x y", "not a dotted path"),
        ("a", ("x", "y."), "not a dotted path"),
        ("a", ("x", 1), "not a dotted path"),
        ("a", Copies("x"), "a single copy is a rename"),
        ("a.{}", Copies(Parameter("x.{}")), "a single copy is a rename"),
        ("a", Copies(()), "a row's value is"),
        ("a", Copies("x y"), "not a dotted path"),
        ("a.{}", Copies(("x.{}", "y")), "on one side only"),
        ("a", Sparse(Copies(("x", "y"))), "a row's value is"),
        ("a", "", "not a dotted path"),
        ("a", (), "a row's value is"),
        ("a", Sparse(()), "a row's value is"),
        ("a", ["x", "y"], "a row's value is"),
        ("a", None, "a row's value is"),
        ("a", Computed, "a row's value is"),
        ("a", Parameter, "a row's value is"),
        ("a", Parameter(()), "a row's value is"),
        ("a", Parameter("x y"), "not a dotted path"),
        ("a.{}", Parameter("x"), "on one side only"),
        ("a.{}", "x", "on one side only"),
        ("a", "x.{}", "on one side only"),
        ("a.{}", ("x.{}", "y"), "on one side only"),
        ("a.{}", Extra(stray="x"), "on one side only"),
        ("a", Extra(stray="x."), "not a dotted path"),
    ],
)
def test_a_line_that_makes_no_sense_is_refused(text: str, value: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Row.parse(text, value)


def test_a_path_is_anchored_and_its_index_has_one_spelling() -> None:
    match = matcher("blocks.{}.fc")
    assert match("blocks.0.fc") == (0, "")
    assert match("blocks.27.fc.weight") == (27, ".weight")
    assert match("blocks.10.fc.bias") == (10, ".bias")
    for other in (
        "blocks.00.fc", "blocks.01.fc", "blocks..fc", "blocks.-1.fc", "blocks.+1.fc", "blocks.1_0.fc", "blocks.٣.fc",
        "xblocks.0.fc", "blocks.0.fcx", "blocks.0xfc", "blocks.0.fc.scale", "blocks.0.fc.weight.weight",
        "blocks.0.fc\n", "blocks.0.fc.weight\n", " blocks.0.fc", f"blocks.{10**18}.fc", "blocks.{}.fc",
    ):  # fmt: skip
        assert match(other) is None, other
    assert matcher("a.b")("a.b.weight") == (None, ".weight")
    assert matcher("a.b")("aXb") is None


@given(PATHS, st.integers(0, 10**18 - 1), st.sampled_from(SUFFIXES))
def test_a_spelt_key_is_matched_as_what_it_was_spelt_from(path: str, index: int, suffix: str) -> None:
    indexed = index if "{}" in path else None
    key = spell(path, indexed, suffix)
    assert matcher(path)(key) == (indexed, suffix)


@settings(max_examples=500)
@given(PATHS, PATHS)
@example("a.{}", "a.00")
@example("a.{}", "a.²")
@example("{}.0", "0.{}")
@example("a", "a.weight")
@example("a.{}.bias", "a.7")
@example("a.weight", "a.bias")
@example("a", "a.{}")
def test_overlap_agrees_with_trying_it(one: str, other: str) -> None:
    both = {key for key in keys_of(one) | keys_of(other) if matcher(one)(key) and matcher(other)(key)}
    assert overlap(one, other) == overlap(other, one) == bool(both)
