"""How each stage is run so that it fits in memory: decided from configs and file headers, before anything is loaded.

Activations are by shapes: the most that is alive at once, with attention as a fused kernel. What CPU kernels take
beside them, and `BASE`, was measured on parts of full size (torch 2.13, two threads, no instructions for bfloat16).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from operator import add
from pathlib import Path

from ..checkpoint import LazyTensor, open_checkpoint
from ..checkpoint.folder import CONFIG, read_config
from ..errors import InputError, UsageError, human_bytes, printable
from .components import WO
from .decode import TILE
from .memory import available, resident

BASE = 500_000_000  # Python with torch, diffusers and transformers; of a GPU about what its context takes
# On the CPU, the unit of what kernels hold beside activations, of which a text encoder takes two, a step one and a
# decoder three: by whole runs at full size, which took 20 and 30 MB more than one and two.
BUFFERS = 50_000_000
# Copies of convolutions, in units of a decoder's activations. Without instructions for half precision one copies its
# input nine times (measured), thrice what is alive.
CONVOLUTIONS = {"float32": 1.2, "float16": 4.2, "bfloat16": 4.2}
# Likewise a step's: copies in float32 where the CPU has no instructions for half precision, and freed pieces that the
# allocator keeps. Beside weights and `BASE` a step took 0.54 GB in float32, and 0.75 GB in bfloat16.
STEP = {"float32": 1.2, "float16": 1.8, "bfloat16": 1.8}
ITEM = {"float32": 4, "float16": 2, "bfloat16": 2}
QUANTISED = {"8bit": 1.0, "nf4": 0.5 + 4 / 64}  # bytes a weight in bitsandbytes; nf4 has a float32 scale for every 64
WORDS = {
    "whole": "whole: weights",
    "streamed": "streamed from its files: largest part",
    "8bit": "in 8 bits by bitsandbytes (not exact): weights",
    "nf4": "in 4 bits by bitsandbytes (nf4, not exact): weights",
    "sliced": "one picture at a time: weights",
    "tiled": f"in tiles of {TILE} px (not exact: seams are blended): weights",
}


def as_bytes(text: str) -> int:
    """A size as people write it.

    >>> as_bytes("3GB"), as_bytes("1.5 GiB")
    (3000000000, 1610612736)
    """
    if not (shown := re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?([MG])(i?)B", text.strip())):
        raise UsageError(f"`memory_budget` {printable(text)}: a size is needed, such as 8GB, 3.5GB or 2GiB")
    return int(float(shown[1]) * (1024 if shown[3] else 1000) ** (2 if shown[2] == "M" else 3))


@dataclass(frozen=True)
class Parts:
    """Numbers of parameters of a component by its files' headers, of each `part` that is streamed by itself: `total`;
    `linear`, in matrices of blocks; `kept`, in those of layers that are called `WO`; `cast`, bytes of its largest
    tensor in the file. `width` and `inner` width of a block; `patch` size."""

    parts: tuple[tuple[int, int, int, int], ...]
    width: int
    inner: int
    patch: int
    dtype: str

    @property
    def total(self) -> int:
        return sum(part[0] for part in self.parts)

    def weights(self, dtype: str, how: str = "whole") -> int:
        """Bytes in memory, with one tensor as it is read where that is cast."""
        wide, saved = 4 - ITEM[dtype] if dtype == "float16" else 0, ITEM[dtype] - QUANTISED.get(how, ITEM[dtype])
        sizes = [
            int(total * ITEM[dtype] + kept * wide - (linear - kept) * saved) for total, linear, kept, _ in self.parts
        ]
        casts = [part[3] if dtype != self.dtype else 0 for part in self.parts]
        streamed = max(map(add, sizes, casts), default=0)
        return streamed if how == "streamed" else sum(sizes) + max(casts, default=0)


def count(state: Mapping[str, LazyTensor], left_out: tuple[str, ...] = ()) -> Parts:
    """The parameters of a component; no weights are read. Keys that begin with `left_out` are not loaded.

    >>> with converter.open_checkpoint("fixtures/golden/sigma-ms.pth") as checkpoint:
    ...     parts = count(checkpoint)
    >>> parts.width, parts.inner, parts.patch
    (48, 192, 2)
    """
    blocks, others = defaultdict[str, list[LazyTensor]](list), defaultdict[str, list[LazyTensor]](list)
    dtypes = Counter[str]()
    for key, tensor in state.items():
        if not key.startswith(left_out):
            numbered = re.match(r".*?\.\d+(?=\.)", key)
            (blocks if numbered else others)[numbered[0] if numbered else key.rpartition(".")[0]].append(tensor)
            dtypes[tensor.dtype.name] += tensor.numel

    def size(part: Iterable[LazyTensor]) -> int:
        return sum(tensor.numel for tensor in part)

    matrices = {name: [tensor for tensor in part if len(tensor.shape) == 2] for name, part in blocks.items()}
    parts = [
        (
            size(part),
            size(linear),
            size(each for each in linear if WO in each.key.split(".")),
            max(each.nbytes for each in part),
        )
        for name, part in chain(blocks.items(), others.items())
        for linear in [matrices.get(name, [])]
    ]
    axes = Counter(axis for each in max(matrices.values(), key=size, default=[]) for axis in each.shape)
    kernels = [each.shape[-1] for part in others.values() for each in part if len(each.shape) == 4]
    return Parts(
        parts=(*parts,),
        width=max(axes, key=axes.__getitem__, default=0),
        inner=max(axes, default=0),
        patch=next(iter(kernels), 1),
        dtype=max(dtypes, key=dtypes.__getitem__, default=""),
    )


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be drawn (sizes in pixels), where, and the dtypes of the three stages."""

    height: int
    width: int
    images: int = 1
    guided: bool = True
    tokens: int = 300
    device: str = "cpu"
    text_dtype: str = "float32"
    dtype: str = "float32"
    vae_dtype: str = "float32"

    @property
    def cpu(self) -> bool:
        return not self.device.startswith("cuda")


