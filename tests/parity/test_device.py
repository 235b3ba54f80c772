"""`--device`: everything is moved there. On a real one where there is one; on a fake one everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_device import LEAKS
from makers import ROOT, pixart, within
from opened import NAMES, WEIGHTS, Pair, golden, small
from safetensors.torch import load_file, save_file
from torch.utils import backend_registration

from converter import convert
from converter.parity import check
from converter.reports.report import FAIL, PASS

needs_fake_device = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch cannot be told of a device in Python",
)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    at = tmp_path_factory.mktemp("golden")
    return {name: golden(name, at) for name in NAMES}


def spoilt(pair: Pair, at: Path) -> Pair:
    """With q and k of block 1 swapped."""
    import shutil

    folder = Path(shutil.copytree(pair.folder, at / "spoilt"))
    state = load_file(folder / "transformer" / WEIGHTS)
    for suffix in ("weight", "bias"):
        q, k = (f"transformer_blocks.1.attn1.to_{name}.{suffix}" for name in "qk")
        state[q], state[k] = state[k], state[q]
    save_file(state, folder / "transformer" / WEIGHTS, metadata={"format": "pt"})
    return Pair(pair.original, folder)


Comparing = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def on_fake_device() -> Iterator[Comparing]:
    """Compares a pair there, every time in a process of its own, with one of the leaks put in."""
    command = [sys.executable, str(Path(__file__).parent / "fake_device.py")]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "PIXART_DEBUG": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True) as process:

        def compare(pair: Pair, leak: str = "none", **options: Any) -> dict[str, Any]:
            assert process.stdin
            assert process.stdout
            print(json.dumps([str(pair.original), str(pair.folder), leak, options]), file=process.stdin, flush=True)
            with within(300):
                report: dict[str, Any] = json.loads(process.stdout.readline())
            assert "crashed" not in report, report
            return report

        yield compare


@pytest.mark.slow
@needs_fake_device
@pytest.mark.parametrize(
    "options",
    [
        {"multi_scale_train": False, "profile": "standard", "dtype": ["float32", "bfloat16"]},
        {"multi_scale_train": True, "self_test": "full"},
    ],
    ids=["fixed", "multi-scale"],
)
def test_no_tensor_stays_behind(tmp_path: Path, on_fake_device: Comparing, options: dict[str, Any]) -> None:
    """Both nets, the trajectory and every fault, in every precision: what stays on the CPU meets nothing there."""
    pair = small(tmp_path, pixart(depth=1), multi_scale_train=options["multi_scale_train"])  # one block is as another
    report = on_fake_device(pair, **options)
    assert report["verdict"] == PASS, report["reason"]
    assert report["environment"]["device"] == "fake:0"
    ran = {phase["name"]: phase["verdict"] for phase in report["phases"]}
    assert ran["trajectory"] == (PASS if "profile" in options else "NOT RUN")
    assert ran["self-test"] == PASS


@pytest.mark.slow
@needs_fake_device
def test_nor_does_one_of_a_dit(on_fake_device: Comparing, tmp_path: Path) -> None:
    """Of which whole numbers are an input, and every block has embedders of its own."""
    original = ROOT / "fixtures/golden/dit.pt"
    convert(original, tmp_path / "out", hyper_parameters={"num_attention_heads": 4})
    pair = Pair(original, tmp_path / "out")
    report = on_fake_device(pair, exact_timesteps=True, dtype=["float32", "bfloat16"])
    assert report["verdict"] == PASS, report["reason"]


@pytest.mark.slow
@needs_fake_device
def test_what_fails_is_localised_there_too(pairs: dict[str, Pair], on_fake_device: Comparing, tmp_path: Path) -> None:
    pair = spoilt(pairs["sigma-ms"], tmp_path)
    report = on_fake_device(pair, multi_scale_train=True, save_failing=str(tmp_path / "failing"))
    assert report["verdict"] == FAIL
    (function,) = [phase for phase in report["phases"] if phase["name"] == "function"]
    assert "it goes wrong in block 1" in function["words"]
    assert function["notes"] == ["block 1 is right again with attn1.to_q and attn1.to_k swapped in block 1"]
    assert len(list((tmp_path / "failing").iterdir())) == 1


@pytest.mark.slow
@needs_fake_device
@pytest.mark.parametrize("leak", sorted(LEAKS.keys() - {"none"}))
def test_what_stays_behind_is_noticed(pairs: dict[str, Pair], on_fake_device: Comparing, leak: str) -> None:
    """So that the tests above are worth something."""
    report = on_fake_device(pairs["sigma-ms"], leak, multi_scale_train=True)
    words = report.get("error") or report["reason"]
    assert "fake:0" in words, words


# On a real one.

gpu = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@gpu
@needs_cuda
@pytest.mark.parametrize("name", NAMES)
def test_cuda_proves_what_the_cpu_proves(pairs: dict[str, Pair], name: str) -> None:
    """The same verdict, with the same tolerance, though another device rounds otherwise; and twice the same bytes."""
    pair, made = pairs[name], []
    torch.backends.cuda.matmul.allow_tf32 = True  # on, it would be a thousand times coarser than the cap
    for _ in range(2):
        report = check(pair.original, pair.folder, device="cuda", profile="standard", dtype=["float32", "bfloat16"])
        assert report.verdict == PASS, report.reason
        report.run = {}
        made.append(report.to_json())
    assert torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    assert made[0] == made[1]
    environment = json.loads(made[0])["environment"]
    assert (environment["tf32"], environment["fused_attention"]) == (False, False)
    assert environment["accelerator"] == torch.cuda.get_device_name()
    assert environment["cublas_workspace"] in (":4096:8", ":16:8")


@gpu
@needs_cuda
def test_cuda_kills_the_whole_catalogue(pairs: dict[str, Pair]) -> None:
    pair = pairs["sigma-ms"]
    report = check(
        pair.original, pair.folder, device="cuda", self_test="full", hyper_parameters={"num_attention_heads": 4}
    )
    assert report.verdict == PASS, report.reason


@gpu
@needs_cuda
def test_cuda_finds_the_faulty_block(pairs: dict[str, Pair], tmp_path: Path) -> None:
    pair = spoilt(pairs["sigma-ms"], tmp_path)
    report = check(pair.original, pair.folder, device="cuda", hyper_parameters={"num_attention_heads": 4})
    assert report.verdict == FAIL
    function = report.phase("function")
    assert function
    assert "it goes wrong in block 1" in function.words
