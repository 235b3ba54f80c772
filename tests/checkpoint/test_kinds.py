"""What stands in a tensor's place is named by what it is, with what to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from zip_builder import SIX, Glob, Node, assert_refused, build, call, ordered, save, tensor, torch_file

BEFORE = "use the original weights, from before quantisation"


@pytest.fixture
def mesh() -> Iterator[Any]:
    from torch import distributed
    from torch.distributed.tensor import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield init_device_mesh("cpu", (2,))
    distributed.destroy_process_group()


def test_a_tensor_that_is_spread_over_processes(mesh: Any, tmp_path: Path) -> None:
    from torch.distributed.tensor import DTensor, Shard

    spread = DTensor.from_local(torch.ones(2, 3), mesh, [Shard(0)], run_check=False)
    for name, made in (("tensor", spread), ("parameter", torch.nn.Parameter(spread))):
        for state in ({"a.w": made}, {"model": {"good": torch.ones(2), "a.w": made}}):
            torch.save(state, tmp_path / f"{name}.pth")
            assert_refused(
                tmp_path / f"{name}.pth",
                "a.w",
                "a shard of a distributed tensor (torch.distributed.tensor.DTensor)",
                "full_state_dict=True",
                "v.full_tensor()",
            )


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    made = torch.ones(3).to(dtype)
    torch.save({"plain": torch.ones(1), "a.w": made}, tmp_path / "a.pth")
    assert_refused(tmp_path / "a.pth", "a.w", f"without a storage class ({dtype}), quantised weights", BEFORE)
    made.note = 1
    torch.save({"a.w": made}, tmp_path / "a.pth")
    assert_refused(tmp_path / "a.pth", "a.w", f"({dtype})", BEFORE)
    torch.save({"a.w": torch.ones(3).to(torch.uint16)}, tmp_path / "a.pth")
    assert_refused(tmp_path / "a.pth", "a.w", "without a storage class (torch.uint16)")


def wrapper(module: str, name: str) -> Node:
    """As torch saves a wrapper subclass: its own class, and what it holds as state."""
    kind = Glob(module, name)
    args = (kind, Glob("torch", "float32"), (2, 3), (3, 1), 0, None, None, False)
    rebuild = Glob("torch._utils", "_rebuild_wrapper_subclass")
    return call(Glob("torch._tensor", "_rebuild_from_type_v2"), rebuild, kind, args, {"int_data": tensor()})


@pytest.mark.parametrize(
    ("module", "name", "library"),
    [
        ("torchao.dtypes.affine_quantized_tensor", "AffineQuantizedTensor", "torchao"),
        ("torchao.quantization.quantize_.workflows.int8.int8_tensor", "Int8Tensor", "torchao"),
        ("optimum.quanto.tensor.weights.qbytes", "WeightQBytesTensor", "quanto"),
        ("bitsandbytes.nn.modules", "Params4bit", "bitsandbytes"),
        ("diffusers.quantizers.gguf.utils", "GGUFParameter", "GGUF"),
    ],
)
def test_classes_of_quantised_weights(module: str, name: str, library: str, tmp_path: Path) -> None:
    line = f"not a tensor but quantised weights ({library}, {module}.{name}): {BEFORE}"
    assert_refused(save(tmp_path, torch_file({"a.w": wrapper(module, name)}, SIX)), "a.w", line)
    whole = build(call(Glob(module, name)), {"data": tensor()})  # an object that brings its own way to be saved
    assert_refused(save(tmp_path, torch_file({"model": {"a.w": whole}}, SIX)), "a.w", line)


def test_a_parameter_that_carries_how_it_was_quantised(tmp_path: Path) -> None:
    """bitsandbytes' Params4bit is a Parameter to torch, with the scales in an attribute."""
    how = build(call(Glob("bitsandbytes.functional", "QuantState")), {"absmax": tensor()})
    state = {"blocksize": 64, "quant_type": "nf4", "quant_state": how}
    node = call(Glob("torch._utils", "_rebuild_parameter_with_state"), tensor(), False, ordered(), state)
    line = "attribute 'quant_state' holds quantised weights (bitsandbytes, bitsandbytes.functional.QuantState)"
    assert_refused(save(tmp_path, torch_file({"a.w": node}, SIX)), "a.w", line, BEFORE)


def test_a_name_that_only_begins_like_a_library(tmp_path: Path) -> None:
    for module in ("torchaox.y", "x.torchao", "torch.distributedx"):
        path = save(tmp_path, torch_file({"a.w": wrapper(module, "T")}, SIX))
        assert_refused(path, f"a tensor subclass ({module}.T): save plain tensors instead")
