"""The report of a file, and what looking at one costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import GOLDEN, convert, diffusers_keyed, folder, pixart, prefixed, save

import converter
from converter import InputError, UsageError, inspect
from converter.conversion.inspection import REPORT_VERSION

ROOT = Path(__file__).resolve().parents[2]


GOLDEN_FILES: dict[str, dict[str, Any]] = {
    "alpha-ms": {"depth": 3, "micro_condition": True, "version": "alpha", "interpolation_scale": 2.0},
    "alpha-fixed": {"depth": 3, "micro_condition": False, "version": None, "image_size": 256},
    "sigma-ms": {"depth": 3, "micro_condition": False, "version": None, "interpolation_scale": 1.0},
    "sigma-qknorm": {"depth": 3, "qk_norm": True, "image_size": 256, "interpolation_scale": 0.5},
    "sigma-kvcompress": {"depth": 4, "kv_compress": "sampling=conv,factor=2,blocks=2-3", "interpolation_scale": 2.0},
}


@pytest.mark.parametrize("name", GOLDEN_FILES)
def test_golden_files(name: str) -> None:
    path = GOLDEN / f"{name}.pth"
    made = inspect(path)
    saved = torch.load(path, weights_only=True)
    state = saved.get("state_dict", saved)
    wanted = {"hidden_size": 48, "patch_size": 2, "in_channels": 4, "out_channels": 8, "caption_channels": 32}
    wanted |= {"image_size": 512, "interpolation_scale": 1.0} | GOLDEN_FILES[name]
    found = {name: finding["value"] for name, finding in made["hyper_parameters"].items()}
    assert wanted.items() <= found.items()
    assert all(finding["evidence"] for finding in made["hyper_parameters"].values())
    assert (made["version"], made["family"], made["layout"]) == (REPORT_VERSION, "pixart", "original")
    assert (made["tensors"], made["dtypes"]) == (len(state), {"float32": len(state)})
    assert made["bytes"] == 4 * sum(tensor.numel() for tensor in state.values())
    buffers = {"pos_embed", "y_embedder.y_embedding"}
    assert made["parameters"] == sum(tensor.numel() for key, tensor in state.items() if key not in buffers)
    assert (made["dropped"], made["sidecar"]) == (["pos_embed"], ["y_embedder.y_embedding"])
    assert made["source"]["name"] == f"{name}.pth"
    assert made["source"]["size"] == path.stat().st_size
    assert (made["foreign_objects"], made["keys"]) == ([], [])
    assert (made["features"], made["problems"]) == ([], [])
    assert json.loads(json.dumps(made)) == made


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (["x.lora_A.weight", "x.lora_B.weight"], "this is LoRA or other adapter weights, not a whole transformer"),
        (["down_blocks.0.resnets.0.conv1.weight"], "this is a U-Net (Stable Diffusion), another model family"),
        (["a.b.c"], "no model family knows these keys: a.b.c; `pixart new-family` drafts a family for them"),
    ],
)
def test_a_file_that_is_not_supported_is_described_with_its_keys(keys: list[str], says: str, tmp_path: Path) -> None:
    made = inspect(save({key: torch.ones(3) for key in keys}, tmp_path / "a.pth"))
    (problem,) = made["problems"]
    assert (problem, made["keys"]) == (says, keys)
    assert (made["family"], made["layout"], made["hyper_parameters"]) == (None, None, {})
    assert (made["features"], made["dropped"], made["sidecar"]) == ([], [], [])
    assert made["parameters"] * 4 == made["bytes"]


def test_a_training_file_has_two_candidates_and_other_entries() -> None:
    made = inspect(GOLDEN / "alpha-ms.pth")
    assert made["candidates"] == [
        {"weights": "raw", "where": "state_dict", "selected": True},
        {"weights": "ema", "where": "state_dict_ema", "selected": False},
    ]
    assert [entry.partition(":")[0] for entry in made["other_entries"]] == ["optimizer", "scheduler", "epoch"]
    ema = inspect(GOLDEN / "alpha-ms.pth", weights="ema")
    assert [candidate["selected"] for candidate in ema["candidates"]] == [False, True]
    assert (ema["source"]["weights"], ema["source"]["where"]) == ("ema", "state_dict_ema")
    with pytest.raises(UsageError, match="`weights` ema, but the file holds only raw weights"):
        inspect(GOLDEN / "alpha-fixed.pth", weights="ema")


class Stranger:
    """An object of a user's own class, as people leave them in checkpoints."""


class Dangerous:
    def __reduce__(self) -> Any:
        return eval, ("1 + 1",)


def test_foreign_objects_are_listed_and_the_dangerous_ones_are_said_to_be(tmp_path: Path) -> None:
    state = prefixed(pixart(), "module.")
    made = inspect(save({"state_dict": state, "args": Stranger(), "hook": Dangerous()}, tmp_path / "a.pth"))
    found = {item["name"]: item["dangerous"] for item in made["foreign_objects"]}
    assert {name.rpartition(".")[2]: danger for name, danger in found.items()} == {"Stranger": False, "eval": True}
    assert (len(made["other_entries"]), made["problems"], made["tensors"]) == (2, [], len(state))
    assert made["source"]["prefix"] == "module."


