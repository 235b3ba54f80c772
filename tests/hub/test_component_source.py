"""Components of a pipeline on the hub: only their own files are fetched, once, and what is said where they are not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from makers import HEADS, ROOT, Result, tree
from server import Hub

from converter.errors import InputError, UsageError
from converter.hub import local_component
from converter.pipelines.components import find_component

Files = dict[str, bytes]
Cli = Callable[..., Result]
INDEX = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()
VAE = {"vae/config.json": b'{"_class_name": "AutoencoderKL"}', "vae/diffusion_pytorch_model.safetensors": b"vae"}
T5 = {
    "text_encoder/config.json": b'{"model_type": "t5"}',
    "text_encoder/model.safetensors.index.json": INDEX,
    "text_encoder/model-1.safetensors": b"one",
    "text_encoder/model-2.safetensors": b"two",
}
TOKENIZER = {
    "tokenizer/tokenizer_config.json": b'{"tokenizer_class": "T5Tokenizer"}',
    "tokenizer/special_tokens_map.json": b"{}",
    "tokenizer/spiece.model": b"words",
}
SCHEDULER = {"scheduler/scheduler_config.json": b'{"_class_name": "Mine"}', "scheduler/mine.py": b"class Mine: ...\n"}
PIPELINE = VAE | T5 | TOKENIZER | SCHEDULER
OTHERS = {
    "README.md": b"#",
    "model_index.json": b"{}",
    "transformer/diffusion_pytorch_model.safetensors": b"large",
    "vae/diffusion_pytorch_model.bin": b"large",
    "vae/diffusion_pytorch_model.fp16.safetensors": b"large",
    "text_encoder/pytorch_model.bin": b"large",
    "text_encoder/deeper/config.json": b"{}",
    "tokenizer/picture.png": b"",
}


@pytest.mark.parametrize("part", ["vae", "text_encoder", "tokenizer", "scheduler"])
@pytest.mark.parametrize("text", ["owner/pipe", "hf://owner/pipe", "hf://owner/pipe@main/{part}", "hf://owner/deep/in"])
def test_of_a_pipeline_only_that_component(part: str, text: str, hub: Hub) -> None:
    hub.add("owner/pipe", PIPELINE | OTHERS)
    hub.add("owner/deep", {f"in/{name}": data for name, data in (PIPELINE | OTHERS).items()})
    component = find_component(text.format(part=part), part)
    wanted = {name.partition("/")[2]: data for name, data in PIPELINE.items() if name.startswith(f"{part}/")}
    assert {name: path.read_bytes() for name, path in component.files.items()} == wanted
    assert tree(component.folder) == wanted
    assert len(hub.downloads()) == sum(name.endswith(".safetensors") for name in wanted)
    assert not any(count > 1 for count in hub.downloads().values())
    hub.log.clear()
    assert find_component(text.format(part=part), part) == component
    assert not hub.asked("GET", "/resolve/")
    assert not hub.downloads()


def test_of_a_repository_of_its_own(hub: Hub) -> None:
    hub.add("owner/vae", {name[4:]: data for name, data in VAE.items()} | {"README.md": b"#", "sd.ckpt": b"large"})
    assert tree(local_component("owner/vae", "vae")) == {name[4:]: data for name, data in VAE.items()}


def test_what_is_in_the_cache_serves_without_the_hub(hub: Hub) -> None:
    hub.add("owner/pipe", PIPELINE)
    place = local_component("owner/pipe", "text_encoder")
    hub.answer = lambda method, path: (503, b"")
    assert local_component("owner/pipe", "text_encoder") == place
    with pytest.raises(InputError, match=r"owner/pipe: what a vae consists of is not in the cache, and the hub is"):
        local_component("owner/pipe", "vae")


def test_a_path_here_is_no_place_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    assert local_component(tmp_path, "vae") == tmp_path
    assert not hub.log


def test_a_pipeline_of_components_on_the_hub(hub: Hub, tmp_path: Path, cli: Cli) -> None:
    """Its links lead to the cache's blobs, which stay where they are."""
    parts = ROOT / "fixtures" / "pipeline"
    vae = {f"vae/{name}": data for name, data in tree(parts / "vae-alpha").items()}
    hub.add("owner/pipe", vae | TOKENIZER)
    call = ["--orig_ckpt_path", parts / "alpha-ms.pth", "--dump_path", tmp_path / "out", "--num_attention_heads", HEADS]
    result = cli("convert-pixart", *call, "--only_transformer=False", "--vae", "owner/pipe")
    assert result.returncode == 0, result.stderr
    assert tree(tmp_path / "out" / "vae") == tree(parts / "vae-alpha")
    assert {Path(os.readlink(path)).parent.name for path in (tmp_path / "out" / "vae").iterdir()} == {"blobs"}
    result = cli("convert-pixart", *call, "--only_transformer=False", "--vae", "owner/none", "--overwrite")
    assert result.returncode == 3
    assert "owner/none: the hub has no such model repository" in result.stderr
    result = cli("convert-pixart", *call, "--only_transformer=False", "--vae", parts / "vae", "--overwrite")
    assert result.returncode == 3
    assert "0.18215 is needed" in result.stderr
    assert "; --vae PixArt-alpha/PixArt-XL-2-1024-MS is one that fits" in result.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("owner/none", "the hub has no such model repository, or it is private"),
        ("hf://owner/pipe@v9", "no such branch, tag or commit"),
        ("hf://owner/pipe/other", "is not in the repository"),
        ("owner/empty", "what a vae consists of is not in the repository"),
        ("owner/both", "an index of shards: one of them is stale"),
    ],
)
def test_what_is_not_there(text: str, words: str, hub: Hub, tmp_path: Path, cli: Cli) -> None:
    hub.add("owner/pipe", PIPELINE)
    hub.add("owner/empty", {"README.md": b"#"})
    hub.add("owner/both", VAE | {"vae/diffusion_pytorch_model.safetensors.index.json": INDEX})
    with pytest.raises(InputError) as raised:
        local_component(text, "vae")
    assert words in str(raised.value)
    assert str(raised.value).startswith(text)
    assert "\n" not in str(raised.value)


def test_a_place_that_is_misspelt() -> None:
    with pytest.raises(UsageError, match="not a place on the hub"):
        local_component("hf://owner", "vae")


def test_a_shard_that_is_missing_there(hub: Hub) -> None:
    hub.add("owner/pipe", {name: data for name, data in T5.items() if "model-2" not in name})
    with pytest.raises(InputError, match=r"the shard model-2\.safetensors is missing"):
        find_component("owner/pipe", "text_encoder")
