"""Signalling NaN on every way that numbers take: no NumPy warning, and the bits stay where nothing is cast."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from makers import HEADS, State, pixart, save, stated
from safetensors.torch import save_file

import converter
from converter.checkpoint.cast import cast, count_nonfinite, float64
from converter.checkpoint.dtypes import BY_CODE, BY_NAME
from converter.comparison.elements import measure, roundings
from converter.conversion.buffers import compare
from converter.conversion.up_to_date import is_up_to_date
from converter.nets.inputs import Case, load_cases

pytestmark = pytest.mark.filterwarnings("error")

BITS = {
    "F16": (torch.int16, 0x7D00),
    "BF16": (torch.int16, 0x7FA0),
    "F32": (torch.int32, 0x7FA00000),
    "F64": (torch.int64, 0x7FF4000000000000),
}
DTYPES = [getattr(torch, BY_CODE[code].name) for code in BITS]


def poison(tensor: torch.Tensor, *places: int) -> None:
    kind, bits = next(BITS[code] for code in BITS if BY_CODE[code].name == str(tensor.dtype).partition(".")[2])
    tensor.view(kind).view(-1)[list(places)] = bits


def poisoned(code: str, count: int) -> bytes:
    """Eight elements, some of them signalling NaN, the others 0."""
    made = torch.zeros(8, dtype=getattr(torch, BY_CODE[code].name))
    poison(made, *range(count))
    return bytes(made.view(torch.uint8).numpy())


@pytest.mark.parametrize(("source", "target"), [*product(BITS, ("F16", "BF16", "F32"))])
def test_a_cast(source: str, target: str) -> None:
    made, overflowed = cast(poisoned(source, 3), BY_CODE[source], BY_CODE[target])
    assert (count_nonfinite(made, BY_CODE[target]), overflowed) == (3, 0)
    assert np.isnan(float64(poisoned(source, 3), BY_CODE[source])).sum() == 3


@pytest.mark.parametrize(("one", "other", "counts"), [*product(BITS, BITS, [(3, 3), (8, 0), (0, 8), (2, 5)])])
def test_two_tensors(one: str, other: str, counts: tuple[int, int]) -> None:
    def side(code: str, count: int) -> SimpleNamespace:
        data = poisoned(code, count)

        def chunks() -> Iterable[tuple[int, memoryview]]:
            yield 0, memoryview(data)

        return SimpleNamespace(dtype=BY_CODE[code], numel=8, nbytes=len(data), chunks=chunks)

    a, b = side(one, counts[0]), side(other, counts[1])
    numbers = measure(a, b)
    assert (numbers.nonfinite_a, numbers.nonfinite_b) == counts
    assert numbers.differing == abs(counts[0] - counts[1])
    roundings(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_computed_buffer(dtype: torch.dtype, tmp_path: Path) -> None:
    right = np.random.default_rng(0).random((16, 16), np.float32)
    table = torch.from_numpy(right.copy()).to(dtype).reshape(1, 16, 16)
    poison(table, 70)
    path = save({"pos_embed": table.clone()}, tmp_path / "a.safetensors")
    like = SimpleNamespace(shape=(1, 16, 16), axis=lambda: 0, rows=lambda first, last, axis: right[first:last])
    with converter.open_checkpoint(path) as opened:
        found = compare(opened["pos_embed"], like)
    assert (found.equal, found.difference) == (False, float("inf"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_conversion_and_all_that_is_asked_of_it(dtype: torch.dtype, tmp_path: Path) -> None:
    state: State = pixart(dtype=dtype)
    for key in ("blocks.0.scale_shift_table", "y_embedder.y_embedding", "final_layer.linear.bias"):
        poison(state[key], 0, 3)
    path = save(state, tmp_path / "a.pth")
    how = {"num_attention_heads": HEADS, "allow_nonfinite": True}
    out = converter.convert(path, tmp_path / "out", **stated(**how)).path
    back = converter.convert(out, tmp_path / "back.pth", to="original", allow_nonfinite=True).path
    with converter.open_checkpoint(back) as found:
        for key, tensor in state.items():
            assert found[key].read() == bytes(tensor.reshape(-1).view(torch.uint8).numpy())
    assert is_up_to_date(path, out, **stated(**how)) is not None
    assert converter.diff(path, out).verdict == "identical"
    for name in ("float16", "bfloat16", "float32"):
        rounded = converter.convert(path, tmp_path / name, **stated(dtype=name, allow_overflow=True, **how)).path
        assert converter.diff(path, rounded).verdict in ("identical", "rounding only")
    assert BY_NAME[str(dtype).partition(".")[2]].floating


@pytest.mark.parametrize("dtype", DTYPES)
def test_saved_cases(dtype: torch.dtype, tmp_path: Path) -> None:
    latent = torch.zeros(1, 4, 8, 8, dtype=dtype)
    poison(latent, 5)
    save_file({"t999.latent": latent}, tmp_path / "cases.safetensors")
    like = Case("t1", {"latent": np.zeros((1, 4, 8, 8), np.float32)}, "")
    (case,) = load_cases(tmp_path / "cases.safetensors", like)
    assert np.isnan(case.arrays["latent"]).sum() == 1
