"""Small checkpoints in the original layout, in every container and under every prefix that people have them in.

And what is done with them: starting the command as a process of its own, comparing folders.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import resource
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blake3 import blake3
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import converter
from converter.conversion.batch import Outcome, convert_all
from converter.conversion.options import ConversionOptions
from converter.conversion.pairs import Pair
from converter.parity.choices import CheckOptions

sys.path.append(str(Path(__file__).resolve().parents[1] / "fixtures"))
import make_inventories as inventories

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "fixtures" / "golden"
HEADS = 4  # of every model made here, and of the golden ones: a file cannot tell

State = dict[str, torch.Tensor]
SMALL: dict[str, Any] = {"depth": 2, "hidden_size": 24, "caption_channels": 16, "tokens": 12, "input_size": 16}


def sincos(hidden: int, side: int, scale: float) -> torch.Tensor:
    """The positional table as the training code writes it down, by another road than the converter's."""
    axis = np.arange(side, dtype=np.float32) / (side / side) / scale
    width, height = np.meshgrid(axis, axis)  # width first
    omega = np.arange(hidden // 4, dtype=np.float64)
    omega /= hidden / 4.0
    omega = 1.0 / 10000**omega
    parts = []
    for grid in (width, height):
        angles = np.einsum("m,d->md", grid.reshape(-1), omega)
        parts += [np.sin(angles), np.cos(angles)]
    return torch.from_numpy(np.concatenate(parts, axis=1)).float()[None]


def pixart(
    *,
    seed: int = 0,
    scale: float = 1.0,
    dtype: torch.dtype | Callable[[str], torch.dtype] = torch.float32,
    **sizes: Any,
) -> State:
    """Random weights and a true `pos_embed`. `sizes` are `inventory`'s; `dtype` may depend on the key."""
    sizes = SMALL | sizes
    random = torch.Generator().manual_seed(seed)
    side = sizes["input_size"] // sizes.get("patch_size", 2)
    state = {}
    for key, (_, shape) in inventories.inventory(**sizes).items():
        if key == "pos_embed":
            tensor = sincos(sizes["hidden_size"], side, scale)
            assert list(tensor.shape) == shape
        else:
            tensor = torch.randn(shape, generator=random) * 0.1
        state[key] = tensor.to(dtype(key) if callable(dtype) else dtype)
    return state


def dit(*, seed: int = 0, dtype: torch.dtype = torch.float32, **sizes: Any) -> State:
    """A class-conditional DiT, likewise. `sizes` are those of the generator's `dit`."""
    sizes = {"depth": 2, "hidden_size": 24, "input_size": 16, "class_rows": 7} | sizes
    random = torch.Generator().manual_seed(seed)
    state = {
        key: torch.randn(shape, generator=random) * 0.1
        for key, (_, shape) in inventories.inventory(family="dit", **sizes).items()
    }
    state["pos_embed"] = sincos(sizes["hidden_size"], sizes["input_size"] // sizes.get("patch_size", 2), 1.0)
    return {key: tensor.to(dtype) for key, tensor in state.items()}


def dit_keyed(state: Mapping[str, torch.Tensor], depth: int) -> State:
    """The same DiT under diffusers' keys, every copy a tensor of its own."""
    made = {}
    for key, tensor in state.items():
        names, copies = inventories.dit_names(key, depth)
        parts = [tensor] * len(names) if copies else tensor.chunk(len(names)) if names else ()
        for name, part in zip(names, parts, strict=True):
            made[name] = part.clone()
    return made


def diffusers_keyed(state: Mapping[str, torch.Tensor]) -> State:
    """The same model under diffusers' keys; what has no home there is left out."""
    made = {}
    for key, tensor in state.items():
        names = inventories.diffusers_names(key)
        for name, part in zip(names, tensor.chunk(len(names)) if names else (), strict=True):
            made[name] = part.clone()
    return made


def expected_weights(state: Mapping[str, torch.Tensor], path: Path) -> bytes:
    """What `safetensors` itself writes for the converted state dict."""
    save_file(diffusers_keyed(state), path, metadata={"format": "pt"})
    return path.read_bytes()


def raw_bytes(tensor: torch.Tensor) -> bytes:
    """The elements in row-major order."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def digest(data: bytes) -> str:
    """As a record states it."""
    return f"blake3:{blake3(data).hexdigest()}"


# Containers: (state, path without suffix) -> the file or folder.


def prefixed(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + key: tensor for key, tensor in state.items()}


def save(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def other(state: State) -> State:
    """Weights that differ from `state` everywhere."""
    return {key: tensor if key == "pos_embed" else tensor + 1 for key, tensor in state.items()}


def training(raw: State, ema: State | None) -> dict[str, Any]:
    """What the training code saves: a real optimizer's state, stepped once, and a real schedule's."""
    parameters = [torch.nn.Parameter(t.float().clone()) for k, t in raw.items() if "pos_embed" not in k]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    optimizer.step()
    schedule.step()
    made: dict[str, Any] = {"state_dict": raw}
    if ema is not None:
        made["state_dict_ema"] = ema
    return made | {"optimizer": optimizer.state_dict(), "scheduler": schedule.state_dict(), "epoch": 7}


CONTAINERS: dict[str, Callable[[State], Any]] = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state},
    "model": lambda state: {"model": state},
    "ema": lambda state: {"ema": state},
    "training-alpha": lambda state: training(state, other(state)),
    "training-sigma": lambda state: training(state, None),
}
PREFIXES = (
    "",
    "module.",
    "model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "_orig_mod.",
    "module._orig_mod.",
    "_orig_mod.module.model.diffusion_model.",
)


def folder(
    state: State, path: Path, config: Mapping[str, Any], *, shards: int = 1, suffix: str = "safetensors"
) -> Path:
    """A diffusers model folder, in one file or in shards with their index."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(dict(config)))
    stem = "diffusion_pytorch_model"

    def write(part: State, name: str) -> None:
        if suffix == "safetensors":
            save_file(part, path / name, metadata={"format": "pt"})
        else:
            torch.save(part, path / name)

    if shards == 1:
        write(state, f"{stem}.{suffix}")
        return path
    weight_map = {}
    for i, keys in enumerate(_dealt(state, shards), 1):
        name = f"{stem}-{i:05}-of-{shards:05}.{suffix}"
        write({key: state[key] for key in keys}, name)
        weight_map |= dict.fromkeys(keys, name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (path / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return path


def _dealt(keys: Iterable[str], hands: int) -> list[list[str]]:
    keys = list(keys)
    return [keys[i::hands] for i in range(hands)]


# Running the command, and looking at what it left.


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder: its relative path and its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


Result = subprocess.CompletedProcess[str]
ENTRIES = {"convert-pixart": "convert_main", "pixart": "main"}
_ENTRY = "import sys; from converter.cli import {}; {}()"


def start(name: str, *arguments: object, **options: Any) -> subprocess.Popen[Any]:
    """`convert-pixart` or `pixart` as a process of its own; `under`: the words of a program that starts it."""
    function = ENTRIES[name]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | options.pop("env", {})
    command = [*options.pop("under", ()), sys.executable, "-c", _ENTRY.format(function, function), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, **options)


def launch(name: str, *arguments: object, **options: Any) -> Result:
    """The same, carried out: its exit code and what it printed."""
    pipe = subprocess.PIPE
    process = start(name, *arguments, **({"stdout": pipe, "stderr": pipe, "text": True} | options))
    try:
        out, err = process.communicate(timeout=60)
    except BaseException:
        process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def terminal(name: str, *arguments: object, **options: Any) -> tuple[int, str, bytes]:
    """(exit code, standard output, what a terminal of 80 columns got to see as standard error)."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    process = start(name, *arguments, stdout=subprocess.PIPE, stderr=theirs, text=True, **options)
    os.close(theirs)
    shown = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    out, _ = process.communicate(timeout=60)
    return process.returncode, out, shown


HEAVY = {"torch", "diffusers", "safetensors", "transformers", "numpy", "tqdm", "ctypes"}
HEAVY |= {"jinja2", "matplotlib", "tomllib"}
_WATCH = """
import sys
sys.argv = {argv!r}
from converter.cli import {entry}
try:
    {entry}()
finally:
    print("IMPORTED", *sorted(set(sys.modules) & {heavy}))
"""


def imported(name: str, *arguments: object, errors: str = "") -> tuple[int, str, set[str], float]:
    """(exit code, standard output, which of the heavy modules were imported, seconds of processor time)."""
    argv, entry = [name, *map(str, arguments)], ENTRIES[name]
    code = _WATCH.format(argv=argv, entry=entry, heavy=HEAVY)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert re.fullmatch(errors, result.stderr), result.stderr
    printed, _, modules = result.stdout.rpartition("IMPORTED")
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return result.returncode, printed, set(modules.split()), seconds


def recorded(name: str) -> tuple[dict[str, Any], list[State]]:
    """(what a golden net was made with, the tensors of each recorded case in the order of their names)."""
    path = GOLDEN / f"{name}.golden.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    cases: dict[str, State] = {}
    for key, tensor in load_file(path).items():
        case, _, what = key.partition(".")
        cases.setdefault(case, {})[what] = tensor
    settings = json.loads(metadata["hyperparameters"])
    return settings | {"model": metadata.get("model")}, [cases[case] for case in sorted(cases)]


@contextmanager
def within(seconds: float, *, of_processor: bool = False) -> Iterator[None]:
    """A block that must not block: neither in a system call nor in a loop. Not to be nested.

    Args:
        of_processor: count only what this process computes, however much others do; a system call may then take longer.
    """

    def expired(number: int, frame: Any) -> None:
        raise AssertionError(f"still busy after {seconds} s")

    timer, number = (signal.ITIMER_PROF, signal.SIGPROF) if of_processor else (signal.ITIMER_REAL, signal.SIGALRM)
    before = signal.signal(number, expired)
    signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        signal.setitimer(timer, 0)
        signal.signal(number, before)


@pytest.fixture(autouse=True, scope="session")
def module_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where a conftest or a module takes it: diffusers copies classes that travel into a folder of the tests' own."""
    from diffusers.utils import dynamic_modules_utils

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Where a conftest takes it: threads of nets as small as these wait for each other more than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def converted(pairs: Iterable[Pair], **words: Any) -> list[Outcome]:
    """Several conversions, with options and hyper-parameters as `stated` takes them."""
    named = stated(**words)
    hyper_parameters = named.pop("hyper_parameters")
    return convert_all(pairs, ConversionOptions(**named), hyper_parameters)


def convert(source: object, out: object, **words: Any) -> converter.Conversion:
    """A conversion with words as `stated` takes them; the heads are those of what is made here."""
    return converter.convert(source, out, **stated(**{"num_attention_heads": HEADS} | words))


def stated(hyper_parameters: Mapping[str, Any] | None = None, **words: Any) -> dict[str, Any]:
    """Keyword arguments of `convert` and `check`: what is no option, nor another argument, is a hyper-parameter."""
    options = {field.name for kind in (ConversionOptions, CheckOptions) for field in fields(kind)}
    own = {name: value for name, value in words.items() if name in options | {"progress", "waivers"}}
    given = {name: value for name, value in words.items() if name not in own}
    return own | {"hyper_parameters": {**given, **(hyper_parameters or {})}}


def lock(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """No folder of this name can be listed, which modes would not keep root from."""
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if os.path.basename(path) == name:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
