"""Many keys in few words, and none of them lost or shown as another."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from converter.errors import InputError
from converter.mapping.fold import SHOWN, MappingError, fold, folded, holes, ranges

INDICES = st.lists(st.integers(0, 40))


def read(runs: str) -> list[int]:
    """The numbers that `0..2,5` stands for."""
    found: list[int] = []
    for run in filter(None, runs.split(",")):
        first, _, last = run.partition("..")
        found += range(int(first), int(last or first) + 1)
    return found


def expand(pattern: str) -> list[str]:
    """The keys that a pattern of `fold` stands for."""
    match = re.fullmatch(r"(.*)\{([\d.,]+)\}(.*)", pattern)
    return [f"{match[1]}{index}{match[3]}" for index in read(match[2])] if match else [pattern]


def test_ranges_are_runs_with_both_ends() -> None:
    assert ranges([5, 0, 1, 2]) == "0..2,5"
    assert ranges([7]) == "7"
    assert ranges([3, 3, 4]) == "3..4"
    assert ranges([]) == ""


@given(INDICES)
def test_ranges_can_be_read_back(indices: list[int]) -> None:
    assert read(ranges(indices)) == sorted(set(indices))


@given(INDICES, st.integers(0, 45))
def test_holes_are_what_is_not_there(indices: list[int], stop: int) -> None:
    there = [index for index in indices if index < stop]
    assert read(holes(there, stop)) == [index for index in range(stop) if index not in there]


def test_holes_of_an_absurd_index_are_not_listed() -> None:
    assert holes([0, 10**18 - 1], 10**18) == f"1..{10**18 - 2}"


def test_keys_that_differ_in_their_first_number_are_one_pattern() -> None:
    keys = [f"blocks.{i}.mlp.fc{n}.weight" for i in (0, 1, 2, 5) for n in (1, 2)] + ["t_block.1.bias", "x"]
    assert fold(keys) == ["blocks.{0..2,5}.mlp.fc1.weight", "blocks.{0..2,5}.mlp.fc2.weight", "t_block.1.bias", "x"]
    assert fold(["a.0", "a.1", "0.b", "1.b", "a.", "3", "4"]) == ["a.{0..1}", "{0..1}.b", "a.", "{3..4}"]
    assert folded(["a.7.b", "a.9.b"]) == {"a.{7,9}.b": ["a.7.b", "a.9.b"]}


def test_only_the_first_number_is_folded() -> None:
    assert fold(["b.0.mlp.0.w", "b.0.mlp.2.w", "b.1.mlp.0.w"]) == ["b.{0..1}.mlp.0.w", "b.0.mlp.2.w"]


def test_an_index_written_otherwise_is_not_shown_as_another_key() -> None:
    assert fold(["blocks.01.a", "blocks.1.a"]) == ["blocks.01.a", "blocks.1.a"]
    assert fold(["blocks.٣.a"]) == ["blocks.٣.a"]
    assert fold([f"blocks.{10**30}.a"]) == [f"blocks.{10**30}.a"]


PARTS = st.sampled_from(["a", "b", "0", "1", "2", "10", "01", "weight", "{}", ""])


@given(st.lists(st.lists(PARTS, min_size=1, max_size=5).map(".".join), unique=True))
def test_every_key_stands_under_exactly_one_pattern_which_reads_back_as_it(keys: list[str]) -> None:
    groups = folded(keys)
    assert sorted(key for group in groups.values() for key in group) == sorted(keys)
    for pattern, group in groups.items():
        assert sorted(expand(pattern)) == sorted(group)


@given(st.lists(st.text(max_size=300), unique=True))
def test_no_text_is_lost_or_printed_raw(keys: list[str]) -> None:
    groups = folded(keys)
    assert sorted(key for group in groups.values() for key in group) == sorted(keys)
    assert all(pattern.isprintable() and len(pattern) < 2000 for pattern in groups)


def test_keys_that_look_alike_once_they_are_cut_are_both_kept() -> None:
    long = ["a" * 500 + end for end in "xy"]
    (group,) = folded(long).values()
    assert group == long


def test_control_characters_are_escaped() -> None:
    assert fold(["a.0.\x1b[31m", "a.1.\x1b[31m"]) == [r"a.{0..1}.\x1b[31m"]
    assert fold(["a.0.\n", "a.1.\n"]) == [r"a.{0..1}.\n"]


def test_a_mapping_error_lists_all_and_shows_the_first() -> None:
    problems = [f"problem {i}." for i in range(SHOWN + 3)]
    error = MappingError(problems)
    assert error.problems == problems
    assert str(error) == "; ".join([*problems[:SHOWN], "and 3 more"])
    assert str(MappingError(problems[:SHOWN])) == "; ".join(problems[:SHOWN])
    assert isinstance(error, InputError)
    assert error.exit_code == 3
