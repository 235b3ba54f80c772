"""Files of text embeddings: those that safetensors reads and writes, and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from converter.errors import ConverterError, InputError, UsageError
from converter.pipelines.embeddings import Embeddings

TOKENS, WIDTH = 5, 8
NAMES = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
State = dict[str, torch.Tensor]


def state(batch: int = 2, dtype: torch.dtype = torch.float32) -> State:
    draw = torch.Generator().manual_seed(batch)
    shapes = [(batch, TOKENS, WIDTH), (batch, TOKENS)] * 2
    values = [torch.randn(shape, generator=draw) for shape in shapes]
    held = zip(NAMES, values, strict=True)
    return {name: (value > 0).long() if name.endswith("mask") else value.to(dtype) for name, value in held}


def load(path: Path) -> Embeddings:
    return Embeddings.load(path, tokens=TOKENS, width=WIDTH)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [2, 4])
def test_saved_and_loaded(tmp_path: Path, dtype: torch.dtype, count: int) -> None:
    held = {name: state(dtype=dtype)[name] for name in NAMES[:count]}
    path = tmp_path / "new" / "cat.safetensors"
    Embeddings(**held).save(path)
    written = load_file(path)
    assert written.keys() == held.keys()
    again = load(path)
    for name in NAMES:
        value = getattr(again, name)
        if name not in held:
            assert value is None
            continue
        assert value.dtype == held[name].dtype
        assert torch.equal(value, held[name])
        assert torch.equal(written[name], held[name])
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_views_are_saved_as_what_they_show(tmp_path: Path) -> None:
    held = state()
    wide = torch.cat([held["prompt_embeds"]] * 2, dim=2)[..., WIDTH:]
    Embeddings(wide, held["prompt_attention_mask"]).save(tmp_path / "a.safetensors")
    assert torch.equal(load(tmp_path / "a.safetensors").prompt_embeds, held["prompt_embeds"])


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_masks_in_other_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    held = state()
    save_file(held | {NAMES[1]: held[NAMES[1]].to(dtype)}, tmp_path / "a.safetensors")
    mask = load(tmp_path / "a.safetensors").prompt_attention_mask
    assert mask.dtype == torch.int64
    assert torch.equal(mask, held[NAMES[1]])


def test_what_is_there_is_replaced_only_where_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_text("mine")
    with pytest.raises(UsageError, match=r"a\.safetensors: exists; use `overwrite` to replace it"):
        Embeddings(**state()).save(path)
    assert path.read_text() == "mine"
    Embeddings(**state()).save(path, overwrite=True)
    assert torch.equal(load(path).prompt_embeds, state()["prompt_embeds"])
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(ConverterError, match="folder: Is a directory"):
        Embeddings(**state()).save(tmp_path / "folder", overwrite=True)
    assert {one.name for one in tmp_path.iterdir()} == {"a.safetensors", "folder"}


def replaced(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[State], State]:
    return lambda held: held | {name: change(held[name]).contiguous()}


def without(*names: str) -> Callable[[State], State]:
    return lambda held: {name: value for name, value in held.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (without(NAMES[1]), "lacks prompt_attention_mask: embeddings and their mask go together"),
        (without(NAMES[0]), "lacks prompt_embeds"),
        (without(NAMES[3]), "lacks negative_prompt_attention_mask"),
        (without(NAMES[2]), "lacks negative_prompt_embeds"),
        (without(*NAMES[:2]), "lacks prompt_embeds and prompt_attention_mask"),
        (lambda held: held | {"pooled": torch.ones(1)}, "pooled: is none of prompt_embeds, "),
        (replaced(NAMES[0], lambda t: t[..., 1:]), r"prompt_embeds: has shape \[2, 5, 7\].* needs \[2, 5, 8\]"),
        (replaced(NAMES[0], lambda t: t[:, 1:]), r"prompt_embeds: has shape \[2, 4, 8\]"),
        (replaced(NAMES[0], lambda t: t[0]), r"prompt_embeds: has shape \[5, 8\]"),
        (replaced(NAMES[0], lambda t: t[:0]), r"prompt_embeds: has shape \[0, 5, 8\].* needs \[1, 5, 8\]"),
        (replaced(NAMES[0], lambda t: t[0, 0, 0]), r"prompt_embeds: has shape \[\]"),
        (replaced(NAMES[1], lambda t: t[..., None]), r"prompt_attention_mask: has shape \[2, 5, 1\].* needs \[2, 5\]"),
        (replaced(NAMES[2], lambda t: t[:1]), r"negative_prompt_embeds: has shape \[1, 5, 8\].* needs \[2, 5, 8\]"),
        (replaced(NAMES[3], lambda t: t[:1]), r"negative_prompt_attention_mask: has shape \[1, 5\]"),
        (replaced(NAMES[0], lambda t: t.long()), "prompt_embeds: is int64, and floating point is needed"),
        (replaced(NAMES[2], lambda t: t * torch.inf), "negative_prompt_embeds: holds NaN or infinity"),
        (replaced(NAMES[0], lambda t: t.half() * torch.nan), "prompt_embeds: holds NaN or infinity"),
        (replaced(NAMES[1], lambda t: t * 2), "prompt_attention_mask: holds other values than 0 and 1"),
        (replaced(NAMES[3], lambda t: t * torch.nan), "negative_prompt_attention_mask: holds other values"),
    ],
)
def test_embeddings_that_do_not_fit(tmp_path: Path, change: Callable[[State], State], rule: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file(change(state()), path)
    with pytest.raises(InputError, match=rule) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(InputError, match="No such file"):
        load(path)
    save_file(state(), path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="truncated"):
        load(path)
    torch.save(state(), path)
    with pytest.raises(InputError, match="not a safetensors file"):
        load(path)
