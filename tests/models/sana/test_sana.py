"""SANA's table, and what is read off a file, asked, or assumed."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SanaControlNetModel, SanaTransformer2DModel
from makers import GOLDEN, Result, inventories, pixart, save, tree
from safetensors.torch import load_file, save_file
from sanas import EXACT, GIVEN, NAMES, original, settings
from shaped import FakeState, shaped

import converter
from converter import Findings, InputError, UsageError
from converter.conversion.analysis import analyse
from converter.conversion.training_folders import checkpoints_under
from converter.models.sana.conventions import AMENDED
from converter.models.sana.sana_transformer import SanaExactTransformer2DModel
from converter.models.sana.table import SANA

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def weights(path: Path) -> dict[str, torch.Tensor]:
    """Those of a file in the original layout."""
    state: dict[str, Any] = torch.load(path, weights_only=True)
    made: dict[str, torch.Tensor] = state.get("state_dict", state)
    return made


def config_of(folder: Path) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((folder / "transformer/config.json").read_text())
    return made


@pytest.mark.parametrize("name", NAMES)
def test_the_config_is_what_the_original_net_was_made_of(name: str, folders: dict[str, Path]) -> None:
    said, config = settings(name), config_of(folders[name])
    hidden = said["hidden_size"]
    wanted = {
        "_class_name": AMENDED.exact if name in EXACT else AMENDED.stock,
        "num_layers": said["depth"],
        "num_attention_heads": hidden // said["linear_head_dim"],
        "attention_head_dim": said["linear_head_dim"],
        "num_cross_attention_heads": said["num_heads"],
        "cross_attention_head_dim": hidden // said["num_heads"],
        "cross_attention_dim": hidden,
        "caption_channels": said["caption_channels"],
        "mlp_ratio": said["mlp_ratio"],
        "sample_size": said["input_size"],
        "interpolation_scale": said["pe_interpolation"] if said["use_pe"] else None,
        "qk_norm": "rms_norm_across_heads" if said.get("qk_norm") else None,
        "guidance_embeds": said.get("cfg_embed", False),
        "guidance_embeds_scale": said.get("cfg_embed_scale", 0.1),
        "timestep_scale": 1 / said.get("timestep_norm_scale_factor", 1.0),
    }
    assert {key: config[key] for key in wanted} == wanted
    kind = SanaExactTransformer2DModel if name in EXACT else SanaTransformer2DModel
    written = {key for key in config if not key.startswith("_") and key != "auto_map"}
    assert written == set(signature(kind.__init__).parameters) - {"self"}
    if name in EXACT:
        assert config["trained_in"] == ("fp16" if name == "sana-clip" else "bf16")


@pytest.mark.parametrize("name", NAMES)
def test_the_way_back_is_bit_for_bit(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    back = converter.convert(folders[name], tmp_path / "back.pth", to="original").path
    made, state = weights(back), original(name)
    assert list(made) == list(state)
    assert all(torch.equal(made[key], state[key]) for key in state)
    # A folder stays what it is, and so do its class and its words.
    twice = converter.convert(folders[name] / "transformer", tmp_path / "twice").path
    assert tree(twice / "transformer") == tree(folders[name] / "transformer")


def test_a_sprint_has_its_timestep_embedder_elsewhere(folders: dict[str, Path]) -> None:
    one, other = (load_file(folders[name] / WEIGHTS) for name in ("sana-1.5", "sana-sprint"))
    place, guided = "time_embed.emb.timestep_embedder.linear_1.weight", "time_embed.timestep_embedder.linear_1.weight"
    assert (place in one, guided in one, place in other, guided in other) == (True, False, False, True)
    state = original("sana-sprint")
    assert torch.equal(other[guided], state["t_embedder.mlp.0.weight"])
    assert torch.equal(other["time_embed.guidance_embedder.linear_2.bias"], state["cfg_embedder.mlp.2.bias"])


def test_what_diffusers_has_no_place_for_is_in_the_sidecar(folders: dict[str, Path], tmp_path: Path) -> None:
    sidecar, caption = load_file(folders["sana-sprint"] / "original_extras.safetensors"), "y_embedder.y_embedding"
    assert sorted(sidecar) == ["logvar_linear.bias", "logvar_linear.weight", caption]
    # A table that is not bit for bit the computed one is kept too.
    state = original("sana-4k")
    state["pos_embed"] = state["pos_embed"].half().float()
    path = save(state, tmp_path / "rounded.pth")
    done = converter.convert(path, tmp_path / "rounded", hyper_parameters=GIVEN["sana-4k"])
    assert torch.equal(load_file(done.path / "original_extras.safetensors")["pos_embed"], state["pos_embed"])
    back = converter.convert(done.path, tmp_path / "back.pth", to="original").path
    assert torch.equal(weights(back)["pos_embed"], state["pos_embed"])
    # The user gives the caption, and never what weighs the loss.
    alone = tmp_path / "alone"
    shutil.copytree(folders["sana-sprint"] / "transformer", alone)
    save_file({"x": state[caption]}, tmp_path / "null.safetensors")
    back = converter.convert(
        alone, tmp_path / "with.pth", to="original", null_caption=tmp_path / "null.safetensors"
    ).path
    made = weights(back)
    assert torch.equal(made[caption], state[caption])
    assert "logvar_linear.weight" not in made
    # Of a model without guidance, nobody expects it.
    shutil.copytree(folders["sana-4k"] / "transformer", tmp_path / "unguided")
    for name, expected in (("alone", True), ("unguided", False)):
        done = converter.convert(tmp_path / name, tmp_path / f"{name}.pth", to="original")
        assert any(note.startswith("left out: logvar_linear, ") for note in done.record["notes"]) == expected


# What no file shows.
def without_table(name: str, place: Path) -> Path:
    return save({key: tensor for key, tensor in original(name).items() if key != "pos_embed"}, place)


def asked(path: Path, out: Path, **given: Any) -> list[str]:
    """The flags that a conversion asks for, all at once."""
    with pytest.raises(UsageError) as caught:
        converter.convert(path, out, hyper_parameters=given)
    return [
        part.partition("`")[0]
        for part in str(caught.value).split("`")[1::2]
        if f"`{part}` is needed" in str(caught.value)
    ]


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("sana-1024", ["num_cross_attention_heads", "image_size", "positions", "trained_in"]),
        ("sana-1.5", ["num_cross_attention_heads", "image_size", "positions", "timestep_scale"]),
        ("sana-sprint", ["num_attention_heads", "num_cross_attention_heads", "image_size", "positions"]),
    ],
)
def test_all_that_is_needed_is_asked_for_at_once(name: str, flags: list[str], tmp_path: Path) -> None:
    path = without_table(name, tmp_path / "a.pth")
    assert asked(path, tmp_path / "out") == flags
    assert asked(path, tmp_path / "out", image_size=256) == [flag for flag in flags if flag != "image_size"]
    assert not (tmp_path / "out").exists()
    assert converter.inspect(path)["needs"].count(" is needed: ") == len(flags)


@pytest.mark.parametrize(("said", "written"), [("none", None), ("None", None), ("2", 2.0), (1, 1.0), (0.5, 0.5)])
def test_positions_are_what_the_user_says(said: Any, written: float | None, tmp_path: Path) -> None:
    path = without_table("sana-1024", tmp_path / "a.pth")
    given = GIVEN["sana-1024"] | {"positions": said, "image_size": 256}
    done = converter.convert(path, tmp_path / "out", hyper_parameters=given)
    assert config_of(done.path)["interpolation_scale"] == written
    # The way back has no table where there was none, and knows the answer.
    back = converter.convert(done.path, tmp_path / "back.pth", to="original").path
    assert weights(back).keys() == original("sana-1024").keys() - {"pos_embed"}


@pytest.mark.parametrize("said", ["no", "", True, -1.0, 0.0, "nan", 1e9, 10**400, "1_0", "٢", b"2", [1]])
def test_positions_are_none_or_a_scale(said: Any, tmp_path: Path) -> None:
    path = without_table("sana-1024", tmp_path / "a.pth")
    with pytest.raises(UsageError, match=r"`positions` .*: none, or the scale, a positive number"):
        converter.convert(path, tmp_path / "out", hyper_parameters=GIVEN["sana-1024"] | {"positions": said})


def test_a_table_of_zeros_is_that_of_a_model_without_positions(tmp_path: Path) -> None:
    found = converter.inspect(GOLDEN / "sana-1024.pth")["hyper_parameters"]["positions"]
    assert (found["value"], found["source"]) == ("none", "file")
    assert "zero throughout" in found["evidence"]
    for name, said in (("sana-1024", 1.0), ("sana-4k", "none"), ("sana-4k", 1.0)):
        with pytest.raises(UsageError, match=r"`positions` .* contradicts the file"):
            converter.convert(
                GOLDEN / f"{name}.pth", tmp_path / "x", hyper_parameters=GIVEN[name] | {"positions": said}
            )
    # One that is neither shows nothing, and no flag makes it one of the two.
    state = original("sana-1024")
    path = save(state | {"pos_embed": torch.randn_like(state["pos_embed"])}, tmp_path / "noise.pth")
    assert asked(path, tmp_path / "x", **GIVEN["sana-1024"]) == ["positions"]
    with pytest.raises(InputError, match="pos_embed: is not the table of its size and scale"):
        converter.convert(path, tmp_path / "x", hyper_parameters=GIVEN["sana-1024"] | {"positions": 1.0})


ZEROS: list[tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = [
    ("-0", lambda table: -torch.zeros_like(table)),
    ("another dtype", lambda table: torch.zeros_like(table).half()),
    ("float64", lambda table: torch.zeros_like(table).double()),
    ("almost", lambda table: torch.zeros_like(table).index_fill(1, torch.tensor([5]), 1e-30)),
]


@pytest.mark.parametrize(("what", "zeros"), ZEROS, ids=[what for what, _ in ZEROS])
def test_zeros_of_any_kind_come_back(what: str, zeros: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path) -> None:
    state = original("sana-4k")
    state["pos_embed"] = zeros(state["pos_embed"])
    given = GIVEN["sana-4k"] | {"trained_in": "bf16", "positions": "none"}
    done = converter.convert(save(state, tmp_path / "a.pth"), tmp_path / "out", hyper_parameters=given)
    back = weights(converter.convert(done.path, tmp_path / "back.pth", to="original").path)["pos_embed"]
    assert back.dtype == state["pos_embed"].dtype
    assert torch.equal(back.view(torch.uint8), state["pos_embed"].view(torch.uint8))


@pytest.mark.parametrize("lost", ["t_block.1.weight", "blocks.1.attn.qkv.weight", "attention_y_norm.weight"])
def test_zeros_that_no_training_leaves_are_refused(lost: str, tmp_path: Path) -> None:
    """Of a SANA's weights none starts at zero but those of a Sprint's embedder of guidance."""
    for name in ("sana-1024", "sana-sprint"):
        state = original(name)
        path = save(state | {lost: torch.zeros_like(state[lost])}, tmp_path / f"{name}.pth")
        with pytest.raises(InputError, match="zero throughout, as no training leaves"):
            converter.convert(path, tmp_path / "x", hyper_parameters=GIVEN[name])
    begun = original("sana-sprint")
    for end in ("weight", "bias"):
        begun[f"cfg_embedder.mlp.2.{end}"] = torch.zeros_like(begun[f"cfg_embedder.mlp.2.{end}"])
    converter.convert(save(begun, tmp_path / "b.pth"), tmp_path / "y", hyper_parameters=GIVEN["sana-sprint"])


@pytest.mark.parametrize("flag", ["timestep_scale", "guidance_embeds_scale"])
@pytest.mark.parametrize("said", [0, -1.0, 1e-30, 1e30])
def test_a_scale_is_a_sensible_number(flag: str, said: float, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"`{flag}` .*: not a sensible positive number"):
        converter.convert(
            GOLDEN / "sana-sprint.pth", tmp_path / "x", hyper_parameters=GIVEN["sana-sprint"] | {flag: said}
        )


def test_a_config_without_the_field_does_not_say(folders: dict[str, Path], tmp_path: Path) -> None:
    config = config_of(folders["sana-1024"])
    del config["interpolation_scale"]
    (tmp_path / "old").mkdir()
    (tmp_path / "old/config.json").write_text(json.dumps(config))
    (tmp_path / "old" / Path(WEIGHTS).name).write_bytes((folders["sana-1024"] / WEIGHTS).read_bytes())
    with pytest.raises(UsageError, match=r"`positions` is needed: config\.json has no interpolation_scale"):
        converter.convert(tmp_path / "old", tmp_path / "out")


def test_a_file_that_shows_what_it_was_not_trained_in_is_told_apart(tmp_path: Path) -> None:
    """Released with norms or positions is bf16 alone; without, both are."""
    for name, wanted in (("sana-1024", "unknown"), ("sana-4k", "assumed"), ("sana-1.5", "assumed")):
        found = converter.inspect(GOLDEN / f"{name}.pth")["hyper_parameters"]["trained_in"]
        assert (found["source"], found["value"]) == (wanted, None if wanted == "unknown" else "bf16")
    given = GIVEN["sana-1024"] | {"trained_in": "fp16"}
    done = converter.convert(GOLDEN / "sana-1024.pth", tmp_path / "clipped", hyper_parameters=given)
    assert config_of(done.path)["trained_in"] == "fp16"
    # A folder of diffusers' own class keeps that, unless its user says what the original was trained in.
    stock = converter.convert(GOLDEN / "sana-1024.pth", tmp_path / "stock", hyper_parameters=given, stock=True)
    assert any("register_forward_hook" in note for note in stock.record["notes"])
    kept = converter.convert(stock.path / "transformer", tmp_path / "kept").path
    assert config_of(kept)["_class_name"] == AMENDED.stock
    said = {"trained_in": "fp16"}
    clipped = converter.convert(stock.path / "transformer", tmp_path / "again", hyper_parameters=said).path
    assert tree(clipped / "transformer") == tree(done.path / "transformer")


ODD = {"trained_in": ["fp8", 5, True, ""], "timestep_scale": ["x", -1, 0, [1]], "guidance_embeds_scale": ["0.1", -0.1]}
ODD |= {"interpolation_scale": ["x", -1, [2]], "num_cross_attention_heads": [0, "4", 5, 1.5]}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in ODD.items() for value in values])
def test_a_config_that_says_something_else_is_refused(
    field: str, value: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Where a folder says what no tensor shows, nothing is read into it."""
    name = "sana-sprint" if field == "guidance_embeds_scale" else "sana-clip"
    shutil.copytree(folders[name] / "transformer", tmp_path / "a")
    (tmp_path / "a/config.json").write_text(json.dumps(config_of(folders[name]) | {field: value}))
    with pytest.raises(InputError, match=field):
        converter.convert(tmp_path / "a", tmp_path / "out")


