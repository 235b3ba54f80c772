"""Several comparisons: one that goes wrong stops none, and the exit code is that of the worst."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from converter.checkpoint.write.interrupt import Interrupted
from converter.conversion.pairs import Pair
from converter.errors import ConverterError, InputError, UsageError
from converter.parity import checker
from converter.parity.ci import batch
from converter.parity.ci.batch import exit_code, outcome
from converter.parity.ci.cache import Cache
from converter.parity.waivers import Waiver
from converter.reports.facts import name_of
from converter.reports.report import Report

TODAY = date(2026, 6, 1)
VERDICTS = ["PASS", "FAIL", "REJECTED", "INCONCLUSIVE", "INTERNAL"]


class Checker:
    """Stands in for `check`: says or raises what it was told for an original, and keeps what it was called with."""

    def __init__(self, **told: str | BaseException) -> None:
        self.told = told
        self.calls: list[tuple[str, str, dict[str, Any]]] = []

    def __call__(self, original: str, converted: str, **options: Any) -> Report:
        self.calls.append((original, converted, options))
        verdict = self.told.get(Path(original).stem, "PASS")
        if isinstance(verdict, BaseException):
            raise verdict
        return Report(verdict, f"made {len(self.calls)}")

    @property
    def names(self) -> list[str]:
        return [Path(original).stem for original, _, _ in self.calls]


def run(pairs: list[Pair], check: Checker | None = None, **options: Any) -> list[Report]:
    with pytest.MonkeyPatch.context() as patched:
        if check:
            patched.setattr(checker, "check", check)
        return batch.check_all(pairs, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "abc":
        (tmp_path / f"{name}.pth").write_text(name)
        (tmp_path / name).mkdir()
        (tmp_path / name / "diffusion_pytorch_model.safetensors").write_text(name)
        (tmp_path / name / "config.json").write_text("{}")
    return tmp_path


def pairs(folder: Path, names: str = "abc", **options: Any) -> list[Pair]:
    return [Pair(str(folder / f"{name}.pth"), str(folder / name), options) for name in names]


def test_each_with_its_options(folder: Path) -> None:
    check, seen = Checker(b="FAIL"), []
    waiver = Waiver("t999", "float32 relative L2", 3.4, "known", TODAY)
    reports = run(
        [replace(pair, hyper_parameters={"heads": 4}) for pair in pairs(folder, profile="full")],
        check=check,
        waivers=[waiver],
        progress=print,
        done=lambda pair, report: seen.append((Path(pair.original).stem, report.verdict)),
    )
    assert [report.verdict for report in reports] == ["PASS", "FAIL", "PASS"]
    assert seen == [("a", "PASS"), ("b", "FAIL"), ("c", "PASS")]
    assert check.calls[0] == (
        str(folder / "a.pth"),
        str(folder / "a"),
        {"profile": "full", "hyper_parameters": {"heads": 4}, "waivers": [waiver], "progress": print},
    )
    assert [name_of(report) for report in reports] == [str(folder / name) for name in "abc"]
    (alone,) = run(pairs(folder, "a"), check=check)
    assert "converted_path" not in alone.run
    assert check.calls[-1][2] == {}  # nothing was said, so the checker's own defaults hold


@pytest.mark.parametrize(
    ("error", "verdict", "reason"),
    [
        (InputError("a.pth: truncated"), "REJECTED", "a.pth: truncated"),
        (UsageError("`weights` ema: none there"), "REJECTED", "invalid arguments: --weights ema: none there"),
        (ConverterError("the disk is full"), "INTERNAL", "the disk is full"),
        (KeyError("x\x1b[31m\n"), "INTERNAL", "internal error: KeyError: "),
        (MemoryError(), "INTERNAL", "internal error: MemoryError: "),
        (RecursionError("deep"), "INTERNAL", "internal error: RecursionError: deep"),
    ],
)
def test_one_that_goes_wrong_stops_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, verdict: str, reason: str
) -> None:
    monkeypatch.delenv("PIXART_DEBUG", raising=False)
    reports = run(pairs(folder, profile="full"), check=Checker(a=error))
    assert [report.verdict for report in reports] == [verdict, "PASS", "PASS"]
    assert reports[0].reason.startswith(reason)
    assert reports[0].reason.isprintable()
    assert reports[0].original == {"name": "a.pth"}
    assert reports[0].converted == {"name": "a"}
    assert reports[0].profile == "full"
    assert Report.from_dict(reports[0].as_dict()) == reports[0]


def test_a_wrong_call_for_the_only_pair_is_raised(folder: Path) -> None:
    with pytest.raises(UsageError, match="wrong"):
        run(pairs(folder, "a"), check=Checker(a=UsageError("wrong")))
    (report,) = run(pairs(folder, "a"), check=Checker(a=InputError("malformed")))
    assert report.verdict == "REJECTED"


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Interrupted(15), SystemExit(3)])
def test_an_interrupt_stops_all(folder: Path, stop: BaseException) -> None:
    check = Checker(b=stop)
    with pytest.raises(type(stop)):
        run(pairs(folder), check=check)
    assert check.names == ["a", "b"]


def test_debugging_shows_where(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXART_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        run(pairs(folder), check=Checker(a=ZeroDivisionError()))
    reports = run(pairs(folder), check=Checker(a=InputError("malformed")))
    assert [report.verdict for report in reports] == ["REJECTED", "PASS", "PASS"]


def test_no_converted_folder_yet(folder: Path) -> None:
    check = Checker()
    (report,) = run([Pair(str(folder / "a.pth"), str(folder / "new"))], check=check)
    assert outcome(report) == f"REJECTED: no converted folder at {folder / 'new'}: convert it first"
    assert check.calls == []
    # Where the original is missing too, that is what is wrong first.
    run([Pair(str(folder / "gone.pth"), str(folder / "new"))], check=check)
    assert check.names == ["gone"]


# With a cache.


def cached_run(folder: Path, check: Checker, names: str = "abc", **extra: Any) -> list[Report]:
    options = {name: extra.pop(name) for name in ("profile", "save_failing") if name in extra}
    given: dict[str, Any] = {"today": TODAY, "cache": Cache(folder / "cache.json")} | extra
    return run(pairs(folder, names, **options), check=check, **given)


def test_only_what_has_changed_is_run_again(folder: Path) -> None:
    check = Checker(b="FAIL")
    first = cached_run(folder, check)
    again = cached_run(folder, check, today=date(2026, 6, 9))
    assert check.names == ["a", "b", "c"]
    assert [outcome(report) for report in again] == [
        f"{outcome(report)} (unchanged since 2026-06-01)" for report in first
    ]
    assert exit_code(again) == exit_code(first) == 1
    (folder / "a.pth").write_text("trained on")
    (folder / "c" / "config.json").write_text('{"num_layers": 28}')
    cached_run(folder, check)
    assert check.names == ["a", "b", "c", "a", "c"]
    cached_run(folder, check, profile="full")
    assert check.names[5:] == ["a", "b", "c"]


def test_a_report_that_was_kept_is_of_the_files_that_were_asked_for(folder: Path) -> None:
    check = Checker()
    cached_run(folder, check, "a")
    (folder / "run").mkdir()
    for name in ("a", "a.pth"):
        (folder / name).rename(folder / "run" / name)
    (report,) = run(pairs(folder / "run", "a"), check=check, today=TODAY, cache=Cache(folder / "cache.json"))
    assert check.names == ["a"]
    assert report.run["original"] == str(folder / "run" / "a.pth")
    assert report.run["converted"] == str(folder / "run" / "a")
    assert report.run["seconds"] == 0  # none went into it now


@pytest.mark.parametrize("told", ["INCONCLUSIVE", "REJECTED", InputError("bad"), ValueError("bad")])
def test_what_is_not_certain_is_run_again(folder: Path, told: Any) -> None:
    check = Checker(a=told)
    for _ in range(2):
        cached_run(folder, check, "a")
    assert check.names == ["a", "a"]


def test_a_failure_is_run_again_to_save_it(folder: Path) -> None:
    check = Checker(a="FAIL")
    cached_run(folder, check, "ab")
    cached_run(folder, check, "ab", save_failing=str(folder / "failing"))
    assert check.names == ["a", "b", "a"]


def test_a_verdict_ends_with_the_waiver_that_it_needed(folder: Path) -> None:
    waiver = Waiver("t999", "float32 relative L2", 3.4, "known", date(2026, 6, 2))
    check = Checker()
    for day in (1, 2, 3, 4):
        cached_run(folder, check, "a", waivers=[waiver], today=date(2026, 6, day))
    assert check.names == ["a", "a"]  # on the first day, and on the first after the last


def test_a_file_that_changes_while_it_is_compared_is_not_kept(folder: Path) -> None:
    class Training(Checker):
        def __call__(self, original: str, converted: str, **options: Any) -> Report:
            made = super().__call__(original, converted, **options)
            Path(original).write_text(f"epoch {len(self.calls)}")
            return made

    check = Training()
    cached_run(folder, check, "a")
    (folder / "a.pth").write_text("a")  # as it was when it was hashed
    cached_run(folder, check, "a")
    assert check.names == ["a", "a"]


def test_what_has_no_digest_is_left_to_the_checker(folder: Path) -> None:
    (folder / "a" / "diffusion_pytorch_model.safetensors").unlink()
    check = Checker(a=InputError("in its own words"))
    (report,) = cached_run(folder, check, "a")
    assert report.reason == "in its own words"


def test_what_was_done_before_an_interrupt_is_kept(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        cached_run(folder, Checker(b=KeyboardInterrupt()))
    check = Checker()
    cached_run(folder, check)
    assert check.names == ["b", "c"]


# The exit code.


def test_the_worst_decides() -> None:
    order = {"INTERNAL": 5, "FAIL": 1, "REJECTED": 3, "INCONCLUSIVE": 4, "PASS": 0}
    for count in (1, 2, 3):
        for verdicts in itertools.product(VERDICTS, repeat=count):
            wanted = next(code for verdict, code in order.items() if verdict in verdicts)
            assert exit_code(Report(verdict, "") for verdict in verdicts) == wanted


def test_nothing_compared_is_no_success() -> None:
    assert exit_code([]) == 4
    assert exit_code(run([])) == 4
    assert exit_code([Report("PASS", ""), Report("NOT RUN", "")]) == 5
