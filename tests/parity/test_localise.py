"""Where it goes wrong: exactly the faulty stages, the first wrong thing in them, and the repair."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from opened import Pair, State, golden, session

from converter.models.pixart.parity import PARITY
from converter.nets import Stage, Staged, Weights
from converter.nets.faults import Fault
from converter.nets.inputs import Case, noise
from converter.parity import diagnosis, localise
from converter.parity.session import Session
from converter.reports.report import FAIL, PASS, Phase

T = "transformer_blocks."
Change = Callable[[State], None]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return golden("alpha-ms", tmp_path_factory.mktemp("localise"))


def compared(pair: Pair, change: Change | None, config: dict[str, Any] | None = None) -> Phase:
    with session(pair, change, config) as opened:
        return opened.function(opened.cases("quick"), ("float64",))


def swap(one: str, other: str, suffixes: tuple[str, ...] = (".weight", ".bias")) -> Change:
    def change(state: State) -> None:
        for suffix in suffixes:
            state[one + suffix], state[other + suffix] = state[other + suffix], state[one + suffix]

    return change


def scale(key: str, by: float = 1.001) -> Change:
    def change(state: State) -> None:
        state[key] *= by

    return change


def faulty(made: Phase) -> dict[str, str]:
    """Faulty stage -> the first thing inside it that is wrong."""
    found = {}
    for stage in made.detail["localisation"]["stages"]:
        if stage["faulty"]:
            found[stage["name"]] = next((part["name"] for part in stage["inside"] if part["faulty"]), "")
    return found


FAULTS: dict[str, tuple[Change, dict[str, str]]] = {
    "q and k": (swap(f"{T}1.attn1.to_q", f"{T}1.attn1.to_k"), {"block 1": "attn1 q"}),
    "k and v": (swap(f"{T}2.attn1.to_k", f"{T}2.attn1.to_v"), {"block 2": "attn1 k"}),
    "cross k and v": (swap(f"{T}0.attn2.to_k", f"{T}0.attn2.to_v"), {"block 0": "attn2 k"}),
    "self-attention's projection": (scale(f"{T}1.attn1.to_out.0.weight"), {"block 1": "attn1 out"}),
    "cross-attention's q": (scale(f"{T}1.attn2.to_q.weight"), {"block 1": "attn2 q"}),
    "cross-attention's projection": (scale(f"{T}1.attn2.to_out.0.weight"), {"block 1": "attn2 out"}),
    "first of the feed-forward": (scale(f"{T}1.ff.net.0.proj.weight"), {"block 1": "ff hidden"}),
    "second of the feed-forward": (scale(f"{T}1.ff.net.2.weight"), {"block 1": "ff out"}),
    "table": (scale(f"{T}1.scale_shift_table"), {"block 1": "norm1 modulated"}),
    "captions": (scale("caption_projection.linear_1.weight"), {"caption embedding": ""}),
    "timesteps": (scale("adaln_single.emb.timestep_embedder.linear_2.bias"), {"timestep embedding": ""}),
    "t_block": (scale("adaln_single.linear.weight"), {"timestep embedding": ""}),
    "patches": (scale("pos_embed.proj.weight"), {"patch embedding": ""}),
    "output": (scale("proj_out.weight"), {"final layer": ""}),
    "final table": (scale("scale_shift_table"), {"final layer": ""}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_exactly_the_faulty_stage_is_named(pair: Pair, name: str) -> None:
    change, wanted = FAULTS[name]
    made = compared(pair, change)
    assert made.verdict == FAIL
    assert faulty(made) == wanted
    (stage,) = wanted
    assert f"it goes wrong in {stage}; " in made.words
    others = [s["error"] for s in made.detail["localisation"]["stages"] if s["name"] != stage]
    assert max(others) < localise.FAULTY


def test_a_right_conversion_is_not_localised(pair: Pair) -> None:
    made = compared(pair, None)
    assert made.verdict == PASS
    assert "localisation" not in made.detail


def test_lockstep_of_right_nets(pair: Pair) -> None:
    with session(pair) as opened:
        rows = localise.lockstep(opened.original("float64"), opened.converted("float64"), opened.cases("quick")[0])
    assert [row.name for row in rows] == [
        "patch embedding", "timestep embedding", "caption embedding", "block 0", "block 1", "block 2", "final layer"
    ]  # fmt: skip
    assert not any(row.faulty for row in rows)
    assert max(row.error for row in rows if row.name.startswith("block")) < 1e-13
    assert all("inside" not in row.as_dict() for row in rows)


def test_two_faulty_blocks_are_both_listed(pair: Pair) -> None:
    """What goes wrong before does not hide what goes wrong after."""

    def change(state: State) -> None:
        swap(f"{T}0.attn1.to_q", f"{T}0.attn1.to_k")(state)
        scale(f"{T}2.ff.net.2.bias", 1.01)(state)

    made = compared(pair, change)
    assert faulty(made) == {"block 0": "attn1 q", "block 2": "ff out"}
    assert made.notes == ["block 0 is right again with attn1.to_q and attn1.to_k swapped in block 0"]


def test_a_wrong_config_is_wrong_in_every_block(pair: Pair) -> None:
    made = compared(pair, None, {"norm_eps": 1e-3})
    assert [name for name in faulty(made) if name.startswith("block")] == ["block 0", "block 1", "block 2"]
    assert {faulty(made)[f"block {i}"] for i in range(3)} == {"norm1 modulated"}
    made = compared(pair, None, {"activation_fn": "gelu"})
    assert faulty(made) == {f"block {i}": "ff out" for i in range(3)}
    made = compared(pair, None, {"interpolation_scale": 1})
    assert faulty(made) == {"patch embedding": ""}


def test_heads_are_seen_after_q_k_and_v(pair: Pair) -> None:
    made = compared(pair, None, {"num_attention_heads": 8, "attention_head_dim": 6})
    assert set(faulty(made).values()) == {"attn1 out"}


# Repairs.

REPAIRS = {
    "q and k of one block": (
        swap(f"{T}1.attn1.to_q", f"{T}1.attn1.to_k"),
        ["block 1 is right again with attn1.to_q and attn1.to_k swapped in block 1"],
    ),
    "cross k and v of one block": (
        swap(f"{T}0.attn2.to_k", f"{T}0.attn2.to_v"),
        ["block 0 is right again with attn2.to_k and attn2.to_v swapped in block 0"],
    ),
    "resolution and aspect": (
        swap("adaln_single.emb.resolution_embedder.linear_1", "adaln_single.emb.aspect_ratio_embedder.linear_1"),
        [
            "timestep embedding is right again with adaln_single.emb.resolution_embedder.linear_1 and "
            "adaln_single.emb.aspect_ratio_embedder.linear_1 of the model swapped"
        ],
    ),
    "projections": (
        swap(f"{T}2.attn1.to_out.0", f"{T}2.attn2.to_out.0"),
        ["block 2 is right again with attn1.to_out.0 and attn2.to_out.0 of block 2 swapped"],
    ),
    "nothing known": (scale(f"{T}1.attn1.to_q.weight", 1.5), []),
}


@pytest.mark.parametrize("name", REPAIRS)
def test_a_known_swap_is_found(pair: Pair, name: str) -> None:
    change, wanted = REPAIRS[name]
    made = compared(pair, change)
    assert made.notes == wanted
    fault = wanted[0].partition(" is right again with ")[2] if wanted else "it goes wrong in block 1"
    assert made.words.startswith(f"{fault}; ")
    assert [row["words"] for row in made.detail["localisation"]["repairs"]] == wanted


def test_a_swap_in_all_blocks_is_found_in_each(pair: Pair) -> None:
    def change(state: State) -> None:
        for block in range(3):
            swap(f"{T}{block}.attn1.to_q", f"{T}{block}.attn1.to_k")(state)

    made = compared(pair, change)
    assert len(made.notes) == 3
    assert made.words.startswith("attn1.to_q and attn1.to_k swapped in block 0 and 2 more; it goes wrong in block 0, ")
    for block, note in enumerate(made.notes):
        assert note.startswith(f"block {block} is right again with attn1.to_q and attn1.to_k swapped in ")


def test_transposed_once_more(pair: Pair) -> None:
    def change(state: State) -> None:
        key = f"{T}1.attn1.to_out.0.weight"
        state[key] = state[key].T.contiguous()

    assert compared(pair, change).notes == ["block 1 is right again with attn1.to_out.0 of block 1 transposed"]


# In other precisions.


@pytest.mark.parametrize("precision", ["float64", "float32", "float16", "bfloat16"])
def test_a_fault_stands_out_in_every_precision(pair: Pair, precision: str) -> None:
    """Even where the whole output could not tell it from rounding."""
    for change, wanted in ((None, []), (swap(f"{T}1.attn1.to_q", f"{T}1.attn1.to_k"), ["block 1"])):
        with session(pair, change) as opened:
            stages = diagnosis.lockstep(opened, opened.cases("quick")[0], precision)
            assert diagnosis.faulty(stages) == wanted
            assert all((row.floor is not None) == (precision != "float64") for row in stages)
            for row in stages:
                if row.faulty:
                    inside = [part.name for part in row.inside if part.faulty]
                    assert inside[:2] == ["attn1 q", "attn1 k"]
                elif precision != "float64":
                    assert row.error <= 2 * max(row.floor, 1e-7)


@contextmanager
def bent(pair: Pair, wrong_in: str, by: float) -> Iterator[Session]:
    """A converted net that is right but for block 1 in one precision, as a kernel may be."""

    def converted(config: Any, weights: Weights) -> Staged:
        def stage(right: Stage) -> Stage:
            def run(values: Any, probe: Any) -> Any:
                made = right.run(values, probe)
                wrong = right.name == "block 1" and str(weights.dtype) == f"torch.{wrong_in}"
                return {name: value * (1 + by) if wrong else value for name, value in made.items()}

            return Stage(right.name, run)

        return Staged([stage(right) for right in PARITY.converted(config, weights).stages])

    with session(pair) as opened:
        opened.model = replace(PARITY, converted=converted)
        yield opened


def test_what_is_wrong_in_float32_only_is_found_there(pair: Pair) -> None:
    with bent(pair, "float32", 1e-5) as opened:
        made = opened.function(opened.cases("quick"), ("float64", "float32"))
    assert made.verdict == FAIL
    assert made.words.startswith("it goes wrong in block 1, in float32 only; ")
    assert all(check.statistic.startswith("float32") for check in made.failed)
    assert made.detail["localisation"]["precision"] == "float32"
    assert made.detail["localisation"]["repairs"] == [], "in float64 there is nothing to mend"
    assert faulty(made).keys() == {"block 1"}


def test_what_is_worse_in_half_precision_is_told_and_decides_nothing(pair: Pair) -> None:
    with bent(pair, "bfloat16", 0.5) as opened:
        made = opened.function(opened.cases("quick"), ("float64", "bfloat16"))
    assert made.verdict == PASS
    assert made.notes == ["bfloat16, t999-t321: worse than the original; block 1 stands out by itself"]


# On toy nets.

CASE = Case("a", {"x": noise(1, 2, 3)})


def net(**stages: Any) -> Staged:
    return Staged([Stage(name, run) for name, run in stages.items()])


def adds(by: float) -> Any:
    return lambda values, probe: {"x": values["x"] + by}


def test_errors_are_by_the_update() -> None:
    """A block that adds a millionth to a stream of ones is wrong by half if it adds half of that."""
    rows = localise.lockstep(net(a=adds(1e-6)), net(a=adds(0.5e-6)), CASE)
    assert rows[0].error == pytest.approx(0.5, rel=1e-3)
    assert rows[0].faulty


def test_the_converted_stage_is_given_the_originals_input() -> None:
    rows = localise.lockstep(net(a=adds(1), b=adds(1)), net(a=adds(5), b=adds(1)), CASE)
    assert [row.faulty for row in rows] == [True, False]


def test_a_stage_that_fails_or_lacks() -> None:
    def fails(values: Any, probe: Any) -> Any:
        raise ValueError("no\x1b[31m")

    original = net(a=adds(1), b=adds(1), c=adds(1))
    rows = localise.lockstep(original, net(a=fails, c=adds(1)), CASE)
    assert [row.faulty for row in rows] == [True, True, False]
    assert rows[0].why == "ValueError: no\\x1b[31m"
    assert rows[1].why == "the converted net has none"
    assert rows[0].error == rows[1].error == float("inf")


def test_a_stage_that_makes_less_or_what_is_not_finite() -> None:
    original = net(a=lambda v, p: {"x": v["x"] + 1, "y": v["x"]})
    assert localise.lockstep(original, net(a=adds(1)), CASE)[0].error == float("inf")
    assert localise.lockstep(net(a=adds(1)), net(a=adds(float("nan"))), CASE)[0].faulty


def test_the_inside_is_compared_as_far_as_both_tell() -> None:
    def stage(q: float, k: float, *names: str) -> Any:
        def run(values: Any, probe: Any) -> Any:
            for name, factor in (("q", q), ("k", k)):
                if name in names:
                    probe(name, values["x"] * factor)
            return {"x": values["x"] * (1 + q + k)}

        return run

    rows = localise.lockstep(net(a=stage(1, 2, "q", "k")), net(a=stage(1, 3, "q", "k")), CASE)
    assert [(part.name, part.faulty) for part in rows[0].inside] == [("q", False), ("k", True)]
    rows = localise.lockstep(net(a=stage(1, 2, "q", "k")), net(a=stage(1, 3, "q")), CASE)
    assert [part.name for part in rows[0].inside] == ["q"]


def test_no_more_stages_are_mended_than_are_worth_it() -> None:
    count = localise.MENDED + 4
    original = Staged([Stage(f"block {i}", adds(1)) for i in range(count)])
    tried: list[int | None] = []

    def faults(block: int | None) -> list[Fault]:
        tried.append(block)
        return [Fault("x", frozenset(), {"a": ("a", None)})]

    stages = [f"block {i}" for i in range(count)]
    localise.repairs(original, lambda fault: original, CASE, faults=faults, stages=stages)
    assert tried == list(range(localise.MENDED))
