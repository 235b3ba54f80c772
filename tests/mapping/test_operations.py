"""The law of every operation, inverse(forward(x)) == x; what is reordered; and copies of one tensor, in every block or
under several paths: all there, all alike, or refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from converter.mapping import (
    Copies,
    Extra,
    KeyMapping,
    MappingError,
    Move,
    Operation,
    Parameter,
    Reorder,
    Sparse,
    ZeroInit,
)
from converter.mapping.dims import parse_pattern
from converter.mapping.operations import Rename, Split
from converter.mapping.rows import Row

SPREAD = KeyMapping({
    "emb.fc [D 4]":    Copies("t.{}.emb.fc"),
    "emb.table [L D]": Copies(Parameter(("t.{}.emb.table", "final.table"))),
    "b.{}.fc [D D]":   "t.{}.fc",
    "b.{}.g [D]":      Copies(Parameter(("t.{}.g1", "t.{}.g2"))),
})  # fmt: skip


def spread(depth: int = 4) -> dict[str, np.ndarray]:
    made = {"emb.fc.weight": np.arange(12.0).reshape(3, 4), "emb.fc.bias": np.arange(3.0)}
    made["emb.table"] = np.full((5, 3), np.nan)
    for i in range(depth):
        made |= {f"b.{i}.fc.weight": np.eye(3) * i, f"b.{i}.fc.bias": np.ones(3), f"b.{i}.g": np.full(3, i)}
    return made


def test_one_tensor_in_every_block_of_the_target() -> None:
    made = SPREAD(spread())
    assert len(made) == 4 * 2 + (4 + 1) + 4 * 2 + 4 * 2
    plan = SPREAD.plan(spread())
    (move,) = [move for move in plan.moves if move.sources == ("emb.table",)]
    assert move.targets == (*(f"t.{i}.emb.table" for i in range(4)), "final.table")
    assert isinstance(move.operation, Copies)
    assert (len(move.writes), plan.dims["L"], plan.stacks) == (5, 5, {"b": 4})
    assert same_bits(SPREAD.inverse(made), spread())
    assert SPREAD.plan_back(made).stacks == {"b": 4}


def same_bits(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(one[key].tobytes() == other[key].tobytes() for key in one)


def test_copies_that_are_missing_or_too_many_are_refused_block_by_block() -> None:
    made = SPREAD(spread())
    lost = {key: array for key, array in made.items() if key not in ("t.1.emb.fc.weight", "t.2.emb.fc.weight")}
    with pytest.raises(MappingError) as caught:
        SPREAD.inverse(lost)
    assert caught.value.problems == ["missing t.{1..2}.emb.fc.weight"]
    whole = {key: array for key, array in made.items() if not key.startswith("t.3.emb.fc")}
    with pytest.raises(MappingError) as caught:
        SPREAD.plan_back(whole)
    assert caught.value.problems == ["missing t.{3}.emb.fc"]
    extra = made | {"t.4.emb.fc.weight": made["t.0.emb.fc.weight"], "t.4.emb.fc.bias": made["t.0.emb.fc.bias"]}
    with pytest.raises(MappingError, match=r"missing t\.\{4\}\.fc"):
        SPREAD.inverse(extra)


def test_copies_of_another_shape_or_dtype_are_named_against_the_others() -> None:
    keys = KeyMapping({"e": Copies(Parameter("t.{}.e")), "b.{}": Parameter("t.{}.b")})
    made = keys({"e": np.zeros(3)} | {f"b.{i}": np.zeros(1) for i in range(5)})
    with pytest.raises(MappingError) as caught:
        keys.plan_back(made | {"t.2.e": np.zeros(4), "t.3.e": np.zeros(4), "t.4.e": np.zeros(3, np.float32)})
    assert caught.value.problems == [
        "t.{2..3}.e has shape [4], and the other copies of e have [3]",
        "t.4.e has dtype float32, and the other copies of e have float64",
    ]


def test_copies_that_differ_are_folded_and_the_majority_is_believed() -> None:
    made = SPREAD(spread())
    wrong = {f"t.{i}.emb.fc.bias": np.full(3, 7.0 + (i == 3)) for i in (1, 3)}
    with pytest.raises(MappingError) as caught:
        SPREAD.inverse(made | wrong)
    said = "is not what t.0.emb.fc.bias is, and both have to be copies of emb.fc.bias"
    assert caught.value.problems == [f"t.{{1,3}}.emb.fc.bias {said}"]
    with pytest.raises(MappingError, match=r"^t\.0\.emb\.fc\.bias is not what t\.1\.emb\.fc\.bias is"):
        SPREAD.inverse(made | {"t.0.emb.fc.bias": np.full(3, 7.0)})


@pytest.mark.parametrize("library", [np, torch], ids=["numpy", "torch"])
def test_copies_are_compared_bit_by_bit(library: Any) -> None:
    keys = KeyMapping({"a": Parameter("x"), "e": Copies(Parameter(("y", "z")))})

    def there(value: Any) -> Any:
        return library.asarray(value, dtype=library.float32)

    for one in ([float("nan"), 0.0], [[1.0], [2.0]], [], 3.0):
        back = keys.inverse({"x": there(1.0), "y": there(one), "z": there(one)})
        assert np.array_equal(np.asarray(back["e"]), np.asarray(there(one)), equal_nan=True)
    with pytest.raises(MappingError, match="z is not what y is, and both have to be copies of e"):
        keys.inverse({"x": there(1.0), "y": there([0.0]), "z": there([-0.0])})
    turned = there([[1.0, 2.0], [3.0, 4.0]]).T  # not contiguous
    assert keys.inverse({"x": there(1.0), "y": turned, "z": there([[1.0, 3.0], [2.0, 4.0]])})["e"] is turned


def test_copies_of_bfloat16_parameters() -> None:
    keys = KeyMapping({"e": Copies(Parameter(("y", "z")))})
    parameters = {key: torch.nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16)) for key in "yz"}
    assert keys.inverse(parameters)["e"] is parameters["y"]
    with pytest.raises(MappingError, match="z is not what y is"):
        keys.inverse(parameters | {"z": torch.zeros(2, 2, dtype=torch.bfloat16)})


def test_what_is_no_array_is_not_compared() -> None:
    class Held:
        shape, dtype = (2,), "F32"

    keys = KeyMapping({"e": Copies(Parameter(("y", "z")))})
    with pytest.raises(TypeError, match="a Held cannot be compared: give arrays"):
        keys.inverse({"y": Held(), "z": Held()})
    held = Held()
    assert keys.inverse({"y": held, "z": held}) == {"e": held}  # the very same needs no comparison


def test_a_hole_up_to_a_huge_index_costs_nothing() -> None:
    state = spread() | {f"b.{10**17}.fc.weight": np.eye(3)}
    with pytest.raises(MappingError, match=r"missing b\.\{4\.\.99999999999999999\}\.fc"):
        SPREAD.plan(state)
    with pytest.raises(MappingError, match=r"missing t\.\{4\.\.99999999999999999\}\.fc"):
        SPREAD.plan_back(SPREAD(spread()) | {f"t.{10**17}.fc.weight": np.eye(3)})


def test_a_copy_in_every_block_needs_a_row_that_says_how_many() -> None:
    for others in ({}, {"b.{}": Sparse("u.{}")}, {"b.{}": Extra()}, {"b": "u"}):
        with pytest.raises(ValueError, match="no row says how many blocks there are"):
            KeyMapping({"e": Copies("t.{}.e")} | others)
    with pytest.raises(ValueError, match="no row says how many blocks there are"):
        KeyMapping({"e": Copies("t.{}.e")}, {"g": {"b.{}": "u.{}"}})
    optional = {"g": {"e": Copies(Parameter("t.{}.e")), "b.{}": Parameter("u.{}")}}
    keys = KeyMapping({"a": Parameter("x")}, optional)
    whole = {"a": np.zeros(1), "e": np.ones(2), "b.0": np.zeros(1), "b.1": np.zeros(1)}
    assert sorted(keys(whole)) == ["t.0.e", "t.1.e", "u.0", "u.1", "x"]
    assert same_bits(keys.inverse(keys(whole)), whole)
    assert sorted(keys({"a": np.zeros(1)})) == ["x"]


# The laws of every operation.
@st.composite
def operations(draw: st.DrawFn) -> tuple[Operation, int]:
    """An operation, and how many tensors the target has of it."""
    kind, count = draw(st.sampled_from([Rename, Split, Copies, Reorder])), draw(st.integers(1, 4))
    count = 1 if kind is Rename else count
    paths = tuple(f"t{i}" for i in range(count))
    if kind is Reorder:
        groups = count * draw(st.integers(1 if count > 1 else 2, 3))
        return Reorder(paths, tuple(draw(st.permutations(range(groups))))), count
    return kind(paths), count


ARRAYS = hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(0, 3)), elements=st.integers(-9, 9))


@given(operations(), ARRAYS, st.sampled_from([np, torch]))
def test_the_way_back_of_every_operation(made: tuple[Operation, int], part: Any, library: Any) -> None:
    operation, count = made
    groups = operation.groups(count)
    source = np.concatenate([part + 100 * i for i in range(groups)])
    source = library.asarray(source)
    parts = operation.forward(source, count)
    assert len(parts) == count
    assert not operation.misfit(tuple(source.shape), count)
    assert {tuple(each.shape) for each in parts} == {(int(source.shape[0] * operation.share(count)), part.shape[1])}
    by_key = {f"t{i}": each for i, each in enumerate(parts)}
    assert list(operation.unlike("s", by_key, count)) == []
    assert operation.disagreeing("s", [*by_key], parts) == []
    back = operation.inverse(parts)
    assert type(back) is type(source)
    assert np.array_equal(np.asarray(back), np.asarray(source))
    # The other law: what is in the target is all that the source gives.
    again = operation.forward(back, count)
    assert all(np.array_equal(np.asarray(one), np.asarray(other)) for one, other in zip(parts, again, strict=True))


@given(operations())
def test_every_group_of_rows_is_somewhere_as_often_as_all_others(made: tuple[Operation, int]) -> None:
    operation, count = made
    held = [group for groups in operation.contents(count) for group in groups]
    times = len(operation.passes(count))
    assert sorted(held) == sorted([*range(operation.groups(count))] * times)
    assert operation.in_order(count) == (held == [*range(operation.groups(count))])
    assert operation.must_agree == isinstance(operation, Copies)


@given(operations())
def test_what_is_written_both_ways_is_what_becomes_of_arrays(made: tuple[Operation, int]) -> None:
    """In rows, as files are written, without an array library."""
    operation, count = made
    row = replace(Row.parse("s", Parameter("t")), operation=operation)
    names = tuple(f"t{i}" for i in range(count))
    rows = {"s": [f"row {i}" for i in range(2 * operation.groups(count))]}
    there = written(Move(("s",), names, row), rows)
    arrays = operation.forward(np.array(rows["s"]), count)
    assert there == {name: list(array) for name, array in zip(names, arrays, strict=True)}
    assert written(Move(names, ("s",), row, back=True), there) == rows


def written(move: Move, rows: dict[str, list[str]]) -> dict[str, list[str]]:
    made: dict[tuple[str, int], list[str]] = {}
    for write in move.writes:
        for source, runs in zip(write.sources, write.runs, strict=True):
            size = len(rows[source]) // len(runs)
            for number, (target, group) in enumerate(runs):
                assert (write.targets[target], group) not in made
                made[write.targets[target], group] = rows[source][number * size : (number + 1) * size]
    return {
        name: [row for key, group in sorted(made) if key == name for row in made[key, group]]
        for name in dict.fromkeys(key for key, _ in made)
    }


# Reorder.
MOVED = KeyMapping({
    "b.{}.mod [2D D]":  ZeroInit(Reorder("t.{}.mod", (1, 0))),
    "b.{}.kv [2D]":     Reorder(Parameter(("t.{}.v", "t.{}.k")), (1, 0)),
    "b.{}.ad [6 D]":    Sparse(Reorder(Parameter("t.{}.ad"), (3, 4, 5, 0, 1, 2))),
})  # fmt: skip


def moved() -> dict[str, np.ndarray]:
    made = {}
    for i in range(3):
        made |= {f"b.{i}.mod.weight": np.arange(24.0).reshape(6, 4)[:, :3] + i, f"b.{i}.mod.bias": np.arange(6.0)}
        made[f"b.{i}.kv"] = np.arange(6.0) * i
    return made | {"b.1.ad": np.arange(18.0).reshape(6, 3)}


def test_rows_in_another_order() -> None:
    made = MOVED(moved())
    assert list(made["t.0.mod.bias"]) == [3, 4, 5, 0, 1, 2]
    assert (list(made["t.1.k"]), list(made["t.1.v"])) == ([0, 1, 2], [3, 4, 5])
    assert list(made["t.1.ad"][:, 0]) == [9, 12, 15, 0, 3, 6]
    assert "t.0.ad" not in made
    assert same_bits(MOVED.inverse(made), moved())
    assert MOVED.targets.rows[0].pattern == parse_pattern("2D D")
    assert MOVED.targets.rows[1].pattern == parse_pattern("D")
    assert [row.zero_init for row in MOVED.rows] == [True, False, False]
    assert MOVED.rows[2].sparse


def test_rows_that_are_no_equal_groups_are_refused_both_ways() -> None:
    keys = KeyMapping({"a": Reorder(Parameter("x"), (1, 2, 0))})
    for shape in ((4, 2), ()):
        said = f"has shape {list(shape)}, which does not split into 3"
        with pytest.raises(MappingError) as caught:
            keys.plan({"a": np.zeros(shape)})
        assert caught.value.problems == [f"a {said}"]
        with pytest.raises(MappingError) as caught:
            keys.plan_back({"x": np.zeros(shape)})
        assert caught.value.problems == [f"x {said}"]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (Reorder("x", (0, 2)), r"\(0, 2\) is not an order of two or more groups"),
        (Reorder("x", (0, 0)), "is not an order"),
        (Reorder("x"), "is not an order"),
        (Reorder("x", (0,)), "is not an order"),
        (Reorder("x", [1, 0]), "is not an order"),
        (Reorder("x", 2), "is not an order"),
        (Reorder(("x", "y"), (2, 1, 0)), "3 groups of rows do not divide into 2 targets"),
        (Reorder("x.{}", (1, 0)), "an index on one side only cannot be undone"),
        (Reorder((), (1, 0)), "a row's value is"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused(value: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        KeyMapping({"a": value})


def test_what_has_no_array_library_is_not_reordered() -> None:
    class Held:
        shape, dtype = (2,), "F32"

        def __getitem__(self, rows: slice) -> Held:
            return self

    with pytest.raises(TypeError, match="a Held cannot be concatenated: give arrays"):
        KeyMapping({"a": Reorder(Parameter("x"), (1, 0))})({"a": Held()})
