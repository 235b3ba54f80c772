"""A family is a user's own code: what goes wrong in it names the family and the line, and what it gives is checked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from makers import GOLDEN, HEADS, Result
from safetensors.torch import load_file, save_file
from torch import equal, ones, randn

from converter import Family, InputError, UsageError, convert, families, inspect

SOURCE = """
import numpy as np
from converter import Extra, Family, Flag, KeyMapping

def describe(plan, state, findings):
    findings.file("width", np.int64(plan.dims["W"]), "its shape")
    findings.given_or_assumed("mode", "a", "the default")
    findings.given_or_assumed("heads", None, "a file does not show it")

def config(findings):
    return {"mode": findings.value("mode"), "heads": findings.value("heads"), "channels": (1, 2)}

FAMILY = Family(
    "toy", "Toy", KeyMapping({"a [W W]": "b"}), describe, config,
    flags=[Flag("mode", str, "Mode.", choices=("a", "b", "1")), Flag("heads", int, "Heads.", minimum=1)],
)
"""
KEYS = 'KeyMapping({"a [W W]": "b"})'


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_file({"a.weight": ones(2, 2), "a.bias": ones(2)}, "toy.safetensors", metadata={"format": "pt"})
    Path("toy.py").write_text(SOURCE)
    return tmp_path


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('plan.dims["W"]', 'plan.dims["X"]', r"describe: .*toy.py, line 6: KeyError: 'X'"),
        ('plan.dims["W"]', "exit()", r"describe: .*toy.py, line 6: SystemExit"),
        ('findings.value("mode")', "1 / 0", r"config: .*toy.py, line 11: ZeroDivisionError"),
        ('np.int64(plan.dims["W"])', "[2]", r"width is \[2\], a list: a finding is a finite number, a bool or a str"),
        ('np.int64(plan.dims["W"])', "np.inf", r"width is inf, a float: a finding is a finite number"),
        ("(1, 2)", 'float("nan")', r"config: Out of range float values are not JSON compliant"),
        ("(1, 2)", r'"\ud800"', r"config: .*surrogates not allowed"),
        ("(1, 2)", "{1}", r"config: Object of type set is not JSON serializable"),
        (
            KEYS,
            'KeyMapping({"a.weight [W W]": "a.bias", "a.bias [W]": Extra()})',
            r"a.bias is a key of the target, and of",
        ),
        (KEYS, 'KeyMapping({"a [W W]": Extra()})', r"its table gives no tensor of this file to the target"),
        ("flags=[", 'marks="a", flags=[', r"marks must be a tuple of paths, not one string"),
        ("flags=[", 'keep_dtype="a", flags=[', r"keep_dtype must be a tuple of paths, not one string"),
        ("flags=[", 'subfolder="../x", flags=[', r"subfolder '../x': must be the name of one folder"),
        ("flags=[", "subfolder=(), flags=[", r"subfolder '': must be the name of one folder"),
        ("flags=[", 'subfolder=("a", 1), flags=[', r"subfolder 1: must be the name of one folder"),
        ('Flag("heads"', 'Flag("my heads"', r"flag 'my heads': use lower-case letters, digits and underscores"),
    ],
)
def test_what_goes_wrong_in_it_names_the_family_and_the_line(toy: Path, old: str, new: str, words: str) -> None:
    source = SOURCE.replace(old, new)
    assert source != SOURCE
    Path("toy.py").write_text(source)
    with pytest.raises(UsageError, match=f"`family` (toy|toy.py): .*{words}"):
        convert("toy.safetensors", "out", family="toy.py", hyper_parameters={"heads": 2})
    assert not Path("out").exists()


def test_what_it_gives_is_written_as_json_reads_it_and_goes_back(toy: Path) -> None:
    """A scalar of NumPy and a tuple are what JSON makes of them: the folder is accepted again."""
    done = convert("toy.safetensors", "out", family="toy.py", hyper_parameters={"heads": 2})
    assert done.record["hyper_parameters"]["width"]["value"] == 2
    assert json.loads(Path("out/transformer/config.json").read_text())["channels"] == [1, 2]
    convert("out", "back.safetensors", family="toy.py", to="original")
    assert Path("back.safetensors").read_bytes() == Path("toy.safetensors").read_bytes()


def test_a_subfolder_of_another_name_is_read_again(toy: Path) -> None:
    Path("toy.py").write_text(SOURCE.replace("flags=[", 'subfolder="dit", flags=['))
    convert("toy.safetensors", "out", family="toy.py", hyper_parameters={"heads": 2})
    assert {path.name for path in Path("out").iterdir()} == {"conversion.json", "dit"}
    convert("out", "back.safetensors", family="toy.py", to="original")
    assert Path("back.safetensors").read_bytes() == Path("toy.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ({"heads": 0}, "`heads` 0: must be at least 1"),
        ({"heads": "2"}, "`heads` '2': not int but str"),
        ({"heads": 2, "mode": "z"}, "`mode` 'z': one of a, b, 1"),
        ([("heads", 2)], "`hyper_parameters`: must map names to values, not be a list"),
    ],
)
def test_flags_hold_from_python_too(toy: Path, stated: Any, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        convert("toy.safetensors", "out", family="toy.py", hyper_parameters=stated)


@pytest.mark.parametrize(
    ("words", "result"),
    [
        ("--given heads=2 --given mode=1", {"heads": 2, "mode": "1"}),  # of a str, as text
        ("--heads 2 --mode b", {"heads": 2, "mode": "b"}),  # the file's flags are options
        ("--heads=2 --given mode=b", {"heads": 2, "mode": "b"}),
        ("--given heads=2 --given mode=z", "'--given': mode: 'z' is not one of 'a', 'b', '1'"),
        ("--given heads=0", "'--given': heads: 0 is not in the range x>=1"),
        ("--heads 0", "'--heads': 0 is not in the range x>=1"),
        ("--nope 2", "No such option '--nope'"),
        ("", "--heads is needed: a file does not show it"),
    ],
)
def test_flags_of_a_file_on_the_command_line(
    cli: Callable[..., Result], toy: Path, words: str, result: dict[str, Any] | str
) -> None:
    call = ["--orig_ckpt_path", toy / "toy.safetensors", "--dump_path", toy / "out", "--family", toy / "toy.py"]
    done = cli("convert-pixart", *call, *words.split())
    if isinstance(result, str):
        assert done.returncode == 2
        assert result in done.stderr
    else:
        config = json.loads(Path("out/transformer/config.json").read_text())
        assert {name: config[name] for name in result} == result


TWO = """
from converter import Family, KeyMapping, Reorder

