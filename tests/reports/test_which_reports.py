"""Which reports `pixart report` shows: one for each comparison, by what was compared; and where its page may lie."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import sample_reports as samples
from html_page import Page
from makers import GOLDEN, HEADS, Result
from safetensors.torch import load_file, save_file

from converter.reports import render
from converter.reports.report import FAIL, PASS, Check, Phase, Report

Cli = Callable[..., Result]
WEIGHTS = "out/transformer/diffusion_pytorch_model.safetensors"
RECORD = json.dumps({"tool": {"name": "convert-pixart"}, "written": {"transformer/config.json": {"size": 7}}})


def put(name: str, verdict: str = PASS, of: str = "", day: int = 1, **run: str) -> Path:
    """A report under that name; `of`: what the digests of both sides are of, '' for none."""
    sides = [side | {"sha256": samples.sha(of + side["name"])} if of else {} for side in samples.sides("tiny")]
    date = f"2026-01-0{day}T00:00:00+00:00"
    report = Report(verdict, "as it is", original=sides[0], converted=sides[1], run={"date": date, **run})
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render([report], ".json"))
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("no_search")
def test_two_runs_that_name_their_files_alike_are_two_comparisons(folder: Path, cli: Cli) -> None:
    """As typed in each folder, original and converted are the same; in the first the weights were altered."""
    for run in ("A", "B", "C"):
        Path(f"ex2/{run}").mkdir(parents=True)
        shutil.copy(GOLDEN / "alpha-ms.pth", f"ex2/{run}/epoch_1_step_1000.pth")
    command = ["--orig_ckpt_path", "ex2/A/epoch_1_step_1000.pth", "--dump_path", "ex2/A/out"]
    assert cli("convert-pixart", *command, "--num_attention_heads", HEADS, "--quiet").returncode == 0
    shutil.copytree("ex2/A/out", "ex2/B/out")
    shutil.copytree("ex2/A/out", "ex2/C/out")
    state = load_file(f"ex2/A/{WEIGHTS}")
    save_file(state | {"proj_out.bias": state["proj_out.bias"] + 1}, f"ex2/A/{WEIGHTS}", metadata={"format": "pt"})
    codes = []
    for run in ("A", "B"):
        os.chdir(folder / "ex2" / run)
        pair = ["epoch_1_step_1000.pth", "out", "--num_attention_heads", HEADS]
        codes.append(cli("pixart", "parity", *pair, "--report", "report.json").returncode)
    os.chdir(folder)
    assert codes == [1, 0]
    result = cli("pixart", "report", "ex2")
    note, wrote = result.stdout.splitlines()
    assert wrote == "wrote: ex2/index.html (2 reports: 1 PASS, 1 FAIL)"
    assert note == "note: converted, and not compared: ex2/C/out", "a report on another out is none on this one"


def test_of_one_comparison_the_last_is_shown_and_the_others_are_named(folder: Path, cli: Cli) -> None:
    put("old.json", FAIL, "same", 1, original="a.pth", converted="out")
    put("sub/new.json", PASS, "same", 2, original="../a.pth", converted="../out")
    put("other.json", FAIL, "other", 1, original="a.pth", converted="out")
    note, wrote = cli("pixart", "report", ".").stdout.splitlines()
    assert note == "note: not shown, since a later report is of the same comparison: old.json (FAIL)"
    assert wrote == "wrote: index.html (2 reports: 1 PASS, 1 FAIL)"
    assert note.removeprefix("note: ") in Page(Path("index.html").read_text()).text


def test_without_digests_a_comparison_is_told_by_its_place(folder: Path, cli: Cli) -> None:
    for run in ("A", "B"):
        put(f"{run}/report.json", "REJECTED", original="a.pth", converted="out")
    put("A/later.json", "REJECTED", "", 2, original="a.pth", converted="out")
    note, wrote = cli("pixart", "report", ".").stdout.splitlines()
    assert note.endswith(": A/report.json (REJECTED)")
    assert wrote == "wrote: index.html (2 reports: 2 REJECTED)"


def test_a_refusal_is_over_once_there_is_a_result_in_its_place(folder: Path, cli: Cli) -> None:
    put("1.json", "REJECTED", "", 1, original="a.pth", converted="out")
    put("2.json", PASS, "A", 2, original="a.pth", converted="out")
    assert "2 reports" in cli("pixart", "report", ".").stdout, "nobody knows whether these are the same files"
    Path("a.pth").touch()
    Path("out").mkdir()
    note, wrote = cli("pixart", "report", ".").stdout.splitlines()
    assert note.endswith(": 1.json (REJECTED)")
    assert wrote == "wrote: index.html (1 report: 1 PASS)"


def test_reports_that_do_not_say_what_was_compared_are_all_shown(folder: Path, cli: Cli) -> None:
    Path("out").mkdir()
    Path("out/conversion.json").write_text(RECORD)
    for name in ("one", "two"):
        Path(f"out/{name}.json").write_text(render([Report("INTERNAL", "out of memory"), Report(FAIL, "x")], ".json"))
    for name in ("a\0b", "a" * 5000):
        put(f"out/{len(name)}.json", FAIL, original=name, converted=name)
    note, wrote = cli("pixart", "report", ".").stdout.splitlines()
    assert note == "note: converted, and not compared: ./out"
    assert wrote == "wrote: index.html (6 reports: 4 FAIL, 2 INTERNAL)"


def test_a_report_is_about_a_folder_that_its_path_leads_to(folder: Path, cli: Cli) -> None:
    for run in ("A", "B", "C"):
        Path(f"{run}/out").mkdir(parents=True)
        Path(f"{run}/out/conversion.json").write_text(RECORD)
    put("A/report.json", of="A", original="a.pth", converted="out")
    put("reports/b.json", of="B", original="a.pth", converted="B/out")
    assert cli("pixart", "report", ".").stdout.splitlines()[0] == "note: converted, and not compared: ./C/out"


def test_a_conversion_made_anew_was_not_compared(folder: Path, cli: Cli) -> None:
    Path("out").mkdir()
    report = put("report.json", of="A", original="a.pth", converted="out")
    content = json.loads(report.read_text())
    Path("out/conversion.json").write_text(RECORD)
    for sha, notes in ((samples.sha(RECORD), 0), (samples.sha("another"), 1)):
        content["converted"]["files"]["conversion.json"] = {"size": 7, "sha256": sha}
        report.write_text(json.dumps(content))
        assert cli("pixart", "report", ".").stdout.count("note: converted, and not compared: ./out") == notes


@pytest.mark.parametrize("spoil", ["check", "phase", "passed"])
def test_a_pass_whose_own_checks_failed_is_damaged(spoil: str, folder: Path, cli: Cli) -> None:
    put("good.json", of="A", original="a.pth")
    value = 1.0 if spoil == "passed" else 1e-9
    check = Check("t999 / epsilon", "float64 relative L2", value, 1e-7, spoil != "check", "")
    phase = Phase("function", FAIL if spoil == "phase" else PASS, "", [check])
    Path("forged.json").write_text(render([Report(PASS, "all is well", phases=[phase])], ".json"))
    note, wrote = cli("pixart", "report", ".").stdout.splitlines()
    what = "function" if spoil == "phase" else "t999 / epsilon"
    assert note == f"note: not read: forged.json: its verdict is PASS, though {what} failed: compare again"
    assert wrote == "wrote: index.html (1 report: 1 PASS)"


def test_a_check_that_is_waived_lets_a_report_pass(folder: Path, cli: Cli) -> None:
    check = Check("norm_eps", "config", "1e-05", "1e-06", False, "", waived="kept until 2027")
    Path("a.json").write_text(
        render([Report(PASS, "all is well", phases=[Phase("config", PASS, "", [check])])], ".json")
    )
    assert cli("pixart", "report", ".").stdout == "wrote: index.html (1 report: 1 PASS)\n"


def test_a_version_of_another_kind_is_told_apart(folder: Path, cli: Cli) -> None:
    report = put("a.json", of="A")
    report.write_text(report.read_text().replace('"version": 1', '"version": "1"'))
    result = cli("pixart", "report", ".")
    assert (result.returncode, "version '1' of the report; this program reads version 1" in result.stderr) == (3, True)


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize("output", ["", "a" * 251 + ".html", "fifo.html", "none/a.html"])
def test_where_no_page_can_be(output: str, overwrite: list[str], folder: Path, cli: Cli) -> None:
    put("a.json", of="A")
    os.mkfifo("fifo.html")
    before = sorted(os.listdir())
    result = cli("pixart", "report", ".", "--output", output, *overwrite)
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(r"pixart: error: [^\n]+\n", result.stderr)
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("target", ["none.html", "page.html"])
def test_a_dangling_link_is_replaced_only_on_demand(target: str, folder: Path, cli: Cli) -> None:
    put("a.json", of="A")
    os.symlink(target, "page.html")  # or one that leads to itself
    result = cli("pixart", "report", ".", "--output", "page.html")
    assert result.returncode == 2
    assert "page.html: not a page of `pixart report`: choose another --output" in result.stderr
    assert cli("pixart", "report", ".", "--output", "page.html", "--overwrite").returncode == 0
    assert Path("page.html").is_file()
    assert not Path("page.html").is_symlink()


def test_a_name_as_long_as_names_may_be(folder: Path, cli: Cli) -> None:
    put("a.json", of="A")
    assert cli("pixart", "report", ".", "--output", "a" * 250 + ".html").returncode == 0
    assert sorted(os.listdir()) == ["a.json", "a" * 250 + ".html"]


def links(page: str) -> list[str]:
    return re.findall(r'<td class="what".*?<a href="(.*?)">', Path(page).read_text())


def test_the_page_behind_a_link_does_not_lead_to_itself(folder: Path, cli: Cli) -> None:
    put("reports/index.json", of="A")
    os.symlink("reports", "link")
    for _ in range(2):
        assert cli("pixart", "report", "reports", "--output", "link/index.html").returncode == 0
        assert links("link/index.html") == ["../reports/index.json"]


def test_reports_on_another_drive_are_linked_by_their_whole_path(
    folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("a b.json", of="A")

    def elsewhere(*paths: object) -> str:
        raise ValueError("path is on mount 'C:', start on mount 'D:'")

    monkeypatch.setattr("os.path.relpath", elsewhere)
    assert cli("pixart", "report", ".").returncode == 0
    assert links("index.html") == [(folder / "a b.json").as_uri()]
