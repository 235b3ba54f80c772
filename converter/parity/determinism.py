"""What in torch could change a last bit: fixed while nets run, read back for the report, and put back afterwards."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from .._version import __version__

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


def float32_backends() -> list[Any]:
    """Where torch 2.9 and newer hold, by operation, what may be used for float32; none before."""
    import torch

    known = torch.backends
    owners = {"matmul": (known.cuda, known.mkldnn), "conv": (known.cudnn, known.mkldnn), "rnn": (known.cudnn,)}
    nodes = [getattr(owner, name, None) for name, modules in owners.items() for owner in modules]
    return [node for node in nodes if hasattr(node, "fp32_precision")]


def _exact_float32() -> Callable[[], None]:
    """Let nothing else be used for float32, neither TF32 on CUDA nor bfloat16 on a CPU; returns what undoes it.

    The old switches come first, since products refuse to run where the two kinds contradict each other.
    """
    import torch

    cudnn = torch.backends.cudnn
    before = [(node, node.fp32_precision) for node in float32_backends()]
    products, convolutions = _read(torch.get_float32_matmul_precision), _read(lambda: cudnn.allow_tf32)

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


def _read(switch: Callable[[], Any]) -> Any:
    """The value of an old switch; None where it contradicts a new one, and torch refuses to read it."""
    try:
        return switch()
    except RuntimeError:
        return None


@dataclass(frozen=True)
class Environment:
    """Versions, and what could change a last bit; None for what only CUDA has."""

    tool: str
    python: str
    torch: str
    diffusers: str
    numpy: str
    device: str
    processor: str
    threads: int
    tf32: bool
    deterministic_algorithms: bool
    dtypes: list[str]
    seed: int
    accelerator: str | None = None
    cuda: str | None = None
    cublas_workspace: str | None = None
    fused_attention: bool | None = None

    def as_dict(self) -> dict[str, Any]:
        """As it stands in the report."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def environment(device: str, precisions: Sequence[str]) -> Environment:
    """The versions, and the switches as torch has them now."""
    import torch

    from ..nets.inputs import SEED  # with NumPy, which the lookup of a cached result never needs

    cuda, backends = torch.device(device).type == "cuda", torch.backends.cuda
    fused = backends.flash_sdp_enabled() or backends.mem_efficient_sdp_enabled() or backends.cudnn_sdp_enabled()
    return Environment(
        tool=__version__,
        python=platform.python_version(),
        torch=version_of("torch") or "not installed",
        diffusers=version_of("diffusers") or "not installed",
        numpy=version_of("numpy") or "not installed",
        device=device,
        processor=f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        threads=torch.get_num_threads(),
        tf32=torch.get_float32_matmul_precision() != "highest" or torch.backends.cudnn.allow_tf32,
        deterministic_algorithms=torch.are_deterministic_algorithms_enabled(),
        dtypes=list(precisions),
        seed=SEED,
        accelerator=torch.cuda.get_device_name(device) if cuda else None,
        cuda=torch.version.cuda or "not CUDA's" if cuda else None,
        cublas_workspace=os.environ.get(WORKSPACE, "") if cuda else None,
        fused_attention=fused if cuda else None,
    )


def version_of(package: str) -> str:
    """The installed version of a package; '' where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return ""
