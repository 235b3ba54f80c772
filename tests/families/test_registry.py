"""Families that are registered, brought by packages, or broken; and one of a few lines that converts."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import inventories, pixart, save
from safetensors.torch import load_file
from shaped import DIFFUSERS, DITS, WHOLE, inventory

import converter
from converter import Computed, ConverterError, Extra, Family, Findings, InputError, KeyMapping, UsageError, families
from converter.families.sincos import SinCosTable
from converter.mapping import Parameter
from converter.models.dit.table import DIT
from converter.models.pixart.controlnet_table import PIXART_CONTROLNET
from converter.models.pixart.table import PIXART
from converter.models.sana.table import SANA


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing that is registered here outlives its test."""
    monkeypatch.setattr(families, "_REGISTERED", {})
    families._from_packages.cache_clear()
    yield
    monkeypatch.undo()
    families._from_packages.cache_clear()


def describe(plan: Any, state: Any, found: Findings) -> None:
    found.file("width", plan.dims["D"], plan.evidence["D"])
    found.given_or_assumed("rate", 3, "by convention")


def config(found: Findings) -> dict[str, Any]:
    return {"_class_name": "Toy", "width": found.value("width"), "rate": found.value("rate")}


def table(found: Findings) -> SinCosTable:
    return SinCosTable(found.value("width"), 2, 1.0)


KEYS = KeyMapping({
    "net.{}.kv [2D D]": ("layers.{}.k", "layers.{}.v"),
    "net.{}.gain [D]":  Parameter("layers.{}.gain"),
    "places [1 N D]":   Computed(table),
    "null [D]":         Extra(),
})  # fmt: skip
TOY = Family("toy", "toy model", KEYS, describe, config, ("rate",), subfolder="toy")


def toy_state() -> dict[str, torch.Tensor]:
    axis = TOY_TABLE.axis()
    made = {"places": torch.from_numpy(TOY_TABLE.rows(0, 4, axis))[None].clone(), "null": torch.ones(4)}
    for i in range(2):
        made[f"net.{i}.kv.weight"] = torch.arange(32.0).reshape(8, 4) + i
        made[f"net.{i}.kv.bias"] = torch.arange(8.0) - i
        made[f"net.{i}.gain"] = torch.full((4,), float(i))
    return made


TOY_TABLE = SinCosTable(4, 2, 1.0)


class Point:
    """An entry point of a package that is not there."""

    name, value = "mine", "my_package.my_family:FAMILY"

    def __init__(self, loaded: Any) -> None:
        self.loaded = loaded

    def load(self) -> Any:
        if isinstance(self.loaded, BaseException):
            raise self.loaded
        return self.loaded


def bring(monkeypatch: pytest.MonkeyPatch, *points: Any) -> None:
    def entry_points(group: str) -> list[Any]:
        assert group == "converter.families"
        return list(points)

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)


BUILT_IN = {"pixart": PIXART, "pixart-controlnet": PIXART_CONTROLNET, "dit": DIT, "sana": SANA}


def test_what_is_built_in() -> None:
    assert families.families() == BUILT_IN


def test_what_is_registered_stands_beside_it_or_instead() -> None:
    converter.register(TOY)
    assert families.families() == BUILT_IN | {"toy": TOY}
    other = Family("pixart", "another", KEYS, describe, config)
    converter.register(other)
    assert families.families()["pixart"] is other


@pytest.mark.parametrize("what", [KEYS, None, "toy", Family])
def test_only_a_family_is_registered(what: Any) -> None:
    with pytest.raises(TypeError, match=r"a converter\.families\.Family, not"):
        converter.register(what)
    assert "toy" not in families.families()


def test_a_package_brings_a_family(monkeypatch: pytest.MonkeyPatch) -> None:
    bring(monkeypatch, Point(TOY))
    assert families.families()["toy"] is TOY
    mine = Family("toy", "my own", KEYS, describe, config)
    converter.register(mine)
    assert families.families()["toy"] is mine


def test_a_real_entry_point_is_loaded_by_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("copy", "converter.models.pixart.table:PIXART", "converter.families")
    bring(monkeypatch, point)
    assert families.families() == BUILT_IN
    bring(monkeypatch, EntryPoint("gone", "converter.models.pixart.table:NOTHING", "converter.families"))
    families._from_packages.cache_clear()
    with pytest.raises(ConverterError, match=r"the family gone .*NOTHING.* cannot be loaded"):
        families.families()


