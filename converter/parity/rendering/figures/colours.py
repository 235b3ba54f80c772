"""Viridis: equal steps in the numbers look like equal steps, also in grey and to the colour-blind. And a tiny PNG."""

from __future__ import annotations

import struct
import zlib
from base64 import b64encode

# Nine of matplotlib's 256 colours; between them it is linear to within what an eye can see.
ANCHORS = ("440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725")
LEVELS = 255  # the last index of the palette is for what is not finite
BROKEN = (230, 0, 126)


def viridis(share: float) -> tuple[int, int, int]:
    """The colour of a number between 0 and 1.

    >>> viridis(0), viridis(1)
    ((68, 1, 84), (253, 231, 37))
    """
    place = min(max(share, 0.0), 1.0) * (len(ANCHORS) - 1)
    i = min(int(place), len(ANCHORS) - 2)
    low, high = bytes.fromhex(ANCHORS[i]), bytes.fromhex(ANCHORS[i + 1])
    red, green, blue = (round(a + (b - a) * (place - i)) for a, b in zip(low, high, strict=True))
    return red, green, blue


PALETTE = b"".join(bytes(viridis(i / (LEVELS - 1))) for i in range(LEVELS)) + bytes(BROKEN)


def level(share: float | None) -> int:
    """The index of a number between 0 and 1 in the palette; of None that of what is not finite."""
    return LEVELS if share is None else round(min(max(share, 0.0), 1.0) * (LEVELS - 1))


def png(rows: list[bytes], scale: int = 1) -> str:
    """A `data:` address of an image of palette indices, every pixel repeated: some programs smooth what they enlarge.

    An image instead of a rectangle per number, of which a native size would need a hundred thousand.
    """
    wide = [b"\0" + bytes(index for index in row for _ in range(scale)) for row in rows]
    data = b"".join(line for line in wide for _ in range(scale))
    header = struct.pack(">IIBBBBB", len(rows[0]) * scale, len(rows) * scale, 8, 3, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"PLTE", PALETTE), (b"IDAT", zlib.compress(data, 9)), (b"IEND", b""))
    made = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, content) for name, content in chunks)
    return "data:image/png;base64," + b64encode(made).decode("ascii")


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
