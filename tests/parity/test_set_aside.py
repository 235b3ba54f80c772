"""Tables that were rounded or averaged, converted and compared; and evidence that was set aside, which is no PASS."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from averaged import averaged
from makers import HEADS, State, dit, pixart, stated
from safetensors.torch import load_file

import converter
from converter.parity import check
from converter.reports.report import FAIL, INCONCLUSIVE, PASS, Report

SCALE = 1.5
SAID: dict[str, Any] = {"num_attention_heads": HEADS}
CONFIG = "transformer/config.json"


def sigma(scale: float = SCALE, **sizes: Any) -> State:
    """A multi-scale model of 512 px."""
    return pixart(scale=scale, tokens=300, input_size=64, **sizes)


def widened(state: State) -> State:
    """Case 01: saved in half precision, and widened by a merger."""
    return {key: tensor.half().float() for key, tensor in state.items()}


def drifted(state: State) -> State:
    """Case 02: an average that averages buffers."""
    return state | {"pos_embed": averaged(state["pos_embed"])}


def saved(state: State, at: Path) -> Path:
    torch.save(state, at)
    return at


def unread(state: State) -> State:
    """A table that shows no scale."""
    table = state["pos_embed"]
    return state | {"pos_embed": table + 0.1 * torch.randn(table.shape, generator=torch.Generator().manual_seed(0))}


def kept(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "original_extras.safetensors")


def phases(report: Report) -> dict[str, str]:
    return {phase.name: phase.verdict for phase in report.phases}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (widened, "rounded to float16 (off by up to 0.00024)"),
        (drifted, "up to a drift, as by averaging (off by up to"),
    ],
)
def test_the_scale_of_the_cases_is_read_from_the_file(
    change: Callable[[State], State], says: str, tmp_path: Path
) -> None:
    """Cases 01 and 02: 1.5, from the file, and a wrong conversion of it is a FAIL."""
    state = change(sigma())
    path = saved(state, tmp_path / "model.pth")
    done = converter.convert(path, tmp_path / "out", **stated(**SAID))
    finding = done.record["hyper_parameters"]["interpolation_scale"]
    assert (finding["value"], finding["source"]) == (SCALE, "file")
    assert says in finding["evidence"]
    config = json.loads((done.path / CONFIG).read_text())
    assert config["interpolation_scale"] == SCALE
    (note,) = [note for note in done.notes if note.startswith("pos_embed is the sin-cos table up to ")]
    assert note.endswith("kept in original_extras.safetensors")
    assert torch.equal(kept(done.path)["pos_embed"], state["pos_embed"])
    assert check(path, done.path).verdict == PASS
    (done.path / CONFIG).write_text(json.dumps(config | {"interpolation_scale": 1}))
    wrong = check(path, done.path)
    assert wrong.verdict == FAIL
    assert "interpolation_scale is 1, and has to be 1.5" in wrong.reason


def test_a_table_that_shows_no_scale_is_asked_for_and_never_a_pass(tmp_path: Path) -> None:
    """The released 512 px models have scale 1; that of this file is 1.5, and parity cannot know."""
    path = saved(unread(sigma()), tmp_path / "model.pth")
    with pytest.raises(converter.UsageError, match=r"^`interpolation_scale` is needed: pos_embed .* no sin-cos table"):
        converter.convert(path, tmp_path / "out", **stated(**SAID))
    assert not (tmp_path / "out").exists()
    converter.convert(path, tmp_path / "out", **stated(interpolation_scale=1.0, **SAID))
    assert check(path, tmp_path / "out").verdict == PASS  # as the record has it in the user's words
    (tmp_path / "out" / "conversion.json").unlink()
    report = check(path, tmp_path / "out", **stated(**SAID))
    assert (report.verdict, report.exit_code) == (INCONCLUSIVE, 4)
    assert report.reason.startswith("config: --interpolation_scale is not given, and the original's own evidence")
    assert "no sin-cos table" in report.reason
    assert check(path, tmp_path / "out", **stated(interpolation_scale=SCALE, **SAID)).verdict == FAIL


@pytest.mark.parametrize("change", [widened, drifted])
def test_the_placeholder_of_one_trainer_is_doubted_however_it_was_stored(
    change: Callable[[State], State], tmp_path: Path
) -> None:
    state = change(pixart(input_size=128, tokens=300, depth=1))
    path = saved(state, tmp_path / "model.pth")
    with pytest.raises(converter.UsageError, match=r"^`image_size` is needed: .*OneTrainer"):
        converter.convert(path, tmp_path / "out", **stated(**SAID))
    converter.convert(path, tmp_path / "out", **stated(image_size=512, **SAID))
    report = check(path, tmp_path / "out")
    assert report.verdict == INCONCLUSIVE
    assert "--interpolation_scale is not given" in report.reason
    assert "OneTrainer" in report.reason
    assert check(path, tmp_path / "out", hyper_parameters={"interpolation_scale": 1.0}).verdict == PASS


def test_positions_that_make_no_square(tmp_path: Path) -> None:
    path = saved(sigma() | {"pos_embed": torch.randn(1, 1000, 24)}, tmp_path / "model.pth")
    converter.convert(path, tmp_path / "out", **stated(image_size=512, **SAID))
    report = check(path, tmp_path / "out")
    assert report.verdict == INCONCLUSIVE
    assert "1000 positions, which is not a square" in report.reason
    assert check(path, tmp_path / "out", hyper_parameters={"interpolation_scale": 1.0}).verdict == PASS


def test_what_is_assumed_for_want_of_any_evidence_may_pass_as_before(tmp_path: Path) -> None:
    state = sigma(1.0)
    del state["pos_embed"]
    path = saved(state, tmp_path / "model.pth")
    converter.convert(path, tmp_path / "out", **stated(image_size=512, **SAID))
    report = check(path, tmp_path / "out")
    assert report.verdict == PASS
    assert "interpolation_scale" in [item["name"] for item in report.assumed]


# The fixed-size class adds the stored table to its input.
def fixed() -> State:
    return pixart(scale=1.0, tokens=120, input_size=16)


FIXED = SAID | {"multi_scale_train": False}


def test_of_the_fixed_class_a_rounded_table_that_was_widened_is_not_the_one_that_is_computed(tmp_path: Path) -> None:
    """Its net adds the table as it is stored. In half precision it is what the target's becomes there too."""
    half = {key: tensor.bfloat16() for key, tensor in fixed().items()}
    for state, verdict in ((half, PASS), (widened(fixed()), INCONCLUSIVE)):
        path = saved(state, tmp_path / f"{verdict}.pth")
        done = converter.convert(path, tmp_path / verdict, **stated(**FIXED))
        report = check(path, done.path)
        assert report.verdict == verdict, report.reason
        assert verdict == PASS or "the original uses it as it is" in report.reason


