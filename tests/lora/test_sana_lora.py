"""Adapters of SANA: what PEFT computes with one, in every spelling, in either layout, and with guidance or without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import SanaTransformer2DModel
from lora_makers import BASES, added, apart, pair, write
from makers import launch
from safetensors.numpy import load_file as arrays
from safetensors.torch import load_file

import converter
from converter import InputError, UsageError, convert, convert_lora, inspect_lora, merge_lora
from converter.jobs.lora_effect import EffectMeasure
from converter.lora.extract import extract_lora
from converter.lora.names import ORIGINAL
from converter.lora.spelling import BY_NAME, WRITTEN, parted

State = dict[str, torch.Tensor]
Adapted = tuple[Path, torch.Tensor, torch.Tensor]
ROUNDING = 1e-6  # of float32, relative L2
CROSS = {"num_cross_attention_heads": 4}
SANA, SPRINT = "sana-1.5", "sana-sprint"
GIVEN: dict[str, dict[str, Any]] = {SANA: {"timestep_scale": 1.0} | CROSS, SPRINT: {"num_attention_heads": 3} | CROSS}
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
# Of every kind of layer that SANA has and PEFT an adapter for: with a bias and without, linear and convolutions.
TARGETS = (
    r".*\.(attn1\.(to_q|to_k|to_v|to_out\.0)|attn2\.(to_q|to_k|to_v|to_out\.0)|ff\.conv_(inverted|point)|linear_[12])"
    r"|time_embed\.linear|patch_embed\.proj|proj_out"
)


def original(name: str) -> State:
    state: State = torch.load(BASES / f"{name}.pth", weights_only=False)["state_dict"]
    return state


def base(name: str, at: Path, layout: str) -> Path:
    """A recorded model in one of the layouts."""
    return (
        convert(BASES / f"{name}.pth", at, stock=True, hyper_parameters=GIVEN[name]).path
        if layout == "diffusers"
        else BASES / f"{name}.pth"
    )


def loaded(folder: Path) -> Any:
    return SanaTransformer2DModel.from_pretrained(folder / "transformer").eval()


def output(model: Any) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    config = getattr(model, "config", None) or model.base_model.config
    latent = torch.randn(2, config.in_channels, 6, 4, generator=random)
    caption = torch.randn(2, 5, config.caption_channels, generator=random)
    timestep = torch.tensor([431.0, 90.0]) / (1000 if config.guidance_embeds else 1)
    with torch.no_grad():
        made: torch.Tensor = model(
            latent,
            encoder_hidden_states=caption,
            encoder_attention_mask=torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]),
            timestep=timestep,
            guidance=torch.tensor([0.45, 0.3]) if config.guidance_embeds else None,
        ).sample
    return made


def modules(path: Path) -> set[str]:
    """The names of modules in a file of an adapter."""
    return {part[0] for key in arrays(path) if (part := parted(key))}


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def trained(model: Any, folder: Path) -> Any:
    """PEFT's own model with an adapter that does something, and its folder."""
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS, rank_pattern={r".*\.conv_point": 2})
    wrapped = peft.get_peft_model(model, config).eval()
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for key, parameter in wrapped.named_parameters():
            if "lora_B" in key:
                parameter.copy_(torch.randn(parameter.shape, generator=random) / 20)
    wrapped.save_pretrained(folder)
    return wrapped


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    """(PEFT's folder, with the base beside it; what PEFT computes with it; and the base without it)."""
    at = tmp_path_factory.mktemp("sana")
    model = loaded(base(SANA, at / "base", "diffusers"))
    plain = output(model)
    return at / "adapter", output(trained(model, at / "adapter")), plain


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_merged_it_computes_what_peft_does(adapted: Adapted, layout: str, tmp_path: Path) -> None:
    adapter, wanted, plain = adapted
    source = base(SANA, tmp_path / "base", layout)
    folder = merge_lora(source, adapter, tmp_path / "merged", stock=True, hyper_parameters=GIVEN[SANA]).path
    assert relative(plain, wanted) > 0.1
    assert relative(output(loaded(folder)), wanted) < ROUNDING