@dataclass(frozen=True)
class Sizes:
    """Of the components of a pipeline: `text` None where embeddings are given, `vae` where latents are asked for, with
    the `channels` of its levels."""

    text: Parts | None
    transformer: Parts
    vae: Parts | None = None
    channels: tuple[int, ...] = ()

    def encoding(self, request: Request) -> int:
        """Activations in bytes: of a prompt, and a negative one, in the gated part of the feed-forward."""
        inner = 11 if request.cpu else 7  # on the CPU what attention has freed stays beside them
        each = (inner * self.text.inner + self.text.width) * ITEM[request.text_dtype] if self.text else 0
        return (1 + request.guided) * request.tokens * each + 2 * BUFFERS * request.cpu

    def step(self, request: Request) -> int:
        """Activations of one step: the GELU of the feed-forward, on the CPU always as if in float32."""
        net, item = self.transformer, ITEM[request.dtype]
        patches = (request.height // 8 // net.patch) * (request.width // 8 // net.patch)
        alive = request.images * (1 + request.guided) * patches * (2 * net.inner + 4 * net.width)
        return int(alive * 4 * STEP[request.dtype]) + BUFFERS if request.cpu else alive * item

    def decoding(self, request: Request, how: str = "whole") -> int:
        """Activations of the decoder: three times what goes into a block, as a rule the first at full resolution."""
        item, at_once = ITEM[request.vae_dtype], request.images if how == "whole" else 1
        pixels = area = request.height * request.width
        if how == "tiled":
            area = min(request.height, TILE) * min(request.width, TILE)
        wide = [*self.channels[1:], self.channels[-1]]  # a block takes what the level below it has
        alive = 3 * item * at_once * max(channels * area >> 2 * level for level, channels in enumerate(wide))
        if request.cpu:
            alive = int(alive * CONVOLUTIONS[request.vae_dtype]) + 3 * BUFFERS
        return alive + 3 * pixels * (request.images + 2 * item * (how == "tiled"))


def sizes_of(transformer: Mapping[str, LazyTensor], vae: Path | None = None, text_encoder: Path | None = None) -> Sizes:
    """The sizes of components: of an open transformer in either layout, and of folders. No weights are read.

    Raises: `InputError` for files that cannot be read, or a folder that holds no VAE.
    """
    text = None
    if text_encoder:
        with open_checkpoint(text_encoder) as checkpoint:
            text = count(checkpoint, ("decoder.", "lm_head."))
    if vae is None:
        return Sizes(text, count(transformer))
    channels = read_config(vae).get("block_out_channels")
    if not isinstance(channels, list) or not channels or not all(isinstance(each, int) for each in channels):
        raise InputError.at(vae, CONFIG, "block_out_channels is no list of numbers: give the folder of a VAE")
    with open_checkpoint(vae) as checkpoint:
        return Sizes(text, count(transformer), count(checkpoint, ("encoder.", "quant_conv.")), tuple(channels))


@dataclass(frozen=True)
class StagePlan:
    """One stage: what it is, and one of `WORDS` for how it is run."""

    name: str
    how: str
    weights_bytes: int
    activation_bytes: int

    @property
    def total(self) -> int:
        return BASE + self.weights_bytes + self.activation_bytes

    def __str__(self) -> str:
        parts = f"{human_bytes(self.weights_bytes)} + activations {human_bytes(self.activation_bytes)}"
        base, total = human_bytes(BASE), human_bytes(self.total)
        return f"{self.name}: {WORDS[self.how]} {parts} + the process itself {base} = {total}"


@dataclass(frozen=True)
class MemoryPlan:
    """The stages in their order, and in words what they were planned for."""

    stages: list[StagePlan]
    room: str

    def lines(self) -> list[str]:
        return [f"memory: {self.room}", *map(str, self.stages)]


def plan(sizes: Sizes, request: Request, budget: int | None = None, *, quantize: str | None = None) -> MemoryPlan:
    """The first way of each stage that fits: whole, else in parts. What is not exact comes last, and `quantize` only
    if it is asked for: '8bit' or 'nf4', the text encoder by bitsandbytes.

    Args:
        budget: bytes; None: what there is.

    Raises: `UsageError` where nothing fits, with the least that would.

    >>> with converter.open_checkpoint("fixtures/pipeline/sigma-ms.pth") as checkpoint:
    ...     sizes = sizes_of(checkpoint, Path("fixtures/pipeline/vae"))
    >>> [stage.how for stage in plan(sizes, Request(height=640, width=640), as_bytes("730MB")).stages]
    ['whole', 'tiled']
    """
    if quantize not in (None, *QUANTISED):
        raise UsageError(f"`quantize` {printable(quantize)}: one of {', '.join(QUANTISED)}")
    there = available(request.device) + (resident() if request.cpu else BASE)
    words = f"{human_bytes(there)} available"
    if budget is not None:
        words = f"`memory_budget` {human_bytes(budget)}" + (f", but only {words}" if there < budget else "")
    room = there if budget is None else min(budget, there)
    stages = []
    for ways in _ways(sizes, request, quantize):
        least = min(ways, key=lambda way: way.total)
        stages.append(next((way for way in ways if way.total <= room), least))
    if (most := max(stages, key=lambda stage: stage.total)).total > room:
        raise UsageError(f"{words}, and {human_bytes(most.total)} is the least that would do: {most}")
    return MemoryPlan(stages, words)


def _ways(sizes: Sizes, request: Request, quantize: str | None) -> Iterator[list[StagePlan]]:
    """Of each stage, the ways to run it, the fastest first."""
    exact = ["whole", "streamed"]
    if text := sizes.text:
        weights = {how: text.weights(request.text_dtype, how) for how in ([quantize] if quantize else exact)}
        yield [StagePlan("text encoder", how, size, sizes.encoding(request)) for how, size in weights.items()]
    weights = {how: sizes.transformer.weights(request.dtype, how) for how in exact}
    yield [StagePlan("transformer", how, size, sizes.step(request)) for how, size in weights.items()]
    if sizes.vae is None:
        return
    large = max(request.height, request.width) > TILE
    hows = ["whole", *(["sliced"] if request.images > 1 else []), *(["tiled"] if large else [])]
    held = sizes.vae.weights(request.vae_dtype)
    yield [StagePlan("VAE", how, held, sizes.decoding(request, how)) for how in hows]
