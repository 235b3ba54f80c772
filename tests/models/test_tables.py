"""The laws of the built-in tables, on every released model: order-free, total, to where stock diffusers has it, and
back."""

from __future__ import annotations

import random

import pytest
from makers import inventories
from shaped import DITS, INVENTORIES, SANA_CONTROLNETS, SANAS, WHOLE, Shaped, inventory, produced, shaped

from converter import KeyMapping, families
from converter.families.known import SANA_CONTROLNET
from converter.mapping import Plan
from converter.models.dit.table import KEYS as DIT
from converter.models.pixart.table import KEYS as PIXART
from converter.models.sana.table import KEYS as SANA

FAMILIES = ((PIXART, WHOLE), (DIT, DITS), (SANA, SANAS))
MODELS = [pytest.param(keys, name, id=name) for keys, names in FAMILIES for name in names]
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
    extras = {"y_embedder.y_embedding", "logvar_linear.weight", "logvar_linear.bias"} & state.keys()
    assert plan.extras == {key: key for key in extras}
    assert plan.blocks == inventories.MODELS[name][-1].get("depth", 20 if keys is SANA else 28)


@each
def test_every_key_goes_where_a_table_written_independently_sends_it(keys: KeyMapping, name: str) -> None:
    state, plan = planned(keys, name)
    table = inventories.sana_table(state) if keys is SANA else inventories.DIFFUSERS
    for move in plan.moves:
        key, copies = move.sources[0], False
        if keys is DIT:
            targets, copies = inventories.dit_names(key, 28)
        else:
            targets = inventories.diffusers_names(key, table)
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


@each
def test_it_is_taken_for_no_other_model(keys: KeyMapping, name: str) -> None:
    state, plan = planned(keys, name)
    for seen, diffusers in ((state, False), (shaped(produced(plan, state)), True)):
        found = families.recognise(seen)
        assert found
        assert (found[0].keys, found[1]) == (keys, diffusers)
        # Nor with a key that nobody knows.
        assert families.recognise({**seen, "one.more": Shaped((1,))}) == found


@pytest.mark.parametrize("name", SANA_CONTROLNETS)
def test_a_controlnet_of_a_sana_is_refused_by_name(name: str) -> None:
    state = inventory(name)
    assert families.recognise(state) is None
    assert families.named(state) == SANA_CONTROLNET
    copies = {key: tensor for key, tensor in state.items() if key.startswith("controlnet.")}
    assert len(copies) == 7 * (15 + 2) + 2 == len(state) - len(INVENTORIES[f"sana-{name[-4:]}-1024"]["tensors"])
    assert families.recognise(copies) is None
    assert families.named(copies) == SANA_CONTROLNET