@pytest.mark.parametrize(
    ("state", "said", "flag", "value"),
    [(fixed, FIXED, "interpolation_scale", 1.0), (dit, SAID, "image_size", 128)],
)
def test_a_drift_that_the_net_adds_is_asked_about(
    state: Callable[[], State], said: dict[str, Any], flag: str, value: float, tmp_path: Path
) -> None:
    path = saved(drifted(state()), tmp_path / "model.pth")
    with pytest.raises(
        converter.UsageError, match=rf"^`{flag}` is needed: pos_embed is the sin-cos table up to a drift"
    ):
        converter.convert(path, tmp_path / "out", **stated(**said))
    done = converter.convert(path, tmp_path / "out", **stated(**said, **{flag: value}))
    assert any("the exact one, by the flags, is taken instead" in note for note in done.notes)
    amended = {"exact_timesteps": True} if state is dit else {}
    report = check(path, done.path, **stated(**amended))
    assert report.verdict == INCONCLUSIVE
    assert "up to a drift" in report.reason
    assert "the original uses it as it is: the nets are compared with the computed one" in report.reason
    (done.path / "conversion.json").unlink()
    with pytest.raises(converter.UsageError, match=rf"^`{flag}` is needed"):
        check(path, done.path, **stated(**said, **amended))


# --require_evidence.
def test_parity_that_may_assume_nothing(tmp_path: Path) -> None:
    path = saved(sigma(1.0), tmp_path / "model.pth")
    converter.convert(path, tmp_path / "out", **stated(**SAID))
    with pytest.raises(converter.UsageError, match=r"^`require_evidence`: .*`kv_compress` \(False") as raised:
        check(path, tmp_path / "out", require_evidence=True)
    assert "num_attention_heads" not in str(raised.value)  # it was given, and the record says so
    assert check(path, tmp_path / "out", require_evidence=True, hyper_parameters={"kv_compress": False}).verdict == PASS
    (tmp_path / "out" / "conversion.json").unlink()
    with pytest.raises(
        converter.UsageError, match=r"`num_attention_heads` \(4: from the converted model, which is under test"
    ):
        check(path, tmp_path / "out", require_evidence=True, hyper_parameters={"kv_compress": False})


@pytest.mark.parametrize("beside", [
    {"hyper_parameters": {"num_heads": 4}}, {"config": {"model": {"num_attention_heads": 4}}},
    {"args": argparse.Namespace(lr=0.1, num_heads=4)},
])  # fmt: skip
def test_heads_that_the_file_names_elsewhere_are_not_passed_over(beside: dict[str, Any], tmp_path: Path) -> None:
    """They may be another net's, and so they are not believed; but neither is what is assumed instead."""
    path = saved({"state_dict": pixart(hidden_size=144)} | beside, tmp_path / "model.pth")
    done = converter.convert(path, tmp_path / "out")
    assert any("4, and 2 heads are assumed: --num_attention_heads sets the number" in note for note in done.notes)
    report = check(path, done.path)
    assert report.verdict == INCONCLUSIVE
    assert "--num_attention_heads is not given" in report.reason
    given = converter.convert(path, tmp_path / "given", hyper_parameters={"num_attention_heads": 4})
    assert check(path, given.path).verdict == PASS