def test_for_diffusers_own_class_too_the_precision_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`trained_in` is needed"):
        converter.convert(
            GOLDEN / "sana-1024.pth", tmp_path / "x", hyper_parameters={"num_cross_attention_heads": 4}, stock=True
        )
    # Whoever says that the line is run gets diffusers' own class.
    given = GIVEN["sana-clip"] | {"exact_attention": True}
    done = converter.convert(GOLDEN / "sana-clip.pth", tmp_path / "y", hyper_parameters=given)
    assert config_of(done.path)["_class_name"] == AMENDED.stock
    assert any("register_forward_hook" in note for note in done.record["notes"])


def test_lost_blocks_are_noted(tmp_path: Path) -> None:
    shapes = inventories.inventory(family="sana", depth=19)
    found = Findings({"trained_in": "bf16"})
    SANA.describe(SANA.keys.survey(shaped({key: shape for key, (_, shape) in shapes.items()})), FakeState(0), found)
    wanted = "depth 19, where the released models of hidden size 2240 have 20 or 40 or 60 blocks: blocks at the end"
    assert any(note.startswith(wanted) for note in found.notes)


def test_a_scale_of_guidance_without_guidance_is_refused(tmp_path: Path) -> None:
    given = GIVEN["sana-1.5"] | {"guidance_embeds_scale": 0.3}
    with pytest.raises(UsageError, match=r"`guidance_embeds_scale` 0\.3 contradicts the file"):
        converter.convert(GOLDEN / "sana-1.5.pth", tmp_path / "x", hyper_parameters=given)
    given = GIVEN["sana-sprint"] | {"guidance_embeds_scale": 0.3}
    done = converter.convert(GOLDEN / "sana-sprint.pth", tmp_path / "y", hyper_parameters=given)
    assert config_of(done.path)["guidance_embeds_scale"] == 0.3
    # In a config of a model that has none, it says nothing.
    done = converter.convert(GOLDEN / "sana-1.5.pth", tmp_path / "z", hyper_parameters=GIVEN["sana-1.5"])
    config = config_of(done.path) | {"guidance_embeds_scale": 0.3}
    (done.path / "transformer/config.json").write_text(json.dumps(config))
    assert config_of(converter.convert(done.path, tmp_path / "again").path) == config


