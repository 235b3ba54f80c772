"""What an adapter is, JSON-ready: for `inspect`, and for the record of a conversion."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import plural
from ..mapping import fold
from .adapter import Adapter
from .reading import open_adapter

REPORT_VERSION = 1


def inspect_lora(
    path: str | os.PathLike[str], *, family: str | None = None, lora_alpha: float | None = None, deep: bool = False
) -> dict[str, Any]:
    """What the adapter at a path is: spelling, tool, model, kinds, ranks, scales and where they are from, modules, what
    is left out, and what stands against using it. Reads the header and the alphas, and no other tensor unless `deep`.

    Raises: `InputError` for what is no adapter of a known model.

    Example:
        >>> report = inspect_lora("fixtures/lora/d-ot-kohya.safetensors")
        >>> report["adapter"]["spelling"], report["adapter"]["scales"]
        ('kohya', [{'scale': 0.5, 'rank': 4, 'alpha': 2.0, 'source': 'file', 'modules': 28}])
    """
    with open_adapter(path, family=family, lora_alpha=lora_alpha, describe=True) as adapter:
        if deep:
            adapter.check_finite()
        return report(adapter)


def report(adapter: Adapter) -> dict[str, Any]:
    """The report of an open adapter. `hyper_parameters` is empty: an adapter has none of its own."""
    problems = [*([adapter.obstacle] if adapter.obstacle else []), *adapter.problems]
    return {
        "version": REPORT_VERSION,
        "source": {
            "name": adapter.name,
            "size": adapter.size,
            "container": adapter.container,
        },
        "adapter": {
            "spelling": adapter.spelling.name,
            "title": adapter.spelling.title,
            "tool": adapter.tool,
            "kinds": {kind: len(modules) for kind, modules in adapter.kinds.items()},
            "scales": scales(adapter),
            "modules": fold(dict.fromkeys(key.rpartition(".")[0] for key in adapter.changes)),
            "rslora": adapter.rslora,
            "beside": adapter.beside_words,
            "left_out": adapter.skipped,
        },
        "family": adapter.family.name,
        "layout": adapter.layout,
        "hyper_parameters": {},
        "parameters": sum(tensor.numel for tensor in adapter.tensors.values()),
        "dtypes": adapter.dtypes,
        "notes": adapter.notes,
        "needs": adapter.needed,
        "problems": problems,
    }


def scales(adapter: Adapter) -> list[dict[str, Any]]:
    """The scales of an adapter's products, each with its rank (None: it has none), where alpha is from, and how many
    modules have it; alpha is the scale times the rank, of rsLoRA times its root."""
    by: Callable[[int], float] = math.sqrt if adapter.rslora else float
    groups: dict[tuple[float, int | None, str], int] = {}
    for change in _products(adapter):
        group = (change.scale, change.product.rank, change.alpha)
        groups[group] = groups.get(group, 0) + 1
    return [
        {"scale": scale, "rank": rank, "alpha": scale * by(rank) if rank else None, "source": source, "modules": count}
        for (scale, rank, source), count in sorted(groups.items(), key=lambda each: -each[1])
    ]


def in_words(adapter: Adapter) -> str:
    """An adapter in a line: spelling, kinds, and the scale that most of it has, with where that is from."""
    kinds = ", ".join(f"{kind} ({plural(len(modules), 'module')})" for kind, modules in adapter.kinds.items())
    groups = scales(adapter)
    most = ""
    for group in groups[:1]:
        alpha = f" (alpha {group['alpha']:.4g}, {group['source']})" if group["alpha"] else ""
        most = f", scale {group['scale']:.4g}{alpha}"
    others = f" and {plural(len(groups) - 1, 'other scale')}" if len(groups) > 1 else ""
    return f"{adapter.spelling.name}, {kinds}{most}{others}"


def _products(adapter: Adapter) -> Iterable[Any]:
    return (change for key, change in adapter.changes.items() if change.alpha and key.endswith(".weight"))
