"""A family that the user names by its file: his code is run, and whatever is wrong with it is one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from makers import save

import converter
from converter import UsageError, families
from converter.conversion.pairs import Pair
from converter.families import from_file
from converter.parity.ci.cache import key_of
from converter.parity.ci.settings import load_settings
from converter.parity.sides import spec_of

Call = Callable[..., subprocess.CompletedProcess[str]]

MINE = """
import converter

FAMILY = converter.Family(
    "mine", "Mine", converter.KeyMapping({"a.{} [D D]": "b.{}"}),
    lambda plan, state, found: found.given_or_assumed("num_attention_heads", 1, "by convention"),
    lambda found: {"_class_name": "Mine"}, ("num_attention_heads",),
)
"""


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "_REGISTERED", {})
    monkeypatch.setattr(from_file, "_LOADED", {})
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save({"a.0.weight": torch.ones(4, 4), "a.0.bias": torch.zeros(4)}, tmp_path / "model.pth")


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    "text",
    [
        MINE,
        MINE + "converter.register(FAMILY)\n",
        MINE.replace("FAMILY", "whatever"),
        MINE + "from dataclasses import replace\nconverter.register(replace(FAMILY, title='Other'))\n",
    ],
    ids=["named", "registered too", "the only one", "registered otherwise"],
)
def test_every_command_takes_it(text: str, tmp_path: Path, source: Path, cli: Call) -> None:
    family = written(tmp_path / "mine.py", text)
    done = cli("pixart", "inspect", source, "--family", family, "--json")
    assert json.loads(done.stdout)["family"] == "mine"
    done = cli("pixart", "convert", "--orig_ckpt_path", source, "--dump_path", tmp_path / "out", "--family", family)
    assert (done.returncode, done.stderr) == (0, "")
    done = cli("pixart", "parity", "--orig_ckpt_path", source, "--converted_path", tmp_path / "out", "--family", family)
    assert done.returncode == 4  # inconclusive: nothing was found wrong, and nothing was run
    assert "the family mine brings no reference net" in done.stdout
    back = tmp_path / "back.pth"
    done = cli("pixart", "revert", "--converted_path", tmp_path / "out", "--dump_path", back, "--family", family)
    assert (done.returncode, done.stderr) == (0, "")
    assert torch.equal(torch.load(back, weights_only=True)["state_dict"]["a.0.weight"], torch.ones(4, 4))


def test_what_a_file_registers_counts_before_what_it_calls_family(tmp_path: Path) -> None:
    text = MINE + "from dataclasses import replace\nconverter.register(replace(FAMILY, title='Other'))\n"
    assert families.find(written(tmp_path / "mine.py", text)).title == "Other"


def test_it_may_import_what_lies_beside_it(tmp_path: Path) -> None:
    written(tmp_path / "beside_a_family.py", "TITLE = 'Beside'\n")
    text = "from beside_a_family import TITLE\n" + MINE.replace('"Mine",', "TITLE,")
    assert families.find(written(tmp_path / "mine.py", text)).title == "Beside"
    del sys.modules["beside_a_family"]


def test_modules_of_two_folders_may_be_called_alike(tmp_path: Path) -> None:
    text = """
from dataclasses import dataclass
from .net import TITLE

@dataclass
class Shape:
    depth: int
