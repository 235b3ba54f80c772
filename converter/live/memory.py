"""A model in memory as a checkpoint: its tensors are read as those of a file are, and all else is as with a file."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..checkpoint import Checkpoint, LazyTensor
from ..checkpoint.dtypes import BY_NAME
from ..checkpoint.file import InputFile
from ..checkpoint.key_names import Tables
from ..checkpoint.state_dicts import FILE, Candidate, split
from ..checkpoint.tensor import Storage, row_major
from ..errors import UsageError, printable
from ..parts import joined

if TYPE_CHECKING:
    import torch


class TensorsFile(InputFile):
    """Tensors of torch, one after the other, as if they lay in a file.

    Args:
        path: what they are called in errors.
    """

    def __init__(self, path: str, tensors: Mapping[str, torch.Tensor]) -> None:
        self.path, self.size, self._fd, self.written_here = path, 0, -1, False
        self.tensors, self._ordered, self._starts = tensors, list(tensors.values()), list[int]()
        self.lazy: dict[str, LazyTensor] = {}
        for key, tensor in tensors.items():
            dtype = BY_NAME.get(str(tensor.dtype).removeprefix("torch."))
            if dtype is None or type(tensor).__module__.partition(".")[0] != "torch":
                kind = f"a {type(tensor).__name__} of {tensor.dtype}"
                raise UsageError(f"{printable(path)}: {printable(key)} is {kind}, and no plain tensor")
            if tensor.is_meta:
                raise UsageError(
                    f"{printable(path)}: {printable(key)} is on the device meta, as of a model that is offloaded: "
                    "its values are not in memory; accelerate.hooks.remove_hook_from_submodules brings them back"
                )
            shape, nbytes = tuple(tensor.shape), tensor.numel() * dtype.itemsize
            storage = Storage(self, key, nbytes, start=self.size)
            self.lazy[key] = LazyTensor(key, dtype, shape, storage, strides=row_major(shape))
            self._starts.append(self.size)
            self.size += nbytes

    def read_into(self, view: memoryview, offset: int, what: str = "") -> None:
        """Fill `view` from `offset`, out of one tensor."""
        import torch

        place = bisect_right(self._starts, offset) - 1  # of those that are empty at one place, the last
        start, tensor = offset - self._starts[place], self._ordered[place]
        data: Any = tensor.detach().contiguous().reshape(-1).view(torch.uint8)[start : start + len(view)].cpu().numpy()
        view[:] = memoryview(data)


class ModelCheckpoint(Checkpoint):
    """The weights of a model in memory, with its config."""

    def __init__(self, file: TensorsFile, config: dict[str, Any], tables: Tables) -> None:
        self._file, self._config = file, config
        super().__init__(file.path, tables=tables)

    def _open(self, tables: Tables | None) -> None:
        self.files, self.container = [self._file], "a model in memory"
        whole = Candidate("", FILE, self._file, lambda: list(self._file.lazy.items()))
        self.candidates = split(whole, (), list(self._file.lazy), tables)
        # Of one of several folders, whose names are before the keys.
        self.config = joined({self.candidates[0].keys.part: self._config})

    def use_config_next_to_it(self) -> None:
        """It has its own."""


@contextmanager
def without_adapters(model: torch.nn.Module) -> Iterator[None]:
    """A model with the layers themselves in place of PEFT's around them: its weights under their own names, and what is
    fused into them as it is. Afterwards all is as before."""
    wrapped = [
        (model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], module)
        for name, module in model.named_modules()
        if hasattr(module, "get_base_layer")
    ]
    try:
        for parent, name, layer in wrapped:
            setattr(parent, name, layer.get_base_layer())
        yield
    finally:
        for parent, name, layer in wrapped:
            setattr(parent, name, layer)