def test_merged_in_either_layout_it_gives_the_same_weights(adapted: Adapted, tmp_path: Path) -> None:
    adapter, given = adapted[0], GIVEN[SANA]
    merge_lora(BASES / f"{SANA}.pth", adapter, tmp_path / "merged.pth", to="original", hyper_parameters=given)
    convert(tmp_path / "merged.pth", tmp_path / "one", hyper_parameters=given)
    merge_lora(base(SANA, tmp_path / "base", "diffusers"), adapter, tmp_path / "other")
    one, other = (load_file(tmp_path / name / WEIGHTS) for name in ("one", "other"))
    assert all(torch.equal(one[key], tensor) for key, tensor in other.items())
    assert one.keys() == other.keys()


def test_it_is_recognised(adapted: Adapted) -> None:
    report = inspect_lora(adapted[0])
    assert (report["family"], report["layout"], report["problems"], report["notes"]) == ("sana", "diffusers", [], [])
    assert report["adapter"]["kinds"] == {"LoRA": 2 * 10 + 7}
    assert {(each["rank"], each["alpha"]) for each in report["adapter"]["scales"]} == {(3, 5), (2, 5)}
    done = launch("pixart", "inspect", adapted[0])
    assert done.returncode == 0, done.stderr
    assert "adapter: LoRA (27 modules), for sana in the diffusers layout" in done.stdout
    assert "transformer_blocks.{0..1}.ff.conv_point" in done.stdout


@pytest.mark.parametrize("to", WRITTEN)
def test_in_every_spelling_it_does_the_same(adapted: Adapted, to: str, tmp_path: Path) -> None:
    path = tmp_path / (to if to == "peft" else f"{to}.safetensors")
    convert_lora(adapted[0], path, to)
    wanted = added(BASES / f"{SANA}.pth", adapted[0])
    assert len(wanted) == 2 * 7 + 7
    assert apart(wanted, added(BASES / f"{SANA}.pth", path)) < ROUNDING
    if BY_NAME[to].names_as == ORIGINAL:  # without a model, `t_embedder.mlp.0` may be either of two in diffusers
        with pytest.raises(
            InputError, match=r"guidance_embeds \(merge it instead\): t_embedder\.mlp\.\{0,2\}\.weight$"
        ):
            convert_lora(path, tmp_path / "back", "peft")
        path = write(path, {key: held for key, held in arrays(path).items() if "t_embedder" not in key})
        wanted = {key: held for key, held in wanted.items() if "t_embedder" not in key}
    convert_lora(path, tmp_path / "back", "peft")
    assert apart(wanted, added(BASES / f"{SANA}.pth", tmp_path / "back")) < ROUNDING


def test_factors_that_do_not_show_the_kernel_of_a_pointwise_convolution(tmp_path: Path) -> None:
    """Two axes, as the tools of linear layers have them: the table says 1 x 1, as PEFT writes it."""
    shape = original(SANA)["blocks.0.mlp.point_conv.conv.weight"].shape
    source = write(tmp_path / "a.safetensors", pair("diffusion_model.blocks.0.mlp.point_conv.conv", 2, *shape[:2]))
    convert_lora(source, tmp_path / "peft", "peft")
    shapes = [held.shape for held in arrays(tmp_path / "peft" / "adapter_model.safetensors").values()]
    assert shapes == [(2, shape[1], 1, 1), (shape[0], 2, 1, 1)]
    assert apart(*(added(BASES / f"{SANA}.pth", path) for path in (source, tmp_path / "peft"))) < ROUNDING


# The embedder of the timestep, which has another place in diffusers where the model has guidance.

TIME = {SANA: "time_embed.emb.timestep_embedder.linear_1", SPRINT: "time_embed.timestep_embedder.linear_1"}


def time_adapter(path: Path, module: str, hidden: int, *others: str) -> Path:
    """Of the embedder, under one of its names, and of other modules as wide as long."""
    prefix = "transformer." if "time" in module else "diffusion_model."
    tensors = pair(f"{prefix}{module}", 2, hidden, 256)
    for other in others:
        tensors |= pair(f"{prefix}{other}", 2, hidden, hidden)
    return write(path, tensors)


