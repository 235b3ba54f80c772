"""In float64 the reference agrees with its formulae, written down a second time without torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import formulae
import numpy as np
import pytest
import torch
from originals import MODELS, Original, golden, random

from converter.models.pixart.compression import Compression
from converter.nets.layers import sinusoid

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "micro-conditions": {"micro_condition": True, "scale": 1.0},
    "scale that float32 rounds": {"scale": 2.02, "grid": (5, 3)},
    "fixed": {"multi_scale": False, "grid": (8, 8), "scale": 0.5},
    "patch 4, no variance": {"patch_size": 4, "out_channels": 3, "in_channels": 3, "grid": (2, 3)},
    "one sample": {"batch": 1},
    "qk-norm": {"qk_norm": True},
    "qk-norm and conv": {"qk_norm": True, "compression": Compression("conv", 2, frozenset({1}))},
    "conv, rest of a row": {"compression": Compression("conv", 2, frozenset({0, 1})), "grid": (5, 3)},
    "ave": {"compression": Compression("ave", 2, frozenset({0}))},
    "ave, rest of a row": {"compression": Compression("ave", 2, frozenset({0})), "grid": (5, 7)},
    "uniform": {"compression": Compression("uniform", 2, frozenset({1}))},
    "uniform_every": {"compression": Compression("uniform_every", 3, frozenset({0, 1}))},
    "ControlNet": {"copied_blocks": 2, "depth": 4},
    "ControlNet on all it can": {"copied_blocks": 2, "depth": 3, "micro_condition": True},
    "fixed ControlNet": {"copied_blocks": 1, "multi_scale": False, "grid": (8, 8)},
    "compressed ControlNet": {
        "copied_blocks": 2,
        "depth": 3,
        "compression": Compression("conv", 2, frozenset({1})),
    },
}


def one(number: float) -> formulae.Array:
    """The sinusoids of one number: float32 inside, so that no float64 formula can give them."""
    return sinusoid(torch.tensor([number], dtype=torch.float64))[0].numpy()


def difference(model: Original, case: int = 0) -> float:
    """Relative to the largest element of the output."""
    inputs = model.inputs(case)
    got = model.net(torch.float64).forward(inputs).numpy()
    wide = [{key: t.double().numpy() for key, t in tensors.items()} for tensors in (model.state, inputs)]
    expected = formulae.forward(wide[0], model.shape, wide[1], one, model.copied_blocks)
    assert got.shape == expected.shape
    assert np.isfinite(expected).all()
    return float(np.abs(got - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_random_models(changes: dict[str, Any]) -> None:
    assert difference(random(**changes)) < 1e-13


@pytest.mark.parametrize("name", [name for name in MODELS if name != "alpha-fixed"])  # 256 tokens: slow in loops
def test_golden_models(name: str) -> None:
    assert difference(golden(name)) < 1e-13


def test_the_comparison_can_fail() -> None:
    model = random()
    assert difference(replace(model, shape=replace(model.shape, scale=2.0 + 1e-6))) < 1e-13  # both are told of it
    wide = {key: t.double().numpy() for key, t in model.inputs().items()}
    state = {key: t.double().numpy() for key, t in model.state.items()}
    got = model.net(torch.float64).forward(model.inputs()).numpy()
    for shape in (replace(model.shape, num_heads=2), replace(model.shape, scale=2.0 + 1e-6)):
        other = formulae.forward(state, shape, wide, one)
        assert np.abs(got - other).max() / np.abs(other).max() > 1e-9
