"""Provenance: digests, records that are believed or not, and the switches that make a run repeatable."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import GOLDEN, HEADS
from opened import Pair, golden, small

from converter import convert
from converter.conversion.record import Record, find_sidecar
from converter.errors import InputError, UsageError
from converter.families import Family
from converter.mapping import KeyMapping
from converter.models.pixart.table import PIXART
from converter.parity import check
from converter.parity.determinism import environment
from converter.parity.provenance import digests_of, phase, recorded_conversion, sha256
from converter.parity.sides import UNAVAILABLE, spec_of
from converter.reports.report import PASS

RECORD, SIDECAR = "conversion.json", "original_extras.safetensors"
DISBELIEVED = [f"{RECORD} is not a valid conversion record, and is ignored"]


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return golden("sigma-ms", tmp_path)


def rewrite(pair: Pair, **change: Any) -> None:
    path = pair.folder / RECORD
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


# Digests.


@pytest.mark.parametrize("size", [0, 1, 1000, (1 << 22) - 1, 1 << 22, (1 << 22) + 1, 9_000_001])
def test_sha256(tmp_path: Path, size: int) -> None:
    """Of any size, in whatever pieces it is read."""
    data = hashlib.shake_128(b"x").digest(size)
    (tmp_path / "a").write_bytes(data)
    assert sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_sha256_of_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "absent", ""):
        with pytest.raises(InputError):
            sha256(tmp_path / name)


def test_digests_of_a_file(tmp_path: Path) -> None:
    path = GOLDEN / "sigma-ms.pth"
    data = path.read_bytes()
    assert digests_of(path) == {
        "name": "sigma-ms.pth",
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    hostile = tmp_path / "a\x1b[31m.pth"
    hostile.write_bytes(b"x")
    assert digests_of(hostile)["name"] == "a\\x1b[31m.pth"


def test_digests_of_a_folder(pair: Pair) -> None:
    made = digests_of(pair.folder)
    assert made["name"] == "sigma-ms"
    assert set(made["files"]) == {
        RECORD, SIDECAR, "transformer/config.json", "transformer/diffusion_pytorch_model.safetensors"
    }  # fmt: skip
    for name, row in made["files"].items():
        data = (pair.folder / name).read_bytes()
        assert row == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert made["size"] == sum(row["size"] for row in made["files"].values())
    before = made["sha256"]
    assert digests_of(pair.folder)["sha256"] == before
    for name in made["files"]:
        path = pair.folder / name
        data = path.read_bytes()
        path.write_bytes(data + b" ")
        assert digests_of(pair.folder)["sha256"] != before, name
        path.write_bytes(data)
    (pair.folder / "transformer" / "notes.txt").write_text("of no account")
    assert digests_of(pair.folder)["sha256"] == before


def test_the_phase_judges_nothing() -> None:
    made = phase({"name": "a.pth", "sha256": "0123456789abcdef" + "f" * 48}, environment("cpu", ()))
    assert (made.verdict, made.checks) == (PASS, [])
    assert "a.pth is 0123456789abcdef..." in made.words


# Records.


def test_a_record_is_taken(pair: Pair) -> None:
    made, notes = recorded_conversion(pair.folder)
    assert notes == []
    assert made.source["weights"] == "raw"
    assert made.source["size"] == pair.original.stat().st_size
    assert made.given == {"num_attention_heads": HEADS, "multi_scale_train": True}
    assert made.folder == pair.folder
    inside, notes = recorded_conversion(pair.model)
    assert (inside, notes) == (made, [])
    record = Record(folder=made.folder)
    assert find_sidecar(pair.folder, record) == find_sidecar(pair.model, record) == pair.folder / SIDECAR


def test_no_record(pair: Pair) -> None:
    (pair.folder / RECORD).unlink()
    made, notes = recorded_conversion(pair.folder)
    assert (made, notes) == (Record(), [])
    assert find_sidecar(pair.folder, Record()) == pair.folder / SIDECAR  # in the folder itself
    assert find_sidecar(pair.model, Record()) is None  # next to it, it may be anybody's


def test_a_record_of_another_folder_beside_it_is_not_taken(pair: Pair) -> None:
    other = pair.folder / "another"
    (pair.model).rename(other)
    assert recorded_conversion(other) == (Record(), [])


def test_a_record_of_another_tool_is_passed_over(pair: Pair) -> None:
    """And said to be: it may be ours with a bit flipped, and then it is what vouches for the weights."""
    rewrite(pair, tool={"name": "somebody-else", "version": "1"})
    made, notes = recorded_conversion(pair.folder)
    assert made == Record()
    assert notes == ["conversion.json is not a valid conversion record, and is ignored"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"{}",
        b'{"tool": null}',
        b'{"tool": {"name": null}}',
        b"\xff\xfe",
        b'{"a": 1, "a": 2}',
        b"[" * 100_000,
        b'{"tool": {"name": NaN}}',
    ],
)
def test_a_corrupt_record_is_not_believed(pair: Pair, content: bytes) -> None:
    (pair.folder / RECORD).write_bytes(content)
    made, notes = recorded_conversion(pair.folder)
    assert made == Record()
    assert notes in ([], DISBELIEVED)


@pytest.mark.parametrize(
    "change",
    [
        {"hyper_parameters": []},
        {"hyper_parameters": {"a": 1}},
        {"hyper_parameters": {"a": {}}},
        {"source": None},
        {"source": {}},
        {"source": {"weights": "best", "size": 1}},
        {"source": {"weights": ["raw"], "size": 1}},
        {"source": {"weights": 5, "size": 1}},
        {"cast": "float33"},
        {"cast": 5},
        {"cast": ["float16"]},
        {"written": None},
        {"written": 5},
    ],
)
def test_a_record_with_anything_in_it_is_not_believed(pair: Pair, change: dict[str, Any]) -> None:
    rewrite(pair, **change)
    assert recorded_conversion(pair.folder) == (Record(), DISBELIEVED)


def test_the_comparison_goes_on_without_a_record_that_is_not_believed(pair: Pair) -> None:
    rewrite(pair, cast="float33")
    report = check(pair.original, pair.folder, hyper_parameters={"num_attention_heads": HEADS})
    assert report.verdict == PASS
    assert DISBELIEVED[0] in report.notes


def test_a_record_of_a_file_of_another_size_is_not_believed(pair: Pair) -> None:
    content = json.loads((pair.folder / RECORD).read_text())
    rewrite(pair, source=content["source"] | {"size": 1})
    report = check(pair.original, pair.folder)
    assert report.notes == ["the conversion record is of another file (its size differs): it is ignored"]
    # Nobody has said how many heads there are, and the converted config is no witness of itself.
    rows = {row["name"]: row["why"] for row in report.assumed}
    assert "taken from the converted model" in rows["num_attention_heads"]


def test_what_a_record_says_is_told_as_the_users_word(pair: Pair) -> None:
    report = check(pair.original, pair.folder)
    words = f"multi_scale_train = True, num_attention_heads = {HEADS}"
    assert report.notes == [f"stated, and shown by nothing in the original: {words}"]
    assert "num_attention_heads" not in {row["name"] for row in report.assumed}


def test_what_the_first_conversion_was_told_travels_along(pair: Pair, tmp_path: Path) -> None:
    """Though the record of the second one is of a folder, and not of the original."""
    again = convert(pair.folder, tmp_path / "again", dtype="float16").path
    made, notes = recorded_conversion(again)
    assert (made.source["size"], made.casts, notes) == (os.path.getsize(pair.original), ["float16"], [])
    assert made.given["num_attention_heads"] == HEADS
    report = check(pair.original, again)
    assert report.verdict == PASS
    assert "num_attention_heads" not in {row["name"] for row in report.assumed}
    widened = check(pair.original, convert(again, tmp_path / "widened", dtype="float32").path)
    assert widened.verdict == "FAIL"
    assert "by its record the weights were rounded to float16 and then to float32, and not once" in widened.notes


def test_a_record_that_contradicts_the_config_fails(pair: Pair) -> None:
    content = json.loads((pair.folder / RECORD).read_text())
    heads = content["hyper_parameters"]["num_attention_heads"] | {"value": 8}
    rewrite(pair, hyper_parameters=content["hyper_parameters"] | {"num_attention_heads": heads})
    report = check(pair.original, pair.folder)
    assert report.verdict == "FAIL"
    assert "num_attention_heads is 4, and has to be 8" in report.reason
    # The user's own word goes before it.
    assert check(pair.original, pair.folder, hyper_parameters={"num_attention_heads": HEADS}).verdict == PASS


def test_which_weights_a_record_says(tmp_path: Path) -> None:
    from makers import pixart, training

    raw = pixart()
    torch.save(training(raw, pixart(seed=5)), tmp_path / "both.pth")
    for weights in ("raw", "ema"):
        out = tmp_path / weights
        convert(
            tmp_path / "both.pth",
            out,
            weights=weights,
            hyper_parameters={"num_attention_heads": HEADS, "image_size": 128},
        )
        assert recorded_conversion(out)[0].source["weights"] == weights
        report = check(tmp_path / "both.pth", out)
        assert (report.verdict, report.original["weights"]) == (PASS, weights)
        wrong = {"raw": "ema", "ema": "raw"}[weights]
        report = check(tmp_path / "both.pth", out, weights=wrong)
        assert report.verdict == "FAIL"
        place = {"raw": "state_dict", "ema": "state_dict_ema"}[weights]
        told = f"the converted model has the {weights} weights of the file, {place} (--weights {weights})"
        assert told in report.reason


def test_a_cast_that_is_none(pair: Pair) -> None:
    with pytest.raises(UsageError, match="`cast` float33: one of float64"):
        check(pair.original, pair.folder, cast="float33")


# Families.


def test_a_family_without_a_net() -> None:
    bare = Family("bare", "Bare", KeyMapping({"a": "b"}), lambda *arguments: None, lambda found: {})
    assert spec_of(bare) is UNAVAILABLE
    assert spec_of(PIXART).parts


def test_without_a_net_only_bytes_and_fields_are_compared(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is no proof of what it computes, but can be one that it is another model."""
    from safetensors.torch import load_file, save_file

    monkeypatch.setattr("converter.parity.opening.spec_of", lambda family: UNAVAILABLE)
    report = check(pair.original, pair.folder)
    assert (report.verdict, report.exit_code) == ("INCONCLUSIVE", 4)
    assert report.reason == (
        "function: the family pixart brings no reference net (`parity`): what it computes was not compared"
    )
    verdicts = {phase.name: phase.verdict for phase in report.phases}
    assert verdicts["weights"] == verdicts["config"] == PASS
    assert verdicts["function"] == verdicts["self-test"] == "NOT RUN"
    path = pair.model / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    state["proj_out.bias"] += 1
    save_file(state, path, metadata={"format": "pt"})
    report = check(pair.original, pair.folder)
    assert (report.verdict, report.exit_code) == ("FAIL", 1)


# A machine that is too small.


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
        ImportError("libcudnn.so: cannot open shared object file"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_machine_lacks_is_no_fault_of_the_model(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: Any) -> Any:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr("converter.nets.streamed.Streamed.forward", fails)
        report = check(pair.original, pair.folder)
    assert (report.verdict, report.exit_code) == ("INCONCLUSIVE", 4)
    assert report.reason.startswith(f"function: this machine cannot run the nets: {type(error).__name__}")
    # Nor has a fault been noticed by it.
    with monkeypatch.context() as patched:
        patched.setattr("converter.parity.selftest.output_with", fails)
        report = check(pair.original, pair.folder)
    assert (report.verdict, report.exit_code) == ("INCONCLUSIVE", 4)
    assert report.reason.startswith("self-test: ")


def test_a_small_model_end_to_end(tmp_path: Path) -> None:
    pair = small(tmp_path)
    assert check(pair.original, pair.folder).verdict == PASS
