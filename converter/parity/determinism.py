"""What in torch could change a last bit: fixed while nets run, read back for the report, and put back afterwards."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

from .._version import __version__

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
WORKSPACES = (":4096:8", ":16:8")  # those with which CUDA's matrix products are deterministic
PRECISION, IEEE = "fp32_precision", "ieee"  # float32 as it is written: no TF32, no bfloat16


@contextmanager
def deterministic(device: str = "cpu", threads: int | None = None) -> Iterator[None]:
    """True float32, deterministic algorithms, and a fixed number of threads for the whole run.

    Args:
        device: on all but the CPU, attention is computed step by step: what a fused kernel rounds is that kernel's own.
        threads: of the CPU; default: as many as torch has now. It is set all the same, which keeps the math library
            from choosing for each product anew.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    cudnn, own, workspace = torch.backends.cudnn, torch.device(device).type, os.environ.get(WORKSPACE)
    # What reads a switch, what sets it, and to what. The old ones for float32 come before the new ones, since products
    # refuse to run where the two kinds contradict each other: then an old one cannot even be read, and is left alone.
    settings: list[tuple[Callable[[], Any], Callable[[Any], object], Any]] = [
        (torch.get_num_threads, torch.set_num_threads, threads or torch.get_num_threads()),
        (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode, "error"),
        (lambda: cudnn.benchmark, partial(setattr, cudnn, "benchmark"), False),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
        (lambda: cudnn.allow_tf32, partial(setattr, cudnn, "allow_tf32"), False),
        *((partial(getattr, node, PRECISION), partial(_put_precision, node), IEEE) for node in float32_backends()),
    ]
    before = []
    for read, put, _ in settings:
        with suppress(RuntimeError):
            before.append((put, read()))
    with ExitStack() as stack:
        for kind in {"cpu", own}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if own != "cpu":
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        try:
            _put_workspace(workspace if workspace in WORKSPACES else WORKSPACES[0])
            for _, put, value in settings:
                put(value)
            yield
        finally:
            _put_workspace(workspace)
            for put, value in before:
                put(value)


def _put_workspace(value: str | None) -> None:
    os.environ.pop(WORKSPACE, None)
    if value is not None:
        os.environ[WORKSPACE] = value


def float32_backends() -> list[Any]:
    """Where torch 2.9 and newer hold, by operation, what may be used for float32; none before."""
    import torch

    known = torch.backends
    owners = {"matmul": (known.cuda, known.mkldnn), "conv": (known.cudnn, known.mkldnn), "rnn": (known.cudnn,)}
    nodes = [getattr(owner, name, None) for name, modules in owners.items() for owner in modules]
    return [node for node in nodes if hasattr(node, PRECISION)]


def _put_precision(node: Any, value: str) -> None:
    """Let float32 be computed so: neither in TF32 on CUDA nor in bfloat16 on a CPU."""
    if getattr(node, PRECISION) != value:
        setattr(node, PRECISION, value)


def environment(device: str, precisions: Sequence[str]) -> dict[str, Any]:
    """The versions, and the settings as torch has them now, as they stand in the report."""
    import torch

    from ..nets.inputs import SEED  # with NumPy, which the lookup of a cached result never needs

    machine = {
        "tool": __version__,
        "python": platform.python_version(),
        **{package: version_of(package) or "not installed" for package in ("torch", "diffusers", "numpy")},
        "device": device,
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "tf32": torch.get_float32_matmul_precision() != "highest" or torch.backends.cudnn.allow_tf32,
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "dtypes": list(precisions),
        "seed": SEED,
    }
    if torch.device(device).type != "cuda":
        return machine
    backends = torch.backends.cuda
    fused = backends.flash_sdp_enabled() or backends.mem_efficient_sdp_enabled() or backends.cudnn_sdp_enabled()
    return machine | {
        "accelerator": torch.cuda.get_device_name(device),
        "cuda": torch.version.cuda or "not CUDA's",
        "cublas_workspace": os.environ.get(WORKSPACE, ""),
        "fused_attention": fused,
    }


def version_of(package: str) -> str:
    """The installed version of a package; '' where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return ""
