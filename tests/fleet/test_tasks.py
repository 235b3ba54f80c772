"""Any executor gives what no executor gives: the same outcomes in the order of the pairs, and errors in words."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from deadly import Deadly
from makers import GOLDEN, HEADS, pixart, save, tree

import converter
from converter import Pair
from converter.conversion.batch import Outcome, StepResult
from converter.errors import InputError, UsageError
from converter.fleet import do_all
from converter.parity import checker
from converter.parity.ci import check_all
from converter.parity.ci.cache import Cache
from converter.reports.report import Report

STATED = {"num_attention_heads": HEADS}


class Counting(ThreadPoolExecutor):
    """Threads that count what they are given."""

    count = 0

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        self.count += 1
        return super().submit(*args, **kwargs)


class Refusing(Executor):
    """An executor that takes nothing."""

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        raise RuntimeError("cannot schedule new futures:\nno room")


class Job:
    """A future as those of `submitit`, which are none of `concurrent.futures`: they are asked again and again."""

    def __init__(self, task: Callable[[], Any]) -> None:
        self.task, self.asked = task, 0

    def done(self) -> bool:
        self.asked += 1
        return self.asked > 2

    def exception(self) -> BaseException | None:
        return None

    def result(self) -> Any:
        return self.task()

    def cancel(self) -> None: ...


class Jobs:
    """An executor in all but its class."""

    def submit(self, task: Callable[..., Any], *args: Any) -> Job:
        return Job(lambda: task(*args))


def plain(outcomes: list[Outcome]) -> list[tuple[Any, ...]]:
    """What does not depend on where it was done."""
    return [(o.pair, o.status, o.exit_code, bool(o.words), o.notes, [*o.results], o.failed_step) for o in outcomes]


@pytest.fixture
def pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Relative paths of four checkpoints, of which one is refused, and one would go where another one goes."""
    monkeypatch.chdir(tmp_path)
    for i in (1, 2, 4):
        save(pixart(seed=i), tmp_path / f"{i}.pth")
    (tmp_path / "3.pth").write_bytes(b"<html>")
    return [("1.pth", "out/1"), ("2.pth", "out/2"), ("3.pth", "out/3"), ("4.pth", "out/1")]


@pytest.fixture(params=["threads", "processes", "jobs"])
def executor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if request.param == "jobs":
        yield Jobs()
        return
    kinds: dict[str, Callable[[], Executor]] = {
        "threads": lambda: ThreadPoolExecutor(2),
        # Of these, no relative path leads to what it means here.
        "processes": lambda: ProcessPoolExecutor(
            1, get_context("spawn"), initializer=os.chdir, initargs=(tmp_path_factory.mktemp("elsewhere"),)
        ),
    }
    with kinds[request.param]() as executor:
        yield executor


def test_the_same_as_without(pairs: list[tuple[str, str]], executor: Any, tmp_path: Path) -> None:
    told: list[str] = []
    options: dict[str, Any] = {
        "hyper_parameters": STATED,
        "finished": lambda outcome, step: told.append(outcome.status),
    }
    outcomes = converter.convert_all(pairs, executor=executor, **options)
    assert [outcome.status for outcome in outcomes] == ["converted", "converted", "failed", "failed"]
    assert sorted(told) == sorted(outcome.status for outcome in outcomes)
    assert [outcome.exit_code for outcome in outcomes] == [0, 0, 3, 2]
    assert outcomes[2].words.endswith(
        "3.pth: offset 0: this is an HTML or XML page, not the weights (a failed download?)"
    )
    assert [outcome.status for outcome in converter.convert_all(pairs, executor=executor, **options)][:2] == (
        ["unchanged"] * 2
    )
    first = tree(tmp_path / "out")
    for target in ("1", "2"):
        (tmp_path / "out" / target).rename(tmp_path / f"was-{target}")
    assert plain(converter.convert_all(pairs, **options)) == plain(outcomes)
    assert tree(tmp_path / "out") == first


