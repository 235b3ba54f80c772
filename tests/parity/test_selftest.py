"""The self-test: the whole catalogue is killed on the golden models, and the self-test itself can fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import pytest
import torch
from makers import GOLDEN, HEADS, stated
from opened import NAMES, Pair, golden, session
from safetensors.torch import save_file

from converter import convert
from converter.nets.faults import CONFIG, FUNCTION, WEIGHTS, Fault
from converter.parity import check, gates, selftest
from converter.parity.session import Session
from converter.parity.waivers import Waiver
from converter.reports.report import FAIL, INCONCLUSIVE, PASS, Check, Phase, Report

QUIETLY = {"multi_scale_train": True, "num_attention_heads": HEADS}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    at = tmp_path_factory.mktemp("selftest")
    return {name: golden(name, at) for name in NAMES}


@pytest.fixture
def ready(pairs: dict[str, Pair]) -> Iterator[Session]:
    """A session whose nets were found to be right."""
    with session(pairs["sigma-ms"]) as opened:
        assert opened.function(opened.cases("quick"), ("float64", "float32")).verdict == PASS
        yield opened


def lines(phase: Phase) -> dict[str, Check]:
    assert len({check.what for check in phase.checks}) == len(phase.checks)
    return {check.what: check for check in phase.checks}


def survivors(phase: Phase) -> set[str]:
    return {check.what for check in phase.checks if not check.passed}


def identity(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone()


# The whole catalogue.


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_catalogue_is_killed(pairs: dict[str, Pair], name: str) -> None:
    """Every deliberate fault is noticed, and by each phase that has to, on its own."""
    pair = pairs[name]
    report = check(pair.original, pair.folder, self_test="full")
    assert (report.verdict, report.exit_code) == (PASS, 0)
    made = report.phase("self-test")
    assert made
    *faults, harmless = made.checks
    assert harmless.what == selftest.BENIGN.name
    assert harmless.words == "a harmless change passes"
    assert len(faults) >= 60
    assert len({check.what for check in faults}) == len(faults)
    for line in faults:
        assert line.passed, line.words
        assert line.value, line.what
        assert set(str(line.limit).split(", ")) <= set(str(line.value).split(", ")), line.what
    killers = [phase for line in faults for phase in str(line.limit).split(", ")]
    assert killers.count(FUNCTION) >= 60
    assert killers.count(WEIGHTS) >= 60
    assert killers.count(CONFIG) >= 10
    assert made.words == f"all {len(faults)} deliberate faults were caught"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_whole_catalogue_on_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    """Checkpoints of half precision are common, and what changes nothing in one dtype does in another."""
    state = torch.load(GOLDEN / "sigma-ms.pth", weights_only=True)
    kept = {key: tensor if key == "pos_embed" else tensor.to(dtype) for key, tensor in state.items()}
    torch.save(kept, tmp_path / "half.pth")
    convert(tmp_path / "half.pth", tmp_path / "out", **stated(**QUIETLY))
    report = check(tmp_path / "half.pth", tmp_path / "out", self_test="full")
    assert (report.verdict, "output" in report.headline) == (PASS, True)


@pytest.mark.parametrize("name", NAMES)
def test_the_quick_ones(pairs: dict[str, Pair], name: str) -> None:
    report = check(pairs[name].original, pairs[name].folder)
    made = report.phase("self-test")
    assert made
    assert made.verdict == PASS
    assert 8 < len(made.checks) < 20


def test_the_end_of_the_net_tells_as_much_as_all_of_it(ready: Session) -> None:
    """A cheap fault run on the last stages only is killed as it is in the whole net."""
    faults = [fault for fault in ready.known_faults() if fault.cheap]
    faults += [f for f in ready.model.faults(ready.sides.findings, ready.config, ready.sides.plan) if f.cheap]
    tail = ready.tail
    short, whole = (selftest.run(ready, faults, tail=end) for end in (tail, None))
    assert short.verdict == whole.verdict == PASS
    assert [(c.what, c.value, c.passed) for c in short.checks] == [(c.what, c.value, c.passed) for c in whole.checks]


def test_steps_are_told(ready: Session) -> None:
    told: list[int] = []
    faults = ready.known_faults()[:5]
    selftest.run(ready, faults, told.append)
    assert told == [1] * 5


# It can fail.


def test_a_fault_that_is_none_is_inconclusive(ready: Session) -> None:
    """What changes nothing cannot be noticed, and a self-test that says otherwise would be worth nothing."""
    key = "proj_out.weight"
    for expected in ({FUNCTION}, {WEIGHTS}, {WEIGHTS, FUNCTION}):
        none = Fault("nothing at all", frozenset(expected), {key: (key, identity)})
        made = selftest.run(ready, [none])
        assert made.verdict == INCONCLUSIVE
        assert survivors(made) == {"nothing at all"}
        unseen = " and ".join(sorted(expected))
        assert lines(made)["nothing at all"].words == f"caught by nothing, NOT by {unseen}"
        assert made.words.startswith("1 of 1 deliberate fault missed: nothing at all (caught by nothing")


def test_the_other_kinds_of_nothing(ready: Session) -> None:
    for number, none in enumerate(
        [
            Fault("config", frozenset({CONFIG}), config=dict),
            Fault("inputs", frozenset({FUNCTION}), inputs=dict),
            Fault("values", frozenset({FUNCTION}), stage="final layer", values=dict),
            Fault("nobody has to notice", frozenset()),
        ]
    ):
        made = selftest.run(ready, [none])
        assert made.verdict == INCONCLUSIVE, number
        assert survivors(made) == {none.name}


def test_one_phase_of_two_is_not_enough(ready: Session) -> None:
    """A last bit is seen by the audit and by nothing else; whoever says otherwise is told."""
    (right,) = [fault for fault in ready.known_faults() if fault.name == "last bit of proj_out of the model"]
    assert selftest.run(ready, [right]).verdict == PASS
    wrong = Fault(right.name, frozenset({WEIGHTS, FUNCTION}), right.weights)
    made = selftest.run(ready, [wrong])
    assert made.verdict == INCONCLUSIVE
    assert lines(made)[right.name].words == "caught by weights, NOT by function"


def test_without_its_limits_the_function_lets_faults_through(ready: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in gates.LIMITS:
        monkeypatch.setitem(gates.LIMITS, name, float("inf"))
    faults = [fault for fault in ready.known_faults() if "block 2" in fault.name and FUNCTION in fault.expected]
    made = selftest.run(ready, faults)
    assert made.verdict == INCONCLUSIVE
    assert len(faults) > 30
    assert survivors(made) == {fault.name for fault in faults}


def test_with_a_loose_limit_the_fine_faults_survive(ready: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the usual gates are worth: NMSE of 1e-2 and so a relative L2 of 0.1 lets most of them pass."""
    for name in gates.LIMITS:
        monkeypatch.setitem(gates.LIMITS, name, 0.1)
    faults = [fault for fault in ready.known_faults() if fault.name.endswith(("rounded to half", "scaled by 1 %"))]
    made = selftest.run(ready, faults)
    assert made.verdict == INCONCLUSIVE
    assert len(survivors(made)) > len(faults) / 2