""" + MINE.replace('"Mine",', "TITLE,").replace('("num_attention_heads",)', "parity='.net:PARITY'")
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        net = f"from converter.nets.spec import ParitySpec\nTITLE = {name!r}\n"
        (tmp_path / name / "net.py").write_text(net + "PARITY = ParitySpec(None, None, lambda *_: TITLE)\n")
    found = {name: families.find(written(tmp_path / name / "mine.py", text)) for name in ("one", "other")}
    for name, family in found.items():
        assert family.title == name
        assert spec_of(family).cases(None, "", {}) == name


def test_it_is_run_once_and_again_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    first = families.find(written(path, MINE))
    assert families.find(str(path)) is first
    assert families.find(written(path, MINE.replace('"Mine",', '"Another",'))).title == "Another"


@pytest.mark.parametrize("more", ["", "converter.register(FAMILY)\n"])
def test_it_is_for_who_names_it_and_not_for_the_rest_of_the_process(more: str, tmp_path: Path, source: Path) -> None:
    family = written(tmp_path / "mine.py", MINE + more)
    assert converter.inspect(source, family=family)["family"] == "mine"
    assert "mine" not in families.families()
    assert converter.inspect(source)["family"] is None
    done = converter.convert(source, tmp_path / "out", family=family)
    assert converter.inspect(done.path)["family"] is None
    assert converter.inspect(done.path, family=family)["problems"] == []
    converter.register(families.find(family))
    assert converter.inspect(source)["family"] == "mine"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file or directory"),
        ("x = (", "line 1: SyntaxError: '(' was never closed"),
        ("import converter\n\n1 / 0\n", "line 3: ZeroDivisionError: division by zero"),
        ("import no_such_thing_anywhere\n", "line 1: ModuleNotFoundError"),
        ("raise SystemExit(0)\n", "line 1: SystemExit: 0"),
        ("import converter\nconverter.KeyMapping({'a': 'b', 'c': 'b'})\n", "line 2: ValueError: the targets 'b' and"),
        ("FAMILY = 3\n", "no converter.Family in it"),
        (MINE.replace("FAMILY", "one") + MINE.replace("FAMILY", "other"), "2 families in it"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_it_is_one_line(
    text: str | None, said: str, tmp_path: Path, source: Path, cli: Call
) -> None:
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    done = cli("pixart", "inspect", source, "--family", path)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_of_two_the_one_called_family_is_meant(tmp_path: Path) -> None:
    text = MINE + MINE.replace("FAMILY", "other").replace('"Mine",', '"Another",')
    assert families.find(written(tmp_path / "mine.py", text)).title == "Mine"


def test_what_a_broken_file_registered_is_forgotten(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ZeroDivisionError"):
        families.find(written(tmp_path / "mine.py", MINE + "converter.register(FAMILY)\n1 / 0\n"))
    assert "mine" not in families.families()


def test_an_unknown_name_says_what_there_is(source: Path) -> None:
    with pytest.raises(
        UsageError, match=r"`family` nothing: unknown; there are dit, .*pixart-controlnet, sana, or a file NAME\.py"
    ):
        converter.inspect(source, family="nothing")


def test_a_comparison_depends_on_what_the_file_says(tmp_path: Path, source: Path) -> None:
    written(tmp_path / "mine.py", MINE)
    options = {"family": str(tmp_path / "mine.py")}
    before = key_of(Pair(str(source), str(source), options))
    assert key_of(Pair(str(source), str(source), options)) == before
    written(tmp_path / "mine.py", MINE + "# changed\n")
    after = key_of(Pair(str(source), str(source), options))
    assert after != before
    written(tmp_path / "nets.py", "# what it may import")
    assert key_of(Pair(str(source), str(source), options)) not in (before, after)


def test_settings_name_it_relative_to_themselves(tmp_path: Path) -> None:
    text = 'family = "a.py"\n[[checkpoint]]\noriginal = "x"\nconverted = "y"\nfamily = "b/c.py"\n'
    settings = load_settings(written(tmp_path / "parity.toml", text))
    assert settings.defaults["family"] == str(tmp_path / "a.py")
    assert settings.checkpoints[0]["family"] == str(tmp_path / "b/c.py")


def test_an_environment_in_its_folder_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project often has its environment inside: what was imported out of that is not the family's."""
    place = tmp_path / ".venv/lib/site-packages/nothing_else.py"
    place.parent.mkdir(parents=True)
    place.write_text("")
    module = type(sys)("nothing_else")
    module.__file__ = str(place)
    monkeypatch.setitem(sys.modules, "nothing_else", module)
    for text in (MINE, MINE + "\n"):
        families.find(written(tmp_path / "mine.py", text))
        assert sys.modules["nothing_else"] is module