def step(outcome: Outcome, name: str) -> StepResult:
    if Path(outcome.pair.original).name == "2.pth":  # the name alone: an executor is given the whole path
        raise InputError(f"{name} refuses it")
    return StepResult(name, [name])


def test_what_is_told_of_steps_is_the_same(pairs: list[tuple[str, str]]) -> None:
    told: dict[bool, list[tuple[str, str, bool]]] = {True: [], False: []}
    steps = {name: partial(step, name=name) for name in ("one", "two")}
    for alone, known in told.items():

        def finished(outcome: Outcome, name: str, known: Any = known) -> None:
            known.append((outcome.pair.original, name, bool(outcome.words) and outcome.failed_step == name))

        targets = [(original, f"{target}-{alone}") for original, target in pairs[:3]]
        how: dict[str, Any] = {"steps": steps, "finished": finished, "executor": None if alone else Jobs()}
        converter.convert_all(targets, None, STATED, **how)
    assert told[True] == told[False]
    assert told[True] == [
        ("1.pth", "", False), ("1.pth", "one", False), ("1.pth", "two", False),
        ("2.pth", "", False), ("2.pth", "one", True),
        ("3.pth", "", True),
    ]  # fmt: skip


def test_one_that_is_not_among_several_is_raised(pairs: list[tuple[str, str]]) -> None:
    with ThreadPoolExecutor(1) as executor, pytest.raises(InputError, match="offset 0"):
        converter.convert_all(pairs[2:3], executor=executor, several=False)


def test_an_executor_that_takes_nothing(pairs: list[tuple[str, str]]) -> None:
    outcomes = converter.convert_all(pairs[:2], None, STATED, executor=Refusing())
    words = "no worker could do it (RuntimeError: cannot schedule new futures: no room)"
    assert [(outcome.exit_code, outcome.words) for outcome in outcomes] == [
        (5, f"1.pth: {words}"),
        (5, f"2.pth: {words}"),
    ]
    (report,) = check_all([(str(GOLDEN / "sigma-ms.pth"), str(GOLDEN))], executor=Refusing())
    assert (report.verdict, report.reason) == ("INTERNAL", words)


def test_a_pool_that_breaks_ends_in_outcomes(tmp_path: Path) -> None:
    (tmp_path / "seen").mkdir()
    pairs = [(str(GOLDEN / "sigma-ms.pth"), str(tmp_path / f"t{i}")) for i in range(3)]
    with ProcessPoolExecutor(1, get_context("spawn")) as executor:
        outcomes = converter.convert_all(
            pairs, None, STATED, components=Deadly(tmp_path / "seen", {"t1": 9}), executor=executor
        )
    assert [outcome.status for outcome in outcomes] == ["converted", "failed", "failed"]
    assert outcomes[2].words.startswith(
        f"{pairs[2][0]}: no worker could do it (BrokenProcessPool: A process in the process pool was "
    )
    assert (tmp_path / "t0").exists()
    assert not (tmp_path / "t1").exists()


@pytest.mark.parametrize(("error", "words"), [
    (ModuleNotFoundError("No module named 'converter'"),
     "no worker could do it (ModuleNotFoundError: No module named 'converter')"),
    (KeyboardInterrupt(), "no worker could do it (KeyboardInterrupt: )"),
    (OSError("connection\nlost"), "no worker could do it (OSError: connection lost)"),
])  # fmt: skip
def test_what_became_of_a_future(error: BaseException, words: str) -> None:
    class Failing(Executor):
        def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_exception(error)
            return future

    results: list[Any] = []
    do_all(int, [(0, ("1",))], lambda key, result: results.append(result), Failing())
    assert [(type(result), str(result)) for result in results] == [(converter.ConverterError, words)]


