"""What in torch could change a last bit: fixed while nets run, read back for the report, and put back afterwards."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from ..nets.inputs import SEED

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
WORKSPACES = (":4096:8", ":16:8")  # those with which CUDA's matrix products are deterministic
IEEE = "ieee"  # float32 as it is written: no TF32, no bfloat16


@contextmanager
def deterministic(device: str = "cpu", threads: int | None = None) -> Iterator[None]:
    """float32 that is float32, deterministic algorithms, and as many threads for the whole run.

    Args:
        device: on all but the CPU, attention is computed step by step: what a fused kernel rounds is that kernel's own.
        threads: of the CPU; default: as many as torch has now. It is set all the same, which keeps the math library
            from choosing for each product anew.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with ExitStack() as undo:
        undo.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(threads or torch.get_num_threads())
        undo.callback(_put_workspace, os.environ.get(WORKSPACE))
        if os.environ.get(WORKSPACE) not in WORKSPACES:
            _put_workspace(WORKSPACES[0])
        undo.callback(torch.set_deterministic_debug_mode, torch.get_deterministic_debug_mode())
        torch.use_deterministic_algorithms(True)
        cudnn = torch.backends.cudnn
        undo.callback(setattr, cudnn, "benchmark", cudnn.benchmark)
        cudnn.benchmark = False
        undo.callback(_exact_float32())
        own = torch.device(device).type
        for kind in {"cpu", own}:
            if torch.is_autocast_enabled(kind):
                undo.enter_context(torch.autocast(kind, enabled=False))
        if own != "cpu":
            undo.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def _put_workspace(value: str | None) -> None:
    os.environ.pop(WORKSPACE, None)
    if value is not None:
        os.environ[WORKSPACE] = value


def precision_switches() -> list[Any]:
    """Where torch 2.9 and newer say, by operation, what may stand for float32; none before."""
    import torch

    known = torch.backends
    nodes = [
        getattr(owner, name, None)
        for owner, name in (
            (known.cuda, "matmul"),
            (known.cudnn, "conv"),
            (known.cudnn, "rnn"),
            (known.mkldnn, "matmul"),
            (known.mkldnn, "conv"),
        )
    ]
    return [node for node in nodes if hasattr(node, "fp32_precision")]


def _exact_float32() -> Callable[[], None]:
    """Let nothing stand for float32, neither TF32 on CUDA nor bfloat16 on a CPU; returns what undoes it.

    The old switches come first, since products refuse to run where the two kinds contradict each other.
    """
    import torch

    cudnn = torch.backends.cudnn
    before = [(node, node.fp32_precision) for node in precision_switches()]
    products, convolutions = _asked(torch.get_float32_matmul_precision), _asked(lambda: cudnn.allow_tf32)

    def set_all(products: str | None, convolutions: bool | None, each: Sequence[tuple[Any, str]]) -> None:
        if products is not None:
            torch.set_float32_matmul_precision(products)
        if convolutions is not None:
            cudnn.allow_tf32 = convolutions
        for node, value in each:
            if node.fp32_precision != value:
                node.fp32_precision = value

    set_all("highest", False, [(node, IEEE) for node, _ in before])
    return lambda: set_all(products, convolutions, before)


def _asked(switch: Callable[[], Any]) -> Any:
    """What an old switch says; None where it contradicts a new one, and torch refuses to tell."""
    try:
        return switch()
    except RuntimeError:
        return None


def environment(device: str, precisions: Sequence[str]) -> dict[str, Any]:
    """Versions, and the switches as torch has them now: what could change a last bit."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from .._version import __version__

    made: dict[str, Any] = {"tool": __version__, "python": platform.python_version()}
    for name in ("torch", "diffusers", "numpy"):
        try:
            made[name] = version(name)
        except PackageNotFoundError:
            made[name] = "not installed"
    exact = torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
    made |= {
        "device": device,
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "tf32": not exact,
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "dtypes": list(precisions),
        "seed": SEED,
    }
    if torch.device(device).type == "cuda":
        made |= {
            "accelerator": torch.cuda.get_device_name(device),
            "cuda": torch.version.cuda or "not CUDA's",
            "cublas_workspace": os.environ.get(WORKSPACE, ""),
            "fused_attention": torch.backends.cuda.flash_sdp_enabled()
            or torch.backends.cuda.mem_efficient_sdp_enabled()
            or torch.backends.cuda.cudnn_sdp_enabled(),
        }
    return made
