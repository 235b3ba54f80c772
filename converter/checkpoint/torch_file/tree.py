"""The nodes of a torch pickle by what they are, and a search through them: for every dict of tensors, at any depth, and
for what else may be weights. Kinds of tensors, and classes of other libraries that put themselves in a tensor's place,
are named for the line that refuses them: a new one is a row here."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeGuard

from ...errors import UNQUANTISED, plural, printable
from .unpickle import Call, Dict, Global, Set

ALIAS_LIMIT = 8  # further names under which dicts already found are listed: each is looked at again
INTEGERS = 2_000  # that are kept
DEPTH = 16  # keys that lead to a dict of tensors
UNNAMED = (
    "tensors in a list, without names (as diffusers' EMAModel and torch_ema keep an EMA): put them into the model with "
    "EMAModel.copy_to(model.parameters()), and save model.state_dict()"
)
_PLAIN = (int, float, str, bytes, type(None))
_LONGEST = 1024  # characters of a key that are looked at
# What holds copies of the weights that are none: their moments and gradients.
_MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")
_OPTIMIZER = ("optim", "opt", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum", "momentum_buffer", "grad", "grads")

Pairs = list[tuple[Any, Any]]
Path = tuple[str, ...]
# By the name of torch's function that rebuilds them, or of their storage's class.
KINDS = {
    "_rebuild_qtensor": "a quantised tensor", "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_sparse_csr_tensor": "a sparse tensor", "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_wrapper_subclass": "a tensor subclass", "_rebuild_from_type_v2": "a tensor subclass",
    "_rebuild_meta_tensor_no_storage": "a meta tensor without data",
    "_rebuild_device_tensor_from_numpy": "a tensor of another device, stored through NumPy",
    "_rebuild_tensor_v3": "a tensor of a dtype without a storage class",
    "ComplexFloatStorage": "a complex tensor", "ComplexDoubleStorage": "a complex tensor",
    "QInt8Storage": "a quantised tensor", "QUInt8Storage": "a quantised tensor", "QInt32Storage": "a quantised tensor",
    "UntypedStorage": "an untyped storage",
}  # fmt: skip
# By the package that their class is from.
_PACKAGES = {
    "torch.distributed": "a shard of a distributed tensor ({}): save it whole, by "
    "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)), or v.full_tensor() of every v",
} | {
    package: f"quantised weights ({name}, {{}}): {UNQUANTISED}"
    for package, name in (
        ("torchao", "torchao"), ("optimum.quanto", "quanto"), ("quanto", "quanto"), ("bitsandbytes", "bitsandbytes"),
        ("gguf", "GGUF"), ("diffusers.quantizers.gguf", "GGUF"), ("hqq", "HQQ"), ("transformer_engine", "fp8"),
        ("compressed_tensors", "compressed-tensors"), ("auto_gptq", "GPTQ"), ("gptqmodel", "GPTQ"), ("awq", "AWQ"),
    )
}  # fmt: skip


def is_global(node: Any, module: str, name: str) -> bool:
    return isinstance(node, Global) and (node.module, node.name) == (module, name)


def is_ordered_dict(node: Any) -> TypeGuard[Call]:
    """Whether a node is the call that makes an OrderedDict."""
    return isinstance(node, Call) and is_global(node.func, "collections", "OrderedDict")


def pairs_of(node: Any) -> list[tuple[Any, Any]] | None:
    """The entries of a dict, an OrderedDict or a defaultdict, None for anything else."""
    if not isinstance(node, Dict):
        return None
    default_dict = isinstance(node, Call) and is_global(node.func, "collections", "defaultdict")
    return node.pairs if default_dict or is_ordered_dict(node) or not isinstance(node, Call) else None


def is_tensor(node: Any) -> bool:
    """Whether a node is some kind of torch tensor, accepted or not."""
    return (
        isinstance(node, Call)
        and isinstance(node.func, Global)
        and node.func.module in ("torch._utils", "torch._tensor")
        and node.func.name.startswith("_rebuild")
    )


def describe_package(node: Any) -> str:
    """What a class is, or an object of it, that another library puts in a tensor's place; '' for any other."""
    kind = node.func if isinstance(node, Call) else node
    if not isinstance(kind, Global):
        return ""
    return next(
        (words.format(kind) for name, words in _PACKAGES.items() if f"{kind.module}.".startswith(f"{name}.")), ""
    )


def describe(node: Any) -> str:
    """A node in a few words, for an error line. Never recurses into it."""
    if isinstance(node, Call):
        if not isinstance(node.func, Global):
            return "an object"
        args = node.args if isinstance(node.args, tuple) else ()
        if node.func.name == "_rebuild_from_type_v2" and len(args) > 1 and isinstance(args[1], Global):
            return describe_package(args[1]) or f"{KINDS[node.func.name]} ({args[1]}): save plain tensors instead"
        kind = KINDS.get(node.func.name, "")
        if node.func.name == "_rebuild_tensor_v3" and len(args) > 6 and isinstance(args[6], Global):
            few = args[6].name.startswith(("float8", "float4"))
            return f"{kind} ({args[6]})" + (f", quantised weights: {UNQUANTISED}" if few else "")
        return kind or describe_package(node) or f"an object made by {node.func}"
    if isinstance(node, Global):
        return f"a reference to {node}"
    if isinstance(node, Dict):
        return f"a dict of {plural(len(node.pairs), 'item')}"
    if isinstance(node, (list, tuple, Set)):
        return "a sequence"
    return f"a value of type {type(node).__name__}"