def test_what_was_cancelled_elsewhere() -> None:
    class Cancelling(Executor):
        def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.cancel()
            return future

    results: list[Any] = []
    do_all(int, [(0, ("1",))], lambda key, result: results.append(result), Cancelling())
    assert str(results[0]) == "no worker could do it (CancelledError: )"


def test_an_interrupt_takes_back_what_has_not_begun() -> None:
    """Of the executor of somebody else, which goes on."""
    results = list[Any]()

    def work() -> Iterator[tuple[int, tuple[str]]]:
        yield 0, ("1",)
        yield 1, ("2",)
        raise KeyboardInterrupt

    with ThreadPoolExecutor(1) as executor:
        busy = threading.Event()
        waiting = executor.submit(busy.wait)
        with pytest.raises(KeyboardInterrupt):
            do_all(print, work(), lambda key, result: results.append(result), executor)
        busy.set()
        assert waiting.result()
    assert results == []


# Comparisons.


class Checker:
    """Stands in for `check`: says when two of them ran at once."""

    def __init__(self) -> None:
        self.running, self.most, self.names = 0, 0, list[str]()

    def __call__(self, original: str, converted: str, **options: Any) -> Report:
        self.running += 1
        self.most = max(self.most, self.running)
        time.sleep(0.05)
        self.running -= 1
        self.names.append(Path(original).stem)
        if "b" in self.names[-1]:
            raise UsageError("`weights` ema: none there")
        return Report("PASS", "all is well", run={"original": original, "converted": converted})


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    monkeypatch.chdir(tmp_path)
    for name in "abcd":
        (tmp_path / f"{name}.pth").write_text(name)
        (tmp_path / name).mkdir()
        (tmp_path / name / "diffusion_pytorch_model.safetensors").write_text(name)
        (tmp_path / name / "config.json").write_text("{}")
    return [(f"{name}.pth", name) for name in "abcd"]


def test_only_what_no_cache_has_is_given_away(models: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    check = Checker()
    monkeypatch.setattr(checker, "check", check)
    told: list[str] = []
    with Counting(3) as executor:
        for count in (4, 5):  # what was refused is in no cache
            reports = check_all(
                models,
                executor=executor,
                cache=Cache("cache.json"),
                done=lambda pair, report: told.append(pair.original),
            )
            assert [report.verdict for report in reports] == ["PASS", "REJECTED", "PASS", "PASS"]
            assert [(report.run["original"], report.run["converted"]) for report in reports] == models
            assert executor.count == count
    assert reports[1].reason == "invalid arguments: --weights ema: none there"
    assert sorted(told) == sorted([original for original, _ in models] * 2)
    assert [bool(report.run.get("cached")) for report in reports] == [True, False, True, True]
    assert check.most == 1  # torch's settings are those of the whole process


def test_failures_are_saved_where_they_were_asked_for(
    models: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(
        checker, "check", lambda *sides, save_failing, **options: seen.append(save_failing) or Report("FAIL", "bad")
    )
    with ThreadPoolExecutor(1) as executor:
        check_all([Pair(*sides, {"save_failing": "bad"}) for sides in models[:2]], executor=executor)
    assert seen == [str(tmp_path / "bad" / "1-a"), str(tmp_path / "bad" / "2-b")]


@pytest.mark.slow
def test_converted_and_compared_by_workers(tmp_path: Path, cli: Callable[..., Any]) -> None:
    call = [GOLDEN / "sigma-ms.pth", GOLDEN / "alpha-ms.pth", f"{tmp_path}/{{stem}}", "--num_attention_heads", HEADS]
    done = cli("convert-pixart", *call, "--parity", "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "summary: 2 converted, 0 unchanged, 0 failed; parity: 2 PASS"
    assert (tmp_path / "sigma-ms" / "parity.json").exists()
    again = cli("convert-pixart", *call, "--parity", "--workers", 2)
    assert again.stdout.splitlines()[-1] == "summary: 0 converted, 2 unchanged, 0 failed; parity: 2 PASS"
