"""What a torch file says, told without torch, is what torch says; what torch would run or get wrong is refused."""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import within
from test_unpickle import payloads
from zip_builder import (
    SIX,
    Glob,
    Node,
    assert_refused,
    build,
    call,
    ordered,
    pairs,
    pickled,
    read_all,
    save,
    stack_glob,
    storage,
    tensor,
    torch_file,
)

from converter.checkpoint import open_checkpoint
from converter.conversion.convert import convert
from converter.errors import InputError

GOLDEN = Path(__file__).parents[2] / "fixtures" / "golden"


def saved(value: Any, protocol: int = 2) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of typed storages and sparse tensors
        torch.save(value, stream, pickle_protocol=protocol)
    return stream.getvalue()


def element_bytes(value: torch.Tensor) -> bytes:
    flat = torch.empty(value.shape, dtype=value.dtype).copy_(value.detach()).reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def told_by_torch(state: dict[str, torch.Tensor]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {k: (str(v.dtype).removeprefix("torch."), tuple(v.shape), element_bytes(v)) for k, v in state.items()}


# ---------------------------------------------------------------- the oracle: torch.load


@pytest.mark.parametrize("path", sorted([*GOLDEN.glob("*.pth"), *GOLDEN.glob("*.pt")]), ids=lambda path: path.name)
def test_golden_files_are_what_torch_loads(path: Path) -> None:
    # The random state of a training file is an array of NumPy, which torch loads only of files that are trusted.
    trusted = path.name == "sana-4k.pth"
    loaded = torch.load(path, map_location="cpu", weights_only=not trusted)
    ways = {"raw": loaded.get("state_dict", loaded)} | (
        {"ema": loaded["state_dict_ema"]} if loaded.get("state_dict_ema") else {}
    )
    for weights, state in ways.items():
        assert read_all(path, weights) == told_by_torch(state)
        with open_checkpoint(path, weights) as checkpoint:
            for key, value in state.items():
                assert torch.equal(checkpoint[key].torch(), value)
                assert (checkpoint[key].numpy() == value.float().numpy()).all()
            assert bool(checkpoint.foreign_globals) is trusted


DTYPES = [
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.bool,
]


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Any bits of any dtype, as a view of any kind that torch makes without as_strided."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    count = torch.Size(shape).numel()
    if dtype == torch.bool:
        flat = torch.tensor(draw(st.lists(st.booleans(), min_size=count, max_size=count)), dtype=dtype)
    else:
        raw = bytearray(draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize)))
        flat = torch.frombuffer(raw, dtype=dtype).clone() if raw else torch.empty(0, dtype=dtype)
    made = flat.reshape(shape)
    for _ in range(draw(st.integers(0, 2))):
        axis = draw(st.integers(0, made.ndim - 1)) if made.ndim else None
        kind = draw(st.sampled_from(["plain", "transposed", "sliced", "strided", "selected", "unsqueezed"]))
        if axis is None:
            made = made.unsqueeze(0) if kind == "unsqueezed" else made
        elif kind == "transposed":
            made = made.transpose(axis, 0)
        elif kind == "sliced":
            made = made.narrow(axis, min(1, made.shape[axis]), max(0, made.shape[axis] - 1))
        elif kind == "strided":
            made = made[(slice(None),) * axis + (slice(None, None, 2),)]
        elif kind == "selected" and made.shape[axis]:
            made = made.select(axis, made.shape[axis] - 1)
        elif kind == "unsqueezed":
            made = made.unsqueeze(axis)
    return made


@st.composite
def states(draw: st.DrawFn) -> Any:
    made: Any = draw(
        st.dictionaries(st.sampled_from(["a", "b.weight", "b.bias", "ключ", "x y"]), tensors(), min_size=1)
    )
    for key, value in list(made.items()):
        extra = draw(st.sampled_from(["", "", "same", "flat", "parameter"]))
        if extra == "same":
            made[f"{key}.same"] = value
        elif extra == "flat" and value.is_contiguous():
            made[f"{key}.flat"] = value.view(-1)[: value.numel() // 2]
        elif extra == "parameter" and value.is_floating_point():
            made[key] = torch.nn.Parameter(value, requires_grad=draw(st.booleans()))
    if draw(st.booleans()):
        made = OrderedDict(made)
        if draw(st.booleans()):
            made._metadata = OrderedDict({"": {"version": 1}})
    return made


@given(states(), st.integers(2, 5), st.sampled_from([None, "state_dict", "model"]))
@settings(max_examples=200)
def test_any_state_dict_is_what_torch_loads(
    tmp_path_factory: pytest.TempPathFactory, state: Any, protocol: int, wrapper: str | None
) -> None:
    data = saved({wrapper: state, "epoch": 3, "scheduler": {"rate": 0.5}} if wrapper else state, protocol)
    path = save(tmp_path_factory.getbasetemp(), data, "any.pth")
    loaded = torch.load(path, weights_only=False)  # True knows protocol 2 only
    loaded = loaded[wrapper] if wrapper else loaded
    wanted = told_by_torch(loaded)
    assert read_all(path) == wanted == told_by_torch(state)
    with open_checkpoint(path) as checkpoint:
        for key, value in loaded.items():
            mine = checkpoint[key].torch()
            assert (mine.dtype, mine.shape, element_bytes(mine)) == (value.dtype, value.shape, element_bytes(value))
            assert checkpoint[key].numpy().shape == tuple(value.shape)


def test_a_tensor_is_read_as_its_own_bytes_whatever_its_neighbours(tmp_path: Path) -> None:
    """Views of one storage: the parts of a fused projection, transposed and not."""
    fused = torch.arange(48.0).reshape(12, 4)
    state = {"q": fused[:4], "k": fused[4:8].T, "v": fused[8:, 1::2], "o": fused.reshape(4, 12).T, "all": fused}
    path = save(tmp_path, saved(state))
    assert read_all(path) == told_by_torch(state)
    with open_checkpoint(path) as checkpoint:
        assert len({id(value.storage) for value in checkpoint.values()}) == 1
        for _ in range(2):  # the second time without the CRC's pass
            for key in reversed(state):
                assert torch.equal(checkpoint[key].torch(), state[key])


def test_other_parts_of_a_training_checkpoint_may_be_anything(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    exotic = {"path": Path("x"), "dtype": torch.bfloat16, "size": torch.Size([2]), "sparse": torch.eye(2).to_sparse(),
              "complex": torch.ones(2, dtype=torch.complex64), 3: b"bytes", (1, 2): {4}, None: 1 << 100}  # fmt: skip
    state = {"state_dict": {"w": weight.detach()}, "optimizer": optimizer.state_dict(), "config": exotic}
    path = save(tmp_path, saved(state))
    assert read_all(path) == told_by_torch({"w": weight})
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.others == ["optimizer: a dict of 2 items", "config: a dict of 8 items"]
        foreign = dict(checkpoint.foreign_globals)
        assert foreign.keys() >= {"pathlib.PosixPath", "torch.serialization._get_layout"}
        assert not any(foreign.values())


# ---------------------------------------------------------------- refused by kind


def with_attribute() -> torch.nn.Parameter:
    made = torch.nn.Parameter(torch.ones(2))
    made.owner = Path("a")
    return made


def kinds() -> dict[str, tuple[Any, str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that these are prototypes, or go away
        quantised = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
        nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
        sparse_csr = torch.eye(3).to_sparse_csr()
    return {
        "quantised": (quantised, "not a tensor but a quantised tensor"),
        "sparse": (torch.eye(3).to_sparse(), "not a tensor but a sparse tensor"),
        "sparse CSR": (sparse_csr, "not a tensor but a sparse tensor"),
        "nested": (nested, "not a tensor but a nested tensor"),
        "complex": (torch.ones(2, dtype=torch.complex64), "a complex tensor is not accepted"),
        "complex double": (torch.ones(2, dtype=torch.complex128), "a complex tensor is not accepted"),
        "float8": (torch.ones(2).to(torch.float8_e4m3fn), "a dtype without a storage class"),
        "uint16": (torch.ones(2).to(torch.uint16), "a dtype without a storage class"),
        "meta": (torch.empty(2, device="meta"), "a meta tensor without data"),
        "expanded": (torch.ones(1).expand(1000), "a stride of 0 repeats elements"),
        "expanded inside": (torch.ones(2, 1, 3).expand(2, 5, 3), "a stride of 0"),
        "unfolded": (torch.arange(5.0).unfold(0, 3, 1), "overlaps itself"),
        "negated view": (torch._neg_view(torch.ones(3)), "metadata (a negated view?)"),
        "conjugate's part": (torch.ones(3, dtype=torch.complex64).conj().imag, "metadata (a negated view?)"),
        "parameter with attributes": (with_attribute(), "a tensor whose attribute 'owner' holds an object made by"),
        "storage": (torch.ones(2).untyped_storage(), "not a tensor but"),
        "number": (1.5, "not a tensor but a value of type float"),
        "list": ([torch.ones(2)], "not a tensor but a sequence"),
        "None": (None, "not a tensor but a value of type NoneType"),
        "a sparse view": (torch.zeros(20 << 20)[:: (20 << 20) - 1], "a sparse view of a much larger storage"),
    }


@pytest.mark.parametrize("name", kinds())
def test_what_is_no_plain_tensor_is_refused_by_its_kind(tmp_path: Path, name: str) -> None:
    value, fragment = kinds()[name]
    path = save(tmp_path, saved({"good": torch.ones(2), "bad": value}))
    assert_refused(path, "bad", fragment)
    wrapped = save(tmp_path, saved({"state_dict": {"good": torch.ones(2)}, "other": value}))
    assert read_all(wrapped) == told_by_torch({"good": torch.ones(2)})  # not on the way to the weights


def test_bool_can_be_read_but_is_no_weight(tmp_path: Path) -> None:
    state = torch.load(GOLDEN / "sigma-ms.pth", weights_only=True)
    state["blocks.0.attn.qkv.bias"] = state["blocks.0.attn.qkv.bias"] > 0
    path = save(tmp_path, saved(state))
    assert read_all(path) == told_by_torch(state)
    with pytest.raises(InputError, match=r"blocks\.0\.attn\.qkv\.bias is bool, and weights are floating point"):
        convert(path, tmp_path / "out", hyper_parameters={"num_attention_heads": 4})
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- hostile pickles


def parameter(*args: Any) -> Node:
    return call(Glob("torch._utils", "_rebuild_parameter"), *args)


def v2(*args: Any) -> Node:
    return call(Glob("torch._utils", "_rebuild_tensor_v2"), *args)


def pid(*value: Any) -> Node:
    return tensor(source=Node(tuple(value), b"Q"))


def stored(module: str, name: str, count: int) -> Node:
    """A tensor whose storage is of this class."""
    return pid("storage", Glob(module, name), "0", "cpu", count)


FLOAT = Glob("torch", "FloatStorage")
OTHER = "with other arguments than torch writes"
NUMBERS = "sizes, strides or offset are not integers"
REFERENCE = "a storage reference that torch does not write"
TENSORS: dict[str, tuple[Any, tuple[str, ...]]] = {
    # Views
    "4 TB": (tensor((1 << 40,), (0,)), ("a stride of 0",)),
    "a stride of 0": (tensor((2, 3), (0, 1)), ("a stride of 0",)),
    "outside": (tensor((2, 4), (3, 1)), ("its view ends at byte 28 of a storage of 24 bytes",)),
    "outside by its offset": (tensor((2, 3), (3, 1), 1), ("its view ends at byte 28",)),
    "outside by its stride": (tensor((2, 3), (4, 1)), ("its view ends at byte 28",)),
    "wrapped around": (tensor((2, 3), (1 << 62, 1)), ("that is negative or too large",)),
    "wrapped around 64 bits": (tensor((2,), (1 << 64,)), ("that is negative or too large",)),
    "negative offset": (tensor((2, 3), (3, 1), -1), ("that is negative or too large",)),
    "negative stride": (tensor((2, 3), (-3, 1), 3), ("that is negative or too large",)),
    "negative size": (tensor((-2, -3), (3, 1)), ("that is negative or too large",)),
    "huge size": (tensor((1 << 62, 1), (1, 1)), ("that is negative or too large",)),
    "huge empty": (tensor((0, 1 << 47, 1 << 47), (1, 1, 1)), ("that is negative or too large",)),
    "huge stride where it does not matter": (tensor((2, 1, 2), (1, 1 << 100, 3)), ("that is negative or too large",)),
    "overlapping": (tensor((2, 2), (1, 1)), ("overlaps itself",)),
    "fewer strides": (tensor((2, 3), (3,)), ("2 sizes and 1 strides",)),
    "more strides": (tensor((6,), (1, 1)), ("1 sizes and 2 strides",)),
    "nine axes": (tensor((1,) * 9, (1,) * 9), ("9 sizes",)),
    # Arguments
    "float sizes": (tensor((2.0, 3), (3, 1)), (NUMBERS,)),
    "bool sizes": (tensor((True, 3), (3, 1)), (NUMBERS,)),
    "text for sizes": (tensor("23", (3, 1)), (NUMBERS,)),
    "list of sizes": (tensor([2, 3], [3, 1]), (NUMBERS,)),
    "a call for a size": (tensor((call(Glob("os", "getpid")), 3), (3, 1)), (NUMBERS,)),
    "a call for sizes": (tensor(call(Glob("torch", "Size"), (2, 3)), (3, 1)), (NUMBERS,)),
    "no offset": (tensor((2, 3), (3, 1), None), (NUMBERS,)),
    "metadata": (tensor((2, 3), (3, 1), 0, {"neg": True}), ("metadata",)),
    "metadata made by a call": (
        tensor((2, 3), (3, 1), 0, call(Glob("builtins", "dict"), [("neg", True)])),
        ("metadata",),
    ),
    "metadata in an OrderedDict": (tensor((2, 3), (3, 1), 0, ordered(("neg", True))), ("metadata",)),
    "too few arguments": (v2(storage(), 0, (2, 3), (3, 1)), (OTHER,)),
    "too many arguments": (tensor((2, 3), (3, 1), 0, None, None), (OTHER,)),
    "a list of arguments": (Node(Glob("torch._utils", "_rebuild_tensor_v2"), [1, 2, 3, 4, 5, 6], b"R"), (OTHER,)),
    "state": (build(tensor(), {"data": 1}), (OTHER,)),
    "storage set by state": (build(tensor(), (storage(), 0, (6,), (1,))), (OTHER,)),
    "items": (pairs(tensor(), ("a", 1)), (OTHER,)),
    "elements": (Node(tensor(), 1, b"a"), (OTHER,)),
    # Parameters
    "state of a parameter": (build(parameter(tensor(), True, None), {"data": 1}), ("attributes are overridden",)),
    "items of a parameter": (pairs(parameter(tensor(), True, None), ("a", 1)), ("attributes are overridden",)),
    "parameter of nothing": (parameter(), ("a value of type NoneType",)),
    "parameter of a number": (parameter(3), ("a value of type int",)),
    "parameters without end": (parameter(parameter(parameter(parameter(tensor())))), ("not a tensor but",)),
    "parameter in itself": (
        Node(Glob("torch._utils", "_rebuild_parameter"), b"]q\x05h\x05a", b"\x85R"),
        ("a sequence",),
    ),
    # Storages
    "no storage": (v2(None, 0, (2, 3), (3, 1), False, None), (REFERENCE,)),
    "storage as a tuple": (v2(("storage", FLOAT, "0", "cpu", 6), 0, (2, 3), (3, 1), False, None), (REFERENCE,)),
    "short reference": (pid("storage", FLOAT, "0", "cpu"), (REFERENCE,)),
    "long reference": (pid("storage", FLOAT, "0", "cpu", 6, None), (REFERENCE,)),
    "module": (pid("module", FLOAT, "0", "cpu", 6), (REFERENCE,)),
    "numbered storage": (pid("storage", FLOAT, 0, "cpu", 6), (REFERENCE,)),
    "text for a count": (pid("storage", FLOAT, "0", "cpu", "6"), (REFERENCE,)),
    "called storage type": (pid("storage", call(FLOAT), "0", "cpu", 6), (REFERENCE,)),
    "count too small": (pid("storage", FLOAT, "0", "cpu", 5), ("data/0", "24 bytes, where w declares 5 x float32")),
    "count too large": (pid("storage", FLOAT, "0", "cpu", 7), ("24 bytes, where w declares 7 x float32",)),
    "count in bytes": (pid("storage", FLOAT, "0", "cpu", 24), ("declares 24 x float32",)),
    "negative count": (pid("storage", FLOAT, "0", "cpu", -6), ("declares -6 x float32",)),
    "unknown type": (stored("torch", "NoStorage", 6), ("unknown type torch.NoStorage",)),
    "type of another module": (stored("os", "FloatStorage", 6), ("unknown type os.FloatStorage",)),
    "complex": (stored("torch", "ComplexFloatStorage", 3), ("a complex tensor is not accepted",)),
    "quantised": (stored("torch", "QInt8Storage", 24), ("a quantised tensor is not accepted",)),
    "untyped": (stored("torch.storage", "UntypedStorage", 24), ("an untyped storage",)),
    "missing": (pid("storage", FLOAT, "7", "cpu", 6), ("its storage data/7 is not in the archive",)),
    "outside data": (pid("storage", FLOAT, "../data.pkl", "cpu", 6), ("its storage data/../data.pkl is not in",)),
    "a hostile name": (pid("storage", FLOAT, "\x1b[2J", "cpu", 6), (r"data/\x1b[2J",)),
    # Other makers
    "a legacy tensor": (call(Glob("torch._utils", "_rebuild_tensor"), storage(), 0, (6,), (1,)), ("not a tensor but",)),
    "a call of a call": (call(call(Glob("torch._utils", "_rebuild_tensor_v2"))), ("not a tensor but an object",)),
    "text": ("weights", ("data.pkl",)),  # its place or its kind, as it lies
    "a name": (Glob("torch", "FloatStorage"), ("a reference to torch.FloatStorage",)),
    "a payload": (call(Glob("os", "system"), "true"), ("not a tensor but an object made by os.system",)),
    "a payload for a storage": (v2(call(Glob("os", "system"), "true"), 0, (2, 3), (3, 1), False, None), (REFERENCE,)),
    "a tensor of another module": (
        call(Glob("evil", "_rebuild_tensor_v2"), 1),
        ("an object made by evil._rebuild_tensor_v2",),
    ),
}


@pytest.mark.parametrize("name", TENSORS)
def test_hostile_tensors_are_refused(tmp_path: Path, name: str) -> None:
    node, fragments = TENSORS[name]
    assert_refused(save(tmp_path, torch_file({"good": tensor(), "w": node}, SIX)), *fragments)
    path = save(tmp_path, torch_file({"state_dict": ordered(("w", node))}, SIX))
    assert_refused(path, *fragments, "state_dict" if name == "text" else "w")
    beside = torch_file({"state_dict": {"good": tensor()}, "optimizer": {"w": node}}, SIX)
    assert read_all(save(tmp_path, beside)) == {"good": ("float32", (2, 3), SIX["0"])}


GOOD = {
    "a parameter": parameter(tensor(), True, ordered()),
    "metadata of none": tensor((2, 3), (3, 1), 0, None),
    "empty metadata": tensor((2, 3), (3, 1), 0, {}),
    "hooks": v2(storage(), 0, (2, 3), (3, 1), True, call(Glob("anything", "at.all"))),
    "STACK_GLOBAL": Node(
        stack_glob("torch._utils", "_rebuild_tensor_v2"), (storage(), 0, (2, 3), (3, 1), False, None), b"R"
    ),
    "another device": tensor(source=storage(location="cuda:7")),
    "a size of 1 with any stride": tensor((1, 2, 3), (99, 3, 1)),
}


@pytest.mark.parametrize("name", GOOD)
def test_all_that_torch_writes_is_read(tmp_path: Path, name: str) -> None:
    found = read_all(save(tmp_path, torch_file({"w": GOOD[name]}, SIX)))
    assert found["w"][2] == SIX["0"]


def test_a_storage_has_one_dtype(tmp_path: Path) -> None:
    """torch would give both the dtype of whichever comes first."""
    halves = tensor((6,), (1,), source=storage(count=12, kind="HalfStorage"))
    path = save(tmp_path, torch_file({"a": tensor(), "b": halves}, SIX))
    assert torch.load(path, weights_only=True)["b"].dtype == torch.float32
    assert_refused(path, "data.pkl: b", "data/0 is float32 for one tensor and float16 for another")


def test_a_negated_view_is_no_plain_tensor(tmp_path: Path) -> None:
    """Its bytes are those of the opposite: copied, they would be the wrong weights."""
    state = {"w": torch._neg_view(torch.ones(3))}
    assert torch.load(io.BytesIO(saved(state)), weights_only=True)["w"].tolist() == [-1, -1, -1]
    assert_refused(save(tmp_path, saved(state)), "data.pkl: w", "metadata")


def test_an_omitted_storage_never_shows_memory(tmp_path: Path) -> None:
    assert_refused(save(tmp_path, torch_file({"w": tensor()}, {})), "data/0 is not in the archive")
    assert_refused(save(tmp_path, torch_file({"w": tensor()}, {"0": b""})), "data/0", "0 bytes")


def test_nan_is_preserved_bit_for_bit(tmp_path: Path) -> None:
    raw = struct.pack("<6I", 0x7FC00001, 0xFFC00000, 0x7F800001, 0x7F800000, 0xFF800000, 0x80000000)
    path = save(tmp_path, torch_file({"w": tensor()}, {"0": raw}))
    assert read_all(path)["w"][2] == raw
    with open_checkpoint(path) as checkpoint:
        assert element_bytes(checkpoint["w"].torch()) == raw


# ---------------------------------------------------------------- payloads


@pytest.mark.parametrize("name", payloads(""))
@pytest.mark.parametrize("place", ["optimizer", "weights", "top", "key", "hooks", "metadata of an OrderedDict"])
def test_no_payload_of_a_file_runs(tmp_path: Path, name: str, place: str) -> None:
    marker = tmp_path / "ran"
    payload = Node(payloads(str(marker))[name][2:-1])  # without PROTO and STOP
    root: Any = {
        "optimizer": {"state_dict": {"w": tensor()}, "optimizer": payload},
        "weights": {"state_dict": {"w": tensor(), "v": payload}},
        "top": payload,
        "key": pairs(Node(b"}"), ("state_dict", {"w": tensor()}), (payload, 1)),
        "hooks": {"w": v2(storage(), 0, (2, 3), (3, 1), False, payload)},
        "metadata of an OrderedDict": build(ordered(("w", tensor())), {"_metadata": payload}),
    }[place]
    path = save(tmp_path, torch_file(pickled(root, 4), SIX))
    here = os.getcwd()
    if place in ("weights", "top"):
        assert_refused(path, "data.pkl")
    else:
        assert read_all(path) == {"w": ("float32", (2, 3), SIX["0"])}
        with open_checkpoint(path) as checkpoint:
            named = dict(checkpoint.foreign_globals)
        dangerous = {n for n, danger in named.items() if danger}
        assert dangerous or not named, named
        assert all(n.partition(".")[0] in payload.emit().decode("latin-1") for n in named)
    assert not marker.exists()
    assert os.getcwd() == here


DANGEROUS = [
    "os.system",
    "posix.system",
    "nt.system",
    "subprocess.Popen",
    "builtins.eval",
    "builtins.exec",
    "__builtin__.eval",
    "builtins.getattr",
    "builtins.__import__",
    "sys.exit",
    "shutil.rmtree",
    "socket.socket",
    "runpy.run_path",
    "importlib.import_module",
    "ctypes.CDLL",
    "pickle.loads",
    "functools.partial",
    "operator.attrgetter",
    "urllib.request.urlopen",
    "multiprocessing.util.spawnv_passfds",
    "torch.hub.load",
    "torch.load",
    "torch.storage._load_from_bytes",
    "webbrowser.open",
    "types.FunctionType",
    "numpy.load",
]
HARMLESS = ["pathlib.PosixPath", "numpy.core.multiarray.scalar", "numpy.dtype", "builtins.set", "__builtin__.bytearray",
            "mmcv.utils.config.Config", "argparse.Namespace", "torch.optim.adamw.AdamW", "_codecs.encode"]  # fmt: skip


@pytest.mark.parametrize("name", [*DANGEROUS, *HARMLESS])
@pytest.mark.parametrize("way", ["GLOBAL", "STACK_GLOBAL"])
def test_foreign_globals_are_named_and_the_dangerous_told_apart(tmp_path: Path, name: str, way: str) -> None:
    module, _, attribute = name.rpartition(".")
    node = {"GLOBAL": Glob, "STACK_GLOBAL": stack_glob}[way](module, attribute)
    path = save(tmp_path, torch_file(pickled({"state_dict": {"w": tensor()}, "optimizer": [node]}, 4), SIX))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.foreign_globals == [(name, name in DANGEROUS)]


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch.serialization", "os.system"),
        ("torch", "serialization.os.system"),
        ("torch._utils", "_rebuild_x.os.system"),
        ("torch", "hub.os.system"),
        ("collections", "_sys.modules.os.system"),
        ("torch.storage", "io.os.system"),
    ],
)
def test_a_dotted_name_does_not_hide_behind_torch(tmp_path: Path, module: str, name: str) -> None:
    root = {"state_dict": {"w": tensor()}, "optimizer": call(stack_glob(module, name), "true")}
    with open_checkpoint(save(tmp_path, torch_file(pickled(root, 4), SIX))) as checkpoint:
        assert checkpoint.foreign_globals == [(f"{module}.{name}", True)]


def test_a_hostile_name_is_printed_harmlessly(tmp_path: Path) -> None:
    root = {"state_dict": {"w": tensor()}, "x": stack_glob("os\n\x1b[31m", "s" * 100_000)}
    with open_checkpoint(save(tmp_path, torch_file(pickled(root, 4), SIX))) as checkpoint:
        [(name, _)] = checkpoint.foreign_globals
    assert name.isprintable()
    assert len(name) < 300


# ---------------------------------------------------------------- every truncation, every flipped bit


@pytest.fixture(scope="module")
def small() -> tuple[bytes, dict[str, Any]]:
    state = {
        "a": torch.tensor([[1.0, -2.5], [3.0, 4.0]]).T,
        "b": torch.nn.Parameter(torch.ones(1, dtype=torch.float16)),
    }
    return saved({"state_dict": state, "epoch": 1}), told_by_torch(state)


def attempt(path: Path) -> Any:
    try:
        return read_all(path)
    except InputError as error:
        line = str(error)
    assert line.isprintable()
    return None


def test_truncation_at_every_byte(tmp_path: Path, small: tuple[bytes, dict[str, Any]]) -> None:
    data, truth = small
    assert 1500 < len(data) < 4000
    path = save(tmp_path, data)
    assert attempt(path) == truth
    with within(60):
        for size in reversed(range(len(data))):
            os.truncate(path, size)
            assert attempt(path) is None, size


def test_a_flipped_bit_anywhere(tmp_path: Path, small: tuple[bytes, dict[str, Any]]) -> None:
    data, truth = small
    path = save(tmp_path, data)
    outcomes = {True: 0, False: 0}
    with within(120), path.open("r+b", buffering=0) as file:
        for at, byte in enumerate(data):
            for bit in range(at % 3, 8, 3):
                os.pwrite(file.fileno(), bytes([byte ^ (1 << bit)]), at)
                found = attempt(path)
                assert found is None or found == truth, (at, bit)
                outcomes[found is None] += 1
            os.pwrite(file.fileno(), bytes([byte]), at)
    assert attempt(path) == truth
    assert outcomes[True] > len(data)  # the rest is padding, times and what is not used