@pytest.mark.parametrize("layout", ["original", "diffusers"])
@pytest.mark.parametrize("names", ["original", "diffusers"])
@pytest.mark.parametrize("name", [SANA, SPRINT])
def test_the_embedder_of_the_timestep_is_merged(name: str, names: str, layout: str, tmp_path: Path) -> None:
    module = "t_embedder.mlp.0" if names == "original" else TIME[name]
    before = original(name)
    adapter = time_adapter(tmp_path / "a.safetensors", module, len(before["t_embedder.mlp.0.weight"]))
    model = base(name, tmp_path / "base", layout)
    merge_lora(model, adapter, tmp_path / "merged.pth", to="original", hyper_parameters=GIVEN[name])
    after = torch.load(tmp_path / "merged.pth", weights_only=True)["state_dict"]
    down, up = (torch.from_numpy(held) for _, held in sorted(arrays(adapter).items()))
    assert {key for key in after if not torch.equal(before[key], after[key])} == {"t_embedder.mlp.0.weight"}
    torch.testing.assert_close(after["t_embedder.mlp.0.weight"], before["t_embedder.mlp.0.weight"] + up @ down)


def test_a_sprint_with_an_adapter_computes_what_peft_does(tmp_path: Path) -> None:
    """Merged, and in a live model of the class with the original's attention, in the names of the training code."""
    model = loaded(base(SPRINT, tmp_path / "base", "diffusers"))
    plain, wanted = output(model), output(trained(model, tmp_path / "peft"))
    source, given = BASES / f"{SPRINT}.pth", dict[str, Any](hyper_parameters=GIVEN[SPRINT])
    convert_lora(tmp_path / "peft", kohya := tmp_path / "kohya.safetensors", "kohya")
    merged = merge_lora(source, kohya, tmp_path / "a", stock=True, **given).path
    assert relative(plain, wanted) > 0.1
    assert relative(output(loaded(merged)), wanted) < ROUNDING
    converter.load_lora(live := converter.load(source, **given), kohya)
    assert type(live).__name__ == "SanaExactTransformer2DModel"
    exact = merge_lora(source, tmp_path / "peft", tmp_path / "b", **given).path
    assert relative(output(live), output(converter.load(exact))) < ROUNDING


def test_of_the_wrong_kind_it_is_refused(tmp_path: Path) -> None:
    adapter = time_adapter(tmp_path / "a.safetensors", TIME[SPRINT], 64)
    with pytest.raises(InputError, match=r"the model has no time_embed\.timestep_embedder\.linear_1\.weight"):
        merge_lora(BASES / f"{SANA}.pth", adapter, tmp_path / "merged", hyper_parameters=GIVEN[SANA])


def test_an_adapter_that_shows_guidance_is_converted(tmp_path: Path) -> None:
    adapter = time_adapter(tmp_path / "a.safetensors", "t_embedder.mlp.0", 48, "cfg_embedder.mlp.2")
    convert_lora(adapter, tmp_path / "b.safetensors")
    assert modules(tmp_path / "b.safetensors") == {
        "transformer.time_embed.timestep_embedder.linear_1",
        "transformer.time_embed.guidance_embedder.linear_2",
    }
    assert apart(*(added(BASES / f"{SPRINT}.pth", tmp_path / f"{name}.safetensors") for name in "ab")) < ROUNDING


@pytest.mark.parametrize("name", [SANA, SPRINT])
def test_from_the_names_of_diffusers_there_is_one_way(name: str, tmp_path: Path) -> None:
    adapter = time_adapter(tmp_path / "a.safetensors", TIME[name], 48)
    convert_lora(adapter, tmp_path / "b.safetensors", "original")
    assert modules(tmp_path / "b.safetensors") == {"t_embedder.mlp.0"}
    convert_lora(adapter, tmp_path / "c.safetensors", "omi")
    convert_lora(tmp_path / "c.safetensors", tmp_path / "d.safetensors")
    assert modules(tmp_path / "d.safetensors") == {f"transformer.{TIME[name]}"}


