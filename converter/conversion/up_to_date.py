"""Does a target hold already what a conversion would write? Decided by digests of both sides, not by names or dates."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint import LazyTensor, open_checkpoint
from ..checkpoint.cast import cast, count_nonfinite
from ..checkpoint.file import InputFile, reading
from ..errors import InputError
from ..filenames import PARITY, RECORD
from .options import ConversionOptions, with_shortcuts
from .output import files_we_wrote
from .plan import ConversionPlan, open_plan
from .verdicts import give_verdict
from .write import TensorWrite, Written
from .zeros import Tails


def is_up_to_date(
    orig_ckpt_path: str | os.PathLike[str],
    dump_path: str | os.PathLike[str],
    options: ConversionOptions | None = None,
    *,
    hyper_parameters: Mapping[str, Any] | None = None,
    **shortcuts: Any,
) -> list[str] | None:
    """What `convert` would say of the tensors, where `dump_path` holds what it would write; None where it does not.

    Both sides are read and hashed. The arguments are those of `convert`.

    Raises: as `convert` does, for what it refuses of the source.
    """
    options = with_shortcuts(options or ConversionOptions(), shortcuts | {"overwrite": True})
    with open_plan(orig_ckpt_path, dump_path, options, hyper_parameters or {}) as plan:
        path, names = plan.destination.path, {RECORD, PARITY, *plan.texts, *(file.name for file in plan.files)}
        if plan.destination.folder and files_we_wrote(path) != names:
            return None  # without its record, or with more than we would write, it is another result
        with reading(plan.analysis.checkpoint.path):
            written = _written_before(path if plan.destination.folder else path.parent, plan)
            return give_verdict(plan.analysis, plan.writes, written, options)[0] if written else None


def _written_before(folder: Path, plan: ConversionPlan) -> Written | None:
    """What `write_files` would tell, but for its `files` and `digests`, where these files lie in the folder already,
    with these tensors and texts in them, to the last bit; None where they do not.

    Raises: `InputError` where the source is damaged.
    """
    with ExitStack() as stack:
        there: dict[str, LazyTensor] = {}
        try:
            for name, text in plan.texts.items():
                file = stack.enter_context(InputFile(folder / name))
                if file.size != len(data := text.encode()) or file.read(0, file.size) != data:
                    return None
            for planned in plan.files:
                opened = stack.enter_context(open_checkpoint(folder / planned.name))
                tensors = {tensor.key: tensor for tensor in opened.values()}
                frame = planned.layout.frame({key: tensor.storage.crc or 0 for key, tensor in tensors.items()})
                file = opened.files[0]
                if file.size != planned.layout.size or any(file.read(at, len(data)) != data for at, data in frame):
                    return None  # another container, or more than these tensors
                there |= tensors
        except InputError:
            return None  # absent, or no checkpoint
        wanted = {e.key: (e.dtype, e.shape) for part in plan.parts for e in part.entries}
        if wanted != {key: (tensor.dtype, tensor.shape) for key, tensor in there.items()}:
            return None
        with ThreadPoolExecutor(2) as pool:
            seen = list(pool.map(lambda part: _same(part, there, plan.writes.stated), plan.parts))
    written = Written()
    for counted in seen:
        if counted is None:
            return None
        for source in counted:
            written.count(source.key, source.zeros, source.nonfinite, source.overflowed)
            if source.sha256:
                written.read[source.key] = source.sha256
    return written


@dataclass
class _Source:
    """What was found of one source on the way: `Written.count` takes it, and the SHA-256 if a record states one."""

    key: str
    zeros: list[int] = field(default_factory=list)
    nonfinite: dict[str, int] = field(default_factory=dict)
    overflowed: int = 0
    sha256: str = ""


def _same(part: TensorWrite, there: Mapping[str, LazyTensor], digests: Mapping[str, str]) -> list[_Source] | None:
    sources = [_Source(tensor.key) for tensor in part.sources]
    wanted = _digest(_wanted(part, sources, digests))
    try:
        return sources if wanted == _digest(_held(part, there)) else None
    except InputError:
        return None  # what is there is damaged


def _digest(pieces: Iterator[bytes | memoryview]) -> bytes:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


def _wanted(part: TensorWrite, sources: Sequence[_Source], digests: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """The bytes that the part would be written as; what is in them, and in what they are made of, is told on the way.

    Counted as `transfer` does where it reads back what was written: of a source that is shared out by key.
    """
    for tensor, source, runs in zip(part.sources, sources, part.runs, strict=True):
        keys = [part.keys[key] for key, _ in runs]
        digest, done, nbytes = hashlib.sha256(), 0, tensor.numel * part.dtype.itemsize
        tails = Tails(part.dtype, nbytes, len(keys) * part.fused)
        for _, piece in tensor.chunks():
            if source.key in digests:
                digest.update(piece)
            data, overflowed = memoryview(piece), 0
            if tensor.dtype != part.dtype:
                data, overflowed = cast(piece, tensor.dtype, part.dtype)
            source.overflowed += overflowed
            tails.feed(data)
            for key, run in _shared_out(keys, data, done, nbytes):
                source.nonfinite[key] = source.nonfinite.get(key, 0) + count_nonfinite(run, part.dtype)
            done += len(data)
            yield data
        source.zeros = tails.zeros
        source.sha256 = digest.hexdigest() if source.key in digests else ""


def _shared_out(keys: Sequence[str], data: memoryview, start: int, nbytes: int) -> Iterator[tuple[str, memoryview]]:
    """Which of the bytes from `start` on go to which of the keys, which get as much each of so many."""
    each = nbytes // len(keys)
    for number, key in enumerate(keys):
        low, high = max(number * each - start, 0), min((number + 1) * each - start, len(data))
        if low < high:
            yield key, data[low:high]


def _held(part: TensorWrite, there: Mapping[str, LazyTensor]) -> Iterator[bytes | memoryview]:
    """The bytes in its place, in the order of the sources."""
    for tensor in (tensor for filled in part.outputs(there) for tensor in filled):
        for _, piece in tensor.chunks():
            yield piece
