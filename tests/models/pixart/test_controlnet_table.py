"""PixArt-delta's ControlNet: one file becomes two folders and comes back bit for bit; what is one, and what is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from makers import GOLDEN, HEADS, State, convert, prefixed, save
from originals import golden, random
from safetensors.torch import load_file, save_file
from shaped import CONTROLNETS, inventory, produced, small

from converter.conversion.inspection import inspect
from converter.conversion.up_to_date import is_up_to_date
from converter.errors import InputError, UsageError
from converter.families import recognise
from converter.live.load import load
from converter.mapping import MappingError
from converter.models.pixart.controlnet_table import KEYS, PIXART_CONTROLNET
from converter.models.pixart.pixart_controlnet import PixArtControlNetAdapterModel
from converter.models.pixart.table import PIXART

FILE = GOLDEN / "alpha-controlnet.pth"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(FILE, tmp_path_factory.mktemp("controlnet") / "out").path


def state_of(path: Path) -> State:
    held: Any = torch.load(path, weights_only=True)
    return held.get("state_dict", held)


def same(one: State, other: State) -> bool:
    """The same keys in the same order, with the same bits."""
    return list(one) == list(other) and all(
        torch.equal(one[k], other[k]) and one[k].dtype == other[k].dtype for k in one
    )


def config_of(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return read


# Both ways.


def test_the_golden_file_becomes_both_folders(out: Path) -> None:
    transformer, loading = PixArtTransformer2DModel.from_pretrained(out / "transformer", output_loading_info=True)
    assert not any(loading.values())
    adapter, loading = PixArtControlNetAdapterModel.from_pretrained(out / "controlnet", output_loading_info=True)
    assert not any(loading.values())
    assert (len(transformer.transformer_blocks), len(adapter.controlnet_blocks)) == (4, 2)
    sizes = {"num_layers": 2, "num_attention_heads": HEADS, "attention_head_dim": 12, "cross_attention_dim": 48}
    assert sizes.items() <= config_of(out / "controlnet").items()
    written = json.loads((out / "conversion.json").read_text())["written"]
    assert {name.partition("/")[0] for name in written if "/" in name} == {"transformer", "controlnet"}


def test_the_way_back_is_the_file(out: Path, tmp_path: Path) -> None:
    convert(out, tmp_path / "back.pth", to="original")
    assert same(state_of(tmp_path / "back.pth"), state_of(FILE))


def test_a_folder_by_itself(out: Path, tmp_path: Path) -> None:
    """Of the copies alone a file comes back that holds them alone; the base alone is a PixArt as ever."""
    convert(out / "controlnet", tmp_path / "copies.pth", to="original")
    copies = {key: tensor for key, tensor in state_of(FILE).items() if key.startswith("controlnet.")}
    assert same(state_of(tmp_path / "copies.pth"), copies)
    assert inspect(out / "transformer")["family"] == "pixart"
    convert(out / "transformer", tmp_path / "base.pth", to="original")
    base = state_of(tmp_path / "base.pth")
    assert all(
        torch.equal(tensor, state_of(FILE)[f"base_model.{key}"]) for key, tensor in base.items() if "blocks" in key
    )


@pytest.mark.parametrize("gone", ["transformer", "controlnet", "controlnet/config.json"])
def test_what_is_left_of_both_folders_is_refused(gone: str, out: Path, tmp_path: Path) -> None:
    """The record says that there was more; each folder by itself may be given."""
    left = tmp_path / "left"
    shutil.copytree(out, left)
    shutil.rmtree(left / gone) if (left / gone).is_dir() else (left / gone).unlink()
    missing = f"{gone.removesuffix('/config.json')}/config.json: missing: conversion.json says"
    with pytest.raises(InputError, match=missing):
        convert(left, tmp_path / "back.pth", to="original")
    with pytest.raises(InputError, match=missing):
        load(left)
    assert not (tmp_path / "back.pth").exists()
    other = "controlnet" if gone == "transformer" else "transformer"
    convert(left / other, tmp_path / "half.pth", to="original")


def test_copies_alone(out: Path, tmp_path: Path) -> None:
    copies = {key: tensor for key, tensor in state_of(FILE).items() if key.startswith("controlnet.")}
    file = save(copies, tmp_path / "copies.pth")
    done = convert(file, tmp_path / "out")
    assert sorted(path.name for path in done.path.iterdir()) == ["controlnet", "conversion.json"]
    assert (done.path / "controlnet" / WEIGHTS).read_bytes() == (out / "controlnet" / WEIGHTS).read_bytes()
    convert(done.path, tmp_path / "back.pth", to="original")
    assert same(state_of(tmp_path / "back.pth"), copies)
    for name, value in {"qk_norm": True, "micro_condition": True, "image_size": 256, "version": "alpha"}.items():
        with pytest.raises(UsageError, match=f"`{name}` {value} contradicts the file, which says copied blocks alone"):
            convert(file, tmp_path / "other", **{name: value})
    assert inspect(file, hyper_parameters={"qk_norm": False, "num_attention_heads": HEADS})["needs"] == ""


def test_there_is_no_stock_class(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`stock`: this is a ControlNet, for which diffusers has no class"):
        convert(FILE, tmp_path / "out", stock=True)
    assert not (tmp_path / "out").exists()


def test_what_a_reader_should_know_names_the_folder(out: Path, tmp_path: Path) -> None:
    """Of the class that travels, and of weights that are not read."""
    notes = json.loads((out / "conversion.json").read_text())["notes"]
    assert any(note.startswith("the class of controlnet, PixArtControlNetAdapterModel, travels") for note in notes)
    shutil.copytree(out, tmp_path / "both")
    shutil.copytree(out / "transformer", tmp_path / "both" / "transformer_ema")
    told = convert(tmp_path / "both", tmp_path / "back.pth", to="original").notes
    assert any("transformer_ema: other weights beside transformer, not read" in note for note in told)


@pytest.mark.parametrize("words", [{"max_shard_size": 100_000}, {"dtype": "float16"}, {"variant": "mine"}])
def test_what_else_can_be_asked_of_a_conversion(words: dict[str, Any], tmp_path: Path) -> None:
    done = convert(FILE, tmp_path / "out", **words)
    assert is_up_to_date(FILE, done.path, hyper_parameters={"num_attention_heads": HEADS}, **words) is not None
    convert(done.path, tmp_path / "back.pth", to="original")
    rounded = {k: t.half() if "dtype" in words and "pos_embed" not in k and "y_embedding" not in k else t
               for k, t in state_of(FILE).items()}  # fmt: skip
    assert same(state_of(tmp_path / "back.pth"), rounded)
    names = {path.name for path in (done.path / "controlnet").glob("*.safetensors*")}
    assert len(names) > 2 if "max_shard_size" in words else len(names) == 1


@pytest.mark.parametrize("copies", [1, 2, 3])
@pytest.mark.parametrize("changes", [{"multi_scale": False}, {"micro_condition": True}])
def test_any_number_of_copies_fixed_and_multi_scale(copies: int, changes: dict[str, Any], tmp_path: Path) -> None:
    model = random(copied_blocks=copies, depth=4, **changes)
    file = save(model.state, tmp_path / "net.pth")
    done = convert(file, tmp_path / "out", multi_scale_train=changes.get("multi_scale", True), version="alpha")
    assert config_of(done.path / "controlnet")["num_layers"] == copies
    convert(done.path, tmp_path / "back.pth", to="original")
    assert same(state_of(tmp_path / "back.pth"), model.state)


@pytest.mark.parametrize("name", CONTROLNETS)
def test_the_released_ones_fill_both_models(name: str) -> None:
    state = inventory(name)
    plan = KEYS.plan(state)
    with torch.device("meta"):
        extra = name.endswith("1024")
        base = PixArtTransformer2DModel(sample_size=128 if extra else 64, caption_channels=4096, interpolation_scale=2)
        adapter = PixArtControlNetAdapterModel()
    models = {"transformer": base, "controlnet": adapter}
    wanted = {f"{part}.{k}": tuple(t.shape) for part, model in models.items() for k, t in model.state_dict().items()}
    assert produced(plan, state) == wanted
    assert plan.stacks == {"base_model.blocks": 28, "controlnet": 13}


# The research project's class has its sizes hard-coded: the keys and shapes of one block, and what only the first has.
WIDTH = 1152
LAYERS = {
    "transformer_block.attn1.to_q": (WIDTH, WIDTH), "transformer_block.attn1.to_k": (WIDTH, WIDTH),
    "transformer_block.attn1.to_v": (WIDTH, WIDTH), "transformer_block.attn1.to_out.0": (WIDTH, WIDTH),
    "transformer_block.attn2.to_q": (WIDTH, WIDTH), "transformer_block.attn2.to_k": (WIDTH, WIDTH),
    "transformer_block.attn2.to_v": (WIDTH, WIDTH), "transformer_block.attn2.to_out.0": (WIDTH, WIDTH),
    "transformer_block.ff.net.0.proj": (4 * WIDTH, WIDTH), "transformer_block.ff.net.2": (WIDTH, 4 * WIDTH),
    "after_proj": (WIDTH, WIDTH),
}  # fmt: skip


def test_the_research_projects_class_would_load_it(tmp_path: Path) -> None:
    """Both formats of what it saves are read, too."""
    layers = {f"controlnet_blocks.{i}.{name}": shape for i in range(2) for name, shape in LAYERS.items()}
    layers["controlnet_blocks.0.before_proj"] = (WIDTH, WIDTH)
    wanted = {f"controlnet_blocks.{i}.transformer_block.scale_shift_table": (6, WIDTH) for i in range(2)}
    for name, shape in layers.items():
        wanted |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    sizes = small(hidden_size=WIDTH, depth=3, copied_blocks=2)
    copies = {
        key: torch.full(held.shape, 0.5, dtype=torch.float16)
        for key, held in sizes.items()
        if key.startswith("controlnet.")
    }
    done = convert(save(copies, tmp_path / "wide.pth"), tmp_path / "out", num_attention_heads=None)
    state = load_file(done.path / "controlnet" / WEIGHTS)
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == wanted
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    save_file(state, theirs / WEIGHTS)
    for config in ({"_class_name": "PixArtControlNetAdapterModel", "num_layers": 2}, None):
        if config:
            (theirs / "config.json").write_text(json.dumps(config))
        convert(theirs if config else theirs / WEIGHTS, tmp_path / "back.pth", to="original", overwrite=True)
        back = state_of(tmp_path / "back.pth")
        assert back.keys() == copies.keys()
        assert all(torch.equal(back[key], tensor) for key, tensor in copies.items())
        (theirs / "config.json").unlink(missing_ok=True)


def test_simpletuners_adapters_are_read(out: Path, tmp_path: Path) -> None:
    shutil.copytree(out / "controlnet", tmp_path / "sigma")
    config = config_of(out / "controlnet") | {"_class_name": "PixArtSigmaControlNetAdapterModel"}
    (tmp_path / "sigma" / "config.json").write_text(json.dumps(config))
    told = inspect(tmp_path / "sigma")
    assert (told["family"], told["layout"], told["problems"]) == ("pixart-controlnet", "diffusers", [])
    assert {name: told["hyper_parameters"][name]["value"] for name in ("copied_blocks", "num_attention_heads")} == {
        "copied_blocks": 2,
        "num_attention_heads": HEADS,
    }
    (tmp_path / "sigma" / "config.json").write_text(json.dumps(config | {"num_layers": 3}))
    assert "num_layers: 3" in " ".join(inspect(tmp_path / "sigma")["problems"])


# What is one, and what is none.


def test_inspect_says_what_it_is() -> None:
    told = inspect(FILE, hyper_parameters={"num_attention_heads": HEADS})
    assert (told["family"], told["layout"], told["problems"], told["needs"]) == (
        "pixart-controlnet",
        "original",
        [],
        "",
    )
    values = {name: finding["value"] for name, finding in told["hyper_parameters"].items()}
    shown = {"base_model": True, "copied_blocks": 2, "depth": 4, "hidden_size": 48, "micro_condition": True}
    assert shown.items() <= values.items()
    assert values["image_size"] == 256
    assert (told["dropped"], told["sidecar"]) == (["base_model.pos_embed"], ["base_model.y_embedder.y_embedding"])


def test_a_base_without_copies_is_a_pixart(tmp_path: Path) -> None:
    base = prefixed(golden("alpha-ms").state, "base_model.")
    told = inspect(save(base, tmp_path / "base.pth"), hyper_parameters={"num_attention_heads": HEADS})
    assert (told["family"], told["source"]["prefix"], told["problems"]) == ("pixart", "base_model.", [])


@pytest.mark.parametrize("prefix", ["module.", "model.net."])
def test_a_wrapped_file(prefix: str, tmp_path: Path) -> None:
    told = inspect(save(prefixed(state_of(FILE), prefix), tmp_path / "net.pth"))
    assert (told["family"], told["source"]["prefix"], told["problems"]) == ("pixart-controlnet", prefix, [])


def renamed(state: State, old: str, new: str) -> State:
    return {key.replace(old, new): tensor for key, tensor in state.items()}


def changed(state: State) -> dict[str, tuple[State, str]]:
    """State dicts that cannot be converted, and what has to be said of them."""

    def less(*starts: str) -> State:
        return {key: tensor for key, tensor in state.items() if not key.startswith(starts)}

    more = {f"controlnet.2.{key.split('.', 2)[2]}": t for key, t in state.items() if key.startswith("controlnet.1.")}
    deep = more | {f"controlnet.3.{key.split('.', 2)[2]}": t for key, t in more.items()}
    stray = {"controlnet.1.before_proj.weight": torch.ones(48, 48)}
    norms = {
        f"base_model.blocks.{i}.attn.{n}_norm.{part}": torch.ones(48)
        for i in range(4)
        for n in "qk"
        for part in ("weight", "bias")
    }
    return {
        "a hole": (renamed(state, "controlnet.1.", "controlnet.3."), r"missing controlnet\.\{1\.\.2\}\.copied_block"),
        "no first projection": (less("controlnet.0.before_proj"), r"missing controlnet\.0\.before_proj"),
        "another's": (state | stray, r"unknown key controlnet\.1\.before"),
        "half a base": (less("base_model.blocks.3.attn"), r"missing base_model\.blocks\.\{3\}\.attn"),
        "no copies": (less("controlnet.0.c", "controlnet.1."), "missing controlnet"),
        "no room": (state | deep, "4 copied blocks: a base of 4 blocks has room for 3"),
        "queries normalised": (state | norms, "missing controlnet"),
    }  # fmt: skip


@pytest.mark.parametrize("case", changed(state_of(FILE)))
def test_what_is_incomplete_is_refused(case: str, tmp_path: Path) -> None:
    state, words = changed(state_of(FILE))[case]
    with pytest.raises(InputError, match=words) as refused:
        convert(save(state, tmp_path / "net.pth"), tmp_path / "out")
    assert "ControlNet" in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_other_controlnets_are_none(tmp_path: Path) -> None:
    keys = ("mlp.inverted_conv.conv.weight", "attn.qkv.weight")
    sana = {f"controlnet.0.copied_block.{key}": torch.ones(1) for key in keys}
    assert recognise(sana) is None
    with pytest.raises(InputError, match="this is a SANA ControlNet: its file holds two models"):
        convert(save(sana, tmp_path / "sana.pth"), tmp_path / "out")
    older = renamed(golden("alpha-ms").state, "blocks.0.", "blocks.0.base_block.")
    with pytest.raises(InputError, match=r"not a PixArt that.*blocks\.0\.base_block"):
        convert(save(older, tmp_path / "older.pth"), tmp_path / "out")
    assert recognise(golden("alpha-ms").state) == (PIXART, False)
    with pytest.raises(MappingError):
        KEYS.plan(golden("alpha-ms").state)


@pytest.mark.parametrize("content", [b"", b"junk", "another kind"])
def test_somebody_elses_controlnet_is_left_alone(content: Any, out: Path, tmp_path: Path) -> None:
    """In a pipeline without a record of ours, that folder may hold anything."""
    shutil.copytree(out / "transformer", tmp_path / "pipe" / "transformer")
    other = tmp_path / "pipe" / "controlnet"
    other.mkdir()
    (other / "config.json").write_text('{"_class_name": "ControlNetModel"}')
    if isinstance(content, bytes):
        (other / WEIGHTS).write_bytes(content)
    else:
        save_file({"controlnet_cond_embedding.conv_in.weight": torch.ones(3)}, other / WEIGHTS)
    told = inspect(tmp_path / "pipe")
    assert (told["family"], told["problems"]) == ("pixart", [])
    # One of our own is read, be it damaged or whole.
    shutil.copytree(out, tmp_path / "own")
    (tmp_path / "own" / "controlnet" / WEIGHTS).write_bytes(b"junk")
    with pytest.raises(InputError, match="controlnet"):
        convert(tmp_path / "own", tmp_path / "back.pth", to="original")


def test_a_changed_config_is_seen(out: Path, tmp_path: Path) -> None:
    shutil.copytree(out, tmp_path / "own")
    config = config_of(out / "controlnet") | {"num_attention_heads": 8}
    (tmp_path / "own" / "controlnet" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"controlnet\.num_attention_heads: 8, and the converted model would have 4"):
        convert(tmp_path / "own", tmp_path / "back.pth", to="original")


def test_the_table_is_derived() -> None:
    """Every row of a PixArt is in it, with its operation, and only the projections are new."""
    rows = {row.source: row for row in KEYS.rows}
    for row in PIXART.keys.rows:
        assert rows[f"base_model.{row.source}"].operation == row.operation
        assert (f"controlnet.{{}}.copied_block.{row.source[10:]}" in rows) == row.source.startswith("blocks.{}.")
    new = [name for name in rows if not name.startswith("base_model.") and ".copied_block." not in name]
    assert new == ["controlnet.0.before_proj", "controlnet.{}.after_proj"]
    assert PIXART_CONTROLNET.folders == ("transformer", "controlnet")


def test_copies_beside_a_model_that_is_not_their_base(tmp_path: Path) -> None:
    copies = {key: tensor for key, tensor in state_of(FILE).items() if key.startswith("controlnet.")}
    beside = prefixed(golden("alpha-ms").state, "net.") | copies
    with pytest.raises(InputError, match="the copied blocks of a PixArt ControlNet, whose base has base_model"):
        convert(save(beside, tmp_path / "net.pth"), tmp_path / "out")
