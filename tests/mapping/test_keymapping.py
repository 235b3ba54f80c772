"""The laws of the engine, on random tables: order-free, total, complete, invertible; or refused, with the key named."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from converter.mapping import Computed, Copies, Extra, KeyMapping, MappingError, Parameter, Refused, Sparse, fold
from converter.mapping.dims import Dim

DIMS = {"D": 4, "E": 3, "L": 5}
ANCHOR = "anchor [D D D D E E E E]"  # so that one wrong shape is outvoted


@dataclass
class Line:
    """A row of a random table, said once more in plain words: what the engine is held against."""

    kind: str  # rename, split, copies, sparse, computed, extra, refused
    source: str
    targets: tuple[str, ...] = ()
    pattern: str = ""
    group: str = ""
    stray: str = ""

    @property
    def indexed(self) -> bool:
        return "{}" in self.source

    @property
    def required(self) -> bool:
        return self.kind in ("rename", "split", "copies")

    @property
    def spread(self) -> bool:
        """Whether it has a copy in every block, and is in none."""
        return not self.indexed and any("{}" in target for target in self.targets)

    @property
    def text(self) -> str:
        return f"{self.source} [{self.pattern}]" if self.pattern else self.source

    def value(self, module: bool) -> Any:
        path = self.targets if len(self.targets) > 1 else "".join(self.targets)
        to = path if module else Parameter(path)
        return {
            "rename": to,
            "split": to,
            "copies": Copies(to),
            "sparse": Sparse(to),
            "computed": Computed(len),
            "extra": Extra(self.stray),
            "refused": Refused(self.source, "no home"),
        }[self.kind]

    def shape(self, suffix: str) -> tuple[int, ...]:
        parts = len(self.targets) if self.kind != "copies" else 3
        sizes = tuple(Dim.parse(part).value(DIMS) or 1 for part in self.pattern.split()) or (parts or 1, 2)
        return sizes[:1] if suffix == ".bias" else sizes


@dataclass
class Case:
    """A random table and a state dict that fits it. `modules`: the sources that have a weight and a bias."""

    lines: list[Line]
    depth: int
    modules: set[str]
    state: dict[str, np.ndarray] = field(default_factory=dict)
    # Key -> what it becomes ('' is the sidecar), by construction and not by the engine.
    becomes: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def keys(self) -> KeyMapping:
        table = {line.text: line.value(line.source in self.modules) for line in self.lines if not line.group}
        optional: dict[str, dict[str, Any]] = {}
        for line in self.lines:
            if line.group:
                optional.setdefault(line.group, {})[line.text] = line.value(line.source in self.modules)
        return KeyMapping(table, optional)

    def suffixes(self, line: Line) -> tuple[str, ...]:
        return (".weight", ".bias") if line.source in self.modules else ("",)

    def add(self, line: Line, index: int | None) -> None:
        for suffix in self.suffixes(line):
            key = line.source.replace("{}", str(index)) + suffix
            shape = line.shape(suffix)
            start = 1000 * len(self.state)
            self.state[key] = np.arange(start, start + int(np.prod(shape))).reshape(shape)
            blocks = range(self.depth) if line.spread else (index,)
            # A copy that is in no block is one and not one for every block.
            names = [t.replace("{}", str(i)) + suffix for t in line.targets for i in blocks]
            self.becomes[key] = tuple(dict.fromkeys(names))

    @property
    def copied(self) -> set[str]:
        """The keys that the target holds several times."""
        lines = [line for line in self.lines if line.kind == "copies"]
        return {key for key in self.becomes if any(_match(line, key) for line in lines)}


WORDS = st.sampled_from(["a", "b", "mlp", "attn", "0", "2", "proj"])
SIZES = ("D", "2D", "D/2", "E", "6", "2E")


@st.composite
def lines(draw: st.DrawFn) -> list[Line]:
    made = [Line("rename", "anchor", ("anchor",), ANCHOR[8:-1])]
    count = draw(st.integers(1, 7))
    for n in range(count):
        indexed = draw(st.booleans())
        words = draw(st.lists(WORDS, max_size=2))
        # The number keeps paths apart; where it stands is random.
        place = draw(st.integers(0, len(words)))
        path = ".".join([*words[:place], f"s{n}", *words[place:]])
        path = (draw(st.sampled_from(["{}.", "blocks.{}.", "x.blocks.{}."])) if indexed else "") + path
        kind = draw(
            st.sampled_from(
                ["rename", "rename", "split", "copies", "sparse", "sparse split", "computed", "extra", "refused"]
            )
        )
        parts = draw(st.integers(2, 3)) if "split" in kind else 1 if kind in ("rename", "sparse") else 0
        if kind == "copies":
            parts = draw(st.integers(2 if indexed else 1, 3))
        heads = [draw(st.sampled_from(["{}.", "t.{}."] if indexed else ["", "t."]))] * parts
        if kind == "copies" and not indexed:  # in every block, or in none
            heads = [draw(st.sampled_from(["{}.", "t.{}.", ""])) for _ in range(parts)]
            heads[0] = heads[0] or "{}." if parts == 1 else heads[0]
        targets = tuple(f"{head}t{n}" + (f".{'qkv'[part]}" if parts > 1 else "") for part, head in enumerate(heads))
        pattern = ""
        if draw(st.booleans()):
            first = (
                f"{parts * draw(st.integers(1, 2))}{draw(st.sampled_from('DE'))}"
                if "split" in kind
                else draw(st.sampled_from(SIZES))
            )
            pattern = " ".join([first, *draw(st.lists(st.sampled_from(SIZES), max_size=2))])
        group = draw(st.sampled_from(["", "", "", "g", "h"])) if kind != "refused" else ""
        stray = f"{'t.{}.' if indexed else ''}stray{n}" if kind == "extra" and draw(st.booleans()) else ""
        made.append(Line(kind.split()[0], path, targets, pattern, group, stray))
    # Something has to say how many blocks there are, in each stack that has copies.
    spread = {target.partition("{}")[0] for line in made if line.spread for target in line.targets if "{}" in target}
    made += [Line("rename", f"c{n}.{{}}.n", (f"{head}{{}}.counted",)) for n, head in enumerate(sorted(spread))]
    return made


@st.composite
def cases(draw: st.DrawFn) -> Case:
    table = draw(lines())
    case = Case(table, draw(st.integers(1, 4)), {line.source for line in table[1:] if draw(st.booleans())})
    groups = {group for group in ("g", "h") if draw(st.booleans())}
    for line in table:
        if line.kind == "refused" or (line.group and line.group not in groups):
            continue
        for index in range(case.depth) if line.indexed else (None,):
            if line.required or draw(st.booleans()):
                case.add(line, index)
    return case


def linked(lines: list[Line], line: Line) -> list[Line]:
    """The lines whose blocks are counted together: by a stack of the source, or of the target, that they share."""

    def stacks(one: Line) -> set[tuple[str, str]]:
        paths = [("source", one.source), *(("target", path) for path in (*one.targets, one.stray))]
        return {(side, path.partition("{}")[0]) for side, path in paths if "{}" in path and one.indexed}

    own, grown = stacks(line), True
    while grown:
        more = {place for other in lines if stacks(other) & own for place in stacks(other)}
        grown, own = not more <= own, own | more
    return [other for other in lines if stacks(other) & own]


def fits(case: Case, keys: Iterable[str]) -> bool:
    """Whether a set of keys fits a table: the specification, by brute force and without the engine."""
    left = set(keys)
    lines = case.lines

    def present(line: Line) -> dict[int | None, set[str]]:
        indices: Iterable[int | None] = range(20) if line.indexed else (None,)
        found: dict[int | None, set[str]] = {}
        for index in indices:
            for suffix in ("", ".weight", ".bias"):
                if line.source.replace("{}", str(index)) + suffix in left:
                    found.setdefault(index, set()).add(suffix)
        return found

    seen = {line.source: present(line) for line in lines}
    groups = {line.group for line in lines if line.group and seen[line.source]}
    for line in lines:
        found = seen[line.source]
        counting = [other for other in linked(lines, line) if other.required]
        depth = 1 + max((i for other in counting for i in seen[other.source] if i is not None), default=-1)
        if line.kind == "refused" and found:
            return False
        if line.required and (not line.group or line.group in groups):
            wanted: set[int | None] = set(range(max(depth, 1))) if line.indexed else {None}
            if set(found) != wanted:
                return False
        if depth and any(index is not None and index >= depth for index in found):
            return False
        if any(suffixes not in ({""}, {".weight", ".bias"}) for suffixes in found.values()):
            return False
        if len({"" in suffixes for suffixes in found.values()}) > 1:
            return False
        if line.targets and any(suffixes != set(case.suffixes(line)) for suffixes in found.values()):
            return False
        left -= {line.source.replace("{}", str(i)) + s for i, suffixes in found.items() for s in suffixes}
    return not left


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


@given(cases(), st.randoms(use_true_random=False))
def test_order_free(case: Case, shuffler: random.Random) -> None:
    items = list(case.state.items())
    shuffler.shuffle(items)
    rows = list(case.lines)
    shuffler.shuffle(rows)
    plan = case.keys.plan(case.state)
    assert case.keys.plan(dict(items)) == plan
    other = Case(rows, case.depth, case.modules).keys.plan(dict(items))
    assert {(m.sources, m.targets) for m in other.moves} == {(m.sources, m.targets) for m in plan.moves}
    assert (other.extras, other.dims, other.stacks) == (plan.extras, plan.dims, plan.stacks)


@given(cases())
def test_total(case: Case) -> None:
    plan = case.keys.plan(case.state)
    moved = {move.sources[0]: move.targets for move in plan.moves}
    consumed = [*moved, *plan.computed, *plan.extras]
    assert sorted(consumed) == sorted(case.state)
    assert moved == {key: targets for key, targets in case.becomes.items() if targets}
    produced = [target for move in plan.moves for target in move.targets]
    assert len(produced) == len(set(produced))
    assert len(set(plan.extras.values())) == len(plan.extras)
    assert plan.extras == {key: key for key in plan.extras}
    assert {*plan.stacks.values()} <= {0, case.depth}


@given(cases())
def test_invertible(case: Case) -> None:
    keys = case.keys
    made, left = keys(case.state), keys.left(case.state)
    assert set(made) == {target for targets in case.becomes.values() for target in targets}
    assert set(left) == {key for key, targets in case.becomes.items() if not targets}
    assert same(keys.inverse(made, left), case.state)
    assert same(keys(keys.inverse(made)), made)
    forward, back = keys.plan(case.state), keys.plan_back(made)
    assert {(m.sources, m.targets) for m in forward.moves} == {(m.targets, m.sources) for m in back.moves}
    assert (back.stacks, back.extras, back.problems) == (forward.stacks, {}, [])


@given(cases())
def test_a_split_gives_the_rows_in_order(case: Case) -> None:
    made = case.keys(case.state)
    for key, targets in case.becomes.items():
        if targets and key not in case.copied:
            assert np.array_equal(np.concatenate([made[target] for target in targets]), case.state[key])
            assert len({made[target].shape for target in targets}) == 1
            assert all(np.shares_memory(made[target], case.state[key]) for target in targets)


@given(cases())
def test_every_copy_is_the_whole_tensor_and_a_plan_says_so(case: Case) -> None:
    keys = case.keys
    made = keys(case.state)
    assert all(made[target] is case.state[key] for key in case.copied for target in case.becomes[key])
    for move in keys.plan(case.state).moves:
        assert isinstance(move.operation, Copies) == (move.origin in case.copied)
    for move in keys.plan_back(made).moves:
        assert isinstance(move.operation, Copies) == (move.origin in case.copied)


@given(st.data())
def test_any_copy_that_differs_is_refused_and_named(data: st.DataObject) -> None:
    case = data.draw(cases())
    assume(case.copied)
    keys = case.keys
    made = keys(case.state)
    key = data.draw(st.sampled_from(sorted(case.copied)))
    copies = case.becomes[key]
    part = data.draw(st.sampled_from(copies))
    changed = made[part].copy()
    changed.reshape(-1)[data.draw(st.integers(0, changed.size - 1))] += 1
    if len(copies) == 1:  # of one block there is one copy: it may be anything
        assert np.array_equal(keys.inverse(made | {part: changed})[key], changed)
        return
    with pytest.raises(MappingError) as caught:
        keys.inverse(made | {part: changed})
    # Of two, nobody can say which one is wrong: both are named, and the second is said to differ.
    strange, usual = (copies[1], copies[0]) if len(copies) == 2 else (part, copies[part == copies[0]])
    assert caught.value.problems == [f"{strange} is not what {usual} is, and both have to be copies of {key}"]


@st.composite
def mutations(draw: st.DrawFn, keys: list[str]) -> tuple[str, set[str], str]:
    """(what was done, the keys afterwards, the key that was dropped or added)."""
    kind = draw(st.sampled_from(["drop", "add", "rename"]))
    key = draw(st.sampled_from(sorted(keys)))
    made = set(keys)
    if kind != "add":
        made.discard(key)
    if kind == "drop":
        return kind, made, key
    edits: list[Callable[[str], str]] = [
        lambda k: k + ".weight",
        lambda k: k.rpartition(".")[0] or k + "x",
        lambda k: k.upper(),
        lambda k: k[:-1] + "~",
        lambda k: k[1:],
        lambda k: k.replace("0", "1", 1),
        lambda k: k.replace("0", "7", 1),
        lambda k: k.replace("1", "0", 1),
        lambda k: k.replace("0", "00", 1),
        lambda k: k.replace(".weight", ".bias"),
        lambda k: k.replace("s", "t", 1),
        lambda k: k + "\n",
        lambda k: "module." + k,
    ]
    new = draw(st.sampled_from(edits))(key)
    assume(new not in keys)
    made.add(new)
    return kind, made, new


@settings(max_examples=300)
@given(st.data())
def test_complete_any_single_mutation_of_the_keys_is_refused(data: st.DataObject) -> None:
    case = data.draw(cases())
    assert fits(case, case.state)
    kind, mutated, key = data.draw(mutations(list(case.state)))
    # Shapes are another law: here every tensor has the one that its row asks for, whatever it is now called.
    bare = Case([Line(**{**vars(line), "pattern": ""}) for line in case.lines], case.depth, case.modules)
    state = {k: np.zeros((6, 2)) for k in mutated}
    if fits(case, mutated):
        # A tensor that may be absent is, or another that may be there is: still a bijection.
        assert kind == "drop" or key in {k for k in mutated if k not in case.state}
        plan = bare.keys.plan(state)
        assert len(plan.moves) + len(plan.extras) + len(plan.computed) == len(mutated)
        return
    with pytest.raises(MappingError) as caught:
        bare.keys.plan(state)
    assert caught.value.problems
    if kind != "drop" and all(_match(line, key) is False for line in case.lines):
        (shown,) = fold([key])
        assert any(problem.startswith(f"unknown key {shown}") for problem in caught.value.problems)


def _match(line: Line, key: str) -> bool:
    head, _, tail = line.source.partition("{}")
    for suffix in (".weight", ".bias", ""):
        stem = key.removesuffix(suffix) if suffix and key.endswith(suffix) else key if not suffix else ""
        if stem == line.source and not line.indexed:
            return True
        if line.indexed and stem.startswith(head) and stem.endswith(tail):
            index = stem[len(head) : len(stem) - len(tail)]
            if index.isdigit() and str(int(index)) == index:
                return True
    return False


@given(st.data())
def test_any_wrong_shape_is_refused_and_named(data: st.DataObject) -> None:
    case = data.draw(cases())
    patterned = [key for key in case.state if any(_match(line, key) and line.pattern for line in case.lines)]
    key = data.draw(st.sampled_from(sorted(patterned)))
    shape = list(case.state[key].shape)
    axis = data.draw(st.integers(0, len(shape) - 1))
    change = data.draw(st.sampled_from(["size", "more", "fewer"]))
    if change == "size":
        shape[axis] = data.draw(st.integers(0, 30).filter(lambda size: size != shape[axis]))
    elif change == "more":
        shape.insert(axis, 1)
    else:
        del shape[axis]
    state = case.state | {key: np.zeros(shape)}
    with pytest.raises(MappingError) as caught:
        case.keys.plan(state)
    assert any(problem.startswith(f"{key} has shape {shape}, ") for problem in caught.value.problems)
    assert all(problem.startswith(f"{key} has shape") for problem in caught.value.problems)


@given(st.data())
def test_the_way_back_refuses_what_is_missing_strange_or_of_unequal_parts(data: st.DataObject) -> None:
    case = data.draw(cases())
    keys = case.keys
    made = keys(case.state)
    # Of copies too, none may be missing or of another shape.
    splits = {target: key for key, targets in case.becomes.items() if len(targets) > 1 for target in targets}
    kind = data.draw(st.sampled_from(["drop", "add", "part"] if splits else ["drop", "add"]))
    if kind == "add":
        with pytest.raises(MappingError, match="unknown key zzz"):
            keys.inverse(made | {"zzz": np.zeros(2)})
    elif kind == "part":
        # Also of rows that may be absent: half of a tensor is no tensor.
        part = data.draw(st.sampled_from(sorted(splits)))
        with pytest.raises(MappingError) as caught:
            keys.inverse({key: tensor for key, tensor in made.items() if key != part})
        assert any("missing" in problem for problem in caught.value.problems)
        with pytest.raises(MappingError) as caught:
            keys.inverse(made | {part: np.zeros((*made[part].shape, 1))})
        assert any(part in problem or splits[part] in problem for problem in caught.value.problems)
    else:
        with pytest.raises(MappingError, match=r"missing anchor$|missing anchor;"):
            keys.inverse({key: tensor for key, tensor in made.items() if key != "anchor"})


@given(cases(), st.data())
def test_ambiguous_tables_are_refused_at_construction(case: Case, data: st.DataObject) -> None:
    line = case.lines[data.draw(st.integers(0, len(case.lines) - 1))]
    twins_of = {"source": True, "suffix": True, "index": line.indexed, "target": line.targets, "stray": line.stray}
    twin = data.draw(st.sampled_from([name for name, there in twins_of.items() if there]))
    to = "fresh.{}" if line.indexed else "fresh"
    source = {"source": line.source, "suffix": line.source + ".bias", "index": line.source.replace("{}", "3")}.get(
        twin, to
    )
    if twin == "index":
        to = "fresh"
    if twin == "target":
        to = data.draw(st.sampled_from(line.targets))
        source = "fresh.{}" if "{}" in to else "fresh"  # of a copy in every block only the target has an index
    elif twin == "stray":
        to = line.stray
    # The very same text twice is one key of a dict; in a group it is two.
    group = data.draw(st.sampled_from(["", "other"])) if twin != "source" else "other"
    twins = [*case.lines, Line("rename", source, (to,), group=group)]
    # An optional group may have other rows of the same sources, if it has rows of its own too.
    words = (
        "match the same keys" if twin != "source" or line.group else "the optional group 'other' has no row of its own"
    )
    with pytest.raises(ValueError, match=words):
        _ = Case(twins, case.depth, case.modules).keys


def test_a_table_that_maps_two_rows_to_one_target_is_refused() -> None:
    with pytest.raises(ValueError, match="targets 'x' and 'x' match the same keys"):
        KeyMapping({"a": "x", "b": "x"})
    with pytest.raises(ValueError, match="targets 'x' and 'x'"):
        KeyMapping({"a": ("x", "x")})
    with pytest.raises(ValueError, match=r"targets 'x\.\{\}' and 'x\.0'"):
        KeyMapping({"a.{}": "x.{}", "b": "x.0"})
    with pytest.raises(ValueError, match="targets 'x' and 'x'"):
        KeyMapping({"a": "x", "b": Extra(stray="x")})


@given(st.booleans(), st.integers(1, 3), st.randoms())
def test_a_group_has_other_targets_for_the_same_sources(there: bool, depth: int, order: random.Random) -> None:
    group = {"time [D 4]": "guided.time", "b.{}.norm [D]": ("c.{}.one", "c.{}.two"), "cfg [D 4]": "guidance"}
    keys = KeyMapping({"time [D 4]": "emb.time", "b.{}.norm [D]": "c.{}.norm", "b.{}.x [D D]": "c.{}.x"}, {"g": group})
    modules = {"time": (2, 4), **({"cfg": (2, 4)} if there else {})}
    modules |= {f"b.{i}.x": (2, 2) for i in range(depth)} | {f"b.{i}.norm": (2,) for i in range(depth)}
    items = [(f"{name}.{end}", np.full(shape if end == "weight" else shape[:1], i))
             for i, (name, shape) in enumerate(modules.items()) for end in ("weight", "bias")]  # fmt: skip
    order.shuffle(items)
    state = dict(items)
    made = keys(state)
    wanted = ("guided.time", "c.0.one", "c.0.two", "guidance") if there else ("emb.time", "c.0.norm")
    other = {"guided.time", "guidance", "c.0.one", "c.0.two", "emb.time", "c.0.norm"} - {*wanted}
    modules_made = {key.rpartition(".")[0] for key in made}
    assert modules_made >= {*wanted}
    assert not modules_made & other
    back = keys.inverse(made)
    assert back.keys() == state.keys()
    assert all(np.array_equal(back[key], state[key]) for key in state)
    # Of a model that holds both, or neither, no such thing is said.
    strange = {f"{'emb' if there else 'guided'}.time.{end}": made[f"{wanted[0]}.{end}"] for end in ("weight", "bias")}
    with pytest.raises(MappingError, match=r"unexpected emb\.time.* \(beside the g group\)|the g group is incomplete"):
        keys.inverse(made | strange)
    less = {key: tensor for key, tensor in made.items() if not key.startswith(wanted[0])}
    with pytest.raises(MappingError, match=r"missing guided\.time \(the g group|missing emb\.time"):
        keys.inverse(less)
    assert [row.unless for row in keys.rows] == ["g", "g", "", "", "", ""]


# Single cases.
KEYS = KeyMapping({
    "fc.{} [2D D]": ("a.{}", "b.{}"),
    "out [D]":      Parameter("o"),
    "null [L D]":   Extra(stray="old.null"),
})  # fmt: skip


def state(depth: int = 2) -> dict[str, np.ndarray]:
    made: dict[str, np.ndarray] = {"out": np.arange(3.0), "null": np.ones((5, 3))}
    for i in range(depth):
        made |= {f"fc.{i}.weight": np.arange(18.0).reshape(6, 3) + i, f"fc.{i}.bias": np.arange(6.0) - i}
    return made


def test_the_patterns_read_backwards_give_the_sizes_and_their_evidence() -> None:
    plan = KEYS.plan(state())
    assert plan.dims == {"D": 3, "L": 5}
    assert plan.evidence == {"D": "fc.0.weight [6, 3]", "L": "null [5, 3]"}
    assert KEYS.plan_back(KEYS(state())).dims == {"D": 3}


def test_everything_that_is_wrong_is_in_one_error() -> None:
    wrong = state(3) | {"extra.7.weight": np.ones(1), "fc.2.weight": np.ones((6, 4)), "out": np.ones((3, 1))}
    del wrong["fc.1.bias"]
    with pytest.raises(MappingError) as caught:
        KEYS.plan(wrong)
    assert caught.value.problems == [
        "unknown key extra.7.weight",
        "missing fc.1.bias",
        "fc.2.weight has shape [6, 4], not [6, 3] (table: [2D D])",
        "out has shape [3, 1], not [3] (table: [D])",
    ]
    assert KEYS.survey(wrong).problems == caught.value.problems


def test_the_way_back_of_a_state_dict_that_is_not_whole() -> None:
    """A survey says what is there, and what is wrong; a plan is refused for it."""
    made = KEYS(state()) | {"spare": np.ones(1)}
    whole = KEYS.survey_back(KEYS(state()))
    assert whole.problems == []
    assert [move.targets for move in whole.moves] == [move.targets for move in KEYS.plan_back(KEYS(state())).moves]
    del made["b.1.weight"]
    looked = KEYS.survey_back(made)
    assert looked.problems == ["unknown key spare", "missing b.1.weight"]
    assert {move.targets[0]: move.sources for move in looked.moves}["fc.1.weight"] == ("a.1.weight", "b.1.weight")
    with pytest.raises(MappingError, match=r"unknown key spare; missing b\.1\.weight"):
        KEYS.plan_back(made)


def test_what_does_not_split_is_refused_without_a_pattern_too() -> None:
    keys = KeyMapping({"q": Parameter(("x", "y", "z"))})
    for shape in ((4,), (5, 3), ()):
        with pytest.raises(MappingError, match="which does not split into 3"):
            keys.plan({"q": np.zeros(shape)})


def test_parts_that_cannot_be_put_together_are_refused() -> None:
    keys = KeyMapping({"q.{}": Parameter(("x.{}", "y.{}"))})
    with pytest.raises(MappingError, match=r"q\.\{0\.\.1\} cannot be joined from shapes \[2\], \[3\]$"):
        keys.inverse({f"{part}.{i}": np.zeros(n) for i in range(2) for part, n in (("x", 2), ("y", 3))})
    with pytest.raises(MappingError, match=r"q\.0 cannot be joined from shapes \[\], \[\]"):
        keys.inverse({"x.0": np.zeros(()), "y.0": np.zeros(())})
    with pytest.raises(MappingError, match=r"unexpected x\.0\.weight"):  # x is a module and y a parameter
        keys.inverse({"x.0.weight": np.zeros(2), "x.0.bias": np.zeros(2), "y.0": np.zeros(2)})


@pytest.mark.parametrize("library", [np, torch], ids=["numpy", "torch"])
def test_parts_of_different_dtypes_are_not_promoted_without_a_word(library: Any) -> None:
    keys = KeyMapping({"q.{} [3D]": Parameter(("x.{}", "y.{}", "z.{}"))})
    parts = {f"{part}.{i}": library.zeros(2, dtype=library.float16) for part in "xyz" for i in range(2)}
    assert keys.inverse(parts)["q.1"].dtype == library.float16
    for i in range(2):
        parts[f"y.{i}"] = library.zeros(2, dtype=library.float32)
    says = r"q\.\{0\.\.1\} cannot be joined from dtypes [a-z.]*float16, [a-z.]*float32, [a-z.]*float16$"
    with pytest.raises(MappingError, match=says):
        keys.inverse(parts)


def test_parameters_and_modules_of_one_name_are_not_mistaken_for_each_other() -> None:
    keys = KeyMapping({"fc [D D]": "a", "table [6 D]": Parameter("t"), "norm.weight [D]": "n.weight"})
    sound = {"fc.weight": (2, 2), "fc.bias": (2,), "table": (6, 2), "norm.weight": (2,)}
    made = {key: np.ones(shape) for key, shape in sound.items()}
    assert sorted(keys(made)) == ["a.bias", "a.weight", "n.weight", "t"]
    assert same(keys.inverse(keys(made)), made)
    for wrong in ({"table.weight": (6, 2), "table.bias": (6,)}, {"fc": (2, 2)}, {"norm": (2,)}, {"norm.bias": (2,)}):
        paths = {key.partition(".")[0] for key in wrong}
        shapes = {k: s for k, s in sound.items() if k.partition(".")[0] not in paths} | wrong
        with pytest.raises(MappingError, match=r"unexpected|unknown"):
            keys.plan({key: np.ones(shape) for key, shape in shapes.items()})
    with pytest.raises(MappingError, match=r"unexpected t\.weight"):
        keys.inverse({"a.weight": np.ones((2, 2)), "a.bias": np.ones(2), "n.weight": np.ones(2),
                      "t.weight": np.ones((6, 2)), "t.bias": np.ones(6)})  # fmt: skip


def test_an_extra_that_strayed_into_the_target_comes_home() -> None:
    made, null = KEYS(state()), state()["null"]
    assert same(KEYS.inverse(made | {"old.null": null}), state())
    # What was kept aside is believed before what an old conversion left behind.
    assert same(KEYS.inverse(made | {"old.null": null + 1}, {"null": null}), state())
    assert KEYS.plan_back(made | {"old.null": null}).extras == {"old.null": "null"}


def test_extras_of_several_blocks_and_of_modules_have_keys_of_their_own() -> None:
    keys = KeyMapping({"a": Parameter("x"), "b.{}.n": Extra(stray="y.{}")})
    made = {"a": np.zeros(1)} | {f"b.{i}.n.{part}": np.full(1, i) for i in range(2) for part in ("weight", "bias")}
    plan = keys.plan(made)
    assert plan.extras == {key: key for key in made if key != "a"}
    strayed = {"x": made["a"]} | {f"y.{i}.{part}": np.full(1, i) for i in range(2) for part in ("weight", "bias")}
    assert same(keys.inverse(strayed), made)


def test_what_is_kept_aside_is_checked_too() -> None:
    made = KEYS(state())
    for left in ({"nul": np.ones((5, 3))}, {"null": np.ones((5, 4))}, {"out.bias": np.ones(3)}):
        with pytest.raises(MappingError, match=r"nul|out"):
            KEYS.inverse(made, left)


def test_torch_tensors_too() -> None:
    tensors = {key: torch.from_numpy(array) for key, array in state().items()}
    made = KEYS(tensors)
    assert made["b.1.weight"].data_ptr() == tensors["fc.1.weight"][3:].data_ptr()
    back = KEYS.inverse(made, KEYS.left(tensors))
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[key], tensors[key]) for key in tensors)
    parameters = {key: torch.nn.Parameter(tensor) for key, tensor in made.items()}
    assert torch.equal(KEYS.inverse(parameters)["fc.1.weight"], tensors["fc.1.weight"])


def test_how_many_keys_are_known() -> None:
    assert KEYS.known(state()) == len(state())
    assert KEYS.known(dict.fromkeys([*state(), "zzz"])) == len(state())
    assert KEYS.targets.known(KEYS(state()) | {"old.null": 0, "null": 0}) == 10


def test_the_target_table_is_made_once() -> None:
    assert KEYS.targets is KEYS.targets
    assert [row.source for row in KEYS.targets.rows] == ["a.{}", "b.{}", "o", "old.null"]


# Tables made of others.

PARTS = KeyMapping({"fc.{}.in": ("a.{}.x", "a.{}.y"), "fc.{}.out": "a.{}.z", "head": "o", "table": Computed(int)})
BOTH = PARTS.renamed(("", "base."), ("", "whole."), "base") | PARTS.renamed(
    ("fc.{}.", "copies.{}."), ("a.{}.", "c.b.{}.")
)


def of_both(base: bool = True, copies: int = 2) -> dict[str, Any]:
    sizes = {"in": 4, "out": 2}
    stacks = {"copies": copies, **({"base.fc": 3} if base else {})}
    modules = {
        f"{stack}.{i}.{name}": size for stack, n in stacks.items() for i in range(n) for name, size in sizes.items()
    }
    modules |= {"base.head": 2} if base else {}
    tensors = {f"{name}.{part}": np.ones(size) for name, size in modules.items() for part in ("weight", "bias")}
    return tensors | ({"base.table": np.ones(3)} if base else {})


def test_rows_under_other_paths() -> None:
    sources = ["base.fc.{}.in", "base.fc.{}.out", "base.head", "base.table", "copies.{}.in", "copies.{}.out"]
    assert [row.source for row in BOTH.rows] == sources
    assert [row.group for row in BOTH.rows] == ["base"] * 4 + [""] * 2
    plan = BOTH.plan(of_both())
    assert plan.stacks == {"base.fc": 3, "copies": 2}
    assert plan.computed.keys() == {"base.table"}
    made = BOTH(of_both())
    assert made["whole.a.2.y.weight"].shape == made["c.b.1.x.bias"].shape == (2,)
    assert same(BOTH.inverse(made, BOTH.left(of_both())), of_both())
    assert PARTS.rows[0].source == "fc.{}.in"  # and the table itself is what it was


def test_a_group_made_of_a_whole_table_is_there_whole_or_not_at_all() -> None:
    assert BOTH.plan(of_both(base=False)).groups == set()
    broken = of_both() | {}
    del broken["base.head.bias"]
    with pytest.raises(MappingError, match=r"missing base\.head\.bias"):
        BOTH.plan(broken)
    with pytest.raises(MappingError, match=r"missing copies\.\{0\}"):
        BOTH.plan({key: value for key, value in of_both().items() if not key.startswith("copies")})
    with pytest.raises(ValueError, match="match the same keys"):
        PARTS | PARTS


def test_the_names_of_one_part() -> None:
    part = BOTH.targets.below("c.")
    assert (part.part, BOTH.part) == ("c.", "")
    assert part.row_of("b.0.x.weight") is not None
    assert part.row_of("c.b.0.x.weight") is None
    assert len(part.required) == 3
    assert not BOTH.targets.below("whole.").required
