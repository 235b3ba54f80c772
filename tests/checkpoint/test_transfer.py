"""Every byte arrives, once, where it is wanted, with its proof; and memory stays that of one tensor."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from concurrent.futures import Future
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import digest, raw_bytes, sincos, within
from safetensors.torch import save_file
from zip_builder import SIX, Watched, parts, pickled, refused, save, storage, tensor, torch_file, zip_file
from zlib_ng.zlib_ng import crc32_combine

from converter.checkpoint import Checkpoint, open_checkpoint
from converter.checkpoint.cast import count_nonfinite
from converter.checkpoint.dtypes import BF16, BY_CODE, F16, F32, F64, DType
from converter.checkpoint.file import InputFile
from converter.checkpoint.tensor import LazyTensor, Storage, row_major
from converter.checkpoint.write import transfer
from converter.checkpoint.write.transfer import CHUNK, Output, TensorCopy
from converter.conversion.buffers import computed
from converter.errors import ConverterError, InputError
from converter.families.sincos import SinCosTable


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


def copies(checkpoint: Checkpoint, fd: int, splits: dict[str, int] | None = None) -> list[TensorCopy]:
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
        made.append(TensorCopy(lazy, outputs))
    return made


def check(checkpoint: Checkpoint, made: list[TensorCopy], fd: int) -> None:
    for copy in made:
        for output in copy.outputs:
            data = os.pread(fd, output.tensor.nbytes, output.tensor.storage.start)
            assert output.digest == digest(data)
        first = copy.outputs[0]
        data = os.pread(fd, copy.tensor.nbytes, first.tensor.storage.start)
        assert data == copy.tensor.read()
        assert copy.crc == zlib.crc32(data)


def not_copied(copy: TensorCopy) -> bool:
    """In the place of `TensorCopy.copied`: everything is read and looked at on its way."""
    return False


@pytest.mark.parametrize("copying", [True, False])
@given(st.data())
@settings(max_examples=40)
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
            patch.setattr(TensorCopy, "copied", not_copied)
        made = copies(checkpoint, file.fileno(), splits)
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
        made = copies(checkpoint, out)
        watched = Watched(monkeypatch, path)
        transfer.transfer(made)
        assert 4 * count <= watched.read < 4 * count + 1000
        check(checkpoint, made, out)


def test_views_laid_out_anew_are_in_memory_one_at_a_time(tmp_path: Path, out: int) -> None:
    """Many columns of one table: each reaches over all of it."""
    rows, columns = 64 * 1024, 4
    table = torch.arange(rows * columns, dtype=torch.float32).reshape(rows, columns)
    torch.save({f"w{n}": table[:, n] for n in range(columns)} | {"own": table.clone().T}, tmp_path / "columns.pth")
    with open_checkpoint(tmp_path / "columns.pth") as checkpoint:
        made = copies(checkpoint, out)
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
            copies(checkpoint, out)
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
        transfer.transfer(copies(checkpoint, out))


@pytest.mark.parametrize("copying", [True, False])
def test_a_file_that_shrinks_stops_the_transfer(
    tmp_path: Path, out: int, monkeypatch: pytest.MonkeyPatch, copying: bool
) -> None:
    count = CHUNK
    data = torch_file({"w": tensor((count,), (1,), source=storage(count=count))}, {"0": bytes(4 * count)})
    path = save(tmp_path, data)
    with open_checkpoint(path) as checkpoint:
        made = copies(checkpoint, out)
        start, real = checkpoint["w"].storage.start, os.preadv

        def shrink(*args: Any) -> int:
            os.truncate(path, start + CHUNK + 5)
            return int(real(*args))

        if not copying:
            monkeypatch.setattr(TensorCopy, "copied", not_copied)
        monkeypatch.setattr(os, "preadv", shrink)
        with within(20), refused(path, "data/0", "it shrank while it was read"):
            transfer.transfer(made)


@pytest.mark.parametrize("copying", [True, False])
def test_a_full_disk_stops_the_transfer(
    tmp_path: Path, out: int, monkeypatch: pytest.MonkeyPatch, copying: bool
) -> None:
    path = save(tmp_path, torch_file({"w": tensor()}, SIX))

    def full(*args: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with within(20), open_checkpoint(path) as checkpoint:
        if not copying:
            monkeypatch.setattr(TensorCopy, "copied", not_copied)
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            transfer.transfer(copies(checkpoint, out))


@pytest.mark.parametrize("copying", [True, False])
def test_bytes_that_arrive_changed_are_noticed(
    tmp_path: Path, out: int, monkeypatch: pytest.MonkeyPatch, copying: bool
) -> None:
    """And are blamed on the disk, not on the source, which is sound."""
    torch.save({"w": torch.arange(90.0)}, tmp_path / "w.pth")
    pwrite = os.pwrite

    def wrong(*args: Any) -> int:
        done = pwrite(*args)
        pwrite(out, b"\x55", 100)
        return done

    if not copying:
        monkeypatch.setattr(TensorCopy, "copied", not_copied)
    monkeypatch.setattr(os, "pwrite", wrong)
    with within(20), open_checkpoint(tmp_path / "w.pth") as checkpoint:
        made = copies(checkpoint, out)
        with pytest.raises(ConverterError, match=r"w\.0: what was read back is not what was written") as caught:
            transfer.transfer(made)
        assert not isinstance(caught.value, InputError)
        assert caught.value.exit_code == 5


def test_no_wait_is_without_an_end(tmp_path: Path, out: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows, Ctrl-C is noticed between two waits only."""
    torch.save({"w": torch.arange(90.0)}, tmp_path / "w.pth")
    pwrite, wait, result, waits = os.pwrite, transfer.wait, Future.result, list[float]()

    def slow(*args: Any) -> int:
        time.sleep(0.1)
        return pwrite(*args)

    def of_finished(future: Future[None], timeout: float | None = None) -> None:
        assert future.done()
        result(future)

    monkeypatch.setattr(TensorCopy, "copied", not_copied)
    monkeypatch.setattr(os, "pwrite", slow)
    monkeypatch.setattr(transfer, "POLL", 0.02)
    monkeypatch.setattr(transfer, "wait", lambda futures, seconds: waits.append(seconds) or wait(futures, seconds))
    monkeypatch.setattr(Future, "result", of_finished)
    with open_checkpoint(tmp_path / "w.pth") as checkpoint:
        transfer.transfer(copies(checkpoint, out))
    assert len(waits) > 1
    assert set(waits) == {0.02}


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_in_proving_stops_the_writing(
    tmp_path: Path, out: int, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    torch.save({f"w{n}": torch.ones(4) for n in range(200)}, tmp_path / "w.pth")
    written: list[str] = []
    with open_checkpoint(tmp_path / "w.pth") as checkpoint:
        made = copies(checkpoint, out)
        failed = threading.Event()

        def fails(self: TensorCopy, *args: Any) -> None:
            failed.set()
            raise failure("the proof fails")

        def slowly(self: TensorCopy) -> bool:
            written.append(self.tensor.key)
            return len(written) > 1 and failed.wait(10)  # the first has to arrive, or there is nothing to prove

        monkeypatch.setattr(TensorCopy, "prove", fails)
        monkeypatch.setattr(TensorCopy, "copied", slowly)
        with within(20), pytest.raises(failure, match="the proof fails"):
            transfer.transfer(made, written=lambda: written.append("all"))
    assert "all" not in written


def test_the_disk_is_put_to_work_once_all_is_written(tmp_path: Path, out: int) -> None:
    torch.save({f"w{n}": torch.full((4,), float(n)) for n in range(20)}, tmp_path / "w.pth")
    with open_checkpoint(tmp_path / "w.pth") as checkpoint:
        seen: list[bytes] = []
        transfer.transfer(copies(checkpoint, out), written=lambda: seen.append(os.pread(out, 1000, 0)))
        assert seen == [b"".join(lazy.read() for lazy in checkpoint.values())]


def test_a_tensor_that_arrives_in_part_is_noticed(tmp_path: Path, out: int) -> None:
    with open_checkpoint(save(tmp_path, torch_file({"w": tensor()}, SIX))) as checkpoint:
        (copy,) = copies(checkpoint, out)
        copy.feed(0, memoryview(bytes(4)))
        with pytest.raises(AssertionError, match="w: 4 of 24 bytes"):
            copy.finish()


# ---------------------------------------------------------------- NaN and infinity


@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64], ids=str)
@given(st.binary(max_size=400))
@settings(max_examples=100)
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
        made = copies(checkpoint, out, {"w": 2})
        transfer.transfer(made)
        assert os.pread(out, 24, 0) == raw
        assert [output.nonfinite for output in made[0].outputs] == [3, 1]