def test_no_model_has_both(tmp_path: Path) -> None:
    both = arrays(time_adapter(tmp_path / "a.safetensors", TIME[SANA], 48))
    both |= arrays(time_adapter(tmp_path / "a.safetensors", TIME[SPRINT], 48))
    path = write(tmp_path / "both.safetensors", both)
    with pytest.raises(InputError) as caught:
        convert_lora(path, tmp_path / "b.safetensors", "kohya")
    one, other = (f"{TIME[name]}.weight" for name in (SANA, SPRINT))
    assert f"no model has both {one} and {other}, which are t_embedder.mlp.0.weight" in str(caught.value)
    assert not (tmp_path / "b.safetensors").exists()


# Extraction, and live models.


@pytest.mark.parametrize("to", ["diffusers", "kohya"])
def test_every_module_is_extracted(adapted: Adapted, to: str, tmp_path: Path) -> None:
    """Also those without a bias: q, k and v, and the last convolution of the feed-forward."""
    tuned, lora = tmp_path / "tuned.pth", tmp_path / "lora.safetensors"
    merge_lora(BASES / f"{SANA}.pth", adapted[0], tuned, to="original", hyper_parameters=GIVEN[SANA])
    known: dict[str, Any] = {"hyper_parameters": GIVEN[SANA], "measuring": EffectMeasure()}
    done = extract_lora(BASES / f"{SANA}.pth", tuned, lora, rank=9, to=to, **known)
    assert len(done.modules) == (27 if to == "diffusers" else 21)
    ends = {module.key.rpartition(".weight")[0].partition("blocks.0.")[2] for module in done.modules}
    assert ends > (
        {"attn1.to_q", "attn1.to_k", "attn1.to_v", "ff.conv_point"}
        if to == "diffusers"
        else {"attn.qkv", "mlp.point_conv.conv"}
    )
    assert not done.left_out
    assert done.error < 2e-6
    assert done.effect.adapter < 1e-5 < 0.05 < done.effect.base
    wanted, found = (added(BASES / f"{SANA}.pth", path) for path in (adapted[0], lora))
    assert apart(wanted, found) < 2e-6


def test_in_a_live_model(adapted: Adapted, tmp_path: Path) -> None:
    model = loaded(base(SANA, tmp_path / "base", "diffusers"))
    converter.load_lora(model, adapted[0], "style")
    assert relative(output(model), adapted[1]) < ROUNDING
    model.fuse_lora()
    assert relative(output(model), adapted[1]) < ROUNDING
    model.unfuse_lora()
    model.unload_lora()
    kohya = tmp_path / "kohya.safetensors"
    convert_lora(adapted[0], kohya, "kohya")
    model = loaded(tmp_path / "base")
    converter.load_lora(model, kohya, "style", 0.5)
    model.set_adapters("style", 1.0)
    assert relative(output(model), adapted[1]) < ROUNDING
    model.unload_lora()
    assert relative(output(model), adapted[2]) == 0


def test_names_of_several_families_are_asked_about_where_they_differ(tmp_path: Path) -> None:
    """Attention alone is called the same everywhere; PixArt's and SANA's timestep embedders are not."""
    own = pair("diffusion_model.blocks.0.attn.qkv", 2, 192, 64)
    both = own | pair("diffusion_model.t_embedder.mlp.0", 2, 64, 256)
    attention, ambiguous = write(tmp_path / "a.safetensors", own), write(tmp_path / "b.safetensors", both)
    convert_lora(attention, tmp_path / "a", "peft")
    convert_lora(ambiguous, tmp_path / "k.safetensors", "kohya")
    words = r"`family` is needed: its names are those of a PixArt and of a DiT and of a SANA, and not the same in peft"
    with pytest.raises(UsageError, match=words):
        convert_lora(ambiguous, tmp_path / "b", "peft")
    convert_lora(ambiguous, tmp_path / "b", "peft", family="pixart")