@pytest.mark.parametrize("error", [ImportError("no module\nnamed x\x1b[31m"), ValueError("rows overlap"), KeyError(3)])
def test_a_broken_package_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    bring(monkeypatch, Point(error))
    with pytest.raises(
        ConverterError, match=r"the family mine \(my_package.my_family:FAMILY\) cannot be loaded"
    ) as caught:
        families.families()
    assert str(caught.value).isprintable()
    assert caught.value.__cause__ is error
    assert caught.value.exit_code == 5


def test_a_package_that_brings_something_else_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    bring(monkeypatch, Point(KEYS))
    with pytest.raises(ConverterError, match=r"mine .* is not a converter\.families\.Family"):
        families.families()


def test_a_broken_package_is_met_only_where_no_family_at_hand_knows_the_file(
    monkeypatch: pytest.MonkeyPatch, cli: Any, tmp_path: Path
) -> None:
    bring(monkeypatch, Point(ImportError("no such module")))
    assert cli("pixart", "inspect", save(pixart(), tmp_path / "known.pth")).returncode == 0
    done = cli("pixart", "inspect", save({"a.stranger": torch.ones(1)}, tmp_path / "unknown.pth"))
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.splitlines() == [
        "pixart: error: the family mine (my_package.my_family:FAMILY) cannot be loaded: no such module"
    ]


def test_a_family_of_a_package_is_found_by_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    bring(monkeypatch, Point(TOY))
    assert families.recognise(toy_state()) == (TOY, False)
    assert families.recognise(KEYS(toy_state())) == (TOY, True)


# Recognition.
@pytest.mark.parametrize("name", WHOLE)
def test_both_layouts_are_recognised(name: str) -> None:
    converter.register(TOY)
    state = inventory(name)
    assert families.recognise(state) == (PIXART, False)
    assert families.recognise(dict.fromkeys(inventories.to_diffusers(_shapes(name)))) == (PIXART, True)


def _shapes(name: str) -> dict[str, list[int]]:
    return {key: list(tensor.shape) for key, tensor in inventory(name).items()}


def test_the_model_that_was_trained_in_diffusers() -> None:
    assert families.recognise(inventory(*DIFFUSERS)) == (PIXART, True)


@pytest.mark.parametrize("name", DITS)
def test_both_layouts_of_a_dit_are_recognised(name: str) -> None:
    state = inventory(name)
    theirs = [target for move in DIT.keys.plan(state).moves for target in move.targets]
    for keys, diffusers in ((list(state), False), (theirs, True)):
        assert families.recognise(dict.fromkeys(keys)) == (DIT, diffusers)
        assert families.recognise(dict.fromkeys([*keys, "one.more"])) == (DIT, diffusers)


def test_half_of_the_keys_is_enough_and_less_is_not() -> None:
    converter.register(TOY)
    keys = list(toy_state())
    assert families.recognise(dict.fromkeys(keys)) == (TOY, False)
    strangers = [f"z{i}" for i in range(len(keys))]
    assert families.recognise(dict.fromkeys(keys + strangers)) == (TOY, False)
    assert families.recognise(dict.fromkeys([*keys, *strangers, "one.more"])) is None
    assert families.recognise({}) is None


def test_of_an_insisted_family_only_the_layout_is_asked() -> None:
    state = inventory("alpha-512")
    assert families.recognise(state, TOY) == (TOY, False)
    assert families.recognise(dict.fromkeys(["layers.0.k.weight", "a", "b"]), TOY) == (TOY, True)
    # Whatever layout another family would see in the same keys.
    assert families.recognise(dict.fromkeys(inventories.to_diffusers(_shapes("alpha-512"))), TOY) == (TOY, False)


