"""The verdict of all phases: the worst decides, and the reason begins with what explains it best."""

from __future__ import annotations

import pytest

from converter.parity.checker import verdict_of
from converter.reports.report import FAIL, INCONCLUSIVE, NOT_RUN, PASS, Phase

SWAPPED = Phase(
    "function",
    FAIL,
    "q and k swapped in block 1; it goes wrong in block 1; 24 of 25 statistics over the limit",
    detail={"localisation": {"repairs": [{"words": "block 1 is right again with q and k swapped in block 1"}]}},
)
UNKNOWN = Phase("function", FAIL, "it goes wrong in block 1; 24 of 25 statistics over the limit")
RIGHT = Phase("function", PASS, "outputs identical in float32; 25 statistics checked")
WEIGHTS = Phase("weights", FAIL, "4 of 86 converted tensors are not the original's: to_q and 3 more")
DOUBT = Phase("self-test", INCONCLUSIVE, "1 of 10 deliberate faults missed: mask ignored")
SKIPPED = Phase("self-test", NOT_RUN, "an earlier phase has not passed")


def phases(*others: Phase) -> list[Phase]:
    given = {phase.name: phase for phase in others}
    right = {name: Phase(name, PASS, name) for name in ("provenance", "weights", "config", "function", "self-test")}
    return [*(right | {"function": RIGHT} | given).values()]


@pytest.mark.parametrize(
    ("others", "verdict", "reason"),
    [
        ([], PASS, RIGHT.words),
        ([SWAPPED, SKIPPED], FAIL, SWAPPED.words),
        ([WEIGHTS, SWAPPED, SKIPPED], FAIL, f"q and k swapped in block 1; weights: {WEIGHTS.words}"),
        ([WEIGHTS, UNKNOWN, SKIPPED], FAIL, f"weights: {WEIGHTS.words}"),
        ([UNKNOWN, SKIPPED], FAIL, f"function: {UNKNOWN.words}"),
        ([DOUBT], INCONCLUSIVE, f"self-test: {DOUBT.words}"),
        ([SKIPPED], INCONCLUSIVE, f"self-test: {SKIPPED.words}"),
    ],
)
def test_the_reason_begins_with_what_explains_it(others: list[Phase], verdict: str, reason: str) -> None:
    assert verdict_of(phases(*others)) == (verdict, reason)
