"""Where checkpoints are looked for: in a run, in its `checkpoints/`, and one level of runs; and nothing else is one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from makers import HEADS, lock, pixart, save

import converter
from converter.conversion.pairs import expand
from converter.conversion.training_folders import checkpoints_under, is_looked_into, is_model
from converter.errors import InputError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def under(root: Path) -> list[str]:
    return [os.path.relpath(path, root) for path in checkpoints_under(str(root))]


def test_the_layout_of_training(tmp_path: Path) -> None:
    checkpoints = [f"{run}/checkpoints/epoch_7_step_{step}.pth" for run in ("a", "b") for step in (9000, 10000)]
    beside = ["a/config.py", "a/train_log.log", "a/logs/events.out", "a/config.json", "b/vis/1.pt/x.png"]
    touch(tmp_path, *checkpoints, *beside)
    assert under(tmp_path) == checkpoints
    assert under(tmp_path / "a") == ["checkpoints/epoch_7_step_9000.pth", "checkpoints/epoch_7_step_10000.pth"]
    assert under(tmp_path / "a" / "checkpoints") == ["epoch_7_step_9000.pth", "epoch_7_step_10000.pth"]
    assert not is_model(tmp_path / "a")  # its config.json is that of the training


def test_runs_in_one_folder_with_those_that_lie_loose(tmp_path: Path) -> None:
    touch(tmp_path, "loose.pth", "a/1.pth", "a/ckpt/2.pth", "b/checkpoint-500/3.pt", "b/other/4.pth", "c/d/ckpt/5.pth")
    assert under(tmp_path) == ["a/1.pth", "a/ckpt/2.pth", "b/checkpoint-500/3.pt", "loose.pth"]


@pytest.mark.parametrize(
    "name",
    [
        "optimizer.bin", "optimizer_0.pt", "optim-1.pt", "scheduler.bin", "scaler.pt", "rng_state_0.pth",
        "random_states_0.pt", "training_args.bin", "null_embed_diffusers_300token.pth", "original_extras.safetensors",
        "zero_pp_rank_0_mp_rank_00_optim_states.pt", "model-00001-of-00002.safetensors", ".epoch_1.pth", "log.txt",
    ],
)  # fmt: skip
def test_what_lies_beside_checkpoints_is_none(tmp_path: Path, name: str) -> None:
    for place in ("", "checkpoints", "run", "run/checkpoints"):
        touch(tmp_path / place, name)
    assert under(tmp_path) == []


def test_a_name_that_only_begins_alike_is_one(tmp_path: Path) -> None:
    names = ["optimal.pth", "run/optimum_3.pth"]
    touch(tmp_path, *names)
    assert under(tmp_path) == names


def test_results_are_models_and_no_checkpoints(tmp_path: Path) -> None:
    source = save(pixart(), tmp_path / "epoch_1.pth")
    for place in ("epoch_1", "run/checkpoints", "run/epoch_1"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        converter.convert(source, tmp_path / place, hyper_parameters={"num_attention_heads": HEADS})
    touch(tmp_path, "diffusers/model_index.json", "diffusers/x.bin", "lora/adapter_config.json", "lora/x.safetensors")
    touch(tmp_path, "merged/pytorch_model.bin", "merged/x.pth")
    assert under(tmp_path) == ["epoch_1.pth"]


def test_a_folder_of_two_names_is_looked_into_once(tmp_path: Path) -> None:
    (root := tmp_path / "runs").mkdir()
    touch(root, "exp7/checkpoints/1.pth")
    touch(tmp_path, "elsewhere/2.pth")
    links = {"0": "exp7", "latest": "exp7", "last": "exp7/checkpoints", "me": ".", "gone": "no", "round": "round"}
    for name, target in links.items():
        (root / name).symlink_to(target)
    (root / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to("runs")
    assert under(root) == under(tmp_path / "link") == ["exp7/checkpoints/1.pth", "more/2.pth"]


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a/1.pth", "closed/2.pth")
    lock(monkeypatch, "closed")
    with pytest.raises(InputError, match="closed: Permission denied"):
        checkpoints_under(str(tmp_path))
    errors: list[InputError] = []
    assert checkpoints_under(str(tmp_path), unreadable=errors.append) == [str(tmp_path / "a" / "1.pth")]
    assert [str(error) for error in errors] == [f"{tmp_path}/closed: Permission denied"]
    with pytest.raises(InputError, match="closed: Permission denied"):
        checkpoints_under(str(tmp_path / "closed"), unreadable=errors.append)


@pytest.mark.parametrize("listed", [False, True], ids=["not even listed", "listed, and nothing opened"])
def test_a_run_that_cannot_be_read_is_named_and_no_file_that_is_not_there(
    listed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As modes 000 and 400 have it, which do not keep root from anything."""
    touch(tmp_path, "a/1.pth", "b/2.pth")

    def shut(name: str, *places: str) -> None:
        call = getattr(os, name)

        def refusing(path: str | os.PathLike[str], *args: object, **more: object) -> object:
            if os.fspath(path).startswith(places):
                raise PermissionError(13, "Permission denied", os.fspath(path))
            return call(path, *args, **more)

        monkeypatch.setattr(os, name, refusing)

    closed, access = f"{tmp_path}/b", os.access
    monkeypatch.setattr(os, "access", lambda path, mode: os.fspath(path) != closed and access(path, mode))
    for name in ("stat", "lstat"):
        shut(name, f"{closed}/")
    if not listed:
        shut("scandir", closed)
    with pytest.raises(InputError) as caught:
        expand(str(tmp_path), "out/{stem}")
    assert str(caught.value).startswith(f"{closed}: Permission denied: checkpoints are looked for there: make it read")
    assert [pair.original for pair in expand(f"{tmp_path}/a/*.pth", "out/{stem}")] == [f"{tmp_path}/a/1.pth"]


@given(st.lists(st.sampled_from(["a", "b", "checkpoints", "Models", "step_3", ".."]), max_size=4))
def test_where_a_result_would_be_taken_is_known_before_it_is_there(
    tmp_path_factory: pytest.TempPathFactory, folders: list[str]
) -> None:
    root = tmp_path_factory.mktemp("r") / "x"
    root.mkdir()
    place = os.path.normpath(root.joinpath(*folders))
    expected = is_looked_into(place, str(root))
    touch(Path(place), "1.pth")
    assert (checkpoints_under(str(root)) == [os.path.join(place, "1.pth")]) == expected
    assert is_looked_into(place, str(root)) == expected


def test_a_result_behind_a_link_is_known_too(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "out").mkdir()
    assert not is_looked_into(str(tmp_path / "out"), str(tmp_path / "runs"))
    (tmp_path / "runs" / "out").symlink_to("../out")
    assert is_looked_into(str(tmp_path / "out"), str(tmp_path / "runs"))
