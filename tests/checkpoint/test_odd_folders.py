"""Folders that are not what they look like: taken where it is clear what is meant, else named with what to do."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from zip_builder import assert_refused, read_all

from converter.checkpoint import open_checkpoint
from converter.checkpoint.folder import cached_snapshot, model_folder
from converter.checkpoint.weight_names import STEMS
from converter.conversion.record import find_record
from converter.conversion.training_folders import is_model
from converter.errors import InputError
from converter.parity.provenance import files_of

STEM = "diffusion_pytorch_model.safetensors"
ONES = {"w": ("float32", (2,), torch.ones(2).numpy().tobytes())}
COMMIT, OTHER = "0123456789abcdef0123456789abcdef01234567", "f" * 40


def weights(folder: Path, name: str = STEM) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if name.endswith(".safetensors"):
        save_file({"w": torch.ones(2)}, folder / name)
    else:
        torch.save({"w": torch.ones(2)}, folder / name)
    return folder / name


# ---------------------------------------------------------------- links to nothing


@pytest.mark.parametrize("stem", [*STEMS, f"{STEM}.index.json", "diffusion_pytorch_model.fp16.safetensors", "a.pth"])
@pytest.mark.parametrize("below", ["", "transformer"])
def test_weights_that_are_a_link_to_nothing(tmp_path: Path, stem: str, below: str) -> None:
    place = tmp_path / "model" / below
    place.mkdir(parents=True)
    (place / "config.json").write_text("{}")
    (place / stem).symlink_to("../../blobs/abc")
    assert_refused(tmp_path / "model" / below, f"{place}: {stem}: a dangling link: ../../blobs/abc", "fetch it again")
    if not stem.endswith(".json"):
        with pytest.raises(InputError, match=rf"{stem}: a dangling link: .*: fetch it again$"):
            open_checkpoint(place / stem)


def test_a_link_to_nothing_beside_what_is_read_is_noted(tmp_path: Path) -> None:
    weights(tmp_path, "diffusion_pytorch_model.bin")
    (tmp_path / STEM).symlink_to("nowhere")
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.others == [f"{STEM}: a dangling link, not read"]


def test_what_lies_behind_a_link_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "gone").symlink_to("/nowhere/at/all")
    with pytest.raises(InputError, match=r"gone/model.pth: lies behind .*gone, a dangling link: /nowhere/at/all"):
        open_checkpoint(tmp_path / "gone" / "model.pth")
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "transformer").symlink_to("../snapshots/x")
    assert_refused(tmp_path / "pipeline", "pipeline: transformer: a dangling link: ../snapshots/x")
    (tmp_path / "chain").symlink_to("gone")
    with pytest.raises(InputError, match=r"chain: a dangling link: gone is not there"):
        open_checkpoint(tmp_path / "chain")


def test_a_shard_that_is_a_link_to_nothing(tmp_path: Path) -> None:
    (tmp_path / f"{STEM}.index.json").write_text(json.dumps({"weight_map": {"w": "a.safetensors"}}))
    (tmp_path / "a.safetensors").symlink_to("../blobs/abc")
    assert_refused(tmp_path, "the shard a.safetensors is missing: a dangling link: ../blobs/abc is not there")


# ---------------------------------------------------------------- folders named like weights


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("inside", [STEM, "pytorch_model.bin", "same"])
@pytest.mark.parametrize("below", ["", "transformer"])
def test_a_folder_that_is_named_like_weights_is_taken(tmp_path: Path, stem: str, inside: str, below: str) -> None:
    place = tmp_path / "model" / below / stem
    weights(place, stem if inside == "same" else inside)
    assert read_all(tmp_path / "model") == read_all(place) == ONES
    assert model_folder(tmp_path / "model") == place
    assert is_model(tmp_path / "model")


def test_where_it_is_not_clear_the_folder_to_give_is_named(tmp_path: Path) -> None:
    weights(tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text("{}")
    assert_refused(tmp_path, "in the folder pytorch_model.bin in it: give that one (with config.json in it)")
    (tmp_path / "config.json").unlink()
    weights(tmp_path / STEM)
    assert_refused(tmp_path, f"in the folder {STEM} in it: give that one, or another")
    weights(tmp_path, "model.safetensors")  # what is a file goes first
    assert read_all(tmp_path) == ONES


# ---------------------------------------------------------------- the root of a cached repository


def cached(root: Path, *commits: str, main: str | None = None) -> Path:
    for commit in commits:
        weights(root / "snapshots" / commit / "transformer")
    (root / "blobs").mkdir(parents=True)
    (root / "snapshots").mkdir(exist_ok=True)
    if main is not None:
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text(main)
    return root


@pytest.mark.parametrize(("commits", "main"), [
    ([COMMIT], None), ([COMMIT], COMMIT), ([COMMIT, OTHER], COMMIT), ([COMMIT, OTHER], f"{COMMIT}\n"),
])  # fmt: skip
def test_the_root_of_a_cached_repository_is_taken(tmp_path: Path, commits: list[str], main: str | None) -> None:
    root = cached(tmp_path / "models--o--n", *commits, main=main)
    assert cached_snapshot(root) == root / "snapshots" / COMMIT
    assert read_all(root) == ONES
    assert is_model(root)
    assert list(files_of(root).values()) == [root / "snapshots" / COMMIT / "transformer" / STEM]
    assert find_record(root).folder is None


@pytest.mark.parametrize(("commits", "main", "fragment"), [
    ([COMMIT, OTHER], None, f"the snapshots {COMMIT}, {OTHER}; no refs/main selects one: give the folder of the one"),
    ([COMMIT], OTHER, f"the snapshots {COMMIT}; its refs/main is {OTHER}: give the folder"),
    ([COMMIT], "../../elsewhere", "its refs/main is ../../elsewhere"),
    ([], None, "a cached repository without a snapshot: fetch it again"),
])  # fmt: skip
def test_which_snapshot_is_meant_has_to_be_clear(
    tmp_path: Path, commits: list[str], main: str | None, fragment: str
) -> None:
    weights(tmp_path / "elsewhere")
    root = cached(tmp_path / "models--o--n", *commits, main=main)
    assert_refused(root, "models--o--n: snapshots: ", fragment)


def test_a_blob_of_a_cache_is_read_by_its_name(tmp_path: Path) -> None:
    root = cached(tmp_path / "models--o--n", COMMIT)
    weights(root / "blobs").rename(root / "blobs" / ("a" * 64))
    assert read_all(root / "blobs" / ("a" * 64)) == ONES


# ---------------------------------------------------------------- unpacked torch files


@pytest.mark.parametrize("outer", ["", "model.pth", "transformer"])
def test_an_unpacked_torch_file_is_called_one(tmp_path: Path, outer: str) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "base.pth")
    place = tmp_path / "unpacked" / outer
    with zipfile.ZipFile(tmp_path / "base.pth") as packed:
        packed.extractall(place)
        root = place / packed.namelist()[0].partition("/")[0]
    words = "an unpacked torch file (data.pkl, data/0 ... lie loose): fetch it again without unpacking it"
    for given in (place, root):
        with pytest.raises(InputError, match=r"data.pkl: an unpacked torch file") as caught:
            read_all(given)
        assert str(caught.value) == f"{root}: data.pkl: {words}"
        assert is_model(given)


def test_an_unpacked_torch_file_among_checkpoints_is_not_in_their_way(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "base.pth")
    with zipfile.ZipFile(tmp_path / "base.pth") as packed:
        packed.extractall(tmp_path)
    (tmp_path / "pytorch_model.bin").mkdir()
    assert not is_model(tmp_path)
    assert model_folder(tmp_path) == tmp_path
