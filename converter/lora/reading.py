"""Reading an adapter: which spelling, which model, and what each of its tensors means, or why not."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any

from ..checkpoint import LazyTensor
from ..checkpoint.file import reading
from ..errors import AdapterError, InputError, UsageError, printable, shortened
from ..families import Family, families, find, named
from ..mapping import fold
from ..mapping.dims import Pattern, bind, mismatch
from ..mapping.fold import listed
from ..remote import fetched
from .adapter import Adapter
from .changes import is_number
from .files import AdapterFile, open_file
from .modules import Problem, Scale, changes_of
from .names import Names
from .spelling import BESIDE, SPELLINGS, Spelling, adapter_name, parted

SHOWN = 6  # problems in one line
Roles = dict[str, LazyTensor]  # what a tensor is of its module, such as 'down' -> the tensor


@contextmanager
def open_adapter(
    path: str | os.PathLike[str],
    *,
    family: Family | str | None = None,
    lora_alpha: float | None = None,
    allow_partial: bool = False,
    describe: bool = False,
    quiet: bool = True,
) -> Iterator[Adapter]:
    """An adapter in any spelling, while its file is open.

    Args:
        path: a file, a folder of PEFT or of a training run, a hub id, `hf://owner/name/file` or a URL.
        family: of the model that it is for; default: the one whose names it has.
        lora_alpha: where the file does not say it.
        allow_partial: leave out what cannot be read or is no part of the model, and say so in `skipped`.
        describe: whatever stands against using it goes to `problems`, and is no error.
        quiet: no progress bars while fetching.

    Raises: `InputError` for what is no adapter of a known model, or only half of one; `UsageError` where `lora_alpha`
        is needed, or contradicts the file.

    Example:
        >>> with open_adapter("fixtures/lora/d-ot-kohya.safetensors") as adapter:
        ...     adapter.spelling.name, adapter.family.name, adapter.kinds["LoRA"][:2]
        ('kohya', 'pixart', ['blocks.0.attn.proj', 'blocks.0.attn.qkv'])
    """
    with ExitStack() as stack:
        if lora_alpha is not None and not (is_number(lora_alpha) and lora_alpha > 0):
            raise UsageError(f"`lora_alpha` {printable(repr(lora_alpha)[:60], 40)}: a number above 0 is needed")
        place = stack.enter_context(fetched(path, hub=True, quiet=quiet))
        with reading(place):
            file = open_file(stack, place)
            adapter = _read(file, find(family) if isinstance(family, str) else family, lora_alpha)
            if not describe:
                _refuse(adapter, allow_partial)
            yield adapter


def _refuse(adapter: Adapter, allow_partial: bool) -> None:
    """Raises: `InputError` or `UsageError` for what stands against using an adapter."""
    if adapter.obstacle:
        raise InputError.at(adapter.path, "", adapter.obstacle)
    if adapter.problems and not allow_partial:
        more = f" and {len(adapter.problems) - SHOWN} more" if len(adapter.problems) > SHOWN else ""
        rule = f"{'; '.join(adapter.problems[:SHOWN])}{more}; nothing of it is used (`allow_partial` leaves these out)"
        raise InputError.at(adapter.path, "", rule)
    if not adapter.changes:
        raise InputError.at(adapter.path, "", f"changes nothing of the transformer{_of_others(adapter.beside)}")
    if adapter.needed:
        raise UsageError(f"{printable(adapter.path)}: {adapter.needed}")
    adapter.skipped, adapter.problems = adapter.problems, []


def _read(file: AdapterFile, insisted: Family | None, lora_alpha: float | None) -> Adapter:
    beside = [key for key in file.tensors if BESIDE.match(key)]
    if len(adapters := sorted({name for key in file.tensors if (name := adapter_name(key))})) > 1:
        rule = f"several adapters in one state dict: {shortened([printable(name, 40) for name in adapters], 4)}"
        raise InputError.at(file.path, "", rule)
    parts = {key: parted(key) for key in file.tensors if not BESIDE.match(key)}
    heads = [part[0] for key in file.tensors if (part := parts.get(key))]
    spelling, names, others = _recognised(file, dict.fromkeys(heads), beside, insisted)
    problems: list[Problem] = []
    modules = _modules(file, spelling, names, parts, problems)
    config = file.config(spelling)
    scale = Scale(file.path, spelling, config, lora_alpha, training=file.of_a_model)
    about: dict[str, Any] = {
        "metadata": file.metadata, "container": file.container, "size": file.size, "tool": file.tool(config),
        "others": others, "beside": beside,
    }  # fmt: skip
    adapter = Adapter(file.path, spelling, names.family, names.layout, {}, file.tensors, **about)
    for module, roles in modules.items():
        try:
            adapter.changes.update(changes_of(module, roles, scale))
        except Problem as problem:
            problems.append(problem)
    _check_shapes(adapter, problems)
    lacking = config.lacking(adapter.changes) if config and not config.obstacle else []
    adapter.problems, adapter.needed = [*_in_words(problems), *lacking], scale.needed
    adapter.obstacle = f"{Path(config.place).name}: {config.obstacle}" if config and config.obstacle else ""
    adapter.notes += [*file.notes, *scale.notes(adapter)]
    if beside:
        adapter.notes.append(f"left out, of other models: {', '.join(adapter.beside_words)}")
    adapter.rslora = bool(config and config.content.get("use_rslora"))
    if others:
        adapter.notes.append(
            f"its names are those of a {' or '.join(other.title for other in others)} too: taken for a "
            f"{names.family.title}'s (`family` states it)"
        )
    return adapter


def _of_others(beside: Collection[str]) -> str:
    return f" (it has {', '.join(fold(beside)[:3])})" if beside else ""


def _recognised(
    file: AdapterFile, heads: Collection[str], beside: Collection[str], insisted: Family | None
) -> tuple[Spelling, Names, list[Family]]:
    """(the spelling and the names that know most, other families that know all as well)."""
    every = [one for one in families().values() if not one.several and one is not insisted]
    every[:0] = [insisted] if insisted else []
    found: list[tuple[int, Spelling, Names]] = []
    for spelling in SPELLINGS:
        own = [head[len(spelling.prefix) :] for head in heads if head.startswith(spelling.prefix)]
        for family in every if own else ():
            names = spelling.names(family)
            found.append((sum(names.module(name) is not None for name in own), spelling, names))
    if insisted:
        others = [each for each in found if each[2].family is not insisted]
        found = [each for each in found if each[2].family is insisted]
        known = max(map(itemgetter(0), found), default=0)
        if more := next((names for count, _, names in others if known < count == len(heads)), None):
            rule = f"an adapter (LoRA) of a {more.family.title}, and the model is a {insisted.title}"
            raise InputError.at(file.path, "", rule)
    if not found or 2 * max(found, key=itemgetter(0))[0] < len(heads) or _only_weights(file):
        kind = InputError if _only_weights(file) else AdapterError
        raise kind.at(file.path, "", _foreign(file, heads, beside))
    known, spelling, names = max(found, key=itemgetter(0))
    alike = [n.family for count, s, n in found if s is spelling and count == known and n is not names]
    return spelling, names, alike if known == len(heads) else []


def _only_weights(file: AdapterFile) -> bool:
    """Whether no key is one of a product's or a difference's."""
    return all(part is None or part[1] in ("weight", "bias") for part in map(parted, file.tensors))


def _foreign(file: AdapterFile, heads: Collection[str], beside: Collection[str]) -> str:
    """What a file is that no family's names are in."""
    if (config := file.config(SPELLINGS[0])) and config.obstacle:
        return f"{Path(config.place).name}: {config.obstacle}"
    if _only_weights(file):
        return "no LoRA or other adapter: none of its keys is that of one" + _of_others([*file.tensors][:3])
    if not heads:
        return f"changes nothing of a transformer{_of_others(beside)}"
    plain = {head[max(len(s.prefix) for s in SPELLINGS if head.startswith(s.prefix)) :] for head in heads}
    dotted = {re.sub(r"_(\d+)_", r".\1.", name) + ".weight" for name in plain}
    other = named(dotted | {f"{name}.weight" for name in plain})
    what = f"an adapter (LoRA) of {other}" if other else "an adapter (LoRA) of a model that is not known here"
    return f"{what}: its modules are {shortened(fold(heads), 4)}"


