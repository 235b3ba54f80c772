"""What nets are run on: fixed noise, drawn on the CPU, and cases that were saved, to be run again on another machine.

The noise is the same for every torch version, device and thread count.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checkpoint.dtypes import DType
from ..checkpoint.file import InputFile
from ..checkpoint.safetensors_reader import read_header
from ..errors import ConverterError, InputError, printable
from ..system import replace

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .net import Values

SEED = 20231001
OUTPUT = "output"  # CASE.output.SIDE.PRECISION is no input
Array = np.ndarray[Any, np.dtype[Any]]


def noise(seed: int, *shape: int) -> Array:
    """N(0, 1) as float32 from a counter-based generator (Philox), which no earlier draw can shift.

    >>> noise(1, 2, 3).shape
    (2, 3)
    """
    return np.random.Generator(np.random.Philox(key=[SEED, seed])).standard_normal(shape, dtype=np.float32)


class Draws:
    """Noise without end: every array has a seed of its own, so that no two cases share numbers."""

    def __init__(self) -> None:
        self._seed = 0

    def draw(self, *shape: int) -> Array:
        self._seed += 1
        return noise(self._seed, *shape)


@dataclass(frozen=True)
class Case:
    """One set of inputs: name -> array, all with the batch as axis 0. `axes` says in words what it tries.

    The arrays are float32, or int64 where they count something (a class) and must not be rounded with the rest.
    """

    name: str
    arrays: Mapping[str, Array]
    axes: str = ""

    def tensors(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Values:
        """The same numbers in another dtype, rounded once, from float32; whole ones as they are."""
        import torch

        return _in(dtype, {name: torch.from_numpy(np.array(array)).to(device) for name, array in self.arrays.items()})

    @property
    def samples(self) -> int:
        """The size of the batch."""
        return max((len(array) for array in self.arrays.values()), default=0)

    @property
    def sha256(self) -> str:
        """Of names, shapes and bytes."""
        digest = hashlib.sha256()
        for name, array in sorted(self.arrays.items()):
            digest.update(f"{name}:{array.dtype.str}:{array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def exact(values: Values) -> Values:
    """The same numbers in float64; whole ones as they are."""
    import torch

    return _in(torch.float64, values)


def _in(dtype: torch.dtype, values: Values) -> Values:
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in values.items()}


def load_cases(path: Path, like: Case, optional: Sequence[str] = ()) -> list[Case]:
    """The cases of a safetensors file with tensors `CASE.NAME`, such as `t999.latent`.

    Args:
        like: a case of the same model: its arrays say which there have to be, and of how many axes.
        optional: those that a case may lack.

    Raises: `InputError` for a file that is malformed, or of another model.
    """
    wanted = ", ".join(f"{name} with {array.ndim} axes" for name, array in like.arrays.items())
    cases: dict[str, dict[str, Array]] = {}
    with InputFile(path) as file:
        for key, tensor in read_header(file)[0].items():
            if f".{OUTPUT}." in key:
                continue
            case, _, name = key.rpartition(".")  # a case's own name may have a dot in it, as t998-t431.5 has
            own, dtype = like.arrays.get(name), tensor.dtype
            if not case or own is None or len(tensor.shape) != own.ndim or not _of_kind(dtype, own):
                what = f"{dtype} {list(tensor.shape)} is no input of this model: it takes {wanted}"
                raise file.error(key, what)
            with np.errstate(invalid="ignore", over="ignore"):  # whatever it holds goes into both nets
                cases.setdefault(case, {})[name] = np.array(tensor.numpy(), own.dtype)
    if not cases:
        name = f"t999.{next(iter(like.arrays))}"
        raise InputError.at(path, "", f"holds no cases: tensors are named CASE.NAME, such as {name}")
    for case, arrays in cases.items():
        batches = {array.shape[0] for array in arrays.values()}
        if missing := [name for name in like.arrays if name not in (*arrays, *optional)]:
            raise InputError.at(path, case, f"lacks {', '.join(missing)}")
        if any(0 in array.shape[1:] for array in arrays.values()):
            raise InputError.at(path, case, "is empty: one of its arrays has an axis of length 0")
        if len(batches) != 1 or 0 in batches:
            counts = ", ".join(map(str, sorted(batches)))
            raise InputError.at(path, case, f"batches of {counts}: one size above 0 is needed")
    return [Case(printable(name, 60), arrays, f"from {printable(path.name)}") for name, arrays in cases.items()]


def _of_kind(dtype: DType, own: Array) -> bool:
    """Whether both are of floating point, or both whole numbers."""
    return dtype.floating if own.dtype.kind == "f" else dtype.name == own.dtype.name


def save_case(folder: Path, case: Case, outputs: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Write a case's inputs, and its outputs by side and precision, to `folder/CASE.safetensors`; returns what was
    written, in words."""
    import torch
    from safetensors.torch import save_file

    tensors = {f"{case.name}.{name}": torch.from_numpy(np.array(array)) for name, array in case.arrays.items()}
    for side, by_precision in outputs.items():
        for precision, output in by_precision.items():
            tensors[f"{case.name}.{OUTPUT}.{side}.{precision}"] = output.clone().contiguous()
    path = folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', case.name)}.safetensors"
    partial = folder / f".{path.name}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            save_file(tensors, partial)
            replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)  # whatever stopped it: nobody ever reads half of a case
    except OSError as error:
        raise ConverterError(f"{printable(path)}: cannot be written: {error.strerror or error}") from error
    return f"saved {printable(path)}: run it again with --cases"
