"""Judging outputs: parts, doubts, precisions; and the pictures made of them. On toy nets, so that errors are known."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from opened import Pair, golden, session
from torch import Tensor

from converter.nets import Stage, Staged, Values
from converter.nets.inputs import Case, noise
from converter.parity import function, gates
from converter.parity.function import CaseOutcome, Judge
from converter.reports.report import FAIL, INCONCLUSIVE, PASS, Check

PARTS = {"epsilon": slice(0, 4), "variance": slice(4, 8)}
JUDGE = Judge(PARTS, 2)
CASE = Case("t999", {"x": noise(1, 2, 8, 4, 6)})
F64, F32, F16, BF16 = "float64", "float32", "float16", "bfloat16"
FLOOR = 1e-7  # of the toy nets in float32, relative


def truth() -> Tensor:
    return torch.from_numpy(noise(2, 2, 8, 4, 6)).double()


def off(by: float, seed: int = 3) -> Tensor:
    """The truth with an error of this relative size."""
    return truth() + by * torch.from_numpy(noise(seed, 2, 8, 4, 6)).double()


def judged(
    converted: dict[str, Tensor], original: dict[str, Tensor] | None = None, truths: dict[str, Tensor] | None = None
) -> CaseOutcome:
    right = {F64: truth(), F32: off(FLOOR), F16: off(1e-3), BF16: off(1e-2)}
    return JUDGE.judged(CASE, right | (original or {}), converted, truths)


def failed(outcome: CaseOutcome) -> list[str]:
    assert outcome.verdict == (FAIL if any(c.passed is False for c in outcome.checks) else outcome.verdict)
    return [f"{check.what}: {check.statistic}" for check in outcome.checks if check.passed is False]


# Right and wrong.


def test_what_is_right_passes() -> None:
    made = judged({F64: off(1e-9), F32: off(FLOOR, 4)})
    assert (made.verdict, made.doubts, failed(made)) == (PASS, [], [])
    gating = [check for check in made.checks if check.passed is not None]
    assert len(gating) == 2 * (4 + 8)  # parts, statistics
    assert {check.what for check in made.checks} == {"t999 / epsilon", "t999 / variance"}


@pytest.mark.parametrize("part", PARTS)
def test_each_part_is_gated_on_its_own(part: str) -> None:
    """The variance is small in a trained model: an error in it must not drown in epsilon."""
    wrong = off(1e-9)
    wrong[:, PARTS[part]] = off(1e-6)[:, PARTS[part]]
    made = judged({F64: wrong})
    assert failed(made)
    assert {line.partition(":")[0] for line in failed(made)} == {f"t999 / {part}"}


def test_one_bad_pixel_fails_alone() -> None:
    wrong = off(1e-9)
    wrong[1, 2, 3, 4] += 1e-5
    assert "t999 / epsilon: float64 max abs over RMS" in failed(judged({F64: wrong}))
    assert not any("variance" in line for line in failed(judged({F64: wrong})))


def test_float32_is_held_against_the_truth_and_against_the_original() -> None:
    names = failed(judged({F32: off(10 * FLOOR, 4)}))
    assert "t999 / epsilon: float32 relative L2" in names
    assert "t999 / epsilon: float32 relative L2 against the original's" in names
    # Twice as far as the original on the other side of the truth: the distance between them is what fails.
    mirrored = truth() - 2.5 * (off(FLOOR) - truth())
    names = failed(judged({F32: mirrored}))
    assert names
    assert all(name.endswith("against the original's") for name in names)


def test_a_coarse_floor_is_no_licence() -> None:
    """With TF32 on, everything would be within three times the noise."""
    made = judged({F32: off(1e-4, 4)}, {F32: off(1e-4)})
    assert made.verdict == INCONCLUSIVE
    assert failed(made) == []
    assert "above the cap of 1e-05" in made.doubts[0]
    assert "TF32" in made.doubts[0]
    assert len(made.doubts) == 2


def test_one_bad_pixel_of_the_original_is_no_licence_for_another() -> None:
    """Its own float32 is wrong in one place, by too little for the whole to show it."""
    spoilt = off(1e-7)
    spoilt[0, 0, 0, 0] += 1.3e-4 * truth()[:, :4].square().mean().sqrt()
    made = judged({F32: spoilt.clone()}, {F32: spoilt})
    assert made.verdict == INCONCLUSIVE
    assert "(max abs over RMS), above the cap of 0.0001" in made.doubts[0]


def test_the_cap_is_of_the_original_and_not_of_the_converted() -> None:
    assert judged({F32: off(1e-4, 4)}).verdict == FAIL


# Not finite, and zero.


@pytest.mark.parametrize("bad", [nan, inf, -inf])
@pytest.mark.parametrize("precision", [F64, F32])
def test_not_finite_on_our_side_fails(precision: str, bad: float) -> None:
    wrong = off(1e-9)
    wrong[0, 5, 0, 0] = bad
    made = judged({precision: wrong})
    assert failed(made) == [f"t999 / variance: {precision} non-finite"]
    assert made.verdict == FAIL


def test_not_finite_on_both_sides_is_inconclusive() -> None:
    bad = truth()
    bad[0, 0, 0, 0] = nan
    made = judged({F64: bad}, {F64: bad})
    assert (made.verdict, failed(made)) == (INCONCLUSIVE, [])
    assert made.doubts == ["t999 / epsilon: the original's own output is not finite in float64"]


def test_overflow_on_both_sides_in_one_precision_is_inconclusive() -> None:
    """Where float32 overflows and float64 does not, the conversion is not to blame."""
    bad = off(FLOOR)
    bad[0, 0, 0, 0] = inf
    for converted in (bad, off(FLOOR, 4)):
        made = judged({F32: converted}, {F32: bad})
        assert (made.verdict, failed(made)) == (INCONCLUSIVE, [])
        assert made.doubts == ["t999 / epsilon: the original's own output is not finite in float32"]


def test_a_reference_of_zeros_is_inconclusive() -> None:
    made = judged({F64: torch.zeros(2, 8, 4, 6)}, {F64: torch.zeros(2, 8, 4, 6)})
    assert (made.verdict, failed(made)) == (INCONCLUSIVE, [])
    assert "zero everywhere" in made.doubts[0]


# Half precision.


@pytest.mark.parametrize("precision", [F16, BF16])
def test_half_never_gates(precision: str) -> None:
    for error in (1e-3, 1.0):
        made = judged({F64: off(1e-9), precision: off(error, 4)}, truths={precision: truth()})
        assert made.verdict == PASS
        (check, _) = [check for check in made.checks if check.statistic == f"{precision} relative L2"]
        assert check.passed is None


@pytest.mark.parametrize("precision", [F16, BF16])
def test_half_that_overflows_on_both_sides_is_reported(precision: str) -> None:
    bad = off(1e-3)
    bad[0, 0, 0, 0] = inf
    made = judged({F64: off(1e-9), precision: bad}, {precision: bad}, truths={precision: truth()})
    assert made.verdict == PASS
    assert [check.words for check in made.checks if "non-finite" in check.statistic]


def test_half_is_held_against_the_truth_of_its_own_inputs() -> None:
    """Against the float64 run of the same rounded weights and inputs, not of the exact ones."""
    rounded = off(0.5, 9)
    made = judged({BF16: rounded + 1e-3}, {BF16: rounded - 1e-3}, truths={BF16: rounded})
    (check, _) = [check for check in made.checks if check.statistic == "bfloat16 relative L2"]
    assert isinstance(check.value, float)
    assert check.value < 2e-3
    assert "1.00 times the original's own error" in check.words


# Running.

Run = Callable[[Values], Values]


def toy(dtype: torch.dtype, factor: float = 2.0) -> Staged:
    return Staged(
        [
            Stage("first", lambda v, probe: {"y": v["x"] * factor}),
            Stage("last", lambda v, probe: {"output": v["y"] / 3}),
        ]
    )


def nets(factor: float = 2.0, seen: list[tuple[str, str]] | None = None) -> Callable[..., Staged]:
    def make(precision: str, rounded: str = "") -> Staged:
        if seen is not None:
            seen.append((precision, rounded))
        return toy(getattr(torch, precision), factor)

    return make


def ran(
    factor: float = 2.0, precisions: tuple[str, ...] = (F64, F32), cases: int = 2
) -> tuple[list[CaseOutcome], dict[str, Any]]:
    batch = [Case(f"c{i}", {"x": noise(i + 1, 2, 8, 4, 6)}) for i in range(cases)]
    return function.run(nets(), nets(factor), batch, precisions, judge=JUDGE)


def test_a_run() -> None:
    outcomes, detail = ran()
    assert [outcome.verdict for outcome in outcomes] == [PASS, PASS]
    made = function.phase(outcomes, detail)
    assert made.verdict == PASS
    assert made.words == (
        f"outputs identical in float32 and float64; {len(made.gates)} statistics checked on 2 cases of 4 samples in all"
    )
    assert made.detail["blocks"]["stages"] == ["first", "last"]
    assert made.detail["blocks"]["floor"] == made.detail["blocks"]["converted"]
    heat = made.detail["heat"]
    assert heat["channels"] == [f"{part} {i}" for part in PARTS for i in range(4)]
    assert np.array(heat["values"]).shape == (8, 24)
    assert (heat["rows"], heat["columns"], heat["case"]) == (4, 6, "c0")


def test_how_close_the_outputs_are_comes_first() -> None:
    def words(converted: dict[str, Tensor]) -> str:
        return function.phase([judged(converted)], {}).words

    near, same = {F64: off(1e-9), F32: off(FLOOR, 4)}, {F64: truth(), F32: off(FLOOR)}
    counts = "statistics checked on 1 case of 2 samples"
    float32, float64 = "float32 output within 1.", "; float64 output within "
    assert re.fullmatch(
        rf"{float32}\d+ times the noise floor \(limit 3\){float64}[\d.]+e-09 \(limit 1e-07\); 24 {counts}", words(near)
    )
    assert words(same) == f"outputs identical in float32 and float64; 24 {counts}"
    assert words(near | {F32: same[F32]}).startswith("outputs identical in float32; float64 output within ")
    assert words(near | {F64: same[F64]}).startswith("outputs identical in float64; float32 output within 1.")
    assert words({F64: same[F64]}) == f"outputs identical in float64; 8 {counts}"


def test_a_wrong_run() -> None:
    outcomes, detail = ran(2.00001)
    made = function.phase(outcomes, detail)
    assert made.verdict == FAIL
    failing = [check for check in made.checks if check.passed is False]
    assert made.words.startswith(f"{len(failing)} of ")
    errors = made.detail["blocks"]
    assert max(errors["converted"]) > 30 * max(errors["floor"])


def test_only_half_never_passes_by_itself() -> None:
    """`check` adds float64; here nothing gated, and nothing passed."""
    outcomes, detail = ran(precisions=(BF16,))
    made = function.phase(outcomes, detail)
    assert (made.verdict, made.words) == (INCONCLUSIVE, "nothing was compared")


def test_no_case_is_no_pass() -> None:
    outcomes, detail = ran(cases=0)
    assert (outcomes, detail) == ([], {})
    assert function.phase(outcomes, detail).verdict == INCONCLUSIVE


def test_one_case_in_doubt_keeps_all_from_passing() -> None:
    outcomes, detail = ran()
    outcomes[1].doubts.append("c1: a doubt")
    made = function.phase(outcomes, detail)
    assert (made.verdict, made.words) == (INCONCLUSIVE, "c1: a doubt")
    outcomes[0].checks.append(Check("c0", "float64 relative L2", 1.0, 1e-7, False, "much"))
    assert function.phase(outcomes, detail).verdict == FAIL  # a failure outweighs a doubt
    outcomes[0].checks[-1].waived = "reviewed"
    assert function.phase(outcomes, detail).verdict == INCONCLUSIVE


def test_the_worst_is_named() -> None:
    outcomes, detail = ran()
    outcomes[0].checks.append(Check("c0 / epsilon", "float64 relative L2", 2e-7, 1e-7, False, "twice"))
    outcomes[1].checks.append(Check("c1 / epsilon", "float64 relative L2", 9e-7, 1e-7, False, "nine times"))
    made = function.phase(outcomes, detail)
    assert "2 of " in made.words
    assert "worst: c1 / epsilon, float64 relative L2: nine times" in made.words


def test_which_nets_are_made() -> None:
    """Half precision rounds the weights first and has a truth of its own."""
    ours: list[tuple[str, str]] = []
    theirs: list[tuple[str, str]] = []
    function.run(nets(seen=ours), nets(seen=theirs), [CASE], (F64, F32, BF16), judge=JUDGE)
    assert ours == [(F64, ""), (F32, ""), (BF16, BF16), (F64, BF16)]
    assert theirs == [(F64, ""), (F32, ""), (BF16, BF16)]
    ours.clear()
    theirs.clear()
    function.run(nets(seen=ours), nets(seen=theirs), [CASE], (F32,), judge=JUDGE)
    assert (ours, theirs) == ([(F64, ""), (F32, "")], [(F32, "")])


def test_what_is_kept_and_told() -> None:
    kept: list[str] = []
    steps: list[int] = []
    cases = [CASE, replace(CASE, name="b")]
    function.run(
        nets(), nets(), cases, (F64, F32), judge=JUDGE, step=steps.append, keep=lambda stage, values: kept.append(stage)
    )
    assert kept == ["first", "last"]  # of the original in float64, of the first case
    assert len(steps) == 2 * 2 * 4


# With a session around it.


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return golden("sigma-ms", tmp_path_factory.mktemp("function"))


def run_on(pair: Pair, precisions: tuple[str, ...] = (F64, F32), **options: object) -> object:
    with session(pair, **options) as opened:
        return opened.function(opened.cases("quick"), precisions)


def test_a_converted_net_that_does_not_run_fails(pair: Pair) -> None:
    made = run_on(pair, config={"activation_fn": "nonsense"})
    assert made.verdict == FAIL
    assert made.words.startswith("the converted net does not run: ")


def test_a_fault_of_our_own_is_not_called_a_fault_of_theirs(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    with session(pair) as opened:
        cases = opened.cases("quick")
        broken = Staged([Stage("x", lambda v, probe: {"output": v["nothing"]})])
        monkeypatch.setattr(opened, "original", lambda *names: broken)
        with pytest.raises(KeyError, match="nothing"):
            opened.function(cases, (F64,))


def test_the_stored_table_of_the_native_size_is_tried_by_itself(pair: Pair) -> None:
    made = run_on(pair, config={"sample_size": 32})
    lone = [c for c in made.checks if c.what == "native / patch embedding"]
    assert [check.passed for check in lone] == [False]
    lone = [c for c in run_on(pair).checks if c.what == "native / patch embedding"]
    assert [check.passed for check in lone] == [True]


def test_half_precision_of_a_right_conversion(pair: Pair) -> None:
    made = run_on(pair, (F64, F16, BF16))
    assert made.verdict == PASS
    words = [c.words for c in made.checks if c.statistic in (f"{F16} relative L2", f"{BF16} relative L2")]
    assert len(words) == 4
    assert all("no worse" in text for text in words)


def test_saved_inputs_that_the_model_does_not_take(pair: Pair, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from converter.errors import InputError

    with session(pair) as opened:
        (like,) = opened.cases("quick")
        tensors = {f"mine.{name}": torch.from_numpy(np.array(array)) for name, array in like.arrays.items()}
        save_file(tensors | {"mine.latent": torch.zeros(4, 5, 8, 8)}, tmp_path / "cases.safetensors")
        cases = opened.cases("quick", tmp_path / "cases.safetensors")
        with pytest.raises(InputError, match=r"cases.safetensors: mine: the original net does not take it"):
            opened.function(cases, (F64,))


def test_limits_are_those_of_the_gates() -> None:
    assert gates.FLOOR_LIMIT * FLOOR > 2 * FLOOR
    assert failed(judged({F64: off(0.9e-7)})) == []
    assert failed(judged({F64: off(1.3e-7)}))


# Side by side.


def test_the_first_net_is_one_stage_ahead() -> None:
    order: list[str] = []

    def net(side: str) -> Staged:
        def run(name: str, values: Values) -> Values:
            order.append(f"{side}{name}")
            return {"x": values["x"] * 2, "output": values["x"] + 1}

        return Staged([Stage(name, lambda values, probe, name=name: run(name, values)) for name in "012"])

    told: tuple[list[str], list[str]] = ([], [])
    watches = [lambda stage, values, names=names: names.append(stage) for names in told]
    outputs = function.side_by_side(net("a"), net("b"), {"x": torch.ones(1)}, watches)
    assert [output.item() for output in outputs] == [5, 5]
    assert order == ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert told == (["0", "1", "2"], ["0", "1", "2"])


def test_a_net_that_tells_of_nothing_keeps_the_first_from_no_stage() -> None:
    class Silent(Staged):
        def forward(self, inputs: Values, watch: Any = None) -> Tensor:
            return inputs["x"]

    first = Staged(
        [Stage(name, lambda values, probe: {"output": values.get("output", 0) + values["x"]}) for name in "012"]
    )
    outputs = function.side_by_side(first, Silent([]), {"x": torch.ones(1)}, [lambda *_: None] * 2)
    assert [output.item() for output in outputs] == [3, 1]