# From end to end.
def test_a_toy_family_converts(tmp_path: Path) -> None:
    converter.register(TOY)
    state = toy_state()
    done = converter.convert(save(state, tmp_path / "toy.pth"), tmp_path / "out", hyper_parameters={"rate": 7})
    weights = load_file(done.path / "toy" / "diffusion_pytorch_model.safetensors")
    assert sorted(weights) == [
        f"layers.{i}.{k}" for i in range(2) for k in ("gain", "k.bias", "k.weight", "v.bias", "v.weight")
    ]
    for i in range(2):
        assert torch.equal(weights[f"layers.{i}.gain"], state[f"net.{i}.gain"])
        for suffix in ("weight", "bias"):
            parts = [weights[f"layers.{i}.{part}.{suffix}"] for part in "kv"]
            assert torch.equal(torch.cat(parts), state[f"net.{i}.kv.{suffix}"])
    assert {k: v.tolist() for k, v in load_file(done.path / "original_extras.safetensors").items()} == {
        "null": [1.0] * 4
    }
    assert json.loads((done.path / "toy" / "config.json").read_text()) == {"_class_name": "Toy", "width": 4, "rate": 7}
    record = json.loads((done.path / "conversion.json").read_text())
    assert (record["family"], record["layout"]) == ("toy", "original")
    assert record["hyper_parameters"]["rate"] == {"value": 7, "source": "given", "evidence": "--rate"}
    (places,) = [row for row in record["plan"] if row["source"] == "places"]
    assert (places["operation"], places["reproduced"]) == ("recompute", True)


def test_a_buffer_that_recomputing_does_not_give_is_refused_unless_the_family_says_otherwise(tmp_path: Path) -> None:
    converter.register(TOY)
    state = toy_state()
    state["places"][0, 3, 2] += 1
    path = save(state, tmp_path / "toy.pth")
    with pytest.raises(InputError, match=r"places: is not what the target computes \(by up to 1\)"):
        converter.convert(path, tmp_path / "out")
    converter.register(replace(TOY, buffer_mismatch=lambda found, difference: (True, f"is off by {difference:g}")))
    done = converter.convert(path, tmp_path / "out")
    assert any(note.startswith("places is off by 1: kept in") for note in done.notes)
    kept = load_file(done.path / "original_extras.safetensors")
    assert torch.equal(kept["places"], state["places"])


def test_an_extra_of_every_block_is_kept_under_its_own_key(tmp_path: Path) -> None:
    keys = KeyMapping({"net.{}.gain [D]": Parameter("g.{}"), "net.{}.aside": Extra()})
    converter.register(Family("toy", "toy model", keys, describe, config))
    state = {f"net.{i}.gain": torch.full((4,), float(i)) for i in range(2)}
    state |= {
        f"net.{i}.aside.{k}": torch.full((3,), i + n) for i in range(2) for n, k in ((0.25, "weight"), (0.5, "bias"))
    }
    done = converter.convert(save(state, tmp_path / "toy.pth"), tmp_path / "out")
    kept = load_file(done.path / "original_extras.safetensors")
    assert {k: v.tolist() for k, v in kept.items()} == {k: v.tolist() for k, v in state.items() if "aside" in k}


def test_a_flag_of_another_family_is_refused(tmp_path: Path) -> None:
    converter.register(TOY)
    with pytest.raises(UsageError, match=r"^qk_norm: not a hyper-parameter of the family toy"):
        converter.convert(save(toy_state(), tmp_path / "toy.pth"), tmp_path / "out", hyper_parameters={"qk_norm": True})
    assert not (tmp_path / "out").exists()


def test_insisting_on_a_family(tmp_path: Path) -> None:
    converter.register(TOY)
    path = save(pixart(), tmp_path / "pixart.pth")
    with pytest.raises(
        UsageError, match=r"`family` nonsense: unknown; there are dit, pixart, pixart-controlnet, sana, toy"
    ):
        converter.convert(path, tmp_path / "out", family="nonsense")
    with pytest.raises(UsageError, match="`family` : unknown"):
        converter.convert(path, tmp_path / "out", family="")
    converter.register(Family("toy", "toy model", KEYS, lambda *_: None, config))
    with pytest.raises(InputError, match=r"pixart\.pth: not a toy model that can be converted: unknown key"):
        converter.convert(path, tmp_path / "out", family="toy")
    assert (
        converter.convert(path, tmp_path / "out", family="pixart", hyper_parameters={"num_attention_heads": 4}).record[
            "family"
        ]
        == "pixart"
    )