@dataclass
class Contents:
    """What lies in a file.

    `dicts`: (the keys that lead to a dict of tensors, its node, its entries that may be weights); `duplicates`: paths
    that two entries have; `pairs`: all at the top level; `hints`: weights that are there and have no names, in words;
    `optimizer`: whether there is an optimizer's state; `integers`: whole numbers by their place, such as
    `hyper_parameters.num_heads`: what the program that wrote the file recorded of itself.
    """

    dicts: list[tuple[Path, Any, Pairs]] = field(default_factory=list)
    duplicates: set[Path] = field(default_factory=set)
    pairs: Pairs = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    optimizer: bool = False
    integers: dict[str, int] = field(default_factory=dict)


def search(root: Any) -> Contents:
    """Every dict of tensors below the root of a pickle. Each object is looked at once, however often it is shared."""
    contents, seen, at, again = Contents(), set[int](), dict[int, int](), 0
    contents.pairs = pairs_of(root) or []
    contents.optimizer = any(of_optimizer((key,)) for key, _ in _texts(contents.pairs))
    waiting: deque[tuple[Path, Any]] = deque([((), root)])
    while waiting:
        path, node = waiting.popleft()
        if id(node) in seen:
            if id(node) in at and again < ALIAS_LIMIT:  # it may be wanted by its other name
                contents.dicts.append((path, *contents.dicts[at[id(node)]][1:]))
                again += 1
            continue
        seen.add(id(node))
        pairs = pairs_of(node)
        if pairs is None and isinstance(node, list | tuple):
            if (count := sum(map(is_tensor, node))) > 1:
                contents.hints.append(f"{_shown(path) or 'the file'}: {count} {UNNAMED}")
            pairs = [(str(index), each) for index, each in enumerate(node) if _holds(each)]
        # Of an object, such as a namespace of arguments.
        attributes = [s.pairs for s in node.states if isinstance(s, Dict)] if isinstance(node, Call) else []
        for key, value in chain(node.pairs, *attributes) if isinstance(node, Dict) else ():
            if type(value) is int and isinstance(key, str) and len(contents.integers) < INTEGERS:
                contents.integers[_shown((*path, key))] = value
        if pairs is None:
            if any(key == "_modules" for each in attributes for key, _ in each):  # what every nn.Module has
                where = f"{_shown(path)}: " if path else ""
                contents.hints.append(
                    f"{where}a whole pickled module ({describe(node)}): save its .state_dict() instead"
                )
            continue
        contents.optimizer |= any(key == "param_groups" or key in _MOMENTS for key, _ in _texts(pairs))
        # What an optimizer keeps of one parameter is none of the weights.
        moments = any(key in _MOMENTS for key, node in _texts(pairs) if is_tensor(node))
        if not moments and (weights := _weights(pairs)):
            at[id(node)] = len(contents.dicts)
            contents.dicts.append((path, node, weights))
        if len(path) < DEPTH:
            names = Counter(key for key, _ in _texts(pairs))
            inner = [(key, node) for key, node in _texts(pairs) if _holds(node)]
            # Of a key that two entries have, nobody can say which one is meant.
            contents.duplicates |= {(*path, key) for key, _ in inner if names[key] > 1}
            waiting.extend(((*path, key), node) for key, node in inner)
    if not contents.dicts and not contents.hints and not contents.optimizer:
        # What may have been meant as a dict of tensors, so that what is in it is called by its kind: the top level, or
        # a dict right below, if there is a tensor or an object in it.
        for path, node in (((), root), *(((key,), inner) for key, inner in _texts(contents.pairs))):
            pairs = pairs_of(node) or []
            if any(isinstance(each, Call | Global) and pairs_of(each) is None for _, each in pairs):
                contents.dicts = [(path, node, pairs)]
                break
    return contents


def _texts(pairs: Pairs) -> Iterator[tuple[str, Any]]:
    """The entries whose keys are texts or, as a text, whole numbers."""
    return ((str(key), node) for key, node in pairs if isinstance(key, str) or type(key) is int)


def _holds(node: Any) -> bool:
    """Whether something may lie inside."""
    return isinstance(node, list | tuple | Dict) and not is_tensor(node)


def _weights(pairs: Pairs) -> Pairs:
    """The entries of a dict that are meant as weights: where there are tensors under names as weights have them, these
    and whatever else cannot be anything but a weight, so that it is refused and not passed over; else tensors, if
    there is nothing else."""
    tensors = [key for key, node in pairs if is_tensor(node)]
    if any(isinstance(key, str) and "." in key[:_LONGEST] for key in tensors):
        return [
            (key, node)
            for key, node in pairs
            # Neither a number, a text or a container, nor of a key that is no text or is one as weights have it.
            if not ((isinstance(node, _PLAIN) or _holds(node)) and isinstance(key, str) and "." not in key[:_LONGEST])
        ]
    return pairs if len(tensors) == len(pairs) else []


def of_optimizer(path: Path) -> bool:
    """Whether a place is where an optimizer keeps its numbers, which may have the names of the weights."""
    return any(part.startswith("optimizer") or part in _OPTIMIZER for part in path)


def _shown(path: Path) -> str:
    return ".".join(printable(part, 80) for part in path)
