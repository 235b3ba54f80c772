"""The tensors of a file that a user names as the null caption: a checkpoint, a bare tensor, or arrays of NumPy.

The training code of PixArt-sigma keeps T5's embedding of an empty prompt as {uncond_prompt_embeds [1, L, K],
uncond_prompt_embeds_mask} (train_scripts/train.py), and both training codes keep the captions of a data set as `.npz`
with caption_feature [1, L, K] and attention_mask (tools/extract_features.py).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from io import BytesIO
from math import prod
from typing import Any
from zipfile import ZipFile

from ..checkpoint import LazyTensor, open_checkpoint
from ..checkpoint.dtypes import BY_NAME, DType
from ..checkpoint.file import InputFile
from ..checkpoint.torch_file.reader import bare_tensor
from ..checkpoint.torch_file.zip_directory import read_directory
from ..errors import InputError, printable
from .buffers import computed_on_demand

LARGEST = 1 << 26  # bytes of a NumPy file, and of what its arrays take: a caption of 300 tokens takes 5 MB
MOST_MEMBERS = 64  # of an archive: a caption has a mask beside it, and a few things more
_AXES = 8
_NPY = b"\x93NUMPY"


def open_tensors(stack: ExitStack, path: str | os.PathLike[str]) -> Mapping[str, LazyTensor]:
    """The tensors of a file, by the names that they have there; those of NumPy are read, all others are not.

    Raises: `InputError` for a file that cannot be read, or is none of these.

    Example:
        >>> import numpy as np
        >>> np.savez(tmp / "a.npz", caption_feature=np.zeros((1, 20, 32)), attention_mask=np.ones((1, 20), np.int16))
        >>> with ExitStack() as stack:
        ...     {name: tensor.shape for name, tensor in open_tensors(stack, tmp / "a.npz").items()}
        {'caption_feature': (1, 20, 32), 'attention_mask': (1, 20)}
    """
    if os.path.isdir(path):
        return stack.enter_context(open_checkpoint(path))
    file = stack.enter_context(closing(InputFile(path)))
    if _of_numpy(file):
        return _arrays(file)
    bare = bare_tensor(file)
    return {bare.key: bare} if bare else stack.enter_context(open_checkpoint(path))


def without_batch(tensor: LazyTensor, rank: int) -> LazyTensor:
    """The tensor without leading axes of size 1 beyond this rank: the only sample of a batch."""
    while len(tensor.shape) > rank and tensor.shape[0] == 1:
        tensor = replace(tensor, shape=tensor.shape[1:], strides=tensor.strides[1:])
    return tensor


def mask_fault(mask: LazyTensor, tokens: int) -> str:
    """Why this is no mask of a caption of so many tokens, in words, '' for one that is: 1 for each token of the text,
    which come first, and 0 for the padding after them.

    Raises: `InputError` where it cannot be read.
    """
    mask = without_batch(mask, 1)
    if mask.shape != (tokens,):
        return f"has shape {list(mask.shape)}, and the caption {tokens} tokens"
    values = mask.numpy()
    if not ((values == 0) | (values == 1)).all():
        return "holds other values than 0 and 1"
    count = int((values == 1).sum())
    if not count:
        return "is 0 throughout: no token of the caption would count"
    return "" if values[:count].all() else "has a 0 before a 1: the tokens of a text come first, then the padding"


def _of_numpy(file: InputFile) -> bool:
    """Whether it is an `.npy`, or an archive that begins with one: no torch archive does."""
    head = file.read(0, min(file.size, 300))
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    return head.startswith(_NPY) or (head.startswith(b"PK\x03\x04") and name.endswith(b".npy"))


def _arrays(file: InputFile) -> dict[str, LazyTensor]:
    """The arrays of floats and whole numbers, by name; nothing is unpickled."""
    if file.size > LARGEST:
        raise file.error("", f"{file.size} bytes, more than any null caption has")
    data = file.read(0, file.size)
    if data.startswith(_NPY):
        return {"the array": _tensor(file, "the array", data)}
    if (count := len(read_directory(file)[0])) > MOST_MEMBERS:  # reading them would take long
        raise file.error("", f"an archive of {count} members, more than any null caption has")
    try:
        with ZipFile(BytesIO(data)) as archive:
            members = archive.infolist()
            size = sum(member.file_size for member in members)
            if size > LARGEST:
                raise file.error("", f"its arrays take {size} bytes, more than any null caption has")
            contents = {member.filename.removesuffix(".npy"): archive.read(member) for member in members}
        if len(contents) < len(members):
            raise file.error("", "several of its arrays have one name")
    except InputError:
        raise
    except Exception as error:  # of zipfile and zlib, which raise what they please
        raise file.error("", f"cannot be read as arrays of NumPy: {printable(error)}") from error
    return {name: _tensor(file, name, content) for name, content in contents.items()}


def _tensor(file: InputFile, name: str, data: bytes) -> LazyTensor:
    """The array of an `.npy`, which must end where its header says."""
    import numpy as np

    if not data.startswith(_NPY):
        raise file.error(name, "is no array of NumPy")
    shape, fortran, stored, start = _header(file, name, data)
    dtype: DType | None = BY_NAME.get(stored.name)
    if dtype is None:
        raise file.error(name, f"is of {stored.name}: neither floats nor whole numbers")
    size, there = prod(shape) * dtype.itemsize, len(data) - start
    if size != there:
        rule = f"{dtype} {list(shape)} takes {size} bytes, and {there} follow its header"
        raise file.error(name, f"{rule}: {'truncated?' if size > there else 'other bytes follow the array'}")
    array = np.ndarray(shape, stored, data, start, order="F" if fortran else "C")
    elements = array.astype(stored.newbyteorder("<")).tobytes()
    return computed_on_demand(name, dtype, shape, lambda: iter([elements]))


def _header(file: InputFile, name: str, data: bytes) -> tuple[tuple[int, ...], bool, Any, int]:
    """(shape, whether it is column by column, dtype of NumPy, where the elements begin) of an `.npy`.

    NumPy repairs some headers and warns of it, as of Python 2's `20L`: those are refused.
    """
    from numpy.lib import format as npy

    stream, readers = BytesIO(data), {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            version = npy.read_magic(stream)
            shape, fortran, dtype = readers[version](stream)
        if len(shape) > _AXES or any(type(size) is not int or size < 0 for size in shape):
            raise ValueError
        if prod(size or 1 for size in shape) >= 1 << 48:  # NumPy computes that even where one of them is 0
            raise ValueError
    except Exception as error:  # what its parts are raises as it pleases, with the objects of a parser in its words
        text = data[len(_NPY) + 4 :].partition(b"\n")[0].decode("latin-1").strip()
        shown = printable(text, 100) or "cut off"
        rule = f"its header is none that numpy.save writes today ({shown}): save the array again"
        raise file.error(name, rule) from error
    return shape, fortran, dtype, stream.tell()
