"""The tensor inside what torch saves of a parameter, or of a tensor with attributes of its own.

An attribute (`p._is_hf_initialized = True`) makes torch save a tensor by another function, with the attributes after
it (torch/nn/parameter.py and torch/_tensor.py, `__reduce_ex__`). They are no part of its data: plain values are passed
over. Anything else may stand for the data (quantised weights keep theirs so), and is refused.
"""

from __future__ import annotations

from typing import Any

from ...errors import printable
from .kinds import describe, describe_package, is_global, is_ordered_dict, is_tensor
from .unpickle import Call, Dict

# `torch.load` sets attributes one by one: these names are no attributes to it but the elements themselves.
_DATA = {"data", "real", "imag"}
_PLAIN = (type(None), bool, int, float, str)
_REMEDY = "save {k: v.detach().clone() for k, v in state_dict.items()} instead"


class Attributes:
    """Takes tensors out of what is around them. What is plain is remembered: attributes may be shared by all
    tensors, and the time is that of reading the pickle once."""

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
                if len(args) != 4 or not _empty(args[2]):
                    return node, "a parameter with other arguments than torch writes"
                inner, state = args[0], args[3]
            elif is_global(func, "torch._tensor", "_rebuild_from_type_v2") and len(args) == 4 and _stock(args[1]):
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
        seen: dict[int, Any] = {}
        waiting = [value]
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


def _stock(kind: Any) -> bool:
    """Whether a class is one of torch's own that is nothing but a tensor."""
    return is_global(kind, "torch", "Tensor") or is_global(kind, "torch.nn.parameter", "Parameter")


def _empty(hooks: Any) -> bool:
    """Torch writes an empty OrderedDict for the hooks, which it does not save."""
    return is_ordered_dict(hooks) and not (hooks.args or hooks.changed)
