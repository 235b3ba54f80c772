"""A file of a model folder is converted as the folder is: its config counts, and so do the record and the sidecar."""

from __future__ import annotations

import codecs
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from makers import GOLDEN, HEADS, convert, diffusers_keyed, pixart, save

import converter
from converter import inspect
from converter.checkpoint.json_file import read_json
from converter.errors import InputError

Cli = Callable[..., CompletedProcess[str]]
WEIGHTS, NOTE = (
    "diffusion_pytorch_model.safetensors",
    "config.json beside it was read too, as if the folder were given",
)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("beside") / "out"
    convert(GOLDEN / "alpha-ms.pth", path)
    return path


@pytest.mark.parametrize("to", ["diffusers", "original"])
def test_the_file_and_its_folder_lead_to_the_same(out: Path, tmp_path: Path, to: str) -> None:
    made = []
    for n, source in enumerate((out / "transformer", out / "transformer" / WEIGHTS)):
        done = convert(source, tmp_path / (f"{n}.pth" if to == "original" else str(n)), to=to)
        assert (NOTE in done.notes) == source.is_file()
        files = [done.path] if done.path.is_file() else sorted(p for p in done.path.rglob("*.*") if p.is_file())
        made.append({p.name: p.read_bytes() for p in files if p.name != "conversion.json"})
        assert done.record["sources"].keys() == {"config.json"}
    assert [*made[0].values()] == [*made[1].values()]


def test_whatever_lies_there_too_changes_nothing_of_that(out: Path, tmp_path: Path) -> None:
    """An index that is stale, and a folder `transformer`, are no matter of a file that was named."""
    place = shutil.copytree(out / "transformer", tmp_path / "model")
    (place / f"{WEIGHTS}.index.json").write_text("{}")
    (place / "transformer").mkdir()
    (place / WEIGHTS).rename(place / "mine.safetensors")
    (place / WEIGHTS).touch()
    done = convert(place / "mine.safetensors", tmp_path / "out")
    assert done.record["sources"].keys() == {"config.json"}
    assert (done.path / "transformer" / "config.json").read_bytes() == (place / "config.json").read_bytes()


@pytest.mark.parametrize("config", [
    "not json", '{"_class_name": "AutoencoderKL"}', '{"model_type": "t5", "num_layers": 9}', "[]",
])  # fmt: skip
def test_beside_an_original_checkpoint_it_is_not_read(tmp_path: Path, config: str) -> None:
    path = save(pixart(), tmp_path / "model.pth")
    (tmp_path / "config.json").write_text(config)
    assert NOTE not in convert(path, tmp_path / "out").notes


def test_beside_diffusers_keys_it_is_read_where_it_is_that_of_a_diffusers_model(tmp_path: Path, out: Path) -> None:
    path = save(diffusers_keyed(pixart()), tmp_path / "model.bin")
    (tmp_path / "config.json").write_text('{"model_type": "t5", "num_layers": 9}')
    assert "`num_attention_heads`" in inspect(path, hyper_parameters={"image_size": 128})["needs"]
    said = json.loads((out / "transformer" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(said))
    with pytest.raises(
        InputError, match=r"config.json: .*, and "
    ):  # of another model than these weights, as in a folder
        convert(path, tmp_path / "out")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config.json: not valid JSON"):
        convert(path, tmp_path / "out")


@pytest.mark.parametrize("name", ["config.json", f"{WEIGHTS}.index.json"])
def test_a_byte_order_mark_is_read_past(out: Path, tmp_path: Path, name: str) -> None:
    convert(out, tmp_path / "sharded", max_shard_size=200_000)
    path = tmp_path / "sharded" / "transformer" / name
    text = path.read_text().replace("\n", "\r\n")
    path.write_bytes(codecs.BOM_UTF8 + text.encode())
    done = convert(tmp_path / "sharded", tmp_path / "again")
    for file in ("transformer/config.json", f"transformer/{WEIGHTS}"):
        assert (done.path / file).read_bytes() == (out / file).read_bytes()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_another_encoding_is_named(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "config.json").write_bytes('{"a": 1}'.encode(encoding))
    with pytest.raises(InputError, match="UTF-16 or UTF-32: save it as UTF-8"):
        read_json(tmp_path / "config.json")


def test_parity_names_a_config_that_diffusers_does_not_read(out: Path, tmp_path: Path, cli: Cli) -> None:
    place = shutil.copytree(out, tmp_path / "out")
    config = place / "transformer" / "config.json"
    config.write_bytes(codecs.BOM_UTF8 + config.read_bytes())
    done = cli("pixart", "parity", "--orig_ckpt_path", GOLDEN / "alpha-ms.pth", "--converted_path", place)
    assert done.returncode == 3
    assert "config.json: begins with a byte order mark, which diffusers does not read" in done.stderr


def test_a_file_without_checksums_is_converted_with_a_note(tmp_path: Path, cli: Cli) -> None:
    state: Any = torch.load(GOLDEN / "sigma-ms.pth", weights_only=True)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "bare.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(tmp_path / "bare.pth") as known:
        assert not any(info.CRC for info in known.infolist())
    note = "note: bare.pth carries no checksums"
    flags = ("--num_attention_heads", HEADS)
    for name, path in (("a", GOLDEN / "sigma-ms.pth"), ("b", tmp_path / "bare.pth")):
        for extra in ((), ("--dtype", "float16")):
            target = tmp_path / f"{name}{len(extra)}"
            done = cli("convert-pixart", "--orig_ckpt_path", path, "--dump_path", target, *flags, *extra)
            assert done.returncode == 0, done.stderr
            assert (note in done.stdout) == (name == "b")
    for kind in ("0", "2"):
        for file in (f"transformer/{WEIGHTS}", "transformer/config.json"):
            assert (tmp_path / f"a{kind}" / file).read_bytes() == (tmp_path / f"b{kind}" / file).read_bytes()
    assert note in cli("pixart", "inspect", tmp_path / "bare.pth").stdout
    done = cli("pixart", "parity", "--orig_ckpt_path", tmp_path / "bare.pth", "--converted_path", tmp_path / "b0")
    assert done.returncode == 0, done.stdout
    assert note in done.stdout


FAMILY = """
import converter

def describe(plan, state, found):
    found.file("side", plan.dims.get("N", 0), "the buffer")  # which a converted folder lacks
    found.given_or_assumed("heads", None, "no tensor shows it")

def config(found):
    return {"heads": found.value("heads"), "side": found.value("side")}

KEYS = converter.KeyMapping({"a [D D]": "b", "table [N]": converter.Extra()})
FAMILY = converter.Family("toy", "Toy", KEYS, describe, config, flags={"heads": int})
"""


def test_what_stands_against_recorded_values_comes_before_that_they_are_lacking(tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text(FAMILY)
    path = save({"a.weight": torch.ones(4, 4), "a.bias": torch.ones(4), "table": torch.ones(7)}, tmp_path / "a.pth")
    family = str(tmp_path / "toy.py")
    converter.convert(path, tmp_path / "out", family=family, hyper_parameters={"heads": 2})
    with pytest.raises(InputError, match=r"config\.json: side: 7, and the converted model would have 0"):
        converter.convert(tmp_path / "out", tmp_path / "back.pth", to="original", family=family)
