"""CRCs, and CRCs put together, against Python's own over the whole."""

from __future__ import annotations

import zlib

from hypothesis import given
from hypothesis import strategies as st

from converter.checkpoint.crc import combine, crc32


@given(st.binary(max_size=5000), st.integers(0, 2**32 - 1), st.integers(0, 20))
def test_it_is_pythons(data: bytes, start: int, offset: int) -> None:
    """Of every kind of buffer, wherever in memory it begins."""
    for view in (data[offset:], bytearray(data[offset:]), memoryview(bytearray(data))[offset:]):
        assert crc32(view, start) == zlib.crc32(view, start)
        assert crc32(view) == zlib.crc32(view)


def test_a_large_piece_is_pythons() -> None:
    data = bytes(range(256)) * 40_000
    for view in (memoryview(data), memoryview(data)[3:-5]):
        assert crc32(view, 7) == zlib.crc32(view, 7)


@given(st.lists(st.binary(max_size=300), max_size=6))
def test_pieces_make_the_whole(pieces: list[bytes]) -> None:
    made = 0
    for piece in pieces:
        made = combine(made, zlib.crc32(piece), len(piece))
    assert made == zlib.crc32(b"".join(pieces))


def test_lengths_of_real_tensors() -> None:
    head = b"head"
    for length in (1 << 16, 21_233_664, (1 << 32) + 5):
        # A run of zeros needs no memory: its CRC is made by doubling.
        zeros, size = zlib.crc32(b"\0"), 1
        run, total = 0, 0
        rest = length
        while rest:
            if rest & 1:
                run, total = combine(run, zeros, size), total + size
            zeros, size, rest = combine(zeros, zeros, size), size * 2, rest >> 1
        assert total == length
        if length < 1 << 26:
            assert run == zlib.crc32(bytes(length))
        assert combine(zlib.crc32(head), run, length) == combine(combine(zlib.crc32(head), 0, 0), run, length)
    assert combine(zlib.crc32(head), zlib.crc32(bytes(1 << 20)), 1 << 20) == zlib.crc32(head + bytes(1 << 20))