def test_recorded_heads_are_of_the_attention_that_programs_call_so(tmp_path: Path) -> None:
    """The training config's `num_heads` are the cross attention's; of the self attention it has the channels."""
    state = original("sana-1024")
    path = save({"state_dict": state, "hyper_parameters": {"num_heads": 4}}, tmp_path / "a.pth")
    found = converter.inspect(path)
    assert not any("num_heads" in note for note in found["notes"])
    with converter.open_checkpoint(path) as checkpoint:
        rejected = {name: one.rejected_evidence for name, one in analyse(checkpoint).findings.items()}
    assert rejected["num_cross_attention_heads"] == "hyper_parameters.num_heads is 4"
    assert rejected["num_attention_heads"] == ""


# Containers and neighbours.
@pytest.mark.parametrize("prefix", ["module.", "model.", "base_model.", "model.diffusion_model."])
def test_prefixes(prefix: str, folders: dict[str, Path], tmp_path: Path) -> None:
    state = {prefix + key: tensor for key, tensor in original("sana-sprint").items()}
    path = save({"state_dict": state, "epoch": 3}, tmp_path / "a.pth")
    done = converter.convert(path, tmp_path / "out", hyper_parameters=GIVEN["sana-sprint"])
    assert done.record["source"]["prefix"] == prefix
    assert (done.path / WEIGHTS).read_bytes() == (folders["sana-sprint"] / WEIGHTS).read_bytes()


