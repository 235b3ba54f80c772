"""A conversion that was declared to round: held against the original's rounded weights, and told what rounding costs.

The folders are made by hand: torch rounds, safetensors writes, and the record says so.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from makers import GOLDEN, HEADS
from opened import WEIGHTS, Pair, State
from safetensors.torch import load_file, save_file

from converter import convert
from converter.models.pixart.net import PixArtShape, pixart
from converter.nets import Weights as Weighted
from converter.parity import check
from converter.parity.statistics import relative
from converter.reports.report import FAIL, PASS, Report

FLOAT64, FLOAT32, FLOAT16, BFLOAT16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
Q, K = (f"transformer_blocks.1.attn1.to_{name}.weight" for name in "qk")


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def source(at: Path, dtype: torch.dtype, name: str) -> State:
    """A golden model in another dtype; in float64, with digits that float32 has no room for."""
    stored = torch.load(GOLDEN / f"{name}.pth", weights_only=True)
    state: State = stored.get("state_dict", stored)
    noise = torch.Generator().manual_seed(1)
    for key, tensor in state.items():
        if key != "pos_embed":
            state[key] = tensor.to(dtype)
            if dtype == FLOAT64:
                state[key] *= 1 + 1e-8 * torch.randn(tensor.shape, generator=noise, dtype=dtype)
    torch.save(state, at)
    return state


def made(at: Path, dtype: torch.dtype, to: torch.dtype, name: str = "sigma-ms") -> tuple[Pair, State]:
    state = source(at / "model.pth", dtype, name)
    convert(
        at / "model.pth",
        at / "out",
        hyper_parameters={"num_attention_heads": HEADS, "multi_scale_train": name != "alpha-fixed"},
    )
    pair = Pair(at / "model.pth", at / "out")
    rewritten(pair, lambda tensor: tensor.to(to))
    record = json.loads((at / "out/conversion.json").read_text())
    (at / "out/conversion.json").write_text(json.dumps(record | {"cast": name_of(to)}))
    return pair, state


def rewritten(pair: Pair, change: object) -> None:
    path = pair.model / WEIGHTS
    assert callable(change)
    kept = {key: change(tensor).contiguous() for key, tensor in load_file(path).items()}
    save_file(kept, path, metadata={"format": "pt"})


def costs(report: Report) -> list[float]:
    phase = report.phase("function")
    assert phase
    return [float(c.value or 0) for c in phase.checks if c.statistic.startswith("cast to ") and c.passed is None]


LOSSY = [(FLOAT32, FLOAT16), (FLOAT32, BFLOAT16), (FLOAT64, FLOAT32), (FLOAT64, FLOAT16), (FLOAT16, BFLOAT16)]
EXACT = [(FLOAT32, FLOAT64), (FLOAT16, FLOAT32), (BFLOAT16, FLOAT32)]


@pytest.mark.parametrize(("dtype", "to"), LOSSY, ids=str)
def test_rounded_as_declared(tmp_path: Path, dtype: torch.dtype, to: torch.dtype) -> None:
    """The tolerance is no wider than without a cast: both sides have the rounded weights."""
    pair, _ = made(tmp_path, dtype, to)
    report = check(pair.original, pair.folder)
    assert (report.verdict, report.exit_code) == (PASS, 0), report.reason
    kind = name_of(to)
    assert f"; compared with the original's weights rounded to {kind}; " in report.reason
    assert f"in the model rounded to {kind} (" in str(report.phase("weights"))
    (note,) = [note for note in report.notes if "rounded" in note]
    assert note.startswith(f"the weights were rounded to {kind}, as declared, which changes the output by ")
    assert len(costs(report)) == 2  # halves of the output
    size = {FLOAT32: 1e-8, FLOAT16: 1e-4, BFLOAT16: 1e-3}[to]
    assert all(size < cost < 20 * size for cost in costs(report)), costs(report)


def test_what_the_rounding_costs_is_what_it_costs(tmp_path: Path) -> None:
    pair, state = made(tmp_path, FLOAT32, FLOAT16)
    report = check(pair.original, pair.folder, save_failing=tmp_path / "none")
    shape = PixArtShape(
        depth=3,
        hidden_size=48,
        num_heads=HEADS,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        input_size=64,
        multi_scale=True,
    )
    from converter.checkpoint import open_checkpoint
    from converter.conversion.analysis import analyse
    from converter.models.pixart.parity import PARITY

    with open_checkpoint(pair.original) as opened:
        found = analyse(opened, {"num_attention_heads": HEADS, "multi_scale_train": True}).findings
    case = PARITY.cases(found, "quick", {})[0].tensors(FLOAT64)
    exact, rounded = (
        pixart(Weighted(kept, FLOAT64), shape).forward(case)
        for kept in (state, {key: tensor.half() for key, tensor in state.items()})
    )
    wanted = [relative(rounded[:, part], exact[:, part]) for part in (slice(0, 4), slice(4, 8))]
    assert costs(report) == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize(("dtype", "to"), EXACT, ids=str)
def test_a_wider_dtype_loses_nothing(tmp_path: Path, dtype: torch.dtype, to: torch.dtype) -> None:
    pair, _ = made(tmp_path, dtype, to)
    report = check(pair.original, pair.folder)
    assert report.verdict == PASS
    assert "compared with" not in report.reason
    assert f"in the model widened to {name_of(to)} (" in str(report.phase("weights"))
    assert costs(report) == []
    assert not any("rounded" in note for note in report.notes)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "to", "faults"), [("alpha-fixed", FLOAT16, "full"), ("alpha-ms", BFLOAT16, "quick")])
def test_the_whole_profile(tmp_path: Path, name: str, to: torch.dtype, faults: str) -> None:
    """With the stored table that no cast touches, the stock loader, half precision on top, and all faults."""
    pair, _ = made(tmp_path, FLOAT32, to, name)
    report = check(pair.original, pair.folder, profile="full", self_test=faults, dtype=["float32", name_of(to)])
    assert report.verdict == PASS, report.reason
    function = report.phase("function")
    assert function
    (loader,) = [check for check in function.checks if check.statistic == "float32 stock loader"]
    assert loader.passed
    half = [c for c in function.checks if c.statistic == f"{name_of(to)} relative L2"]
    assert half
    assert all("no worse" in c.words for c in half), [c.words for c in half if "no worse" not in c.words]


def test_cut_off_and_not_rounded(tmp_path: Path) -> None:
    pair, _ = made(tmp_path, FLOAT32, BFLOAT16)
    state = {key: tensor for key, tensor in torch.load(pair.original, weights_only=True).items() if key != "pos_embed"}
    qkv = state["blocks.1.attn.qkv.weight"]
    cut = (qkv.view(torch.int32) & -65536).view(torch.float32).bfloat16().chunk(3)
    wrong = load_file(pair.model / WEIGHTS)
    wrong[Q] = cut[0].contiguous()
    save_file(wrong, pair.model / WEIGHTS, metadata={"format": "pt"})
    report = check(pair.original, pair.folder)
    assert (report.verdict, report.exit_code) == (FAIL, 1)
    assert f"{Q} differs in " in report.reason


def test_what_was_not_declared_is_said_and_how_to_declare_it(tmp_path: Path) -> None:
    pair, _ = made(tmp_path, FLOAT32, FLOAT16)
    record = json.loads((pair.folder / "conversion.json").read_text())
    del record["cast"]
    (pair.folder / "conversion.json").write_text(json.dumps(record))
    report = check(pair.original, pair.folder)
    assert report.verdict == FAIL
    assert "is float16, and the original is float32; --cast float16 if that was meant" in report.reason
    assert check(pair.original, pair.folder, cast="float16").verdict == PASS


def test_a_fault_in_a_rounded_model_is_found_as_in_any_other(tmp_path: Path) -> None:
    pair, _ = made(tmp_path, FLOAT32, BFLOAT16)
    state = load_file(pair.model / WEIGHTS)
    for suffix in ("weight", "bias"):
        q, k = (f"transformer_blocks.1.attn1.to_{name}.{suffix}" for name in "qk")
        state[q], state[k] = state[k], state[q]
    save_file(state, pair.model / WEIGHTS, metadata={"format": "pt"})
    report = check(pair.original, pair.folder)
    assert report.verdict == FAIL
    words = [check.words for phase in report.phases for check in phase.failed]
    assert f"{Q} holds what belongs in {K}" in words
    function = report.phase("function")
    assert function
    assert "it goes wrong in block 1" in function.words
    assert function.notes == ["block 1 is right again with attn1.to_q and attn1.to_k swapped in block 1"]
