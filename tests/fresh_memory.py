"""Memory that no earlier test can have left behind, for tests that measure how a process grows."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def fresh_memory(size: int) -> Iterator[None]:
    """`size` more resident bytes. A `bytearray` may be laid into what the allocator still holds of a larger object that
    is gone, and then nothing grows."""
    with mmap.mmap(-1, size) as pages:
        for start in range(0, size, mmap.PAGESIZE):
            pages[start] = 1
        yield