def test_without_the_audit_the_last_bits_survive(ready: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "audit", lambda sides, only: Phase("weights", PASS, ""))
    faults = [fault for fault in ready.known_faults() if fault.expected == {WEIGHTS} and fault.weights]
    made = selftest.run(ready, faults)
    assert made.verdict == INCONCLUSIVE
    assert survivors(made) == {fault.name for fault in faults}


def test_without_the_config_audit_what_is_missing_survives(ready: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "config_audit", lambda *_: Phase("config", PASS, ""))
    faults = [f for f in ready.model.faults(ready.sides.findings, ready.config, ready.sides.plan) if f.config]
    made = selftest.run(ready, faults)
    assert made.verdict == INCONCLUSIVE
    assert survivors(made) == {fault.name for fault in faults}


def test_a_gate_that_nothing_passes_is_noticed(ready: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever calls everything wrong kills every fault, and the harmless change too."""
    monkeypatch.setitem(gates.LIMITS, "relative L2", 1e-300)
    made = selftest.run(ready, ready.known_faults()[:3])
    assert made.verdict == INCONCLUSIVE
    assert survivors(made) == {selftest.BENIGN.name}
    assert "a harmless change is caught by function" in made.words


def test_an_audit_that_nothing_passes_is_noticed(ready: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "audit", lambda sides, only: Phase("weights", FAIL, "wrong"))
    made = selftest.run(ready, [])
    assert survivors(made) == {selftest.BENIGN.name}
    assert "caught by weights" in made.words


def test_a_gate_that_is_off_makes_the_whole_check_inconclusive(
    pairs: dict[str, Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The conversion is right, and yet it must not say so: here it could not tell."""
    for name in gates.LIMITS:
        monkeypatch.setitem(gates.LIMITS, name, float("inf"))
    report = check(pairs["sigma-ms"].original, pairs["sigma-ms"].folder)
    assert (report.verdict, report.exit_code) == (INCONCLUSIVE, 4)
    assert report.reason.startswith("self-test: ")
    assert [phase.verdict for phase in report.phases if phase.name == "function"] == [PASS]


def test_a_waiver_that_lets_a_fault_through_is_told(ready: Session) -> None:
    """A waiver for noise must not blind the gates without anybody noticing."""
    key = "proj_out.weight"
    slight = Fault("weights off by 3e-7", frozenset({FUNCTION}), {key: (key, lambda tensor: tensor * (1 + 3e-7))})
    assert selftest.run(ready, [slight]).verdict == PASS
    case = ready.outcomes[0].case.name
    granted = [Waiver(case, f"float64 {name}", 10.0, "new kernel", date.max) for name in gates.LIMITS]
    ready.waivers = granted
    made = selftest.run(ready, [slight])
    assert made.verdict == INCONCLUSIVE
    assert survivors(made) == {slight.name}
    gross = Fault("weights off by 1 %", slight.expected, {key: (key, lambda tensor: tensor * 1.01)})
    assert selftest.run(ready, [gross]).verdict == PASS


def test_waivers_of_a_check_are_those_of_its_self_test(pairs: dict[str, Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    pair, found = pairs["sigma-ms"], []
    monkeypatch.setattr(
        selftest, "run", lambda made, faults, step, **_: found.append(made) or Phase("self-test", PASS, "")
    )
    waiver = Waiver("t999-t321", "float64 relative L2", 5.0, "new kernel", date.max)
    check(pair.original, pair.folder, waivers=[waiver])
    line = Check("t999-t321 / epsilon", "float64 relative L2", 2e-7, 1e-7, False, "2 times the limit of 1e-07")
    found[0].waive([line])
    assert line.waived.startswith("new kernel")


def test_saved_inputs_that_cannot_show_a_fault(pairs: dict[str, Pair], tmp_path: Path) -> None:
    """One sample without a mask says nothing of masks; the reason names what is missing and what to do."""
    pair = pairs["sigma-ms"]
    with session(pair) as opened:
        arrays = dict(opened.cases("quick")[0].arrays)
    mask = arrays.pop("caption_mask")
    one = {f"one.{name}": torch.from_numpy(array[:1].copy()) for name, array in arrays.items()}
    save_file(one, tmp_path / "one.safetensors")
    report = check(pair.original, pair.folder, **stated(cases=tmp_path / "one.safetensors", **QUIETLY))
    assert (report.verdict, report.exit_code) == (INCONCLUSIVE, 4)
    assert report.reason.endswith(
        "mask ignored (caught by nothing, NOT by function: it changes nothing in these inputs, which are not enough "
        "for a PASS; leave --cases out)"
    )
    # With a masked case behind it they suffice.
    two = {
        f"two.{name}": torch.from_numpy(array[:1].copy()) for name, array in (arrays | {"caption_mask": mask}).items()
    }
    save_file(one | two, tmp_path / "both.safetensors")
    assert check(pair.original, pair.folder, **stated(cases=tmp_path / "both.safetensors", **QUIETLY)).verdict == PASS
    # Or with a mask in any sample, be it not the first.
    mask[0] = 1
    three = {f"three.{name}": torch.from_numpy(array) for name, array in (arrays | {"caption_mask": mask}).items()}
    save_file(three, tmp_path / "both.safetensors")
    assert check(pair.original, pair.folder, **stated(cases=tmp_path / "both.safetensors", **QUIETLY)).verdict == PASS


# What a model may be like.


def with_change(at: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Pair:
    """A golden model with a change that its training could have made."""
    state = torch.load(GOLDEN / "sigma-ms.pth", weights_only=True)
    change(state)
    torch.save(state, at / "edited.pth")
    convert(at / "edited.pth", at / "out", **stated(**QUIETLY))
    return Pair(at / "edited.pth", at / "out")


def edited(at: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Report:
    """The whole self-test on it."""
    pair = with_change(at, change)
    report = check(pair.original, pair.folder, self_test="full")
    assert all(phase.verdict != FAIL for phase in report.phases)
    return report


def test_a_cross_attention_that_hardly_acts(tmp_path: Path) -> None:
    """Early in training it does: then some faults in it show in the bytes only, and only the fine ones may."""

    def weaken(state: dict[str, torch.Tensor]) -> None:
        for block in range(3):
            state[f"blocks.{block}.cross_attn.proj.weight"] *= 2e-4

    report = edited(tmp_path, weaken)
    made = report.phase("self-test")
    assert (report.verdict, made and made.verdict) == (PASS, PASS)
    assert made
    faint = {check.what for check in made.checks if "less than any tolerance" in check.words}
    assert "attn2.to_q of block 2 rounded to half" in faint
    assert all(name.endswith(("rounded to half", "dropped")) for name in faint)
    assert all("attn2" in name or "caption" in name for name in faint), faint  # captions act through it alone
    assert all(check.value == WEIGHTS for check in made.checks if check.what in faint)


def test_a_cross_attention_that_does_not_act_at_all_is_not_enough(tmp_path: Path) -> None:
    """As in a net that was never trained: no output could show a swap in it."""

    def silence(state: dict[str, torch.Tensor]) -> None:
        for block in range(3):
            state[f"blocks.{block}.cross_attn.proj.weight"] *= 0

    report = edited(tmp_path, silence)
    assert (report.verdict, report.exit_code) == (INCONCLUSIVE, 4)
    assert "NOT by function" in report.reason
    made = report.phase("self-test")
    assert made
    assert "attn2.to_k and attn2.to_v swapped in block 2" in survivors(made)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_weights_that_half_precision_holds_already(tmp_path: Path, half: torch.dtype) -> None:
    """Trained in half precision and stored in float32: rounding them to it would be no fault at all."""

    def round_all(state: dict[str, torch.Tensor]) -> None:
        for key, tensor in state.items():
            if key != "pos_embed":
                state[key] = tensor.to(half).float()

    with session(with_change(tmp_path, round_all)) as opened:
        assert opened.function(opened.cases("quick"), ("float64", "float32")).verdict == PASS
        faults = [fault for fault in opened.known_faults() if fault.name.endswith("rounded to half")]
        made = selftest.run(opened, faults)
    assert (made.verdict, len(made.checks) > 10) == (PASS, True), made.words


def test_a_bias_of_zeros_cannot_be_dropped(tmp_path: Path) -> None:
    def clear(state: dict[str, torch.Tensor]) -> None:
        for key in state:  # of one block alone, it would be damage
            if key.endswith("mlp.fc2.bias"):
                state[key].zero_()

    report = edited(tmp_path, clear)
    made = report.phase("self-test")
    assert report.verdict == PASS
    assert made
    assert made.notes == ["not tried, since the tensor is zero already: bias of ff.net.2 of block 2 dropped"]
