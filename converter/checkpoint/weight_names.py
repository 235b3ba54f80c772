"""What files of weights are called: by what they end in, and in a model folder by the names that diffusers gives them,
their variants, and the indices of their shards."""

from __future__ import annotations

import re
from collections.abc import Collection

from ..errors import printable

SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")  # of files that may be checkpoints
WEIGHTS = "diffusion_pytorch_model.safetensors"  # as diffusers calls those of a model
INDEX = f"{WEIGHTS}.index.json"
# Of an adapter (LoRA), in the folder that PEFT or a training script writes, and PEFT's config beside them.
ADAPTERS = (
    "adapter_model.safetensors", "adapter_model.bin", "pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin",
)  # fmt: skip
ADAPTER_CONFIG = "adapter_config.json"
STEMS = (WEIGHTS, "diffusion_pytorch_model.bin", "model.safetensors", "pytorch_model.bin", "pytorch_model_fsdp.bin")


def with_variant(name: str, variant: str) -> str:
    """A file's name with that of a variant put in, as diffusers does (`utils/hub_utils.py`, `_add_variant`).

    >>> with_variant(WEIGHTS, "fp16"), with_variant(INDEX, "fp16")[-16:]
    ('diffusion_pytorch_model.fp16.safetensors', '.index.fp16.json')
    """
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.{variant}.{suffix}" if variant else name


def variants(names: Collection[str]) -> list[str]:
    """The variants that weights under these names are of, such as 'fp16'."""
    forms = set()
    for name in (*STEMS, *(f"{stem}.index.json" for stem in STEMS)):
        stem, _, suffix = name.rpartition(".")
        form = re.compile(rf"{re.escape(stem)}\.([\w-]+)\.{suffix}")
        forms |= {match[1] for match in map(form.fullmatch, names) if match}
    return sorted(variant for variant in forms if not is_shard(variant))


def is_shard(variant: str) -> bool:
    """Whether what looks like a variant's name is that of one of its shards, such as 'fp16-00001-of-00002'."""
    return re.search(r"-\d{5}-of-\d{5}$", variant) is not None


def weights_among(names: Collection[str]) -> list[tuple[str, str]]:
    """(file of weights, index of its shards) out of the names in a folder, best first, '' for the one that is absent.

    As in diffusers, safetensors come first. A variant is taken where it is all there is.

    Raises: ValueError for several variants, and for both a file and an index of the same name.
    """
    pairs = pairs_among(names, "")
    if not pairs and (kinds := variants(names)):
        if len(kinds) > 1:
            raise ValueError(f"holds several variants ({', '.join(map(printable, kinds))}) and no weights without one")
        pairs = pairs_among(names, kinds[0])
    if pairs and all(pairs[0]):
        raise ValueError(f"holds both {pairs[0][0]} and an index of shards: one of them is stale")
    return pairs


def pairs_among(names: Collection[str], variant: str) -> list[tuple[str, str]]:
    """`weights_among` of one variant ('': without one), whatever there is of it."""
    pairs = ((with_variant(stem, variant), with_variant(f"{stem}.index.json", variant)) for stem in STEMS)
    there = [(single if single in names else "", index if index in names else "") for single, index in pairs]
    return [pair for pair in there if any(pair)]
