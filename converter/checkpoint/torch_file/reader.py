"""What the nodes of a torch `data.pkl` mean: tensors, dicts, and what is none of the two.

Only the constructors below are known, and they are recognised, never called
(torch/_utils.py `_rebuild_*`, torch/serialization.py `persistent_id`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from ...errors import InputError, printable
from ..dtypes import BY_STORAGE, DType
from ..file import InputFile
from ..recognition import container_of
from ..tensor import LazyTensor, Storage, checked
from .archive import Archive
from .tree import KINDS, describe, describe_package, is_global, is_ordered_dict, is_tensor
from .unpickle import Call, Dict, Global, PersistentId, PickleError, load

PICKLE_LIMIT = 32 << 20

# Modules whose appearance in a weights file is worth a warning: in a real unpickler they run programs or code.
_DANGEROUS = {
    "os", "posix", "nt", "subprocess", "sys", "builtins", "__builtin__", "shutil", "socket", "runpy", "importlib",
    "ctypes", "pty", "code", "webbrowser", "pickle", "asyncio", "multiprocessing", "operator", "functools", "requests",
    "urllib", "httplib", "http", "types", "marshal", "bdb", "pdb", "timeit", "cProfile", "pip", "torch.hub",
    "torch.load", "torch.storage._load_from_bytes", "numpy.load", "numpy.f2py",
}  # fmt: skip
_OWN = {("collections", "OrderedDict"), ("torch", "Size"), ("torch", "device"), ("torch.storage", "UntypedStorage"),
        ("torch._tensor", "_rebuild_from_type_v2"), ("torch", "Tensor"), ("torch.nn.parameter", "Parameter"),
        *(("torch", dtype.name) for dtype in BY_STORAGE.values())}  # fmt: skip
# `torch.load` sets attributes one by one: these names are no attributes to it but the elements themselves.
_DATA = {"data", "real", "imag"}
_REMEDY = "save {k: v.detach().clone() for k, v in state_dict.items()} instead"
_HARMLESS = {"set", "frozenset", "bytearray", "complex", "slice", "range", "int", "float", "dict", "list"}  # builtins


class TorchFile:
    """An opened torch archive: `root` is the inert tree of its pickle."""

    def __init__(self, file: InputFile) -> None:
        self.file = file
        self.archive = Archive(file)
        try:
            self.root, self.globals = load(self.archive.read("data.pkl", PICKLE_LIMIT))
        except PickleError as error:
            raise file.error("data.pkl", str(error)) from None
        self._storages: dict[str, tuple[DType, Storage]] = {}
        # By identity, attributes that are known to be harmless: all tensors may share them, and the time is that of
        # reading the pickle once.
        self._states: set[int] = set()
        self._plain: set[int] = set()

    def foreign(self) -> list[tuple[str, bool]]:
        """(global, is it known to be dangerous) for every name in the pickle that is none of torch's own."""
        names = set()
        for g in self.globals:
            if (g.module, g.name) in _OWN or (g.module == "torch" and (g.name in BY_STORAGE or g.name in KINDS)):
                continue  # torch itself puts it into state dicts
            if g.module == "torch._utils" and g.name.startswith("_rebuild_") and "." not in g.name:
                continue
            top, full = g.module.partition(".")[0], f"{g.module}.{g.name}"
            # A dotted name is looked up attribute by attribute: `torch.serialization` has an `os`, that a `system`.
            reached = {top, g.module, full, *(g.name.split(".") if "." in g.name else ())}
            builtin = top in ("builtins", "__builtin__")
            danger = bool(reached & _DANGEROUS) and not (builtin and g.name in _HARMLESS)
            names.add((str(g), danger))
        return sorted(names)

    def check_dict(self, node: Any, entries: list[tuple[Any, Any]], where: str) -> list[tuple[Any, Any]]:
        """The entries; refused where an OrderedDict or a defaultdict would hold something else once it is loaded."""
        if not isinstance(node, Call):
            return entries
        ordered = is_ordered_dict(node)
        what = "an OrderedDict" if ordered else "a defaultdict"
        # torch keeps `_metadata` as an attribute.
        attributes = [[name for name, _ in state.pairs] if type(state) is Dict else [None] for state in node.states]
        if any(name != "_metadata" for names in attributes for name in names):
            raise self._refuse(where, f"{what} whose attributes are overridden: not a state dict")
        factories = node.args if isinstance(node.args, tuple) else (node.args,)
        plain = not factories or (not ordered and len(factories) == 1 and isinstance(factories[0], Global | None))
        if not plain or node.elements:
            raise self._refuse(where, f"{what} built in a way that torch never uses")
        return entries

    def tensor(self, key: str, node: Any) -> LazyTensor:
        """The tensor that a node describes, checked; anything else is refused by its kind."""
        node = self._without_attributes(key, node)
        if not (isinstance(node, Call) and is_global(node.func, "torch._utils", "_rebuild_tensor_v2")):
            raise self._refuse(key, f"not a tensor but {describe(node)}")
        if not isinstance(node.args, tuple) or not 6 <= len(node.args) <= 7 or node.changed:
            raise self._refuse(key, "a tensor with other arguments than torch writes")
        # The last argument may say that the elements are to be negated or conjugated when they are read.
        metadata = node.args[6] if len(node.args) == 7 else None
        if metadata is not None and (type(metadata) is not Dict or metadata.pairs):
            raise self._refuse(key, "a tensor with metadata (a negated view?): re-save it with .clone()")
        pid, offset, shape, strides = node.args[:4]
        sizes = isinstance(shape, tuple) and isinstance(strides, tuple)
        if not sizes or any(type(n) is not int for n in (offset, *shape, *strides)):
            raise self._refuse(key, "a tensor whose sizes, strides or offset are not integers")
        dtype, storage = self._storage(key, pid)
        return checked(LazyTensor(key, dtype, shape, storage, strides=strides, offset=offset))

    def _without_attributes(self, key: str, node: Any) -> Any:
        """The node of the tensor itself, out of what torch saves of a parameter, or of a tensor with attributes.

        An attribute (`p._is_hf_initialized = True`) makes torch save a tensor by another function, with the attributes
        after it (torch/nn/parameter.py and torch/_tensor.py, `__reduce_ex__`). They are no part of its data: plain
        values are passed over. Anything else may stand for the data (quantised weights keep theirs so), and is refused.
        """
        for _ in range(3):  # a Parameter of a Parameter is already more than torch writes
            func = node.func if isinstance(node, Call) else None
            args = node.args if isinstance(node, Call) and isinstance(node.args, tuple) else ()
            state = args[3] if len(args) == 4 else None
            if is_global(func, "torch._utils", "_rebuild_parameter"):
                inner, state = args[0] if args else None, None
            elif is_global(func, "torch._utils", "_rebuild_parameter_with_state"):
                hooks = args[2] if len(args) == 4 else None  # which torch does not save: an empty OrderedDict
                if not is_ordered_dict(hooks) or hooks.args or hooks.changed:
                    raise self._refuse(key, "a parameter with other arguments than torch writes")
                inner = args[0]
            elif (
                is_global(func, "torch._tensor", "_rebuild_from_type_v2")
                and len(args) == 4
                and (is_global(args[1], "torch", "Tensor") or is_global(args[1], "torch.nn.parameter", "Parameter"))
            ):  # no subclass
                inner = Call(args[0], args[2])
            else:
                break
            if node.changed:
                raise self._refuse(key, "a parameter whose attributes are overridden")
            for part in state if isinstance(state, tuple) and len(state) == 2 else (state,):  # a dict, and slots
                if part is not None and id(part) not in self._states:
                    self._check_attributes(key, part)
                    self._states.add(id(part))
            node = inner
        return node

    def _check_attributes(self, key: str, state: Any) -> None:
        if type(state) is not Dict:
            rule = f"a tensor whose attributes are not a dict but {describe(state)}: {_REMEDY}"
            raise self._refuse(key, rule)
        for name, value in state.pairs:
            if not isinstance(name, str):
                raise self._refuse(key, f"a tensor with an attribute whose name is {describe(name)}: {_REMEDY}")
            if name in _DATA:
                rule = f"a tensor whose attribute {name!r} takes the place of its data when it is loaded: {_REMEDY}"
                raise self._refuse(key, rule)
            seen, waiting = set[int](), [value]
            while waiting:
                node = waiting.pop()
                if isinstance(node, bool | int | float | str | None) or id(node) in seen or id(node) in self._plain:
                    continue
                if type(node) is Dict:
                    waiting += [part for pair in node.pairs for part in pair]
                elif isinstance(node, list | tuple):
                    waiting += node
                else:
                    kind = "a tensor" if is_tensor(node) else describe(node)
                    what = describe_package(node) or f"{kind}, which is no plain value: {_REMEDY}"
                    shown = printable(repr(name[:41]), 40)
                    raise self._refuse(key, f"a tensor whose attribute {shown} holds {what}")
                seen.add(id(node))
            self._plain |= seen

    def _storage(self, key: str, pid: Any) -> tuple[DType, Storage]:
        value = pid.value if isinstance(pid, PersistentId) else None
        tag, kind, name, _, count = value if isinstance(value, tuple) and len(value) == 5 else (None,) * 5
        if not (tag == "storage" and isinstance(kind, Global) and isinstance(name, str) and type(count) is int):
            raise self._refuse(key, "a storage reference that torch does not write")
        dtype = BY_STORAGE.get(kind.name) if kind.module in ("torch", "torch.storage") else None
        if dtype is None:
            raise self._refuse(key, f"{KINDS.get(kind.name, f'a storage of unknown type {kind}')} is not accepted")
        member = self.archive.members.get(f"data/{name}")
        if member is None:
            raise self._refuse(key, f"its storage data/{printable(name)} is not in the archive")
        if count * dtype.itemsize != member.size:
            rule = f"{member.size} bytes, where {printable(key)} declares {count} x {dtype}"
            raise self.file.error(f"data/{name}", rule)
        if name not in self._storages:
            crc, locate = member.crc if self.archive.checksummed else None, partial(self.archive.locate, f"data/{name}")
            self._storages[name] = dtype, Storage(self.file, f"data/{name}", member.size, start=locate, crc=crc)
        # torch refuses to write this, and on reading gives all tensors of the storage the first one's dtype.
        if (first := self._storages[name][0]) != dtype:
            raise self._refuse(key, f"its storage data/{name} is {first} for one tensor and {dtype} for another")
        return self._storages[name]

    def _refuse(self, key: str, rule: str) -> InputError:
        return self.file.error(f"data.pkl: {printable(key)}", rule)


def bare_tensor(file: InputFile) -> LazyTensor | None:
    """The tensor that `torch.save(tensor, path)` wrote by itself, which no checkpoint does; None for any other file.

    Raises: `InputError` for a file that breaks a rule.
    """
    if container_of(file) != "zip":
        return None
    torch_file = TorchFile(file)
    return torch_file.tensor("the tensor", torch_file.root) if is_tensor(torch_file.root) else None
