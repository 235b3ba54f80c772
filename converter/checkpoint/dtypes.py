"""Element types, under the three names that checkpoints give them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DType:
    """One element type: its name in `.safetensors`, in torch, and as a pickled torch storage class.

    Of floats also: `form`, the format of `struct` (bfloat16: of the float32 whose upper half it is); `exponent`, the
    bits that are all ones in NaN and infinity; `rounding`, by how much a value below 1 that was computed as float32
    may be off: half of its last place and a little more.
    """

    code: str
    name: str
    storage: str
    itemsize: int
    form: str = ""
    exponent: int = 0
    rounding: float = 0.0

    @property
    def floating(self) -> bool:
        return bool(self.form)

    def __str__(self) -> str:
        return self.name


# The order is the rank by which `safetensors` lays tensors out (highest first, then by name):
# the order of the `Dtype` enum in its Rust source, kept for the types that can be met here.
_RANKED = (
    DType("BOOL", "bool", "BoolStorage", 1),
    DType("U8", "uint8", "ByteStorage", 1),
    DType("I8", "int8", "CharStorage", 1),
    DType("I16", "int16", "ShortStorage", 2),
    DType("F16", "float16", "HalfStorage", 2, "<e", 0x7C00, 2.5e-4),
    DType("BF16", "bfloat16", "BFloat16Storage", 2, "<f", 0x7F80, 2e-3),
    DType("I32", "int32", "IntStorage", 4),
    DType("F32", "float32", "FloatStorage", 4, "<f", 0x7F800000, 2e-7),
    DType("F64", "float64", "DoubleStorage", 8, "<d", 0x7FF0000000000000, 2e-7),
    DType("I64", "int64", "LongStorage", 8),
)

BY_CODE = {d.code: d for d in _RANKED}
BY_NAME = {d.name: d for d in _RANKED}
BY_STORAGE = {d.storage: d for d in _RANKED}
RANK = {d: i for i, d in enumerate(_RANKED)}
F16, BF16, F32, F64 = (BY_CODE[c] for c in ("F16", "BF16", "F32", "F64"))