def test_all_that_stands_against_a_conversion_is_listed(tmp_path: Path) -> None:
    state = pixart() | {"blocks.0.attn.q_norm.weight": torch.ones(24), "blocks.1.extra": torch.ones(1)}
    state |= {f"blocks.0.attn.rel_pos_{axis}": torch.zeros(15, 6) for axis in "hw"}
    del state["t_block.1.bias"]
    made = inspect(save(state, tmp_path / "a.pth"))
    assert made["features"] == ["use_rel_pos"]
    assert [problem.split(" (")[0] for problem in made["problems"]] == [
        "use_rel_pos: this model has relative positions, which no released model has, nor the class to write",
        "unknown key blocks.1.extra",
        "missing t_block.1.bias",
        "missing blocks.{1}.attn.q_norm",
        "missing blocks.0.attn.q_norm.bias",
        "missing blocks.{0..1}.attn.k_norm",
    ]
    with pytest.raises(InputError, match=r"unknown key blocks\.1\.extra"):
        convert(tmp_path / "a.pth", tmp_path / "out")


def test_a_folder_in_the_layout_of_diffusers(tmp_path: Path) -> None:
    path = folder(diffusers_keyed(pixart()), tmp_path / "model", {"sample_size": 16, "num_attention_heads": 4})
    made = inspect(path)
    assert (made["family"], made["layout"], made["problems"]) == ("pixart", "diffusers", [])
    assert (made["dropped"], made["sidecar"]) == ([], [])
    assert made["hyper_parameters"]["num_attention_heads"]["source"] == "file"


def test_what_a_conversion_would_ask_for_is_in_the_report(tmp_path: Path) -> None:
    heads = inspect(GOLDEN / "sigma-ms.pth")["needs"]
    assert heads.startswith("`num_attention_heads` is needed: a file does not show it")
    with pytest.raises(UsageError) as caught:
        converter.convert(GOLDEN / "sigma-ms.pth", tmp_path / "out")
    assert str(caught.value) == heads
    given = {"num_attention_heads": 4, "version": "sigma"}
    made = inspect(GOLDEN / "sigma-ms.pth", hyper_parameters=given)
    assert made["needs"] == ""
    assert made["hyper_parameters"]["version"] == {"value": "sigma", "source": "given", "evidence": "--version"}
    with pytest.raises(UsageError, match="`image_size` 256 contradicts the file, which says 512"):
        inspect(GOLDEN / "sigma-ms.pth", hyper_parameters={"image_size": 256})
    path = save(pixart(pos_embed=False), tmp_path / "a.pth")
    assert inspect(path, hyper_parameters=given)["needs"].startswith("`image_size` is needed: ")
    assert inspect(save(pixart() | {"more": torch.ones(1)}, path))["needs"] == ""  # the problem comes first
    assert inspect(save({"a": torch.ones(1)}, path))["needs"] == ""


def test_notes_are_in_the_report(tmp_path: Path) -> None:
    made = inspect(save(pixart(input_size=64, scale=2.0), tmp_path / "a.pth"))
    (note,) = made["notes"]
    assert "where the released 512 px models have 1" in note


def test_no_tensor_is_read(tmp_path: Path) -> None:
    """Damage in the weights does not show in an index, and is found by the conversion."""
    state = pixart()
    path = save(state, tmp_path / "a.pth")
    before = inspect(path)
    content = bytearray(path.read_bytes())
    content[content.index(state["blocks.0.attn.qkv.weight"].numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)
    assert inspect(path) == before
    for words in ({}, {"dtype": "float16"}):
        with pytest.raises(InputError, match=r"a\.pth: .*CRC-32 mismatch"):
            convert(path, tmp_path / "out", **words)
    assert [file.name for file in tmp_path.iterdir()] == ["a.pth"]


# What is imported.
HEAVY = {"torch", "diffusers", "numpy", "safetensors", "transformers", "click", "tqdm"}
FILE, HEADS = "fixtures/golden/alpha-ms.pth", {"num_attention_heads": 4}
LIGHT = {
    "import converter": HEAVY,
    "import converter.mapping": HEAVY,
    "import converter.models.pixart.table": HEAVY,
    "import converter; converter.KeyMapping, converter.Family, converter.convert, converter.inspect": HEAVY,
    f"import converter; assert converter.inspect({FILE!r})['problems'] == []": HEAVY,
    f"from converter import convert as c; c({FILE!r}, OUT, weights='ema', hyper_parameters={HEADS!r})": HEAVY
    - {"numpy"},
}


@pytest.mark.parametrize("code", LIGHT)
def test_nothing_heavy_is_imported(code: str, tmp_path: Path) -> None:
    show = "import sys; print(*(name for name in sys.modules if '.' not in name))"
    command = [sys.executable, "-c", f"OUT = {str(tmp_path / 'out')!r}\n{code}\n{show}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    imported = set(done.stdout.split())
    assert "converter" in imported
    assert imported & LIGHT[code] == set()
    assert ("OUT" in code) == (tmp_path / "out" / "conversion.json").exists()
