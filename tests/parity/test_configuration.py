"""The config audit: every field against what the original shows, and what nobody shows said to be assumed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from makers import GOLDEN, HEADS
from opened import golden

from converter.checkpoint import open_checkpoint
from converter.conversion.analysis import analyse
from converter.families import Findings
from converter.mapping import Plan
from converter.models.pixart.parity import PARITY, STOCK
from converter.models.pixart.table import PIXART
from converter.parity.configuration import BORROWED, assumptions, audit
from converter.parity.sides import Sides
from converter.reports.report import FAIL, PASS, Phase

INERT = ("dropout", "norm_num_groups", "num_embeds_ada_norm", "upcast_attention", "_diffusers_version")


def findings(name: str, **given: Any) -> Findings:
    with open_checkpoint(GOLDEN / f"{name}.pth") as checkpoint:
        said = {"num_attention_heads": HEADS, "multi_scale_train": name != "alpha-fixed"} | given
        return analyse(checkpoint, {k: v for k, v in said.items() if v is not None}).findings


FOUND = {name: findings(name) for name in ("alpha-ms", "sigma-ms", "alpha-fixed")}
CONFIG = {name: PIXART.config(found) for name, found in FOUND.items()}
each = pytest.mark.parametrize("name", FOUND)


def sides(found: Findings, **borrowed: Any) -> Sides:
    return Sides(PIXART, found, Plan(), {}, {}, spec=PARITY, borrowed=borrowed)


def audited(name: str = "alpha-ms", without: tuple[str, ...] = (), **change: Any) -> Phase:
    config = {key: value for key, value in CONFIG[name].items() if key not in without} | change
    return audit(sides(FOUND[name]), config)


def wrong(phase: Phase) -> list[str]:
    assert phase.verdict == (FAIL if list(phase.failed) else PASS)
    return [check.what for check in phase.failed]


def other(value: Any) -> Any:
    """A value of the same type that is another."""
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value * 10 if isinstance(value, float) else f"not-{value}"


@each
def test_a_right_config(name: str, tmp_path: Path) -> None:
    found = audited(name)
    assert found.verdict == PASS
    assert found.notes == []
    matter = len(CONFIG[name]) - len(INERT)
    assert found.words == f"all {matter} fields that matter are what the original shows or needs"
    assert len(found.checks) == matter
    on_disk = json.loads((golden(name, tmp_path).model / "config.json").read_text())
    assert audit(sides(FOUND[name]), on_disk).verdict == PASS


@pytest.mark.parametrize("field", [field for field in CONFIG["alpha-ms"] if field not in INERT])
def test_each_field_wrong(field: str) -> None:
    value = CONFIG["alpha-ms"][field]
    found = audited(**{field: other(value)})
    assert wrong(found) == [field]
    assert found.words.startswith(f"{field} is {other(value)}, and has to be {value}: ")
    (check,) = found.failed
    assert (check.value, check.limit, check.statistic) == (str(other(value)), str(value), "config")


@pytest.mark.parametrize("field", INERT)
def test_what_changes_no_output_may_differ(field: str) -> None:
    assert audited(**{field: other(CONFIG["alpha-ms"][field])}).verdict == PASS
    assert audited(without=(field,)).verdict == PASS


def test_the_old_class_name_is_as_good() -> None:
    assert audited(_class_name="Transformer2DModel").verdict == PASS
    assert wrong(audited(_class_name="UNet2DConditionModel")) == ["_class_name"]
    assert wrong(audited(without=("_class_name",))) == ["_class_name"]


def test_every_wrong_field_is_told() -> None:
    found = audited(norm_eps=1e-5, num_attention_heads=8, sample_size=256)
    assert wrong(found) == ["norm_eps", "num_attention_heads", "sample_size"]
    assert re.search("; wrong too: [a-z_]+, [a-z_]+$", found.words)


def test_the_first_is_the_one_that_the_others_follow_from() -> None:
    """Of a wrong head count the width of a head is wrong too, and nobody has said anything of that."""
    found = audited(attention_head_dim=6, num_attention_heads=8)
    assert found.words.startswith("num_attention_heads is 8, and has to be 4: ")
    found = audited(attention_head_dim=6, num_attention_heads=8, _class_name="AutoencoderKL")
    assert found.words.startswith("_class_name is AutoencoderKL, and has to be PixArtTransformer2DModel: ")


# Missing fields.


@each
@pytest.mark.parametrize("field", ["num_layers", "num_attention_heads", "attention_head_dim", "cross_attention_dim"])
def test_missing_where_the_default_is_another(name: str, field: str) -> None:
    found = audited(name, (field,))
    assert wrong(found) == [field]
    assert "(not written: the target's default)" in found.words


@pytest.mark.parametrize("field", ["norm_eps", "activation_fn", "in_channels", "patch_size", "attention_bias"])
def test_missing_where_the_default_is_right(field: str) -> None:
    found = audited(without=(field,))
    assert found.verdict == PASS
    (check,) = [check for check in found.checks if check.what == field]
    assert check.words.endswith("(not written: the target's default)")


@each
def test_the_scale_and_the_micro_conditions_hang_on_the_size(name: str) -> None:
    """diffusers guesses both from `sample_size` where they are not written: right for some models, not for others."""
    have, side = CONFIG[name], CONFIG[name]["sample_size"]
    scale, micro = have["interpolation_scale"], have["use_additional_conditions"]
    for absent in ((), (None,)):  # left out, or written as null
        changes = dict.fromkeys(("interpolation_scale", "use_additional_conditions"), *absent) if absent else {}
        without = () if absent else ("interpolation_scale", "use_additional_conditions")
        expected = ["interpolation_scale"] * (scale != max(side // 64, 1))
        expected += ["use_additional_conditions"] * (micro != (side == 128))
        assert wrong(audited(name, without, **changes)) == expected


def test_out_channels_that_are_null() -> None:
    assert wrong(audited(out_channels=None)) == ["out_channels"]  # diffusers then takes those that go in
    assert STOCK.resolve_config({"in_channels": 4, "out_channels": None})["out_channels"] == 4
    assert audited(without=("out_channels",)).verdict == PASS  # its default is 8


# Types.


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attention_bias", 1),
        ("norm_elementwise_affine", 0),
        ("use_additional_conditions", 1),
        ("use_additional_conditions", "true"),
        ("num_attention_heads", "4"),
        ("num_layers", "3"),
        ("norm_eps", "1e-06"),
        ("patch_size", [2]),
        ("patch_size", {"": 2}),
        ("num_layers", None),
        ("in_channels", float("nan")),
        ("norm_eps", float("inf")),
        ("activation_fn", True),
    ],
)
def test_types(field: str, value: Any) -> None:
    """1 is not true, '4' is not 4."""
    assert wrong(audited(**{field: value})) == [field]


def test_true_is_not_one() -> None:
    assert CONFIG["sigma-ms"]["interpolation_scale"] == 1
    assert wrong(audited("sigma-ms", interpolation_scale=True)) == ["interpolation_scale"]
    assert audited("sigma-ms", interpolation_scale=1.0).verdict == PASS


@pytest.mark.parametrize("size", ["128", None, [64], {}, True])
@pytest.mark.parametrize("without", [(), ("interpolation_scale", "use_additional_conditions")])
def test_a_size_that_is_none(size: Any, without: tuple[str, ...]) -> None:
    """From a hostile config nothing may come but a finding."""
    found = audited("sigma-ms", without, sample_size=size)
    assert "sample_size" in wrong(found)


# Unknown and hostile keys.


def test_unknown_keys_are_noted() -> None:
    found = audited(guidance_embed=True, _private="x", **{"\x1b[31m": 1})
    assert found.verdict == PASS
    assert found.notes == [
        "config.json: guidance_embed means nothing to the target's code",
        "config.json: \\x1b[31m means nothing to the target's code",
    ]


def test_what_a_config_says_is_made_printable() -> None:
    found = audited(activation_fn="gelu\n\x1b[31m" + "a" * 5000)
    assert "\n" not in found.words
    assert "\x1b" not in found.words
    assert len(found.words) < 500


# Where it is known from.


def test_evidence_is_told() -> None:
    words = {check.what: check.words for check in audited("alpha-fixed").checks}
    assert words["num_attention_heads"] == f"num_attention_heads is {HEADS}: --num_attention_heads"
    assert "pos_embed" in words["sample_size"]
    assert words["norm_eps"].endswith("follows from what the original shows and its user states")


def test_what_nobody_shows_is_assumed() -> None:
    found = findings("sigma-ms", multi_scale_train=None, num_attention_heads=HEADS)
    assert found["multi_scale_train"].source == "unknown"
    listed = assumptions(sides(found, multi_scale_train=True))
    assert {row["name"] for row in listed} == {"multi_scale_train", "kv_compress"}
    assert {row["why"] for row in listed if row["name"] == "multi_scale_train"} == {BORROWED}
    assert {row["name"] for row in assumptions(sides(FOUND["sigma-ms"]))} == {"kv_compress"}


def test_a_borrowed_value_is_marked_in_its_line() -> None:
    found = FOUND["alpha-ms"]
    audited = audit(sides(found, num_attention_heads=HEADS), CONFIG["alpha-ms"])
    (check,) = [check for check in audited.checks if check.what == "num_attention_heads"]
    assert check.words == f"num_attention_heads is {HEADS}: assumed ({BORROWED})"


def test_what_is_not_known_fails() -> None:
    found = findings("alpha-ms", num_attention_heads=None)
    audited_without = audit(sides(found), CONFIG["alpha-ms"])
    assert audited_without.verdict == FAIL
    assert "num_attention_heads" in audited_without.words
