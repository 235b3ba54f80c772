"""Names behind prefixes and wrappers of any kind, and beside whatever else, as the tables of models know them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from makers import within

from converter.checkpoint.key_names import Names, find_models, unwrapped
from converter.families import tables
from converter.mapping import KeyMapping, Sparse

TOY = KeyMapping({"proj": "p", "blocks.{}.fc": "b.{}.fc", "blocks.{}.norm": Sparse("b.{}.norm"), "out": "o"})
MODEL = [f"{name}.{end}" for name in ("proj", "blocks.0.fc", "blocks.1.fc", "out") for end in ("weight", "bias")]


def toy() -> Iterator[Sequence[Names]]:
    yield [TOY, TOY.targets]


segments = st.from_regex(r"[a-z_][a-z0-9_]{0,12}", fullmatch=True).filter(lambda part: part not in ("p", "b", "o"))


@given(st.lists(segments, max_size=5), st.lists(segments, min_size=1, max_size=3), st.booleans())
def test_any_prefix_and_whatever_lies_elsewhere(prefix: list[str], other: list[str], beside: bool) -> None:
    """The model comes out under its own names; keys of another program in the file are left out, not lost."""
    head = "".join(f"{part}." for part in prefix)
    there = ".".join([*prefix[:-1], "elsewhere", *other]) if beside and prefix else ""
    keys = [head + name for name in MODEL] + ([there] if there else [])
    (found,) = find_models(keys, toy)
    assert list(found.in_file) == MODEL
    assert [*found.in_file.values(), *found.left_out] == keys
    assert (found.prefix, found.fits, found.mixed, found.clash) == (head, True, "", "")


@given(st.data())
def test_wrappers_anywhere(data: st.DataObject) -> None:
    wrappers = st.sampled_from(["", "_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module._orig_mod."])

    def wrapped(name: str) -> str:
        *parts, end = name.split(".")
        return "".join(data.draw(wrappers) + part + "." for part in parts) + end

    keys = [wrapped(name) for name in MODEL]
    (found,) = find_models(keys, toy)
    assert list(found.in_file) == MODEL
    assert list(found.in_file.values()) == keys


def test_two_names_that_differ_in_a_wrapper_are_one_too_many() -> None:
    (found,) = find_models([*MODEL, "blocks.0._orig_mod.fc.weight"], toy)
    assert "differ in wrappers only" in found.clash
    assert unwrapped("_orig_mod.") == "_orig_mod."  # a key is never left empty


FOREIGN = [
    "betas", "alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "posterior_variance", "n_averaged", "logvar", "step",
    "vae.decoder.conv_in.weight", "first_stage_model.x", "cond_stage_model.transformer.a", "text_encoders.t5.b",
    "loss.discriminator.main.0.weight", "lpips.lin0.weight", "model_ema.blocks0fcweight",
]  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "model.", "denoiser."])
@pytest.mark.parametrize("foreign", FOREIGN)
def test_what_is_plainly_no_part_of_a_model_is_left_out(prefix: str, foreign: str) -> None:
    """Also where no prefix sets the model apart."""
    (found,) = find_models([prefix + name for name in MODEL] + [foreign], toy)
    assert list(found.in_file) == MODEL
    assert found.left_out == (foreign,)


@pytest.mark.parametrize("extra", ["blocks.0.attn.q_norm.weight", "extra_embedder.weight", "proj.scale"])
def test_what_may_be_a_part_of_it_stays(extra: str) -> None:
    """Within the model's own prefix, nothing is taken for somebody else's but what plainly is."""
    for prefix in ("", "model."):
        (found,) = find_models([prefix + name for name in [*MODEL, extra]], toy)
        assert extra in found.in_file
        assert not found.left_out


@pytest.mark.parametrize(("prefix", "stray"), [
    ("module.", "blocks.1.fc.weight"), ("net.", "proj.weight"), ("net.", "module.out.weight"), ("model.", "out.bias"),
])  # fmt: skip
@pytest.mark.parametrize("twice", [True, False])
def test_a_weight_outside_of_the_prefix_is_a_mixture(prefix: str, stray: str, twice: bool) -> None:
    own = stray.removeprefix("module.")
    keys = [prefix + name for name in MODEL if twice or name != own]
    (found,) = find_models([*keys, stray], toy)
    assert "mixed prefixes cannot be told apart safely" in found.mixed
    assert f"of {len(keys) + 1} keys carry the prefix" in found.mixed
    assert not found.left_out


@pytest.mark.parametrize(("one", "other"), [("net.", "net_ema."), ("", "ema."), ("m.online_model.", "m.ema_model.")])
def test_two_models_in_one_state_dict(one: str, other: str) -> None:
    lacking = MODEL[:-1]  # such as an EMA without buffers
    keys = [one + name for name in MODEL] + [other + name for name in lacking] + ["betas"]
    found = {model.prefix: model for model in find_models(keys, toy)}
    assert {prefix: list(model.in_file) for prefix, model in found.items()} == {one: MODEL, other: lacking}


def test_a_model_with_a_hole_is_still_found_so_that_the_hole_is_named() -> None:
    (found,) = find_models(["_forward_module.model." + name for name in MODEL[2:]], toy)
    assert list(found.in_file) == MODEL[2:]
    assert found.fits


def test_nothing_is_found_in_what_is_none_of_ours() -> None:
    keys = ["encoder.layer.3.proj.weight", "encoder.layer.3.proj.bias", "x.y.z", "head"]
    (found,) = find_models(keys, toy)
    assert (list(found.in_file), found.fits) == (keys, False)


def test_many_odd_names_take_linear_time() -> None:
    keys = [f"{'a.' * 400}blocks.{n}.fc" for n in range(15_000)]
    assert not find_models(keys, tables())[0].fits


def test_many_models_take_linear_time_and_are_bounded() -> None:
    few = [f"m{n}.{name}" for n in range(60) for name in MODEL]
    assert [list(model.in_file) for model in find_models(few, toy)] == [MODEL] * 60
    with within(20):
        (found,) = find_models([f"m{n}.{name}" for n in range(2_000) for name in MODEL], toy)
    assert not found.fits


def test_the_names_of_a_part_of_a_whole() -> None:
    """They become those of the whole; what any model may lack is no sign of one."""
    whole = KeyMapping({"copies.{}.fc": "c.fc.{}.x", "copies.{}.out": "c.fc.{}.y"}, {"base": {"base.head": "b.head"}})
    tables = [whole, whole.targets, whole.targets.below("c.")]
    keys = [f"module.fc.{i}.{name}.{part}" for i in (0, 1) for name in "xy" for part in ("weight", "bias")]
    (found,) = find_models(keys, lambda: iter([tables]))
    assert (found.fits, found.prefix, found.part) == (True, "module.", "c.")
    assert found.in_file["c.fc.1.y.bias"] == "module.fc.1.y.bias"
    (found,) = find_models(["base.head.weight", "base.head.bias"], lambda: iter([tables]))
    assert (found.fits, list(found.in_file)) == (False, ["base.head.weight", "base.head.bias"])
