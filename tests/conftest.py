"""What several test modules share: the command line inside this process, and the repository as the current folder."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]  # the package uninstalled, and `makers` from every test module

# How long an example takes says more about the machine than about what is tested. All else is as it was: in CI the
# examples are the same each time.
settings.register_profile("untimed", settings(), deadline=None)
settings.load_profile("untimed")

# In the background of a script, or under nohup, these are ignored, and so they would be by every process started here.
for _number, _action in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _action)


@pytest.fixture(autouse=True, scope="module")
def kept() -> None:
    """What is imported by now stays: the collector need not go through torch's and diffusers' objects again and again,
    which takes it half a second each time."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones first: at the end, nothing would be left to run beside them."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`cli("convert-pixart", flag, ...)` inside this process: the same code from the first argument on."""
    from converter.cli.main import convert, pixart, run

    commands = {"convert-pixart": convert, "pixart": pixart}

    def call(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        code = run(commands[name], name, [str(argument) for argument in arguments])
        printed = capfd.readouterr()
        return subprocess.CompletedProcess(name, code, printed.out, printed.err)

    return call


@pytest.fixture
def in_root(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder is the repository's root, as the examples take it to be."""
    monkeypatch.chdir(ROOT)
    return ROOT


@pytest.fixture
def no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no repair is asked about, none is looked for: it takes most of the time of a FAIL."""
    monkeypatch.setattr("converter.parity.localise.MENDED", 0)
