"""Nodes of a torch pickle by what they are: the tensor inside of others, and for a line that refuses them kinds of
tensors, and classes of other libraries that put themselves in a tensor's place. A new one is a row here."""

from __future__ import annotations

from typing import Any, TypeGuard

from ...errors import UNQUANTISED, printable
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
# `torch.load` sets attributes one by one: these names are no attributes to it but the elements themselves.
_DATA = {"data", "real", "imag"}
_PLAIN = (type(None), bool, int, float, str)
_REMEDY = "save {k: v.detach().clone() for k, v in state_dict.items()} instead"


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
    parts = kind.module.split(".", 4)[:4]
    packages = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
    return next((_PACKAGES[package].format(kind) for package in packages if package in _PACKAGES), "")


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


class Attributes:
    """Takes tensors out of what torch saves of a parameter, or of a tensor with attributes of its own.

    An attribute (`p._is_hf_initialized = True`) makes torch save a tensor by another function, with the attributes
    after it (torch/nn/parameter.py and torch/_tensor.py, `__reduce_ex__`). They are no part of its data: plain values
    are passed over. Anything else may stand for the data (quantised weights keep theirs so), and is refused. What is
    plain is remembered: attributes may be shared by all tensors, and the time is that of reading the pickle once.
    """

    def __init__(self) -> None:
        # By identity; each node is kept, so that no other takes its place.
        self._plain: dict[int, Any] = {}
        self._states: dict[int, Any] = {}

    def strip(self, node: Any) -> tuple[Any, str]:
        """(the node of the tensor itself, or of what is there instead; what stands against taking it, or '')."""
        for _ in range(3):  # a Parameter of a Parameter is already more than torch writes
            func = node.func if isinstance(node, Call) else None
            args = node.args if isinstance(node, Call) and isinstance(node.args, tuple) else ()
            if is_global(func, "torch._utils", "_rebuild_parameter"):
                inner, state = args[0] if args else None, None
            elif is_global(func, "torch._utils", "_rebuild_parameter_with_state"):
                hooks = args[2] if len(args) == 4 else None  # which torch does not save: an empty OrderedDict
                if not is_ordered_dict(hooks) or hooks.args or hooks.changed:
                    return node, "a parameter with other arguments than torch writes"
                inner, state = args[0], args[3]
            elif (
                is_global(func, "torch._tensor", "_rebuild_from_type_v2")
                and len(args) == 4
                and (is_global(args[1], "torch", "Tensor") or is_global(args[1], "torch.nn.parameter", "Parameter"))
            ):  # no subclass
                inner, state = Call(args[0], args[2]), args[3]
            else:
                break
            if node.changed:
                return node, "a parameter whose attributes are overridden"
            if problem := self._problem(state):
                return node, problem
            node = inner
        return node, ""

    def _problem(self, state: Any) -> str:
        """What is wrong with the attributes, which torch saves as a dict, or as a pair of one and of slots."""
        for part in state if isinstance(state, tuple) and len(state) == 2 else (state,):
            if part is None or id(part) in self._states:
                continue
            if type(part) is not Dict:
                return f"a tensor whose attributes are not a dict but {describe(part)}: {_REMEDY}"
            for name, value in part.pairs:
                if not isinstance(name, str):
                    return f"a tensor with an attribute whose name is {describe(name)}: {_REMEDY}"
                if name in _DATA:
                    return f"a tensor whose attribute {name!r} takes the place of its data when it is loaded: {_REMEDY}"
                odd = self._odd(value)
                if odd is not None:
                    kind = "a tensor" if is_tensor(odd) else describe(odd)
                    what = describe_package(odd) or f"{kind}, which is no plain value: {_REMEDY}"
                    return f"a tensor whose attribute {printable(repr(name[:41]), 40)} holds {what}"
            self._states[id(part)] = part
        return ""

    def _odd(self, value: Any) -> Any:
        """The first node in a value that is none of the plain ones; None where there is none."""
        seen, waiting = dict[int, Any](), [value]
        while waiting:
            node = waiting.pop()
            if isinstance(node, _PLAIN) or id(node) in seen or id(node) in self._plain:
                continue
            if type(node) is Dict:
                waiting += [part for pair in node.pairs for part in pair]
            elif isinstance(node, (list, tuple)):
                waiting += node
            else:
                return node
            seen[id(node)] = node
        self._plain |= seen
        return None
