"""`--require_evidence`: whatever is assumed and could change the result is named, all at once, and nothing else is."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import State, converted, diffusers_keyed, dit, pixart, save, stated

import converter
from converter.conversion.pairs import Pair


def sigma(**sizes: Any) -> State:
    return pixart(hidden_size=72, tokens=300, **sizes)


def averaged_too() -> dict[str, State]:
    return {"state_dict": sigma(), "state_dict_ema": sigma(seed=1)}


ALL: dict[str, Any] = {"num_attention_heads": 1, "kv_compress": False}
BACK: dict[str, Any] = {"to": "original", "version": "sigma", "image_size": 512}
SCALE = {"interpolation_scale": 1.0}
# (content of the file, target, what is said, what is asked for with an answer to it)
CASES: dict[str, tuple[Callable[[], Any], str, dict[str, Any], dict[str, Any]]] = {
    "all of it": (sigma, "out", {}, ALL),
    "the rest": (sigma, "out", {"num_attention_heads": 1}, {"kv_compress": False}),
    "a scale that only the released models show": (
        lambda: sigma(pos_embed=False), "out", ALL | {"image_size": 512}, SCALE,
    ),
    "the class, where a table is let go for it": (
        lambda: sigma() | {"pos_embed": torch.randn(1, 64, 72)}, "out", ALL | SCALE, {"multi_scale_train": True},
    ),
    "which of several weights": (averaged_too, "out", ALL, {"weights": "raw"}),
    "what the table is computed from on the way back": (lambda: diffusers_keyed(sigma()), "back.pth", BACK, SCALE),
    "of a DiT": (lambda: dit(hidden_size=384), "out", {}, {"num_attention_heads": 6}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_assumed_and_matters_is_asked_for(name: str, tmp_path: Path) -> None:
    content, target, words, answers = CASES[name]
    path, out = save(content(), tmp_path / "model.pth"), tmp_path / target
    for dry_run in (True, False):
        with pytest.raises(converter.UsageError, match=r"^`require_evidence`: ") as raised:
            converter.convert(path, out, **stated(require_evidence=True, dry_run=dry_run, **words))
        assert {*re.findall(r"`(\w+)`(?: \w+)? \(", str(raised.value))} == answers.keys()
        assert not out.exists()
    assert converter.convert(path, out, **stated(require_evidence=True, **words, **answers)).written


@pytest.mark.parametrize("to", ["original", "comfyui"])
def test_what_is_only_repacked_rests_on_nothing(to: str, tmp_path: Path) -> None:
    path = save(sigma(), tmp_path / "model.pth")
    assert converter.convert(path, tmp_path / "out.safetensors", to=to, require_evidence=True).written


def test_weights_that_are_named_by_their_place_are_none_that_are_assumed(tmp_path: Path) -> None:
    path, words = save(averaged_too(), tmp_path / "model.pth"), ALL | {"state_dict_key": "state_dict_ema"}
    assert converter.convert(path, tmp_path / "out", **stated(require_evidence=True, **words)).written


def test_a_result_that_is_there_already_is_no_evidence(tmp_path: Path) -> None:
    pair = Pair(str(save(sigma(), tmp_path / "model.pth")), str(tmp_path / "out"))
    assert [o.status for o in converted([pair])] == ["converted"]
    (outcome,) = converted([pair], require_evidence=True)
    assert (outcome.status, outcome.exit_code) == ("failed", 2)
    assert [o.status for o in converted([pair], require_evidence=True, **ALL)] == ["unchanged"]
