"""Wrappers, raw and EMA weights, prefixes, keys: the one reading is found or the file is refused."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from makers import within
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
    storage,
    tensor,
    torch_file,
)

from converter.checkpoint import open_checkpoint
from converter.errors import InputError, UsageError

ONE = ("float32", (2, 3), SIX["0"])


def saved(folder: Path, root: Any) -> Path:
    return save(folder, torch_file(root, SIX))


@pytest.mark.parametrize(("root", "weights", "prefix"), [
    ({"w": tensor()}, "raw", ""),
    (ordered(("w", tensor())), "raw", ""),
    ({"state_dict": {"w": tensor()}}, "raw", ""),
    ({"model": ordered(("w", tensor())), "optimizer": {}}, "raw", ""),
    ({"state_dict_ema": {"w": tensor()}}, "ema", ""),
    ({"ema": {"w": tensor()}, "args": None}, "ema", ""),
    ({"state_dict": {"module.w": tensor()}}, "raw", "module."),
    ({"module._orig_mod.w": tensor()}, "raw", "module._orig_mod."),
    ({"model.diffusion_model.w": tensor()}, "raw", "model.diffusion_model."),
    ({"model.w": tensor()}, "raw", "model."),
    ({"state_dict": {"w": tensor()}, "model": None, "ema": None}, "raw", ""),
])  # fmt: skip
def test_where_the_weights_lie(tmp_path: Path, root: Any, weights: str, prefix: str) -> None:
    path = saved(tmp_path, root)
    assert read_all(path) == {"w": ONE}
    with open_checkpoint(path) as checkpoint:
        assert (checkpoint.selected.weights, checkpoint.prefix) == (weights, prefix)


def test_a_file_with_both_says_so_and_gives_what_was_asked_for(tmp_path: Path) -> None:
    path = saved(tmp_path, {"state_dict": {"w": tensor()}, "state_dict_ema": {"v": tensor()}, "epoch": 3})
    assert list(read_all(path)) == ["w"]
    assert list(read_all(path, "raw")) == ["w"]
    assert list(read_all(path, "ema")) == ["v"]
    with open_checkpoint(path) as checkpoint:
        assert [(c.weights, c.where) for c in checkpoint.candidates] == [
            ("raw", "state_dict"),
            ("ema", "state_dict_ema"),
        ]
        assert checkpoint.others == ["epoch: a value of type int"]
        assert checkpoint.container == "torch archive, {state_dict, state_dict_ema, epoch}"
    with pytest.raises(UsageError, match="`weights` ema, but the file holds only raw weights"):
        read_all(saved(tmp_path, {"w": tensor()}), "ema")
    with pytest.raises(UsageError, match=r"`weights` raw, but the file holds only ema weights \(ema\)"):
        read_all(saved(tmp_path, {"ema": {"w": tensor()}}), "raw")
    with pytest.raises(UsageError, match="`weights` best: one of raw, ema"):
        open_checkpoint(path, "best")


def test_the_weights_not_asked_for_may_be_anything(tmp_path: Path) -> None:
    path = saved(tmp_path, {"state_dict": {"w": tensor()}, "state_dict_ema": {"w": 3}})
    assert read_all(path) == {"w": ONE}
    path = saved(tmp_path, {"state_dict": {"a.w": 3, "b.w": tensor()}, "ema": {"a.w": tensor(), "b.w": tensor()}})
    assert_refused(path, "a.w", "a value of type int")
    assert list(read_all(path, "ema")) == ["a.w", "b.w"]
    # What holds no tensor at all, such as a config, is no state dict.
    assert read_all(saved(tmp_path, {"model": {"depth": 28}, "ema": {"w": tensor()}})) == {"w": ONE}


def twice(*entries: tuple[Any, Any]) -> Node:
    """A dict of entries that Python's own cannot have."""
    return pairs(Node(b"}"), *entries)


