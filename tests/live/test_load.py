"""`converter.load` gives what `from_pretrained` of the converted folder gives, from every kind of source."""

from __future__ import annotations

import json
import logging
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from makers import (
    CONTAINERS,
    GOLDEN,
    HEADS,
    PREFIXES,
    convert,
    diffusers_keyed,
    dit,
    folder,
    other,
    pixart,
    prefixed,
    raw_bytes,
    recorded,
    save,
)
from safetensors.torch import save_file

import converter
from converter.models.dit.dit_transformer import DiTExactTransformer2DModel
from converter.models.pixart.pixart_controlnet import PixArtControlNetAdapterModel
from converter.models.pixart.pixart_transformer import PixArtExtendedTransformer2DModel

GIVEN = {"num_attention_heads": HEADS}
SOURCES = [
    ("alpha-ms.pth", "raw"),
    ("alpha-ms.pth", "ema"),
    ("alpha-fixed.pth", None),
    ("sigma-ms.pth", None),
    ("sigma-qknorm.pth", None),
    ("sigma-kvcompress.pth", None),
    ("dit.pt", None),
]


def load(source: object, **words: Any) -> Any:
    return converter.load(source, **{"hyper_parameters": GIVEN} | words)


TRAVELLING = (DiTExactTransformer2DModel, PixArtExtendedTransformer2DModel)


def pretrained(place: Path, **words: Any) -> Any:
    """The converted folder as diffusers loads it."""
    config = json.loads((place / "transformer" / "config.json").read_text())
    classes = vars(diffusers) | {kind.__name__: kind for kind in TRAVELLING}
    kind = classes.get(config["_class_name"]) or getattr(diffusers, config["_class_name"])
    return kind.from_pretrained(place, subfolder="transformer", **words)


def tensors_of(model: Any) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes, bool]]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return {key: (each.dtype, tuple(each.shape), raw_bytes(each.detach()), each.requires_grad) for key, each in named}


def assert_same(model: Any, wanted: Any) -> None:
    assert type(model) is type(wanted)
    assert tensors_of(model) == tensors_of(wanted)
    assert {**model.config, "_name_or_path": ""} == {**wanted.config, "_name_or_path": ""}
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(("name", "weights"), SOURCES)
def test_it_is_what_from_pretrained_gives_of_the_conversion(name: str, weights: str | None, tmp_path: Path) -> None:
    convert(GOLDEN / name, tmp_path / "out", weights=weights)
    model, wanted = load(GOLDEN / name, weights=weights), pretrained(tmp_path / "out")
    assert_same(model, wanted)
    assert_same(load(tmp_path / "out"), wanted)
    if name == "dit.pt":
        convert(GOLDEN / name, tmp_path / "stock", stock=True)
        assert_same(load(GOLDEN / name, stock=True), pretrained(tmp_path / "stock"))
    latent = next(case["latent"] for case in recorded(name.partition(".")[0])[1])
    inputs = {"timestep": torch.full((len(latent),), 500)}
    if name.startswith("dit"):
        inputs["class_labels"] = torch.zeros(len(latent), dtype=torch.long)
    else:
        inputs["encoder_hidden_states"] = torch.randn(len(latent), 7, model.config.caption_channels)
        micro = model.config.use_additional_conditions
        sizes = {"resolution": torch.full((len(latent), 2), 512.0), "aspect_ratio": torch.ones(len(latent), 1)}
        inputs["added_cond_kwargs"] = sizes if micro else dict.fromkeys(sizes)
    with torch.no_grad():
        assert torch.equal(model(latent, **inputs).sample, wanted(latent, **inputs).sample)


