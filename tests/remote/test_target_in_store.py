"""A target in a store is complete or absent, whatever fails, and nobody's work is lost."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from makers import GOLDEN, Result, convert, tree

from converter.checkpoint.write.interrupt import Interrupted, interruptible
from converter.conversion.up_to_date import is_up_to_date
from converter.errors import ConverterError, UsageError

SIGMA = GOLDEN / "sigma-ms.pth"
URL = "watched://lab/out/sigma"
HEADS = {"num_attention_heads": 4}
FILES = 4  # of a conversion
Cli = Callable[..., Result]


def there(store: Any, url: str = "watched://lab") -> dict[str, bytes]:
    """What lies in the store, without the folder of the target."""
    files = store().find(url)
    return {name.removeprefix("/lab/out/sigma/"): store().cat(name) for name in files}


def test_it_is_what_a_conversion_here_is_and_the_record_comes_last(watched: Any, tmp_path: Path) -> None:
    done = convert(SIGMA, URL)
    here = tree(convert(SIGMA, tmp_path / "here").path)
    assert there(watched) == here
    assert done.path == URL
    assert [name.rpartition("/")[2] for name in watched.written][-1] == "conversion.json"
    assert done.notes[-1] == f"{URL}: 4 files sent, what lies there proven by reading it back"
    assert is_up_to_date(SIGMA, URL, hyper_parameters=HEADS) == []
    back = convert(URL, "watched://lab/back.pth", to="original")
    convert(tmp_path / "here", tmp_path / "back.pth", to="original")
    assert watched().cat("/lab/back.pth") == (tmp_path / "back.pth").read_bytes()
    assert back.path == "watched://lab/back.pth"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("number", range(1, FILES + 1))
def test_where_one_is_not_taken_nothing_is_left(number: int, overwrite: bool, watched: Any) -> None:
    before: dict[str, bytes] = {}
    if overwrite:
        convert(SIGMA, URL)
        watched.written.clear()
        before = there(watched)

    def fail(count: int) -> None:
        if count == number:
            raise ConnectionError("the store went away")

    watched.on_write = staticmethod(fail)
    with pytest.raises(ConverterError) as failed:
        convert(SIGMA, URL, overwrite=overwrite)
    assert str(failed.value) == f"{URL}: cannot be written: the store cannot be reached (the store went away)"
    assert failed.value.exit_code == 5
    assert there(watched) == before  # the old one, whole


def test_an_interrupt_leaves_nothing(watched: Any) -> None:
    watched.on_write = staticmethod(lambda count: signal.raise_signal(signal.SIGTERM) if count == 3 else None)
    with pytest.raises(Interrupted), interruptible():
        convert(SIGMA, URL)
    assert there(watched) == {}


def test_what_is_kept_from_us_is_the_calls_fault(watched: Any) -> None:
    def refuse(count: int) -> None:
        raise PermissionError("Access Denied")

    watched.on_write = staticmethod(refuse)
    with pytest.raises(UsageError, match=f"^{URL}: cannot be written: the store allows no access"):
        convert(SIGMA, URL)
    assert there(watched) == {}


def test_what_arrives_otherwise_is_not_left(watched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = "/lab/out/sigma/transformer/config.json"
    real = watched.cat_file

    def damaged(self: Any, path: str, *args: Any, **kwargs: Any) -> bytes:
        data: bytes = real(self, path, *args, **kwargs)
        return data[:-1] + b" " if path == config else data

    monkeypatch.setattr(watched, "cat_file", damaged)
    with pytest.raises(ConverterError, match=r"config\.json: what lies there is not what was sent") as failed:
        convert(SIGMA, URL)
    assert failed.value.exit_code == 5
    assert there(watched) == {}


def test_an_existing_one_needs_to_be_ours_and_to_be_told(watched: Any) -> None:
    convert(SIGMA, URL)
    before = there(watched)
    with pytest.raises(UsageError, match=f"^{URL}: exists and is not empty; use `overwrite` to replace it"):
        convert(SIGMA, URL)
    watched().pipe_file(f"{URL}/notes.txt", b"mine")
    with pytest.raises(UsageError, match=f"^{URL}: is not empty, and is kept: .* no record of, notes.txt"):
        convert(SIGMA, URL, overwrite=True)
    assert there(watched) == before | {"notes.txt": b"mine"}
    watched().rm_file(f"{URL}/notes.txt")
    convert(SIGMA, URL, overwrite=True, max_shard_size="200KB")
    files = there(watched)
    assert "transformer/diffusion_pytorch_model.safetensors" not in files
    assert "transformer/diffusion_pytorch_model.safetensors.index.json" in files


def test_a_file_that_comes_in_the_meantime_is_kept(watched: Any) -> None:
    def meanwhile(total: int) -> Callable[[int], None]:
        watched().pipe_file(f"{URL}/theirs", b"1")
        return lambda count: None

    with pytest.raises(UsageError, match="was changed by someone else in the meantime"):
        convert(SIGMA, URL, progress=meanwhile)
    assert there(watched) == {"theirs": b"1"}


def test_a_file_that_is_there_stays_until_another_takes_its_place(watched: Any) -> None:
    url = "watched://lab/back.pth"
    folder = convert(SIGMA, URL).path
    watched().pipe_file(url, b"old")
    with pytest.raises(UsageError, match=f"^{url}: exists; use `overwrite`"):
        convert(folder, url, to="original")
    watched.on_write = staticmethod(lambda count: (_ for _ in ()).throw(ConnectionError("gone")))
    with pytest.raises(ConverterError):
        convert(folder, url, to="original", overwrite=True)
    assert watched().cat(url) == b"old"
    watched.on_write = staticmethod(lambda count: None)
    convert(folder, url, to="original", overwrite=True)
    assert len(watched().cat(url)) > 800_000


@pytest.mark.parametrize("source", [URL, f"{URL}/transformer", "watched://lab"])
def test_it_does_not_lie_in_its_source(source: str, watched: Any) -> None:
    convert(SIGMA, URL)
    with pytest.raises(UsageError, match=f"^{URL}: is the input, holds it, or lies inside it"):
        convert(source, URL, overwrite=True)


def test_a_dry_run_tells_what_is_there_and_sends_nothing(watched: Any) -> None:
    convert(SIGMA, URL)
    watched.written.clear()
    done = convert(SIGMA, URL, dry_run=True)
    assert f"{URL} exists: a conversion needs --overwrite, which replaces it" in done.notes
    assert watched.written == []


def test_many_by_a_glob_and_again(watched: Any, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sigma/checkpoints/epoch_9.pth", "sigma/checkpoints/epoch_10.pth", "beta/step_1.pth"):
        watched().pipe_file(f"watched://runs/{name}", SIGMA.read_bytes() if "sigma" in name else b"half of it")
    command = ("convert-pixart", "watched://runs/**/*.pth", "watched://lab/{run}/{stem}", "--num_attention_heads", "4")
    done = cli(*command)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert "watched://runs/beta/step_1.pth: offset 0: this is text" in done.stderr
    first = done.stdout.index("-> watched://lab/sigma/epoch_9\n")
    assert first < done.stdout.index("-> watched://lab/sigma/epoch_10\n")
    assert done.stdout.endswith("summary: 2 converted, 0 unchanged, 1 failed\n")
    assert cli(*command).stdout.endswith("summary: 0 converted, 2 unchanged, 1 failed\n")
    none = cli("convert-pixart", "watched://runs/*.bin", "watched://lab/{stem}")
    assert (none.returncode, "watched://runs/*.bin: matches no checkpoint" in none.stderr) == (2, True)


def test_what_another_run_put_there_meanwhile_is_not_deleted(watched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that does not find its own when it reads it back deletes what is its own only."""
    real, theirs = watched.cat_file, b"of another run"

    def read_back(self: Any, path: str, *args: Any, **kwargs: Any) -> bytes:
        watched().pipe_file("/lab/out/sigma/conversion.json", theirs)
        data: bytes = real(self, path, *args, **kwargs)
        return data[:-1]

    with monkeypatch.context() as patched:
        patched.setattr(watched, "cat_file", read_back)
        with pytest.raises(ConverterError, match="what lies there is not what was sent"):
            convert(SIGMA, URL)
    assert there(watched) == {"conversion.json": theirs}
