"""What a file shows, what its user says, what is convention; and that none of them is taken for another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shaped import DIFFUSERS, INVENTORIES, ROUNDING, WHOLE, FakeState, Shaped, inventory, small

from converter import Findings, InputError, UsageError
from converter.models.pixart.hyper_parameters import FLAGS, describe
from converter.models.pixart.table import KEYS

NO_TABLE = ("sigma-256",)


def look(state: dict[str, Shaped], seen: FakeState | None = None, **given: Any) -> Findings:
    found = Findings(given)
    describe(KEYS.survey(state), seen or FakeState(), found)
    return found


def released(name: str, **given: Any) -> Findings:
    table = None if name in NO_TABLE else INVENTORIES[name]["interpolation_scale"]
    return look(inventory(name), FakeState(table), **given)


def told(found: Findings, name: str) -> tuple[Any, str]:
    return found[name].value, found[name].source


def without(state: dict[str, Shaped], *keys: str) -> dict[str, Shaped]:
    return {key: tensor for key, tensor in state.items() if key not in keys}


@pytest.mark.parametrize("name", WHOLE)
def test_every_hyper_parameter_of_every_inventory(name: str) -> None:
    """Held against what the inventory states and what its generator was asked for."""
    said = INVENTORIES[name]
    sigma, table = name.startswith("sigma"), name not in NO_TABLE
    found = released(name, **({} if table else {"image_size": said["image_size"]}))
    file = {
        "hidden_size": 1152,
        "patch_size": 2,
        "in_channels": 4,
        "caption_channels": 4096,
        "depth": 42 if name == "sigma-900m" else 28,
        "out_channels": 8,
        "pred_sigma": True,
        "micro_condition": said["micro_conditions"],
        "qk_norm": name.endswith("qknorm"),
        "caption_tokens": 300 if sigma else 120,
        "version": "sigma" if sigma else "alpha",
    }
    for key, value in file.items():
        assert told(found, key) == (value, "file"), key
        assert found[key].evidence
    compressed = "sampling=conv,factor=2,blocks=14-27" if name.endswith("kvcompress") else False
    assert told(found, "kv_compress") == (compressed, "file" if compressed else "assumed")
    assert told(found, "num_attention_heads") == (16, "assumed")
    multi = sigma or said["micro_conditions"]
    assert told(found, "multi_scale_train") == (multi, "file" if said["micro_conditions"] else "assumed")
    source = "file" if table else "given"
    assert told(found, "image_size") == (said["image_size"], source)
    assert told(found, "sample_size") == (said["image_size"] // 8, source)
    assert told(found, "interpolation_scale") == (said["interpolation_scale"], "file" if table else "assumed")
    assert set(found) == {*file, "kv_compress", "num_attention_heads", "multi_scale_train", "image_size",
                          "sample_size", "interpolation_scale"}  # fmt: skip
    assert (found.notes, found.problems) == ([], [])
    assert len([note for note in found.diffusers_notes if "PixArtAlphaPipeline" in note]) == (name == "alpha-512-ms")


@given(
    st.fixed_dictionaries({
        "depth": st.integers(1, 4),
        "hidden_size": st.sampled_from([12, 72, 144]),
        "caption_channels": st.integers(1, 9),
        "tokens": st.sampled_from([7, 120, 300]),
        "patch_size": st.integers(1, 3),
        "in_channels": st.integers(1, 5),
        "pred_sigma": st.booleans(),
        "micro_conditions": st.booleans(),
        "qk_norm": st.booleans(),
        "kv_compress": st.sampled_from([(), (0,)]),
        "input_size": st.sampled_from([12, 24, 48]),
    }),
    st.sampled_from([0.5, 1.0, 2.0, 4.0, 2.02]),
    st.sampled_from(list(ROUNDING)),
)  # fmt: skip
def test_of_a_model_of_any_size(sizes: dict[str, Any], scale: float, dtype: torch.dtype) -> None:
    found = look(small(**sizes), FakeState(scale, hidden=sizes["hidden_size"], dtype=dtype))
    for name in ("depth", "hidden_size", "caption_channels", "patch_size", "in_channels", "pred_sigma", "qk_norm"):
        assert told(found, name) == (sizes[name], "file")
    assert told(found, "out_channels") == (sizes["in_channels"] * (2 if sizes["pred_sigma"] else 1), "file")
    assert told(found, "micro_condition") == (sizes["micro_conditions"], "file")
    compressed = ("sampling=conv,factor=2,blocks=0", "file") if sizes["kv_compress"] else (False, "assumed")
    assert told(found, "kv_compress") == compressed
    assert told(found, "caption_tokens") == (sizes["tokens"], "file")
    assert told(found, "image_size") == (sizes["input_size"] * 8, "file")
    assert told(found, "interpolation_scale") == (scale, "file")
    heads = (sizes["hidden_size"] // 72, "assumed") if sizes["hidden_size"] % 72 == 0 else (None, "unknown")
    assert told(found, "num_attention_heads") == heads
    assert found.problems == []


# Flags.
CONTRADICTIONS = {
    "image_size": (1024, 512, r"pos_embed \[1, 4096, 1152\] has 64 x 64 positions"),
    "interpolation_scale": (2.0, 1.0, r"token 1 at \(0\.479426, 0\.877583\)"),
    "version": ("sigma", "alpha", r"300 caption tokens"),
    "micro_condition": (False, True, r"the embedders of size and aspect ratio are not there"),
    "qk_norm": (False, True, r"no query or key norms"),
}


@pytest.mark.parametrize("flag", CONTRADICTIONS)
def test_a_flag_that_contradicts_the_file_is_refused_with_the_evidence(flag: str) -> None:
    right, wrong, evidence = CONTRADICTIONS[flag]
    assert told(released("sigma-1024-ms", **{flag: right}), flag) == (right, "file")
    with pytest.raises(UsageError, match=rf"^`{flag}` {wrong} contradicts the file, which says {right}: .*{evidence}"):
        released("sigma-1024-ms", **{flag: wrong})


@pytest.mark.parametrize(
    ("name", "flag", "wrong", "evidence"),
    [
        ("alpha-1024-ms", "micro_condition", False, "the embedders of size and aspect ratio are there"),
        ("alpha-1024-ms", "multi_scale_train", False, "micro-conditions exist in the multi-scale class only"),
        ("sigma-1024-ms-qknorm", "qk_norm", False, r"blocks\.\{0\.\.27\}\.attn\.q_norm\.weight"),
        ("sigma-1024-ms-kvcompress", "kv_compress", False, r"blocks\.14\.attn\.sr\.weight .*: its kernel"),
        ("alpha-512", "version", "sigma", "120 caption tokens"),
    ],
)
def test_a_flag_that_denies_what_is_there(name: str, flag: str, wrong: Any, evidence: str) -> None:
    with pytest.raises(UsageError, match=rf"`{flag}` {wrong} contradicts the file, .*{evidence}"):
        released(name, **{flag: wrong})


def test_kv_compression_that_leaves_no_trace_has_to_be_described() -> None:
    with pytest.raises(UsageError, match=r"^`kv_compress` True: say how it compresses, as in sampling="):
        released("sigma-1024-ms", kv_compress=True)
    assert told(released("sigma-1024-ms", kv_compress=False), "kv_compress") == (False, "given")
    how = "sampling=conv,factor=2,blocks=14-27"
    for words in (True, how, "blocks=14-20,21-27,factor=2,sampling=conv"):
        assert told(released("sigma-1024-ms-kvcompress", kv_compress=words), "kv_compress") == (how, "file")
    words = "factor=3, sampling=uniform_every, blocks=5,1-2"
    found = released("sigma-1024-ms", kv_compress=words)
    assert told(found, "kv_compress") == ("sampling=uniform_every,factor=3,blocks=1-2,5", "given")


@pytest.mark.parametrize(
    ("flag", "value"), [("num_attention_heads", 8), ("multi_scale_train", True), ("kv_compress", False)]
)
def test_what_a_file_cannot_show_is_recorded_as_given(flag: str, value: Any) -> None:
    found = released("alpha-512", **{flag: value})
    assert told(found, flag) == (value, "given")
    assert found[flag].evidence == f"--{flag}"


def test_every_flag_is_settled() -> None:
    assert {flag.name for flag in FLAGS} <= set(released("alpha-512"))


# Heads.
@pytest.mark.parametrize("hidden", [72, 144, 1152, 1584])
def test_a_head_has_72_channels_by_convention(hidden: int) -> None:
    found = look(small(hidden_size=hidden, depth=1), FakeState(1.0, hidden=hidden))
    assert told(found, "num_attention_heads") == (hidden // 72, "assumed")
    assert str(hidden) in found["num_attention_heads"].evidence


def test_no_convention_where_72_does_not_divide() -> None:
    found = look(small(hidden_size=96, depth=1), FakeState(1.0, hidden=96))
    assert told(found, "num_attention_heads") == (None, "unknown")
    with pytest.raises(
        UsageError, match=r"`num_attention_heads` is needed: .*hidden size / 72, and 96 is not a multiple of 72$"
    ):
        found.value("num_attention_heads")
    assert told(look(small(hidden_size=96, depth=1), num_attention_heads=8), "num_attention_heads") == (8, "given")


@pytest.mark.parametrize("heads", [5, 0, -16, 16.0])
def test_heads_that_do_not_divide_are_refused(heads: Any) -> None:
    with pytest.raises(
        UsageError, match=rf"`num_attention_heads` {heads}: the hidden size 1152 is not a multiple of it"
    ):
        released("alpha-512", num_attention_heads=heads)


# Version.
def test_the_version_of_a_file_without_its_null_caption() -> None:
    bare = without(inventory("sigma-1024-ms"), "y_embedder.y_embedding")
    found = look(bare, FakeState(2.0))
    assert told(found, "version") == (None, "unknown")
    assert told(found, "multi_scale_train") == (None, "unknown")
    assert "caption_tokens" not in found
    said = look(bare, FakeState(2.0), version="sigma")
    assert told(said, "version") == ("sigma", "given")
    assert told(said, "multi_scale_train") == (True, "assumed")
    micro = look(without(inventory("alpha-1024-ms"), "y_embedder.y_embedding"), FakeState(2.0))
    assert told(micro, "version") == ("alpha", "file")


# Resolution and scale.
@pytest.mark.parametrize(("pixels", "scale"), [(256, 0.5), (512, 1.0), (1024, 2.0), (2048, 4.0)])
def test_sigma_without_a_table_needs_its_size_and_then_takes_the_released_scale(pixels: int, scale: float) -> None:
    found = released("sigma-256")
    for name in ("image_size", "sample_size", "interpolation_scale"):
        assert told(found, name) == (None, "unknown")
    with pytest.raises(UsageError, match=r"`image_size` is needed: there is no usable pos_embed"):
        found.value("image_size")
    found = released("sigma-256", image_size=pixels)
    assert told(found, "image_size") == (pixels, "given")
    assert told(found, "sample_size") == (pixels // 8, "given")
    assert told(found, "interpolation_scale") == (scale, "assumed")
    assert str(pixels) in found["interpolation_scale"].evidence
    assert found.notes == []


def test_a_size_that_was_never_released_needs_its_scale_too() -> None:
    found = released("sigma-256", image_size=768)
    with pytest.raises(UsageError, match=r"`interpolation_scale` is needed: .*no released sigma model at 768 px"):
        found.value("interpolation_scale")
    assert told(released("sigma-256", image_size=768, interpolation_scale=1.5), "interpolation_scale") == (1.5, "given")


def test_alpha_256_without_a_table_is_noted() -> None:
    bare = without(inventory("alpha-256"), "pos_embed")
    found = look(bare, image_size=256)
    assert told(found, "interpolation_scale") == (1.0, "assumed")
    (note,) = found.notes
    assert "scale 1 is assumed" in note
    assert "0.5" in note
    assert look(bare, image_size=256, interpolation_scale=0.5).notes == []
    assert look(bare, image_size=512).notes == []
    assert released("alpha-256").notes == []


def test_a_stored_table_decides_against_the_released_models_and_says_so() -> None:
    found = look(inventory("alpha-256"), FakeState(0.5))
    assert told(found, "interpolation_scale") == (0.5, "file")
    assert found.notes == []  # sigma at 256 px has it
    found = look(inventory("alpha-512"), FakeState(2.0))
    assert told(found, "interpolation_scale") == (2.0, "file")
    (note,) = found.notes
    assert "scale 2, where the released 512 px models have 1; the file decides" in note


@pytest.mark.parametrize("pixels", [8, 500, 1020, 0, -16])
def test_a_size_that_is_not_whole_patches_is_refused(pixels: int) -> None:
    with pytest.raises(UsageError, match=rf"`image_size` {pixels}: not a multiple of 16"):
        released("sigma-256", image_size=pixels)


@pytest.mark.parametrize("scale", [0, -1.0, float("nan"), float("inf"), 1e-320, 1e300])
def test_a_scale_that_is_no_positive_number_is_refused(scale: float) -> None:
    with pytest.raises(UsageError, match=r"`interpolation_scale` .*: not a sensible positive number"):
        released("sigma-256", image_size=256, interpolation_scale=scale)


def test_a_table_that_is_no_sin_cos_table_shows_the_size_alone() -> None:
    """Its scale is asked for: what the released models have would be assumed against evidence that is there."""
    found = look(inventory("alpha-512"), FakeState(None))
    assert told(found, "image_size") == (512, "file")
    assert told(found, "interpolation_scale") == (None, "unknown")
    assert "is no sin-cos table" in found["image_size"].evidence
    assert "is no sin-cos table" in found["interpolation_scale"].rejected_evidence
    with pytest.raises(UsageError, match=r"^`interpolation_scale` is needed: pos_embed .* is no sin-cos table"):
        found.value("interpolation_scale")
    said = look(inventory("alpha-512"), FakeState(None), interpolation_scale=1.5)
    assert told(said, "interpolation_scale") == (1.5, "given")


def test_positions_that_are_no_square_show_nothing() -> None:
    state = inventory("alpha-512") | {"pos_embed": Shaped((1, 1000, 1152))}
    found = look(state, FakeState(1.0))
    assert told(found, "image_size") == (None, "unknown")
    assert found.notes == ["pos_embed has 1000 positions, which is not a square: it tells no resolution"]
    assert told(look(state, image_size=512), "image_size") == (512, "given")


def test_a_single_position_has_no_scale() -> None:
    found = look(small(input_size=2, hidden_size=72), FakeState(1.0, hidden=72))
    assert told(found, "image_size") == (16, "file")
    assert told(found, "interpolation_scale") == (None, "unknown")


# OneTrainer's placeholder: side 128 in the latent, scale 1, in every file that it writes.
def placeholder(version: str, **given: Any) -> Findings:
    state = inventory(version)
    state["pos_embed"] = Shaped((1, 64 * 64, 1152))
    return look(state, FakeState(1.0), **given)


@pytest.mark.parametrize("name", ["alpha-512", "sigma-512-ms", "sigma-1024-ms", "alpha-1024-ms"])
def test_the_placeholder_is_never_believed_silently(name: str) -> None:
    found = placeholder(name)
    for flag in ("image_size", "interpolation_scale"):
        assert told(found, flag) == (None, "unknown")
    (note,) = found.notes
    assert "OneTrainer" in note
    assert "every released 1024 px model has 2" in note
    with pytest.raises(
        UsageError, match=r"^`image_size` is needed: .*OneTrainer .*--image_size, --interpolation_scale"
    ):
        found.value("image_size")


def test_the_placeholder_gives_way_to_a_flag() -> None:
    found = placeholder("sigma-512-ms", image_size=512)
    assert told(found, "image_size") == (512, "given")
    assert told(found, "interpolation_scale") == (1.0, "assumed")
    assert len(found.notes) == 1
    found = placeholder("sigma-1024-ms", image_size=1024)
    assert told(found, "interpolation_scale") == (2.0, "assumed")
    # Someone may have trained just that.
    found = placeholder("sigma-1024-ms", interpolation_scale=1.0)
    assert told(found, "image_size") == (1024, "assumed")
    assert told(found, "interpolation_scale") == (1.0, "given")


@pytest.mark.parametrize(("pixels", "scale"), [(1024, 2.0), (1024, 0.5), (512, 1.0), (2048, 1.0)])
def test_no_other_table_is_taken_for_the_placeholder(pixels: int, scale: float) -> None:
    state = inventory("sigma-1024-ms")
    state["pos_embed"] = Shaped((1, (pixels // 16) ** 2, 1152))
    found = look(state, FakeState(scale))
    assert told(found, "image_size") == (pixels, "file")
    assert told(found, "interpolation_scale") == (scale, "file")


# A folder's config.json.
CONFIG = {
    "sample_size": 64,
    "num_attention_heads": 16,
    "interpolation_scale": 1.0,
    "num_layers": 28,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 8,
    "caption_channels": 4096,
    "use_additional_conditions": False,
}


def folder(config: dict[str, Any], **given: Any) -> Findings:
    found = Findings(given)
    describe(KEYS.targets.plan(inventory(*DIFFUSERS)), FakeState(config=config), found)
    return found


def test_a_config_shows_what_the_tensors_do_not() -> None:
    found = folder(CONFIG)
    for name, value in (("num_attention_heads", 16), ("image_size", 512), ("interpolation_scale", 1.0)):
        assert told(found, name) == (value, "file")
        assert "config.json" in found[name].evidence
    assert found.problems == []
    assert told(found, "version") == (None, "unknown")


def test_a_config_without_a_scale_means_what_diffusers_takes() -> None:
    for side, scale in ((32, 1), (64, 1), (128, 2), (256, 4)):
        bare = {"sample_size": side, "interpolation_scale": None}
        assert told(folder(bare), "interpolation_scale") == (scale, "assumed")
    assert told(folder({}), "image_size") == (None, "unknown")


@pytest.mark.parametrize("flag", ["num_attention_heads", "image_size", "interpolation_scale"])
def test_a_flag_that_contradicts_the_config(flag: str) -> None:
    with pytest.raises(UsageError, match=rf"`{flag}` 32 contradicts the file, .*config\.json"):
        folder(CONFIG, **{flag: 32})


@pytest.mark.parametrize("key", ["num_layers", "patch_size", "in_channels", "out_channels", "caption_channels"])
def test_a_config_that_contradicts_the_tensors(key: str) -> None:
    """Of a last block that is lost, nothing else remains."""
    (problem,) = folder(CONFIG | {key: CONFIG[key] + 1}).problems
    assert problem.startswith(f"config.json: {key}: {CONFIG[key] + 1} contradicts the tensors: ")
    assert folder(CONFIG | {key: None}).problems == []
    assert folder(CONFIG | {"use_additional_conditions": True}).problems != []


@pytest.mark.parametrize("key", ["sample_size", "num_attention_heads", "interpolation_scale"])
@pytest.mark.parametrize("value", ["64", 0, -1, [64], True, float("nan"), float("inf"), {}, 10**30])
def test_a_config_that_makes_no_sense_is_an_input_error(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"config\.json: {key}: .* is not a sensible positive"):
        folder(CONFIG | {key: value})


def test_heads_of_a_config_that_do_not_divide() -> None:
    with pytest.raises(InputError, match=r"config\.json: num_attention_heads 7: the hidden size 1152"):
        folder(CONFIG | {"num_attention_heads": 7})


# A file that does not fit is still described.
def test_a_file_without_any_of_the_keys() -> None:
    found = look({})
    for name in ("hidden_size", "depth", "patch_size", "num_attention_heads", "image_size"):
        assert told(found, name) == (None, "unknown")
    assert found["depth"].evidence == "there are no blocks"


# What is unlike every released model.
@pytest.mark.parametrize(
    ("tokens", "pixels", "micro", "lost"),
    [(120, 1024, False, True), (120, 256, True, False), (120, 2048, True, False), (300, 768, False, False)],
)
def test_a_combination_that_was_never_released_is_noted(tokens: int, pixels: int, micro: bool, lost: bool) -> None:
    sizes = {"hidden_size": 72, "tokens": tokens, "input_size": pixels // 8, "micro_conditions": micro}
    found = look(small(**sizes), FakeState(0.5, hidden=72))
    (note,) = [note for note in found.notes if note.startswith("no released")]
    assert f"of {pixels} px is {'with' if micro else 'without'} micro-conditions" in note
    assert ("part of the file may be missing" in note) is lost


@pytest.mark.parametrize("name", WHOLE)
def test_a_released_width_with_another_depth_is_noted(name: str) -> None:
    state, seen = inventory(name), FakeState(INVENTORIES[name]["interpolation_scale"])
    parts = {key: key.split(".") for key in state}
    cut = {key: state[key] for key, part in parts.items() if part[0] != "blocks" or int(part[1]) < 27}
    (note,) = [note for note in look(cut, seen).notes if "blocks" in note]
    assert note.startswith("depth 27, where the released models of hidden size 1152 have 28 or 42 blocks")
    assert not any("blocks" in note for note in look(state, seen).notes)


def test_micro_conditions_that_the_stock_pipeline_does_not_pass_on_are_noted() -> None:
    (note,) = released("alpha-512-ms").diffusers_notes
    assert "PixArtAlphaPipeline" in note
    assert "this model has 64" in note
    assert released("alpha-1024-ms").diffusers_notes == []