# ---------------------------------------------------------------- casts


def places(fd: int, *wanted: tuple[tuple[int, ...], DType]) -> list[LazyTensor]:
    """Where new tensors of these shapes and dtypes lie in the file, one after the other."""
    position, made = os.fstat(fd).st_size, []
    for n, (shape, dtype) in enumerate(wanted):
        size = prod(shape) * dtype.itemsize
        made.append((f"out.{n}", dtype, shape, position, size))
        position += size
    os.ftruncate(fd, position)
    OPENED.append(file := InputFile(f"/dev/fd/{fd}"))
    return [
        LazyTensor(name, dtype, shape, Storage(file, name, size, start=start), row_major(shape))
        for name, dtype, shape, start, size in made
    ]


def there(fd: int, output: LazyTensor) -> torch.Tensor:
    raw = os.pread(fd, output.nbytes, output.storage.start + output.span[0])
    assert len(raw) == output.nbytes
    dtype = getattr(torch, output.dtype.name)
    return (torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)).reshape(output.shape)


def identical(one: torch.Tensor, other: torch.Tensor) -> bool:
    same = one.dtype == other.dtype and one.shape == other.shape
    return same and raw_bytes(one) == raw_bytes(other)


LENGTH = CHUNK // 4 * 2 + 12_345  # elements: several chunks of every dtype, and none of them whole


