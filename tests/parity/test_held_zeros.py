"""What both sides hold may be what a download left: no PASS, and it says why."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from makers import HEADS, pixart, save
from safetensors.torch import load_file, save_file

import converter
from converter.parity import check

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("key", ["t_embedder.mlp.2.weight", "blocks.1.cross_attn.proj.bias"])
def test_zeros_on_both_sides_are_inconclusive(key: str, tmp_path: Path) -> None:
    state = pixart()
    state[key] = torch.zeros_like(state[key])
    source = save(state, tmp_path / "a.pth")
    converter.convert(source, tmp_path / "out", allow_zeros=True, hyper_parameters={"num_attention_heads": HEADS})
    made = check(source, tmp_path / "out")
    assert (made.verdict, made.exit_code) == ("INCONCLUSIVE", 4)
    assert f"1 tensor is zero throughout, as no training leaves it: {key}" in made.reason
    assert made.headline == "weights: 1 tensor is zero throughout, as no training leaves it"
    function = made.phase("function")
    assert function
    assert function.verdict == "PASS"


def test_zeros_on_one_side_are_a_difference(tmp_path: Path) -> None:
    source = save(pixart(), tmp_path / "a.pth")
    done = converter.convert(source, tmp_path / "out", hyper_parameters={"num_attention_heads": HEADS})
    tensors = load_file(done.path / WEIGHTS)
    save_file(tensors | {"proj_out.weight": torch.zeros(32, 24)}, done.path / WEIGHTS, {"format": "pt"})
    assert check(source, done.path).verdict == "FAIL"


def test_what_a_training_begins_with_is_noted(tmp_path: Path) -> None:
    state = {key: torch.zeros_like(value) if "cross_attn.proj" in key else value for key, value in pixart().items()}
    source = save(state, tmp_path / "a.pth")
    converter.convert(source, tmp_path / "out", hyper_parameters={"num_attention_heads": HEADS})
    weights = check(source, tmp_path / "out").phase("weights")
    assert weights
    assert weights.verdict == "PASS"
    assert any(note.startswith("zero throughout, as initialised") for note in weights.notes)
