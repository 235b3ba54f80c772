"""Pairs of matrices: together they are what the change says, and none is larger than it needs to be."""

from __future__ import annotations

import numpy as np
import pytest

from converter.lora.changes import Change
from converter.lora.lycoris import Hadamard, Kronecker
from converter.lora.pairs import Pair, Pairs
from converter.lora.products import Full, Held, LowRank, Product, Replaced

RANDOM = np.random.default_rng(0)
OUT, IN = 6, 8


def held(*shape: int) -> Held:
    return Held(RANDOM.normal(size=shape))


WEIGHT, BIAS = held(OUT, IN), held(OUT)
KERNEL = held(OUT, 2, 2, 2)


def made(pair: Pair) -> np.ndarray:
    return pair.up.reshape(len(pair.up), -1) @ pair.down.reshape(len(pair.down), -1)


def pair_of(change: Change, strength: float = 1.0, weight: Held = WEIGHT) -> Pair:
    ((module, pair),) = Pairs({"a.weight": change}, {"a.weight": weight}, strength)
    assert module == "a"
    return pair


@pytest.mark.parametrize(
    ("product", "rank"),
    [
        (LowRank(held(2, IN), held(OUT, 2)), 2),
        (LowRank(held(7, IN), held(OUT, 7)), OUT),
        (Hadamard(held(OUT, 2), held(2, IN), held(OUT, 2), held(2, IN)), 4),
        (Hadamard(held(OUT, 3), held(3, IN), held(OUT, 3), held(3, IN)), OUT),
        (Kronecker(w1=held(2, 2), w2_a=held(3, 1), w2_b=held(1, 4)), 2),
        (Kronecker(w1=held(2, 2), w2=held(3, 4)), 6),
        (Full(held(OUT, IN)), OUT),
        (Replaced(held(OUT, IN)), OUT),
    ],
)
def test_a_pair_makes_the_difference(product: Product, rank: int) -> None:
    scale = 1.0 if isinstance(product, Replaced) else 0.3
    change, strength = Change(product, scale), 0.5
    pair = pair_of(change, strength)
    assert (pair.down.shape, pair.up.shape) == ((rank, IN), (OUT, rank))
    assert np.allclose(strength * made(pair), change.difference(WEIGHT.numpy(), strength))


def test_of_a_convolution_the_first_matrix_has_the_kernel() -> None:
    pair = pair_of(Change(LowRank(held(3, 2, 2, 2), held(OUT, 3, 1, 1))), weight=KERNEL)
    assert (pair.down.shape, pair.up.shape) == ((3, 2, 2, 2), (OUT, 3, 1, 1))
    pair = pair_of(Change(Full(held(OUT, 2, 2, 2))), weight=KERNEL)
    assert (pair.down.shape, pair.up.shape) == ((OUT, 2, 2, 2), (OUT, OUT, 1, 1))


def test_dora_is_left_to_peft_where_it_is_that_of_all_modules() -> None:
    lora = LowRank(held(2, IN), held(OUT, 2))
    rows, columns = Change(lora, magnitude=held(OUT, 1)), Change(lora, magnitude=held(1, IN), axis=1)
    tensors = {"a.weight": WEIGHT, "b.weight": WEIGHT, "a.bias": BIAS}
    both = Pairs({"a.weight": rows, "b.weight": rows}, tensors)
    assert (both.dora, both.biased, both.computed) == (True, False, [])
    assert [(pair.magnitude.shape, len(pair.down)) for _, pair in both if pair.magnitude is not None] == [
        ((OUT,), 2)
    ] * 2
    for other in ({"b.weight": Change(lora)}, {"b.weight": columns}, {"a.bias": Change(Full(BIAS))}):
        pairs = Pairs({"a.weight": rows} | other, tensors, 0.5)
        assert not pairs.dora
        assert pairs.computed[0] == "a"
        _, pair = next(iter(pairs))
        assert pair.magnitude is None
        assert np.allclose(0.5 * made(pair), rows.difference(WEIGHT.numpy(), 0.5))


def test_what_is_for_no_strength_is_for_one() -> None:
    change = Change(LowRank(held(2, IN), held(OUT, 2)), magnitude=held(1, IN), axis=1)
    assert np.allclose(made(pair_of(change, 0.0)), change.difference(WEIGHT.numpy(), 1.0))


def test_where_one_module_has_a_bias_all_have() -> None:
    tensors = {"a.weight": WEIGHT, "b.weight": WEIGHT, "a.bias": BIAS, "b.bias": BIAS}
    lora, new = Change(LowRank(held(2, IN), held(OUT, 2))), held(OUT)
    pairs = dict(Pairs({"a.weight": lora, "b.bias": Change(Replaced(new))}, tensors, 0.5))
    assert pairs["a"].bias is not None
    assert not pairs["a"].bias.any()
    assert pairs["b"].bias is not None
    assert np.allclose(pairs["b"].bias, new.numpy() - BIAS.numpy())
    assert not made(pairs["b"]).any()
    assert pairs["b"].down.shape == (1, IN)
