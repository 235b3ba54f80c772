"""A stored buffer against the table that would be computed: equal bit for bit, or how far apart."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from makers import digest, raw_bytes, save, sincos
from safetensors.torch import save_file

from converter import InputError, open_checkpoint
from converter.checkpoint.dtypes import BY_NAME
from converter.checkpoint.tensor import CHUNK
from converter.conversion.buffers import Comparison, compare, computed
from converter.families.sincos import SinCosTable

HIDDEN, SIDE, SCALE = 48, 80, 2.0
TABLE = SinCosTable(HIDDEN, SIDE, SCALE)
DTYPES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
# More than a chunk of bytes, and no chunk ends where a token does.
assert HIDDEN * SIDE**2 * 4 > CHUNK
assert CHUNK % (HIDDEN * 4)


def stored(dtype: str) -> torch.Tensor:
    return sincos(HIDDEN, SIDE, SCALE).to(getattr(torch, dtype))


def compared(path: Path, table: SinCosTable = TABLE) -> Comparison:
    with open_checkpoint(path) as checkpoint:
        return compare(checkpoint["pos_embed"], table)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The table in every dtype, in a container without checksums."""
    made = {}
    for dtype in DTYPES:
        made[dtype] = tmp_path_factory.mktemp("buffers") / f"{dtype}.safetensors"
        save_file({"pos_embed": stored(dtype)}, made[dtype])
    return made


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_table_is_equal_in_every_dtype_after_its_rounding(dtype: str, files: dict[str, Path]) -> None:
    equal = Comparison(True, 0.0, digest(raw_bytes(stored(dtype))))
    assert compared(files[dtype]) == compare(computed("pos_embed", TABLE, BY_NAME[dtype]), TABLE) == equal


