"""PixArt brought to be compared: the architecture that is read, and inputs on every axis where two nets could part."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from makers import GOLDEN, HEADS
from memory_tensors import memory_tensors
from opened import NAMES

from converter.checkpoint import open_checkpoint
from converter.conversion.analysis import analyse
from converter.families import Findings
from converter.models.pixart.net import pixart as whole
from converter.models.pixart.parity import GUIDED, PARITY, STOCK, cases, config_hints, reference, shape
from converter.models.pixart.table import PIXART
from converter.nets import Weights
from converter.nets.inputs import Case
from converter.nets.latents import parts
from converter.parity.sides import spec_of


def findings(name: str, **given: Any) -> Findings:
    with open_checkpoint(GOLDEN / f"{name}.pth") as checkpoint:
        said = {"num_attention_heads": HEADS, "multi_scale_train": name != "alpha-fixed"} | given
        return analyse(checkpoint, said).findings


FOUND = {name: findings(name) for name in NAMES}
each = pytest.mark.parametrize("name", NAMES)


def of(name: str, profile: str = "standard", left: Any = None) -> dict[str, Case]:
    made = cases(FOUND[name], profile, left or {})
    assert len({case.name for case in made}) == len(made)
    return {case.name: case for case in made}


def state(name: str) -> dict[str, torch.Tensor]:
    held: dict[str, Any] = torch.load(GOLDEN / f"{name}.pth", weights_only=True)
    return held.get("state_dict", held)


def test_it_is_what_the_family_brings() -> None:
    assert spec_of(PIXART) is PARITY


# The architecture.


def test_the_shape_is_what_the_file_shows() -> None:
    made = shape(FOUND["alpha-ms"])
    assert (made.depth, made.hidden_size, made.num_heads, made.patch_size) == (3, 48, HEADS, 2)
    assert (made.in_channels, made.out_channels, made.scale) == (4, 8, 2)
    assert (made.multi_scale, made.micro_condition) == (True, True)
    assert not shape(FOUND["alpha-fixed"]).multi_scale
    assert not shape(FOUND["sigma-ms"]).micro_condition


@each
def test_the_reference_is_the_original_net(name: str) -> None:
    """On the model's own size, where the fixed class runs too: the same as the net of the shape, bit for bit; but in
    float64 with tables of float32, which are all but the same."""
    found = FOUND[name]
    side = found.value("sample_size")
    for case in (of(name)["native"], *([] if name == "alpha-fixed" else [of(name)["t0-t1"]])):
        for dtype, same in ((torch.float32, True), (torch.bfloat16, True), (torch.float64, name == "alpha-fixed")):
            weights, inputs = Weights(state(name), dtype), case.tensors(dtype)
            ours, net = reference(found, weights).forward(inputs), whole(weights, shape(found)).forward(inputs)
            assert torch.equal(ours, net) == same
            assert (ours - net).norm() <= 1e-7 * net.norm()
    assert of(name)["native"].arrays["latent"].shape[2:] == (side, side)


def test_the_fixed_class_uses_its_stored_table_on_its_own_size() -> None:
    """And another of the same kind elsewhere, where the original class cannot run at all."""
    name = "alpha-fixed"
    found, weights = FOUND[name], state(name)
    spoilt = weights | {"pos_embed": weights["pos_embed"] + 1}
    for case, same in (("native", False), ("t999-t321", True)):
        inputs = of(name)[case].tensors(torch.float64)
        one, other = (reference(found, Weights(held, torch.float64)).forward(inputs) for held in (weights, spoilt))
        assert torch.equal(one, other) == same
    with pytest.raises(ValueError, match="positions"):
        whole(Weights(weights, torch.float64), shape(found)).forward(of(name)["t999-t321"].tensors(torch.float64))


def test_the_stage_that_is_tried_by_itself_sees_the_stored_table() -> None:
    name = "alpha-fixed"
    ((stage, case),) = PARITY.stages(FOUND[name])
    assert stage == "patch embedding"
    values = case.tensors(torch.float64)
    weights = state(name)
    made = []
    for held_ in (weights, weights | {"pos_embed": weights["pos_embed"] + 1}):
        net = reference(FOUND[name], Weights(held_, torch.float64))
        (first,) = [s for s in net.stages if s.name == stage]
        made.append(first.run(values, lambda name, value: None)["x"])
    assert torch.allclose(made[1] - made[0], torch.ones(()).double())


@each
def test_both_nets_have_the_same_stages(name: str) -> None:
    names = [stage.name for stage in reference(FOUND[name], Weights(state(name), torch.float32)).stages]
    config = PIXART.config(FOUND[name])
    converted = PIXART.keys(state(name))
    assert [stage.name for stage in STOCK.net(config, Weights(converted, torch.float32)).stages] == names


# Inputs.


@each
@pytest.mark.parametrize("profile", ["quick", "standard", "full"])
def test_cases_are_well_formed(name: str, profile: str) -> None:
    found = FOUND[name]
    patch, width = found.value("patch_size"), found.value("caption_channels")
    for case in of(name, profile).values():
        arrays = case.arrays
        batch = len(arrays["timestep"])
        assert batch >= 2  # a net that mixes up its samples
        assert {len(array) for array in arrays.values()} == {batch}
        assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
        assert all(np.isfinite(array).all() for array in arrays.values())
        latent, caption = arrays["latent"], arrays["caption"]
        assert latent.shape[1] == found.value("in_channels")
        assert latent.shape[2] % patch == latent.shape[3] % patch == 0
        assert caption.shape[2] == width
        assert case.axes
        for one, other in pairwise(latent):
            assert not np.array_equal(one, other)
        assert not np.isclose(latent[0].mean(), latent[1].mean(), atol=1e-9)
        mask = arrays.get("caption_mask")
        if mask is not None:
            assert set(np.unique(mask)) <= {0, 1}
            assert mask.sum(axis=1).min() >= 1  # an attention to nothing at all is another question
            assert mask.shape == caption.shape[:2]
            kept = mask.sum(axis=1).astype(int)
            assert all(mask[i, : kept[i]].all() for i in range(batch))
        micro = found.value("micro_condition")
        assert ("img_hw" in arrays) == ("aspect_ratio" in arrays) == micro
        if micro:
            assert len({tuple(row) for row in arrays["img_hw"].tolist()}) == batch
            assert all(height != width for height, width in arrays["img_hw"])
            ratios = arrays["aspect_ratio"][:, 0]
            assert not np.any(ratios == 1)
            assert np.allclose(ratios, arrays["img_hw"][:, 0] / arrays["img_hw"][:, 1])
            assert (ratios > 1).any()
            assert (ratios < 1).any()


@each
def test_the_quick_profile_tells_the_samples_apart(name: str) -> None:
    """One batch for all of it: not square, two timesteps, two lengths, and each pair crossed with the other."""
    (case,) = of(name, "quick").values()
    latent, mask = case.arrays["latent"], case.arrays["caption_mask"]
    assert latent.shape[2] != latent.shape[3]
    assert case.arrays["timestep"].tolist() == [999, 321, 999, 321]
    kept = mask.sum(axis=1).tolist()
    assert kept[0] == kept[3] < kept[1] == kept[2] == mask.shape[1]


@each
def test_garbage_in_the_padding(name: str) -> None:
    (case,) = of(name, "quick").values()
    mask, caption = case.arrays["caption_mask"], case.arrays["caption"]
    hidden, seen = caption[mask == 0], caption[mask == 1]
    assert np.abs(hidden).max() > 20 * np.abs(seen).max()


@each
def test_the_standard_profile_covers_its_axes(name: str) -> None:
    made = of(name).values()
    timesteps = {float(t) for case in made for t in case.arrays["timestep"]}
    assert {0.0, 1.0, 20.0, 500.0, 998.0, 431.5, 999.0, 321.0} <= timesteps
    ratios = {case.arrays["latent"].shape[2] / case.arrays["latent"].shape[3] for case in made}
    assert 1.0 in ratios
    assert 4.0 in ratios
    assert any(ratio < 1 for ratio in ratios)
    assert any("caption_mask" not in case.arrays for case in made)
    lengths = {int(n) for case in made for n in case.arrays.get("caption_mask", np.zeros((0, 1))).sum(axis=1)}
    tokens = max(case.arrays["caption"].shape[1] for case in made)
    assert {1, tokens - 1, tokens} <= lengths
    sizes = {case.name: float(np.abs(case.arrays["latent"]).max()) for case in made}
    assert sizes["x3"] > 2 * sizes["t0-t1"]
    assert sizes["outliers"] > 3 * sizes["t0-t1"]


@each
def test_no_two_cases_share_numbers(name: str) -> None:
    """Whatever their amplitude."""
    signs = [(case.arrays["latent"].ravel()[:100] > 0).tobytes() for case in of(name).values()]
    assert len(set(signs)) == len(signs)


@each
def test_guidance_begins_with_the_null_caption(name: str) -> None:
    null = state(name)["y_embedder.y_embedding"]
    left = memory_tensors({"y_embedder.y_embedding": null})
    made = of(name, "standard", left)[GUIDED]
    caption, mask = made.arrays["caption"], made.arrays["caption_mask"]
    assert np.array_equal(caption[0], null.numpy())
    assert not np.array_equal(caption[1], null.numpy())
    assert mask[0].all()  # unmasked, as it was in training
    assert not mask[1].all()
    assert GUIDED not in of(name, "standard")  # without a null caption there is nothing to guide by


def test_a_large_model_is_not_run_whole_in_the_standard_profile() -> None:
    """A sample of the model's own size has 4 096 tokens at 1024 px, and the attention grows with their square."""
    found = Findings({})
    found.update(FOUND["sigma-ms"])
    from converter.families.base import Finding

    found["sample_size"] = Finding(128, "file", "")
    names = {case.name for case in cases(found, "standard", {})}
    assert "native" not in names
    assert "native" in {case.name for case in cases(found, "full", {})}
    for case in cases(found, "standard", {}):
        assert np.prod(case.arrays["latent"].shape[2:]) / 4 <= 40 * 25


