"""Copies of one tensor, in every block or under several paths: all there, all alike, or refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from converter.mapping import Copies, Extra, KeyMapping, MappingError, Parameter, Sparse

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
