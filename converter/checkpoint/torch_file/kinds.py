"""Nodes of a torch pickle by what they are: the tensor inside of others, and for a line that refuses them kinds of
tensors, and classes of other libraries that put themselves in a tensor's place. A new one is a row here."""

from __future__ import annotations

from typing import Any, TypeGuard

from ...errors import UNQUANTISED
from .unpickle import Call, Dict, Global, Set

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
    "torch.distributed": "a part of a tensor that is spread over processes ({}): save the whole, "
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
        return f"a dict of {len(node.pairs)} items"
    if isinstance(node, (list, tuple, Set)):
        return "a sequence"
    return f"a value of type {type(node).__name__}"