OVERRIDDEN = "an OrderedDict whose attributes are overridden"
REFUSED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "a number": (3, ("data.pkl", "holds a value of type int, not a dict of tensors")),
    "a list": ([tensor()], ("holds a sequence, not a dict",)),
    "a tensor": (tensor(), ("not a dict of tensors",)),
    "a whole model": (call(Node(b"cmodel\nNet\n")), ("an object made by model.Net", "save model.state_dict() instead")),
    "nothing": ({}, ("holds no state dict; its top-level keys are: none",)),
    "no tensors": ({"epoch": 3, "lr": 0.1}, ("its top-level keys are: epoch, lr",)),
    "an optimizer": ({"optimizer": {}, "epoch": 3}, ("holds an optimizer's state but no weights",)),
    "an optimizer's state dict": ({"state": {}, "param_groups": []}, ("holds an optimizer's state but no weights",)),
    "an FSDP shard": ({"flat_param_0": 3}, ("an FSDP shard: gather a full state dict first",)),
    "two raw": (
        {"state_dict": {"w": tensor()}, "model": {"v": tensor()}},
        ("several raw state dicts: state_dict (raw), model (raw)", "`state_dict_key` state_dict"),
    ),
    "two ema": ({"ema": {"w": tensor()}, "state_dict_ema": {"v": tensor()}}, ("several ema state dicts",)),
    "a wrapper twice": (twice(("model", {"w": tensor()}), ("model", {"w": tensor()})), ("the same wrapper key",)),
    "a wrapper twice, once empty": (twice(("model", {"w": tensor()}), ("model", None)), ("the same wrapper key",)),
    # Keys
    "a key twice": (twice(("w", tensor()), ("v", tensor()), ("w", tensor())), ("two entries have the key w",)),
    "a key twice in a wrapper": ({"ema": ordered(*[("w", tensor())] * 2)}, ("ema", "two entries have the key w")),
    "an empty key": ({"w": tensor(), "": tensor()}, ("a key that is not plain text: ''",)),
    "a number for a key": ({"w": tensor(), 1: tensor()}, ("not plain text: a value of type int",)),
    "bytes for a key": ({"w": tensor(), b"v": tensor()}, ("not plain text: a value of type bytes",)),
    "a list for a key": (twice(("w", tensor()), ([1], tensor())), ("not plain text: a sequence",)),
    "a tensor for a key": (twice(("w", tensor()), (tensor(), tensor())), ("not plain text: an object",)),
    "a line break": ({"w\nv": tensor()}, (r"not plain text: 'w\nv'",)),
    "a terminal's command": ({"\x1b[2J": tensor()}, (r"'\x1b[2J'",)),
    "right to left": ({"a\u202eb": tensor()}, (r"'a\u202eb'",)),
    "half a character": ({"\ud800": tensor()}, (r"'\ud800'",)),
    "a long key": ({"w" * 2000: tensor()}, ("not plain text: 'wwww",)),
    "a long hostile key": ({"\x1b" * (1 << 20): tensor()}, (r"\x1b\x1b",)),
    # Prefixes
    "collision": ({"module.w": tensor(), "w": tensor()}, ("(w): mixed prefixes cannot be told apart",)),
    "a later collision": (
        {"v": tensor(), "module.u": tensor(), "w": tensor(), "module.w": tensor()},
        ("the top level", "2 of 4 keys carry the prefix 'module.'", "(w): mixed prefixes"),
    ),
    "an inner collision": (
        {"module.model.w": tensor(), "module.w": tensor(), "module.v": tensor()},
        ("1 of 3 keys carry the prefix 'model.'", "(module.w)"),
    ),
    # OrderedDict
    "items overridden": (build(ordered(("w", tensor())), {"items": call(Node(b"cbuiltins\nlist\n"))}), (OVERRIDDEN,)),
    "metadata and items": (build(ordered(("w", tensor())), {"_metadata": {}, "items": None}), (OVERRIDDEN,)),
    "class overridden": (
        {"state_dict": build(ordered(("w", tensor())), {"__class__": None})},
        ("state_dict", OVERRIDDEN),
    ),
    "state that is no dict": (build(ordered(("w", tensor())), (None, {"items": 1})), (OVERRIDDEN,)),
    "state made by a call": (build(ordered(("w", tensor())), call(Node(b"cbuiltins\ndict\n"))), (OVERRIDDEN,)),
    "overridden by keywords": (
        Node(Node(b"ccollections\nOrderedDict\n"), (), {"items": 1}, b"\x92"),
        ("holds no state dict",),
    ),
    "an unhashable attribute": (build(ordered(("w", tensor())), pairs(Node(b"}"), ([], 1))), (OVERRIDDEN,)),
    "items as arguments": (
        call(Node(b"ccollections\nOrderedDict\n"), [("w", tensor())]),
        ("holds no state dict",),
    ),
    "items appended": (Node(ordered(("w", tensor())), 1, b"a"), ("in a way that torch never uses",)),
    "a dict of another kind": (
        pairs(call(Node(b"ccollections\nCounter\n")), ("w", tensor())),
        ("not a dict of tensors",),
    ),
    "a defaultdict of items": (
        pairs(call(Glob("collections", "defaultdict"), [("w", 1)]), ("w", tensor())),
        ("a defaultdict built in a way that torch never uses",),
    ),
    "a defaultdict of a pair": (
        pairs(call(Glob("collections", "defaultdict"), None, {"w": 1}), ("w", tensor())),
        ("a defaultdict built in a way that torch never uses",),
    ),
    "a defaultdict with a state": (
        build(pairs(call(Glob("collections", "defaultdict")), ("w", tensor())), {"items": None}),
        ("a defaultdict whose attributes are overridden",),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_in_one_way_is_refused(tmp_path: Path, name: str) -> None:
    root, fragments = REFUSED[name]
    assert_refused(save(tmp_path, torch_file(pickled(root, 4), SIX)), *fragments)


MIXED: dict[str, tuple[list[str], str, list[str], str]] = {
    "a part of the names": (["model.embed", "lm_head"], "", ["model.embed", "lm_head"], "'model.' and"),
    "half of the keys": (["module.w", "v"], "", ["module.w", "v"], "1 of 2 keys carry the prefix 'module.'"),
    "inside": (["module.model.w", "module.v"], "module.", ["model.w", "v"], "'model.' and the others do not"),
    "a key that is a prefix": (["module.", "module.w"], "", ["module.", "module.w"], "(module.): mixed prefixes"),
    "all": (["module.w", "module.v"], "module.", ["w", "v"], ""),
    "none": (["w", "v"], "", ["w", "v"], ""),
}


@pytest.mark.parametrize("name", MIXED)
def test_a_prefix_of_only_some_keys_stays_and_is_said(tmp_path: Path, name: str) -> None:
    """A family may have such keys. Where none has, `mixed` is the reason to give."""
    keys, prefix, kept, says = MIXED[name]
    with open_checkpoint(saved(tmp_path, {key: tensor() for key in keys})) as checkpoint:
        assert (checkpoint.prefix, list(checkpoint)) == (prefix, kept)
        assert says in checkpoint.mixed
        assert bool(says) == bool(checkpoint.mixed) == ("cannot be told apart" in checkpoint.mixed)


def test_what_is_said_of_a_mixture_is_printable_and_short(tmp_path: Path) -> None:
    with open_checkpoint(saved(tmp_path, {"module.w": tensor(), "v" * 1000: tensor()})) as checkpoint:
        assert checkpoint.mixed.isprintable()
        assert len(checkpoint.mixed) < 500


def test_weights_beside_a_wrapper_are_the_raw_ones(tmp_path: Path) -> None:
    """`{**model.state_dict(), "ema": ema.state_dict()}`."""
    root = {"a.w": tensor(), "table": tensor(), "ema": {"v": tensor()}, "epoch": 3}
    path = saved(tmp_path, root)
    assert list(read_all(path)) == list(read_all(path, "raw")) == ["a.w", "table"]
    assert list(read_all(path, "ema")) == ["v"]
    with open_checkpoint(path) as checkpoint:
        assert [(c.weights, c.where) for c in checkpoint.candidates] == [("raw", "the top level"), ("ema", "ema")]
        assert checkpoint.others == ["epoch: a value of type int"]
        assert checkpoint.container == "torch archive, {the top level, ema, epoch}"
    # Two sets of raw weights, and none is the one.
    assert_refused(
        saved(tmp_path, root | {"model": {"w": tensor()}}), "several raw state dicts: the top level (raw), model (raw)"
    )
    assert list(read_all(saved(tmp_path, root | {"model": {"w": tensor()}}), "ema")) == ["v"]
    # Their keys are checked like any others.
    twice = pairs(Node(b"}"), ("a.w", tensor()), ("ema", {"v": tensor()}), ("a.w", tensor()))
    assert_refused(saved(tmp_path, twice), "the top level", "two entries have the key a.w")


def test_a_lone_tensor_beside_a_wrapper_is_no_weight(tmp_path: Path) -> None:
    path = saved(tmp_path, {"step": tensor(), "ema": {"w": tensor()}, 5: tensor()})
    with open_checkpoint(path) as checkpoint:
        assert [c.where for c in checkpoint.candidates] == ["ema"]
        assert [other.partition(":")[0] for other in checkpoint.others] == ["step", "a value of type int"]


def test_a_key_that_is_nothing_but_a_prefix_keeps_its_name(tmp_path: Path) -> None:
    assert list(read_all(saved(tmp_path, {"module.": tensor()}))) == ["module."]


def test_other_entries_with_hostile_keys_do_no_harm(tmp_path: Path) -> None:
    """Keys that take forever to hash or to print: shared 2^60 times, nested 100,000 deep, unhashable."""
    doubled, deep = Node(b")" + b"2\x86" * 60), Node(b")" + b"\x85" * 100_000)
    items = [
        ("state_dict", {"w": tensor()}),
        (doubled, 1),
        (deep, 2),
        ([], 3),
        ({}, 4),
        (tensor(), 5),
        ("\x1b" * 99, doubled),
    ]
    path = save(tmp_path, torch_file(pairs(Node(b"}"), *items), SIX))
    with within(10), open_checkpoint(path) as checkpoint:
        assert list(checkpoint) == ["w"]
        assert checkpoint.others[:3] == ["a sequence: a value of type int"] * 3
        assert all(line.isprintable() and len(line) < 300 for line in checkpoint.others)


@pytest.mark.parametrize("values", [b")" + b"2\x86" * 60, b")" + b"\x85" * 100_000], ids=["doubled", "deep"])
def test_hostile_structures_in_place_of_anything_do_no_harm(tmp_path: Path, values: bytes) -> None:
    hostile = Node(values)
    for root in (
        {"w": hostile},
        {"w": tensor(), "v": hostile},
        {"state_dict": hostile},
        pairs(Node(b"}"), (hostile, tensor())),
        {"w": tensor(hostile)},
        {"w": tensor((2, 3), hostile)},
        {"w": tensor((2, 3), (3, 1), hostile)},
        {"w": tensor(source=hostile)},
        {"w": tensor(source=Node(hostile, b"Q"))},
        build(ordered(("w", tensor())), hostile),
        {"w": tensor(source=storage(name=hostile))},
        {"w": tensor(source=storage(count=hostile))},
    ):
        assert_refused(saved(tmp_path, root))


def test_many_entries_take_linear_time(tmp_path: Path) -> None:
    many = 60_000
    repeated = b"}X\x05\0\0\0modelq\x000X\x03\0\0\0emaq\x010(" + b"h\x00N" * many + b"h\x01N" * many + b"u"
    for root in (Node(repeated), {"module." * 150 + "w" * (1 << 18): tensor()}):
        assert_refused(saved(tmp_path, root))
    entries = {f"key{n}": n for n in range(many)}
    with within(20), open_checkpoint(saved(tmp_path, {"state_dict": {"w": tensor()}} | entries)) as checkpoint:
        assert len(checkpoint.others) == many
        assert len(checkpoint.container) < 200


def test_sharing_is_copied_and_expansion_refused(tmp_path: Path) -> None:
    few = {f"w{n}": tensor() for n in range(20)}
    assert set(read_all(saved(tmp_path, few)).values()) == {ONE}
    big = {"0": bytes(1 << 16)}
    views = {f"w{n}": tensor((1 << 14,), (1,), source=storage(count=1 << 14)) for n in range(8)}
    assert_refused(save(tmp_path, torch_file(views, big)), "shared storages are expanded", f"{8 << 16} bytes")
    # Two elements each, but as far apart as the storage is long: what has to be read for them counts.
    sparse = {f"w{n}": tensor((2,), ((1 << 14) - 1,), source=storage(count=1 << 14)) for n in range(8)}
    assert_refused(save(tmp_path, torch_file(sparse, big)), "shared storages are expanded")


def assert_refused_by(call: Callable[[], object], *fragments: str) -> None:
    with pytest.raises(InputError) as refused:
        call()
    assert all(fragment in str(refused.value) for fragment in fragments)


def test_many_state_dicts_take_linear_time(tmp_path: Path) -> None:
    path = saved(tmp_path, {f"d{n}": {"w": tensor()} for n in range(5_000)})
    with within(20):
        assert read_all(path) == {"w": ONE}  # one and the same tensor under many names
    different = {f"d{n}": {f"w{n}": tensor()} for n in range(2_000)}
    with within(20):
        assert_refused(saved(tmp_path, different), "several state dicts: d0 (unknown), ", "and 1988 more")


def test_two_state_dicts_at_one_place_cannot_be_told_apart(tmp_path: Path) -> None:
    path = saved(tmp_path, {"a.b": {"w": tensor()}, "a": {"b": {"v": tensor()}}})
    with open_checkpoint(path, state_dict_key="a.b") as checkpoint:
        assert_refused_by(lambda: list(checkpoint), "two have this place")


def test_where_weights_lie_is_printable(tmp_path: Path) -> None:
    hint = {"w": tensor()} | {"\x1b[2J\nnote: all is well": [tensor(), tensor()]}
    with open_checkpoint(saved(tmp_path, {"model": {"w": tensor()}, "odd": hint})) as checkpoint:
        assert checkpoint.unnamed_weights
        assert all(line.isprintable() for line in checkpoint.unnamed_weights)


def test_one_dict_under_many_names_is_looked_at_a_few_times(tmp_path: Path) -> None:
    """A pickle refers to what it holds already with two bytes."""
    many, keys = 5_000, 2_000
    repeated = b"".join(b"X" + (5).to_bytes(4, "little") + b"%05d" % n + b"h\x00" for n in range(many))
    first = b"X\x05\0\0\0model" + pickled({f"a.{n}": tensor() for n in range(keys)}, 2)[2:-1] + b"q\x00"
    path = saved(tmp_path, Node(b"}(" + first + repeated + b"u"))
    with within(30), open_checkpoint(path) as checkpoint:
        assert len(checkpoint.candidates) < 20


def test_an_optimizers_numbers_beside_weights_do_not_hide_them(tmp_path: Path) -> None:
    assert read_all(saved(tmp_path, {"momentum_buffer": tensor(), "model": {"w": tensor()}})) == {"w": ONE}


@given(st.dictionaries(st.text("abw.", min_size=1, max_size=6), st.just(None), min_size=1, max_size=5), st.booleans())
def test_a_defaultdict_is_read_as_a_dict(keys: dict[str, None], wrapped: bool) -> None:
    weights = defaultdict(list, {key: torch.arange(3.0) for key in keys})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "weights.pth")
        torch.save(defaultdict(None, {"model": weights}) if wrapped else weights, path)
        with open_checkpoint(path) as checkpoint:
            assert {key: value.numpy().tolist() for key, value in checkpoint.items()} == {
                key: [0, 1, 2] for key in keys
            }
            assert not any(danger for _, danger in checkpoint.foreign_globals)
