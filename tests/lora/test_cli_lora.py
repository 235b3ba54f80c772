"""`convert-pixart` and `pixart inspect` of adapters, as a person uses them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from lora_makers import LORA, SIGMA, added, apart

KOHYA = LORA / "d-ot-kohya.safetensors"


def test_converted_and_converted_again(cli: Any, tmp_path: Path) -> None:
    done = cli("convert-pixart", KOHYA, tmp_path / "peft", "--to", "peft")
    assert (done.returncode, done.stderr) == (0, "")
    assert "rank 4, scale 0.5 (alpha 2 in the file): 28 modules" in done.stdout
    assert sorted(path.name for path in (tmp_path / "peft").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    taken = cli("convert-pixart", KOHYA, tmp_path / "peft", "--to", "peft")
    assert taken.returncode == 2
    assert "--overwrite" in taken.stderr
    again = cli("convert-pixart", KOHYA, tmp_path / "peft", "--to", "peft", "--overwrite", "--quiet")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    back = cli("convert-pixart", tmp_path / "peft", tmp_path / "back.safetensors", "--to", "kohya", "--json")
    assert json.loads(back.stdout)["record"]["to"] == "kohya"
    assert apart(added(SIGMA, KOHYA), added(SIGMA, tmp_path / "back.safetensors")) < 1e-6


def test_a_dry_run_writes_nothing(cli: Any, tmp_path: Path) -> None:
    done = cli("convert-pixart", KOHYA, tmp_path / "out", "--dry_run")
    assert done.returncode == 0
    assert "dry run: nothing was written" in done.stdout
    assert not (tmp_path / "out").exists()


def test_folders_and_globs(cli: Any, tmp_path: Path) -> None:
    """A folder of PEFT is one adapter; of several files each is done by itself."""
    one = cli("convert-pixart", LORA / "d-rslora", tmp_path / "a")
    assert one.returncode == 0
    for name in ("d-ot-kohya", "d-ot-legacy"):
        shutil.copy(LORA / f"{name}.safetensors", tmp_path / f"{name}.safetensors")
    shutil.copy(LORA / "refuse" / "half-pair.safetensors", tmp_path / "d-ot-half.safetensors")
    several = cli("convert-pixart", tmp_path / "d-ot-*.safetensors", tmp_path / "out" / "{stem}", "--to", "peft")
    assert several.returncode == 3
    assert "2 converted, 0 unchanged, 1 failed" in several.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["d-ot-kohya", "d-ot-legacy"]


@pytest.mark.parametrize(("arguments", "words"), [
    (("out", "--to", "kohya"), "`--to kohya writes a file that ends in .safetensors".replace("`", "")),
    (("out.safetensors", "--to", "peft"), "--to peft writes a folder"),
    (("out", "--parity"), "--parity is for models"),
    (("out", "--dtype", "float16"), "--dtype is for models"),
    (("out", "--variant", "fp16"), "--variant is for models"),
    (("out", "--lora_alpha", "5"), "--lora_alpha 5 contradicts"),
    (("out", "--only_transformer=False", "--vae", "x"), "is for models"),
])  # fmt: skip
def test_calls_that_do_not_go_with_an_adapter(
    arguments: tuple[str, ...], words: str, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli("convert-pixart", KOHYA, *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert not [*tmp_path.iterdir()]


def test_a_model_is_no_adapter(cli: Any, tmp_path: Path) -> None:
    done = cli("convert-pixart", SIGMA, tmp_path / "out.safetensors", "--to", "kohya")
    assert done.returncode == 2
    assert "--to kohya is for adapters (LoRA), and " in done.stderr
    stated = cli("convert-pixart", SIGMA, tmp_path / "out", "--lora_alpha", 4)
    assert stated.returncode == 2
    assert "--lora_alpha is for adapters (LoRA), and " in stated.stderr


def test_a_file_for_diffusers_and_another_spelling_over_a_folder(cli: Any, tmp_path: Path) -> None:
    bare = LORA / "d-diffusers-bare"
    assert cli("convert-pixart", bare, tmp_path / "one.safetensors").returncode == 0
    assert (
        cli("convert-pixart", bare / "pytorch_lora_weights.safetensors", tmp_path / "two.safetensors").returncode == 0
    )
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    assert cli("convert-pixart", KOHYA, tmp_path / "folder", "--to", "peft").returncode == 0
    assert cli("convert-pixart", KOHYA, tmp_path / "folder", "--overwrite").returncode == 0
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["pytorch_lora_weights.safetensors"]
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(KOHYA, alone / "my.safetensors")
    assert "spelling: kohya" in cli("pixart", "inspect", alone).stdout


def test_inspected(cli: Any) -> None:
    done = cli("pixart", "inspect", LORA / "d-ot-legacy.safetensors")
    assert "written by OneTrainer" in done.stdout
    assert "note: left out, of other models: lora_te_* (21 keys)" in done.stdout
    assert done.stdout.endswith("usable: yes\n")
    for name, words in (("pissa", "pissa changed the weights"), ("half-pair.safetensors", "half a pair: lora_A")):
        bad = cli("pixart", "inspect", LORA / "refuse" / name)
        assert bad.returncode == 0
        assert f"problem: {'' if name != 'pissa' else 'adapter_config.json: init_lora_weights '}{words}" in bad.stdout
        assert bad.stdout.endswith("usable: no\n")
    report = json.loads(cli("pixart", "inspect", LORA / "d-patterns", "--json").stdout)
    assert report["ok"]
    assert report["adapter"]["spelling"] == "peft"
    assert len(report["adapter"]["scales"]) == 6


def test_the_spellings_that_are_offered_are_those_that_are_written() -> None:
    """The command lists them without importing what writes them."""
    from converter.cli.convert import ADAPTERS_ONLY
    from converter.cli.main import pixart
    from converter.conversion.output import LAYOUTS
    from converter.lora.spelling import WRITTEN

    assert {*ADAPTERS_ONLY, *LAYOUTS} == {*WRITTEN}
    for command in ("convert", "extract-lora"):
        (option,) = (param for param in pixart.commands[command].params if param.name == "to")
        assert {*option.type.choices} == {*WRITTEN}
        assert all(name in option.help for name in WRITTEN)
