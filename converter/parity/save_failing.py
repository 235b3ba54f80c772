"""A failing case is written down with its outputs, and can be run again on another machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from ..errors import ConverterError, printable
from ..nets.cases import OUTPUT
from .function import CaseOutcome


def save_outcome(folder: Path, outcome: CaseOutcome) -> str:
    """Write a case's inputs and outputs to `folder/CASE.safetensors`; returns what was written, in words."""
    case = outcome.case
    tensors = {f"{case.name}.{name}": torch.from_numpy(np.array(array)) for name, array in case.arrays.items()}
    for side, outputs in (("original", outcome.original), ("converted", outcome.converted)):
        for precision, output in outputs.items():
            tensors[f"{case.name}.{OUTPUT}.{side}.{precision}"] = output.clone().contiguous()
    path = folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', case.name)}.safetensors"
    partial = folder / f".{path.name}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            save_file(tensors, partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)  # whatever stopped it: nobody ever reads half of a case
    except OSError as error:
        raise ConverterError(f"{printable(path)}: cannot be written: {error.strerror or error}") from error
    return f"saved {printable(path)}: run it again with --cases"
