"""Kills, full disks, damaged and shrinking files: the target is whole or absent, and nothing is converted wrongly."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from makers import (
    HEADS,
    ROOT,
    Result,
    State,
    convert,
    expected_weights,
    launch,
    pixart,
    raw_bytes,
    save,
    sincos,
    tree,
    within,
)

import converter

Cli = Callable[..., Result]
# The system calls that write tensors.
WRITING = ["pwrite"]
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def flags(source: Path, out: Path, *more: str) -> list[object]:
    return ["--orig_ckpt_path", source, "--dump_path", out, "--num_attention_heads", HEADS, *more]


def leftovers(target: Path) -> list[Path]:
    """What a killed run left beside the target, whatever its name."""
    return sorted(path for path in target.parent.iterdir() if path != target)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, dict[str, bytes]]]:
    """Two checkpoints of a few megabytes, each with what it becomes."""
    place = tmp_path_factory.mktemp("two")
    made = []
    for seed in range(2):
        path = save(pixart(hidden_size=96, depth=6, seed=seed), place / f"{seed}.pth")
        made.append((path, tree(convert(path, place / f"out{seed}").path)))
    return made


# All is imported already in what it forks, which would take longer than to convert.
FORKING = """
import json, os, sys
from converter.cli import convert_main
from converter.jobs import conversions
for line in sys.stdin:
    child = os.fork()
    if not child:
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        sys.argv = ["convert-pixart", *json.loads(line)]
        convert_main()
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture
def forking() -> Iterator[subprocess.Popen[bytes]]:
    """Carries out `convert-pixart` for each line of flags, and prints its process number, and its status at the end."""
    pipe, environment = subprocess.PIPE, os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", FORKING]
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, bufsize=0) as process:
        yield process


def kill_while_writing(forking: subprocess.Popen[bytes], command: list[object], place: Path, delay: float) -> bool:
    """Start the command, and kill it so long after its first trace on the disk; whether it was still running."""
    assert forking.stdin
    assert forking.stdout
    known = set(os.listdir(place))
    forking.stdin.write(json.dumps([str(word) for word in command]).encode() + b"\n")
    child = int(forking.stdout.readline())
    with within(60):
        while not select.select([forking.stdout], [], [], 0.0005)[0] and set(os.listdir(place)) == known:
            pass
    time.sleep(delay)
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    return int(forking.stdout.readline()) != 0


