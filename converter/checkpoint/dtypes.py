"""Element types, under the three names that checkpoints give them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DType:
    """One element type: its name in `.safetensors`, in torch, and as a pickled torch storage class."""

    code: str
    name: str
    storage: str
    itemsize: int
    floating: bool

    def __str__(self) -> str:
        return self.name


# The order is the rank by which `safetensors` lays tensors out (highest first, then by name):
# the order of the `Dtype` enum in its Rust source, kept for the types that can be met here.
_RANKED = (
    DType("BOOL", "bool", "BoolStorage", 1, False),
    DType("U8", "uint8", "ByteStorage", 1, False),
    DType("I8", "int8", "CharStorage", 1, False),
    DType("I16", "int16", "ShortStorage", 2, False),
    DType("F16", "float16", "HalfStorage", 2, True),
    DType("BF16", "bfloat16", "BFloat16Storage", 2, True),
    DType("I32", "int32", "IntStorage", 4, False),
    DType("F32", "float32", "FloatStorage", 4, True),
    DType("F64", "float64", "DoubleStorage", 8, True),
    DType("I64", "int64", "LongStorage", 8, False),
)

BY_CODE = {d.code: d for d in _RANKED}
BY_STORAGE = {d.storage: d for d in _RANKED}
RANK = {d: i for i, d in enumerate(_RANKED)}
F16, BF16, F32, F64 = (BY_CODE[c] for c in ("F16", "BF16", "F32", "F64"))