def test_an_export_of_fsdp_is_one_model(tmp_path: Path) -> None:
    """`epoch_N_step_M/` with `model/pytorch_model_fsdp.bin`, `metadata.pth`, and a link to the latest."""
    folder = tmp_path / "checkpoints" / "epoch_3_step_100"
    (folder / "model").mkdir(parents=True)
    torch.save(original("sana-1.5"), folder / "model/pytorch_model_fsdp.bin")
    torch.save({"epoch": 3, "step": 100}, folder / "metadata.pth")
    os.symlink(folder.name, folder.with_name("latest.pth"), target_is_directory=True)
    wanted = converter.convert(GOLDEN / "sana-1.5.pth", tmp_path / "a", hyper_parameters=GIVEN["sana-1.5"]).path
    # In a batch it is no checkpoint among others, and neither is a discriminator.
    save(original("sana-1.5"), tmp_path / "checkpoints/epoch_3.pth")
    torch.save({"heads.0.weight": torch.ones(1)}, tmp_path / "checkpoints/epoch_3_disc.pth")
    assert [Path(path).name for path in checkpoints_under(os.fspath(tmp_path / "checkpoints"))] == ["epoch_3.pth"]
    for name in (folder.name, "latest.pth"):
        done = converter.convert(folder.with_name(name), tmp_path / name[:5], hyper_parameters=GIVEN["sana-1.5"])
        assert tree(done.path / "transformer") == tree(wanted / "transformer")


