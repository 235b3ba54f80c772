"""Bad input ends in its own verdict with the reason: never in a traceback, never in a PASS."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import GOLDEN, HEADS, save, stated
from safetensors.torch import load_file, save_file

import converter
from converter.checkpoint.folder import CONFIG
from converter.checkpoint.weight_names import WEIGHTS
from converter.conversion.pairs import Pair
from converter.parity.audit import audit
from converter.parity.checker import check
from converter.parity.ci import batch
from converter.reports.report import FAIL, INCONCLUSIVE, NOT_RUN, PASS, REJECTED, Report

SIGMA = GOLDEN / "sigma-ms.pth"
ROW = "transformer_blocks.1.attn1.to_q.weight"
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("right") / "out"
    converter.convert(SIGMA, out, hyper_parameters={"num_attention_heads": HEADS})
    return out


@pytest.fixture
def out(right: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(right, tmp_path / "out"))


def compared(original: Path, folder: Path, **options: Any) -> Report:
    """The report of a comparison among others, so that whatever is raised becomes a verdict too."""
    options = stated(**options)
    spare = Pair(str(original), str(folder), hyper_parameters=options.pop("hyper_parameters"), options=options)
    first, _ = batch.check_all([spare, Pair(str(original.parent / "none.pth"), str(folder))])
    return first


def rewritten(folder: Path, change: Callable[[State], object]) -> None:
    path = folder / "transformer" / WEIGHTS
    state = load_file(path)
    change(state)
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path, metadata={"format": "pt"})


def configured(folder: Path, **fields: Any) -> None:
    path = folder / "transformer" / CONFIG
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "ABSENT"}))


def test_the_folder_that_is_spoilt_below_is_right(out: Path) -> None:
    assert compared(SIGMA, out).verdict == PASS


WRONG_WEIGHTS: list[tuple[str, Callable[[State], object], str]] = [
    ("a missing key", lambda state: state.pop(ROW), "missing"),
    ("an extra key", lambda state: state.update(surplus=torch.ones(2)), "surplus"),
    ("a wrong shape", lambda state: state.update({ROW: state[ROW][:, :-1]}), "shape"),
    ("a wrong number", lambda state: state[ROW].view(-1)[3:4].mul_(2), "differs in 1 of"),
    ("a NaN", lambda state: state[ROW].view(-1)[3:4].fill_(float("nan")), "not finite"),
    ("another dtype", lambda state: state.update({k: t.half() for k, t in state.items()}), "--cast float16"),
    ("a lost block", lambda state: [state.pop(k) for k in list(state) if "blocks.2." in k], "missing"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "change", "reason"), WRONG_WEIGHTS, ids=lambda value: str(value)[:20])
def test_wrong_weights_fail_with_the_reason(
    out: Path, what: str, change: Callable[[State], object], reason: str
) -> None:
    rewritten(out, change)
    report = compared(SIGMA, out)
    assert (report.verdict, report.exit_code) == (FAIL, 1)
    assert reason in report.reason, (what, report.reason)


WRONG_CONFIGS: list[dict[str, Any]] = [
    {"sample_size": 32},
    {"interpolation_scale": 2.02},
    {"num_layers": 2},
    {"num_layers": 10**9},
    {"num_layers": -1},
    {"num_layers": "28"},
    {"num_layers": None},
    {"num_layers": [4]},
    {"num_attention_heads": 10**9},
    {"num_attention_heads": 5},
    {"norm_eps": 1e-5},
    {"activation_fn": "gelu"},
    {"activation_fn": "<b>\x1b[31m"},
    {"caption_channels": 7},
    {"use_additional_conditions": True},
    {"attention_bias": False},
    {"_class_name": "UNet2DConditionModel"},
    {"sample_size": "ABSENT"},
]


@pytest.mark.parametrize("fields", WRONG_CONFIGS, ids=str)
def test_a_config_of_another_model_fails_or_is_refused(out: Path, fields: dict[str, Any]) -> None:
    configured(out, **fields)
    report = compared(SIGMA, out)
    assert report.verdict in (FAIL, REJECTED), report.reason
    assert next(iter(fields)) in report.reason
    assert "internal" not in report.reason
    assert "\x1b" not in report.to_json()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"num_layers": 3, "num_layers": 5}', "null"])
def test_a_config_that_cannot_be_read_is_refused(out: Path, content: str) -> None:
    (out / "transformer" / CONFIG).write_text(content)
    report = compared(SIGMA, out)
    assert (report.verdict, report.exit_code) == (REJECTED, 3)
    assert CONFIG in report.reason


def test_a_truncated_file_is_refused(out: Path) -> None:
    path = out / "transformer" / WEIGHTS
    os.truncate(path, path.stat().st_size - 10)
    report = compared(SIGMA, out)
    assert (report.verdict, report.exit_code) == (REJECTED, 3)
    assert "truncated" in report.reason


def test_a_shard_that_is_not_there_is_refused(out: Path) -> None:
    place = out / "transformer"
    keys = list(load_file(place / WEIGHTS))
    index = {"weight_map": dict.fromkeys(keys, "../elsewhere.safetensors")}
    (place / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    (place / WEIGHTS).unlink()
    report = compared(SIGMA, out)
    assert (report.verdict, report.exit_code) == (REJECTED, 3)


@pytest.mark.parametrize("name", ["alpha-controlnet.pth", "sigma-qknorm.pth", "sigma-kvcompress.pth"])
def test_a_model_with_more_in_it_is_no_original_of_this(out: Path, name: str) -> None:
    report = compared(GOLDEN / name, out, num_attention_heads=HEADS)
    assert (report.verdict, report.exit_code) == (FAIL, 1)
    assert report.reason.startswith("weights: ")
    assert "not the original's: missing: " in report.reason


def test_the_conversion_of_another_family_is_no_conversion_of_this(out: Path) -> None:
    report = compared(GOLDEN / "dit.pt", out, num_attention_heads=HEADS)
    assert (report.verdict, report.exit_code) == (FAIL, 1)
    assert report.reason.startswith("weights: 38 of 38 converted tensors are not the original's: missing: ")
    assert {phase.name: phase.verdict for phase in report.phases}["function"] == NOT_RUN


def test_the_two_sides_exchanged_are_refused(out: Path) -> None:
    assert compared(out, SIGMA).verdict == REJECTED
    assert compared(out, out).verdict == REJECTED
    assert compared(SIGMA, SIGMA).verdict == REJECTED


def test_a_hostile_file_is_refused_and_nothing_of_it_runs(out: Path, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    original = save({"state_dict": {"x_embedder.proj.weight": Hostile()}}, tmp_path / "hostile.pth")
    report = compared(original, out)
    assert (report.verdict, report.exit_code) == (REJECTED, 3)
    assert not (tmp_path / "ran").exists()


def spoilt(tmp_path: Path, change: Callable[[State], object]) -> tuple[Path, Path]:
    """A checkpoint with something odd in it, and its conversion, which is faithful to it."""
    loaded = torch.load(SIGMA, weights_only=True)
    state = loaded.get("state_dict", loaded)
    change(state)
    original = save(state, tmp_path / "odd.pth")
    converter.convert(original, tmp_path / "odd", allow_nonfinite=True, hyper_parameters={"num_attention_heads": HEADS})
    return original, tmp_path / "odd"


def test_nan_on_both_sides_is_inconclusive(tmp_path: Path) -> None:
    report = compared(*spoilt(tmp_path, lambda state: state["blocks.0.mlp.fc1.bias"][:1].fill_(float("nan"))))
    assert (report.verdict, report.exit_code) == (INCONCLUSIVE, 4)
    assert "not finite" in report.reason
    weights = report.phase("weights")
    assert weights
    assert weights.verdict == PASS  # the same bits


def test_an_output_that_is_zero_is_inconclusive(tmp_path: Path) -> None:
    def untrained(state: State) -> None:
        state["final_layer.linear.weight"].zero_()
        state["final_layer.linear.bias"].zero_()

    report = compared(*spoilt(tmp_path, untrained))
    assert (report.verdict, report.exit_code) == (INCONCLUSIVE, 4)
    assert "zero everywhere" in report.reason


@pytest.mark.parametrize("content", ["{", "[]", '{"tool": 1}', '{"tool": {"name": "convert-pixart"}, "source": []}'])
def test_a_record_that_is_no_record_is_not_believed(out: Path, content: str) -> None:
    (out / "conversion.json").write_text(content)
    report = compared(SIGMA, out, num_attention_heads=HEADS)
    assert report.verdict == PASS
    told = [item["name"] for item in report.assumed]
    assert "num_attention_heads" not in told


def test_heads_that_only_the_converted_config_shows_are_said_to_be_assumed(out: Path) -> None:
    (out / "conversion.json").unlink()
    report = compared(SIGMA, out)
    assert "num_attention_heads" in [item["name"] for item in report.assumed]
    config = report.phase("config")
    assert config
    (check,) = [check for check in config.checks if check.what == "num_attention_heads"]
    assert check.passed is None  # held against itself, it shows nothing
    assert "taken as they are: num_attention_heads" in config.words


def test_heads_against_the_user_fail(out: Path) -> None:
    (out / "conversion.json").unlink()
    report = compared(SIGMA, out, num_attention_heads=HEADS * 2)
    assert report.verdict == FAIL
    config = report.phase("config")
    assert config
    assert "num_attention_heads" in [check.what for check in config.failed]


def test_a_table_of_the_fixed_class_cannot_be_excused_by_the_converted_model(tmp_path: Path) -> None:
    """Without a caption table nothing shows the class, and a converted config does not either."""
    loaded = torch.load(SIGMA, weights_only=True)
    state = loaded.get("state_dict", loaded)
    del state["y_embedder.y_embedding"]
    state["pos_embed"] = torch.randn_like(state["pos_embed"])
    original, words = save(state, tmp_path / "odd.pth"), {"num_attention_heads": HEADS, "image_size": 512}
    made = {"multi_scale_train": True, "interpolation_scale": 1.0, **words}
    converter.convert(original, tmp_path / "odd", **stated(**made))  # the user's word, which goes into the record
    (tmp_path / "odd" / "conversion.json").unlink()
    report = compared(original, tmp_path / "odd", **words, interpolation_scale=1.0)
    assert report.verdict == FAIL, report.reason
    assert "pos_embed" in report.reason
    assert compared(original, tmp_path / "odd", **made).verdict == PASS


@pytest.mark.parametrize("side", ["original", "converted"])
def test_a_file_that_changes_after_its_audit_is_refused(
    side: str, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the audit has proven equal is read once for both nets: it has to stay what it was."""
    original = Path(shutil.copy(SIGMA, tmp_path / "a.pth"))
    changed = original if side == "original" else out / "transformer" / WEIGHTS

    def change(*args: Any) -> Any:
        result = audit(*args)
        with open(changed, "r+b") as file:
            file.seek(-100_000, os.SEEK_END)
            file.write(b"\x41" * 64)
        return result

    monkeypatch.setattr("converter.parity.checker.audit", change)
    with pytest.raises(converter.InputError, match=f"{changed.name}: (it changed while it was read|.*CRC-32 mismatch)"):
        check(original, out)
