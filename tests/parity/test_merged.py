"""A merged model against its base and the adapters: proven, or what is wrong named, for adapters of every kind."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from makers import GOLDEN, HEADS, ROOT
from opened import WEIGHTS, State
from safetensors.torch import load_file, save_file

from converter.conversion.batch import CONVERTED, UNCHANGED, Outcome
from converter.conversion.pairs import Pair
from converter.errors import InputError, UsageError
from converter.jobs.steps import compare_step
from converter.lora.merge import merge_lora
from converter.lora.reference import half_step
from converter.parity import check
from converter.parity.ci.batch import check_all
from converter.parity.ci.cache import Cache
from converter.reports import render
from converter.reports.markdown import card
from converter.reports.report import FAIL, PASS, REJECTED, Report

LORA = ROOT / "fixtures" / "lora"
BASE = GOLDEN / "sigma-ms.pth"
FIRST, SECOND = LORA / "d-ot-kohya.safetensors", LORA / "d-dora"
PLAIN = LORA / "d-ot-comfy.safetensors"
KINDS = (
    "d-train-r16", "d-ot-kohya.safetensors", "d-layers", "d-dora", "d-ot-dora-in.safetensors",
    "d-ot-dora-out-kohya.safetensors", "d-lycoris-loha.safetensors", "d-lycoris-lokr.safetensors",
    "d-lycoris-lokr-full.safetensors", "d-peft-lokr", "d-lycoris-full.safetensors", "d-save",
    "d-ot-legacy-bf16.safetensors", "d-patterns",
)  # fmt: skip
Q, K = (f"transformer_blocks.1.attn1.to_{name}.weight" for name in "qk")
Adapters = dict[Path, float]
Cli = Callable[..., subprocess.CompletedProcess[str]]


def merged(at: Path, adapters: Adapters, base: Path = BASE, **options: object) -> Path:
    merge_lora(base, adapters, at, hyper_parameters={"num_attention_heads": HEADS}, **options)
    return at


def stored() -> State:
    state = torch.load(BASE, weights_only=True)
    found: State = state.get("state_dict", state)
    return found


def words(report: Report, name: str = "weights") -> str:
    phase = report.phase(name)
    assert phase
    return phase.words


def share(report: Report) -> float:
    """The largest error of a merged tensor, as a share of what rounding allows."""
    phase = report.phase("weights")
    assert phase
    (found,) = (check.value for check in phase.checks if check.statistic == "merged")
    assert isinstance(found, float)
    return found


def rewritten(folder: Path, change: Callable[[State], object]) -> None:
    path = folder / "transformer" / WEIGHTS
    state = load_file(path)
    change(state)
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return merged(tmp_path_factory.mktemp("merged") / "out", {FIRST: 0.8, SECOND: 0.5})


@pytest.fixture
def spoilt(folder: Path, tmp_path: Path) -> Path:
    """A copy, for a test to spoil."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


GIVEN: Adapters = {FIRST: 0.8, SECOND: 0.5}


# What is right.


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, None) for name in KINDS), (KINDS[1], "float16"), (KINDS[4], "bfloat16"), (KINDS[11], "bfloat16")],
)
def test_a_merge_of_every_kind_is_proven(tmp_path: Path, name: str, dtype: str | None) -> None:
    out = merged(tmp_path / "out", {LORA / name: 0.7}, dtype=dtype)
    report = check(BASE, out, adapters={LORA / name: 0.7})
    assert report.verdict == PASS, report.reason
    assert "off by at most" in words(report)
    assert 0 < share(report) <= 1
    assert share(report) < 0.5 or dtype  # of float32 far within a bound that holds for any order of the sums


def test_a_base_in_half_precision_written_in_float32(tmp_path: Path) -> None:
    state = stored()
    torch.save({k: v if k == "pos_embed" else v.bfloat16() for k, v in state.items()}, tmp_path / "base.pth")
    for dtype in (None, "float32", "float16"):
        out = merged(tmp_path / str(dtype), {FIRST: 0.7}, tmp_path / "base.pth", dtype=dtype)
        assert check(tmp_path / "base.pth", out, adapters={FIRST: 0.7}).verdict == PASS


def test_several_adapters_with_the_whole_catalogue_of_faults(folder: Path) -> None:
    report = check(BASE, folder, adapters=GIVEN, self_test="full")
    assert report.verdict == PASS, report.reason
    tested = report.phase("self-test")
    assert tested
    assert "faults were caught" in tested.words
    (note,) = tested.notes
    assert "the rounding of a merge may hide it" in note
    assert "last bit of attn1.to_q" in note