def test_the_weights_of_a_training_file_are_chosen(tmp_path: Path) -> None:
    state = original("sana-1.5")
    averaged = {key: tensor * (1 if key == "pos_embed" else 0.5) for key, tensor in state.items()}
    content = {"state_dict": state, "state_dict_ema": averaged, "optimizer": {"state": {}}, "rng_state": (1, (2, 3))}
    path = save(content, tmp_path / "a.pth")
    done = converter.convert(path, tmp_path / "out", weights="ema", hyper_parameters=GIVEN["sana-1.5"])
    assert torch.equal(load_file(done.path / WEIGHTS)["proj_out.bias"], averaged["final_layer.linear.bias"])


def test_it_is_told_from_its_neighbours(tmp_path: Path, folders: dict[str, Path]) -> None:
    for name in NAMES:
        for path in (GOLDEN / f"{name}.pth", folders[name], folders[name] / WEIGHTS):
            assert converter.inspect(path)["family"] == "sana"
    for name in ("alpha-ms", "sigma-ms", "sigma-qknorm"):
        assert converter.inspect(GOLDEN / f"{name}.pth")["family"] == "pixart"
    assert converter.inspect(GOLDEN / "dit.pt")["family"] == "dit"
    with pytest.raises(InputError, match="not a PixArt that can be converted: this is a SANA transformer"):
        converter.convert(GOLDEN / "sana-1.5.pth", tmp_path / "x", family="pixart")
    with pytest.raises(InputError, match="not a SANA that can be converted"):
        converter.convert(GOLDEN / "sigma-ms.pth", tmp_path / "x", family="sana")


