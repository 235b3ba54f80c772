"""Tensors that are in memory, read as those of a file are: in chunks of any size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from makers import raw_bytes

from converter.checkpoint.dtypes import BY_CODE, DType

DTYPES = {dtype.name: dtype for dtype in BY_CODE.values()}


@dataclass(frozen=True)
class MemoryTensor:
    """A torch tensor that is read `chunk` bytes at a time, in one buffer as a file's are."""

    tensor: torch.Tensor
    chunk: int = 1 << 20

    @property
    def dtype(self) -> DType:
        return DTYPES[str(self.tensor.dtype).removeprefix("torch.")]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def numel(self) -> int:
        return self.tensor.numel()

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    def chunks(self, buffer: bytearray | None = None) -> Iterator[tuple[int, memoryview]]:
        data = raw_bytes(self.tensor)
        buffer = bytearray(self.chunk) if buffer is None else buffer
        for start in range(0, len(data), len(buffer)):
            part = data[start : start + len(buffer)]
            buffer[: len(part)] = part
            yield start, memoryview(buffer)[: len(part)]

    def read(self) -> bytes:
        return raw_bytes(self.tensor)

    def numpy(self) -> np.ndarray[Any, np.dtype[Any]]:
        return self.tensor.numpy()

    def torch(self, out: torch.Tensor | None = None) -> torch.Tensor:
        return self.tensor.contiguous() if out is None else out.copy_(self.tensor)


def memory_tensors(state: Mapping[str, torch.Tensor]) -> dict[str, MemoryTensor]:
    return {key: MemoryTensor(tensor) for key, tensor in state.items()}


FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@st.composite
def tensors(draw: st.DrawFn, *, finite: bool = True, size: int = 0) -> torch.Tensor:
    """A tensor of any floating dtype, of numbers that it can hold."""
    values = st.floats(width=32, allow_nan=not finite, allow_infinity=not finite)
    values = values | st.sampled_from([0.0, -0.0, 1.0, 1 / 3, 65504.0, 65520.0, 2.0**-24, 2.0**-25, 2.0**-149])
    made = draw(st.lists(values, min_size=size or 1, max_size=size or 40))
    dtype = draw(st.sampled_from(FLOATS))
    cast = torch.tensor(made, dtype=torch.float64).float().to(dtype)
    return torch.nan_to_num(cast, 0.0, 1.0, -1.0) if finite else cast
