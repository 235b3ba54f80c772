"""The cache: the same comparison is looked up, another one never is, and no file can make it crash or lie."""

from __future__ import annotations

import hashlib
import json
import os
import random
import threading
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.conversion.pairs import Pair
from converter.errors import InputError
from converter.parity.ci import cache as module
from converter.parity.ci.cache import MARK, Cache, canonical, digest, key_of, stamp
from converter.parity.provenance import files_of
from converter.parity.waivers import Waiver
from converter.reports.report import Check, Phase, Report

TODAY = date(2026, 6, 1)
WEIGHTS = "diffusion_pytorch_model.safetensors"


def report(verdict: str = "PASS", reason: str = "1.06 times the noise floor (limit 3)") -> Report:
    check = Check("t999 / epsilon", "float64 relative L2", 1e-8, float("inf"), True, "0.1 times")
    return Report(verdict, reason, "pixart", "quick", {"name": "a"}, phases=[Phase("function", verdict, "", [check])],
                  run={"seconds": 3.0})  # fmt: skip


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Path, Path]:
    original, converted = tmp_path / "a.pth", tmp_path / "out"
    original.write_bytes(b"weights")
    (converted / "transformer").mkdir(parents=True)
    (converted / "transformer" / WEIGHTS).write_bytes(b"converted")
    (converted / "transformer" / "config.json").write_text("{}")
    (converted / "conversion.json").write_text("{}")
    (converted / "original_extras.safetensors").write_bytes(b"null caption")
    return original, converted


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def key(sides: tuple[Path, Path], **options: Any) -> str:
    return key_of(Pair(str(sides[0]), str(sides[1]), options), [], TODAY)


# Digests and keys.


def test_the_files_that_count(sides: tuple[Path, Path]) -> None:
    original, converted = sides
    assert list(files_of(original)) == ["a.pth"]
    assert set(files_of(converted)) == {
        f"transformer/{WEIGHTS}",
        "transformer/config.json",
        "conversion.json",
        "original_extras.safetensors",
    }
    # Of the inner folder too: the record and the sidecar lie beside it.
    assert set(files_of(converted / "transformer")) == {
        WEIGHTS,
        "config.json",
        "../conversion.json",
        "../original_extras.safetensors",
    }
    assert digest(original) == {"a.pth": hashlib.sha256(b"weights").hexdigest()}


