"""`pixart report`: which files are reports, how far training was, what is linked, and what is never overwritten."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
import sample_reports as samples
from html_page import Page
from makers import GOLDEN, HEADS, Result, imported, lock
from safetensors.torch import load_file, save_file

from converter.reports import render
from converter.reports.report import PASS, Report

Cli = Callable[..., Result]
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Put a report under a name into the current folder, which is an empty one."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, *reports: Report, **run: str) -> Path:
        for report in reports:
            report.run |= run
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render(reports or [small(**run)], path.suffix))
        return path

    return write


def small(verdict: str = PASS, reason: str = "as it is", **run: str) -> Report:
    """One in which something was measured."""
    report = without_numbers(verdict, reason, **run)
    report.phases = samples.tiny().phases[3:4]
    return report


def without_numbers(verdict: str = PASS, reason: str = "as it is", **run: str) -> Report:
    """One that takes no time to draw."""
    return Report(verdict, reason, run={"date": "2026-01-01T00:00:00+00:00", **run})


def rows(page: str) -> list[list[str]]:
    """The cells of the table, row by row, as they are read."""
    body = page.partition("<tbody>")[2].partition("</tbody>")[0]
    return [
        [" ".join(Page(cell).text.split()) for cell in re.findall(r"<td.*?</td>", row, re.DOTALL)]
        for row in re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    ]


def heads(page: str) -> list[str]:
    return re.findall(r"<th(?: [^>]*)?>(.*?)</th>", page)


def links(page: str) -> dict[str, str]:
    """The names of the checkpoints, and where they lead."""
    return {name: link for link, name in re.findall(r'<td class="what".*?<a href="(.*?)">(.*?)</a>', page)}


@pytest.mark.usefixtures("no_search")
def test_real_reports_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    """As the tool writes them: a PASS beside its conversion, a FAIL with an HTML report, and a REJECTED."""
    monkeypatch.chdir(tmp_path)
    training = tmp_path / "runs/alpha/checkpoints"
    training.mkdir(parents=True)
    for step in (9000, 10000, 11000):
        shutil.copy(GOLDEN / "alpha-ms.pth", training / f"epoch_7_step_{step}.pth")
    (training / "epoch_7_step_11000.pth").write_bytes(b"PK")
    for step, more in ((9000, ["--parity"]), (10000, [])):
        name = f"epoch_7_step_{step}"
        command = ["--orig_ckpt_path", f"runs/alpha/checkpoints/{name}.pth", "--dump_path", f"converted/alpha/{name}"]
        assert cli("convert-pixart", *command, "--num_attention_heads", HEADS, "--quiet", *more).returncode == 0
    weights = tmp_path / "converted/alpha/epoch_7_step_10000" / WEIGHTS
    state = load_file(weights)
    save_file(state | {"proj_out.bias": state["proj_out.bias"] + 1}, weights, metadata={"format": "pt"})
    pair = ["--orig_ckpt_path", "runs/alpha/checkpoints/epoch_7_step_10000.pth"]
    pair += ["--converted_path", "converted/alpha/epoch_7_step_10000"]
    assert cli("pixart", "parity", *pair, "--report", "fail.json").returncode == 1
    (tmp_path / "fail.html").touch()  # what is drawn there takes long, and is not looked at
    pair = [word.replace("10000", "11000") for word in pair]
    assert cli("pixart", "parity", *pair, "--report", "rejected.json").returncode == 3

    result = cli("pixart", "report", ".")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "wrote: index.html (3 reports: 1 PASS, 1 FAIL, 1 REJECTED)\n"
    page = (tmp_path / "index.html").read_text()
    assert heads(page) == ["verdict", "checkpoint", "step", "worst in float32", "worst in float64", "reason"]
    table = rows(page)
    assert [row[:3] for row in table] == [
        ["✗ FAIL", "epoch_7_step_10000", "10,000"],
        ["⊘ REJECTED", "epoch_7_step_11000", "11,000"],
        ["✓ PASS", "epoch_7_step_9000", "9,000"],
    ]
    assert table[1][3:5] == ["–", "–"]
    wrong, right = (float(table[i][3].rstrip("×").replace(",", "")) for i in (0, 2))
    assert right < 3 < wrong
    assert table[0][-1] == json.loads((tmp_path / "fail.json").read_text())["headline"]
    beside = "converted/alpha/epoch_7_step_9000/parity.json"
    targets = {"epoch_7_step_10000": "fail.html", "epoch_7_step_11000": "rejected.json", "epoch_7_step_9000": beside}
    assert links(page) == targets
    assert all((tmp_path / target).is_file() for target in targets.values())
    assert page.count("<svg") == 2 * (1 + 4)  # the worst, and each of four statistics, in two precisions


@pytest.mark.parametrize(
    ("original", "shown"),
    [
        ("runs/a/checkpoints/epoch_7_step_9000.pth", ["a", "epoch_7_step_9000", "step", "9,000"]),
        ("out/a/checkpoint-9000/transformer", ["a", "checkpoint-9000", "step", "9,000"]),
        ("a/step=9000.ckpt", ["a", "step=9000", "step", "9,000"]),
        ("a/Epoch 3.safetensors", ["a", "Epoch 3", "epoch", "3"]),
        ("a\\iter_120.pt", ["a", "iter_120", "step", "120"]),
        ("a/last.pth", ["a", "last", "", ""]),
        ("a/footstep_3.pth", ["a", "footstep_3", "", ""]),
        ("a/step_1234567890123.pth", ["a", "step_1234567890123", "", ""]),
    ],
)
def test_how_far_training_was(original: str, shown: list[str], write: Callable[..., Path], cli: Cli) -> None:
    write("one.json", original=original)
    write("two.json", without_numbers(original="other/final.pth"))  # so that the run is shown
    assert cli("pixart", "report", ".").returncode == 0
    page = Path("index.html").read_text()
    (row,) = (row for row in rows(page) if row[1] == shown[1])
    assert row[2] == shown[0]
    assert (heads(page)[3], row[3]) == (shown[2], shown[3]) if shown[2] else heads(page)[3].startswith("worst")


def test_the_name_of_the_report_counts_where_no_other_says_it(write: Callable[..., Path], cli: Cli) -> None:
    for step in (9, 10):
        write(f"nightly/step_{step}.json", original="last.pth", converted=f"out{step}")
    assert cli("pixart", "report", "nightly").returncode == 0
    assert [row[1:3] for row in rows(Path("nightly/index.html").read_text())] == [["step_9", "9"], ["step_10", "10"]]


def test_of_one_comparison_the_last_report_counts(write: Callable[..., Path], cli: Cli) -> None:
    pair = {"original": "a/step_1.pth", "converted": "out/step_1"}
    Path("a").mkdir()
    Path("a/step_1.pth").touch()
    write("z.json", small("FAIL"), date="2026-01-01T09:00:00+00:00", **pair)
    write("out/step_1/parity.json", small(), date="2026-01-02T09:00:00+00:00", **pair)
    write("batch.json", small("FAIL"), small(), date="2025-12-31T09:00:00+00:00", **pair)
    result = cli("pixart", "report", ".", "--json")
    content = json.loads(result.stdout)
    assert (result.returncode, result.stderr, result.stdout.count("\n")) == (0, "", 1)
    verdicts = {"PASS": 1, "FAIL": 0, "REJECTED": 0, "INCONCLUSIVE": 0, "INTERNAL": 0}
    earlier = "not shown, since a later report is of the same comparison: "
    notes = [f"{earlier}batch.json (FAIL), z.json (FAIL), batch.json (PASS)"]
    assert content == {"ok": True, "path": "index.html", "reports": 1, "verdicts": verdicts, "notes": notes}


def test_a_batch_is_linked_part_by_part(write: Callable[..., Path], cli: Cli) -> None:
    """The HTML report of a batch has the worst first, so its places are not in the order of the JSON."""
    reports = [without_numbers(v, original=f"{i}.pth") for i, v in enumerate([PASS, "INCONCLUSIVE", "FAIL", PASS])]
    write("all reports/b#1.json", *reports)
    write("all reports/b#1.html", *reports)
    assert cli("pixart", "report", ".", "--output", "all reports/page.html").returncode == 0
    found = links(Path("all reports/page.html").read_text())
    assert found == {f"{i}": f"b%231.html#report-{n}" for i, n in ((0, 3), (1, 2), (2, 1), (3, 4))}
    listed = re.findall(r'href="(#report-\d)".*?</td>.*?</tr>', Path("all reports/b#1.html").read_text(), re.DOTALL)
    assert listed[0] == "#report-1"
    assert cli("pixart", "report", ".").returncode == 0
    assert "all%20reports/b%231.html#report-1" in links(Path("index.html").read_text()).values()


def test_what_is_no_report_is_skipped_and_what_is_damaged_is_told(write: Callable[..., Path], cli: Cli) -> None:
    good = write("good.json", original="step_1.pth")
    text = good.read_text()
    for name, content in {
        "config.json": '{"num_layers": 28}',
        "broken.json": "{",
        "cache.json": json.dumps({"entries": {"key": json.loads(text)}}),
        ".hidden.json": text,
        ".git/r.json": text,
        "notes.txt": text,
        "list.json": '["exit_code"]',
        "other.json": '{"ok": true, "exit_code": 0}',
    }.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(content)
    damaged: dict[str, Callable[[dict[str, Any]], object]] = {
        "verdict": lambda report: report.update(verdict="FINE"),
        "version": lambda report: report.update(version=2),
        "extra": lambda report: report.update(more=1),
        "run": lambda report: report.update(run=[]),
        "reason": lambda report: report.update(reason=["no", "text"]),
        "phases": lambda report: report.update(phases=7),
        "check": lambda report: report["phases"][0]["checks"][0].update(statistic=[]),
        "checks": lambda report: report["phases"][0].update(checks=None),
    }
    for name, spoil in damaged.items():
        report = json.loads(text)
        spoil(report)
        Path(f"{name}.json").write_text(json.dumps(report))
    Path("cut.json").write_text(text[: len(text) // 2])
    Path("in").mkdir()
    Path("in/parity.json").write_text("[]")
    Path("twice.json").write_text(text.replace('"verdict"', '"verdict": 1, "verdict"', 1))
    result = cli("pixart", "report", ".")
    *notes, last = result.stdout.splitlines()
    assert (result.returncode, result.stderr, last) == (0, "", "wrote: index.html (1 report: 1 PASS)")
    told = [re.findall(r"^note: not read: (\S+): .+", note) for note in notes]
    assert sorted(name for (name,) in told) == sorted(
        [*(f"{name}.json" for name in damaged), "cut.json", "twice.json", "in/parity.json"]
    )
    assert "version 2 of the report" in result.stdout
    page = Page(Path("index.html").read_text())
    assert all(note.removeprefix("note: ") in page.text for note in notes)


def test_what_json_printed_is_a_report_too(write: Callable[..., Path], cli: Cli) -> None:
    report = write("r.json", original="step_1.pth")
    report.write_text(json.dumps({"ok": True} | json.loads(report.read_text())))
    assert cli("pixart", "report", ".").stdout == "wrote: index.html (1 report: 1 PASS)\n"


def test_conversions_without_a_report_are_named(write: Callable[..., Path], cli: Cli) -> None:
    record = json.dumps({"tool": {"name": "convert-pixart"}, "written": {"transformer/config.json": {"size": 7}}})
    for step in (1, 2, 3):
        Path(f"converted/step_{step}").mkdir(parents=True)
        Path(f"converted/step_{step}/conversion.json").write_text(record)
    Path("other").mkdir()
    Path("other/conversion.json").write_text("{}")
    write("converted/step_1/parity.json", original="step_1.pth", converted="converted/step_1")
    write("reports/two.json", original="step_2.pth", converted="../converted/step_2/")
    result = cli("pixart", "report", ".")
    assert result.stdout.splitlines()[0] == "note: converted, and not compared: ./converted/step_3"
    assert "converted, and not compared: ./converted/step_3" in Path("index.html").read_text()
    quiet = cli("pixart", "report", ".", "--quiet")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")


def test_exit_codes(write: Callable[..., Path], cli: Cli) -> None:
    Path("empty").mkdir()
    Path("empty/config.json").write_text("{}")
    Path("damaged").mkdir()
    Path("damaged/parity.json").write_text("{")
    for folder, words in (
        ("empty", "no parity report in it"),
        ("none", "No such file"),
        ("damaged", "not read: damaged/parity.json: "),
    ):
        result = cli("pixart", "report", folder)
        assert (result.returncode, result.stdout) == (3, ""), result.stderr
        assert re.fullmatch(rf"pixart: error: {folder}: .*{words}.*\n", result.stderr)
        assert not Path(folder, "index.html").exists()
    write("reports/fail.json", small("FAIL"))
    assert cli("pixart", "report", "reports").returncode == 0, "whatever the verdicts"
    for output, words in (
        ("page.txt", "its suffix must be .html"),
        ("none/page.html", "none/page.html: cannot be written there"),
        ("page.html/index.html", "cannot be written there"),
        ("folder.html", "it is a folder"),
    ):
        Path("folder.html").mkdir(exist_ok=True)
        result = cli("pixart", "report", "reports", "--output", output)
        assert (result.returncode, result.stdout) == (2, "")
        assert re.fullmatch(r"pixart: error: [^\n]+\n", result.stderr)
        assert words in result.stderr


def test_only_its_own_pages_are_replaced(write: Callable[..., Path], cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    write("reports/one.json", original="step_1.pth")
    write("reports/one.html", without_numbers(original="step_1.pth"))
    index = Path("reports/index.html")
    for content in ("<p>the team's own</p>", "", Path("reports/one.html").read_text()):
        index.write_text(content)
        result = cli("pixart", "report", "reports")
        assert (result.returncode, index.read_text()) == (2, content)
        words = "not a page of `pixart report`: choose another --output, or add --overwrite"
        assert result.stderr == f"pixart: error: reports/index.html: {words}\n"
    assert cli("pixart", "report", "reports", "--overwrite").returncode == 0
    first = index.read_text()
    assert cli("pixart", "report", "reports").returncode == 0
    assert index.read_text() == first, "the same bytes for the same reports"

    def full(*paths: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    write("reports/two.json", original="step_2.pth")
    before = sorted(os.listdir("reports"))
    result = cli("pixart", "report", "reports")
    assert (result.returncode, index.read_text(), sorted(os.listdir("reports"))) == (5, first, before)


def test_the_page_is_no_report_that_lies_beside_one(write: Callable[..., Path], cli: Cli) -> None:
    write("index.json", original="step_1.pth")
    for _ in range(2):
        assert cli("pixart", "report", ".").returncode == 0
        assert links(Path("index.html").read_text()) == {"step_1": "index.json"}


@pytest.mark.parametrize("name", ["a<b>&\"'.json", "a b?c#d.json", "javascript:alert(1).json", b"\xff.json"])
def test_odd_names_of_files(name: str | bytes, write: Callable[..., Path], cli: Cli) -> None:
    """Links lead to the files whatever they are called, and are no markup and no script."""
    odd = Path(os.fsdecode(name))
    odd.write_text(render([small(original="step_1.pth")], ".json"))
    assert cli("pixart", "report", ".").returncode == 0
    (link,) = links(Path("index.html").read_text()).values()
    assert unquote_to_bytes(link) == os.fsencode(odd)
    assert re.fullmatch(r"[\w%./-]+", link)


def test_a_folder_that_cannot_be_read_is_told(
    write: Callable[..., Path], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("one.json", original="step_1.pth")
    Path("locked").mkdir()
    lock(monkeypatch, "locked")
    result = cli("pixart", "report", ".")
    assert result.returncode == 0
    assert "note: not read: ./locked: Permission denied" in result.stdout


def test_help_is_light() -> None:
    code, printed, modules, _ = imported("pixart", "report", "--help")
    assert (code, modules) == (0, set())
    assert "whatever the verdicts on it" in " ".join(printed.split())
    code, printed, modules, _ = imported("pixart", "--help")
    assert (code, modules) == (0, set())
    assert re.search(r"^  report +Gather ", printed, re.MULTILINE)
