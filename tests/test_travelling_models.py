"""Models that diffusers has no class for: converted, proven and reverted as any other."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import GOLDEN, HEADS, Result, convert, pixart, save, stated, tree

from converter.errors import InputError
from converter.models.dit.dit_transformer import DiTExactTransformer2DModel
from converter.models.pixart.pixart_transformer import PixArtExtendedTransformer2DModel
from converter.models.sana.sana_transformer import SanaExactTransformer2DModel
from converter.parity import check

UNIFORM = {"kv_compress": "sampling=uniform,factor=2,blocks=1-2"}
MODELS: dict[str, tuple[Path, dict[str, Any], Any]] = {
    "conv": (GOLDEN / "sigma-kvcompress.pth", {}, PixArtExtendedTransformer2DModel),
    "qk-norm": (GOLDEN / "sigma-qknorm.pth", {}, PixArtExtendedTransformer2DModel),
    "uniform": (GOLDEN / "sigma-ms.pth", UNIFORM, PixArtExtendedTransformer2DModel),
    "dit": (GOLDEN / "dit.pt", {}, DiTExactTransformer2DModel),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("travelling")
    return {name: convert(path, place / name, **stated(given)).path for name, (path, given, _) in MODELS.items()}


@pytest.mark.parametrize("name", MODELS)
def test_the_class_lies_beside_the_weights_byte_for_byte(name: str, folders: dict[str, Path]) -> None:
    kind = MODELS[name][2]
    config = json.loads((folders[name] / "transformer/config.json").read_text())
    source = Path(sys.modules[kind.__module__].__file__ or "")
    assert (folders[name] / "transformer" / source.name).read_bytes() == source.read_bytes()
    assert config["_class_name"] == kind.__name__
    assert config["auto_map"] == {"AutoModel": f"{source.stem}.{kind.__name__}"}


def test_what_every_travelling_class_needs_is_the_same_in_each() -> None:
    """Each file stands alone, so that it is written in each: how a config is read without `auto_map`, and saved."""
    kinds = (PixArtExtendedTransformer2DModel, DiTExactTransformer2DModel, SanaExactTransformer2DModel)
    for method in ("extract_init_dict", "save_config"):
        codes = [getattr(kind, method).__code__ for kind in kinds]
        assert len({code.co_code for code in codes}) == 1, method
        assert len({(code.co_names, code.co_varnames) for code in codes}) == 1, method


@pytest.mark.parametrize("name", ["conv", "qk-norm", "uniform"])
def test_they_are_proven_and_every_deliberate_fault_is_caught(name: str, folders: dict[str, Path]) -> None:
    report = check(MODELS[name][0], folders[name], self_test="full")
    assert report.verdict == "PASS", report.reason
    (phase,) = [phase for phase in report.phases if phase.name == "self-test"]
    names = {row.what for row in phase.checks}
    if name == "qk-norm":
        assert {"no norm of queries and keys", "queries and keys normalised after the split into heads"} <= names
    else:
        other = "ave for conv" if name == "conv" else "uniform_every for uniform"
        faults = {
            "no KV compression",
            "KV compression in other blocks",
            "KV compression by 4",
            f"KV compression {other}",
        }
        assert faults <= names


@pytest.mark.parametrize("name", MODELS)
def test_the_way_back_is_exact(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    path = MODELS[name][0]
    back = convert(folders[name], tmp_path / "back.pth", to="original").path
    state, again = (torch.load(file, weights_only=True) for file in (path, back))
    state, again = state.get("state_dict", state), again.get("state_dict", again)
    assert list(again) == list(state)
    assert all(torch.equal(again[key], state[key]) for key in state)
    assert tree(convert(folders[name], tmp_path / "twice").path / "transformer") == tree(folders[name] / "transformer")


def test_a_compression_that_was_given_is_not_forgotten(folders: dict[str, Path], tmp_path: Path) -> None:
    """The config says it, and the record; against either, a word of the user counts for nothing."""
    (folders["uniform"] / "conversion.json").rename(tmp_path / "record.json")
    try:
        record = convert(folders["uniform"], tmp_path / "out").record
    finally:
        (tmp_path / "record.json").rename(folders["uniform"] / "conversion.json")
    found = record["hyper_parameters"]["kv_compress"]
    assert (found["value"], found["evidence"]) == ("sampling=uniform,factor=2,blocks=1-2", "config.json")


def test_a_file_that_could_be_compressed_is_said_to_be_assumed(tmp_path: Path, cli: Any) -> None:
    path = save(pixart(), tmp_path / "a.pth")
    call = ["convert-pixart", path, tmp_path / "out", "--num_attention_heads", HEADS]
    done: Result = cli(*call)
    assert (
        "assumed: kv_compress = False (no convolutions; sampling 'uniform' or 'ave' would leave no trace" in done.stdout
    )
    done = cli(*call, "--overwrite", "--kv_compress", "sampling=uniform,factor=2")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--kv_compress sampling=uniform,factor=2: say how it compresses, as in sampling=" in done.stderr
    done = cli(*call, "--overwrite", "--kv-compress", "sampling=uniform,factor=2,blocks=0", "--stock")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert (
        "--stock: this model compresses keys and values, which diffusers' PixArtTransformer2DModel does not"
        in done.stderr
    )


def test_what_the_original_layout_cannot_say_is_noted(folders: dict[str, Path], tmp_path: Path) -> None:
    done = convert(folders["uniform"], tmp_path / "u.pth", to="original")
    words = "its KV compression leaves no trace in a file: to convert that again, give --kv_compress "
    assert f"{words}{UNIFORM['kv_compress']}" in done.notes
    stock = convert(GOLDEN / "dit.pt", tmp_path / "stock", stock=True)
    back = convert(stock.path, tmp_path / "back.pth", to="original")
    assert any("if it was trained in that class, and not converted for it" in note for note in back.notes)
    assert not any("trained in that class" in note for note in stock.notes)
    back = convert(folders["dit"], tmp_path / "exact.pth", to="original")
    assert not any("trained in that class" in note for note in back.notes)


def test_a_config_of_blocks_that_are_not_there_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["uniform"] / "transformer", tmp_path / "t")
    path = tmp_path / "t/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"kv_compress_blocks": [77]}))
    with pytest.raises(InputError, match=r"config\.json: sampling=.*,blocks=77, and there are blocks 0 to 2"):
        convert(tmp_path / "t", tmp_path / "out")