def test_a_model_of_several_folders_is_each_of_them(tmp_path: Path) -> None:
    convert(GOLDEN / "alpha-controlnet.pth", tmp_path / "out")
    wanted = {
        "transformer": pretrained(tmp_path / "out"),
        "controlnet": PixArtControlNetAdapterModel.from_pretrained(tmp_path / "out", subfolder="controlnet"),
    }
    for source in (GOLDEN / "alpha-controlnet.pth", tmp_path / "out"):
        models = load(source)
        assert models.keys() == wanted.keys()
        for name, model in models.items():
            assert_same(model, wanted[name])
    assert_same(load(tmp_path / "out" / "controlnet")["controlnet"], wanted["controlnet"])
    assert_same(load(tmp_path / "out" / "transformer"), wanted["transformer"])


@pytest.mark.parametrize("torch_dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_dtypes(torch_dtype: torch.dtype, stored: torch.dtype, tmp_path: Path) -> None:
    source = save(pixart(dtype=stored), tmp_path / "a.pth")
    convert(source, tmp_path / "out")
    assert_same(load(source, torch_dtype=torch_dtype), pretrained(tmp_path / "out", torch_dtype=torch_dtype))
    assert_same(
        load(source, torch_dtype=str(torch_dtype).removeprefix("torch.")), load(source, torch_dtype=torch_dtype)
    )


@pytest.mark.parametrize("stored", [torch.float16, torch.float64])
def test_without_a_dtype_it_is_torchs_default_one(stored: torch.dtype, tmp_path: Path) -> None:
    source = save(pixart(dtype=stored), tmp_path / "a.pth")
    convert(source, tmp_path / "out")
    assert_same(load(source), pretrained(tmp_path / "out"))
    assert load(source).dtype is torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert_same(load(source), pretrained(tmp_path / "out"))
        assert load(source).dtype is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def wanted() -> dict[str, torch.Tensor]:
    return diffusers_keyed(pixart())


def _sources() -> Mapping[str, Callable[[Path], Path]]:
    """Every kind of source for the same weights."""
    state, config = pixart(), {"_class_name": "PixArtTransformer2DModel"}
    keyed = diffusers_keyed(state)
    loose = {key: tensor for key, tensor in state.items() if key != "pos_embed"}
    sources: dict[str, Callable[[Path], Path]] = {
        name: lambda path, wrap=wrap: save(wrap(state), path / "a.pth") for name, wrap in CONTAINERS.items()
    }
    for prefix in PREFIXES:
        sources[f"behind {prefix!r}"] = lambda path, prefix=prefix: save(prefixed(state, prefix), path / "a.pth")
    for shards, suffix in ((1, "safetensors"), (3, "safetensors"), (1, "bin"), (3, "bin")):
        sources[f"{shards} {suffix}"] = lambda path, s=shards, e=suffix: folder(
            keyed, path / "model", config, shards=s, suffix=e
        )

    def saved(path: Path) -> Path:
        save_file(prefixed(loose, "model.diffusion_model."), path / "comfyui.safetensors")
        return path / "comfyui.safetensors"

    return sources | {"comfyui": saved}


@pytest.mark.parametrize("kind", _sources())
def test_every_kind_of_source(kind: str, tmp_path: Path, wanted: dict[str, torch.Tensor]) -> None:
    words = {"hyper_parameters": GIVEN | {"image_size": 128, "interpolation_scale": 1.0}}
    assert_state(load(_sources()[kind](tmp_path), **words).state_dict(), wanted)


def assert_state(state: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    assert state.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert (state[key].dtype, raw_bytes(state[key])) == (tensor.dtype, raw_bytes(tensor)), key


# Memory.


def mapped(model: Any, path: Path) -> set[str]:
    """The parameters that lie in pages of a file, as the kernel has them."""
    spans = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, name = line.split(maxsplit=5)
        if name == str(path.resolve()):
            spans.append([int(end, 16) for end in span.split("-")])
    return {
        key
        for key, parameter in model.named_parameters()
        if any(start <= parameter.data_ptr() < stop for start, stop in spans)
    }


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_tensors_are_pages_of_the_file_and_training_leaves_it_alone(suffix: str, tmp_path: Path) -> None:
    state, path = pixart(), tmp_path / f"a.{suffix}"
    if suffix == "pth":
        save(state, path)
    else:
        save_file(state, path)
    path.chmod(0o444)
    before = path.read_bytes()
    model = load(path)
    assert mapped(model, path) == {*model.state_dict()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert path.read_bytes() == before
    assert_state(
        {key: tensor + 1 for key, tensor in model.state_dict().items()},
        {key: tensor - 1 + 1 for key, tensor in diffusers_keyed(state).items()},
    )
    assert_state(load(path).state_dict(), diffusers_keyed(state))
    copied = load(path, disable_mmap=True)
    assert mapped(copied, path) == set()
    assert_state(copied.state_dict(), diffusers_keyed(state))
    assert mapped(load(path, torch_dtype="bfloat16"), path) == set()


def test_a_saved_parameter_is_no_larger_than_itself(tmp_path: Path) -> None:
    model = load(save(pixart(), tmp_path / "a.pth"))
    torch.save(model.proj_out.bias, tmp_path / "one.pth")
    assert (tmp_path / "one.pth").stat().st_size < 4096


def test_what_is_not_aligned_is_copied(tmp_path: Path) -> None:
    path, state = tmp_path / "a.safetensors", pixart()
    save_file(state, path)
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    path.write_bytes(struct.pack("<Q", size + 1) + data[8 : 8 + size] + b" " + data[8 + size :])
    model = load(path)
    assert mapped(model, path) == set()
    assert_state(model.state_dict(), diffusers_keyed(state))


def test_what_several_parameters_share_in_the_file_is_theirs_alone_in_memory(tmp_path: Path) -> None:
    path = save(dit(), tmp_path / "a.pth")
    model = load(path)
    embedders = [block.norm1.emb.timestep_embedder.linear_1.weight for block in model.transformer_blocks]
    with torch.no_grad():
        embedders[0].add_(1)
    assert not torch.equal(*embedders)
    state = pixart()
    state["blocks.1.mlp.fc2.bias"] = state["blocks.0.mlp.fc2.bias"]
    tied = load(save(state, tmp_path / "tied.pth"))
    with torch.no_grad():
        tied.transformer_blocks[0].ff.net[2].bias.add_(1)
    assert torch.equal(tied.transformer_blocks[1].ff.net[2].bias, state["blocks.0.mlp.fc2.bias"])


def test_strided_tensors(tmp_path: Path) -> None:
    state = {key: tensor.t().contiguous().t() if tensor.dim() == 2 else tensor for key, tensor in pixart().items()}
    path = save(state, tmp_path / "a.pth")
    assert_state(load(path).state_dict(), diffusers_keyed(state))


# In a process of its own: what earlier tests have left behind may take some of a model, or go while one is loaded.
MEASURED = """
import sys
import converter
from converter.pipelines.memory import peak, release, resident
for torch_dtype in ("float32", "float32", "float16"):  # the first imports what is needed
    release()
    before = resident()
    with peak() as stage:
        converter.load(sys.argv[1], torch_dtype=torch_dtype, hyper_parameters={"num_attention_heads": int(sys.argv[2])})
    print(stage.rss_bytes - before)
"""


def test_peak_memory_is_the_model_and_little_more(tmp_path: Path) -> None:
    path = save(pixart(depth=12, hidden_size=576), tmp_path / "a.pth")
    size = path.stat().st_size
    assert size > 200_000_000
    command = [sys.executable, "-c", MEASURED, path, str(HEADS)]
    _, *grown = (int(line) for line in subprocess.check_output(command, text=True).split())
    for own, count in zip((0, size / 2), grown, strict=True):
        assert own * 0.9 < count < own + 40_000_000


# Refusals.


@pytest.mark.parametrize(("words", "error", "rule"), [
    ({"torch_dtype": "half"}, converter.UsageError, r"`torch_dtype` 'half': one of float16, bfloat16, float32"),
    ({"torch_dtype": torch.int8}, converter.UsageError, r"`torch_dtype` torch.int8: one of "),
    ({"device": "cuda"}, converter.UsageError, r"`device` cuda: "),
    ({"device": "nowhere"}, converter.UsageError, r"`device` nowhere: "),
    ({"device": "meta"}, converter.UsageError, r"`device` meta: Cannot copy out of meta tensor"),
    ({"dtype": "float16"}, converter.UsageError, r"dtype: not an option of loading, which are torch_dtype, device, "),
    ({"num_attention_heads": 4}, converter.UsageError, r"go into hyper_parameters={'num_attention_heads': \.\.\.}"),
    ({"weights": "ema"}, converter.UsageError, r"ema"),
    ({"hyper_parameters": {"num_attention_heads": 5}}, converter.UsageError, r"`num_attention_heads` 5"),
    ({"require_evidence": True}, converter.UsageError, r"`require_evidence`: state what is assumed so far"),
    ({"family": "dit"}, converter.InputError, r"not a DiT that can be converted"),
    ({"allow_zeros": 1}, converter.UsageError, r"`allow_zeros` 1: must be bool"),
])  # fmt: skip
def test_a_call_that_is_wrong(words: dict[str, Any], error: type[Exception], rule: str, tmp_path: Path) -> None:
    if words.get("device") == "cuda" and torch.cuda.is_available():
        words["device"] = "cuda:99"
    with pytest.raises(error, match=rule) as caught:
        load(save(pixart(), tmp_path / "a.pth"), **words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", [None, 5, b"x.pth"])
def test_what_is_no_path(source: Any) -> None:
    with pytest.raises(converter.UsageError) as caught:
        load(source)
    assert str(caught.value) == f"{source!r}: a path is needed, and not {type(source).__name__}"
    for call in (converter.inspect, lambda source: converter.load_pipeline(source, vae="vae")):
        with pytest.raises(converter.UsageError, match="a path is needed"):
            call(source)


def damaged(path: Path) -> Path:
    data = bytearray(save(pixart(), path).read_bytes())
    where = data.index(raw_bytes(pixart()["blocks.1.mlp.fc1.weight"]))
    data[where + 5] ^= 1
    path.write_bytes(data)
    return path


def with_value(value: float, index: int | slice = 3) -> Callable[[Path], Path]:
    def saved(path: Path) -> Path:
        state = pixart()
        state["blocks.1.attn.qkv.weight"][index] = value
        return save(state, path)

    return saved


@pytest.mark.parametrize(("source", "words", "rule"), [
    (damaged, {}, r"data/\d+: CRC-32 mismatch: the file is damaged"),
    (with_value(float("nan")), {}, r"elements are NaN or infinite, in blocks.1.attn.qkv.weight; `allow_nonfinite`"),
    (with_value(1e30), {"torch_dtype": "float16"}, r"elements are beyond float16, in blocks.1.attn.qkv.weight"),
    (with_value(0, slice(None)), {}, r"1 tensor is zero throughout, as no training leaves it: blocks.1.attn.qkv"),
    (with_value(1e-30, slice(None)), {"torch_dtype": "float16"}, r"zero throughout once rounded to float16"),
])  # fmt: skip
def test_a_file_that_is_refused(
    source: Callable[[Path], Path], words: dict[str, Any], rule: str, tmp_path: Path
) -> None:
    path = source(tmp_path / "a.pth")
    with pytest.raises(converter.InputError, match=rule) as loaded:
        load(path, **words)
    with pytest.raises(converter.InputError) as refused:
        convert(path, tmp_path / "out", dtype=words.get("torch_dtype"))
    assert str(loaded.value) == str(refused.value)  # as a conversion says it


def test_what_is_allowed_is_let_through_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = with_value(float("inf"))(tmp_path / "a.pth")
    with caplog.at_level(logging.WARNING, "converter"):
        model = load(path, allow_nonfinite=True)
    assert torch.isinf(model.transformer_blocks[1].attn1.to_q.weight[3]).all()
    assert any("let through" in message for message in caplog.messages)
    assert all(message.startswith(f"{path}: ") for message in caplog.messages)


def test_assumptions_and_notes_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "converter"):
        load(GOLDEN / "alpha-ms.pth")
    assert any("assumed: kv_compress = False (" in message for message in caplog.messages)
    assert any("ema weights are there too" in message.lower() for message in caplog.messages)


def test_a_family_without_a_class_and_one_whose_table_is_not_the_classs(tmp_path: Path) -> None:
    def config(found: converter.Findings) -> dict[str, Any]:
        return {"_class_name": found.value("kind"), "num_layers": 1}

    family = converter.Family(
        name="toy",
        title="Toy",
        keys=converter.KeyMapping({"toy.fc [D D]": "proj_out"}),
        describe=lambda plan, state, found: found.given_or_assumed("kind", "ToyModel", "it is one"),
        config=config,
        flags={"kind": str},
    )
    source = save({"toy.fc.weight": torch.ones(4, 4), "toy.fc.bias": torch.ones(4)}, tmp_path / "a.pth")
    converter.register(family)
    try:
        with pytest.raises(converter.UsageError, match=r"names the class ToyModel, which is no model of diffusers"):
            converter.load(source)
        with pytest.raises(converter.InputError, match=r"not the weights of a PixArtTransformer2DModel: missing "):
            converter.load(source, hyper_parameters={"kind": "PixArtTransformer2DModel"})
    finally:
        from converter import families

        del families._REGISTERED["toy"]


@pytest.mark.parametrize("name", ["sigma-qknorm.pth", "dit.pt", "alpha-controlnet.pth"])
def test_loading_leaves_random_numbers_and_the_default_dtype_alone(name: str) -> None:
    before = torch.random.get_rng_state()
    load(GOLDEN / name, torch_dtype="bfloat16")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_default_dtype() is torch.float32


def test_several_threads_at_once() -> None:
    def loaded(number: int) -> Any:
        return load(GOLDEN / "sigma-ms.pth", torch_dtype=dtypes[number % 3])

    dtypes, patched = (torch.float32, torch.float16, torch.bfloat16), torch.nn.Module.register_parameter
    wanted = [tensors_of(loaded(number)) for number in range(3)]
    with ThreadPoolExecutor(4) as pool:
        futures, others = [pool.submit(loaded, number) for number in range(24)], set()
        while not all(future.done() for future in futures):
            weight = torch.nn.Linear(2, 2).weight
            others.add((weight.device.type, weight.dtype))
    for number, future in enumerate(futures):
        assert tensors_of(future.result()) == wanted[number % 3]
    assert others == {("cpu", torch.float32)}  # what another thread makes meanwhile is as ever
    assert torch.nn.Module.register_parameter is patched


def test_a_buffer_that_its_class_does_not_compute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    init = diffusers.PixArtTransformer2DModel.__init__

    @wraps(init)
    def changed(self: Any, *args: Any, **fields: Any) -> None:
        init(self, *args, **fields)
        self.register_buffer("scale", torch.empty(2), persistent=False)

    path = save(pixart(), tmp_path / "a.pth")
    monkeypatch.setattr(diffusers.PixArtTransformer2DModel, "__init__", changed)
    with pytest.raises(
        converter.InputError, match="not the weights of a PixArtTransformer2DModel: scale is not computed"
    ):
        load(path)


def test_ema_is_other_than_raw(tmp_path: Path) -> None:
    state = pixart()
    path = save({"state_dict": state, "state_dict_ema": other(state)}, tmp_path / "a.pth")
    assert_state(load(path, weights="ema").state_dict(), diffusers_keyed(other(state)))
