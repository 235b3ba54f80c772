"""Does a target hold already what a conversion would write? Told by digests of both sides, not by names or dates."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from .checkpoint import LazyTensor, open_checkpoint
from .checkpoint.cast import cast
from .checkpoint.file import InputFile
from .errors import InputError
from .writing import Part, TensorFile


def holds(
    folder: Path,
    files: Sequence[TensorFile],
    parts: Sequence[Part],
    texts: Mapping[str, str],
    read: dict[str, str] | None = None,
) -> bool:
    """Whether these files lie in the folder, with these tensors and texts in them, to the last bit.

    Args:
        read: where it is given, the SHA-256 of every source is put there by its key.

    Raises: `InputError` where the source is damaged.
    """
    with ExitStack() as stack:
        there: dict[str, LazyTensor] = {}
        try:
            for name, text in texts.items():
                file = stack.enter_context(InputFile(folder / name))
                if file.size != len(data := text.encode()) or file.read(0, file.size) != data:
                    return False
            for made in files:
                opened = stack.enter_context(open_checkpoint(folder / made.name))
                found = {tensor.key: tensor for tensor in opened.values()}
                frame = made.layout.frame({key: tensor.storage.crc or 0 for key, tensor in found.items()})
                file = opened.files[0]
                if file.size != made.layout.size or any(file.read(at, len(data)) != data for at, data in frame):
                    return False  # another container, or more than these tensors
                there |= found
        except InputError:
            return False  # absent, or no checkpoint
        wanted = {e.key: (e.dtype, e.shape) for part in parts for e in part.entries}
        if wanted != {key: (tensor.dtype, tensor.shape) for key, tensor in there.items()}:
            return False
        with ThreadPoolExecutor(2) as pool:
            return all(pool.map(lambda part: _same(part, there, read), parts))


def _same(part: Part, there: Mapping[str, LazyTensor], read: dict[str, str] | None) -> bool:
    wanted = _digest(_wanted(part, read))
    try:
        return wanted == _digest(_found(part, there))
    except InputError:
        return False  # what is there is damaged


def _digest(pieces: Iterator[bytes | memoryview]) -> bytes:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


def _wanted(part: Part, read: dict[str, str] | None) -> Iterator[bytes | memoryview]:
    """The bytes that the part would be written as; what they are made of is hashed on the way."""
    for source in part.sources:
        digest = hashlib.sha256()
        for _, piece in source.chunks():
            if read is not None:
                digest.update(piece)
            yield piece if source.dtype == part.dtype else cast(piece, source.dtype, part.dtype)[0]
        if read is not None:
            read[source.key] = digest.hexdigest()


def _found(part: Part, there: Mapping[str, LazyTensor]) -> Iterator[bytes | memoryview]:
    """The bytes in its place."""
    for key in part.keys:
        for _, piece in there[key].chunks():
            yield piece