def test_the_order_of_adapters_does_not_matter(folder: Path) -> None:
    assert check(BASE, folder, adapters=[(SECOND, 0.5), (FIRST, 0.8)]).verdict == PASS


def test_every_phase_that_runs_nets_has_the_sums(folder: Path) -> None:
    report = check(BASE, folder, adapters=GIVEN, profile="standard")
    assert report.verdict == PASS, report.reason
    assert words(report, "trajectory")
    assert {phase.verdict for phase in report.phases} == {PASS}


def test_the_cost_of_a_cast_counts_that_of_the_sums(tmp_path: Path) -> None:
    """Held against the unrounded sums, and not the rounded ones: it is what a cast of the merged model costs."""
    costs = []
    for adapters in ({}, {FIRST: 0.7}):
        out = tmp_path / str(len(adapters))
        if adapters:
            merged(out, adapters, dtype="bfloat16")
        else:
            from converter import convert

            convert(BASE, out, hyper_parameters={"num_attention_heads": HEADS}, dtype="bfloat16")
        phase = check(BASE, out, adapters=adapters).phase("function")
        assert phase
        costs += [float(one.value or 0) for one in phase.checks if one.statistic == "cast to bfloat16"]
    plain, sums = costs[: len(costs) // 2], costs[len(costs) // 2 :]
    for one, other in zip(plain, sums, strict=True):
        assert 0.3 * one < other < 3 * one


# What is wrong.


@pytest.mark.usefixtures("no_search")
@pytest.mark.parametrize(
    "given",
    [
        {FIRST: 0.8, SECOND: 0.4999},
        {SECOND: 0.5},
        {FIRST: 0.5, SECOND: 0.8},
        {FIRST: 0.8, SECOND: 0.5, PLAIN: 0.001},
        {},
    ],
    ids=str,
)
def test_other_adapters_or_strengths_than_were_merged_fail(folder: Path, given: Adapters) -> None:
    report = check(BASE, folder, adapters=given)
    assert report.verdict == FAIL
    assert words(report, "function").startswith("it goes wrong in")
    said = "--lora d-ot-kohya.safetensors=0.8 --lora d-dora=0.5"
    assert f"were merged into it, by its record: {'' if given else 'give '}{said}" in words(report)
    assert "\n" not in report.reason


@pytest.mark.usefixtures("no_search")
def test_adapters_of_a_model_that_has_none_fail(tmp_path: Path) -> None:
    from converter import convert

    convert(BASE, tmp_path / "out", hyper_parameters={"num_attention_heads": HEADS})
    report = check(BASE, tmp_path / "out", adapters={FIRST: 0.1})
    assert report.verdict == FAIL
    assert "no adapters were merged into it, by its record; given: --lora d-ot-kohya" in report.reason


@pytest.mark.usefixtures("no_search")
@pytest.mark.parametrize("told", [[3], [{"name": [], "strength": "x", "digest": ""}]])
def test_a_record_that_anyone_wrote_makes_no_difference(spoilt: Path, told: object) -> None:
    path = spoilt / "conversion.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"adapters": told}))
    assert check(BASE, spoilt, adapters=GIVEN).verdict == PASS
    assert check(BASE, spoilt, adapters={FIRST: 0.8}).verdict == FAIL


@pytest.mark.usefixtures("no_search")
def test_without_a_record_it_is_proven_or_fails_all_the_same(spoilt: Path) -> None:
    (spoilt / "conversion.json").unlink()
    heads = {"num_attention_heads": HEADS}
    assert check(BASE, spoilt, adapters=GIVEN, hyper_parameters=heads).verdict == PASS
    report = check(BASE, spoilt, hyper_parameters=heads)
    assert report.verdict == FAIL
    assert "record" not in report.reason


def swapped(state: State) -> None:
    state[Q], state[K] = state[K], state[Q]


def dropped(state: State) -> None:
    """One module as it is in the base."""
    state[Q] = stored()["blocks.1.attn.qkv.weight"].chunk(3)[0]


def infinite(state: State) -> None:
    state[Q][3, 5] = float("inf")


def not_a_number(state: State) -> None:
    state[Q][-1, -1] = float("nan")


def off(by: float) -> Callable[[State], None]:
    def change(state: State) -> None:
        state[Q][2, 7] += by * state[Q].abs().mean()

    return change


@pytest.mark.parametrize(
    "change",
    [swapped, dropped, infinite, not_a_number, off(1e-4), off(-1e-2), lambda state: state[Q].mul_(-1)],
    ids=["swapped", "dropped", "infinite", "not a number", "one element", "another", "sign"],
)
def test_a_merged_tensor_that_is_not_the_sum_is_named(spoilt: Path, change: Callable[[State], object]) -> None:
    rewritten(spoilt, change)
    report = check(BASE, spoilt, adapters=GIVEN)
    assert report.verdict == FAIL
    assert f"{Q} differs in" in words(report)
    assert "not those of the original with the adapters" in words(report)
    assert not share(report) <= 1
    assert "by its record" not in report.reason


def test_a_tensor_that_no_adapter_touches_is_held_to_the_last_bit(spoilt: Path) -> None:
    def change(state: State) -> None:
        bits = state["transformer_blocks.1.attn1.to_q.bias"].view(torch.int32)
        bits[0] ^= 1

    rewritten(spoilt, change)
    report = check(BASE, spoilt, adapters=GIVEN)
    assert report.verdict == FAIL
    assert words(report).endswith(
        "1 of 78 converted tensors are not those of the original with the adapters: "
        "transformer_blocks.1.attn1.to_q.bias differs in 1 of 48 elements, by up to 1.86e-09"
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_in_half_precision_a_last_bit_is_beyond_the_bound(tmp_path: Path, dtype: str) -> None:
    """There the sum is nearly exact before it is rounded, so that only one number is right, or two at a tie."""
    out = merged(tmp_path / "out", GIVEN, dtype=dtype)
    rewritten(out, lambda state: state[Q].view(torch.int16)[0, :1].__ixor__(1))
    report = check(BASE, out, adapters=GIVEN)
    assert report.verdict == FAIL
    assert f"{Q} differs in" in words(report)
    assert 1 < share(report) < 5  # just below a power of two a step is half as long


def test_in_float32_a_few_last_bits_are_beyond_the_bound(spoilt: Path) -> None:
    rewritten(spoilt, lambda state: state[Q].view(torch.int32)[0, :1].__iadd__(1 << 10))
    assert check(BASE, spoilt, adapters=GIVEN).verdict == FAIL


def test_a_merge_without_the_declared_cast_fails(tmp_path: Path) -> None:
    out = merged(tmp_path / "out", {FIRST: 1.0}, dtype="bfloat16")
    report = check(BASE, out, adapters={FIRST: 1.0}, cast="float16")
    assert report.verdict == FAIL
    assert "is bfloat16" in words(report)


def test_missing_and_misshapen_tensors(spoilt: Path) -> None:
    rewritten(spoilt, lambda state: state.update({Q: state[Q][:, :-1]}))
    report = check(BASE, spoilt, adapters=GIVEN)
    assert report.verdict == FAIL
    assert "has shape" in words(report)
    rewritten(spoilt, lambda state: state.pop(Q))
    assert f"missing: {Q}" in words(check(BASE, spoilt, adapters=GIVEN))


# Reports.


def test_reports_name_the_adapters_with_digests_and_strengths(folder: Path) -> None:
    report = check(BASE, folder, adapters=GIVEN)
    told = report.original["adapters"]
    assert [(one["name"], one["strength"]) for one in told] == [
        ("d-ot-kohya.safetensors", 0.8),
        ("d-dora", 0.5),
    ]
    assert all(len(one["sha256"]) == 64 and one["digest"] for one in told)
    assert json.loads(report.to_json())["original"]["adapters"] == told
    assert report.to_json() == (again := check(BASE, folder, adapters=GIVEN)).to_json().replace(
        json.dumps(again.run["date"]), json.dumps(report.run["date"])
    ).replace(f'"seconds": {again.run["seconds"]}', f'"seconds": {report.run["seconds"]}')
    short = f"d-ot-kohya.safetensors ({told[0]['sha256'][:16]}...) at 0.8"
    assert short in words(report, "provenance")
    for text in (*(render([report], kind) for kind in (".json", ".md", ".html")), card(report)):
        assert "d-ot-kohya.safetensors" in text.replace("<wbr>", "")
        assert told[0]["sha256"][:16] in text


def test_what_was_left_out_of_an_adapter_is_noted(tmp_path: Path) -> None:
    path = LORA / "refuse" / "unknown-module.safetensors"
    with pytest.raises(InputError, match="allow_partial"):
        merged(tmp_path / "out", {path: 1.0})
    out = merged(tmp_path / "out", {path: 1.0}, allow_partial=True)
    with pytest.raises(InputError, match="allow_partial"):
        check(BASE, out, adapters={path: 1.0})
    report = check(BASE, out, adapters={path: 1.0}, allow_partial=True)
    assert report.verdict == PASS
    assert any("left out" in note for note in report.notes)


@pytest.mark.usefixtures("no_search")
def test_alpha_that_the_user_stated(tmp_path: Path) -> None:
    path = LORA / "d-diffusers-bare" / "pytorch_lora_weights.safetensors"
    out = merged(tmp_path / "out", {path: 1.0}, lora_alpha=3)
    assert check(BASE, out, adapters={path: 1.0}, lora_alpha=3).verdict == PASS
    assert check(BASE, out, adapters={path: 1.0}).verdict == FAIL


# Calls.


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"lora_alpha": 3}, "`lora_alpha` requires `lora`"),
        ({"allow_partial": True}, "`allow_partial` requires `lora`"),
        ({"adapters": {FIRST: "x"}}, "is no number"),
        ({"adapters": {FIRST: float("nan")}}, "is no number"),
        ({"adapters": 3}, "`adapters` 3: must be"),
    ],
)
def test_a_bad_call_is_told_in_one_line(folder: Path, options: dict[str, object], rule: str) -> None:
    with pytest.raises(UsageError, match=rule) as caught:
        check(BASE, folder, **options)
    assert "\n" not in str(caught.value)