def test_of_a_torch_archive_too(tmp_path: Path) -> None:
    assert compared(save({"pos_embed": stored("bfloat16")}, tmp_path / "a.pth")).equal
    # A view that is not one run of bytes.
    turned = stored("float32").transpose(1, 2).contiguous().transpose(1, 2)
    assert not turned.is_contiguous()
    assert compared(save({"pos_embed": turned}, tmp_path / "b.pth")).equal
    # One that begins in the middle of its storage.
    padded = torch.cat([torch.zeros(1, 3, HIDDEN), stored("float32")], dim=1)[:, 3:]
    assert compared(save({"pos_embed": padded}, tmp_path / "c.pth")).equal


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(DTYPES)), st.data())
def test_one_flipped_bit_anywhere_is_seen(
    files: dict[str, Path], tmp_path: Path, dtype: str, data: st.DataObject
) -> None:
    content = bytearray(files[dtype].read_bytes())
    size = HIDDEN * SIDE**2 * DTYPES[dtype]
    edges = [0, size - 1, *(at for end in range(CHUNK, size, CHUNK) for at in (end - 1, end))]
    place = data.draw(st.one_of(st.integers(0, size - 1), st.sampled_from(edges)))
    content[len(content) - size + place] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(content)
    found = compared(path)
    assert not found.equal
    assert found.digest == digest(content[-size:])
    with open_checkpoint(path) as checkpoint:
        value = checkpoint["pos_embed"].numpy().astype(np.float64).reshape(-1)[place // DTYPES[dtype]]
    # From the float32 that is computed; in a rougher dtype the others are off by their rounding.
    exact = float(sincos(HIDDEN, SIDE, SCALE).reshape(-1)[place // DTYPES[dtype]])
    if not math.isfinite(value):
        assert found.difference == math.inf
    elif dtype in ("float64", "float32"):
        assert found.difference == abs(value - exact)
    else:
        assert found.difference >= abs(value - exact)


@pytest.mark.parametrize(
    ("bits", "difference"),
    [("0000c07f", math.inf), ("0000807f", math.inf), ("000080ff", math.inf), ("00000080", 0.0)],  # and -0.0
)
def test_what_is_not_finite_is_infinitely_far(
    bits: str, difference: float, files: dict[str, Path], tmp_path: Path
) -> None:
    content = bytearray(files["float32"].read_bytes())
    start = len(content) - HIDDEN * SIDE**2 * 4
    assert content[start : start + 4] == bytes(4)
    content[start : start + 4] = bytes.fromhex(bits)
    (tmp_path / "a.safetensors").write_bytes(content)
    found = compared(tmp_path / "a.safetensors")
    assert (found.equal, found.difference) == (False, difference)


@pytest.mark.parametrize("table", [SinCosTable(HIDDEN, SIDE, 1.0), SinCosTable(HIDDEN, SIDE, 2.001)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_table_of_another_scale_is_not_equal(table: SinCosTable, dtype: str, files: dict[str, Path]) -> None:
    found = compared(files[dtype], table)
    assert not found.equal
    assert 1e-3 < found.difference <= 2.01


@pytest.mark.parametrize(
    "shape", [(SIDE**2, HIDDEN), (1, SIDE**2 - 1, HIDDEN), (1, HIDDEN, SIDE**2), (1, 1, SIDE**2 * HIDDEN)]
)
def test_another_shape_is_infinitely_far(shape: tuple[int, ...], tmp_path: Path) -> None:
    tensor = stored("float32").reshape(-1)[: math.prod(shape)].reshape(shape).clone()
    save_file({"pos_embed": tensor}, tmp_path / "a.safetensors")
    assert compared(tmp_path / "a.safetensors") == Comparison(False, math.inf, digest(raw_bytes(tensor)))


@pytest.mark.parametrize("table", [TABLE, SinCosTable(HIDDEN, 3, 1.0)], ids=["of its shape", "of another"])
def test_a_damaged_file_is_an_error_and_no_difference(table: SinCosTable, tmp_path: Path) -> None:
    path = save({"pos_embed": stored("float32")}, tmp_path / "a.pth")
    content = bytearray(path.read_bytes())
    place = content.index(raw_bytes(stored("float32"))[:4096]) + 1000
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="CRC-32 mismatch"):
        compared(path, table)


# A table as a tensor to be written, though no file holds it.


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_computed_tensor_is_as_one_in_a_file_and_comes_in_whole_rows(dtype: str, files: dict[str, Path]) -> None:
    made, expected, width = (
        computed("pos_embed", TABLE, BY_NAME[dtype]),
        raw_bytes(stored(dtype)),
        HIDDEN * DTYPES[dtype],
    )
    with open_checkpoint(files[dtype]) as checkpoint:
        there = checkpoint["pos_embed"]
        assert (made.key, made.dtype, made.shape, made.nbytes) == (there.key, there.dtype, there.shape, there.nbytes)
        assert made.read() == there.read() == expected
        assert torch.equal(made.torch(), there.torch())
        assert np.array_equal(made.numpy(), there.numpy())
    assert (made.storage.crc, made.contiguous) == (None, True)
    assert (made[0:1].read(), made[1:].read()) == (expected, b"")  # a run of its only row is all of it or nothing
    pieces = [(offset, bytes(part)) for offset, part in made.storage.chunks()]
    assert b"".join(part for _, part in pieces) == expected
    assert [offset for offset, _ in pieces] == [sum(len(part) for _, part in pieces[:n]) for n in range(len(pieces))]
    assert all(0 < len(part) <= CHUNK and len(part) % width == 0 for _, part in pieces)
    assert len(pieces) == -(-len(expected) // (CHUNK // width * width))


def test_rows_wider_than_a_chunk_come_one_by_one() -> None:
    class Wide:
        """Any table: what is asked of it is said of `compare`."""

        shape = (1, 3, CHUNK // 4 + 5)

        def axis(self) -> float:
            return 0.5

        def rows(self, start: int, stop: int, axis: float) -> np.ndarray:
            return np.full((stop - start, self.shape[2]), start + axis, np.float32)

    made = computed("wide", Wide(), BY_NAME["float32"])
    assert [(offset, len(part)) for offset, part in made.storage.chunks()] == [
        (n * (CHUNK + 20), CHUNK + 20) for n in range(3)
    ]
    assert np.array_equal(made.numpy()[0], np.repeat([[0.5], [1.5], [2.5]], CHUNK // 4 + 5, axis=1))
