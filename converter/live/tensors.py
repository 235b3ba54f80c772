"""The tensors of a plan as tensors of torch: pages of their file where that is possible, else filled as they are read.

Every byte is read once, as a conversion reads it: it proves the CRC, and counts NaN, infinity and zeros. Torch is not
imported before a tensor is filled, so that files can be read while it is.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..checkpoint import DType, LazyTensor
from ..checkpoint.cast import count_nonfinite, trailing_zeros
from ..checkpoint.digest import Digest
from ..checkpoint.file import InputFile
from ..checkpoint.tensor import CHUNK
from ..conversion.to_diffusers import TensorWrites
from ..conversion.write import TensorWrite, Written

if TYPE_CHECKING:
    import torch

MOST_THREADS = 4
Tensors = dict[str, Any]  # of torch, by key


class Pages:
    """The parts of files that hold these tensors, mapped privately: what is written to them never reaches the file."""

    def __init__(self, tensors: Iterable[LazyTensor]) -> None:
        spans: dict[InputFile, tuple[int, int]] = {}
        for tensor in tensors:
            start, stop = _in_file(tensor)
            first, last = spans.get(tensor.storage.file, (start, stop))
            spans[tensor.storage.file] = min(first, start), max(last, stop)
        self._pages = {file: (start, file.pages(start, stop - start)) for file, (start, stop) in spans.items()}

    def __contains__(self, tensor: LazyTensor) -> bool:
        return self._pages.get(tensor.storage.file, (0, None))[1] is not None

    def __getitem__(self, tensor: LazyTensor) -> torch.Tensor:
        import torch

        first, pages = self._pages[tensor.storage.file]
        dtype, offset = getattr(torch, tensor.dtype.name), _in_file(tensor)[0] - first
        return torch.frombuffer(pages, dtype=dtype, count=tensor.numel, offset=offset).reshape(tensor.shape)


def _in_file(tensor: LazyTensor) -> tuple[int, int]:
    start, stop = tensor.span
    return tensor.storage.start + start, tensor.storage.start + stop


def views(part: TensorWrite) -> dict[str, LazyTensor]:
    """What is written, as runs of rows of the only source; empty where it is no such thing."""
    source, runs = part.sources[0], part.runs[0]
    if len(part.sources) > 1 or len({key for key, _ in runs}) < len(runs):
        return {}
    rows = source.shape[0] // len(runs) if source.shape else 0
    pieces = [source[rows * i : rows * (i + 1)] for i in range(len(runs))] if source.shape else [source]
    return {part.keys[key]: piece for (key, _), piece in zip(runs, pieces, strict=True)}


def mappable(parts: Iterable[TensorWrite]) -> dict[int, dict[str, LazyTensor]]:
    """By the identity of a part: its tensors, where all of them can be pages of a file. A run of bytes that several
    tensors share is theirs once: each has to have memory of its own, to be trained by itself."""
    reached: dict[InputFile, int] = {}
    chosen = {}
    whole = [part for part in parts if views(part) and part.sources[0].contiguous and part.nbytes]
    for part in sorted(whole, key=lambda part: (part.sources[0].storage.place[0], _in_file(part.sources[0]))):
        source, (start, stop) = part.sources[0], _in_file(part.sources[0])
        if (
            part.dtype == source.dtype
            and start % source.dtype.itemsize == 0
            and start >= reached.get(source.storage.file, 0)
        ):
            reached[source.storage.file] = stop
            chosen[id(part)] = views(part)
    return chosen


class Reading:
    """All parts of a plan, read by several threads.

    Args:
        device: of the tensors; None is the CPU.
        pages: let tensors of the CPU be pages of their files.
    """

    def __init__(self, writes: TensorWrites, device: Any, *, pages: bool) -> None:
        self.written, self._writes, self._device = Written(), writes, device
        self._views = mappable(writes.model) if pages and device is None else {}
        self._pages = Pages(piece for pieces in self._views.values() for piece in pieces.values())
        self._buffer, self._stop = threading.local(), threading.Event()
        # Many tensors may lie in one storage, which is to be read whole once, for its CRC.
        self._locks = {id(tensor.storage): threading.Lock() for part in writes.parts for tensor in part.sources}

    @contextmanager
    def begun(self) -> Iterator[Callable[[], Tensors]]:
        """While it is being read; yields what waits for the model's tensors.

        Raises: `InputError` where a file is damaged.
        """
        importing = "diffusers" not in sys.modules  # for which one core is left
        threads = min(MOST_THREADS, (os.cpu_count() or 1) - importing)
        with ThreadPoolExecutor(max(1, threads)) as pool:
            try:
                # In the order of the file, so that a disk reads forward.
                parts = sorted(self._writes.parts, key=lambda part: part.sources[0].storage.place)
                kept = {id(part) for part in self._writes.model}
                futures = [pool.submit(self._read, part, id(part) in kept) for part in parts]
                yield lambda: {key: tensor for future in futures for key, tensor in future.result().items()}
            finally:
                self._stop.set()
                pool.shutdown(cancel_futures=True)

    def _read(self, part: TensorWrite, kept: bool) -> Tensors:
        pieces = {key: piece for key, piece in self._views.get(id(part), {}).items() if piece in self._pages}
        if pieces or not kept:
            for source, runs in zip(part.sources, part.runs, strict=True):
                with self._locks[id(source.storage)]:
                    self._check(source, part.dtype, [None] * len(runs))
            return {key: self._pages[piece] for key, piece in pieces.items()}
        import torch

        dtype = getattr(torch, part.dtype.name)
        wholes = {entry.key: torch.empty(entry.shape, dtype=dtype) for entry in part.entries}
        for source, outputs in zip(part.sources, part.outputs(wholes), strict=True):
            with self._locks[id(source.storage)]:
                self._check(source, part.dtype, [output.reshape(-1) for output in outputs])
        return wholes if self._device is None else {key: whole.to(self._device) for key, whole in wholes.items()}

    def _check(self, source: LazyTensor, dtype: DType, outputs: list[Any]) -> None:
        """Read a tensor, into equal runs of elements where there are such, and count what is in it."""
        if not hasattr(self._buffer, "data"):
            self._buffer.data = bytearray(CHUNK)
        stated = self._writes.stated.get(source.key)
        digest = Digest(stated) if stated else None
        size, item = source.nbytes // len(outputs), source.dtype.itemsize
        zeros, nonfinite, overflowed = [0] * len(outputs), 0, 0
        for offset, chunk in source.chunks(self._buffer.data) if size else ():
            if self._stop.is_set():
                return
            if digest:
                digest.update(chunk)
            done = 0
            while done < len(chunk):
                piece, inside = divmod(offset + done, size)
                view = chunk[done : done + size - inside]
                done += len(view)
                output, seen = outputs[piece], view
                if output is not None:
                    seen = _filled(output[inside // item : (inside + len(view)) // item], view, source.dtype)
                infinite = count_nonfinite(seen, dtype)
                if infinite and dtype != source.dtype:
                    overflowed += infinite - count_nonfinite(view, source.dtype)
                nonfinite += infinite
                zeros[piece] = trailing_zeros(seen, dtype, zeros[piece])
        self.written.count(source.key, zeros, nonfinite, overflowed)
        if digest:
            self.written.read[source.key] = digest.text


def _filled(output: torch.Tensor, view: memoryview, dtype: DType) -> memoryview:
    """The bytes of `output`, once it holds these elements, rounded to its dtype."""
    import torch

    output.copy_(torch.frombuffer(view, dtype=getattr(torch, dtype.name)))
    seen: Any = output.view(torch.uint8).numpy()
    return memoryview(seen)
