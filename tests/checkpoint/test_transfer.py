"""Every byte arrives, once, where it is wanted, with its proof; and memory stays that of one tensor."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forge import SIX, parts, pickled, refused, save, storage, tensor, torch_file, within, zip_file
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.checkpoint import Checkpoint, open_checkpoint, transfer
from converter.checkpoint.cast import count_nonfinite
from converter.checkpoint.dtypes import BF16, BY_CODE, F16, F32, F64
from converter.checkpoint.file import InputFile
from converter.checkpoint.tensor import LazyTensor, Storage, row_major
from converter.checkpoint.transfer import CHUNK, Delivery, Output, in_threads, write_at
from converter.errors import ConverterError, InputError


@pytest.fixture
def out(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


@pytest.fixture(autouse=True)
def readers() -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop().close()


OPENED: list[InputFile] = []


def deliveries(checkpoint: Checkpoint, fd: int, splits: dict[str, int] | None = None) -> list[Delivery]:
    """All tensors, one after the other, some in several equal parts."""
    os.ftruncate(fd, sum(lazy.nbytes for lazy in checkpoint.values()))
    OPENED.append(InputFile(f"/dev/fd/{fd}"))
    made, position = [], 0
    for key, lazy in checkpoint.items():
        count = (splits or {}).get(key, 1)
        shape = (lazy.shape[0] // count, *lazy.shape[1:]) if count > 1 else lazy.shape
        outputs = []
        for n in range(count):
            place = Storage(OPENED[-1], f"{key}.{n}", lazy.nbytes // count, start=position)
            outputs.append(Output(LazyTensor(place.name, lazy.dtype, shape, place, row_major(shape)), fd))
            position += place.size
        made.append(Delivery(lazy, outputs))
    return made


def check(checkpoint: Checkpoint, made: list[Delivery], fd: int) -> None:
    for delivery in made:
        for output in delivery.outputs:
            data = os.pread(fd, output.tensor.nbytes, output.tensor.storage.start)
            assert output.sha256 == hashlib.sha256(data).hexdigest()
        first = delivery.outputs[0]
        data = os.pread(fd, delivery.tensor.nbytes, first.tensor.storage.start)
        assert data == delivery.tensor.read()
        assert delivery.crc == zlib.crc32(data)


def no_copying(*args: Any) -> int:
    raise OSError(errno.EXDEV, "Invalid cross-device link")


@pytest.mark.parametrize("copying", [True, False])
@given(st.data())
@settings(max_examples=40, deadline=None)
def test_all_bytes_of_any_views_arrive(
    tmp_path_factory: pytest.TempPathFactory, copying: bool, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp()
    fused = torch.arange(data.draw(st.sampled_from([48, 12 * 50_000]))).float().reshape(12, -1)
    views = {"q": fused[:4], "k": fused[4:8].T, "v": fused[8:, 1::2], "all": fused, "t": fused.T, "none": fused[:0],
             "own": fused.clone(), "half": fused[:, :2].half(), "scalar": torch.tensor(7.0)}  # fmt: skip
    chosen = data.draw(st.lists(st.sampled_from(sorted(views)), min_size=1, unique=True))
    splits = {key: data.draw(st.sampled_from([1, 2, 4])) for key in chosen if key in ("q", "all", "t", "none", "own")}
    path = folder / "views.pth"
    torch.save({key: views[key] for key in chosen}, path)
    read: list[int] = []
    with (
        open(folder / "out", "w+b") as file,
        open_checkpoint(path) as checkpoint,
        pytest.MonkeyPatch.context() as patch,
    ):
        if not copying:
            patch.setattr(os, "copy_file_range", no_copying)
        made = deliveries(checkpoint, file.fileno(), splits)
        transfer.transfer(made, read.append)
        check(checkpoint, made, file.fileno())
        assert sum(read) == sum(lazy.nbytes for lazy in checkpoint.values())


def test_a_storage_is_read_once_for_all_that_lie_in_it(
    tmp_path: Path, out: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = CHUNK  # 4 chunks
    one = storage(count=count)
    views = {f"w{n}": tensor((1000,), (1,), 1000 * n, source=one) for n in range(50)}
    path = save(tmp_path, torch_file(views, {"0": np.arange(count, dtype="<f4").tobytes()}))
    with open_checkpoint(path) as checkpoint:
        made = deliveries(checkpoint, out)
        read, preadv, source = [], os.preadv, checkpoint.files[0]._fd

        def counting(fd: int, views: Any, at: int) -> int:
            read.extend([len(views[0])] * (fd == source))
            return preadv(fd, views, at)

        monkeypatch.setattr(os, "preadv", counting)
        transfer.transfer(made)
        assert 4 * count <= sum(read) < 4 * count + 1000
        check(checkpoint, made, out)


def test_views_laid_out_anew_are_in_memory_one_at_a_time(tmp_path: Path, out: int) -> None:
    """Many columns of one table: each reaches over all of it."""
    rows, columns = 64 * 1024, 4
    table = torch.arange(rows * columns, dtype=torch.float32).reshape(rows, columns)
    torch.save({f"w{n}": table[:, n] for n in range(columns)} | {"own": table.clone().T}, tmp_path / "columns.pth")
    with open_checkpoint(tmp_path / "columns.pth") as checkpoint:
        made = deliveries(checkpoint, out)
        tracemalloc.start()
        try:
            transfer.transfer(made)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        # Two workers, each with a chunk, a span, and the elements of that span in order.
        assert peak < 2 * (CHUNK + 2 * table.nbytes) + CHUNK
        check(checkpoint, made, out)


def test_nothing_is_allocated_before_it_is_needed(tmp_path: Path, out: int) -> None:
    table = torch.zeros(1 << 20).reshape(-1, 2)
    torch.save({"w": table.T}, tmp_path / "w.pth")
    with open_checkpoint(tmp_path / "w.pth") as checkpoint:
        tracemalloc.start()
        try:
            deliveries(checkpoint, out)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize("view", [tensor(), tensor((1,), (1,)), tensor((3, 2), (1, 3)), tensor((0,), (1,))],
                         ids=["whole", "part", "transposed", "empty"])  # fmt: skip
def test_damage_anywhere_in_a_storage_stops_the_transfer(tmp_path: Path, out: int, view: Any) -> None:
    data = bytearray(zip_file(parts(pickled({"w": view}), SIX)))
    data[data.index(SIX["0"]) + 21] ^= 4
    path = save(tmp_path, bytes(data))
    with within(20), open_checkpoint(path) as checkpoint, refused(path, "data/0", "CRC-32 mismatch"):
        transfer.transfer(deliveries(checkpoint, out))


@pytest.mark.parametrize("copying", [True, False])
def test_a_file_that_shrinks_stops_the_transfer(
    tmp_path: Path, out: int, monkeypatch: pytest.MonkeyPatch, copying: bool
) -> None:
    count = CHUNK
    data = torch_file({"w": tensor((count,), (1,), source=storage(count=count))}, {"0": bytes(4 * count)})
    path = save(tmp_path, data)
    with open_checkpoint(path) as checkpoint:
        made = deliveries(checkpoint, out)
        start, call = checkpoint["w"].storage.start, "copy_file_range" if copying else "preadv"
        real = getattr(os, call)

        def shrink(*args: Any) -> int:
            os.truncate(path, start + CHUNK + 5)
            return int(real(*args))

        if not copying:
            monkeypatch.setattr(os, "copy_file_range", no_copying)
        monkeypatch.setattr(os, call, shrink)
        with within(20), refused(path, "data/0", "it shrank while it was read"):
            transfer.transfer(made)


@pytest.mark.parametrize("call", ["copy_file_range", "pwrite"])
def test_a_full_disk_stops_the_transfer(tmp_path: Path, out: int, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = save(tmp_path, torch_file({"w": tensor()}, SIX))

    def full(*args: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with within(20), open_checkpoint(path) as checkpoint:
        monkeypatch.setattr(os, "copy_file_range", no_copying)
        monkeypatch.setattr(os, call, full)
        with pytest.raises(OSError, match="No space left"):
            transfer.transfer(deliveries(checkpoint, out))


def test_what_the_system_cannot_copy_is_read_and_written(
    tmp_path: Path, out: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the start, half-way, or because there is no such call."""
    torch.save({"w": torch.arange(90.0).reshape(6, 15)}, tmp_path / "w.pth")
    copy = os.copy_file_range
    calls: list[int] = []

    def copies_once(*args: Any) -> int:
        calls.append(1)
        return copy(*args) if len(calls) == 1 else no_copying()

    for answer in (no_copying, copies_once, None):
        if answer:
            monkeypatch.setattr(os, "copy_file_range", answer)
        else:
            monkeypatch.delattr(os, "copy_file_range")
        os.truncate(out, 0)
        with open_checkpoint(tmp_path / "w.pth") as checkpoint:
            made = deliveries(checkpoint, out, {"w": 3})
            transfer.transfer(made)
            check(checkpoint, made, out)
    assert len(calls) == 2


