"""What is written is loaded by the tool that it is for: PEFT itself, and diffusers by its loader for adapters."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lora_makers import HEADS, LORA, Recording, added, named, recordings
from safetensors import safe_open
from safetensors.torch import load_file

from converter import convert_lora, load
from converter.lora.spelling import parted

# Of each kind that these tools have: ranks and alphas of their own, rsLoRA, DoRA, biases, whole modules, convolutions,
# fused rows; LoHa and LoKr as the LoRA that they are.
KINDS = (
    "d-patterns", "d-rslora", "d-dora", "d-layers", "d-save", "d-ot-kohya", "d-lycoris-loha", "d-lycoris-lokr-full",
    "d-ot-legacy-bf16",
)  # fmt: skip
CHOSEN = [one for one in recordings() if named(one).startswith(KINDS)]


def weights(model: Any) -> dict[str, Any]:
    return {key: held.detach().double().numpy() for key, held in model.state_dict().items()}


def same_as_the_adapter(recording: Recording, before: dict[str, Any], after: dict[str, Any]) -> None:
    """What was added to the weights of a model is what the source adds, in the layout of the original."""
    wanted = added(recording.base, recording.file)
    from converter.families import find

    family = find("pixart")
    back = family.keys.plan_back({key: held for key, held in before.items()})
    found = {
        move.targets[0]: move.operation.inverse([after[key] - before[key] for key in move.sources])
        for move in back.moves
    }
    for key, difference in found.items():
        right = wanted.get(key, np.zeros_like(difference))
        assert np.abs(difference - right).max() < 2e-6, key
    assert any(difference.any() for difference in found.values())


@pytest.mark.parametrize("recording", CHOSEN, ids=named)
def test_peft_loads_its_folder(recording: Recording, tmp_path: Path) -> None:
    from peft import PeftModel

    convert_lora(recording.file, tmp_path / "peft", "peft")
    model = load(recording.base, hyper_parameters=HEADS)
    before = weights(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of keys that are missing or left over
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        wrapped = PeftModel.from_pretrained(model, tmp_path / "peft")
    same_as_the_adapter(recording, before, weights(wrapped.merge_and_unload()))


@pytest.mark.parametrize("recording", [one for one in CHOSEN if "d-save" not in named(one)], ids=named)
def test_diffusers_loads_its_file(recording: Recording, tmp_path: Path) -> None:
    from diffusers.loaders.peft import PeftAdapterMixin

    convert_lora(recording.file, tmp_path / "lora", "diffusers")
    model = load(recording.base, hyper_parameters=HEADS)
    before = weights(model)
    model.__class__ = type("WithLoader", (type(model), PeftAdapterMixin), {})
    path = tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    with safe_open(path, "pt") as opened:
        fields = json.loads(opened.metadata()["lora_adapter_metadata"])
    model.load_lora_adapter(load_file(path), prefix="transformer", metadata=fields)
    model.fuse_lora()
    model.unload_lora()
    same_as_the_adapter(recording, before, weights(model))


@pytest.mark.parametrize(("to", "golden"), [
    ("kohya", "d-ot-kohya"), ("comfyui", "d-ot-comfy"), ("onetrainer", "d-ot-legacy"), ("omi", "d-ot-omi"),
    ("original", "d-ot-original"), ("diffusers", "d-ot-diffusers"),
])  # fmt: skip
def test_the_names_are_those_that_the_tools_write(to: str, golden: str, tmp_path: Path) -> None:
    """Of the same modules the same keys, but for alphas where a tool folds them in, and other models' keys."""
    source = LORA / f"{golden}.safetensors"
    convert_lora(source, tmp_path / "through", "peft")
    convert_lora(tmp_path / "through", tmp_path / "back.safetensors", to)

    def keys(path: Path) -> set[str]:
        return {key for key in load_file(path) if not key.startswith("lora_te_")}

    wanted = keys(source)
    assert keys(tmp_path / "back.safetensors") == wanted
    assert all(map(parted, wanted))