def _modules(
    file: AdapterFile,
    spelling: Spelling,
    names: Names,
    parts: Mapping[str, tuple[str, str] | None],
    problems: list[Problem],
) -> dict[str, Roles]:
    """What there is of every module of the model."""
    modules: dict[str, Roles] = defaultdict(dict)
    sources: dict[tuple[str, str], str] = {}
    for key, part in parts.items():
        if file.ignored(key):
            continue
        head, role = part or (key, "")
        name = names.module(head[len(spelling.prefix) :]) if head.startswith(spelling.prefix) else None
        if role in ("weight", "bias") and spelling.alpha == "tensor":  # such files have no modules in place of others
            part = None
        if name is None or part is None:
            what = "unknown modules" if part else "keys that are none of an adapter's"
            problems.append(Problem(what, key if part is None else head))
        elif role in modules[name]:
            twice = f"{printable(sources[name, role])} and {printable(key)} are both of"
            problems.append(Problem(twice, name))
        else:
            modules[name][role], sources[name, role] = file.tensors[key], key
    return dict(modules)


def _check_shapes(adapter: Adapter, problems: list[Problem]) -> None:
    """Drop, and tell, what is not of the widths that most of it has."""
    shapes: list[tuple[str, Pattern, tuple[int, ...]]] = []
    for key, change in [*adapter.changes.items()]:
        found = adapter.table.find(key)
        if found is None:
            problems.append(Problem("the model has no", key))
            del adapter.changes[key]
            continue
        row = adapter.table.rows[found[0]]
        pattern, size = row.shape_pattern(found[2]), change.product.size
        if len(pattern) == 1:
            shapes.append((key, pattern, (size[0],)))
        elif len(pattern) == 2:
            shapes.append((key, pattern, size))
        elif pattern:  # a convolution, whose kernel not every kind shows
            shapes.append((key, pattern[:1], size[:1]))
    dims, _ = bind(shapes)
    for key, pattern, shape in shapes:
        if wanted := mismatch(pattern, shape, dims):
            problems.append(Problem(f"{list(shape)}, where {wanted} is needed, for", key))
            del adapter.changes[key]


def _in_words(problems: Collection[Problem]) -> list[str]:
    by_kind: dict[str, list[str]] = defaultdict(list)
    for problem in problems:
        by_kind[printable(problem.what, 300)].append(problem.where)
    return listed(by_kind)
