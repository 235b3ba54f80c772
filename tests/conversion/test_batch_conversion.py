"""Many conversions: what is done is left alone, what fails stops nothing, and what differs is told by content."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from makers import HEADS, converted, pixart, save, stated, tree

from converter.conversion.batch import worst
from converter.conversion.pairs import Pair, expand
from converter.conversion.up_to_date import is_up_to_date

Cli = Callable[..., object]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    folder.mkdir()
    for i in (9, 10):
        save(pixart(seed=i), folder / f"epoch_{i}.pth")
    (folder / "epoch_11.pth").write_bytes(b"<html>")
    return folder


def statuses(runs: Path, **options: object) -> list[str]:
    pairs = expand(f"{runs}/*.pth", f"{runs.parent}/out/{{stem}}")
    return [o.status for o in converted(pairs, num_attention_heads=HEADS, **options)]


def test_one_failure_does_not_stop_the_rest(runs: Path) -> None:
    (runs / "epoch_12.pth").write_bytes((runs / "epoch_9.pth").read_bytes())
    assert statuses(runs) == ["converted", "converted", "failed", "converted"]
    assert sorted(p.name for p in (runs.parent / "out").iterdir()) == ["epoch_10", "epoch_12", "epoch_9"]


def test_done_ones_are_left_alone(runs: Path) -> None:
    assert statuses(runs) == ["converted", "converted", "failed"]
    before = {path: path.stat().st_mtime_ns for path in (runs.parent / "out").rglob("*")}
    for path in runs.iterdir():
        os.utime(path)  # by content, not by date
    assert statuses(runs) == ["unchanged", "unchanged", "failed"]
    assert statuses(runs, overwrite=True) == ["unchanged", "unchanged", "failed"]
    assert before == {path: path.stat().st_mtime_ns for path in (runs.parent / "out").rglob("*")}


def test_another_epoch_under_the_same_name_is_another_conversion(runs: Path) -> None:
    statuses(runs)
    state = pixart(seed=9)
    state["blocks.1.mlp.fc2.bias"].view(torch.int32)[3] ^= 1  # one bit
    save(state, runs / "epoch_9.pth")
    before = tree(runs.parent / "out")
    assert statuses(runs) == ["failed", "unchanged", "failed"]  # nothing is replaced without being asked
    assert tree(runs.parent / "out") == before
    assert statuses(runs, overwrite=True) == ["converted", "unchanged", "failed"]
    assert statuses(runs) == ["unchanged", "unchanged", "failed"]


def test_another_dtype_is_another_conversion(runs: Path) -> None:
    statuses(runs)
    assert statuses(runs, dtype="float16") == ["failed", "failed", "failed"]
    assert statuses(runs, dtype="float16", overwrite=True) == ["converted", "converted", "failed"]
    assert statuses(runs, dtype="float16") == ["unchanged", "unchanged", "failed"]


@pytest.mark.parametrize("to", ["diffusers", "original", "comfyui"])
def test_every_byte_of_a_result_counts(to: str, tmp_path: Path) -> None:
    """Mutation: wherever a byte of what matters is changed, the result is no longer the one that would be written."""
    source = save(pixart(), tmp_path / "a.pth")
    name = {"diffusers": "out", "original": "out.pth", "comfyui": "out.safetensors"}[to]
    target, options = tmp_path / name, {"to": to, "num_attention_heads": HEADS}
    (outcome,) = converted([Pair(str(source), str(target))], **options)
    assert outcome.status == "converted", outcome.words
    assert is_up_to_date(source, target, **stated(**options)) is not None
    files = [path for path in (target.rglob("*") if target.is_dir() else [target]) if path.is_file()]
    assert files
    for path in files:
        if path.name == "conversion.json":  # it tells of the result, and is none
            continue
        data = path.read_bytes()
        for position in (0, len(data) // 3, len(data) // 2, len(data) - 9):
            changed = bytearray(data)
            changed[position] ^= 0x10
            path.write_bytes(changed)
            if (
                is_up_to_date(source, target, **stated(**options)) is not None
            ):  # a byte between members, or in a header that says the same
                assert path.suffix == ".pth"
                assert _same_tensors(changed, data, tmp_path)
        path.write_bytes(data[:-1])
        assert is_up_to_date(source, target, **stated(**options)) is None
        path.unlink()
        assert is_up_to_date(source, target, **stated(**options)) is None
        path.write_bytes(data)
    assert is_up_to_date(source, target, **stated(**options)) is not None
    if target.is_dir():  # with a file more, of an earlier result of other shards
        record = json.loads((target / "conversion.json").read_text())
        record["written"]["more.safetensors"] = {"size": 0}
        (target / "conversion.json").write_text(json.dumps(record))
        (target / "more.safetensors").touch()
        assert is_up_to_date(source, target, **stated(**options)) is None


def _same_tensors(changed: bytes, data: bytes, tmp: Path) -> bool:
    states = []
    for i, content in enumerate((changed, data)):
        path = tmp / f"{i}.compare.pth"
        path.write_bytes(content)
        states.append(torch.load(path, weights_only=True)["state_dict"])
    return all(torch.equal(states[0][key], tensor) for key, tensor in states[1].items())


def test_nothing_to_hold_is_no_proof(tmp_path: Path) -> None:
    assert (
        is_up_to_date(save(pixart(), tmp_path / "a.pth"), tmp_path / "nowhere", **stated(num_attention_heads=HEADS))
        is None
    )


def test_the_worst_code() -> None:
    cases = {(): 0, (0,): 0, (0, 3): 3, (3, 2): 3, (4, 0): 4, (4, 2): 2, (1, 3): 1, (5, 1): 5}
    assert {codes: worst(codes) for codes in cases} == cases


def test_the_command(runs: Path, cli: Cli) -> None:
    call = ["--orig_ckpt_path", f"{runs}/epoch_*.pth", "--dump_path", f"{runs.parent}/out/{{stem}}"]
    call += ["--num_attention_heads", "4"]
    done = cli("convert-pixart", *call)
    lines = done.stdout.splitlines()
    assert lines[0] == f"converted: {runs}/epoch_9.pth -> {runs.parent}/out/epoch_9"
    assert lines[1] == "  assumed: kv_compress = False"  # one line for each, of what may be many
    assert lines[-1] == "summary: 2 converted, 0 unchanged, 1 failed"
    assert done.returncode == 3
    assert "epoch_11.pth: offset 0: this is an HTML or XML page" in done.stderr
    (runs / "epoch_11.pth").unlink()
    done = cli("convert-pixart", *call, "--json")
    made = json.loads(done.stdout)
    assert (done.returncode, made["ok"]) == (0, True)
    assert made["summary"] == {"converted": 0, "unchanged": 2, "failed": 0}
    shutil.rmtree(runs.parent / "out" / "epoch_9")
    done = cli("convert-pixart", *call, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (runs.parent / "out" / "epoch_9").is_dir()


def test_a_folder_of_checkpoints_and_a_plain_target(runs: Path, cli: Cli) -> None:
    (runs / "checkpoints").mkdir()
    (runs / "epoch_11.pth").unlink()
    for name in ("epoch_9.pth", "epoch_10.pth"):
        (runs / name).rename(runs / "checkpoints" / name)
    call = ["--orig_ckpt_path", runs, "--dump_path", runs.parent / "out", "--num_attention_heads", "4"]
    done = cli("convert-pixart", *call)
    assert done.returncode == 2
    assert f"have the same target {runs.parent}/out: tell their conversions apart with {{run}}/{{stem}}" in done.stderr
    assert not (runs.parent / "out").exists()
    (runs / "checkpoints" / "epoch_9.pth").unlink()
    done = cli("convert-pixart", *call)  # the only one goes where it is told to
    assert done.stdout.endswith("summary: 1 converted, 0 unchanged, 0 failed\n")
    assert (runs.parent / "out" / "conversion.json").exists()


def test_a_dry_run_says_so(runs: Path, cli: Cli) -> None:
    call = ["--orig_ckpt_path", f"{runs}/epoch_*.pth", "--dump_path", f"{runs.parent}/out/{{stem}}", "--dry_run"]
    done = cli("convert-pixart", *call, "--num_attention_heads", "4")
    assert done.stdout.splitlines()[0].startswith("planned: ")
    assert done.stdout.endswith("summary: 2 planned, 0 unchanged, 1 failed\n")
    assert not (runs.parent / "out").exists()


def test_unchanged_ones_keep_their_verdict_and_nothing_but_a_pass_is_kept(runs: Path, cli: Cli) -> None:
    (runs / "epoch_11.pth").unlink()
    call = ["--orig_ckpt_path", f"{runs}/epoch_*.pth", "--dump_path", f"{runs.parent}/out/{{stem}}", "--parity"]
    call += ["--num_attention_heads", "4", "--json"]
    first = cli("convert-pixart", *call)
    assert first.returncode == 0, first.stdout
    verdicts = [row["parity"]["verdict"] for row in json.loads(first.stdout)["conversions"]]
    assert verdicts == ["PASS", "PASS"]
    assert cli("convert-pixart", *call[:-1]).stdout.endswith(
        "summary: 0 converted, 2 unchanged, 0 failed; parity: 2 PASS\n"
    )
    report = runs.parent / "out" / "epoch_10" / "parity.json"
    kept = report.read_text()
    whole = json.loads(kept)
    deep: object = []
    for _ in range(900):
        deep = [deep]
    for spoilt in (
        kept.replace('"verdict": "PASS"', '"verdict": "FAIL"'), "[]", "{", '{"verdict": "PASS"}',
        '{"verdict": "PASS", "reason": "", "phases": []}', json.dumps(whole | {"phases": []}),
        json.dumps(whole | {"phases": [whole["phases"][0] | {"verdict": "FAIL"}, *whole["phases"][1:]]}),
        json.dumps(whole | {"original": whole["original"] | {"sha256": "0" * 64}}),
        json.dumps(whole | {"converted": whole["converted"] | {"sha256": "0" * 64}}),
        json.dumps(whole | {"run": whole["run"] | {"program": {"torch": "1.0"}}}),
        json.dumps({"verdict": "PASS", "reason": "", "phases": [], "original": deep}),
    ):  # fmt: skip
        report.write_text(spoilt)
        again = json.loads(cli("convert-pixart", *call).stdout)
        assert [row["status"] for row in again["conversions"]] == ["unchanged", "unchanged"]
        assert again["conversions"][0]["parity"] == json.loads(first.stdout)["conversions"][0]["parity"]
        made = json.loads(report.read_text())
        assert (made["verdict"], made["original"], len(made["phases"])) == ("PASS", whole["original"], 6)
