"""`--require_evidence`: whatever is assumed and could change the result is named, all at once, and nothing else is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import converted, diffusers_keyed, dit, pixart, stated

import converter
from converter.conversion.pairs import Pair

ALL: dict[str, Any] = {"num_attention_heads": 1, "kv_compress": False}


def saved(state: Any, at: Path) -> Path:
    torch.save(state, at)
    return at


def named(path: Path, out: Path, **words: Any) -> set[str]:
    """The flags that are asked for."""
    with pytest.raises(converter.UsageError, match=r"^`require_evidence`: ") as raised:
        converter.convert(path, out, **stated(require_evidence=True, **words))
    assert not out.exists()
    return set(re.findall(r"`(\w+)`(?: \w+)? \(", str(raised.value)))


def test_every_assumption_is_named_at_once(tmp_path: Path) -> None:
    path = saved(pixart(hidden_size=72, tokens=300), tmp_path / "model.pth")
    out = tmp_path / "out"
    assert named(path, out) == named(path, out, dry_run=True) == {"num_attention_heads", "kv_compress"}
    assert named(path, out, num_attention_heads=1) == {"kv_compress"}
    assert converter.convert(path, out, **stated(require_evidence=True, **ALL)).written


def test_a_scale_that_only_the_released_models_show(tmp_path: Path) -> None:
    path = saved(pixart(hidden_size=72, tokens=300, pos_embed=False), tmp_path / "model.pth")
    assert named(path, tmp_path / "out", image_size=512, **ALL) == {"interpolation_scale"}
    assert converter.convert(
        path, tmp_path / "out", **stated(image_size=512, interpolation_scale=1.0, require_evidence=True, **ALL)
    )


def test_the_class_matters_only_where_the_table_is_let_go_for_it(tmp_path: Path) -> None:
    state = pixart(hidden_size=72, tokens=300)
    state["pos_embed"] = torch.randn_like(state["pos_embed"])
    path = saved(state, tmp_path / "model.pth")
    words = ALL | {"interpolation_scale": 1.0}
    assert named(path, tmp_path / "out", **words) == {"multi_scale_train"}
    assert converter.convert(
        path, tmp_path / "out", **stated(require_evidence=True, multi_scale_train=True, **words)
    ).written


def test_which_weights_is_an_assumption_where_there_are_several(tmp_path: Path) -> None:
    state, averaged = (pixart(hidden_size=72, tokens=300, seed=seed) for seed in (0, 1))
    path = saved({"state_dict": state, "state_dict_ema": averaged}, tmp_path / "model.pth")
    assert named(path, tmp_path / "out", **ALL) == {"weights"}
    assert converter.convert(path, tmp_path / "out", **stated(require_evidence=True, weights="raw", **ALL)).written


@pytest.mark.parametrize("to", ["original", "comfyui"])
def test_what_is_only_repacked_rests_on_nothing(to: str, tmp_path: Path) -> None:
    path = saved(pixart(hidden_size=72, tokens=300), tmp_path / "model.pth")
    assert converter.convert(path, tmp_path / "out.safetensors", to=to, require_evidence=True).written


def test_on_the_way_back_what_the_table_is_computed_from_matters(tmp_path: Path) -> None:
    bare = diffusers_keyed(pixart(hidden_size=72, tokens=300))
    path = saved(bare, tmp_path / "bare.bin")
    words = {"to": "original", "version": "sigma", "image_size": 512}
    assert named(path, tmp_path / "back.pth", **words) == {"interpolation_scale"}
    assert converter.convert(
        path, tmp_path / "back.pth", **stated(require_evidence=True, interpolation_scale=1.0, **words)
    )


def test_a_dit(tmp_path: Path) -> None:
    path = saved(dit(hidden_size=384), tmp_path / "model.pt")
    assert named(path, tmp_path / "out") == {"num_attention_heads"}
    assert converter.convert(
        path, tmp_path / "out", require_evidence=True, hyper_parameters={"num_attention_heads": 6}
    ).written


def test_a_result_that_is_there_already_is_no_evidence(tmp_path: Path) -> None:
    path = saved(pixart(hidden_size=72, tokens=300), tmp_path / "model.pth")
    pair = Pair(str(path), str(tmp_path / "out"))
    assert [o.status for o in converted([pair])] == ["converted"]
    (outcome,) = converted([pair], require_evidence=True)
    assert (outcome.status, outcome.exit_code) == ("failed", 2)
    assert [o.status for o in converted([pair], require_evidence=True, **ALL)] == ["unchanged"]