@pytest.mark.slow
def test_kill_at_random_moments(
    forking: subprocess.Popen[bytes], two: list[tuple[Path, dict[str, bytes]]], tmp_path: Path
) -> None:
    """Where there is no target, and where an old one is replaced: it is absent, the old one or the new one, whole."""
    chance, rounds, out = random.Random(4), 26, tmp_path / "out"
    killed = partial = kept = 0
    for i in range(rounds):
        path, wanted = two[i % 4 // 2]
        old = tree(convert(two[1 - i % 4 // 2][0], out).path) if i % 2 else None
        killed += kill_while_writing(forking, flags(path, out, "--overwrite"), tmp_path, chance.uniform(0, 0.06))
        found, now = leftovers(out), tree(out) if out.exists() else None
        assert now in (old, wanted)
        partial += bool(found)
        kept += now == old
        # The next run names what is left, takes nothing from it, and succeeds.
        before = [tree(leftover) for leftover in found]
        done = convert(path, out, overwrite=True)
        assert tree(done.path) == wanted
        assert [tree(leftover) for leftover in found] == before
        for leftover in found:
            assert any(str(leftover) in note and ("interrupted" in note or "earlier" in note) for note in done.notes)
        for folder in (*found, done.path):
            shutil.rmtree(folder)
        assert list(tmp_path.iterdir()) == []
    assert killed >= rounds // 2
    assert partial >= 2  # it was caught in the act
    assert kept >= 1


def test_the_next_run_says_what_a_killed_one_left(two: list[tuple[Path, dict[str, bytes]]], tmp_path: Path) -> None:
    for name in (".out.0123456789abcdef.partial", ".out.0123456789abcdef.old", ".other.0123456789abcdef.partial"):
        (tmp_path / name / "transformer").mkdir(parents=True)
        (tmp_path / name / WEIGHTS).write_text("half")
    result = launch("convert-pixart", *flags(two[0][0], tmp_path / "out"))
    assert result.returncode == 0
    notes = [line for line in result.stdout.splitlines() if line.startswith("note: ")]
    (partial,) = [note for note in notes if ".out.0123456789abcdef.partial" in note]
    (old,) = [note for note in notes if ".out.0123456789abcdef.old" in note]
    assert "interrupted" in partial
    assert "earlier result, whole" in old
    assert not any(".other." in note for note in notes)
    assert tree(tmp_path / "out") == two[0][1]
    assert (tmp_path / ".out.0123456789abcdef.partial" / WEIGHTS).read_text() == "half"


# A disk that is full or fails.


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(pixart(), tmp_path / "made.pth")


@pytest.fixture(params=["absent", "overwrite"])
def target(request: pytest.FixtureRequest, tmp_path: Path, two: list[tuple[Path, dict[str, bytes]]]) -> Iterator[Path]:
    """A target that after the test, which makes the conversion fail, must be as it was: absent, or the old one."""
    place = tmp_path / "work"
    place.mkdir()
    if request.param == "overwrite":
        convert(two[0][0], place / "out")
    yield place / "out"
    if request.param == "overwrite":
        assert os.listdir(place) == ["out"]
        assert tree(place / "out") == two[0][1]
    else:
        assert os.listdir(place) == []


def failing(code: int, after: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Wraps system calls; from the so-many-th call on, counted over all of them, they fail."""
    calls = itertools.count()

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if next(calls) >= after:
                raise OSError(code, os.strerror(code))
            return real(*arguments)

        return call

    return wrap


@pytest.mark.parametrize(
    ("calls", "after"),
    [*((WRITING, after) for after in (0, 1, 7, 40)), *((["fsync"], after) for after in (0, 1, 3)),
     (["write"], 0), (["write"], 1)],  # config.json, conversion.json
)  # fmt: skip
def test_a_disk_that_fills_up_or_fails(
    calls: list[str], after: int, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        with monkeypatch.context() as patch:
            full = failing(code, after)
            for name in calls:
                patch.setattr(os, name, full(getattr(os, name)))
            result = cli("convert-pixart", *flags(source, target, "--overwrite"))
        assert result.returncode == 5
        assert result.stderr == f"convert-pixart: error: {target}: cannot be written: {os.strerror(code)}\n"


def test_a_failure_to_flush_that_is_told_only_once(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    """A system may drop what it could not write, and say so to the first that asks."""
    real, calls = os.fsync, itertools.count()
    failed = failing(errno.EIO, 0)(real)
    monkeypatch.setattr(os, "fsync", lambda fd: (real if next(calls) else failed)(fd))
    result = cli("convert-pixart", *flags(source, target, "--overwrite"))
    assert result.returncode == 5
    assert result.stderr == f"convert-pixart: error: {target}: cannot be written: Input/output error\n"


def test_a_disk_without_room_is_refused_before_writing(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    written: list[object] = []
    for call in WRITING:
        monkeypatch.setattr(os, call, lambda *arguments: written.append(arguments))
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=25, f_bfree=25, f_frsize=4096, f_blocks=100))
    result = cli("convert-pixart", *flags(source, target, "--overwrite"))
    assert result.returncode == 2
    assert "not enough space on the disk" in result.stderr
    assert "102 kB free" in result.stderr
    assert written == []


# A source that fails while it is read.


def is_partial(fd: int) -> bool:
    """Whether a descriptor is of a folder in the making."""
    return ".partial/" in os.readlink(f"/proc/self/fd/{fd}")


def is_open(fd: int, path: Path) -> bool:
    return os.path.samestat(os.fstat(fd), path.stat())


@pytest.mark.parametrize("after", [0, 3, 10, 60])
def test_a_read_error(after: int, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    with monkeypatch.context() as patch:
        real, count = os.preadv, failing(errno.EIO, after)(os.preadv)
        patch.setattr(os, "preadv", lambda fd, *rest: (count if is_open(fd, source) else real)(fd, *rest))
        result = cli("convert-pixart", *flags(source, target, "--overwrite"))
    assert result.returncode == 3
    assert result.stderr.count("\n") == 1
    assert os.strerror(errno.EIO) in result.stderr
    assert str(source) in result.stderr


@pytest.mark.parametrize("after", [0, 1, 2, 9, 60])
@pytest.mark.parametrize("how", ["fails", "ends"])
def test_a_new_file_that_cannot_be_read_back(
    how: str, after: int, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    """It is the disk's fault, not the input's."""
    with monkeypatch.context() as patch:
        real, calls = os.preadv, itertools.count()

        def preadv(fd: int, *rest: Any) -> int:
            if not is_partial(fd) or next(calls) < after:
                return real(fd, *rest)
            if how == "ends":
                return 0
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        patch.setattr(os, "preadv", preadv)
        result = cli("convert-pixart", *flags(source, target, "--overwrite"))
    assert next(calls) > after
    assert result.returncode == 5
    assert result.stderr.count("\n") == 1
    assert str(source) not in result.stderr
    assert ".partial" in result.stderr
    assert "a faulty disk, or another program?" in result.stderr


def after_three_reads(
    path: Path, change: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], Callable[[int], None]]:
    """A `progress` from which on the source is watched: it changes when three runs of its bytes have been moved."""
    calls: Iterator[int] = itertools.count()
    armed = []

    def watch(real: Callable[..., int]) -> Callable[..., int]:
        def call(fd: int, *rest: Any) -> int:
            if armed and is_open(fd, path) and next(calls) == 3:
                change()
            return real(fd, *rest)

        return call

    monkeypatch.setattr(os, "preadv", watch(os.preadv))
    return lambda total: armed.append(total) or (lambda count: None)


@pytest.mark.parametrize("share", [0.9, 0.5, 0.0, None])
def test_a_source_that_shrinks_or_changes_while_it_is_moved(
    share: float | None, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(pixart(hidden_size=240, depth=4), tmp_path / "big.pth")
    size = path.stat().st_size

    def change() -> None:
        if share is not None:
            os.truncate(path, int(size * share))
            return
        with open(path, "r+b") as file:
            file.seek(size * 3 // 4)
            file.write(b"other")

    words = "CRC-32 mismatch" if share is None else "it shrank while it was read"
    with pytest.raises(converter.InputError, match=rf"big\.pth: .*{words}"):
        convert(path, target, progress=after_three_reads(path, change, monkeypatch), overwrite=True)


# A disk that does not give back what was written.


def disk_that_gives_back(
    change: Callable[[bytes, int], bytes], monkeypatch: pytest.MonkeyPatch, *, header: bool
) -> list[int]:
    """What is read of a new file's header, or of its tensors, comes back changed; where, as a list that fills."""
    real, changed = os.preadv, []

    def preadv(fd: int, buffers: list[Any], offset: int) -> int:
        count = real(fd, buffers, offset)
        if is_partial(fd):
            data_starts = 8 + int.from_bytes(os.pread(fd, 8, 0), "little")
            if (offset < data_starts and count > 8) if header else offset >= data_starts:
                before = bytes(buffers[0][:count])
                buffers[0][:count] = after = change(before, offset)
                if after != before:
                    changed.append(offset)
        return count

    monkeypatch.setattr(os, "preadv", preadv)
    return changed


def test_what_is_read_back_wrong_is_never_published(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    chance = random.Random(6)
    with converter.open_checkpoint(convert(source, target.with_name("other")).path / "transformer") as written:
        starts = [tensor.storage.start for tensor in written.values()]
    shutil.rmtree(target.with_name("other"))
    for _ in range(10):
        victim = chance.choice(starts)

        def flip(data: bytes, offset: int, victim: int = victim) -> bytes:
            place = chance.randrange(len(data))
            flipped = bytes([data[place] ^ 1 << chance.randrange(8)])
            return data[:place] + flipped + data[place + 1 :] if offset == victim else data

        with monkeypatch.context() as patch:
            changed = disk_that_gives_back(flip, patch, header=False)
            result = cli("convert-pixart", *flags(source, target, "--overwrite"))
        assert changed
        assert result.returncode == 5
        assert "what was read back is not what was written" in result.stderr
        assert result.stderr.count("\n") == 1


HEADERS = {
    "a key": (b'"proj_out.bias"', b'"proj_out.bims"'),
    "a dtype": (b'"F32"', b'"I32"'),
    "a shape": (b"[96,24]", b"[24,96]"),
    "the metadata": (b'"format":"pt"', b'"format":"tf"'),
    "no JSON": (b"{", b"["),
}


@pytest.mark.parametrize("damage", HEADERS)
def test_a_header_that_is_read_back_wrong(
    damage: str, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    old, new = HEADERS[damage]
    with monkeypatch.context() as patch:
        changed = disk_that_gives_back(lambda data, offset: data.replace(old, new, 1), patch, header=True)
        result = cli("convert-pixart", *flags(source, target, "--overwrite"))
    assert changed
    assert result.returncode == 5
    assert "the header that was read back is not the one that was written" in result.stderr


# Damage to the source: cut, and with flipped bits, anywhere.


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, bytes]]:
    """The smallest whole checkpoint, in its training container, and what it becomes."""
    place = tmp_path_factory.mktemp("tiny")
    state: State = pixart(
        depth=1, hidden_size=8, caption_channels=4, tokens=2, input_size=8, dtype=torch.float16, pred_sigma=False
    )
    content = {"state_dict": state, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}}
    path = save(content, place / "tiny.pth")
    done = convert(path, place / "out")
    assert (done.path / WEIGHTS).read_bytes() == expected_weights(state, place / "by-safetensors")
    assert path.stat().st_size < 20_000
    return path.read_bytes(), tree(done.path)


@pytest.fixture
def no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of conversions: what reaches the disk is tested above."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def test_truncation_anywhere(tiny: tuple[bytes, dict[str, bytes]], tmp_path: Path) -> None:
    """That the reader refuses a file cut at any byte is its own test; here nothing is left behind either."""
    whole, _ = tiny
    sizes = {*range(0, len(whole), 23), *range(len(whole) - 100, len(whole))}
    path, out = tmp_path / "tiny.pth", tmp_path / "out"
    path.write_bytes(whole)
    with open(path, "r+b") as file:
        for size in sorted(sizes, reverse=True):
            file.truncate(size)
            with pytest.raises(converter.InputError) as raised:
                convert(path, out)
            assert str(path) in str(raised.value)
    assert os.listdir(tmp_path) == ["tiny.pth"]


def test_bytes_after_the_end(tiny: tuple[bytes, dict[str, bytes]], tmp_path: Path) -> None:
    path = tmp_path / "tiny.pth"
    for extra in (b"\0", b"x" * 22, tiny[0]):
        path.write_bytes(tiny[0] + extra)
        with pytest.raises(converter.InputError):
            convert(path, tmp_path / "out")
    assert os.listdir(tmp_path) == ["tiny.pth"]


def refusal(path: Path, out: Path, **options: Any) -> str:
    """Why the input is refused; '' where it is converted. Any other error is one."""
    try:
        convert(path, out, **options)
    except converter.InputError as error:
        return str(error)
    return ""


@pytest.mark.slow
@pytest.mark.usefixtures("no_flushing")
@pytest.mark.parametrize("part", range(4))
def test_flipped_bits_over_the_whole_file(part: int, tiny: tuple[bytes, dict[str, bytes]], tmp_path: Path) -> None:
    """The result is the same, bit for bit, or there is none and exit code 3: never another one, never another error.

    Every byte of the first positions, one of three in the pickle, which has one checksum for all, and one of FLIP_STEP
    elsewhere; FLIP_STEP=1 takes all, in ten minutes.
    """
    whole, wanted = tiny
    step = int(os.environ.get("FLIP_STEP", "13" if os.environ.get("CI") else "23"))
    pickled = range(whole.index(b"data.pkl"), whole.index(b"PK\x07\x08"), min(step, 3))
    # The elements that tell the scale are read before their checksum is known.
    table = whole.index(raw_bytes(sincos(8, 4, 1.0).half()))
    places = sorted({*pickled, *range(table, table + 48), *range(0, len(whole), step)})[part::4]
    path, out = tmp_path / "tiny.pth", tmp_path / "out"
    path.write_bytes(whole)
    chance, same, refused = random.Random(part), 0, 0
    with open(path, "r+b", buffering=0) as file:
        for place in places:
            os.pwrite(file.fileno(), bytes([whole[place] ^ 1 << chance.randrange(8)]), place)
            error = refusal(path, out)
            if error:
                assert str(path) in error, place
                assert not out.exists(), place
                refused += 1
            else:
                assert tree(out) == wanted, place
                shutil.rmtree(out)
                same += 1
            os.pwrite(file.fileno(), whole[place : place + 1], place)
    assert os.listdir(tmp_path) == ["tiny.pth"]
    # Nearly everything is under a checksum or compared; what is not (padding, dates, members not read) changes nothing.
    assert refused > 3 * same > 0


@pytest.mark.usefixtures("no_flushing")
def test_a_cut_or_spoiled_safetensors(tiny: tuple[bytes, dict[str, bytes]], tmp_path: Path) -> None:
    """It has no checksums; but its header is either the same or refused, and no length goes unnoticed."""
    data = tiny[1][WEIGHTS]
    header = 8 + int.from_bytes(data[:8], "little")
    path, out = tmp_path / "made.safetensors", tmp_path / "out"
    options = {"image_size": 64, "interpolation_scale": 1.0}
    chance = random.Random(8)
    path.write_bytes(data)
    reference = tree(convert(path, out, **options).path)[WEIGHTS]
    shutil.rmtree(out)
    for size in range(0, len(data), 67):
        path.write_bytes(data[:size])
        assert refusal(path, out, **options)
    for place in range(0, header, 5):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :])
        if refusal(path, out, **options):
            assert not out.exists(), place
        else:
            # Only what means the same: a space for another, a letter in "format".
            assert tree(out)[WEIGHTS] == reference, place
            shutil.rmtree(out)
    assert os.listdir(tmp_path) == ["made.safetensors"]