def test_a_controlnet_is_named_and_refused(tmp_path: Path) -> None:
    words = r"this is a SANA ControlNet: its file holds two models, .* relative error 0\.3"
    with pytest.raises(InputError, match=words):
        converter.convert(GOLDEN / "sana-controlnet.pth", tmp_path / "x")
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "caption_channels": 4}
    heads = {"num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "cross_attention_dim": 16}
    SanaControlNetModel(**sizes, **heads).save_pretrained(tmp_path / "theirs")
    words = r"this is a SANA ControlNet in diffusers' layout, which is converted neither way: .* relative error 0\.3"
    with pytest.raises(InputError, match=words):
        converter.convert(tmp_path / "theirs", tmp_path / "x")
    beside = pixart() | {"input_block.weight": torch.ones(2, 2)}  # as other ControlNets have one too
    assert "SANA" not in " ".join(converter.inspect(save(beside, tmp_path / "beside.pth"))["problems"])
    heads_of = {f"heads.{i}.main.0.weight": torch.ones(2, 2) for i in range(3)}
    with pytest.raises(InputError, match="this is a discriminator, as SANA-Sprint's training writes one"):
        converter.convert(save(heads_of, tmp_path / "a_disc.pth"), tmp_path / "x")


BROKEN: list[tuple[str, Callable[[str], bool], str]] = [
    (
        "norms of one attention",
        lambda key: "cross_attn.q_norm" in key,
        r"missing blocks\.\{0\.\.1\}\.cross_attn\.q_norm",
    ),
    ("half an embedder", lambda key: key.startswith("cfg_embedder.mlp.0"), r"missing cfg_embedder\.mlp\.0"),
    ("a block", lambda key: key.startswith("blocks.0."), r"missing blocks\.\{0\}"),
]


@pytest.mark.parametrize(("what", "lost", "words"), BROKEN, ids=[what for what, _, _ in BROKEN])
def test_a_file_that_lacks_something_is_refused(
    what: str, lost: Callable[[str], bool], words: str, tmp_path: Path
) -> None:
    state = {key: tensor for key, tensor in original("sana-sprint").items() if not lost(key)}
    with pytest.raises(InputError, match=words):
        converter.convert(save(state, tmp_path / "a.pth"), tmp_path / "x", hyper_parameters=GIVEN["sana-sprint"])


def test_norms_that_diffusers_has_no_place_for(tmp_path: Path) -> None:
    lost = re.compile(r"cross_attn\.[qk]_norm")
    state = {key: tensor for key, tensor in original("sana-1.5").items() if not lost.search(key)}
    words = r"norms of queries and keys in blocks\.\{\}\.attn alone: the original allows that"
    with pytest.raises(InputError, match=words):
        converter.convert(save(state, tmp_path / "a.pth"), tmp_path / "x", hyper_parameters=GIVEN["sana-1.5"])


def test_a_config_without_norms_beside_norms(folders: dict[str, Path], tmp_path: Path) -> None:
    """Diffusers would pass over them: refused where the config says so, noted where it says nothing."""
    shutil.copytree(folders["sana-1.5"] / "transformer", tmp_path / "a")
    config = config_of(folders["sana-1.5"])
    (tmp_path / "a/config.json").write_text(json.dumps(config | {"qk_norm": None}))
    with pytest.raises(InputError, match=r"config\.json: qk_norm: null contradicts the tensors"):
        converter.convert(tmp_path / "a", tmp_path / "x")
    (tmp_path / "a/config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "qk_norm"}))
    done = converter.convert(tmp_path / "a", tmp_path / "y")
    assert config_of(done.path)["qk_norm"] == "rms_norm_across_heads"
    assert any(
        note.startswith("config.json: qk_norm: it is not there: diffusers would") for note in done.record["notes"]
    )


def test_the_house_is_kept(cli: Callable[..., Result]) -> None:
    """What the rebuilt house promises of a model: small files, and options that come from its folder alone."""
    here = Path(converter.__file__).parent / "models" / "sana"
    lines = {path.name: len(path.read_text().splitlines()) for path in here.glob("*.py")}
    assert sum(lines.values()) <= 650
    assert lines.pop("net.py") < 165
    assert max(lines.values()) < 120
    text = cli("convert-pixart", "--help").stdout
    assert all(f"--{flag}" in text for flag in SANA.flags)
