"""Small inputs of every kind, made on the spot, and the command lines that take them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from makers import CONTAINERS, GOLDEN, ROOT, State, convert, other, pixart, prefixed, save
from safetensors.torch import save_file

CASES = ROOT / "fixtures" / "cases"  # files in the shapes of public reports
TINY = {"depth": 1, "hidden_size": 12, "caption_channels": 4, "tokens": 2, "input_size": 8, "pred_sigma": False}


@dataclass(frozen=True)
class Seeds:
    """Where the inputs lie: whole files, and folders that this tool converted (with the file each came from)."""

    torch: list[Path]
    safetensors: list[Path]
    folders: list[Path]
    original: Path
    texts: dict[str, list[Path]]


def tiny(seed: int = 0, dtype: torch.dtype = torch.float16) -> State:
    return pixart(seed=seed, dtype=dtype, **TINY)


def mixed(state: State) -> State:
    """Float32 and bfloat16 by turns, and a tensor whose strides are not those of its shape."""
    made = {key: tensor.bfloat16() if i % 2 else tensor for i, (key, tensor) in enumerate(state.items())}
    return made | {"t_block.1.weight": made["t_block.1.weight"].T.contiguous().T}


def make(place: Path) -> Seeds:
    """All of them, below a new folder."""
    place.mkdir()
    state = tiny()
    archives = [
        *(save(CONTAINERS[name](state), place / f"{name}.pth") for name in ("bare", "state_dict", "training-alpha")),
        save({"state_dict": prefixed(state, "module."), "epoch": 3}, place / "module.ckpt"),
        save({"model": mixed(tiny(1, torch.float32))}, place / "mixed.pth"),
        *(GOLDEN / name for name in ("sigma-ms.pth", "dit.pt")),
    ]
    singles = [place / f"{name}.safetensors" for name in ("plain", "prefixed", "mixed")]
    save_file(state, singles[0])
    save_file(prefixed(other(state), "model.diffusion_model."), singles[1], metadata={"format": "pt"})
    save_file({key: tensor.contiguous() for key, tensor in mixed(tiny(2, torch.float32)).items()}, singles[2])
    folders = [place / "folder", place / "shards"]
    convert(archives[0], folders[0])
    convert(archives[0], folders[1], max_shard_size=2000)
    return Seeds(archives, singles, folders, archives[0], _texts(place, state))


def cases(suffixes: Iterable[str]) -> list[Path]:
    """The files in the shapes of public reports, where they are there."""
    return sorted(path for path in CASES.glob("*") if path.suffix in suffixes and path.is_file())


def _texts(place: Path, state: State) -> dict[str, list[Path]]:
    made: dict[str, list[Path]] = {}

    def write(kind: str, name: str, text: str) -> None:
        path = place / name
        path.write_text(text)
        made.setdefault(kind, []).append(path)

    write("settings", "parity.toml", PARITY_TOML)
    write("settings", "waivers.toml", WAIVERS)
    write("keys", "theirs.json", json.dumps({key: list(tensor.shape) for key, tensor in state.items()}))
    write("keys", "stacks.json", json.dumps(STACKS))
    write("keys", "typed.json", json.dumps({"tensors": {key: ["F32", [8, 4]] for key in ("a.weight", "b.0.c.weight")}}))
    case = {"t999.latent": torch.ones(2, 4, 8, 8), "t999.timestep": torch.tensor([999.0, 1.0])}
    save_file(case | {"t999.caption": torch.ones(2, 1, 3, 4)}, place / "cases.safetensors")
    made["cases"] = [place / "cases.safetensors"]
    return made


STACKS = {
    f"{stack}.{i}.{path}.{part}": [8, 4] if part == "weight" else [8]
    for stack in ("layers", "blocks.down")
    for i in range(3)
    for path in ("attn.qkv", "mlp.fc1", "norm")
    for part in ("weight", "bias")
}

# Nothing of it is there: what is read is the file, not the checkpoints.
PARITY_TOML = """profile = "quick"
threads = 1

[[checkpoint]]
original = "nowhere/*/epoch_*.pth"
converted = "converted/{stem}"
family = "pixart"
weights = "ema"
dtype = ["bfloat16"]
self_test = "full"
given = { num_attention_heads = 16 }
cases = "cases.safetensors"

[[waiver]]
case = "t999-t321"
statistic = "float32 relative L2"
bound = 3.4
reason = "reviewed"
expires = 2020-01-31
"""
WAIVERS = PARITY_TOML[PARITY_TOML.index("[[waiver]]") :] + "".join(
    f'\n[[waiver]]\ncase = "t{i}"\nstatistic = "float64 relative L2"\nbound = 2\nreason = "r"\nexpires = 2020-01-31\n'
    for i in range(3)
)