@pytest.mark.parametrize("source", [F16, BF16, F32, F64], ids=str)
@pytest.mark.parametrize("target", [F16, BF16, F32], ids=str)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_cast_is_torchs_across_chunks(tmp_path: Path, out: int, source: DType, target: DType, suffix: str) -> None:
    values = (torch.randn(LENGTH, generator=torch.Generator().manual_seed(3)) * 1000).to(getattr(torch, source.name))
    values[[0, CHUNK // source.itemsize - 1, CHUNK // source.itemsize, -1]] = 7e4 if source != F16 else float("inf")
    path = tmp_path / f"w.{suffix}"
    save_file({"w": values}, path) if suffix == "safetensors" else torch.save({"w": values}, path)
    read: list[int] = []
    with open_checkpoint(path) as checkpoint:
        (place,) = places(out, ((LENGTH,), target))
        copy = TensorCopy(checkpoint["w"], [Output(place, out)])
        transfer.transfer([copy], read.append)
        expected = values.to(getattr(torch, target.name))
        assert identical(there(out, place), expected)
        assert sum(read) == place.nbytes == copy.size
        assert copy.outputs[0].digest == digest(raw_bytes(expected))
        assert copy.outputs[0].nonfinite == int((~torch.isfinite(expected)).sum())
        assert copy.overflowed == int((torch.isfinite(values) & torch.isinf(expected)).sum())
        assert (copy.overflowed > 0) == (target == F16 and source != F16)
        if source != target:
            assert copy.crc == zlib.crc32(raw_bytes(expected))


def test_casts_of_views_split_and_beside_what_is_not_cast(tmp_path: Path, out: int) -> None:
    """Transposed, strided, shared, split into rows, and one tensor in three dtypes at once."""
    random = torch.Generator().manual_seed(1)
    fused = torch.randn(12, 30_011, generator=random) * 1e5
    views = {"t": fused.T, "every": fused[:, 1::2], "rows": fused[4:8], "all": fused, "none": fused[:0],
             "one": fused[0, 0]}  # fmt: skip
    torch.save(views, tmp_path / "w.pth")
    with open_checkpoint(tmp_path / "w.pth") as checkpoint:
        made, expected = [], []
        for key, view in views.items():
            for dtype in (F16, BF16, F32):
                count = 2 if view.ndim and view.shape[0] in (4, 12) else 1
                shape = (view.shape[0] // count, *view.shape[1:]) if count > 1 else tuple(view.shape)
                outputs = places(out, *[(shape, dtype)] * count)
                made.append(TensorCopy(checkpoint[key], [Output(place, out) for place in outputs]))
                rounded = view.to(getattr(torch, dtype.name))
                expected.append(list(zip(outputs, rounded.chunk(count) if count > 1 else [rounded], strict=True)))
        transfer.transfer(made)
        for copy, pairs in zip(made, expected, strict=True):
            assert all(identical(there(out, place), wanted) for place, wanted in pairs)
            infinite = sum(int(torch.isinf(wanted).sum()) for _, wanted in pairs)
            assert copy.overflowed == sum(o.nonfinite for o in copy.outputs) == infinite
        assert sum(copy.overflowed for copy in made) > 0


@pytest.mark.parametrize("casting", [True, False])
def test_two_write_where_there_is_rounding_to_do_and_else_one(
    tmp_path: Path, out: int, monkeypatch: pytest.MonkeyPatch, casting: bool
) -> None:
    values = {f"w{n}": torch.randn(50_000, generator=torch.Generator().manual_seed(n)) for n in range(40)}
    torch.save(values, tmp_path / "w.pth")
    writers, real, met = set(), TensorCopy.feed, threading.Barrier(2)

    def feed(self: TensorCopy, *args: Any) -> None:
        if casting and threading.get_ident() not in writers:
            writers.add(threading.get_ident())
            met.wait(20)  # both have to be at it at the same time
        writers.add(threading.get_ident())
        real(self, *args)

    monkeypatch.setattr(TensorCopy, "feed", feed)
    monkeypatch.setattr(TensorCopy, "copied", not_copied)
    dtype = BF16 if casting else F32
    with within(30), open_checkpoint(tmp_path / "w.pth") as checkpoint:
        outputs = places(out, *[((50_000,), dtype)] * 40)
        copies = [TensorCopy(checkpoint[f"w{n}"], [Output(place, out)]) for n, place in enumerate(outputs)]
        seen: list[bool] = []

        def written() -> None:
            seen.append(all(there(out, p).any() for p in outputs))

        transfer.transfer(copies, written=written)
        for n, place in enumerate(outputs):
            assert identical(there(out, place), values[f"w{n}"].to(getattr(torch, dtype.name)))
    assert len(writers) == (2 if casting else 1)
    assert seen == [True]  # once, by whoever was last


@pytest.mark.parametrize("count", [1, 5, 40])
def test_a_writer_that_fails_stops_the_other(
    tmp_path: Path, out: int, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    torch.save({f"w{n}": torch.randn(1000) for n in range(count)}, tmp_path / "w.pth")
    real, calls, told = transfer.cast, [], []

    def fails(*args: Any) -> Any:
        calls.append(1)
        if len(calls) > count // 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    monkeypatch.setattr(transfer, "cast", fails)
    with within(20), open_checkpoint(tmp_path / "w.pth") as checkpoint:
        outputs = places(out, *[((1000,), F16)] * count)
        made = [TensorCopy(checkpoint[f"w{n}"], [Output(place, out)]) for n, place in enumerate(outputs)]
        with pytest.raises(OSError, match="No space left"):
            transfer.transfer(made, written=lambda: told.append(1))
    assert told == []


def test_a_failure_of_who_is_told_that_all_is_written_is_raised(tmp_path: Path, out: int) -> None:
    """And nobody waits for ever for what is never handed on."""

    def fails() -> None:
        raise RuntimeError("no flushing")

    torch.save({"w": torch.ones(1000)}, tmp_path / "w.pth")
    for dtype in (F32, F16):
        with within(20), open_checkpoint(tmp_path / "w.pth") as checkpoint:
            (place,) = places(out, ((1000,), dtype))
            with pytest.raises(RuntimeError, match="no flushing"):
                transfer.transfer([TensorCopy(checkpoint["w"], [Output(place, out)])], written=fails)


@pytest.mark.parametrize("target", [F32, F16], ids=str)
def test_damage_is_found_on_the_way_through_a_cast(tmp_path: Path, out: int, target: DType) -> None:
    path = tmp_path / "w.pth"
    torch.save({"w": torch.arange(300_000).double()}, path)
    content = bytearray(path.read_bytes())
    with open_checkpoint(path) as checkpoint:
        content[checkpoint["w"].storage.start + 1_500_000] ^= 1
    path.write_bytes(content)
    with within(20), open_checkpoint(path) as checkpoint, refused(path, "data/0", "CRC-32 mismatch"):
        (place,) = places(out, ((300_000,), target))
        transfer.transfer([TensorCopy(checkpoint["w"], [Output(place, out)])])


@pytest.mark.parametrize("source", ["pth", "safetensors", "computed"])
@pytest.mark.parametrize("target", [F32, F16], ids=str)
def test_a_byte_changed_on_the_way_to_the_disk_is_found(
    tmp_path: Path, out: int, monkeypatch: pytest.MonkeyPatch, source: str, target: DType
) -> None:
    """Whatever the source can say of itself: a cast has no checksum from it, nor has a safetensors file."""
    table = SinCosTable(16, 40, 1.0)
    values = torch.randn(1, 1600, 16)
    path = tmp_path / f"w.{source}"
    save_file({"w": values}, path) if source == "safetensors" else torch.save({"w": values}, path)
    real = transfer.write_at

    def wrong(fd: int, data: memoryview, offset: int) -> None:
        real(fd, data, offset)
        if offset <= 900 < offset + len(data):
            os.pwrite(fd, bytes([os.pread(fd, 1, 900)[0] ^ 16]), 900)

    monkeypatch.setattr(TensorCopy, "copied", not_copied)
    monkeypatch.setattr(transfer, "write_at", wrong)
    with within(20), open_checkpoint(path) as checkpoint:
        tensor = computed("w", table, target) if source == "computed" else checkpoint["w"]
        (place,) = places(out, ((1, 1600, 16), target))
        with pytest.raises(ConverterError, match=r"out\.0: what was read back is not what was written") as caught:
            transfer.transfer([TensorCopy(tensor, [Output(place, out)])])
    assert caught.value.exit_code == 5


# ---------------------------------------------------------------- several sources, several parts, no source


@pytest.mark.parametrize("dtype", [F32, F16], ids=str)
def test_several_sources_are_put_together_along_the_rows(tmp_path: Path, out: int, dtype: DType) -> None:
    """Of different heights, one of them a transposed view, one empty, over more than a chunk."""
    wide = 70_001
    sources = [torch.randn(rows, wide) for rows in (3, 5, 0, 1)]
    sources[1] = torch.randn(wide, 5).T
    torch.save({f"w{n}": values for n, values in enumerate(sources)}, tmp_path / "w.pth")
    with open_checkpoint(tmp_path / "w.pth") as checkpoint:
        before, whole = places(out, ((7,), F64), ((9, wide), dtype))
        made, row = [], 0
        for n, values in enumerate(sources):
            made.append(TensorCopy(checkpoint[f"w{n}"], [Output(whole[row : row + len(values)], out)]))
            row += len(values)
        transfer.transfer(made)
        expected = torch.cat(sources).to(getattr(torch, dtype.name))
        assert identical(there(out, whole), expected)
        assert not there(out, before).any()
        for copy, values in zip(made, sources, strict=True):
            rounded = raw_bytes(values.to(getattr(torch, dtype.name)))
            assert copy.outputs[0].digest == digest(rounded)
        crc = 0
        for copy in made:
            crc = crc32_combine(crc, copy.outputs[0].crc, copy.size)
        assert crc == zlib.crc32(raw_bytes(expected))


def test_a_source_is_read_once_however_often_it_is_written(
    tmp_path: Path, out: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = torch.randn(6, 100_000)
    torch.save({"w": values}, tmp_path / "w.pth")
    with open_checkpoint(tmp_path / "w.pth") as checkpoint:
        specs = [((6, 100_000), F32), ((6, 100_000), F16), *[((2, 100_000), BF16)] * 3, *[((3, 100_000), F32)] * 2]
        outputs = places(out, *specs)
        groups = [outputs[:1], outputs[1:2], outputs[2:5], outputs[5:]]
        made = [TensorCopy(checkpoint["w"], [Output(place, out) for place in group]) for group in groups]
        watched = Watched(monkeypatch, tmp_path / "w.pth")
        transfer.transfer(made)
        monkeypatch.undo()
        # Its headers are read a second time, to find where it lies.
        assert values.nbytes <= watched.read < values.nbytes + 1000
        for group in groups:
            joined = torch.cat([there(out, place) for place in group])
            assert identical(joined, values.to(getattr(torch, group[0].dtype.name)))


@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64], ids=str)
def test_a_computed_table_is_written_like_one_of_a_file(tmp_path: Path, out: int, dtype: DType) -> None:
    """Whole, in halves at once, and beside a file's tensors; no chunk ends where a row does."""
    table, expected = SinCosTable(48, 80, 2.0), sincos(48, 80, 2.0).to(getattr(torch, dtype.name))
    lazy = computed("pos_embed", table, dtype)
    torch.save({"w": torch.ones(4)}, tmp_path / "w.pth")
    with open_checkpoint(tmp_path / "w.pth") as checkpoint:
        one, other, beside = places(out, ((1, 6400, 48), dtype), ((6400, 48), dtype), ((4,), F16))
        halves = [Output(other[:3200], out), Output(other[3200:], out)]
        made = [TensorCopy(lazy, [Output(one, out)]), TensorCopy(lazy, halves),
                TensorCopy(checkpoint["w"], [Output(beside, out)])]  # fmt: skip
        transfer.transfer(made)
    assert identical(there(out, one), expected)
    assert identical(there(out, other), expected[0])
    assert identical(there(out, beside), torch.ones(4).half())
    assert made[0].outputs[0].digest == digest(raw_bytes(expected))
    assert made[0].crc == made[1].crc == zlib.crc32(raw_bytes(expected))


# ---------------------------------------------------------------- the digest of a record, in place of a checksum


@pytest.fixture
def unchecked(tmp_path: Path) -> Path:
    """A tensor in a file without checksums, of more than a chunk."""
    save_file({"w": torch.arange(400_000.0).reshape(4, -1)}, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


ZERO = f"blake3:{'0' * 64}"


@pytest.mark.parametrize("said", ["right", "right by SHA-256", "wrong", "upper case", "nothing"])
@pytest.mark.parametrize("count", [1, 2])
def test_what_was_copied_and_has_the_recorded_digest_is_proven(
    unchecked: Path, out: int, monkeypatch: pytest.MonkeyPatch, said: str, count: int
) -> None:
    """Without reading the source again; where the digest is another (it was trained since), it is read once more."""
    with open_checkpoint(unchecked) as checkpoint:
        lazy = checkpoint["w"]
        of_earlier = "sha256:" + hashlib.sha256(lazy.read()).hexdigest()
        right = of_earlier if "SHA-256" in said else digest(lazy.read())
        stated = {"wrong": ZERO, "upper case": f"blake3:{right[7:].upper()}", "nothing": ""}.get(said, right)
        outputs = places(out, *[((4 // count, 100_000), F32)] * count)
        copy = TensorCopy(lazy, [Output(place, out) for place in outputs], stated)
        watched = Watched(monkeypatch, unchecked)
        transfer.transfer([copy])
        monkeypatch.undo()
        assert torch.cat([there(out, place) for place in outputs]).equal(lazy.torch())
        copied, proven = count == 1 and bool(stated), said.startswith("right")
        assert watched.read == (2 if copied and not proven else 1) * lazy.nbytes
        assert copy.read == (right if stated else "")
        assert copy.crc == (None if copied and proven else zlib.crc32(lazy.read()))


@pytest.mark.parametrize("said", ["right", "wrong"])
def test_a_copy_that_arrives_changed_is_found_whatever_the_record_says(
    unchecked: Path, out: int, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    real = Storage.copy_to

    def wrong(self: Storage, offset: int, count: int, fd: int, position: int) -> bool:
        done = real(self, offset, count, fd, position)
        os.pwrite(fd, b"\x55", position + count // 2)
        return done

    monkeypatch.setattr(Storage, "copy_to", wrong)
    with within(20), open_checkpoint(unchecked) as checkpoint:
        right = digest(checkpoint["w"].read())
        (place,) = places(out, ((4, 100_000), F32))
        copy = TensorCopy(checkpoint["w"], [Output(place, out)], right if said == "right" else ZERO)
        with pytest.raises(ConverterError, match="what was read back is not what was written"):
            transfer.transfer([copy])


def test_a_digest_that_the_damage_fits_does_not_pass_for_the_source(unchecked: Path, out: int) -> None:
    """The record speaks of the bytes that lie in the source: a changed source has another digest, and is read."""
    with open_checkpoint(unchecked) as checkpoint:
        old = digest(checkpoint["w"].read())
    trained = torch.arange(400_000.0).reshape(4, -1) + 1
    save_file({"w": trained}, unchecked)
    with open_checkpoint(unchecked) as checkpoint:
        (place,) = places(out, ((4, 100_000), F32))
        copy = TensorCopy(checkpoint["w"], [Output(place, out)], old)
        transfer.transfer([copy])
        assert identical(there(out, place), trained)
        assert copy.outputs[0].digest == digest(raw_bytes(trained)) != old


def test_a_digest_proves_nothing_of_a_cast_and_costs_nothing(
    unchecked: Path, out: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_checkpoint(unchecked) as checkpoint:
        lazy = checkpoint["w"]
        (place,) = places(out, ((4, 100_000), BF16))
        copy = TensorCopy(lazy, [Output(place, out)], digest(lazy.read()))
        watched = Watched(monkeypatch, unchecked)
        transfer.transfer([copy])
        assert watched.read == lazy.nbytes
        assert identical(there(out, place), lazy.torch().bfloat16())


def test_outputs_that_do_not_add_up_are_no_delivery(tmp_path: Path, out: int) -> None:
    torch.save({"w": torch.ones(6)}, tmp_path / "w.pth")
    with open_checkpoint(tmp_path / "w.pth") as checkpoint:
        (place,) = places(out, ((5,), F32))
        with pytest.raises(AssertionError, match="w"):
            TensorCopy(checkpoint["w"], [Output(place, out)])
