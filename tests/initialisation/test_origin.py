"""Every tensor of the PixArt comes from somewhere, and every one of the DiT goes somewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from init_helpers import DEPTH, SMALL, begun, golden, origin
from makers import dit, save

from converter.errors import InputError, UsageError
from converter.initialisation import Options
from converter.initialisation.origin import DRAWN, FINAL_TABLE, KEYS, T_BLOCK, TABLE
from converter.mapping import Computed, Extra, Refused
from converter.models.pixart.hyper_parameters import MICRO
from converter.models.pixart.table import PIXART


def test_the_table_says_what_becomes_of_every_key_of_a_dit() -> None:
    kinds: dict[str, set[str]] = {"carried": set(), "computed": set(), "consumed": set()}
    for row in KEYS.rows:
        kind = (
            "computed" if isinstance(row.value, Computed) else "consumed" if isinstance(row.value, Extra) else "carried"
        )
        kinds[kind].add(row.source)
    assert kinds == {
        "carried": {
            "x_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2", "blocks.{}.attn.qkv", "blocks.{}.attn.proj",
            "blocks.{}.mlp.fc1", "blocks.{}.mlp.fc2", "final_layer.linear",
        },
        "computed": {"pos_embed"},
        "consumed": {
            "y_embedder.embedding_table.weight", "blocks.{}.adaLN_modulation.1", "final_layer.adaLN_modulation.1",
        },
    }  # fmt: skip
    assert all(row.targets == (row.source,) for row in KEYS.rows if row.targets)


def test_every_row_of_a_pixart_comes_from_somewhere() -> None:
    carried = {row.source for row in KEYS.rows if row.targets}
    made = {T_BLOCK, TABLE, FINAL_TABLE}
    computed = {row.source for row in PIXART.keys.rows if isinstance(row.value, Computed)}
    sources = [carried, made, computed, set(DRAWN)]
    rows = [row for row in PIXART.keys.rows if not isinstance(row.value, Refused) and row.group in ("", MICRO)]
    assert set().union(*sources) == {row.source for row in rows}
    assert sum(map(len, sources)) == len(set().union(*sources))


def test_what_is_carried_over_is_carried_over_bit_for_bit(tmp_path: Path) -> None:
    state, made = golden(), begun(tmp_path)
    carried = [key for key in made if key in state and key != "pos_embed"]
    assert len(carried) == DEPTH * 8 + 8
    assert all(torch.equal(made[key], state[key]) for key in carried)
    assert torch.equal(made["pos_embed"], state["pos_embed"])  # of the same size, scale 1
    gone = [key for key in state if key not in made]
    assert all("adaLN_modulation" in key or "embedding_table" in key for key in gone)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_of_another_dtype_too_and_what_is_made_is_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {key: tensor.to(dtype) for key, tensor in golden().items()}
    made = begun(tmp_path, path=save(state, tmp_path / "dit.pt"))
    assert torch.equal(made["blocks.1.attn.qkv.weight"], state["blocks.1.attn.qkv.weight"])
    assert made["blocks.1.attn.qkv.weight"].dtype == dtype
    assert made["blocks.1.scale_shift_table"].dtype == made["pos_embed"].dtype == torch.float32


def test_prefixes_and_training_files(tmp_path: Path) -> None:
    prefixed = {f"module.{key}": tensor for key, tensor in golden().items()}
    ema = {key: tensor * 0.5 if "attn" in key else tensor for key, tensor in prefixed.items()}
    made = begun(tmp_path, path=save({"model": prefixed, "ema": ema}, tmp_path / "train.pt"))
    assert torch.equal(made["blocks.0.attn.qkv.weight"], golden()["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 136}, "`image_size` 136: not a multiple of 16"),
        ({"image_size": 130}, "`image_size` 130: not a multiple of 16"),  # which a latent's side would hide
        ({"none": "nothing"}, "`none` nothing"),
        ({"t_block": "median"}, "`t_block` median"),
        ({"caption_tokens": 0}, "`caption_tokens` 0"),
        ({"seed": -1}, "`seed` -1"),
        ({"interpolation_scale": float("nan")}, "`interpolation_scale` nan"),
    ],
)
def test_choices_that_cannot_be(options: dict[str, Any], message: str) -> None:
    def state() -> object:
        with origin(Options(**{"caption_tokens": 12, "caption_channels": 32} | options)) as opened:
            return opened.state()

    with pytest.raises(UsageError, match=message):
        state()


def test_micro_conditions_need_a_third_of_the_hidden_size(tmp_path: Path) -> None:
    path = save(dit(hidden_size=32), tmp_path / "d.pt")
    with origin(replace(SMALL, micro_condition=True), path) as opened, pytest.raises(UsageError) as error:
        opened.state()
    assert str(error.value).startswith("`micro_condition`: csize_embedder.mlp.0 needs a hidden size that divides")


def test_the_scale_is_the_released_models() -> None:
    for size, tokens, wanted in ((None, 12, 1.0), (1024, 120, 2.0), (1024, 12, 1.0), (256, 300, 0.5), (2048, 300, 4.0)):
        with origin(Options(image_size=size, caption_tokens=tokens)) as opened:
            assert opened.scale == wanted
    with origin(Options(image_size=1024, interpolation_scale=1.5)) as opened:
        assert opened.scale == 1.5


def test_positions_of_another_kind_are_refused(tmp_path: Path) -> None:
    state = golden()
    state["pos_embed"] = state["pos_embed"].clone()
    state["pos_embed"][0, 20] += 0.01  # not where a survey looks
    with origin(path=save(state, tmp_path / "d.pt")) as opened, pytest.raises(InputError, match="is not the sin-cos"):
        _ = opened.same_positions


def test_whose_positions_are_the_files_own(tmp_path: Path) -> None:
    rounded = {key: tensor.bfloat16() for key, tensor in golden().items()}
    bare = {key: tensor for key, tensor in golden().items() if key != "pos_embed"}
    with origin() as opened:
        assert opened.same_positions
    with origin(replace(SMALL, image_size=256)) as opened:
        assert not opened.same_positions
    with origin(path=save(rounded, tmp_path / "r.pt")) as opened:
        assert not opened.same_positions  # they are rounded there, and not here
    with origin(replace(SMALL, image_size=128), save(bare, tmp_path / "b.pt")) as opened:
        assert not opened.analysis.plan.computed
