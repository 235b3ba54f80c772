"""Raw or averaged: by the place, and by what is known of the writer."""

from __future__ import annotations

from typing import Any

import pytest

from converter.checkpoint.weights_kind import kind_of_weights

LIGHTNING: dict[str, Any] = {"state_dict": 0, "current_model_state": 0, "pytorch-lightning_version": 0}
MMENGINE: dict[str, Any] = {"state_dict": 0, "ema_state_dict": 0, "message_hub": 0, "meta": 0}


@pytest.mark.parametrize(("path", "prefix", "top_level", "weights"), [
    ("state_dict", "model.", {}, "raw"), ("state_dict_ema", "", {}, "ema"), ("", "", {}, "raw"), ("ema", "", {}, "ema"),
    ("model_state_dict", "", {}, "raw"), ("module", "", {}, "raw"), ("net", "", {}, "raw"), ("params", "", {}, "raw"),
    ("params_ema", "", {}, "ema"), ("state.model", "", {}, "raw"), ("app.model", "", {}, "raw"),
    ("generator", "", {}, "raw"), ("generator_ema", "", {}, "ema"), ("modelEMA", "", {}, "ema"),
    ("ema", "module.", {}, "ema"), ("ema", "ema_model.", {}, "ema"), ("ema", "online_model.", {}, "raw"),
    ("swa_state_dict", "", {}, "ema"), ("averaged_model", "module.", {}, "ema"), ("extra.ema", "", {}, "ema"),
    ("state_dict", "wrapped.by.me.", {}, "raw"), ("0.net", "", {}, "raw"),
    ("state_dict_non_ema", "", {}, "raw"), ("current_ema", "", {}, "ema"), ("EMAModel", "", {}, "ema"),
    ("pre_ema_model", "", {}, "raw"), ("teacher", "", {}, "unknown"),
    ("fake_score.model", "model.", {}, "unknown"), ("schema", "", {}, "unknown"),
    ("state_dict", "model.", LIGHTNING, "ema"), ("current_model_state", "model.", LIGHTNING, "raw"),
    ("state_dict", "", MMENGINE, "ema"), ("ema_state_dict", "module.", MMENGINE, "raw"),
    ("state_dict", "", {"state_dict": 0, "ema_state_dict": 0}, "unknown"),
    ("ema_state_dict", "", {"state_dict": 0, "ema_state_dict": 0}, "unknown"),
    ("ema_state_dict", "", {"model": 0, "ema_state_dict": 0}, "ema"),
])  # fmt: skip
def test_kind_of_weights(path: str, prefix: str, top_level: dict[str, Any], weights: str) -> None:
    found, why = kind_of_weights(path.split(".") if path else [], prefix, top_level)
    assert found == weights
    assert bool(why) == bool({"state_dict", "ema_state_dict"} <= top_level.keys() or "current_model_state" in top_level)