@pytest.mark.parametrize("call", ["copy_file_range", "pwrite"])
def test_bytes_that_arrive_changed_are_noticed(
    tmp_path: Path, out: int, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """And are blamed on the disk, not on the source, which is sound."""
    torch.save({"w": torch.arange(90.0)}, tmp_path / "w.pth")
    pwrite, real = os.pwrite, getattr(os, call)

    def wrong(*args: Any) -> int:
        done = int(real(*args))
        pwrite(out, b"\x55", 100)
        return done

    monkeypatch.setattr(os, "copy_file_range", no_copying)
    monkeypatch.setattr(os, call, wrong)
    with within(20), open_checkpoint(tmp_path / "w.pth") as checkpoint:
        made = deliveries(checkpoint, out)
        with pytest.raises(ConverterError, match=r"w\.0: what was read back is not what was written") as caught:
            transfer.transfer(made)
        assert not isinstance(caught.value, InputError)
        assert caught.value.exit_code == 5


def test_short_writes_are_continued(out: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, view, at: pwrite(fd, view[:7], at))
    write_at(out, bytes(range(100)), 5)
    assert os.pread(out, 200, 0) == bytes(5) + bytes(range(100))


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_the_first_failure_stops_the_other_thread(failure: type[BaseException]) -> None:
    begun, stopped = threading.Event(), []

    def fails(stop: threading.Event) -> None:
        begun.wait(10)
        raise failure("the first")

    def goes_on(stop: threading.Event) -> None:
        begun.set()
        stopped.append(stop.wait(10))

    for works in ([fails, goes_on], [goes_on, fails]):
        begun.clear()
        with within(20), pytest.raises(failure, match="the first"):
            in_threads(*works)
    assert stopped == [True, True]


def test_a_failure_in_proving_stops_the_writing(tmp_path: Path, out: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({f"w{n}": torch.ones(4) for n in range(200)}, tmp_path / "w.pth")
    written: list[str] = []
    with open_checkpoint(tmp_path / "w.pth") as checkpoint:
        made = deliveries(checkpoint, out)
        failed = threading.Event()

        def fails(self: Delivery, *args: Any) -> None:
            failed.set()
            raise RuntimeError("the proof fails")

        def slowly(self: Delivery) -> bool:
            written.append(self.tensor.key)
            return failed.wait(10)

        monkeypatch.setattr(Delivery, "prove", fails)
        monkeypatch.setattr(Delivery, "copied", slowly)
        with within(20), pytest.raises(RuntimeError, match="the proof fails"):
            transfer.transfer(made, written=lambda: written.append("all"))
    assert "all" not in written


def test_the_disk_is_put_to_work_once_all_is_written(tmp_path: Path, out: int) -> None:
    torch.save({f"w{n}": torch.full((4,), float(n)) for n in range(20)}, tmp_path / "w.pth")
    with open_checkpoint(tmp_path / "w.pth") as checkpoint:
        seen: list[bytes] = []
        transfer.transfer(deliveries(checkpoint, out), written=lambda: seen.append(os.pread(out, 1000, 0)))
        assert seen == [b"".join(lazy.read() for lazy in checkpoint.values())]


def test_a_tensor_that_arrives_in_part_is_noticed(tmp_path: Path, out: int) -> None:
    with open_checkpoint(save(tmp_path, torch_file({"w": tensor()}, SIX))) as checkpoint:
        (delivery,) = deliveries(checkpoint, out)
        delivery.feed(0, memoryview(bytes(4)))
        with pytest.raises(AssertionError, match="w: 4 of 24 bytes"):
            delivery.finish()


# ---------------------------------------------------------------- NaN and infinity


@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64], ids=str)
@given(st.binary(max_size=400))
@settings(max_examples=100, deadline=None)
def test_nonfinite_elements_are_counted_as_torch_counts_them(dtype: Any, raw: bytes) -> None:
    raw += {2: b"\x80\x7f\x00\x7c\x80\xff\xff\xff", 4: b"\0\0\x80\x7f\1\0\x80\x7f", 8: b"\0\0\0\0\0\0\xf0\xff"}[
        dtype.itemsize
    ]
    raw = raw[: len(raw) // dtype.itemsize * dtype.itemsize]
    values = torch.frombuffer(bytearray(raw), dtype=getattr(torch, dtype.name))
    assert count_nonfinite(memoryview(raw), dtype) == int((~torch.isfinite(values)).sum())


@pytest.mark.parametrize("code", ["BOOL", "U8", "I8", "I16", "I32", "I64"])
def test_integers_are_always_finite(code: str) -> None:
    assert count_nonfinite(memoryview(b"\xff" * 64), BY_CODE[code]) == 0


def test_nonfinite_elements_arrive_bit_for_bit_and_counted(tmp_path: Path, out: int) -> None:
    raw = np.array([0x7FC00001, 0xFFC00000, 0x7F800001, 0x7F800000, 1, 2], "<u4").tobytes()
    with open_checkpoint(save(tmp_path, torch_file({"w": tensor()}, {"0": raw}))) as checkpoint:
        made = deliveries(checkpoint, out, {"w": 2})
        transfer.transfer(made)
        assert os.pread(out, 24, 0) == raw
        assert [output.nonfinite for output in made[0].outputs] == [3, 1]
