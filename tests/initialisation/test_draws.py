"""What a DiT says nothing about begins as in the paper's code, and as a function of the seed and the key alone."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from init_helpers import DEPTH, HIDDEN, SMALL, begun, origin

from converter.initialisation import draws


def test_the_rest_begins_as_in_the_papers_code(tmp_path: Path) -> None:
    made = begun(tmp_path, replace(SMALL, micro_condition=True))
    for i in range(DEPTH):
        assert not made[f"blocks.{i}.cross_attn.proj.weight"].any()
        assert not made[f"blocks.{i}.cross_attn.proj.bias"].any()
        for name, rows in (("q_linear", 1), ("kv_linear", 2)):
            weight = made[f"blocks.{i}.cross_attn.{name}.weight"]
            assert weight.abs().max() <= (6 / ((rows + 1) * HIDDEN)) ** 0.5
            assert weight.std() == pytest.approx((2 / ((rows + 1) * HIDDEN)) ** 0.5, rel=0.05)
            assert not made[f"blocks.{i}.cross_attn.{name}.bias"].any()
    for name in ("y_embedder.y_proj.fc1", "y_embedder.y_proj.fc2", "csize_embedder.mlp.0", "ar_embedder.mlp.0"):
        assert made[f"{name}.weight"].std() == pytest.approx(0.02, rel=0.1)
        assert not made[f"{name}.bias"].any()
    assert made["y_embedder.y_embedding"].shape == (12, 32)
    assert made["y_embedder.y_embedding"].std() == pytest.approx(32**-0.5, rel=0.2)
    for name in ("csize_embedder.mlp.2", "ar_embedder.mlp.2"):  # so that they add nothing
        assert not any(made[f"{name}.{end}"].any() for end in ("weight", "bias"))


def test_xavier_is_torchs() -> None:
    drawn = torch.from_numpy(draws.xavier(0, "a", (300, 100)))
    theirs = torch.nn.init.xavier_uniform_(torch.empty(300, 100), generator=torch.Generator().manual_seed(0))
    assert drawn.abs().max() == pytest.approx(float(theirs.abs().max()), rel=1e-3)
    assert drawn.std() == pytest.approx(float(theirs.std()), rel=0.02)
    assert abs(float(drawn.mean())) < 1e-3


def test_the_same_numbers_everywhere() -> None:
    """Written down once: a NumPy that draws others would be noticed."""
    drawn = np.concatenate([draws.EMBEDDER(7, "t_block.1.weight", (2, 3)), draws.xavier(7, "k", (2, 3))])
    assert (
        hashlib.sha256(drawn.astype("<f4").tobytes()).hexdigest()
        == "db504a3ed0d5e973e7f08f52a88879d4f804a15255313e781818bc9bfa05d435"
    )


def test_each_key_and_each_seed_has_its_own() -> None:
    one = draws.EMBEDDER(0, "a", (4, 5))
    assert np.array_equal(one, draws.EMBEDDER(0, "a", (4, 5)))
    assert not np.array_equal(one, draws.EMBEDDER(0, "b", (4, 5)))
    assert not np.array_equal(one, draws.EMBEDDER(1, "a", (4, 5)))
    with origin(replace(SMALL, micro_condition=True)) as opened:
        keys = [key.replace("blocks.0.", f"blocks.{i}.") for key in opened.state() for i in range(64)]
    digests = {zlib.crc32(key.encode()) for key in keys}
    assert len(digests) == len(set(keys))  # no two keys of a deep model share their numbers


def test_a_seed_is_a_file(tmp_path: Path) -> None:
    for name, seed in (("a.pth", 0), ("b.pth", 0), ("c.pth", 1)):
        begun(tmp_path, replace(SMALL, seed=seed), name)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()
    assert (tmp_path / "a.pth").read_bytes() != (tmp_path / "c.pth").read_bytes()