def test_shards_and_their_index(tmp_path: Path) -> None:
    names = ["m-1.safetensors", "m-2.safetensors"]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    index = {"weight_map": dict(zip("ab", names, strict=True))}
    (tmp_path / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    (tmp_path / "pytorch_model.bin").touch()  # passed over, but stock loaders may not
    assert set(files_of(tmp_path)) == {*names, f"{WEIGHTS}.index.json", "pytorch_model.bin"}


def test_every_file_that_counts_changes_the_key(sides: tuple[Path, Path]) -> None:
    keys = {key(sides)}
    for file in (*files_of(sides[0]).values(), *files_of(sides[1]).values()):
        file.write_bytes(file.read_bytes() + b"x")
        keys.add(key(sides))
    assert len(keys) == 6


def test_a_report_beside_the_weights_changes_nothing(sides: tuple[Path, Path]) -> None:
    before = key(sides)
    (sides[1] / "parity.json").write_text("{}")
    (sides[1] / "parity.html").touch()
    os.utime(sides[0])
    assert key(sides) == before


def test_the_options_that_matter(sides: tuple[Path, Path], tmp_path: Path) -> None:
    cases = tmp_path / "cases.safetensors"
    cases.write_bytes(b"1")
    keys = [
        key(sides),
        key(sides, profile="full"),
        key(sides, weights="ema"),
        key(sides, device="cuda"),
        key(sides, cast="float16"),
        key(sides, self_test="full"),
        key_of(Pair(*map(str, sides), {}, {"num_attention_heads": 4}), [], TODAY),
        key_of(Pair(*map(str, sides), {}, {"num_attention_heads": 8}), [], TODAY),
        key(sides, cases=str(cases)),
    ]
    cases.write_bytes(b"2")
    keys.append(key(sides, cases=str(cases)))
    assert len(set(keys)) == len(keys)
    assert key(sides, family=None, save_failing="failing", progress=print) == keys[0]


def test_the_program_is_part_of_the_key(sides: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    before = key(sides)
    made = module.program()
    assert made["torch"]
    assert len(made["source"]) == 64
    for name in ("converter", "torch", "diffusers", "source"):
        with monkeypatch.context() as patch:
            patch.setattr(module, "program", lambda family, name=name: made | {name: "other"})
            assert key(sides) != before


def test_no_verdict_outlives_a_waiver(sides: tuple[Path, Path]) -> None:
    waiver = Waiver("t999", "float32 relative L2", 3.4, "known", date(2026, 6, 2))
    days = [date(2026, 6, day) for day in (1, 2, 3, 4)]
    first, second, third, fourth = (key_of(Pair(str(sides[0]), str(sides[1])), [waiver], day) for day in days)
    assert first == second
    assert second != third
    assert third == fourth
    assert first != key(sides)


@pytest.mark.parametrize("side", [0, 1])
def test_another_name_is_another_comparison(sides: tuple[Path, Path], side: int) -> None:
    before = key(sides)
    moved = list(sides)
    moved[side] = sides[side].rename(sides[side].with_name("b.pth"))
    assert key((moved[0], moved[1])) != before


def test_what_has_no_digest(sides: tuple[Path, Path], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "none").mkdir()
    for path, words in (("fifo", "FIFO"), ("gone", "No such file"), ("none", "holds no weights")):
        with pytest.raises(InputError, match=words):
            digest(tmp_path / path)
        with pytest.raises(InputError, match=words):
            stamp(tmp_path / path)


def test_a_stamp_sees_a_touched_file(sides: tuple[Path, Path]) -> None:
    before = stamp(sides[1])
    assert stamp(sides[1]) == before
    os.utime(sides[1] / "conversion.json", ns=(0, 1))
    assert stamp(sides[1]) != before


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=30)
@given(st.dictionaries(st.text(), JSON), st.randoms())
def test_the_order_of_keys_is_no_matter(content: dict[str, Any], shuffle: random.Random) -> None:
    items = list(content.items())
    shuffle.shuffle(items)
    assert canonical(dict(items)) == canonical(content)
    assert canonical(content).isascii()


@given(
    st.dictionaries(st.sampled_from("abcd"), st.integers(0, 3) | st.booleans() | st.sampled_from(["0", "1"])),
    st.dictionaries(st.sampled_from("abcd"), st.integers(0, 3) | st.booleans() | st.sampled_from(["0", "1"])),
)
def test_different_options_are_different_text(one: dict[str, Any], other: dict[str, Any]) -> None:
    same = {k: (type(v), v) for k, v in one.items()} == {k: (type(v), v) for k, v in other.items()}
    assert (canonical(one) == canonical(other)) == same


# The file.


def kept(path: Path, key: str = "k") -> Report | None:
    return Cache(path).get(key)


def test_what_is_kept_comes_back_marked(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "deep" / "cache.json")
    assert cache.get("k") is None
    cache.put("k", report(), TODAY)
    cache.save()
    back = kept(tmp_path / "deep" / "cache.json")
    assert back
    assert back.run == {"seconds": 3.0, "cached": "2026-06-01"}
    wanted = report()
    wanted.run, back.run = {}, {}
    assert back.to_json() == wanted.to_json()
    assert cache.notes == []
    assert os.listdir(tmp_path / "deep") == ["cache.json"]


@given(
    st.lists(
        st.tuples(st.sampled_from("kf"), st.sampled_from(["PASS", "FAIL", "INCONCLUSIVE", "REJECTED", "INTERNAL"]))
    )
)
def test_what_is_certain_is_kept_until_something_else_is(folder: Path, runs: list[tuple[str, str]]) -> None:
    path, certain = folder / "runs", dict[str, str]()
    path.unlink(missing_ok=True)
    for key, verdict in runs:
        cache = Cache(path)
        cache.put(key, report(verdict), TODAY)
        cache.save()
        certain |= {key: verdict} if verdict in ("PASS", "FAIL") else {}
    assert {key: back.verdict for key in "kf" if (back := kept(path, key))} == certain


BEGUN = MARK.encode()
CONTENT = st.binary(max_size=20) | st.binary(max_size=20).map(lambda data: BEGUN + data)
CONTENT |= st.integers(0, len(BEGUN)).map(lambda count: BEGUN[:count])
CONTENT |= JSON.map(lambda value: BEGUN + f'"runs":1,"entries":{json.dumps(value)}}}'.encode())
CONTENT |= st.sampled_from([BEGUN + b"[" * 100_000, BEGUN + b'"runs":"x","entries":[]}', b'profile = "quick"'])
CONTENT |= st.just(BEGUN + b'"entries":{"k":{"date":1,"report":2,"sha256":3},"j":4}}')


@given(CONTENT)
def test_a_damaged_cache_is_written_anew_and_another_file_left_alone(folder: Path, content: bytes) -> None:
    path = folder / "any"
    path.write_bytes(content)
    cache = Cache(path)
    assert cache.get("k") is None
    cache.put("k", report(), TODAY)
    assert cache.get("k")
    cache.save()
    if BEGUN.startswith(content[: len(BEGUN)]):
        assert kept(path)
    else:
        assert path.read_bytes() == content
        assert "not a cache of this version" in cache.notes[0]


def test_damage_is_said(tmp_path: Path) -> None:
    (tmp_path / "c").write_text(MARK)
    assert Cache(tmp_path / "c").notes == [
        f"cache {tmp_path / 'c'}: damaged: everything is compared, and it is written anew"
    ]


def test_no_regular_file_is_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/null")):
        cache = Cache(path)
        cache.put("k", report(), TODAY)
        cache.save()
        assert "not a regular file: it is left alone" in cache.notes[0]
    assert sorted(os.listdir(tmp_path)) == ["fifo"]


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = Cache(tmp_path / "file" / "cache.json")
    cache.put("k", report(), TODAY)
    cache.save()
    assert cache.notes
    assert cache.get("k")


def test_a_full_disk_leaves_the_old_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path / "c")
    cache.put("k", report(), TODAY)
    cache.save()
    before = (tmp_path / "c").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    cache.put("j", report(), TODAY)
    monkeypatch.setattr(os, "replace", full)
    cache.save()
    assert cache.notes == [f"cache {tmp_path / 'c'}: not written: No space left on device"]
    assert os.listdir(tmp_path) == ["c"]
    assert (tmp_path / "c").read_bytes() == before


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    cache = Cache(tmp_path / "link")
    cache.put("k", report(), TODAY)
    cache.save()
    assert (tmp_path / "link").is_symlink()
    assert kept(tmp_path / "real")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("c") / "cache.json"
    cache = Cache(path)
    cache.put("pass", report(), TODAY)
    cache.put("fail", report("FAIL", "it goes wrong in block 14"), TODAY)
    cache.save()
    return path