def describe(plan, state, findings):
    pass

FAMILY = Family("NAME", "Toy", KeyMapping({TABLE}), describe, lambda findings: {"_class_name": "Toy"})
"""
TABLE = '"q [W W]": "a.to_q", "k [W W]": "a.to_k", "m [2W W]": Reorder("m", (1, 0))'


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint, converted."""
    monkeypatch.chdir(tmp_path)
    sizes = {"q": 2, "k": 2, "m": 4}
    state = {f"{key}.weight": randn(size, 2) for key, size in sizes.items()}
    save_file(state | {f"{key}.bias": randn(size) for key, size in sizes.items()}, "two.safetensors")
    Path("two.py").write_text(TWO.replace("NAME", "two").replace("TABLE", TABLE))
    convert("two.safetensors", "out", family="two.py")
    return tmp_path


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            '"a.to_q", "k [W W]": "a.to_k"',
            '"a.to_k", "k [W W]": "a.to_q"',
            "says rename to a.to_q.weight, and the table",
        ),
        (
            'Reorder("m", (1, 0))',
            '"m"',
            "says reorder to m.weight, and the table of the family two says rename to m.weight",
        ),
        ('"q [W W]"', '"query [W W]"', "says nothing, and the table of the family two says rename to a.to_q.weight"),
    ],
)
def test_a_table_other_than_that_of_the_conversion_does_not_take_it_back(
    two: Path, old: str, new: str, words: str
) -> None:
    changed = TWO.replace("NAME", "two").replace("TABLE", TABLE.replace(old, new))
    Path("changed.py").write_text(changed)
    with pytest.raises(InputError, match=words):
        convert("out", "back.safetensors", family="changed.py", to="original")
    assert not Path("back.safetensors").exists()


def test_names_that_are_the_same_on_both_sides(two: Path) -> None:
    """The keys of the converted folder are the original's: that it is converted, its record says."""
    table = '"q [W W]": "q", "k [W W]": Extra(), "m [2W W]": Reorder("m", (1, 0))'
    source = TWO.replace("import Family", "import Extra, Family").replace("NAME", "same").replace("TABLE", table)
    Path("same.py").write_text(source)
    convert("two.safetensors", "same", family="same.py")
    assert inspect("same", family="same.py")["layout"] == "diffusers"
    convert("same", "back.safetensors", family="same.py", to="original")
    before, after = load_file("two.safetensors"), load_file("back.safetensors")
    assert before.keys() == after.keys()
    assert all(equal(before[key], after[key]) for key in before)


def test_a_folder_is_of_the_family_that_its_record_names(two: Path) -> None:
    """Two families may have the same targets: what the names alone show is not enough."""
    other = TWO.replace("NAME", "other").replace("TABLE", TABLE.replace('"q [', '"query ['))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(families, "_REGISTERED", {"other": load_family(other)})
        problem = "conversion.json says that this is of the family two, which is not installed: use `family`"
        assert inspect("out")["problems"] == [problem]
        with pytest.raises(InputError, match=re.escape(problem)):
            convert("out", "back.safetensors", to="original")
        patch.setitem(families._REGISTERED, "two", load_family(Path("two.py").read_text()))
        convert("out", "back.safetensors", to="original")
    assert {*load_file("back.safetensors")} == {*load_file("two.safetensors")}


def test_a_file_of_a_converted_folder_has_its_record_too(two: Path) -> None:
    """Of which family it is, and which weights it was made of."""
    model = "out/transformer/diffusion_pytorch_model.safetensors"
    other = TWO.replace("NAME", "other").replace("TABLE", TABLE.replace('"q [', '"query ['))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(families, "_REGISTERED", {"other": load_family(other)})
        with pytest.raises(InputError, match=r"conversion\.json says that this is of the family two"):
            convert(model, "back.safetensors", to="original")
    convert(GOLDEN / "alpha-ms.pth", "ema", weights="ema", hyper_parameters={"num_attention_heads": HEADS})
    assert inspect(model.replace("out", "ema"))["source"]["weights"] == "ema"


def load_family(source: str) -> Family:
    names: dict[str, Any] = {"__name__": "loaded"}
    exec(source, names)
    family: Family = names["FAMILY"]
    return family
