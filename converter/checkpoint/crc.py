"""CRC-32 of bytes, and of bytes put together out of the CRC-32 of the pieces, without reading them again.

`crc32` is that of zlib-ng: Python's own takes five times as long, and would be most of the work of moving a checkpoint.

A CRC is a remainder of polynomials over GF(2): appending n bytes multiplies what came before by x^(8n).
Peterson and Brown, "Cyclic Codes for Error Detection", 1961; the polynomial is that of zip (APPNOTE 6.3, 4.4.7).
"""

from __future__ import annotations

from functools import cache

from zlib_ng.zlib_ng import crc32

__all__ = ["combine", "crc32"]

_POLYNOMIAL = 0xEDB88320  # reflected: the highest bit is the coefficient of x^0
_ONE = 0x80000000


def _times(one: int, other: int) -> int:
    """The product of two remainders."""
    made = 0
    while one:
        if one & _ONE:
            made ^= other
        one = (one << 1) & 0xFFFFFFFF
        other = (other >> 1) ^ (_POLYNOMIAL if other & 1 else 0)
    return made


@cache
def _shift(length: int) -> int:
    """x^(8 * length) modulo the polynomial, by squaring."""
    made, power = _ONE, 0x00800000  # 1, and x^8
    while length:
        if length & 1:
            made = _times(made, power)
        power, length = _times(power, power), length >> 1
    return made


def combine(first: int, second: int, length: int) -> int:
    """The CRC-32 of A + B, out of that of A, that of B, and the length of B in bytes.

    >>> combine(crc32(b"ab"), crc32(b"cde"), 3) == crc32(b"abcde")
    True
    """
    return _times(_shift(length), first) ^ second