@given(st.data())
def test_no_damage_makes_it_lie(two: Path, data: st.DataObject) -> None:
    content = bytearray(two.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.integers(0, len(content) - 1))
        content[where] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]
    path = two.with_name("damaged")
    path.write_bytes(content)
    cache = Cache(path)
    for key, verdict in (("pass", "PASS"), ("fail", "FAIL")):
        back = cache.get(key)
        assert back is None or (back.verdict, back.run["cached"]) == (verdict, "2026-06-01")


def test_an_entry_under_another_key_is_not_believed(two: Path, tmp_path: Path) -> None:
    content = json.loads(two.read_text())
    entries = content["entries"]
    entries["pass"], entries["fail"] = entries["fail"], entries["pass"]
    (tmp_path / "c").write_text(f'{MARK}"runs":1,"entries":{json.dumps(entries)}}}')
    cache = Cache(tmp_path / "c")
    assert cache.get("pass") is None
    assert cache.get("fail") is None
    assert cache.notes == [f"cache {tmp_path / 'c'}: an entry is damaged: compared again"]


def test_what_nobody_asks_for_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_RUNS", 3)
    for i in range(6):
        cache = Cache(tmp_path / "c")
        if i == 0:
            cache.put("old", report(), TODAY)
        cache.put("used", report(), TODAY) if i == 0 else cache.get("used")
        cache.save()
        cache.save()  # one run, however often it saves
        assert set(json.loads((tmp_path / "c").read_text())["entries"]) == ({"old", "used"} if i < 3 else {"used"})


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 3)
    for name in "abcde":
        cache = Cache(tmp_path / "c")
        cache.put(name, report(), TODAY)
        cache.save()
    assert [name for name in "abcde" if kept(tmp_path / "c", name)] == ["c", "d", "e"]
    monkeypatch.setattr(module, "KEPT_BYTES", 1)
    cache.save()
    assert kept(tmp_path / "c", "e") is None


def test_writers_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "c"

    def write(name: str) -> None:
        cache = Cache(path)
        for i in range(10):
            cache.put(f"{name}{i}", report(), TODAY)
            cache.save()

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = Cache(path)
    assert last.notes == []
    assert os.listdir(tmp_path) == ["c"]
    # Whoever saved last had all of its own.
    assert any(all(last.get(f"{name}{i}") for i in range(10)) for name in "abcd")


def test_what_others_wrote_stays(tmp_path: Path) -> None:
    one, other = Cache(tmp_path / "c"), Cache(tmp_path / "c")
    one.put("one", report(), TODAY)
    one.save()
    other.put("other", report(), TODAY)
    other.save()
    assert kept(tmp_path / "c", "one")
    assert kept(tmp_path / "c", "other")
