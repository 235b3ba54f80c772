"""A newcomer with a checkpoint of 70 keys, from nothing to PASS and back, by what `docs/new-family.md` says alone; and
what it promises to be told after each of the usual mistakes."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from makers import ROOT, Result

import converter
from converter.new_family import draft, read_keys, render
from converter.new_family.draft import DOUBTS
from converter.new_family.matching import FINAL, FUSED, QUESTIONS, SIBLING, UNCONFIRMED

Cli = Callable[..., Result]
KITE = Path(__file__).parent / "kite"
PAGE = (ROOT / "docs" / "new-family.md").read_text()
# What is marked in the draft, and what the page says to do with it.
T = "transformer_blocks.{}."
FILLED = [
    ('    "rope [N 4 2]": Extra(),  # ?', '    "rope [N 4 2]": converter.Computed(rope),'),
    *(
        (f'"{path}",  # ?', f'converter.Reorder("{path}", (1, 0)),')
        for path in (f"{T}ff.conv_inverted", f"{T}ff.conv_depth", "norm_out")
    ),
    (
        "KEYS = KeyMapping({",
        "def rope(found):\n"
        "    from kite import rotary_table\n\n"
        '    width, heads = found.value("hidden_size"), found.value("num_attention_heads")\n'
        '    return rotary_table(found.value("sample_size") // found.value("patch_size"), width // heads)\n\n\n'
        "KEYS = KeyMapping({",
    ),
    (
        '    flags={"num_attention_heads": int},',
        '    flags={"num_attention_heads": int},\n    parity="kite_parity:PARITY",',
    ),
]
# The mistakes of the page -> how they are made in the family that works.
MADE = {
    "no `Reorder` of shift and scale": ('converter.Reorder("norm_out", (1, 0))', '"norm_out"'),
    "a gate and a value swapped in one layer": (
        'converter.Reorder("transformer_blocks.{}.ff.conv_depth", (1, 0))', '"transformer_blocks.{}.ff.conv_depth"',
    ),
    "and in both layers that they go through": (
        r'converter\.Reorder\(("transformer_blocks.{}.ff.conv_(?:depth|inverted)"), \(1, 0\)\)', r"\1",
    ),
    "queries for keys": (r'("transformer_blocks.{}.attn1.to_q.weight"),(\s+)("[^"]*to_k.weight")', r"\3,\2\1"),
    "no row for a buffer": (r'    "rope \[N 4 2\]": converter.Computed\(rope\),\n', ""),
    "a function that gives another table": ("return rotary_table", "return 2 * rotary_table"),
    "another number of heads": ("", ""),  # but by the option
    "no row for a layer": (r'    "final_layer.mod \[2D D\]": .*\n', ""),
    "no nets": ('    parity="kite_parity:PARITY",\n', ""),
}  # fmt: skip


def changed(text: str, old: str, new: str) -> str:
    """With `old`, a text or a pattern, replaced."""
    if not old:
        return text
    result, count = (text.replace(old, new), text.count(old)) if old in text else re.subn(old, new, text)
    assert count, old
    return result


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both nets, a checkpoint, an untrained model of the class, and the family that works."""
    folder, path = tmp_path_factory.mktemp("kite"), [*sys.path]
    for file in KITE.glob("*.py"):
        shutil.copy(file, folder)
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        from kite import Kite
        from kite_diffusers import KiteTransformer2DModel

        torch.manual_seed(0)
        torch.save({"state_dict": Kite().state_dict(), "epoch": 3}, folder / "kite.pth")
        KiteTransformer2DModel().save_pretrained(folder / "empty")
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - before:
            if str(folder) in (getattr(sys.modules[name], "__file__", None) or ""):
                del sys.modules[name]
    text = render("kite", draft(read_keys(folder / "kite.pth"), read_keys(folder / "empty")))
    for old, new in FILLED:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (folder / "filled.py").write_text(text)
    return folder


def family(desk: Path, folder: Path, text: str) -> Path:
    """A family with the nets beside it."""
    for file in KITE.glob("*.py"):
        shutil.copy(file, folder)
    (folder / "kite_family.py").write_text(text)
    return folder / "kite_family.py"


