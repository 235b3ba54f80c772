"""Tensors with attributes of their own are what torch loads; what may stand for the data is refused, with a remedy."""

from __future__ import annotations

import io
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import HEADS, pixart, within
from zip_builder import (
    SIX,
    Glob,
    Node,
    assert_refused,
    build,
    call,
    ordered,
    read_all,
    save,
    storage,
    tensor,
    torch_file,
)

from converter.conversion.convert import convert

REMEDY = "save {k: v.detach().clone() for k, v in state_dict.items()} instead"

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 100), 1 << 100) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)
names = st.text(st.characters(categories=["L"], include_characters="_"), min_size=1, max_size=8).filter(
    lambda name: not hasattr(torch.Tensor, name)
)


def written(path: Path, state: Any, protocol: int = 2) -> Path:
    torch.save(state, path, pickle_protocol=protocol)
    return path


def told_by_torch(path: Path, weights_only: bool = True) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    loaded = torch.load(path, weights_only=weights_only)
    return {
        key: (
            str(value.dtype).removeprefix("torch."),
            tuple(value.shape),
            value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes(),
        )
        for key, value in loaded.items()
    }


def attributed(kind: str, attributes: dict[str, Any], seed: int = 0) -> torch.Tensor:
    data = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16 if seed % 2 else None)
    made = {
        "tensor": lambda: data.t(),
        "parameter": lambda: torch.nn.Parameter(data),
        "frozen": lambda: torch.nn.Parameter(data, requires_grad=False),
        "buffer": lambda: torch.nn.Buffer(data),
    }[kind]()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


@settings(max_examples=80)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["tensor", "parameter", "frozen", "buffer"]), st.dictionaries(names, plain, max_size=3)
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([2, 3, 4, 5]),
    st.booleans(),
)
def test_any_plain_attributes_are_passed_over(
    tmp_path_factory: pytest.TempPathFactory, made: list[tuple[str, dict[str, Any]]], protocol: int, ordered: bool
) -> None:
    state = {f"a.{i}": attributed(kind, attributes, i) for i, (kind, attributes) in enumerate(made)}
    path = tmp_path_factory.getbasetemp() / "attributes.pth"
    written(path, OrderedDict(state) if ordered else state, protocol)
    assert read_all(path) == told_by_torch(path, weights_only=False)
    if protocol == 2:  # all that torch's own strict reader knows
        assert read_all(path) == told_by_torch(path)


def test_a_whole_model_of_them_converts_as_without(tmp_path: Path) -> None:
    state = pixart()
    parameters = OrderedDict((key, torch.nn.Parameter(value.clone())) for key, value in state.items())
    for parameter in parameters.values():
        parameter._is_hf_initialized = True
    results = [
        convert(
            written(tmp_path / f"{name}.pth", made), tmp_path / name, hyper_parameters={"num_attention_heads": HEADS}
        )
        for name, made in (("with", parameters), ("without", state))
    ]
    assert results[0].path != results[1].path
    weights = [tmp_path / name / "transformer/diffusion_pytorch_model.safetensors" for name in ("with", "without")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


class Foreign(torch.Tensor):
    """A class whose data may mean anything."""


@pytest.mark.parametrize(
    ("value", "fragments"),
    [
        (torch.ones(2), ("holds a tensor, which is no plain value", REMEDY)),
        ([1, {"deep": (torch.ones(2),)}], ("holds a tensor", REMEDY)),
        (torch.float32, ("a reference to torch.float32", REMEDY)),
        (torch.Size([2]), ("torch.Size", REMEDY)),
        (Path("a"), ("an object made by pathlib", REMEDY)),
        ({1, 2}, ("which is no plain value", REMEDY)),
        (Foreign, ("a reference to test_attributes.Foreign", REMEDY)),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["tensor", "parameter", "buffer"])
def test_what_may_stand_for_the_data_is_refused(
    value: Any, fragments: tuple[str, ...], kind: str, tmp_path: Path
) -> None:
    state = {"good": torch.ones(2), "w": attributed(kind, {"first": 1, "scale_of": value})}
    for protocol in (2, 5):
        path = written(tmp_path / "a.pth", state, protocol)
        assert_refused(
            path, "w", "a tensor whose attribute 'scale_of' holds", *(fragments if protocol == 2 else [REMEDY])
        )


def test_a_foreign_class_is_named(tmp_path: Path) -> None:
    for made in (torch.ones(2).as_subclass(Foreign), torch.nn.Parameter(torch.ones(2).as_subclass(Foreign))):
        path = written(tmp_path / "a.pth", {"w": made})
        assert_refused(path, "w", "a tensor subclass (test_attributes.Foreign)", "save plain tensors instead")


# What no torch writes, and what it reads as something else.


def with_state(*args: Any) -> Node:
    return call(Glob("torch._utils", "_rebuild_parameter_with_state"), *args)


def from_type(*args: Any) -> Node:
    return call(AGAIN, *args)


V2, TENSOR = Glob("torch._utils", "_rebuild_tensor_v2"), Glob("torch", "Tensor")
AGAIN = Glob("torch._tensor", "_rebuild_from_type_v2")
PARTS = (storage(), 0, (2, 3), (3, 1), False, ordered())
HOOK = ordered((0, call(Glob("os", "getpid"))))
ODD: dict[str, tuple[Any, str]] = {
    "hooks": (with_state(tensor(), True, HOOK, {"a": 1}), "other arguments than torch writes"),
    "no state": (with_state(tensor(), True, ordered()), "other arguments than torch writes"),
    "more": (with_state(tensor(), True, ordered(), {"a": 1}, 1), "other arguments than torch writes"),
    "built": (build(with_state(tensor(), True, ordered(), {"a": 1}), {"data": 1}), "attributes are overridden"),
    "a call for a state": (with_state(tensor(), True, ordered(), call(Glob("os", "getpid"))), "are not a dict but"),
    "three states": (with_state(tensor(), True, ordered(), ({}, {}, {})), "are not a dict but a sequence"),
    "a called dict": (with_state(tensor(), True, ordered(), ordered(("a", 1))), "are not a dict but"),
    "a number for a name": (with_state(tensor(), True, ordered(), {1: 1}), "whose name is a value of type int"),
    "in slots": (with_state(tensor(), True, ordered(), (None, {"a": tensor()})), "attribute 'a' holds a tensor"),
    "data": (with_state(tensor(), True, ordered(), {"data": 1}), "'data' takes the place of its data"),
    "the real part": (from_type(V2, TENSOR, PARTS, {"real": 5}), "'real' takes the place of its data"),
    "the real part in slots": (from_type(V2, TENSOR, PARTS, ({}, {"real": 5})), "'real' takes the place of its data"),
    "a control character": (from_type(V2, TENSOR, PARTS, {"\x1b[2J": tensor()}), r"'\x1b[2J'"),
    "a payload": (from_type(Glob("os", "system"), TENSOR, ("true",), None), "an object made by os.system"),
    "a payload for a class": (from_type(V2, call(Glob("os", "getpid")), PARTS, None), "a tensor subclass"),
    "a payload's class": (from_type(V2, Glob("os", "PathLike"), PARTS, None), "a tensor subclass (os.PathLike)"),
    "three arguments": (from_type(V2, TENSOR, PARTS), "a tensor subclass (torch.Tensor)"),
    "no arguments": (from_type(), "a tensor subclass"),
    "a list of arguments": (from_type(V2, TENSOR, [1, 2, 3, 4, 5, 6], None), "other arguments than torch writes"),
    "built afterwards": (build(from_type(V2, TENSOR, PARTS, None), {"a": 1}), "attributes are overridden"),
    "too many rows": (from_type(V2, TENSOR, (storage(), 0, (9, 3), (3, 1), False, ordered()), {}), "its view ends"),
    "without end": (from_type(AGAIN, TENSOR, (AGAIN, TENSOR, (AGAIN, TENSOR, (V2, TENSOR, PARTS, 0), 0), None), None),
                    "a tensor whose attributes are not a dict but a value of type int"),
    "nested deeply": (from_type(AGAIN, TENSOR, (AGAIN, TENSOR, (AGAIN, TENSOR, (V2, TENSOR, PARTS, {}), {}), {}), {}),
                      "a tensor subclass (torch.Tensor)"),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_hostile_attributes_are_refused(tmp_path: Path, name: str) -> None:
    node, fragment = ODD[name]
    assert_refused(save(tmp_path, torch_file({"good": tensor(), "w": node}, SIX)), "w", fragment)
    beside = torch_file({"state_dict": {"good": tensor()}, "other": node}, SIX)
    assert read_all(save(tmp_path, beside)) == {"good": ("float32", (2, 3), SIX["0"])}


SETTABLE = sorted(
    name
    for name in dir(torch.nn.Parameter)
    for kind in [next(c for c in torch.nn.Parameter.__mro__ if name in vars(c))]
    if hasattr(vars(kind)[name], "__set__")
)


def test_no_attribute_that_torch_takes_for_something_else_changes_what_is_read(tmp_path: Path) -> None:
    """`real` overwrites the elements. Whatever torch loads from an attribute of any such name, we read the same."""
    changed = set()
    for name in SETTABLE:
        for value in (5, True, None, 2.5, "x", (1,), [1.0], {}):
            path = save(tmp_path, torch_file({"w": from_type(V2, TENSOR, PARTS, {name: value})}, SIX))
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    loaded = torch.load(path, weights_only=False)["w"]
            except Exception:
                continue  # it takes no such value
            same = bytes(loaded.detach().view(-1).view(torch.uint8).numpy().tobytes()) == SIX["0"]
            if same and name not in ("real", "imag", "data"):
                assert read_all(path)["w"][2] == SIX["0"]
            else:
                changed.add(name)
                assert_refused(path, "takes the place of its data")
    assert "real" in changed  # the one that makes this a test


def test_attributes_that_all_tensors_share_take_the_time_of_one(tmp_path: Path) -> None:
    many = list(range(20_000))
    shared = {"a": [many] * 2_000, "b": {"c": many}}
    state = {f"w.{i}": attributed("parameter", {}, i) for i in range(300)}
    for value in state.values():
        value.__dict__ = shared
    shared["itself"] = shared["a"]
    shared["a"].append(shared["a"])
    stream = io.BytesIO()
    torch.save(state, stream)
    with within(30):
        assert len(read_all(save(tmp_path, stream.getvalue()))) == 300
