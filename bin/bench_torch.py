"""The work of `bin/bench` that needs NumPy or torch, each call in a process of its own.

The measuring process stays small on purpose: on Linux a child's peak memory is never reported below what
its parent held when it was started.

    bench_torch.py make plain|training INVENTORY DEPTH TARGET [DTYPE]    write a checkpoint
    bench_torch.py torch|torch-mmap SOURCE TARGET                convert one the usual way, for comparison
    bench_torch.py half SOURCE TARGET                            the same, rounded to float16
    bench_torch.py back SOURCE INVENTORY TARGET                     and the way back, buffers left out
"""

from __future__ import annotations

import json
import re
import sys
from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fixtures"))
from make_inventories import DIFFUSERS, diffusers_names, sana_table

BUFFERS = {"pos_embed", "y_embedder.y_embedding"}  # trained by nobody, so the optimizer knows nothing of them


def sincos(side: int, hidden: int, scale: float) -> np.ndarray:
    """The positional table that training stores, (1, side * side, hidden): width first, sines before cosines.

    >>> sincos(2, 8, 1.0)[0, 1, [0, 2]].tolist() == [np.float32(np.sin(1)), np.float32(np.cos(1))]
    True
    """
    positions = np.arange(side) / scale
    angles = np.outer(positions, 1 / 10000 ** (np.arange(hidden // 4) / (hidden / 4)))
    axis = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    across = np.broadcast_to(axis[None, :], (side, side, hidden // 2))
    down = np.broadcast_to(axis[:, None], (side, side, hidden // 2))
    return np.concatenate([across, down], axis=2).reshape(1, -1, hidden).astype(np.float32)


def noise(seed: int, index: int, shape: list[int]) -> torch.Tensor:
    """Weights of a plausible size; a counter-based generator makes each tensor independent of the rest."""
    values = np.random.Generator(np.random.Philox(key=[seed, index])).standard_normal(shape, np.float32)
    values *= 0.02
    return torch.from_numpy(values)


def table_of(keys: Collection[str]) -> Mapping[str, list[str]]:
    """Where diffusers has the tensors of a PixArt or a SANA."""
    return sana_table(keys) if "attention_y_norm.weight" in keys else DIFFUSERS


def state_dict(inventory: dict, depth: int, seed: int, dtype: str = "float32") -> OrderedDict[str, torch.Tensor]:
    tensors = OrderedDict()
    for index, (key, (_, shape)) in enumerate(inventory["tensors"].items()):
        block = re.match(r"blocks\.(\d+)\.", key)
        if block and int(block[1]) >= depth:
            continue
        if key == "pos_embed":
            scale = inventory["interpolation_scale"]
            side, hidden = round(shape[1] ** 0.5), shape[2]
            tensors[key] = torch.from_numpy(sincos(side, hidden, scale)) if scale else torch.zeros(shape)
        else:
            tensors[key] = noise(seed, index, shape).to(getattr(torch, dtype))
    return tensors


def training_checkpoint(inventory: dict, depth: int) -> dict:
    """What a run with AdamW leaves behind: four times the weights, of which a conversion needs one."""
    weights, average, moment, square = (state_dict(inventory, depth, seed) for seed in range(4))
    trained = [key for key in weights if key not in BUFFERS]
    state = {
        i: {"step": torch.tensor(1000.0), "exp_avg": moment[key], "exp_avg_sq": square[key].square_()}
        for i, key in enumerate(trained)
    }
    group = {"lr": 2e-5, "betas": (0.9, 0.999), "eps": 1e-10, "weight_decay": 0.0, "params": list(state)}
    return {
        "state_dict": weights,
        "state_dict_ema": average,
        "optimizer": {"state": state, "param_groups": [group]},
        "scheduler": {"base_lrs": [2e-5], "last_epoch": 1000, "_step_count": 1001, "_last_lr": [2e-5]},
        "epoch": 10,
    }


def make(kind: str, inventory: str, depth: str, target: str, dtype: str = "float32") -> None:
    facts = json.loads(Path(inventory).read_text())
    if kind == "training":
        checkpoint = training_checkpoint(facts, int(depth))
    else:
        checkpoint = {"state_dict": state_dict(facts, int(depth), 0, dtype)}
    # Renamed when whole, so that a file that is there can be used again.
    partial = Path(target + ".partial")
    torch.save(checkpoint, partial)
    partial.replace(target)


def convert(source: str, target: str, mmap: bool, half: bool = False) -> None:
    """The least that a script has to do around `torch.load`: rename, split, save."""
    from safetensors.torch import save_file

    checkpoint = torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    tensors, table = {}, table_of(checkpoint["state_dict"])
    for key, tensor in checkpoint["state_dict"].items():
        names = diffusers_names(key, table)
        parts = (tensor.half() if half else tensor).chunk(len(names)) if names else ()
        tensors.update(zip(names, parts, strict=True))
    save_file(tensors, target, metadata={"format": "pt"})


def back(source: str, inventory: str, target: str) -> None:
    """The least that a script has to do on the way back; what diffusers does not hold stays away."""
    from safetensors.torch import load_file

    tensors, made = load_file(source), OrderedDict()
    keys = json.loads(Path(inventory).read_text())["tensors"]
    for key in keys:
        names = [name for name in diffusers_names(key, table_of(keys)) if name in tensors]
        if names:
            made[key] = torch.cat([tensors[name] for name in names]) if len(names) > 1 else tensors[names[0]]
    torch.save({"state_dict": made}, target)


if __name__ == "__main__":
    task, *arguments = sys.argv[1:]
    if task == "make":
        make(*arguments)
    elif task == "back":
        back(*arguments)
    else:
        convert(*arguments, mmap=task != "torch", half=task == "half")
