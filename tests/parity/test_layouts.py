"""A converted model in every shape that diffusers itself writes it in: read, compared, and loaded as it has to be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import stated
from opened import Pair, golden, session
from safetensors.torch import load_file, save_file

from converter.errors import InputError
from converter.nets.inputs import save_case
from converter.parity import check
from converter.parity.ci.cache import digest
from converter.parity.provenance import loading
from converter.reports.report import FAIL, PASS, Report

SHARDED, BIN, VARIANT = {"max_shard_size": "200KB"}, {"safe_serialization": False}, {"variant": "fp16"}
LAYOUTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    (SHARDED, {}),
    (BIN, {}),
    (SHARDED | BIN, {"use_safetensors": False}),
    (VARIANT, {"variant": "fp16"}),
    (VARIANT | SHARDED, {"variant": "fp16"}),
    (VARIANT | BIN, {"variant": "fp16"}),
    (VARIANT | SHARDED | BIN, {"variant": "fp16", "use_safetensors": False}),
    ({"variant": "no-ema_2"}, {"variant": "no-ema_2"}),
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return golden("sigma-ms", tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="module")
def case(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quick profile's inputs as a file: with it the stock loader is tried at the cost of one case."""
    at = tmp_path_factory.mktemp("cases")
    with session(pair) as opened:
        save_case(at, opened.cases("quick")[0], {})
    (path,) = at.iterdir()
    return path


def stored(pair: Pair, at: Path, layout: dict[str, Any]) -> Path:
    from diffusers import PixArtTransformer2DModel

    PixArtTransformer2DModel.from_pretrained(pair.model, low_cpu_mem_usage=False).save_pretrained(at, **layout)
    return at


def compared(pair: Pair, folder: Path, **options: Any) -> Report:
    return check(pair.original, folder, **stated(num_attention_heads=4, **options))


@pytest.mark.parametrize(("layout", "told"), LAYOUTS, ids=str)
def test_as_diffusers_writes_it(
    pair: Pair, case: Path, tmp_path: Path, layout: dict[str, Any], told: dict[str, Any]
) -> None:
    """The stock loader is told what it needs, and so is the reader; every file that counts is hashed."""
    folder = stored(pair, tmp_path / "out", layout)
    assert (len(list(folder.iterdir())) > 2) == ("max_shard_size" in layout)
    assert loading(folder) == (told, "")
    report = compared(pair, folder, profile="full", cases=case)
    assert report.verdict == PASS, report.reason
    function = report.phase("function")
    assert function
    (loader,) = [check for check in function.checks if check.statistic == "float32 stock loader"]
    assert loader.passed
    said = ", ".join(f"{name}={value!r}" for name, value in told.items())
    wanted = [f"diffusers loads its weights only with from_pretrained(..., {said})"] if told else []
    assert [note for note in report.notes if "from_pretrained" in note] == wanted
    assert set(report.converted["files"]) == {path.name for path in folder.iterdir()}
    assert set(digest(folder)) == {path.name for path in folder.iterdir()}


def test_it_is_loaded_in_no_other_way(pair: Pair, tmp_path: Path) -> None:
    """That the loader has to be told is so: without, it finds nothing."""
    from diffusers import PixArtTransformer2DModel

    for number, (layout, told) in enumerate(LAYOUTS):
        folder = stored(pair, tmp_path / str(number), layout)
        if told:
            with pytest.raises(OSError, match="no file named"):
                PixArtTransformer2DModel.from_pretrained(folder, low_cpu_mem_usage=False, local_files_only=True)


def test_views_of_one_storage_in_another_order(pair: Pair, tmp_path: Path) -> None:
    """Saved by torch as strided views, as a conversion in a few lines would."""
    original = torch.load(pair.original, weights_only=True)
    path = stored(pair, tmp_path / "out", BIN) / "diffusion_pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    for block in range(3):
        parts = original[f"blocks.{block}.attn.qkv.weight"].chunk(3)
        for name, part in zip("qkv", parts, strict=True):
            state[f"transformer_blocks.{block}.attn1.to_{name}.weight"] = part
    turned = state["proj_out.weight"].T.contiguous().T
    assert not turned.is_contiguous()
    state["proj_out.weight"] = turned
    torch.save({key: state[key] for key in reversed(state)}, path)
    assert compared(pair, path.parent).verdict == PASS


@pytest.mark.parametrize("layout", [SHARDED, VARIANT | SHARDED], ids=str)
def test_one_bit_in_one_shard(pair: Pair, tmp_path: Path, layout: dict[str, Any]) -> None:
    folder = stored(pair, tmp_path / "out", layout)
    path = sorted(folder.glob("*-00002-of-*"))[0]
    state = load_file(path)
    key = next(iter(state))
    state[key].view(torch.int32).view(-1)[0] ^= 1
    save_file(state, path, metadata={"format": "pt"})
    report = compared(pair, folder)
    assert (report.verdict, report.exit_code) == (FAIL, 1)
    assert f"{key} differs in 1 of " in report.reason


def test_a_truncated_shard_of_a_variant_is_refused(pair: Pair, tmp_path: Path) -> None:
    folder = stored(pair, tmp_path / "out", VARIANT | SHARDED)
    path = sorted(folder.glob("*-00002-of-*"))[0]
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(InputError, match=path.name):
        compared(pair, folder)


def test_a_variant_beside_the_plain_weights_is_not_what_is_compared(pair: Pair, tmp_path: Path) -> None:
    folder = stored(pair, tmp_path / "out", {})
    plain = folder / "diffusion_pytorch_model.safetensors"
    (folder / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"no weights at all")
    assert loading(folder) == ({}, "")
    assert compared(pair, folder).verdict == PASS
    plain.rename(folder / "model.safetensors")
    assert loading(folder) == ({}, "model.safetensors")
    with pytest.raises(InputError, match=r"its weights are model\.safetensors, which diffusers does not load"):
        compared(pair, folder)


def test_two_variants_and_nothing_else_are_refused(pair: Pair, tmp_path: Path) -> None:
    folder = stored(pair, tmp_path / "out", VARIANT)
    shutil.copy(folder / "diffusion_pytorch_model.fp16.safetensors", folder / "diffusion_pytorch_model.ema.safetensors")
    with pytest.raises(InputError, match="several variants"):
        compared(pair, folder)


def test_the_index_of_a_variant_counts_for_the_cache(pair: Pair, tmp_path: Path) -> None:
    folder = stored(pair, tmp_path / "out", VARIANT | SHARDED)
    (index,) = folder.glob("*.index.fp16.json")
    before = digest(folder)
    index.write_text(json.dumps(json.loads(index.read_text()) | {"more": 1}))
    assert digest(folder) != before


@pytest.mark.parametrize("layout", [{}, SHARDED], ids=str)
def test_no_bar_of_the_loader_is_shown(
    pair: Pair, case: Path, tmp_path: Path, layout: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = stored(pair, tmp_path / "out", layout)
    capfd.readouterr()
    assert compared(pair, folder, profile="full", cases=case).verdict == PASS
    assert capfd.readouterr() == ("", "")
