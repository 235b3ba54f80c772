"""Text embeddings in a file: whoever has no room for the text encoder draws from those of another machine."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoint.file import InputFile
from ..checkpoint.safetensors_reader import read_header
from ..checkpoint.write.publish import write_file

if TYPE_CHECKING:
    from torch import Tensor

CONVENTIONS = "conventions"  # in the file's metadata


@dataclass(frozen=True)
class Embeddings:
    """What a text encoder makes of prompts, under the names that the arguments of diffusers' pipelines have.

    Embeddings are (B, L, C) of floating point, masks (B, L), int64: 1 for a token, 0 for padding. The negative ones are
    those of the null branch of guidance, which a model that runs without guidance does not need.

    >>> import torch
    >>> one = Embeddings(torch.zeros(1, 120, 4096), torch.ones(1, 120, dtype=torch.int64))
    >>> one.save(tmp / "cat.safetensors")
    >>> Embeddings.load(tmp / "cat.safetensors", tokens=120, width=4096).prompt_embeds.shape
    torch.Size([1, 120, 4096])
    """

    prompt_embeds: Tensor
    prompt_attention_mask: Tensor
    negative_prompt_embeds: Tensor | None = None
    negative_prompt_attention_mask: Tensor | None = None

    @classmethod
    def load(cls, path: Path, *, tokens: int, width: int) -> Embeddings:
        """The embeddings of a safetensors file, for a model that takes `tokens` tokens of this `width`.

        Raises: `InputError` for anything else: nothing is cut, padded or made up.
        """
        import torch

        with InputFile(path) as file:
            held, names = read_header(file)[0], [field.name for field in fields(cls)]
            wanted = names if held.keys() & set(names[2:]) else names[:2]
            if missing := [name for name in wanted if name not in held]:
                raise file.error("", f"lacks {' and '.join(missing)}: embeddings and their mask go together")
            if unknown := [name for name in held if name not in names]:
                raise file.error(unknown[0], f"is none of {', '.join(names)}")
            batch, values = max((1, *held[names[0]].shape[:1])), dict[str, torch.Tensor]()
            for name in wanted:
                shape = [batch, tokens] if name.endswith("mask") else [batch, tokens, width]
                if list(held[name].shape) != shape:
                    raise file.error(name, f"has shape {list(held[name].shape)}, and this model needs {shape}")
                value = held[name].torch()
                values[name] = value.to(torch.int64) if name.endswith("mask") else value
                if name.endswith("mask"):
                    if bool(((value != 0) & (value != 1)).any()):
                        raise file.error(name, "holds other values than 0 and 1")
                    if not bool(value.any(dim=1).all()):
                        raise file.error(name, "keeps no token of a sample")
                elif not held[name].dtype.floating:
                    raise file.error(name, f"is {held[name].dtype}, and floating point is needed")
                elif not bool(value.isfinite().all()):
                    raise file.error(name, "holds NaN or infinity: encode the prompt again, in bfloat16 or float32")
            return cls(**values)

    def save(self, path: Path, *, conventions: str = "", overwrite: bool = False) -> None:
        """Write them to a safetensors file, whole or not at all, with the conventions that the null branch is by.

        Raises: `UsageError` where that may not be written or is there already, `ConverterError` for a full disk.
        """
        from safetensors.torch import save

        tensors = {name: held.cpu().clone().contiguous() for name, held in vars(self).items() if held is not None}
        data = save(tensors, {CONVENTIONS: conventions} if conventions else None)
        write_file(path, data, overwrite=overwrite)


def kept_conventions(path: Path) -> str:
    """The conventions that a file of embeddings was kept with, '' where it does not say."""
    with InputFile(path) as file:
        return read_header(file)[1].get(CONVENTIONS, "")
