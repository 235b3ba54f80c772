"""Templates: two checkpoints never share a target unnoticed, and what is said then tells them apart."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.conversion.pairs import expand, paired
from converter.conversion.templates import PLACEHOLDERS, fill, same_target
from converter.errors import UsageError

FOLDERS = ("a", "b", "v0", "checkpoints", "Ckpt", "epoch_7", "checkpoint-500", "models", "1-2")
PATHS = st.builds(
    lambda folders, name: "/".join([*folders, name]),
    st.lists(st.sampled_from(FOLDERS), min_size=1, max_size=5),
    st.sampled_from(["e1.pth", "e2.pth", "e1.pt", "1-2.pth"]),
)
TEMPLATES = st.builds(
    lambda names, sign: sign.join(names),
    st.lists(st.sampled_from(PLACEHOLDERS), min_size=1, max_size=3, unique=True),
    st.sampled_from(["/", "-", ""]),
)


@given(st.sets(PATHS, min_size=1, max_size=5), TEMPLATES)
def test_two_checkpoints_never_share_a_target_unnoticed(
    tmp_path_factory: pytest.TempPathFactory, paths: set[str], template: str
) -> None:
    root = tmp_path_factory.mktemp("r")
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    alone = {str(root / path): paired(str(root / path), f"out/{template}").converted for path in paths}
    if len({*alone.values()}) == len(paths):
        pairs = expand(f"{root}/**/*.p*", f"out/{template}")
        assert {pair.original: pair.converted for pair in pairs} == alone  # the same for one and for many
        return
    with pytest.raises(UsageError, match="have the same target") as caught:
        expand(f"{root}/**/*.p*", f"out/{template}")
    one, other = (next(path for path in alone if path in part) for part in str(caught.value).split(" and ", 1))
    assert one != other
    assert alone[one] == alone[other]
    if advice := re.search(r"tell their conversions apart with (\S+)$", str(caught.value)):
        assert fill(advice[1], one) != fill(advice[1], other)
    else:
        assert all(fill(name, one) == fill(name, other) for name in PLACEHOLDERS)


@pytest.mark.parametrize(
    ("one", "other", "advice"),
    [
        ("runs/a/checkpoints/e.pth", "runs/b/checkpoints/e.pth", "apart with {run}/{stem}"),
        ("runs/a/checkpoints/e1.pth", "runs/b/checkpoints/e2.pth", "apart with {run}/{stem}"),
        ("a/e1.pth", "a/e2.pth", "apart with {run}/{stem}"),
        ("/ckpt/e1.pth", "/ckpt/e2.pth", "apart with {stem}"),
        ("a/e.pth", "a/e.safetensors", "apart with {name}"),
        ("a/checkpoint-500/model.pt", "a/checkpoint-1000/model.pt", "apart with {parent}"),
        ("a/step_1/ckpt/e.pt", "a/step_2/ckpt/e.pt", "apart with {grandparent}"),
        ("x/a/v0/ckpt/e.pt", "x/b/v0/ckpt/e.pt", "only the folders a and b: give each of these in a call of its own"),
        ("/v0/ckpt/e.pt", "/a/v0/ckpt/e.pt", "only the folders / and a: "),
    ],
)
def test_what_tells_two_apart_is_named(one: str, other: str, advice: str) -> None:
    words = str(same_target(one, other, "out"))
    assert words.startswith(f"{one} and {other} have the same target out: ")
    assert advice in words


@pytest.mark.parametrize(
    ("path", "run"),
    [
        ("work_dir/checkpoints/epoch_7_step_9000.pth", "work_dir"),
        ("results/000-DiT-XL-2/checkpoints/0050000.pt", "000-DiT-XL-2"),
        ("sigma/CKPTS/e.pth", "sigma"),
        ("sigma/checkpoint-500/model.pt", "sigma"),
        ("sigma/checkpoints/epoch_7_step_9000/model.pt", "sigma"),
        ("sigma/models/weights/e.pth", "sigma"),
        ("sigma/e.pth", "sigma"),
        ("my-checkpoints/e.pth", "my-checkpoints"),
        ("model-2/e.pth", "model-2"),
    ],
)
def test_the_run_is_the_nearest_folder_that_is_not_called_like_checkpoints(path: str, run: str) -> None:
    assert fill("{run}", path) == run


def test_where_the_folder_is_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sigma" / "checkpoints").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "sigma" / "checkpoints")
    assert fill("{run} {parent} {grandparent} {stem}", "e.1.pth") == "sigma checkpoints sigma e.1"


@pytest.mark.parametrize(
    ("template", "path", "words"),
    [
        ("{step}", "a.pth", "{step} is none of {stem}, {name}, {run}, {parent}, {grandparent}"),
        ("{run}", "/checkpoints/a.pth", "/checkpoints/a.pth has no run"),
        ("{grandparent}", "/runs/a.pth", "/runs/a.pth has no grandparent"),
        ("out/{stem}", "runs/...pth", "out/{stem}: the stem of runs/...pth is '..', which leads to another folder"),
        ("{parent}{stem}/x", "runs/..pth", "the stem of runs/..pth is '.'"),
    ],
)
def test_a_placeholder_without_a_value(template: str, path: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        fill(template, path)
    assert words in str(caught.value)
