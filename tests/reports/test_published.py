"""What is published holds no path of somebody's computer, and its command runs where others keep the files."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from makers import GOLDEN, HEADS, Result

from converter.publishing.card import card as model_card
from converter.reports.markdown import card
from converter.reports.published import portable_command, published, without_paths
from converter.reports.report import Phase, Report

SECRET = "unique secret-name"
NAMES = {"--orig_ckpt_path": "epoch_5.pth", "--converted_path": "out"}


@pytest.mark.parametrize(
    ("command", "made"),
    [
        (
            "pixart parity --orig_ckpt_path /s/a/epoch_5.pth --converted-path=../s/out/ --quiet",
            "pixart parity --orig_ckpt_path epoch_5.pth --converted-path=out --quiet",
        ),
        ("pixart parity --orig_ckpt_path 's/*.pth' --converted_path 's/{parent}/{stem}'",
         "pixart parity --orig_ckpt_path epoch_5.pth --converted_path out"),
        ("pixart parity --save_failing s/bad --cases=s/c.safetensors --waivers ../s/w.toml --cache ~/s/c.json",
         "pixart parity --save_failing bad --cases=c.safetensors --waivers w.toml --cache c.json"),
        ("convert-pixart --null_caption /s/n.safetensors --family s/mine.py --config s/parity.toml --given a=s/b",
         "convert-pixart --null_caption n.safetensors --family mine.py --config parity.toml --given a=b"),
        ("pixart parity --report /s/a.html --report s/a.html --card /s/b.md --report x.xml --json",
         "pixart parity --report a.html --card b.md --report x.xml --json"),
        (r"pixart parity --cases 'C:\s\c.safetensors' --cache '\\s\share\c.json'",
         "pixart parity --cases c.safetensors --cache c.json"),
        ("convert-pixart --orig_ckpt_path hf://owner/name/s.pth --push_to_hub owner/name --dump_path s/out",
         "convert-pixart --orig_ckpt_path hf://owner/name/s.pth --push_to_hub owner/name --dump_path out"),
        ("pixart parity --threads 4 --interpolation_scale 1.5", "pixart parity --threads 4 --interpolation_scale 1.5"),
        ("pixart parity 'not closed", ""),
    ],
)  # fmt: skip
def test_a_command_names_files_as_they_are_called(command: str, made: str) -> None:
    assert portable_command(command, NAMES) == made
    assert portable_command(made, NAMES) == made


def test_two_of_one_name_do_not_lie_in_one_folder() -> None:
    same = {"--orig_ckpt_path": "sigma", "--converted_path": "sigma"}
    made = portable_command("pixart parity --orig_ckpt_path /a/sigma --converted_path /b/sigma", same)
    assert made == "pixart parity --orig_ckpt_path original/sigma --converted_path converted/sigma"


FLAGS = st.sampled_from(["--orig_ckpt_path", "--save-failing", "--cases", "--report", "--family", "--card", "--given"])
FOLDERS = st.lists(st.text(st.characters(blacklist_characters="/\\\0", codec="utf-8"), min_size=1), max_size=3)


@given(st.lists(st.tuples(FLAGS, FOLDERS, st.sampled_from(["/", "\\"]), st.booleans()), max_size=4))
def test_no_folder_is_left_in_any_command(parts: list[tuple[str, list[str], str, bool]]) -> None:
    spelled = ["pixart", "parity"]
    for flag, folders, separator, joined in parts:
        path = separator.join(["", *folders, "x"])
        spelled += [f"{flag}={path}"] if joined else [flag, path]
    made = shlex.split(portable_command(shlex.join(spelled), {}))
    assert made[:2] == ["pixart", "parity"]
    assert not [part for part in made if "/" in part or "\\" in part]


def test_every_text_of_a_report_is_cut() -> None:
    there = f"/home/{SECRET}/runs/x.pth"
    relative = f"{SECRET}/out"
    report = Report(
        "REJECTED",
        f"{there}: no such file; {relative}/config.json",
        original={"name": "x.pth", "container": f"found in {there}"},
        converted={"name": "out"},
        assumed=[{"name": "scale", "value": 1, "why": f"{there} holds none"}],
        notes=[f"{relative}.partial is left from an interrupted run"],
        phases=[Phase("weights", "FAIL", f"{there} differs", notes=[relative])],
        run={"original": there, "converted": relative, "command": f"pixart parity --config '{SECRET}/p.toml'",
             "converted_path": relative, "date": "today", "program": "x"},
    )  # fmt: skip
    made = published(report)
    assert SECRET not in made.to_json()
    assert made.run == {"date": "today", "command": "pixart parity --config p.toml"}
    assert made.notes == ["out.partial is left from an interrupted run"]
    assert SECRET not in card(report)


def test_what_is_published_of_a_run_holds_no_path_and_runs_elsewhere(
    cli: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    here, there = tmp_path / SECRET / "runs", tmp_path / "there"
    here.mkdir(parents=True)
    there.mkdir()
    shutil.copy(GOLDEN / "alpha-ms.pth", here / "epoch_5.pth")
    monkeypatch.chdir(tmp_path)
    flags = ["--orig_ckpt_path", here / "*.pth", "--dump_path", f"{here}/{{stem}}", "--num_attention_heads", HEADS]
    assert cli("convert-pixart", *flags, "--quiet").returncode == 0
    out = here / "epoch_5"
    sides = ["--orig_ckpt_path", f"{SECRET}/runs/epoch_5.pth", "--converted_path", out, "--num_attention_heads", HEADS]
    more = ["--report", here / "r.md", "--save_failing", here / "bad", "--cache", here / "c.json"]
    assert cli("pixart", "parity", *sides, *more, "--card", here / "CARD.md", "--quiet").returncode == 0
    text = (here / "CARD.md").read_text()
    record = json.loads((out / "conversion.json").read_text())
    record["notes"].append(f"{out}.x.partial is left from an interrupted run")
    for made in (text, model_card(record, source=str(here / "epoch_5.pth"), paths=[out])):
        assert SECRET not in made
        assert str(tmp_path) not in made
        assert "SECRET" not in made
    (command,) = re.findall(r"^```sh\n(.*)\n```$", text, flags=re.M)
    shutil.copy(here / "epoch_5.pth", there)
    shutil.copytree(out, there / "epoch_5")
    monkeypatch.chdir(there)
    again = cli(*shlex.split(command))
    assert (again.returncode, again.stderr) == (0, "")
    assert {path.name for path in there.iterdir()} >= {"CARD.md", "r.md", "c.json"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/me/runs/x.pth: missing", "x.pth: missing"),
        ("in (/home/me/x) and '../../me/y' or ~/me/z", "in (x) and 'y' or z"),
        (r"C:\me\x.pth, D:/me/y, \\me\share\z", "x.pth, y, z"),
        ("transformer/config.json and 3 / 4, and/or", "transformer/config.json and 3 / 4, and/or"),
        ("t999 / epsilon; https://host/a/b; hf://owner/name/x", "t999 / epsilon; https://host/a/b; hf://owner/name/x"),
        ("me/my runs/x.pth", "x.pth"),
    ],
)
def test_texts_lose_their_folders(text: str, shown: str) -> None:
    assert without_paths({"a": [text]}, ["me/my runs/y", "hf://owner/name/x", "/", "..", "."]) == {"a": [shown]}


def test_texts_are_searched_in_time_linear_in_them() -> None:
    for part in ("/a", "../", "C:\\", "\\\\", "/", "~", "a/b", "~a"):
        without_paths(part * 50_000)
