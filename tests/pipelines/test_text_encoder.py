"""The text encoder, whole and streamed: to the last bit what transformers makes of the folder, in less memory."""

from __future__ import annotations

import gc
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import makers
import pytest
import torch
from safetensors.torch import load_file, save_file

from converter.errors import InputError, UsageError
from converter.pipelines.text_encoder import encode

one_thread = makers.one_thread

WEIGHTS = "model.safetensors"
BLOCKS = 6
IDS = torch.tensor([[7, 30, 12, 1, 0, 0, 0], [3, 3, 49, 21, 5, 18, 1]])
MASK = torch.tensor([[1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]])
FORMS = ["safetensors", "shards", "bin", "with-decoder", "relu"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 in every form in which its weights are published: `safetensors`, `shards`, `bin`, with its decoder; and one
    whose layers are not gated."""
    from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration

    at = tmp_path_factory.mktemp("t5")
    small = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": BLOCKS, "num_heads": 4, "vocab_size": 50}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        # As the published ones of version 1.1 have it, whose embedding is shared nevertheless.
        gated = T5Config(**small, feed_forward_proj="gated-gelu", num_decoder_layers=1, tie_word_embeddings=False)
        for name, kind, config in (
            ("with-decoder", T5ForConditionalGeneration, gated),
            ("relu", T5EncoderModel, T5Config(**small)),
        ):
            model = kind(config)
            for parameter in model.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
            model.save_pretrained(at / name)
    encoder = T5EncoderModel.from_pretrained(at / "with-decoder")
    encoder.save_pretrained(at / "safetensors")
    encoder.save_pretrained(at / "shards", max_shard_size="20KB")
    encoder.config.save_pretrained(at / "bin")
    torch.save(encoder.state_dict(), at / "bin" / "pytorch_model.bin")
    return at


@pytest.fixture
def own(folders: Path, tmp_path: Path) -> Path:
    """A copy of the T5 in one file, to be damaged."""
    return Path(shutil.copytree(folders / "safetensors", tmp_path / "own"))


def transformers_output(folder: Path, dtype: torch.dtype) -> torch.Tensor:
    from transformers import T5EncoderModel

    with torch.no_grad():
        model = T5EncoderModel.from_pretrained(folder, dtype=dtype).eval()
        output: torch.Tensor = model(IDS, attention_mask=MASK)[0]
    return output


def streamed(folder: Path, ids: torch.Tensor = IDS, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return encode(ids, MASK, folder, how="streamed", dtype=dtype)


@contextmanager
def changed(folder: Path) -> Iterator[dict[str, torch.Tensor]]:
    """The weights of a folder, to be changed."""
    state = load_file(folder / WEIGHTS)
    yield state
    save_file(state, folder / WEIGHTS)


# The same numbers.


@pytest.mark.parametrize("how", ["whole", "streamed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
def test_to_the_last_bit_what_transformers_makes(folders: Path, form: str, dtype: torch.dtype, how: str) -> None:
    counts: list[int] = []

    def progress(count: int) -> bool:  # as a bar of tqdm answers
        counts.append(count)
        return len(counts) % 2 == 0

    output = encode(IDS, MASK, folders / form, how=how, dtype=dtype, progress=progress)
    assert output.dtype == dtype
    assert torch.equal(output, transformers_output(folders / form, dtype))
    assert counts == [1] * BLOCKS


def test_the_shards_are_several(folders: Path) -> None:
    assert len(list((folders / "shards").glob("*.safetensors"))) > BLOCKS
    assert any("decoder" in key for key in load_file(folders / "with-decoder" / WEIGHTS))


def test_another_mask_is_another_result(folders: Path) -> None:
    """So that equality above says something."""
    folder = folders / "safetensors"
    everything = encode(IDS, torch.ones_like(MASK), folder, how="streamed", dtype=torch.float32)
    assert not torch.equal(everything[0], streamed(folder)[0])
    assert torch.equal(everything[1], streamed(folder)[1])


def test_an_embedding_under_its_own_name(own: Path, folders: Path) -> None:
    with changed(own) as state:
        state["encoder.embed_tokens.weight"] = state.pop("shared.weight")
    assert torch.equal(streamed(own), streamed(folders / "safetensors"))


def test_what_comes_out_is_a_tensor_like_any_other(folders: Path) -> None:
    output = streamed(folders / "safetensors")
    output += 1  # refused by what inference mode makes
    assert not output.is_inference()


@pytest.mark.parametrize(("how", "worst"), [("8bit", 0.1), ("nf4", 0.5)])
def test_quantised_it_is_nearly_the_same(folders: Path, how: str, worst: float) -> None:
    exact = streamed(folders / "safetensors")
    output = encode(IDS, MASK, folders / "safetensors", how=how, dtype=torch.bfloat16)
    assert output.dtype == torch.bfloat16
    assert 0.005 < float((output.float() - exact).norm() / exact.norm()) < worst


# In the memory of a block.


def tensor_bytes() -> int:
    """What all living tensors hold, each storage once."""
    storages = {}
    for one in gc.get_objects():
        if type(one) in (torch.Tensor, torch.nn.Parameter) and not one.is_meta:
            storages[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
    return sum(storages.values())


def test_one_block_at_a_time_and_nothing_stays(folders: Path) -> None:
    state = load_file(folders / "safetensors" / WEIGHTS)
    block = sum(4 * held.numel() for key, held in state.items() if key.startswith("encoder.block.0."))
    del state
    streamed(folders / "safetensors")  # what is made once per process
    seen: list[int] = []
    gc.collect()
    gc.disable()
    try:
        before = tensor_bytes()
        output = encode(
            IDS,
            MASK,
            folders / "safetensors",
            how="streamed",
            dtype=torch.float32,
            progress=lambda _: seen.append(tensor_bytes() - before),
        )
        after = tensor_bytes() - before
    finally:
        gc.enable()
    assert len(seen) == BLOCKS
    assert block <= max(seen) < 1.5 * block  # and activations
    assert after == output.untyped_storage().nbytes()


# Input that is refused.


def refused(folder: Path, rule: str) -> None:
    for how in ("whole", "streamed"):
        with pytest.raises(InputError, match=rule) as caught:
            encode(IDS, MASK, folder, how=how, dtype=torch.float32)
        assert folder.name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_no_weights(own: Path) -> None:
    (own / WEIGHTS).unlink()
    refused(own, "holds no weights")
    refused(own.parent / "nowhere", "No such file or directory")


@pytest.mark.parametrize("form", ["safetensors", "shards", "bin"])
def test_a_truncated_file(folders: Path, form: str, tmp_path: Path) -> None:
    own = Path(shutil.copytree(folders / form, tmp_path / "own"))
    largest = max(own.iterdir(), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-100])
    refused(own, re.escape(largest.name))


def test_a_missing_shard(folders: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(folders / "shards", tmp_path / "own"))
    next(own.glob("*-00003-of-*")).unlink()
    refused(own, "the shard .* is missing")


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (
            {"model_type": "clip_text_model"},
            "config.json: a clip_text_model with num_layers 6, where a t5 with 6, as in the weights, is needed",
        ),
        ({"num_layers": 10**12}, f"a t5 with num_layers {10**12}, where a t5 with {BLOCKS}"),
        ({"num_layers": None}, "a t5 with num_layers None"),
        ({"d_model": "wide"}, "config.json: transformers refuses it"),
        ({"feed_forward_proj": "a-b-c"}, "config.json: transformers refuses it"),
        (
            {"feed_forward_proj": "relu", "is_gated_act": False},
            r"encoder.block.0.layer.1.DenseReluDense.wi.weight: is missing",
        ),
        ({"d_ff": 65}, r"wi_0.weight: is float32 \[64, 32\], where config.json asks for floats \[65, 32\]"),
    ],
)
def test_a_config_that_does_not_fit(own: Path, change: dict[str, Any], rule: str) -> None:
    config = json.loads((own / "config.json").read_text()) | change
    (own / "config.json").write_text(json.dumps(config))
    refused(own, rule)


def test_no_config(own: Path) -> None:
    (own / "config.json").unlink()
    refused(own, "a None with num_layers None")


def test_weights_that_do_not_fit(own: Path) -> None:
    norm = "encoder.final_layer_norm.weight"
    with changed(own) as state:
        held = state.pop(norm)
    refused(own, f"{norm}: is missing")
    with changed(own) as state:
        state |= {norm: held, "encoder.block.0.layer.0.SelfAttention.q.bias": held.clone()}
    refused(own, r"q\.bias: is in no T5 with this config\.json")
    with changed(own) as state:
        del state["encoder.block.0.layer.0.SelfAttention.q.bias"]
        state[norm] = held.to(torch.int8)
    refused(own, rf"{norm}: is int8 \[32\].*quantised weights")


def test_the_tokenizer_of_another_model(folders: Path) -> None:
    with pytest.raises(InputError, match="knows 50 tokens, and the tokenizer has one with the id 50"):
        streamed(folders / "safetensors", torch.where(IDS == 49, 50, IDS))


@pytest.mark.parametrize("how", ["whole", "streamed"])
def test_an_overflow_of_half_precision(own: Path, how: str) -> None:
    with changed(own) as state:
        state["encoder.final_layer_norm.weight"].fill_(6e4)
    with pytest.raises(InputError, match=r"not finite \(overflow in float16: use bfloat16 or float32\)"):
        encode(IDS, MASK, own, how=how, dtype=torch.float16)
    assert bool(encode(IDS, MASK, own, how=how, dtype=torch.bfloat16).isfinite().all())


def test_damaged_weights(own: Path) -> None:
    with changed(own) as state:
        state["shared.weight"][7] = torch.nan
    refused(own, r"not finite \(are its weights damaged\?\)")


def test_weights_that_transformers_does_not_see(own: Path) -> None:
    (own / WEIGHTS).rename(own / "model.fp16.safetensors")
    assert streamed(own).shape == (2, 7, 32)
    with pytest.raises(InputError, match="transformers cannot load it"):
        encode(IDS, MASK, own, how="8bit", dtype=torch.bfloat16)


def test_a_way_that_there_is_not(folders: Path) -> None:
    with pytest.raises(UsageError, match="quickly: one of whole, streamed, 8bit, nf4"):
        encode(IDS, MASK, folders / "safetensors", how="quickly", dtype=torch.float32)


@pytest.mark.parametrize(
    ("how", "missing", "rule"),
    [
        ("streamed", "transformers", r"encoding a prompt needs transformers: .*\[pipeline\]"),
        ("nf4", "bitsandbytes", r"a text encoder in nf4 needs bitsandbytes: .*\[quantize\]"),
        ("8bit", "accelerate", r"a text encoder in 8bit needs accelerate: .*\[quantize\]"),
    ],
)
def test_missing_packages(folders: Path, how: str, missing: str, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter.errors.find_spec", lambda name: None if name == missing else name)
    with pytest.raises(UsageError, match=rule):
        encode(IDS, MASK, folders / "safetensors", how=how, dtype=torch.float32)
