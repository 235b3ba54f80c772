"""Where a conversion goes: names and shards as huggingface_hub and diffusers have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from huggingface_hub import split_torch_state_dict_into_shards
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import HEADS, diffusers_keyed, pixart, save

import converter
from converter.checkpoint.dtypes import F32
from converter.checkpoint.folder import with_variant
from converter.destination import Destination, bytes_of
from converter.errors import UsageError


# Not of size 0: the hub takes tensors without bytes for views of one storage, and keeps them together.
@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(1, 300))
@settings(deadline=None)
def test_shards_are_the_hubs(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], limit: int) -> None:
    from converter.checkpoint import LazyTensor
    from converter.checkpoint.tensor import row_major
    from converter.writing import Part

    state = {f"k{i}": torch.zeros(size) for i, size in enumerate(sizes)}
    theirs = split_torch_state_dict_into_shards(
        state, filename_pattern="diffusion_pytorch_model{suffix}.safetensors", max_shard_size=limit
    )
    parts = []
    for key, tensor in state.items():
        lazy = LazyTensor(key, F32, tuple(tensor.shape), None, row_major(tuple(tensor.shape)))  # type: ignore[arg-type]
        parts.append(Part((lazy,), (key,), F32))
    files, texts = Destination(Path("out"), shard=limit).files(parts, "transformer")
    mine = {file.name.removeprefix("transformer/"): [e.key for e in file.layout.entries] for file in files}
    wanted = {name: keys for name, keys in theirs.filename_to_tensors.items()}
    assert {name: sorted(keys) for name, keys in mine.items()} == {name: sorted(keys) for name, keys in wanted.items()}
    if theirs.is_sharded:
        (text,) = texts.values()
        assert json.loads(text) == {"metadata": theirs.metadata, "weight_map": theirs.tensor_to_filename}
    else:
        assert texts == {}


@pytest.mark.parametrize("variant", ["", "fp16", "ema"])
@pytest.mark.parametrize("shard", [None, "40KB"])
def test_names_are_those_of_diffusers(variant: str, shard: str | None, tmp_path: Path) -> None:
    """The stock class writes the same files, and reads ours into the same weights."""
    state = pixart()
    dtype = "float16" if variant == "fp16" else None
    said = {"num_attention_heads": HEADS, "dtype": dtype, "variant": variant or None, "max_shard_size": shard}
    done = converter.convert(save(state, tmp_path / "a.pth"), tmp_path / "out", **said)
    model = PixArtTransformer2DModel.from_pretrained(
        done.path / "transformer", variant=variant or None, torch_dtype=torch.float16 if dtype else torch.float32
    )
    wanted = {key: tensor.half() if dtype else tensor for key, tensor in diffusers_keyed(state).items()}
    loaded = model.state_dict()
    assert loaded.keys() == wanted.keys()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in wanted.items())
    model.save_pretrained(tmp_path / "theirs", variant=variant or None, max_shard_size=shard or "10GB")
    ours, theirs = ({p.name for p in folder.iterdir()} for folder in (done.path / "transformer", tmp_path / "theirs"))
    if shard is None:
        assert ours == theirs
    else:  # the stock model has its tensors in another order, and so other shards
        assert {name for name in ours if "-0000" not in name} == {name for name in theirs if "-0000" not in name}
        assert len(ours) > 3
    # What we wrote, we read: the whole model, and the way back.
    back = converter.convert(done.path, tmp_path / "back.pth", to="original")
    assert any("tensors are what conversion.json says" in note for note in back.notes)


def test_index_names() -> None:
    assert with_variant("diffusion_pytorch_model.safetensors.index.json", "fp16") == (
        "diffusion_pytorch_model.safetensors.index.fp16.json"
    )


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("1.5 mb", 1_500_000), (1000, 1000), ("10KB", 10_000), ("2TB", 2 * 10**12)]
)
def test_sizes(text: str | int, size: int) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "GB", "5GiB", "-1", "0", "0.0001KB", "1e3", "5 GB MB", "٣GB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="--max_shard_size"):
        bytes_of(text)


def test_a_replaced_folder_has_no_stale_index(tmp_path: Path) -> None:
    source = save(pixart(), tmp_path / "a.pth")
    said = {"num_attention_heads": HEADS, "overwrite": True}
    converter.convert(source, tmp_path / "out", max_shard_size="40KB", **said)
    assert len(list((tmp_path / "out").rglob("*.index.json"))) == 1
    converter.convert(source, tmp_path / "out", **said)
    assert {p.name for p in (tmp_path / "out/transformer").iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }
