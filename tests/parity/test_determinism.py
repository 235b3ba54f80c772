"""The switches that make a run repeatable: set whatever they were, read back for the report, and put back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from opened import Pair, golden

from converter.errors import UsageError
from converter.nets.inputs import SEED
from converter.parity import check, determinism
from converter.parity.determinism import WORKSPACE, deterministic, environment
from converter.parity.provenance import phase
from converter.reports.report import PASS

BACKENDS = torch.backends


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return golden("sigma-ms", tmp_path_factory.mktemp("golden"))


def precisions() -> list[str]:
    """By operation, what may stand for float32, as far as this torch says it."""
    return [node.fp32_precision for node in determinism.float32_backends()]


def legacy() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), BACKENDS.cudnn.allow_tf32


@pytest.fixture(autouse=True)
def as_torch_starts() -> Iterator[None]:
    """Whatever a test sets, the next begins with what a new process has."""
    before, nodes = legacy(), precisions()
    yield
    torch.set_float32_matmul_precision(before[0])
    BACKENDS.cudnn.allow_tf32 = before[1]
    for node, value in zip(determinism.float32_backends(), nodes, strict=True):
        node.fp32_precision = value
    torch.set_deterministic_debug_mode(0)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("debug", [0, 1, 2])
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("cudnn", [True, False])
def test_old_switches_are_set_and_put_back(precision: str, cudnn: bool, debug: int, fails: bool) -> None:
    torch.set_float32_matmul_precision(precision)
    BACKENDS.cudnn.allow_tf32, BACKENDS.cudnn.benchmark = cudnn, True
    torch.set_deterministic_debug_mode(debug)
    nodes = precisions()
    try:
        with deterministic():
            assert legacy() == ("highest", False)
            assert not BACKENDS.cuda.matmul.allow_tf32
            assert set(precisions()) <= {"ieee"}
            assert torch.get_deterministic_debug_mode() == 2  # an error, not a warning
            assert not BACKENDS.cudnn.benchmark
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert legacy() == (precision, cudnn)
    assert precisions() == nodes
    assert torch.get_deterministic_debug_mode() == debug
    assert BACKENDS.cudnn.benchmark
    BACKENDS.cudnn.benchmark = False


@pytest.mark.skipif(not determinism.float32_backends(), reason="this torch has the old switches only")
@pytest.mark.parametrize("asked", ["tf32", "ieee"])
def test_new_switches_too_though_torch_refuses_to_read_the_old_ones_then(asked: str) -> None:
    for node in determinism.float32_backends():
        node.fp32_precision = asked if asked == "ieee" or node not in _of_the_cpu() else "bf16"
    nodes = precisions()
    with deterministic():
        assert legacy() == ("highest", False)
        assert set(precisions()) == {"ieee"}
        assert environment("cpu", ())["tf32"] is False
    assert precisions() == nodes


def _of_the_cpu() -> list[object]:
    return [BACKENDS.mkldnn.matmul, BACKENDS.mkldnn.conv]


@pytest.mark.parametrize("before", [None, ":16:8", ":4096:8", ":0:0", "nonsense"])
def test_the_workspace_of_cublas(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch refuses deterministic products on CUDA without one of two values; the others would be an error."""
    monkeypatch.delenv(WORKSPACE, raising=False)
    if before is not None:
        monkeypatch.setenv(WORKSPACE, before)
    with deterministic():
        assert os.environ[WORKSPACE] == (before if before in determinism.WORKSPACES else ":4096:8")
    assert os.environ.get(WORKSPACE) == before


@pytest.mark.parametrize("threads", [None, 1, 2])
def test_threads_are_fixed_and_put_back(threads: int | None) -> None:
    before = torch.get_num_threads()
    with deterministic(threads=threads):
        assert torch.get_num_threads() == environment("cpu", ())["threads"] == (threads or before)
    assert torch.get_num_threads() == before


def test_autocast_around_the_call_changes_nothing() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert F.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.bfloat16
        with deterministic():
            assert F.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.float32


def test_attention_is_fused_on_the_cpu_only() -> None:
    fused: tuple[Callable[[], bool], ...] = (
        BACKENDS.cuda.flash_sdp_enabled,
        BACKENDS.cuda.mem_efficient_sdp_enabled,
        BACKENDS.cuda.cudnn_sdp_enabled,
    )
    before = [each() for each in fused]
    with deterministic("cpu"):
        assert [each() for each in fused] == before
    with deterministic("cuda"):  # sets switches only: there need be no such device
        assert not any(each() for each in fused)
        assert BACKENDS.cuda.math_sdp_enabled()
    assert [each() for each in fused] == before


def test_the_environment_is_read_and_not_claimed() -> None:
    import diffusers

    torch.set_float32_matmul_precision("high")
    made = environment("cpu", ("float64",))
    assert made["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert made["diffusers"] == diffusers.__version__
    assert (made["device"], made["dtypes"], made["seed"]) == ("cpu", ["float64"], SEED)
    assert made["threads"] == torch.get_num_threads()
    assert (made["tf32"], made["deterministic_algorithms"]) == (True, False)
    words = phase({"name": "a.pth", "sha256": "0" * 64}, made).words
    assert "NOT deterministic, TF32 ON" in words
    with deterministic():
        made = environment("cpu", ())
        assert (made["tf32"], made["deterministic_algorithms"]) == (False, True)
        words = phase({"name": "a.pth", "sha256": "0" * 64}, made).words
        assert f"; deterministic, TF32 off, threads: {made['threads']}, seed: {SEED}" in words
    json.dumps(made)


def test_a_whole_check_leaves_the_switches_and_the_random_numbers(pair: Pair) -> None:
    torch.set_float32_matmul_precision("medium")
    before = legacy(), precisions(), torch.get_num_threads(), torch.get_deterministic_debug_mode()
    torch.manual_seed(9)
    state = torch.get_rng_state()
    assert check(pair.original, pair.folder, threads=2).verdict == PASS
    assert (legacy(), precisions(), torch.get_num_threads(), torch.get_deterministic_debug_mode()) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_with_threads_said_the_report_is_the_same_whatever_the_process_had(pair: Pair) -> None:
    made = []
    for ambient in (1, 2):
        torch.set_num_threads(ambient)
        report = check(pair.original, pair.folder, threads=1)
        report.run = {}
        made.append(report.to_json())
    torch.set_num_threads(1)
    assert made[0] == made[1]
    assert json.loads(made[0])["environment"]["threads"] == 1


@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_threads_that_are_none(threads: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"`threads` {threads}: a whole number from 1 to 1024"):
        check(tmp_path, tmp_path, threads=threads)
