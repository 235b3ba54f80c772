"""The laws of the built-in tables, on every released model: order-free, total, to where stock diffusers has it, and
back."""

from __future__ import annotations

import random

import pytest
from makers import inventories
from shaped import DITS, WHOLE, Shaped, inventory, produced, shaped

from converter import KeyMapping
from converter.mapping import Plan
from converter.models.dit.table import KEYS as DIT
from converter.models.pixart.table import KEYS as PIXART

MODELS = [pytest.param(PIXART, name, id=name) for name in WHOLE] + [pytest.param(DIT, name, id=name) for name in DITS]
each = pytest.mark.parametrize(("keys", "name"), MODELS)


def planned(keys: KeyMapping, name: str) -> tuple[dict[str, Shaped], Plan]:
    state = inventory(name)
    return state, keys.plan(state)


@each
def test_order_free(keys: KeyMapping, name: str) -> None:
    state, plan = planned(keys, name)
    for seed in range(3):
        items = list(state.items())
        random.Random(seed).shuffle(items)
        assert keys.plan(dict(items)) == plan


@each
def test_total(keys: KeyMapping, name: str) -> None:
    state, plan = planned(keys, name)
    consumed = [*(move.sources[0] for move in plan.moves), *plan.computed, *plan.extras]
    assert sorted(consumed) == sorted(state)
    assert plan.computed.keys() == {"pos_embed"} & state.keys()
    assert plan.extras == ({} if keys is DIT else {"y_embedder.y_embedding": "y_embedder.y_embedding"})
    assert plan.blocks == (42 if "900m" in name else 28)


@each
def test_every_key_goes_where_a_table_written_independently_sends_it(keys: KeyMapping, name: str) -> None:
    for move in planned(keys, name)[1].moves:
        key = move.sources[0]
        targets, copies = inventories.dit_names(key, 28) if keys is DIT else (inventories.diffusers_names(key), False)
        assert (set(move.targets), move.operation.must_agree) == (set(targets), copies)
        assert copies or move.targets == targets


@each
def test_the_way_back_of_whole_models(keys: KeyMapping, name: str) -> None:
    state, plan = planned(keys, name)
    target = shaped(produced(plan, state))
    back = keys.plan_back(target)
    assert {(m.targets, m.sources, m.operation) for m in back.moves} == {
        (m.sources, m.targets, m.operation) for m in plan.moves
    }
    for move in back.moves:
        (shape,) = {target[key].shape for key in move.sources}
        share, (first, *others) = move.operation.share(len(move.sources)), state[move.targets[0]].shape
        assert tuple(shape) == (int(first * share), *others)
    assert (back.blocks, back.groups, back.computed, back.extras) == (plan.blocks, plan.groups, {}, {})
    assert back.dims == {symbol: size for symbol, size in plan.dims.items() if symbol not in "LN"}
    assert keys.plan_back(dict(list(target.items())[::-1])) == back
