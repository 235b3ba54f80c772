"""A checkpoint and the folder made of it, opened as the checker opens them, and ways to spoil what was opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from makers import GOLDEN, HEADS, SMALL, convert, diffusers_keyed, pixart
from memory_tensors import memory_tensors
from safetensors.torch import save_file

from converter.checkpoint import open_checkpoint
from converter.checkpoint.json_file import read_json
from converter.conversion.analysis import analyse
from converter.models.pixart.parity import PARITY
from converter.parity.session import Session
from converter.parity.sides import Sides

NAMES = ("alpha-ms", "sigma-ms", "alpha-fixed")  # the golden models that stock diffusers can hold
WEIGHTS = "diffusion_pytorch_model.safetensors"
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Pair:
    """A checkpoint and the folder that was made of it."""

    original: Path
    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "transformer"


def golden(name: str, at: Path) -> Pair:
    """A golden model, converted."""
    original = GOLDEN / f"{name}.pth"
    convert(original, at / name, multi_scale_train=name != "alpha-fixed")
    return Pair(original, at / name)


def small(at: Path, state: State | None = None, **options: Any) -> Pair:
    """A small random model, converted."""
    at.mkdir(parents=True, exist_ok=True)
    save_file(pixart() if state is None else state, at / "model.safetensors")
    size = 8 * SMALL["input_size"]
    said = {"num_attention_heads": HEADS, "image_size": size, "multi_scale_train": True} | options
    convert(at / "model.safetensors", at / "out", **said)
    return Pair(at / "model.safetensors", at / "out")


@contextmanager
def sides(
    original: Path, converted: Mapping[str, torch.Tensor], cast: str = "", sidecar: Any = None, **given: Any
) -> Iterator[Sides]:
    """A checkpoint against a state dict in memory."""
    said = {"num_attention_heads": HEADS} | given
    with open_checkpoint(original) as ours:
        looked = analyse(ours, said)
        family = looked.require()
        kept = memory_tensors(sidecar) if sidecar is not None else None
        yield Sides(family, looked.findings, looked.plan, ours, memory_tensors(converted), kept, cast)


@contextmanager
def session(pair: Pair, change: Any = None, config: Mapping[str, Any] | None = None, **given: Any) -> Iterator[Session]:
    """The nets of a pair. `change` is made to the converted state dict, `config` to the fields of its config."""
    with ExitStack() as stack:
        ours = stack.enter_context(open_checkpoint(pair.original))
        theirs = stack.enter_context(open_checkpoint(pair.folder))
        looked = analyse(ours, {"num_attention_heads": HEADS, "multi_scale_train": True} | given)
        state = {key: tensor.torch().clone() for key, tensor in theirs.items()}
        if change:
            change(state)
        theirs, fields = memory_tensors(state), read_json(pair.model / "config.json") | dict(config or {})
        yield Session(Sides(looked.require(), looked.findings, looked.plan, ours, theirs, spec=PARITY, config=fields))


def keyed(state: State) -> State:
    """The same model as a right conversion has it."""
    return diffusers_keyed(state)
