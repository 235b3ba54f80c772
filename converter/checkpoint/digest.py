"""Digests of tensors, as text that names the algorithm: `blake3:HEX`. Records of earlier versions have SHA-256."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from blake3 import blake3

ALGORITHMS: dict[str, Callable[[], Any]] = {"blake3": blake3, "sha256": hashlib.sha256}


class Digest:
    """A digest of bytes that come piece by piece.

    Args:
        like: the digest that it is to be compared with, whose algorithm it takes; '' for none.

    >>> digest = Digest(like="sha256:")
    >>> digest.update(b"abc")
    >>> digest.text
    'sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'
    """

    def __init__(self, like: str = "") -> None:
        self._algorithm = like.partition(":")[0] or "blake3"
        self._hash = ALGORITHMS[self._algorithm]()
        self.update: Callable[[bytes | memoryview], Any] = self._hash.update

    @property
    def text(self) -> str:
        return f"{self._algorithm}:{self._hash.hexdigest()}"


def named(text: str) -> str:
    """A recorded digest with its algorithm; a bare one, of an earlier version, is SHA-256.

    Raises: `KeyError` for an algorithm that is not known.
    """
    algorithm, colon, _ = text.partition(":")
    if colon and algorithm not in ALGORITHMS:
        raise KeyError(algorithm)
    return text if colon else f"sha256:{text}"