# Parts, and what is assumed.


def test_the_halves_of_the_output() -> None:
    assert parts(FOUND["sigma-ms"]) == {"epsilon": slice(0, 4), "variance": slice(4, 8)}
    found = Findings({})
    found.update(FOUND["sigma-ms"])
    from converter.families.base import Finding

    found["out_channels"] = Finding(4, "file", "")
    assert parts(found) == {"epsilon": slice(0, 4)}


def test_what_is_taken_from_a_config_for_want_of_better() -> None:
    config = PIXART.config(FOUND["alpha-ms"])
    made = config_hints(config)
    assert made["num_attention_heads"] == HEADS
    assert made["image_size"] == 8 * config["sample_size"]
    assert made["interpolation_scale"] == 2
    assert made.keys() <= PIXART.flags.keys()
    assert config_hints(config | {"sample_size": "64"})["image_size"] is None


def test_what_no_output_shows_is_tolerated() -> None:
    """A field is out of the self-test because it changes nothing, and then the audit may not ask for it either."""
    for field in ("dropout", "norm_num_groups", "num_embeds_ada_norm", "upcast_attention"):
        assert PIXART.ignorable_config[field] is None
    assert PARITY.invisible_biases == ("attn1.to_k", "attn2.to_k")


@pytest.mark.parametrize("which", ["state_dict", "state_dict_ema"])
def test_outliers_leave_both_nets_the_same_in_float64(which: str) -> None:
    """They enlarge what differs in the first stage; of a table of positions in float64 on one side only, 24 times."""
    held: dict[str, Any] = torch.load(GOLDEN / "alpha-ms.pth", weights_only=True)[which]
    found, inputs = FOUND["alpha-ms"], of("alpha-ms")["outliers"].tensors(torch.float64)
    ours = reference(found, Weights(held, torch.float64)).forward(inputs)
    theirs = STOCK.net(PIXART.config(found), Weights(PIXART.keys(held), torch.float64)).forward(inputs)
    assert (ours - theirs).abs().max() < 1e-11 * ours.square().mean().sqrt()


@each
def test_a_key_bias_changes_no_output(name: str) -> None:
    """What `invisible_biases` says: softmax does not see a shift of all scores. And of the values it does see one."""
    inputs = of(name)["t0-t1"].tensors(torch.float64)
    config, right = PIXART.config(FOUND[name]), PIXART.keys(state(name))
    wanted = STOCK.net(config, Weights(right, torch.float64)).forward(inputs)

    def apart(part: str) -> float:
        key = f"transformer_blocks.1.{part}.bias"
        spoilt = right | {key: torch.randn(48, generator=torch.Generator().manual_seed(1))}
        made = STOCK.net(config, Weights(spoilt, torch.float64)).forward(inputs)
        return float((made - wanted).norm() / wanted.norm())

    for part in PARITY.invisible_biases:
        assert apart(part) < 1e-12, part
    for part in ("attn1.to_q", "attn1.to_v", "attn2.to_q", "attn2.to_v"):
        assert apart(part) > 1e-6, part
