"""Between spellings: what an adapter adds to a model stays what it is, whatever it is written as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora_makers import HEADS, LORA, SIGMA, D, Recording, added, apart, named, pair, recordings, write

from converter import InputError, convert_lora
from converter.lora.spelling import BY_NAME, WRITTEN

EXACT = 1e-6
IN_FOLDERS = ("peft", "diffusers")


def target(folder: Path, to: str) -> Path:
    return folder / to if to in IN_FOLDERS else folder / f"{to}.safetensors"


# Of each kind one in all spellings; all others where rows are cut, where they are joined, and where all has a place.
WHOLLY = ("d-patterns/", "d-ot-comfy", "d-ot-dora-in", "d-lycoris-loha", "d-save/", "d-ot-lokr")
ONCE = [one for one in recordings() if "d-train-hf-bin" not in named(one) and "transformer_lora" not in named(one)]
# What has no exact words there: per adapter, of all spellings that are tried.
REFUSED = {
    "d-lycoris-full": {"peft"},
    "d-ot-dora-in": {"peft", "diffusers", "kohya", "comfyui", "original", "omi"},
    "d-save": {"diffusers", "onetrainer", "omi"},
}


@pytest.mark.parametrize("recording", ONCE, ids=named)
def test_every_golden_adapter_in_every_spelling_that_can_hold_it(recording: Recording, tmp_path: Path) -> None:
    """With the base at hand; what cannot be said exactly is refused, and nothing is written."""
    wanted, refused = added(recording.base, recording.file, recording.weights), set[str]()
    for to in WRITTEN if named(recording).startswith(WHOLLY) else ("peft", "kohya", "lycoris"):
        path = target(tmp_path, to)
        try:
            convert_lora(recording.file, path, to, base=recording.base, hyper_parameters=HEADS)
        except InputError:
            refused.add(to)
            assert not path.exists()
        else:
            assert apart(wanted, added(recording.base, path, recording.weights)) < EXACT
    assert refused == next((these for name, these in REFUSED.items() if named(recording).startswith(name)), set())


SPLIT = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_k", "attn2.to_v", "attn2.to_q")
FUSED = ["kohya", "comfyui", "original"]
scales = st.sampled_from([0.5, 1.0, 3.0, 8.0, 2.703125])


@st.composite
def split_adapters(draw: Any) -> dict[str, tuple[int, float]]:
    """Some of the projections of a block, each with a rank and an alpha of its own."""
    modules = draw(st.lists(st.sampled_from(SPLIT), min_size=1, max_size=6, unique=True))
    return {module: (draw(st.integers(1, 5)), draw(scales)) for module in modules}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(modules=split_adapters(), fused=st.sampled_from(FUSED), last=st.sampled_from(WRITTEN))
def test_there_and_back(modules: dict[str, tuple[int, float]], fused: str, last: str, tmp_path: Path) -> None:
    """Ranks and alphas of every kind, absent parts, fused and split again: the same differences."""
    tensors: dict[str, Any] = {}
    for module, (rank, alpha) in modules.items():
        name = f"lora_transformer_transformer_blocks_1_{module.replace('.', '_')}"
        tensors |= pair(name, rank, ends="du") | {f"{name}.alpha": np.array(alpha, np.float32)}
    first = write(tmp_path / "first.safetensors", tensors)
    wanted, path = added(SIGMA, first), first
    for step, to in enumerate((fused, "onetrainer", last)):
        before, path = path, target(tmp_path / str(step), to)
        convert_lora(before, path, to, overwrite=True)
        assert apart(wanted, added(SIGMA, path)) < EXACT


def test_blocks_and_not_sums(tmp_path: Path) -> None:
    """Of fused rows each part has its own columns: its product reaches no rows of another."""
    tensors = pair("transformer.transformer_blocks.0.attn1.to_q", 2) | pair(
        "transformer.transformer_blocks.0.attn1.to_v", 3
    )
    convert_lora(write(tmp_path / "split.safetensors", tensors), tmp_path / "fused.safetensors", "kohya")
    from safetensors.numpy import load_file

    fused = load_file(tmp_path / "fused.safetensors")
    name = "lora_unet_blocks_0_attn_qkv"
    up, down, alpha = (fused[f"{name}.{end}"] for end in ("lora_up.weight", "lora_down.weight", "alpha"))
    assert up.shape == (3 * D, 5)
    assert down.shape == (5, D)
    assert alpha == 5
    assert not up[:D, 2:].any()
    assert not up[D : 2 * D].any()
    assert not up[2 * D :, :2].any()


def test_half_precision_is_kept_where_nothing_is_computed(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    source = LORA / "d-ot-legacy-bf16.safetensors"
    convert_lora(source, tmp_path / "out", "diffusers")
    written = load_file(tmp_path / "out" / "pytorch_lora_weights.safetensors")
    assert {str(held.dtype) for held in written.values()} == {"torch.bfloat16"}


def test_what_needs_the_base_says_so(tmp_path: Path) -> None:
    tensors = pair("lora_unet_blocks_0_attn_qkv", 2, 3 * D, ends="du")
    tensors |= {"lora_unet_blocks_0_attn_qkv.alpha": np.array(2, np.float32)}
    tensors |= {"lora_unet_blocks_0_attn_qkv.dora_scale": np.linspace(0.5, 2, D, dtype=np.float32)[None]}
    source = write(tmp_path / "a.safetensors", tensors)
    with pytest.raises(InputError, match="`base` is needed: the norms of DoRA per input"):
        convert_lora(source, tmp_path / "b.safetensors", "onetrainer")
    convert_lora(source, tmp_path / "b.safetensors", "onetrainer", base=SIGMA, hyper_parameters=HEADS)
    assert apart(added(SIGMA, source), added(SIGMA, tmp_path / "b.safetensors")) < EXACT
    with pytest.raises(InputError, match="DoRA per input, whose norms"):
        convert_lora(
            tmp_path / "b.safetensors", tmp_path / "c.safetensors", "kohya", base=SIGMA, hyper_parameters=HEADS
        )


def test_every_spelling_is_read_as_itself(tmp_path: Path) -> None:
    from converter.lora.reading import open_adapter

    source = LORA / "d-ot-original.safetensors"
    for to in WRITTEN:
        convert_lora(source, target(tmp_path, to), to)
        with open_adapter(target(tmp_path, to)) as adapter:
            assert adapter.spelling is BY_NAME[to]
