"""Records of versions that stated SHA-256, without a name, are read for ever: as digests of what they describe."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from makers import ROOT, State, raw_bytes
from safetensors.torch import load_file, save_file

import converter
from converter.conversion.up_to_date import is_up_to_date
from converter.filenames import RECORD, SIDECAR

GOLDEN = ROOT / "fixtures" / "golden" / "alpha-ms.pth"
CASES = ROOT / "fixtures" / "cases"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
TRAINED = "transformer_blocks.0.attn1.to_q.weight"
HEADS = {"num_attention_heads": 4}
ALIKE = f"are what {RECORD} says was converted"


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A folder as an earlier version left it: its tensors, and its own record of them."""
    folder = converter.convert(GOLDEN, tmp_path / "earlier", weights="ema", hyper_parameters=HEADS).path
    (folder / RECORD).write_bytes((CASES / "conversion-sha256.json").read_bytes())
    return folder


def train(folder: Path, key: str = TRAINED, file: str = WEIGHTS) -> State:
    state = load_file(folder / file)
    state[key] += 1
    save_file(state, folder / file, metadata={"format": "pt"})
    return state


def forge(folder: Path, key: str) -> None:
    """One digit of one stated digest."""
    text = (folder / RECORD).read_text()
    at = text.index(f'"{key}": "', text.index('"plan"')) + len(key) + 5
    (folder / RECORD).write_text(text[:at] + ("1" if text[at] == "0" else "0") + text[at + 1 :])


def test_the_way_back_is_proven_by_it(earlier: Path, tmp_path: Path) -> None:
    done = converter.convert(earlier, tmp_path / "back.pth", to="original")
    assert any(note.startswith("all ") and ALIKE in note for note in done.notes)
    assert converter.inspect(earlier, deep=True)["deep"]["changed"] == []


def test_what_was_trained_since_is_noticed(earlier: Path, tmp_path: Path) -> None:
    train(earlier)
    done = converter.convert(earlier, tmp_path / "again")
    assert any("1 of " in note and f"are not what {RECORD} says" in note for note in done.notes)
    assert converter.inspect(earlier, deep=True)["deep"]["changed"] == [TRAINED]
    old = json.loads((CASES / "conversion-sha256.json").read_text())
    stated = {key: f"sha256:{text}" for row in old["plan"] for key, text in row["sha256"].items()}
    assert done.record["changed"] == {TRAINED: stated[TRAINED]}
    # The next record hands on what was stated, by the algorithm that it was stated by.
    assert {key: text for row in done.record["origin"]["plan"] for key, text in row["digests"].items()} == stated
    for row in done.record["plan"]:
        for key, text in row["digests"].items():
            tensors = load_file(done.path / (SIDECAR if "sidecar" in row else WEIGHTS))
            assert text == f"sha256:{hashlib.sha256(raw_bytes(tensors[key])).hexdigest()}"


def test_a_forged_one_is_noticed(earlier: Path, tmp_path: Path) -> None:
    forge(earlier, TRAINED)
    done = converter.convert(earlier, tmp_path / "back.pth", to="original")
    assert any("1 of " in note and f"are not what {RECORD} says" in note for note in done.notes)


@pytest.mark.parametrize("key", ["y_embedder.y_embedding", "pos_embed"])
def test_a_forged_one_of_what_is_never_trained_is_refused(key: str, earlier: Path, tmp_path: Path) -> None:
    """In the sidecar, and computed."""
    forge(earlier, key)
    for to, name in (("original", "back.pth"), ("diffusers", "again")):
        with pytest.raises(converter.InputError, match="is not what"):
            converter.convert(earlier, tmp_path / name, to=to)


def test_a_conversion_of_a_conversion_with_what_had_changed(earlier: Path, tmp_path: Path) -> None:
    """Its record says both what the original was, and what had changed by then."""
    train(earlier)
    folder = converter.convert(earlier, tmp_path / "trained", dtype="bfloat16").path
    (folder / RECORD).write_bytes((CASES / "conversion-sha256-trained.json").read_bytes())
    assert is_up_to_date(earlier, folder, dtype="bfloat16") is not None
    done: Any = converter.convert(folder, tmp_path / "back.pth", to="original")
    assert any(f"1 of 86 tensors are not what {RECORD} says" in note for note in done.notes)
    assert any("rounded to bfloat16" in note for note in done.notes)
