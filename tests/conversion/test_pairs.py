"""Which checkpoints are compared with which folders: every one that was meant, in order, and never none."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter import system
from converter.conversion.pairs import Pair, check_targets_unique, expand, pair_up, several
from converter.conversion.training_folders import is_model, natural_order
from converter.errors import UsageError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def shown(pairs: list[Pair]) -> list[tuple[str, str]]:
    return [(pair.original, pair.converted) for pair in pairs]


# (what is there, original, converted, the pairs)
TAKEN: dict[str, tuple[str, str, str, list[tuple[str, str]]]] = {
    "one": ("a.pth", "a.pth", "out", [("a.pth", "out")]),
    "one that is not there, which is left to the reader": ("", "a.pth", "out", [("a.pth", "out")]),
    "a glob, in natural order": (
        "runs/b/epoch_2.pth runs/a/epoch_10.pth runs/a/epoch_9.pth runs/a/notes.txt",
        "runs/*/epoch_*.pth",
        "converted/{parent}/{stem}",
        [(f"runs/{a}.pth", f"converted/{a}") for a in ("a/epoch_9", "a/epoch_10", "b/epoch_2")],
    ),
    "a glob of the layout that training writes": (
        "runs/b/checkpoints/epoch_7_step_9000.pth runs/a/checkpoints/epoch_7_step_9000.pth runs/a/config.py",
        "runs/*/checkpoints/epoch_*.pth",
        "converted/{run}/{stem}",
        [(f"runs/{run}/checkpoints/epoch_7_step_9000.pth", f"converted/{run}/epoch_7_step_9000") for run in "ab"],
    ),
    "a folder of runs": (
        "runs/b/checkpoints/1.pth runs/a/checkpoints/1.pth runs/c/2.pth runs/a/checkpoints/optimizer.pt",
        "runs",
        "{grandparent}-{run}/{stem}",
        [
            ("runs/a/checkpoints/1.pth", "a-a/1"),
            ("runs/b/checkpoints/1.pth", "b-b/1"),
            ("runs/c/2.pth", "runs-c/2"),
        ],
    ),
    "a folder of checkpoints with what they became": (
        "runs/9.pth runs/9.safetensors runs/10.pth runs/11.safetensors",
        "runs",
        "runs/{stem}.safetensors",
        [(f"runs/{name}", f"runs/{name[:-4]}.safetensors") for name in ("9.pth", "10.pth")]
        + [("runs/11.safetensors", "runs/11.safetensors")],
    ),
    "a glob through folders": (
        "runs/a/deep/1.pth runs/2.pth",
        "runs/**/*.pth",
        "{name}",
        [("runs/2.pth", "2.pth"), ("runs/a/deep/1.pth", "1.pth")],
    ),
    "a folder": (
        "runs/9.pth runs/10.PT runs/a.bin runs/b.safetensors runs/log.txt runs/.hidden.pth runs/folder.pth/x",
        "runs",
        "{name}",
        [(f"runs/{name}", name) for name in ("9.pth", "10.PT", "a.bin", "b.safetensors")],
    ),
    "a glob of model folders and others": (
        "runs/checkpoint-2/model.safetensors runs/checkpoint-10/model.safetensors runs/checkpoint-logs/a.txt",
        "runs/checkpoint-*",
        "{name}",
        [(f"runs/checkpoint-{n}", f"checkpoint-{n}") for n in (2, 10)],
    ),
    # What exists literally is taken literally.
    "brackets": ("ckpt[1].pth ckpt1.pth", "ckpt[1].pth", "out", [("ckpt[1].pth", "out")]),
    "a question mark": ("what?.pth whats.pth", "what?.pth", "out", [("what?.pth", "out")]),
    "brackets before a glob": ("run[2]/a.pth run2/c.pth", "run[2]/*.pth", "{stem}", [("run[2]/a.pth", "a")]),
    "brackets of a folder": ("run[2]/a.pth run2/c.pth", "run[2]", "{stem}", [("run[2]/a.pth", "a")]),
    "braces of a target": ("a.pth {stem}/x", "a.pth", "{stem}", [("a.pth", "{stem}")]),
    "braces of a name": ("{name}.pth", "{name}.pth", "out/{stem}", [("{name}.pth", "out/{name}")]),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken(name: str, here: Path) -> None:
    files, original, converted, pairs = TAKEN[name]
    touch(*files.split())
    options = {"weights": "ema"}
    found = expand(original, converted, options=options)
    assert found == [Pair(*pair, options) for pair in pairs]
    assert pair_up(["b.pth", original], ["B", converted], options) == [
        Pair(*pair, options) for pair in [("b.pth", "B"), *pairs]
    ]


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model_index.json",
        "conversion.json",
        "transformer/anything",
        "pytorch_model.bin",
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.safetensors.index.json",
        "adapter_config.json",
        "__0_0.distcp",
    ],
)
def test_a_model_folder_is_one_checkpoint(here: Path, name: str) -> None:
    touch(f"v1.5/{name}", "v1.5/more.pth")
    assert is_model(Path("v1.5"))
    # A folder's name has no suffix that could be taken off.
    assert shown(expand("v1.5", "out/{stem}")) == [("v1.5", "out/v1.5")]


def test_a_base_is_literal(here: Path) -> None:
    touch("{stem}*/a.pth")
    base = str(here / "{stem}*")
    assert shown(expand("*.pth", "{stem}", base=base)) == [(f"{base}/a.pth", f"{base}/a")]
    touch("team/runs/a/checkpoints/1.pth")
    assert shown(expand("runs", "c/{run}/{stem}", base="team")) == [("team/runs/a/checkpoints/1.pth", "team/c/a/1")]
    touch("b.pth")
    assert shown(expand(str(here / "b.pth"), "/x", base=base)) == [(str(here / "b.pth"), "/x")]


@pytest.mark.parametrize(
    ("original", "converted", "words"),
    [
        ("runs/*.ckpt", "{stem}", "runs/*.ckpt: matches no checkpoint"),
        ("runs/em*", "{stem}", "runs/em*: matches no checkpoint, only folders without a model"),
        ("runs/*/epoch_*.pth", "{stem}", "runs/*/epoch_*.pth: matches no checkpoint; there is runs/1.pth"),
        ("models", "{stem}", "in it, in the folders in it, or in their checkpoints/; model folders are given as 'mode"),
        ("runs/empty", "{stem}", "runs/empty: no checkpoint (.pth, .pt, .ckpt, .bin, .safetensors) in it"),
        ("runs/*.pth", "out", "runs/1.pth and runs/2.pth have the same target out"),
        ("runs/*.pth", "runs/1.pth", "runs/1.pth and runs/2.pth have the same target runs/1.pth"),
        ("runs/*.pth", "out/{parent}", "have the same target out/runs"),
        ("runs/*.pth", "out/{parent}/../{parent}", "have the same target"),
        ("runs/*.pth", "out/{step}", "{step} is none of {stem}, {name}, {run}, {parent}, {grandparent}"),
        ("/no-such.pth", "{parent}", "/no-such.pth has no parent"),
        ("", "out", "the original path is empty"),
        ("a.pth", "", "the converted path is empty"),
        ("a\0.pth", "out", "the original path is not a path"),
    ],
)
def test_what_is_refused(here: Path, original: str, converted: str, words: str) -> None:
    touch("runs/1.pth", "runs/2.pth", "runs/empty/readme.txt", "models/a/model_index.json")
    with pytest.raises(UsageError) as caught:
        expand(original, converted)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("originals", "converted", "words"),
    [
        (["a"], [], "got 1 `orig_ckpt_path` and 0 `converted_path`: give one of each"),
        (["a", "b"], ["A"], "got 2 `orig_ckpt_path` and 1 `converted_path`"),
        (["a"], ["A", "B", "C"], "got 1 `orig_ckpt_path` and 3 `converted_path`"),
    ],
)
def test_unequal_counts(originals: list[str], converted: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        pair_up(originals, converted)


@given(st.lists(st.integers(0, 10**30), unique=True), st.randoms())
def test_natural_order_is_that_of_the_numbers(numbers: list[int], shuffle: random.Random) -> None:
    wanted = [f"epoch_{number}.pth" for number in sorted(numbers)]
    names = list(wanted)
    shuffle.shuffle(names)
    assert sorted(names, key=natural_order) == wanted


@given(st.lists(st.text(alphabet="ab019_/é²", max_size=8), max_size=8))
def test_natural_order_is_total(names: list[str]) -> None:
    assert sorted(names, key=natural_order) == sorted(reversed(names), key=natural_order)


_NAME = st.text(alphabet="ab01[]{}*?.-", min_size=1, max_size=6).filter(lambda name: name.strip("."))


@given(st.sets(_NAME, min_size=1, max_size=6))
def test_a_folder_gives_every_checkpoint_once(tmp_path_factory: pytest.TempPathFactory, names: set[str]) -> None:
    folder = tmp_path_factory.mktemp("r")
    for name in names:
        (folder / f"e{name}.pth").touch()
    out = folder / "out"
    pairs = expand(str(folder), str(out / "{name}"))
    assert sorted(Path(pair.original).name for pair in pairs) == sorted(f"e{name}.pth" for name in names)
    assert all(pair.converted == str(out / Path(pair.original).name) for pair in pairs)
    assert pairs == expand(str(folder), str(out / "{name}"))
    for pair in pairs:  # each can be named
        assert shown(expand(pair.original, "x")) == [(pair.original, "x")]


def test_one_file_under_two_names_is_one_checkpoint(here: Path) -> None:
    pairs = [Pair("a.pth", "out"), Pair("./a.pth", "out"), Pair(str(here / "a.pth"), "out")]
    assert len(check_targets_unique(pairs)) == 1
    with pytest.raises(UsageError, match=r"\./a\.pth and b\.pth have the same target other/\.\./out: "):
        check_targets_unique([Pair("./a.pth", "out"), Pair("b.pth", "other/../out")])


def test_two_names_of_one_target_are_one_place(here: Path) -> None:
    Path("out").mkdir()
    Path("link").symlink_to("out")
    with pytest.raises(UsageError, match="have the same target link/1"):
        check_targets_unique([Pair("a.pth", "out/1"), Pair("b.pth", "link/1")])


def test_names_that_differ_in_case_only_are_one_place_where_the_disk_says_so(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [Pair("a.pth", "out/One"), Pair("b.pth", "Out/one")]
    assert check_targets_unique(pairs) == pairs
    monkeypatch.setattr(system, "ignores_case", lambda path: True)
    with pytest.raises(UsageError, match=r"a\.pth and b\.pth have the same target Out/one"):
        check_targets_unique(pairs)


@pytest.mark.parametrize(
    ("original", "converted", "expected"),
    [
        ("a.pth", "out", False), ("a.pth", "{stem}", True), ("a.pth", "{x}", False), ("*.pth", "out", True),
        ("[a].pth", "out", False), ("runs", "out", True), ("run", "out", True), ("empty", "out", False),
        ("model", "out", False), ("none", "out", False),
    ],
)  # fmt: skip
def test_what_may_be_several(here: Path, original: str, converted: str, expected: bool) -> None:
    touch("a.pth", "{x}/1", "[a].pth", "runs/a/checkpoints/1.pth", "run/1.pth", "empty/x.txt", "model/config.json")
    assert several([original], converted) is expected
    assert several([original, original], converted)


def test_a_broken_index_is_one_broken_model(here: Path) -> None:
    touch("m/model.safetensors.index.json", "m/a.pth")
    Path("m/model.safetensors.index.json").write_text(json.dumps({"weight_map": {"k": "gone.safetensors"}}))
    assert [pair.original for pair in expand("m", "out")] == ["m"]
