"""A device that there is not: its tensors are on the CPU, and refuse to meet any that do not say they are on it.

Run by itself it reads lines of JSON, and compares a checkpoint with the folder made of it there, with one of the LEAKS
put in:

    [ORIGINAL, CONVERTED, LEAK, {OPTION: VALUE, ...}]

For each it prints a line: the report as JSON, or the error that a real accelerator would raise as well. Each has a
process of its own, forked when all is imported, which takes longer than to compare small nets. What it cannot show is
the arithmetic of a real device.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch
from makers import stated
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "fake"
# What makes up nearly all the work: on the device, or the device is not used at all.
OPERATIONS = ("addmm", "bmm", "convolution", "gelu", "layer_norm", "linear", "mm", "scaled_dot_product_attention")
WORK = {f"aten::{native}{name}" for name in OPERATIONS for native in ("", "native_")}
MOVES = ("aten::_to_copy", "aten::copy_", "aten::to")


class Remote(torch.Tensor):
    """A tensor that says it is on the device."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Remote:
        made: Remote = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return carry_out(function, args, kwargs or {})

    def tolist(self) -> Any:  # of a subclass torch refuses it; of a device it copies
        return self.inner.tolist()


def mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """The same nesting of lists, tuples and dictionaries, of what `change` makes of each leaf; torch's own walk takes
    longer than small nets compute."""
    if isinstance(value, list | tuple):
        return type(value)([mapped(change, part) for part in value])
    if isinstance(value, dict):
        return {key: mapped(change, part) for key, part in value.items()}
    return change(value)


def remote(leaf: Any) -> Any:
    return Remote(leaf) if isinstance(leaf, torch.Tensor) and not isinstance(leaf, Remote) else leaf


def carry_out(function: Any, args: Any, kwargs: Any) -> Any:
    name, device, there, here = function.name().partition(".")[0], None, False, False

    def local(leaf: Any) -> Any:
        """What there is on the CPU in place of it."""
        nonlocal device, there, here
        if isinstance(leaf, Remote):
            there = True
            return leaf.inner
        if isinstance(leaf, torch.Tensor):
            here = here or leaf.dim() > 0
        elif isinstance(leaf, torch.device):
            device = device or leaf
            return torch.device("cpu") if leaf.type == NAME else leaf
        return leaf

    own_args, own_kwargs = mapped(local, args), mapped(local, kwargs)
    if there and here and name not in MOVES:
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, found {NAME}:0 and cpu")
    if not there and name in WORK:
        raise RuntimeError(f"{name}: on the CPU, and meant to be on {NAME}:0")
    output = function(*own_args, **own_kwargs)
    if name == "aten::copy_":
        return args[0]
    return mapped(remote, output) if (device.type == NAME if device else there) else output


class FakeDevice(TorchDispatchMode):
    """While it is on, what is made for the device is on it."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return carry_out(function, args, kwargs or {})


def blocks_stay() -> None:
    """The weights of a block, which are lent."""
    from converter.nets import Weights

    right = Weights.scratch
    Weights.scratch = lambda self, prefix: {k: t.cpu() for k, t in right(self, prefix).items()}


def table_stays() -> None:
    """A positional table, which is made on the CPU."""
    module = importlib.import_module("converter.nets.patches")
    right = module.to_weights_dtype

    def moved(weights: Any, tensor: torch.Tensor) -> torch.Tensor:
        is_table = tensor.dim() == 3 and len(tensor) == 1
        return tensor if is_table else right(weights, tensor)

    module.to_weights_dtype = moved


def everything_stays() -> None:
    """No leak in one place: the device is not used at all."""
    from converter.parity.session import Session

    right = Session.__init__

    def on_the_cpu(self: Session, *arguments: Any, **named: Any) -> None:
        right(self, *arguments, **named | {"device": "cpu"})

    Session.__init__ = on_the_cpu


LEAKS: dict[str, Callable[[], None]] = {
    "none": lambda: None,
    "blocks": blocks_stay,
    "table": table_stays,
    "everything": everything_stays,
}


def compared(original: str, converted: str, leak: str, options: dict[str, Any]) -> dict[str, Any]:
    """The report, or the error."""
    from converter.parity import check

    LEAKS[leak]()
    try:
        with FakeDevice():
            report = check(original, converted, **stated(device=f"{NAME}:0", num_attention_heads=4, **options))
    except RuntimeError as error:
        return {"error": str(error)}
    except Exception:
        return {"crashed": traceback.format_exc()}
    found: dict[str, Any] = json.loads(report.to_json())
    return found


def prepare() -> None:
    """What every comparison needs first, and what it would import."""
    for name in ("DiTTransformer2DModel", "PixArtTransformer2DModel"):
        getattr(importlib.import_module("diffusers"), name)
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME)
    torch.inference_mode = torch.no_grad  # it and subclasses do not go together
    torch.set_num_threads(1)
    with FakeDevice():
        torch.zeros(1, device=f"{NAME}:0")


def main() -> None:
    prepare()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            print(json.dumps(compared(*json.loads(line))), flush=True)
            os._exit(0)
        if status := os.waitpid(child, 0)[1]:
            print(json.dumps({"crashed": f"exit code {os.waitstatus_to_exitcode(status)}"}), flush=True)


if __name__ == "__main__":
    main()
