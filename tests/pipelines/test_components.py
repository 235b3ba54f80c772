"""Components where people have them, and what is refused of them in one sentence."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from makers import ROOT, Result, tree
from parts import TEXT_ENCODER, TOKENIZER, VAE, flags

from converter.errors import InputError, UsageError
from converter.families.travelling import ShippedClass, shipped_class
from converter.pipelines.assemble import Components
from converter.pipelines.components import find_component

Cli = Callable[..., Result]


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    to.chmod(0o755)
    for path in to.iterdir():
        path.chmod(0o644)
    return to


def with_config(folder: Path, name: str = "config.json", **more: Any) -> Path:
    """The folder with other values in its config; None takes one out."""
    content = json.loads((folder / name).read_text()) | more
    (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return folder


def test_in_a_folder_of_its_own_and_in_that_of_a_pipeline(tmp_path: Path) -> None:
    copied(VAE, tmp_path / "pipe" / "vae")
    for place in (tmp_path / "pipe", tmp_path / "pipe" / "vae"):
        component = find_component(place, "vae")
        assert component.folder == tmp_path / "pipe" / "vae"
        assert component.entry == ("diffusers", "AutoencoderKL")
        assert {name: path.read_bytes() for name, path in component.files.items()} == tree(VAE)


def test_weights_of_one_format_with_their_shards_and_nothing_else(tmp_path: Path) -> None:
    """As in a repository of T5 with everything in one folder."""
    place = copied(TEXT_ENCODER, tmp_path / "t5")
    wanted = {*os.listdir(place)}
    assert "model.safetensors.index.json" in wanted
    shutil.copytree(TOKENIZER, place, dirs_exist_ok=True)
    for name in ("pytorch_model.bin", "tf_model.h5", "README.md", "generation_config.json", "model.fp16.safetensors"):
        (place / name).write_bytes(b"{}")
    (place / "onnx").mkdir()
    with_config(place, architectures=["T5ForConditionalGeneration"])
    component = find_component(place, "text_encoder")
    assert component.entry == ("transformers", "T5EncoderModel")
    assert {*component.files} == wanted
    tokenizer = find_component(place, "tokenizer")
    assert {*tokenizer.files} == {*os.listdir(TOKENIZER), "generation_config.json"}
    assert tokenizer.entry[0] == "transformers"


def test_in_a_cache_of_the_hub(tmp_path: Path) -> None:
    copied(VAE, tmp_path / "models--a--b" / "snapshots" / "c0" / "vae")
    (tmp_path / "models--a--b" / "refs").mkdir()
    (tmp_path / "models--a--b" / "refs" / "main").write_text("c0")
    assert find_component(tmp_path / "models--a--b", "vae").folder.parent.name == "c0"


def test_a_scheduler_of_diffusers(tmp_path: Path) -> None:
    (tmp_path / "scheduler_config.json").write_text('{"_class_name": "DDIMScheduler"}')
    (tmp_path / "other.py").write_text("class DDIMSchedulerToo: ...\n")
    component = find_component(tmp_path, "scheduler")
    assert (component.entry, [*component.files]) == (("diffusers", "DDIMScheduler"), ["scheduler_config.json"])
    (tmp_path / "other.py").write_text("import torch\n\n\nclass DDIMScheduler(Base):\n    pass\n")
    component = find_component(tmp_path, "scheduler")
    assert (component.entry, [*component.files]) == (("other", "DDIMScheduler"), ["scheduler_config.json", "other.py"])


def test_a_class_that_travels_is_not_run_for_that() -> None:
    table = ROOT / "converter" / "models" / "pixart" / "table.py"
    assert shipped_class("converter.models.pixart.table:KEYS") == ShippedClass("table", "KEYS", table)


def missing_shard(place: Path) -> Path:
    next(place.glob("*-00002-of-*")).unlink()
    return place


def dangling(place: Path, name: str) -> Path:
    (place / name).unlink()
    (place / name).symlink_to("gone")
    return place


def renamed(place: Path, name: str, to: str) -> Path:
    (place / name).rename(place / to)
    return place


WEIGHTS = "diffusion_pytorch_model.safetensors"
# part, what is done to a copy of it, what is said
BAD: dict[str, tuple[str, Path, Callable[[Path], Path], str]] = {
    "no folder": ("vae", VAE, lambda place: place / "no", "no: no such folder; a folder with the vae is needed"),
    "a file": ("vae", VAE, lambda place: place / WEIGHTS, "not a folder; a folder with the vae is needed"),
    "no config": ("vae", VAE, lambda place: renamed(place, "config.json", "c"), "holds no config.json: not a vae"),
    "no object": ("vae", VAE, lambda p: (p / "config.json").write_text("[]") and p, "config.json: not a JSON object"),
    "a dangling config": ("vae", VAE, lambda place: dangling(place, "config.json"), "a dangling link"),
    "dangling weights": ("vae", VAE, lambda place: dangling(place, WEIGHTS), "a dangling link"),
    "a dangling token list": ("tokenizer", TOKENIZER, lambda p: dangling(p, "spiece.model"), "a dangling link"),
    "a text encoder": ("vae", TEXT_ENCODER, lambda place: place, "config.json: not a vae but a T5EncoderModel"),
    "a VAE": ("text_encoder", VAE, lambda place: place, "config.json: not a text_encoder but a AutoencoderKL"),
    "a transformer": (
        "vae", VAE, lambda place: with_config(place, _class_name="PixArtTransformer2DModel"),
        "not a vae but a PixArtTransformer2DModel",
    ),
    "nothing named": (
        "vae", VAE, lambda place: with_config(place, _class_name=None),
        "not a vae but something whose config names no class",
    ),
    "another encoder": (
        "text_encoder", TEXT_ENCODER, lambda place: with_config(place, model_type="clip", architectures=["CLIPModel"]),
        "not a text_encoder but a CLIPModel",
    ),
    "another tokenizer": (
        "tokenizer", TOKENIZER, lambda p: with_config(p, "tokenizer_config.json", tokenizer_class="GemmaTokenizer"),
        "not a tokenizer but a GemmaTokenizer",
    ),
    "no scheduler": ("scheduler", VAE, lambda place: place, "holds no scheduler_config.json: not a scheduler"),
    "no weights": ("vae", VAE, lambda place: renamed(place, WEIGHTS, "sdxl_vae.safetensors"), "holds no weights"),
    "only a variant": (
        "vae", VAE, lambda place: renamed(place, WEIGHTS, "diffusion_pytorch_model.fp16.safetensors"),
        "the only weights are the variant fp16, which a pipeline does not load by itself: take '.fp16' out",
    ),
    "a stale index": (
        "text_encoder", TEXT_ENCODER, lambda place: (place / "model.safetensors").write_text("x") and place,
        "an index of shards: one of them is stale",
    ),
    "a missing shard": ("text_encoder", TEXT_ENCODER, missing_shard, "the shard model-00002-of-"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_such_component(name: str, tmp_path: Path, cli: Cli) -> None:
    part, good, spoil, words = BAD[name]
    place = spoil(copied(good, tmp_path / "part"))
    with pytest.raises(InputError) as raised:
        find_component(place, part)
    assert words in str(raised.value)
    assert str(place) in str(raised.value)
    places = {"text_encoder": TEXT_ENCODER, "tokenizer": TOKENIZER, part: place}
    more = [f"--{name}={where}" for name, where in places.items() if name != "vae"]
    result = cli("convert-pixart", *flags("alpha-ms", tmp_path / "out", *more, vae=places.get("vae", VAE)))
    assert result.returncode == 3
    assert result.stderr == f"convert-pixart: error: {raised.value}\n"
    assert os.listdir(tmp_path) == ["part"]


def test_a_link_without_end(tmp_path: Path) -> None:
    (tmp_path / "vae").symlink_to("vae")
    with pytest.raises(InputError, match="vae: not a folder"):
        find_component(tmp_path, "vae")


def test_components_in_the_target_would_be_replaced(tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "out"
    assert cli("convert-pixart", *flags("alpha-ms", out, "--components", "copy")).returncode == 0
    before = tree(out)
    for place in (out, out / "vae"):
        result = cli("convert-pixart", *flags("alpha-ms", out, "--overwrite", vae=place))
        assert result.returncode == 2
        assert "lies in the target, and would be replaced" in result.stderr
        assert tree(out) == before
    assert cli("convert-pixart", *flags("alpha-ms", out, "--overwrite")).returncode == 0
    assert (out / "vae" / "config.json").is_symlink()
    result = cli("convert-pixart", *flags("alpha-ms", out, "--overwrite", vae=out))  # its links lead elsewhere
    assert result.returncode == 0, result.stderr
    assert tree(out / "vae") == tree(VAE)


def test_a_tokenizer_whose_config_does_not_name_its_class(tmp_path: Path) -> None:
    place = with_config(copied(TOKENIZER, tmp_path / "tokenizer"), "tokenizer_config.json", tokenizer_class=None)
    assert find_component(place, "tokenizer").entry == ("transformers", "T5Tokenizer")


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        ({}, "`vae` is needed"),
        ({"vae": "v", "tokenizer": "t"}, "`tokenizer` requires `text_encoder`"),
        ({"vae": "v", "text_encoder": "t"}, "`text_encoder` requires `tokenizer`"),
        ({"vae": "v", "components": "move"}, "`components` move: one of link, copy"),
    ],
)
def test_what_does_not_go_together(words: dict[str, Any], rule: str) -> None:
    with pytest.raises(UsageError, match=rule):
        Components(**words)


@pytest.mark.parametrize(
    ("more", "rule"),
    [
        (["--scheduler", "ddim"], "--scheduler ddim: one of dpm-solver, sa-solver, iddpm, lcm, dmd, or a folder"),
        (["--text_encoder=", "--tokenizer", TOKENIZER], "--text_encoder is empty"),
    ],
)
def test_what_no_component_can_be(more: list[object], rule: str, tmp_path: Path, cli: Cli) -> None:
    result = cli("convert-pixart", *flags("alpha-ms", tmp_path / "out", *more))
    assert result.returncode == 2
    assert rule in result.stderr
    assert os.listdir(tmp_path) == []
