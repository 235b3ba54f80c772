"""Names that tell things apart: never two alike, and no longer than that takes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from converter.reports.names import Distinct, short_paths

PATHS = st.lists(st.text(st.sampled_from("ab/\\."), max_size=7), min_size=1, max_size=5)


@given(PATHS)
def test_paths_stay_apart_and_are_as_short_as_that_allows(paths: list[str]) -> None:
    short = short_paths(paths)
    parts = [[part for part in path.replace("\\", "/").split("/") if part not in ("", ".")] or ["."] for path in paths]
    assert [one == other for one in parts for other in parts] == [one == other for one in short for other in short]
    depth = max(name.count("/") for name in short) + 1
    shorter = {tuple(part[-(depth - 1) :]) for part in parts}
    assert depth == 1 or len(shorter) < len(set(map(tuple, parts)))


def test_paths_of_any_system() -> None:
    assert short_paths(["C:\\runs\\a\\out\\", "runs/b/out"]) == ["a/out", "b/out"]
    assert short_paths(["./out", "out/"]) == ["out", "out"]
    assert short_paths(["hf://me/a", "hf://you/a"]) == ["me/a", "you/a"]
    assert short_paths(["/", ""]) == [".", "."]
    assert short_paths([]) == []


@given(st.lists(st.tuples(st.sampled_from(["a", "a (2)", "a (3)", "b"]), st.sampled_from("xy")), max_size=12))
def test_numbered_names_are_distinct(names: list[tuple[str, str]]) -> None:
    number = Distinct()
    numbered = [(scope, number(name, scope)) for name, scope in names]
    assert len(set(numbered)) == len(names)
    assert all(new.startswith(name) for (name, _), (_, new) in zip(names, numbered, strict=True))
