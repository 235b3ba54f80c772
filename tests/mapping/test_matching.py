"""Keys against rows: everything that does not fit is said, folded, and nothing else is."""

from __future__ import annotations

import time

import numpy as np
import pytest
from makers import within

from converter.mapping import Extra, KeyMapping, Parameter, Plan, Refused, Sparse

KEYS = KeyMapping(
    {
        "embed": "e",
        "blocks.{}.fc": "b.{}.fc",
        "blocks.{}.table": Parameter("b.{}.table"),
        "blocks.{}.adapter": Sparse("b.{}.adapter"),
        "blocks.{}.norm": Refused("norms", "no home for them"),
        "null": Extra(),
    },
    {"sizes": {"size.0": "s.a", "size.2": "s.b"}},
)


class Scalar:
    shape = (1,)


def module(*paths: str) -> list[str]:
    return [path + suffix for path in paths for suffix in (".weight", ".bias")]


def net(depth: int = 3) -> list[str]:
    keys = module("embed")
    for i in range(depth):
        keys += [*module(f"blocks.{i}.fc"), f"blocks.{i}.table"]
    return keys


def survey(keys: list[str]) -> Plan:
    return KEYS.survey(dict.fromkeys(keys, Scalar()))


def problems(keys: list[str]) -> list[str]:
    return survey(keys).problems


def test_what_fits_has_no_problems() -> None:
    plan = survey(net())
    assert plan.problems == []
    assert (plan.stacks, plan.groups, plan.features) == ({"blocks": 3}, set(), {})
    shown = KeyMapping({"embed [D 4]": "e"}).plan({"embed.weight": np.ones((8, 4)), "embed.bias": np.ones(8)}).shown
    assert shown("D") == (8, "embed.weight [8, 4]")
    assert shown("F") == (None, "no tensor shows it")


def test_optional_parts_may_be_there() -> None:
    plan = survey(net() + module("size.0", "size.2", "blocks.1.adapter") + ["null"])
    assert plan.problems == []
    assert plan.groups == {"sizes"}


@pytest.mark.parametrize(
    ("gone", "says"),
    [
        (module("embed"), ["missing embed"]),
        (["embed.bias"], ["missing embed.bias"]),
        (["blocks.1.fc.bias"], ["missing blocks.1.fc.bias"]),
        (["blocks.0.fc.bias", "blocks.2.fc.bias"], ["missing blocks.{0,2}.fc.bias"]),
        (["blocks.1.table"], ["missing blocks.{1}.table"]),
        ([key for key in net() if ".1." in key], ["missing blocks.{1}.fc", "missing blocks.{1}.table"]),
        ([key for key in net() if "table" in key], ["missing blocks.{0..2}.table"]),
    ],
)
def test_what_is_missing_is_named(gone: list[str], says: list[str]) -> None:
    assert problems([key for key in net() if key not in gone]) == says


def test_an_empty_state_dict_misses_everything() -> None:
    assert problems([]) == ["missing embed", "missing blocks.{0}.fc", "missing blocks.{0}.table"]


def test_an_unknown_key_comes_with_the_nearest_row() -> None:
    assert problems([*net(), "blocks.0.fcc.weight", "blocks.1.fcc.weight"]) == [
        "unknown key blocks.{0..1}.fcc.weight (nearest row: blocks.{}.fc)"
    ]
    assert problems([*net(), "zzz"]) == ["unknown key zzz"]
    assert problems([*net(), "blocks.01.fc.weight"])[0].startswith("unknown key blocks.01.fc.weight")


def test_a_group_that_is_there_in_part() -> None:
    assert problems(net() + module("size.2")) == ["missing size.0 (the sizes group is incomplete)"]
    assert problems([*net(), *module("size.2"), "size.0.weight"]) == ["missing size.0.bias"]


def test_a_path_is_a_module_or_a_parameter_as_the_row_says() -> None:
    keys = [key for key in net() if key != "blocks.1.table"] + module("blocks.1.table")
    assert problems(keys) == [
        "missing blocks.1.table",
        "unexpected blocks.1.table.bias",
        "unexpected blocks.1.table.weight",
    ]
    assert problems([*net(), "embed"]) == ["unexpected embed"]
    # The file alone, alike in every block, does not make it so.
    assert problems([key for key in net() if not key.startswith("embed")] + ["embed"]) == [
        "missing embed.bias",
        "missing embed.weight",
        "unexpected embed",
    ]
    keys = [key for key in net(2) if "table" not in key] + module("blocks.0.table", "blocks.1.table")
    assert problems(keys) == [
        "missing blocks.{0..1}.table",
        "unexpected blocks.{0..1}.table.bias",
        "unexpected blocks.{0..1}.table.weight",
    ]


def test_a_row_that_only_keeps_what_it_finds_takes_either_but_not_a_part_or_a_mixture() -> None:
    assert problems([*net(), *module("null")]) == []
    assert problems([*net(), "null.weight"]) == ["missing null.bias"]
    assert problems([*net(), "null", "null.weight"]) == ["unexpected null.weight"]


def test_a_sparse_row_may_be_absent_but_is_whole_where_it_is() -> None:
    assert problems([*net(), "blocks.2.adapter.weight"]) == ["missing blocks.2.adapter.bias"]


def test_a_sparse_row_does_not_make_blocks() -> None:
    assert problems(net() + module("blocks.2.adapter")) == []
    assert problems(net() + module("blocks.3.adapter", "blocks.9.adapter")) == [
        "unexpected blocks.{3,9}.adapter.bias (there are 3 blocks)",
        "unexpected blocks.{3,9}.adapter.weight (there are 3 blocks)",
    ]


def test_a_refused_feature_is_named_with_its_reason_and_its_keys() -> None:
    plan = survey(net() + module("blocks.0.norm", "blocks.2.norm"))
    assert plan.problems == ["norms: no home for them"]
    assert plan.features == {"norms": ["blocks.{0,2}.norm.bias", "blocks.{0,2}.norm.weight"]}


def test_the_order_of_the_keys_shows_nowhere() -> None:
    keys = [*net(12), *module("blocks.2.norm", "blocks.10.norm", "blocks.11.adapter", "size.0"), "b", "a"]
    one, other = survey(keys), survey(keys[::-1])
    assert one.problems != []
    assert repr(one) == repr(other)


def test_an_absurd_index_costs_no_time() -> None:
    with within(30):
        said = problems([*net(), f"blocks.{10**18 - 1}.table"])
    assert said == [f"missing blocks.{{3..{10**18 - 1}}}.fc", f"missing blocks.{{3..{10**18 - 2}}}.table"]


def test_hints_for_many_unknown_keys_take_no_time() -> None:
    """What is most alike was looked for anew for each of 100,000 keys; an error shows a dozen."""
    keys = [f"blocks.0.table{i}.weight" for i in range(20_000)]
    began = time.process_time()
    said = problems(keys)
    assert time.process_time() - began < 4
    assert any("(nearest row: blocks.{}.table)" in problem for problem in said)
    assert len([problem for problem in said if problem.startswith("unknown key")]) == len(keys)