def test_from_nothing_to_pass_and_back(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.chdir(tmp_path)
    source, file = desk / "kite.pth", tmp_path / "kite_family.py"
    state = torch.load(source, weights_only=True)["state_dict"]
    assert len(state) == 70
    done = cli("pixart", "new-family", "kite", source, "--target", desk / "empty", "--out", file)
    assert (done.returncode, done.stderr) == (0, "")
    assert "no row yet" not in done.stdout
    assert "no source yet" not in done.stdout
    drafted, filled = file.read_text(), (desk / "filled.py").read_text()
    for old, new in FILLED:
        drafted = drafted.replace(old, new)
    assert drafted == filled
    # All that was filled in was marked, but for what every family needs; what stays marked was right.
    left = [line.strip() for line in filled.splitlines() if line.endswith("# ?")]
    assert left == [
        '"logvar [1]": Extra(),  # ?',
        '"null_caption [5 F]": Extra(),  # ?',
        '"t_block.1 [6D D]": "time_proj",  # ?',
        '"refiner.{}.proj [D D]": "refiner_blocks.{}.attn.to_out.0",  # ?',
        'found.file("caption_channels", *plan.shown("K"))  # ?',
        '"mlp_ratio": 1.5,  # ?',
    ]
    family(desk, tmp_path, filled)
    given = ("--family", file, "--orig_ckpt_path", source)
    done = cli("pixart", "convert", *given, "--dump_path", "out", "--num_attention_heads", 4)
    assert (done.returncode, done.stderr) == (0, "")
    done = cli("pixart", "parity", *given, "--converted_path", "out", "--self_test", "full")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert re.search(r"self-test   PASS          all 1\d\d deliberate faults were caught\n", done.stdout)
    assert "\nPASS: outputs " in done.stdout
    done = cli("pixart", "revert", "--family", file, "--converted_path", "out", "--dump_path", "back.pth")
    assert (done.returncode, done.stderr) == (0, "")
    back = torch.load("back.pth", weights_only=True)["state_dict"]
    assert list(back) == list(state)
    assert all(torch.equal(back[key], state[key]) and back[key].dtype == state[key].dtype for key in state)


PROMISED = {
    row[0]: (row[1].strip("`"), row[2].strip("`"))
    for row in (re.split(r" \| ", line.strip("| ")) for line in PAGE.splitlines() if line.count(" | ") == 2)
    if row[1] in ("`convert`", "`parity`")
}


def test_every_row_of_the_page_is_a_row() -> None:
    rows = re.findall(r'^\| `(".*?)` \| ', PAGE, flags=re.M)
    assert len(rows) == 12
    for row in rows:
        names = {name: getattr(converter, name) for name in converter.__all__} | {"function": lambda found: None}
        table = eval(f"{{{row}}}", names)
        assert converter.KeyMapping(table | {"own.{}.x [D]": "t.{}.x"}).rows  # a stack, for what is copied into one


def test_every_mark_is_on_the_page() -> None:
    marks = re.findall(r"^\| (`.*?`(?:, `.*?`)*) \| [^|]* \|$", PAGE, flags=re.M)
    named = [mark for cell in marks for mark in re.findall("`(.*?)`", cell)]
    for doubt in (FINAL, FUSED, SIBLING, UNCONFIRMED, *QUESTIONS.values(), *DOUBTS.values()):
        assert any(mark in doubt for mark in named), doubt


def test_every_mistake_of_the_page_is_made() -> None:
    assert PROMISED.keys() == MADE.keys()


@pytest.mark.parametrize("mistake", MADE)
def test_a_mistake_says_what_the_page_promises(mistake: str, desk: Path, tmp_path: Path, cli: Cli) -> None:
    file = family(desk, tmp_path, changed((desk / "filled.py").read_text(), *MADE[mistake]))
    command, promised = PROMISED[mistake]
    given = ("--family", file, "--orig_ckpt_path", desk / "kite.pth")
    heads = 2 if mistake == "another number of heads" else 4
    done = cli("pixart", "convert", *given, "--dump_path", tmp_path / "out", "--num_attention_heads", heads, "--quiet")
    assert done.returncode == (3 if command == "convert" else 0), done.stderr
    if command == "parity":
        done = cli("pixart", "parity", *given, "--converted_path", tmp_path / "out")
        assert done.returncode == (4 if mistake == "no nets" else 1)
    said = re.escape(promised).replace(re.escape("..."), ".*")
    assert re.search(said, done.stdout + done.stderr), done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
