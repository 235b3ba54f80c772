"""Shape patterns: what they accept, what they reveal, and that one wrong tensor does not make the others wrong."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.mapping.dims import Dim, bind, mismatch, parse_pattern

DIMS = st.builds(
    lambda symbol, top, bottom: Dim(symbol, Fraction(top, bottom if symbol else 1)),
    st.sampled_from(["", "D", "p", "K2"]),
    st.integers(1, 12),
    st.integers(1, 6),
)


@pytest.mark.parametrize(
    ("text", "symbol", "factor"),
    [
        ("256", "", Fraction(256)),
        ("D", "D", Fraction(1)),
        ("3D", "D", Fraction(3)),
        ("D/3", "D", Fraction(1, 3)),
        ("2D/3", "D", Fraction(2, 3)),
    ],
)
def test_a_dimension_is_a_number_or_a_share_of_a_symbol(text: str, symbol: str, factor: Fraction) -> None:
    assert Dim.parse(text) == Dim(symbol, factor)
    assert str(Dim.parse(text)) == text


@pytest.mark.parametrize("text", ["", "D D", "/3", "6/3", "D/0", "D3/", "-D", "3.5", "D*2", "0", "0D", "٣", "[D"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a dimension"):
        Dim.parse(text)


@given(DIMS)
def test_what_is_printed_is_what_is_parsed(dim: Dim) -> None:
    assert Dim.parse(str(dim)) == dim


@given(DIMS, st.integers(1, 500))
def test_solving_undoes_the_value(dim: Dim, bound: int) -> None:
    size = dim.value({dim.symbol: bound})
    exact = dim.factor * (bound if dim.symbol else 1)
    assert size == (exact if exact.denominator == 1 else None)
    if dim.symbol and size is not None:
        assert dim.solve(size) == bound


def test_an_unknown_symbol_and_a_broken_share_have_no_value() -> None:
    assert Dim.parse("D").value({}) is None
    assert Dim.parse("D/3").value({"D": 10}) is None
    assert Dim("", Fraction(7, 2)).value({}) is None
    assert Dim.parse("3D").solve(10) is None


def test_the_majority_decides_and_its_first_tensor_is_the_evidence() -> None:
    pattern = parse_pattern("2D D")
    shapes = [("wrong", pattern, (10, 5)), ("a", pattern, (8, 4)), ("b", pattern, (8, 4))]
    assert bind(shapes) == ({"D": 4}, {"D": "a [8, 4]"})


def test_of_equal_votes_the_first_counts() -> None:
    pattern = parse_pattern("D")
    assert bind([("a", pattern, (4,)), ("b", pattern, (5,))])[0] == {"D": 4}
    assert bind([("b", pattern, (5,)), ("a", pattern, (4,))])[0] == {"D": 5}


def test_what_shows_nothing_does_not_vote() -> None:
    shapes = [
        ("flat", parse_pattern("D D"), (16,)),
        ("broken", parse_pattern("3E"), (10,)),
        ("0", parse_pattern("F"), (0,)),
    ]
    assert bind(shapes) == ({}, {})


@given(st.lists(DIMS, min_size=1, max_size=4), st.data())
def test_a_shape_fits_exactly_where_every_size_does(pattern: list[Dim], data: st.DataObject) -> None:
    dims = {"D": 12, "p": 60, "K2": 420}
    wanted = [dim.value(dims) for dim in pattern]
    shape = tuple(data.draw(st.sampled_from([w or 1, 1, 7])) for w in wanted)
    assert (mismatch(tuple(pattern), shape, dims) == "") == (list(shape) == wanted)


def test_a_mismatch_says_what_was_wanted_and_what_the_table_says() -> None:
    assert mismatch(parse_pattern("3D D"), (9, 3), {"D": 4}) == "[12, 4] (table: [3D D])"
    assert mismatch(parse_pattern("3D D"), (4, 12), {"D": 4}) == "[12, 4] (table: [3D D])"  # transposed
    assert mismatch(parse_pattern("D/3 L"), (9, 3), {"D": 4}) == "[?, ?] (table: [D/3 L])"
    assert mismatch(parse_pattern("D D"), (16,), {"D": 4}) == "[4, 4] (table: [D D])"
    assert mismatch(parse_pattern("D"), (4, 1), {"D": 4}) == "[4] (table: [D])"
