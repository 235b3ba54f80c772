"""The proof passes what is right, on any latent, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from init_helpers import DEPTH, SMALL, State, golden, origin
from makers import dit, save

from converter.errors import InputError
from converter.initialisation import Options, init_from_dit
from converter.initialisation.modulation import Modulation
from converter.initialisation.nets import BothNets, CaseMaker, stage_outputs
from converter.initialisation.origin import DRAWN, Origin
from converter.initialisation.proof import GRIDS, Proof, prove
from converter.parity.statistics import relative

STAGES = ["patch embedding", "block 0", "block 1", "block 2", "output"]


def proven(opened: Origin, change: Callable[[State], Any] = lambda state: None) -> Proof:
    """The proof of the PixArt, once something was done to what is to be written."""
    state = {key: tensor.torch() for key, tensor in opened.state().items()}
    change(state)
    return prove(opened, state)


@pytest.mark.parametrize("none", ["unconditional", "zero"])
@pytest.mark.parametrize("t_block", ["mean", "paper"])
@pytest.mark.parametrize(
    "sizes",
    [{}, {"image_size": 256}, {"image_size": 512, "interpolation_scale": 3.0}, {"image_size": 16},
     {"micro_condition": True, "image_size": 192, "interpolation_scale": 1.5}],
    ids=str,
)  # fmt: skip
def test_what_is_right_passes(sizes: dict[str, Any], t_block: str, none: str) -> None:
    with origin(replace(SMALL, t_block=t_block, none=none, **sizes)) as opened:
        proof = prove(opened, opened.state())
    assert (proof.verdict, proof.exit_code, proof.failed, proof.doubts) == ("PASS", 0, [], [])
    assert [stage.name for stage in proof.stages] == STAGES
    assert proof.worst.times < 2
    assert max(stage.exact for stage in proof.stages) < 1e-14  # the mathematics, where nothing is rounded
    assert min(stage.floor for stage in proof.stages) > 0
    # Patches, blocks and output of both grids, and the patches of its own size, in float64 and twice in float32;
    # four tables; and of both outputs' halves four statistics each, likewise.
    assert len(proof.checks) == (2 * len(STAGES) + 1) * 3 + DEPTH + 1 + 2 * 2 * 4 * 3


@pytest.mark.parametrize("sizes", [
    {"patch_size": 4, "input_size": 16}, {"patch_size": 3, "input_size": 24}, {"learn_sigma": False},
    {"hidden_size": 48, "depth": 5, "in_channels": 3},
], ids=str)  # fmt: skip
def test_dits_of_other_sizes(sizes: dict[str, Any], tmp_path: Path) -> None:
    with origin(path=save(dit(**sizes), tmp_path / "d.pt")) as opened:
        assert prove(opened, opened.state()).passed


def test_on_latents_that_the_proof_never_saw() -> None:
    """Both reference nets, in float64 and float32, block by block, with captions of noise."""
    with origin() as opened:
        nets, inputs = BothNets(opened, opened.state()), CaseMaker(opened)
        for _ in range(3):
            inputs.draw(1)  # other noise than the proof's
        for rows, columns in ((5, 7), (12, 8), (1, 1), (9, 9)):
            assert (rows, columns) not in GRIDS.values()
            case = inputs.case("any", rows, columns, [500, 500])
            for dtype, limit in ((torch.float64, 1e-7), (torch.float32, 1e-6)):
                given = case.tensors(dtype)
                theirs, ours = stage_outputs(nets.dit(dtype), given), stage_outputs(nets.pixart(dtype), given)
                assert list(theirs) == STAGES
                assert max(relative(ours[name], theirs[name]) for name in STAGES) < limit


def test_whatever_the_caption_says() -> None:
    with origin() as opened:
        net, inputs = BothNets(opened, opened.state()).pixart(torch.float32), CaseMaker(opened)
        given = inputs.case("any", 4, 4, [500, 500]).tensors(torch.float32)
        mask = torch.ones(2, given["caption"].shape[1])
        mask[:, 1:] = 0
        outputs = [
            net.forward(given | change) for change in ({}, {"caption": given["caption"] * 100}, {"caption_mask": mask})
        ]
    assert all(torch.equal(output, outputs[0]) for output in outputs)


# What must not pass.

Spoil = Callable[[pytest.MonkeyPatch], None]


def _wrong_timestep(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("converter.initialisation.modulation.TIMESTEP", 499)


def _class_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Modulation, "condition", property(lambda self: self.embedded))


def _another_class(patch: pytest.MonkeyPatch) -> None:
    row = golden()["y_embedder.embedding_table.weight"][-2].double()
    patch.setattr(Modulation, "condition", property(lambda self: self.embedded + row))


def _rows(order: list[int]) -> Spoil:
    def spoil(patch: pytest.MonkeyPatch) -> None:
        table = Modulation.table
        patch.setattr(Modulation, "table", lambda self, index: table(self, index)[order])

    return spoil


def _final_rows(patch: pytest.MonkeyPatch) -> None:
    made = Modulation.final_table.func
    patch.setattr(Modulation, "final_table", property(lambda self: made(self).flip(0)))


def _final_of_t_block(patch: pytest.MonkeyPatch) -> None:
    """As if the final layer heard `t_block` and not the timestep."""
    made = Modulation.final_table.func
    patch.setattr(Modulation, "final_table", property(lambda self: made(self) + self.embedded - self._shared[:2]))


def _next_block(patch: pytest.MonkeyPatch) -> None:
    table = Modulation.table
    patch.setattr(Modulation, "table", lambda self, index: table(self, (index + 1) % DEPTH))


def _of_an_unrounded_t_block(patch: pytest.MonkeyPatch) -> None:
    """Tables that fit another shared layer than the one that is stored."""
    shared = Modulation._shared.func
    patch.setattr(Modulation, "_shared", property(lambda self: shared(self) * (1 + 1e-6)))


def _drawn(path: str, like: str) -> Spoil:
    return lambda patch: patch.setitem(DRAWN, path, DRAWN[like])


FAULTS: dict[str, tuple[Spoil, dict[str, Any]]] = {
    "t = 499": (_wrong_timestep, {}),
    "no class embedding": (_class_forgotten, {}),
    "the class embedding where none was wanted": (_another_class, {"none": "zero"}),
    "another class": (_another_class, {}),
    "shift and scale swapped": (_rows([1, 0, 2, 3, 4, 5]), {}),
    "attention and MLP swapped": (_rows([3, 4, 5, 0, 1, 2]), {}),
    "gates swapped": (_rows([0, 1, 5, 3, 4, 2]), {}),
    "final rows swapped": (_final_rows, {}),
    "the final layer by t_block": (_final_of_t_block, {}),
    "a block off by one": (_next_block, {}),
    "another t_block": (_of_an_unrounded_t_block, {}),
    "cross attention": (_drawn("blocks.{}.cross_attn.proj", "blocks.{}.cross_attn.q_linear"), {}),
    "the size": (_drawn("csize_embedder.mlp.2", "csize_embedder.mlp.0"), {"micro_condition": True}),
    "the aspect ratio": (_drawn("ar_embedder.mlp.2", "ar_embedder.mlp.0"), {"micro_condition": True}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_nothing_is_written(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil, options = FAULTS[fault]
    spoil(monkeypatch)
    done = init_from_dit(
        save(golden(), tmp_path / "d.pt"), tmp_path / "init.pth", replace(SMALL, **options), num_attention_heads=4
    )
    assert (done.proof.verdict, done.proof.exit_code, done.written) == ("FAIL", 1, False)
    assert done.proof.words.startswith("at t = 500 it does NOT compute what the DiT does")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.pt"]


def ulp(key: str, *index: int) -> Callable[[State], None]:
    def change(state: State) -> None:
        state[key] = state[key].clone()
        state[key][index] = state[key][index].nextafter(torch.tensor(9.0))

    return change


@pytest.mark.parametrize("key", ["blocks.1.scale_shift_table", "final_layer.scale_shift_table"])
def test_one_bit_of_a_table_is_found(key: str) -> None:
    with origin() as opened:
        proof = proven(opened, ulp(key, 1, 5))
    assert [check.what for check in proof.failed] == [key]
    assert "1 of " in proof.words


@pytest.mark.parametrize(
    ("key", "index", "where"),
    [
        ("x_embedder.proj.weight", (3, 1, 0, 1), "square / patch embedding"),
        ("pos_embed", (0, 17, 4), "own size / patch embedding"),  # the only case that reads it
        ("blocks.1.attn.qkv.weight", (2, 3), "square / block 1"),
        ("blocks.2.mlp.fc1.bias", (7,), "square / block 2"),
        ("t_embedder.mlp.0.weight", (4, 4), "square / block 0"),
        ("t_block.1.weight", (4, 4), "square / block 0"),
        ("final_layer.linear.weight", (30, 3), "square / output"),
        ("blocks.0.cross_attn.proj.bias", (3,), "square / block 0"),
    ],
)
def test_one_number_elsewhere_is_found_where_it_is(key: str, index: tuple[int, ...], where: str) -> None:
    def change(state: State) -> None:
        state[key] = state[key].clone()
        state[key][index] += 1e-3

    with origin(replace(SMALL, t_block="paper")) as opened:
        proof = proven(opened, change)
    assert not proof.passed
    assert proof.failed[0].what == where


def test_a_case_that_is_wrong_is_not_hidden_by_one_that_is_not() -> None:
    """Of every stage the case counts that uses most of its limit, and every check of every case."""
    with origin() as opened:
        proof = prove(opened, opened.state())
        for stage in proof.stages:
            mine = [
                check for check in proof.checks
                if check.what.endswith(f"/ {stage.name}") and check.statistic.startswith("float32 relative L2")
            ]  # fmt: skip
            used = max(float(check.value) / float(check.limit) for check in mine)
            assert stage.times == pytest.approx(3 * used)


# What cannot be told, and what float32 cannot hold.


def test_a_dit_that_gives_nothing_proves_nothing(tmp_path: Path) -> None:
    """As its training begins: the last layer is zero, which any zero equals."""
    state = golden()
    for end in ("weight", "bias"):
        state[f"final_layer.linear.{end}"] = torch.zeros_like(state[f"final_layer.linear.{end}"])
    path = save(state, tmp_path / "d.pt")
    done = init_from_dit(path, tmp_path / "i.pth", SMALL, num_attention_heads=4)
    assert (done.proof.verdict, done.proof.exit_code, done.written) == ("INCONCLUSIVE", 4, False)
    assert "cannot be told" in done.proof.words
    assert "zero everywhere" in done.proof.words


def test_embedded_timesteps_that_float32_cannot_hold(tmp_path: Path) -> None:
    """Shift and scale of the last layer are what is left of two large numbers."""
    state = golden()
    for key in state:
        if key.startswith("t_embedder.mlp.2"):
            state[key] = state[key] * 200
        if "adaLN" in key and key.endswith("weight"):
            state[key] = state[key] / 200
    with origin(path=save(state, tmp_path / "d.pt")) as opened:
        proof = prove(opened, opened.state())
    assert proof.verdict == "FAIL"
    assert max(stage.exact for stage in proof.stages) < 1e-12
    assert "it is float32 that cannot hold them" in proof.words


def test_what_is_not_finite_is_refused_by_name(tmp_path: Path) -> None:
    for key, value in (("blocks.0.mlp.fc1.bias", "nan"), ("blocks.2.adaLN_modulation.1.weight", "inf")):
        state = golden()
        state[key] = state[key].clone()
        state[key].view(-1)[3] = float(value)
        with origin(path=save(state, tmp_path / "d.pt")) as opened, pytest.raises(InputError) as error:
            prove(opened, opened.state())
        assert str(error.value).endswith(f"d.pt: 1 element is NaN or infinite, in {key}")


def test_a_dit_that_overflows_by_itself_is_told_apart(tmp_path: Path) -> None:
    state = golden()
    for name in ("fc1", "fc2"):
        state[f"blocks.0.mlp.{name}.weight"] = state[f"blocks.0.mlp.{name}.weight"].double() * 1e200
    with origin(path=save(state, tmp_path / "d.pt")) as opened:
        proof = prove(opened, opened.state())
    assert proof.verdict == "INCONCLUSIVE"
    assert "block 0: what the DiT itself computes is not finite, though its weights are" in proof.doubts[0]


def test_nothing_compared_is_no_proof() -> None:
    assert Proof([], []).verdict == "INCONCLUSIVE"
    assert not Proof([], []).passed


def test_it_is_json_ready() -> None:
    import json

    with origin(Options(caption_tokens=12, caption_channels=32)) as opened:
        made = prove(opened, opened.state()).as_dict()
    assert json.loads(json.dumps(made)) == made
    assert np.isfinite(made["worst"])
