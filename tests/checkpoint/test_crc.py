"""The CRC-32 of a whole, out of those of its pieces, is what zlib computes over the whole."""

from __future__ import annotations

import zlib
from functools import reduce
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from converter.checkpoint.crc import combine


@given(st.binary(max_size=300), st.binary(max_size=300))
@example(b"", b"")
@example(b"", b"abc")
@example(b"abc", b"")
@example(b"\0" * 300, b"\0" * 300)
@example(b"\xff" * 4, b"\0" * 4)
@settings(max_examples=500, deadline=None)
def test_of_two(first: bytes, second: bytes) -> None:
    made = combine(zlib.crc32(first), zlib.crc32(second), len(second))
    assert made == zlib.crc32(first + second)


@given(st.binary(max_size=1000), st.lists(st.integers(0, 1000), max_size=8))
@settings(max_examples=200, deadline=None)
def test_wherever_it_is_cut(data: bytes, cuts: list[int]) -> None:
    """From 0, the CRC of nothing, piece by piece; pieces may be empty."""
    pieces = [data[one:other] for one, other in pairwise([0, *sorted(cuts), len(data) + 1000])]
    assert reduce(lambda made, piece: combine(made, zlib.crc32(piece), len(piece)), pieces, 0) == zlib.crc32(data)


@pytest.mark.parametrize("length", [2**n + more for n in range(1, 23, 3) for more in (-1, 0, 1)])
def test_pieces_of_every_magnitude(length: int) -> None:
    first, second = b"first", bytes(range(256)) * (length // 256 + 1)
    second = second[:length]
    assert combine(zlib.crc32(first), zlib.crc32(second), length) == zlib.crc32(first + second)


def test_lengths_beyond_32_bits() -> None:
    """Zeros doubled up to 8 GiB; zlib confirms the first 64 MiB, and other cuts the rest."""
    length, crc = 1 << 20, zlib.crc32(bytes(1 << 20))
    doubled = {length: crc}
    while length < 1 << 33:
        crc, length = combine(crc, crc, length), 2 * length
        doubled[length] = crc
    assert doubled[64 << 20] == reduce(lambda made, _: zlib.crc32(bytes(1 << 20), made), range(64), 0)
    tail = zlib.crc32(b"tail")
    ways = [[33], [32, 32], [31, 32, 31], [30] * 8]
    wholes = [reduce(lambda made, n: combine(made, doubled[1 << n], 1 << n), way, 0) for way in ways]
    assert len({combine(whole, tail, 4) for whole in wholes}) == 1
    # What stands before a long piece counts too.
    start = zlib.crc32(b"start")
    ways = [combine(start, doubled[1 << 33], 1 << 33)]
    ways.append(reduce(lambda made, _: combine(made, doubled[1 << 30], 1 << 30), range(8), start))
    assert ways[0] == ways[1] != doubled[1 << 33]