def test_a_cache_does_not_know_adapters(folder: Path, tmp_path: Path) -> None:
    """Neither does a comparison without adapters find one with them, nor the other way round."""
    pair = Pair(str(BASE), str(folder), {"adapters": GIVEN})
    with pytest.raises(UsageError, match="`cache` cannot be combined with `lora`"):
        check_all([pair], cache=Cache(tmp_path / "cache.json"))
    reports = check_all([pair, pair], cache=Cache(tmp_path / "cache.json"))
    assert [report.verdict for report in reports] == [REJECTED, REJECTED]
    assert [report.verdict for report in check_all([pair])] == [PASS]


def test_the_command(folder: Path, cli: Cli, tmp_path: Path) -> None:
    given = ["--lora", f"{FIRST}=0.8", "--lora", f"{SECOND}=0.5"]
    report = tmp_path / "report.json"
    done = cli("pixart", "parity", BASE, folder, *given, "--report", report)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "d-ot-kohya.safetensors (" in done.stdout
    assert "off by at most" in done.stdout
    (content,) = (
        json.loads(report.read_text())["reports"]
        if "reports" in report.read_text()
        else [json.loads(report.read_text())]
    )
    assert [one["strength"] for one in content["original"]["adapters"]] == [0.8, 0.5]
    assert "=0.8" in content["run"]["command"]
    assert cli("pixart", "parity", BASE, folder, *given[:2]).returncode == 1
    for words in (["--lora_alpha", "2"], ["--allow_partial"]):
        done = cli("pixart", "parity", BASE, folder, *words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert f"{words[0]} requires --lora" in done.stderr
    done = cli("pixart", "parity", BASE, folder, *given, "--cache", tmp_path / "cache")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert not (tmp_path / "cache").exists()
    done = cli("pixart", "parity", BASE, folder, "--lora", "no such file.safetensors=0.5")
    assert done.returncode == 3
    assert done.stderr.startswith("pixart: error: no such file.safetensors:")


@pytest.mark.usefixtures("no_search")
def test_a_path_with_an_equals_sign(folder: Path, cli: Cli, tmp_path: Path) -> None:
    path = shutil.copy(FIRST, tmp_path / "a=b.safetensors")
    second = ["--lora", f"{SECOND}=0.5"]
    assert cli("pixart", "parity", BASE, folder, "--lora", f"{path}=0.8", *second).returncode == 0
    assert cli("pixart", "parity", BASE, folder, "--lora", path, *second).returncode == 1


@pytest.mark.usefixtures("no_search")
def test_the_step_after_a_merge(spoilt: Path) -> None:
    outcome = Outcome(Pair(str(BASE), str(spoilt)), CONVERTED)
    run = {"command": "pixart merge-lora", "family": None, "progress": None}
    done = compare_step(outcome, **run, merged={"adapters": GIVEN})
    assert done.exit_code == 0
    # What was proven with adapters proves nothing without.
    outcome = Outcome(Pair(str(BASE), str(spoilt)), UNCHANGED)
    assert compare_step(outcome, **run).exit_code == 1
    assert compare_step(outcome, **run, merged={"adapters": GIVEN}).exit_code == 0


# The bound.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_a_step_is_what_rounding_changes_at_most(dtype: torch.dtype) -> None:
    noise = torch.Generator().manual_seed(1)
    values = torch.randn(4000, generator=noise, dtype=torch.float64) * 10.0 ** torch.randint(
        -9, 4, (4000,), generator=noise
    )
    values = torch.cat([values, torch.tensor([0.0, 1.0, 2.0**-14, 2.0**-24])])
    apart = (values.to(dtype).double() - values).abs() / half_step(values.abs(), dtype)
    assert apart.max() <= 1
    assert apart.max() > 0.99
