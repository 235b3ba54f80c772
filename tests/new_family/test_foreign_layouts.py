"""Drafts for nets that this project does not know, held against what diffusers' own converters make of them."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from diffusers.loaders import single_file_utils
from foreign_layouts import NETS, ForeignNet, Shapes, foreign_net
from shaped import shaped

from converter import families
from converter.mapping import KeyMapping
from converter.mapping.rows import matcher, spell
from converter.new_family import Draft, DraftRow, KeyList, draft, render
from converter.new_family.matching import FINAL, FUSED, SIBLING

# How many of the rows are sure, at least: what a draft is worth on names that nobody prepared it for. (Of SANA, two
# layers hold a gate and a value, whose order no name says.)
SURE = {
    "sana": 15, "sd3": 17, "flux": 16, "mochi": 11, "hunyuan-video": 11, "wan": 23, "auraflow": 6, "ltx": 21,
}  # fmt: skip
# Drafted without a mistake, but for keys that begin like these, on either side: blocks that are unlike the others.
COMPLETE = {
    "sana": (),
    "sd3": ("joint_blocks.2.", "transformer_blocks.2."),
    "flux": ("single_blocks.", "single_transformer_blocks."),
    "wan": (),
    "ltx": (),
}


@cache
def known(name: str) -> ForeignNet:
    if not hasattr(single_file_utils, NETS[name][1]):
        pytest.skip("this release of diffusers does not convert it")
    return foreign_net(name)


@pytest.fixture(autouse=True)
def nothing_stays_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "_REGISTERED", {})


@pytest.fixture(params=NETS)
def net(request: pytest.FixtureRequest) -> ForeignNet:
    return known(request.param)


def shuffled(shapes: Shapes, seed: int) -> Shapes:
    items = list(shapes.items())
    random.Random(seed).shuffle(items)
    return dict(items)


def drafted(source: Shapes, target: Shapes) -> Draft:
    return draft(KeyList("source", source), KeyList("target", target))


def is_right(row: DraftRow, net: ForeignNet) -> bool:
    """Whether every key of a row becomes what diffusers makes of it."""
    match = matcher(row.source)
    hits = [(key, hit) for key in net.source if (hit := match(key))]
    return bool(hits) and all(net.whole[key] == tuple(spell(path, *hit) for path in row.targets) for key, hit in hits)


def wrong(made: Draft, net: ForeignNet) -> list[str]:
    """The rows that are sure and not right."""
    return [row.source for row in made.rows if row.sure and not is_right(row, net)]


def test_the_truth_is_of_every_kind() -> None:
    """The oracle tells renames, splits and tensors whose halves change places apart."""
    whole = known("sd3").whole
    assert whole["y_embedder.mlp.0.bias"] == ("time_text_embed.text_embedder.linear_1.bias",)
    parts = tuple(f"transformer_blocks.0.attn.add_{part}_proj.bias" for part in "qkv")
    assert whole["joint_blocks.0.context_block.attn.qkv.bias"] == parts
    assert whole["final_layer.adaLN_modulation.1.bias"] == ()  # exchanged
    assert known("sana").whole["y_embedder.y_embedding"] == ()  # dropped
    assert known("flux").whole["single_blocks.0.linear1.bias"] == ()  # cut into unequal parts


def test_what_is_sure_is_what_diffusers_makes_of_it(net: ForeignNet, request: pytest.FixtureRequest) -> None:
    made = drafted(net.source, net.target)
    assert wrong(made, net) == []
    assert sum(row.sure for row in made.rows) >= SURE[request.node.callspec.params["net"]]


@pytest.mark.parametrize("name", COMPLETE)
def test_nothing_is_missing_or_wrong_even_where_it_is_not_sure(name: str) -> None:
    net = known(name)
    source, target = (
        {key: shape for key, shape in side.items() if not key.startswith(COMPLETE[name])}
        for side in (net.source, net.target)
    )
    # The order of a checkpoint that was sorted says nothing.
    made = drafted(source, dict(sorted(target.items())))
    subset = replace(net, source=source)
    no_row_says = [key for key in source if not net.whole[key]]  # dropped, or its halves change places
    mistaken = [row.source for row in made.rows if not is_right(row, subset)]
    assert [path for path in mistaken if not any(map(matcher(path), no_row_says))] == []
    assert sum(row.sure for row in made.rows) >= SURE[name]
    assert (made.unmatched_source, made.unmatched_target) == ((), ())


@pytest.mark.parametrize("seed", range(3))
def test_in_whatever_order_the_keys_are(net: ForeignNet, seed: int) -> None:
    assert wrong(drafted(shuffled(net.source, seed), shuffled(net.target, seed + 10)), net) == []


def test_the_table_builds_and_knows_every_key_that_is_not_listed(net: ForeignNet, tmp_path: Path) -> None:
    made = drafted(net.source, net.target)
    module: dict[str, object] = {}
    exec(compile(render("foreign", made), "foreign.py", "exec"), module)
    keys = module["KEYS"]
    assert isinstance(keys, KeyMapping)
    unknown = {key for key in net.source if not keys.known({key: ()})}
    listed = {key for path in made.unmatched_source for key in net.source if matcher(path)(key)}
    assert unknown == listed
    assert keys.survey(shaped({key: net.source[key] for key in net.source.keys() - listed})).problems == []


# What no name can say.

WIDTH, BLOCKS = 16, range(2)


def doubts(source: Shapes, target: Shapes) -> dict[str, str]:
    """Source path -> why it is not sure; '' for what is."""
    return {row.source: row.doubt for row in drafted(source, target).rows}


def ff(head: str, rows: dict[str, int], down: str) -> Shapes:
    """A feed-forward layer in every block: its first layers with their rows, and the one after them."""
    first = {f"{head}.{i}.{name}.weight": (size, WIDTH) for i in BLOCKS for name, size in rows.items()}
    return first | {f"{head}.{i}.{down}.weight": (WIDTH, 64) for i in BLOCKS}


def test_the_order_of_the_last_scale_and_shift_is_never_sure() -> None:
    source = {"final_layer.ada.linear.weight": (2 * WIDTH, WIDTH)}
    target = {"norm_out.linear.weight": (2 * WIDTH, WIDTH)}
    assert doubts(source, target) == {"final_layer.ada.linear.weight": FINAL}
    assert doubts(target, target) == {"norm_out.linear.weight": ""}  # the same module has the same order


def test_the_order_of_gate_and_value_in_one_tensor_is_never_sure() -> None:
    target = ff("layers", {"ff.net.0.proj": 128}, "ff.net.2")
    found = doubts(ff("blocks", {"mlp.fc1": 128}, "mlp.fc2"), target)
    assert found == {"blocks.{}.mlp.fc1.weight": FUSED, "blocks.{}.mlp.fc2.weight": ""}
    plain = doubts(ff("blocks", {"mlp.fc1": 64}, "mlp.fc2"), ff("layers", {"ff.net.0.proj": 64}, "ff.net.2"))
    assert set(plain.values()) == {""}  # no gate, no doubt


def test_which_of_two_layers_is_the_gate_is_never_sure() -> None:
    """In Llama's code `w1` is the gate and `w3` goes up."""
    source = ff("blocks", {"ffn.w1": 64, "ffn.w3": 64}, "ffn.w2")
    found = doubts(source, ff("layers", {"mlp.gate_proj": 64, "mlp.up_proj": 64}, "mlp.down_proj"))
    assert found["blocks.{}.ffn.w1.weight"].startswith(SIBLING)
    assert found["blocks.{}.ffn.w3.weight"]
    assert found["blocks.{}.ffn.w2.weight"] == ""
    numbered = doubts(source, ff("layers", {"ff.linear_1": 64, "ff.linear_3": 64}, "ff.linear_2"))
    assert numbered["blocks.{}.ffn.w1.weight"] == ""  # by its number


@pytest.mark.parametrize("names", [("fc1", "fc2"), ("0", "2")])
def test_two_square_layers_one_after_the_other_are_no_gate(names: Iterable[str]) -> None:
    source = {f"t_embedder.mlp.{name}.weight": (WIDTH, WIDTH) for name in names}
    target = {f"timestep_embedder.linear_{n}.weight": (WIDTH, WIDTH) for n in (1, 2)}
    assert SIBLING not in " ".join(doubts(source, target).values())
