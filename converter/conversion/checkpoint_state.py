"""A checkpoint as a family may see it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..checkpoint import Checkpoint
from ..checkpoint.cast import widen
from ..checkpoint.tensor import Storage
from ..errors import UsageError


class CheckpointState:
    """The `State` of `families`: a checkpoint as a family may see it, read in place and blamed where it is damaged."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config, self.recorded_integers = checkpoint.config, checkpoint.recorded_integers
        self._checkpoint = checkpoint
        self._peeked: dict[int, Storage] = {}

    def elements(self, key: str, *positions: int) -> tuple[tuple[float, ...], float]:
        """Single elements, read in place without the CRC's proof; what they show is checked against the whole later."""
        tensor = self._checkpoint[key]
        self._peeked[id(tensor.storage)] = tensor.storage
        return tensor.peek(*positions), tensor.dtype.rounding

    def rows(self, key: str) -> Iterator[tuple[int, Any]]:
        """All of a tensor, about a megabyte at a time; at the end the CRC is proven."""
        tensor, row, kept = self._checkpoint[key], 0, bytearray()
        width = tensor.shape[-1] * tensor.dtype.itemsize if tensor.shape and tensor.dtype.floating else 0
        for _, part in tensor.chunks() if width else ():
            kept += part
            whole = len(kept) // width
            if whole:
                yield row, widen(bytes(kept[: whole * width]), tensor.dtype).reshape(whole, -1)
                del kept[: whole * width]
                row += whole

    @contextmanager
    def file_checked_first(self) -> Iterator[None]:
        """On `UsageError`, verify the file first: the elements that led to it may be damaged."""
        try:
            yield
        except UsageError:
            for storage in self._peeked.values():
                for _ in storage.chunks():
                    pass  # at the end it verifies the CRC
            raise
