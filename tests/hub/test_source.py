"""Sources on the hub: what is fetched, what is not fetched again, and what is said where it cannot be had."""

from __future__ import annotations

import errno
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, file_download
from makers import (
    GOLDEN,
    Result,
    convert,
    diffusers_keyed,
    folder,
    launch,
    pixart,
    start,
    terminal,
    tree,
    within,
)
from server import Hub, sha256

import converter
from converter.errors import ConverterError, InputError, UsageError
from converter.hub import local

SIGMA = (GOLDEN / "sigma-ms.pth").read_bytes()
ALPHA = (GOLDEN / "alpha-ms.pth").read_bytes()
LINE = re.compile(r"pixart: error: [^\n]+\n")
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A conversion, as a repository would hold it."""
    out = tmp_path_factory.mktemp("made") / "out"
    return tree(convert(GOLDEN / "sigma-ms.pth", out).path)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The same under diffusers' keys, in three shards."""
    return tree(folder(diffusers_keyed(pixart()), tmp_path_factory.mktemp("made") / "model", {}, shards=3))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody waits before trying again; how long it would have been."""
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits


def test_a_repository_is_read_like_a_folder(hub: Hub, converted: Files) -> None:
    extra = {"README.md": b"#", "vae/config.json": b"{}", "vae/diffusion_pytorch_model.safetensors": b"no"}
    hub.add("owner/name", converted | extra | {"transformer/diffusion_pytorch_model.fp16.safetensors": b"no"})
    place = local("owner/name")
    assert tree(place) == converted
    with converter.open_checkpoint(place) as checkpoint:
        assert len(checkpoint) == 78
        assert checkpoint["proj_out.bias"].torch().shape == (32,)
    assert all(path.is_symlink() for path in place.rglob("*.*"))  # the cache keeps one copy of equal files


def test_shards_are_fetched_with_their_index(hub: Hub, sharded: Files) -> None:
    hub.add("owner/name", sharded | {"diffusion_pytorch_model.bin": b"no"})
    assert tree(local("hf://owner/name")) == sharded


def test_a_file_is_fetched_alone(hub: Hub) -> None:
    hub.add("owner/name", {"runs/a.pth": SIGMA, "b.pth": ALPHA})
    for text in ("hf://owner/name/runs/a.pth", "hf://owner/name@main/runs/a.pth", Path("hf://owner/name/runs/a.pth")):
        place = local(text)
        assert (place.name, place.read_bytes()) == ("a.pth", SIGMA)
    assert hub.downloads() == {f"/cdn/{sha256(SIGMA)}": 1}
    with pytest.raises(
        InputError, match=r"^owner/name: holds several checkpoints: name one of hf://owner/name/b\.pth, "
    ):
        local("owner/name")


def test_the_only_checkpoint_is_found(hub: Hub) -> None:
    hub.add("owner/name", {"runs/a.pth": SIGMA, "README.md": b"#", "runs/config.py": b""})
    for text in ("owner/name", "hf://owner/name/runs", "hf://owner/name/"):
        assert local(text).read_bytes() == SIGMA


def test_revisions(hub: Hub) -> None:
    repo = hub.add("owner/name", {"a.pth": SIGMA})
    first = repo.branches["main"]
    repo.commit({"a.pth": ALPHA, "b.txt": b""}, "another")
    repo.branches |= {"v1": first, "of/a/branch": first}
    assert local("owner/name").read_bytes() == ALPHA
    for revision in ("v1", "of%2Fa%2Fbranch", first):
        assert local(f"hf://owner/name@{revision}").read_bytes() == SIGMA
        assert local(f"hf://owner/name@{revision}/a.pth").read_bytes() == SIGMA
    with pytest.raises(InputError, match=r"^hf://owner/name@v2: the repository has no such branch, tag or commit$"):
        local("hf://owner/name@v2")


def test_a_conversion_of_it_is_that_of_the_file(hub: Hub, converted: Files, tmp_path: Path) -> None:
    hub.add("owner/name", {"sigma-ms.pth": SIGMA})
    done = convert(local("owner/name"), tmp_path / "out")
    assert tree(done.path) == converted


def test_the_target_is_checked_through_the_links_of_the_cache(hub: Hub, converted: Files, tmp_path: Path) -> None:
    hub.add("owner/name", converted)
    place = local("owner/name")
    before = tree(tmp_path / "hf")
    for target in (place, place / "new", place.parent, tmp_path / "hf", place.parents[1] / "blobs"):
        with pytest.raises(UsageError, match=r"input|not empty|links to"):
            converter.convert(place, target, overwrite=True)
    assert tree(tmp_path / "hf") == before


def test_nothing_is_fetched_twice(hub: Hub, converted: Files) -> None:
    hub.add("owner/name", converted)
    first = local("owner/name")
    assert sum(hub.downloads().values()) == 2
    hub.log.clear()
    assert local("owner/name") == first
    # What the revision is now, and that it is the one in the cache; nothing is sent.
    assert {method for method, path, _ in hub.log if path != "/api/models/owner/name"} == {"HEAD"}
    assert len(hub.log) == 2


def test_of_a_new_commit_only_what_is_new_is_fetched(hub: Hub, converted: Files) -> None:
    repo = hub.add("owner/name", converted)
    first = local("owner/name")
    config = {"transformer/config.json": converted["transformer/config.json"] + b"\n"}
    repo.commit(converted | config, "spaces")
    hub.log.clear()
    second = local("owner/name")
    assert second != first
    assert tree(second) == converted | config
    assert not hub.downloads()
    assert tree(first) == converted  # a conversion may still be reading it


def test_without_a_hub_the_cache_serves(hub: Hub, converted: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("owner/name", converted)
    hub.add("owner/file", {"a.pth": SIGMA, "b.pth": ALPHA})
    place, file = local("owner/name"), local("hf://owner/file/a.pth")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.log.clear()
    assert local("owner/name") == place
    assert local("hf://owner/file/a.pth") == file
    with pytest.raises(
        InputError, match=r"the cache does not show what else it holds: name one of hf://owner/file/a\.pth"
    ):
        local("owner/file")
    with pytest.raises(InputError, match=r"the file or folder is not in the cache, and the hub is out of reach$"):
        local("hf://owner/file/b.pth")
    with pytest.raises(
        InputError, match=r"^owner/other: not in the cache, and HF_HUB_OFFLINE is set, so the hub cannot be asked$"
    ):
        local("owner/other")
    assert hub.log == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.answer = lambda method, path: (503, b"down")
    assert local("owner/name") == place
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert local("owner/name") == place


def test_half_a_repository_in_the_cache_is_none(hub: Hub, sharded: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("owner/name", sharded)
    shard = next(name for name in sharded if "-00002-of" in name)
    (local("owner/name") / shard).unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=f"the shard {shard} that the index names is not in the cache, and the hub is"):
        local("owner/name")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert tree(local("owner/name")) == sharded


def test_what_broke_off_is_resumed(
    hub: Hub, impatient: list[float], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.add("owner/name", {"a.pth": SIGMA})
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)  # what arrives in smaller pieces is thrown away
    hub.cuts = [310_000, 210_000]
    assert local("owner/name").read_bytes() == SIGMA
    ranges = [headers.get("range") for method, path, headers in hub.log if "/cdn/" in path and method == "GET"]
    assert ranges == [None, "bytes=300000-", "bytes=500000-"]
    assert capfd.readouterr() == ("", "")  # the client's warnings are not for the user


def test_what_never_arrives_is_not_adopted(hub: Hub, impatient: list[float], tmp_path: Path) -> None:
    hub.add("owner/name", {"a.pth": SIGMA})
    hub.cuts = [100] * 40
    with pytest.raises(
        InputError, match=r"^owner/name: not in the cache, and the hub at http://.* the connection broke: "
    ):
        local("owner/name")
    assert not [path for path in (tmp_path / "hf").rglob("*") if path.name in ("a.pth", sha256(SIGMA))]
    hub.cuts = []
    assert local("owner/name").read_bytes() == SIGMA


def test_a_killed_download_leaves_nothing_that_is_believed(
    hub: Hub, environment: dict[str, str], tmp_path: Path
) -> None:
    """As a process of its own: half of the file is there when it ends, and the next run fetches what it needs."""
    hub.add("owner/name", {"a.pth": SIGMA})
    sent = hub.hold_after(400_000)
    process = start("pixart", "inspect", "owner/name", env=environment)
    assert sent.wait(60)
    process.kill()
    process.wait(60)
    hub.release()
    assert not list((tmp_path / "hf").rglob("a.pth"))
    result = launch("pixart", "inspect", "owner/name", env=environment)
    assert (result.returncode, result.stderr) == (0, "")
    assert [path.read_bytes() for path in (tmp_path / "hf").rglob("a.pth")] == [SIGMA]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk(hub: Hub, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub.add("owner/name", {"a.pth": SIGMA})

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(code, "it is full")

    with monkeypatch.context() as patched:
        patched.setattr(file_download, "http_get", full)
        with pytest.raises(ConverterError, match=r"^owner/name: cannot be stored: it is full \(HF_HOME sets") as raised:
            local("owner/name")
    assert raised.value.exit_code == 5
    assert not [path for path in (tmp_path / "hf").rglob("*") if path.name in ("a.pth", sha256(SIGMA))]
    assert local("owner/name").read_bytes() == SIGMA


def test_a_cache_that_cannot_be_written(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub.add("owner/name", {"a.pth": SIGMA})
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file/hub"))
    with pytest.raises(ConverterError, match=r"^owner/name: cannot be stored: .*Not a directory") as raised:
        local("owner/name")
    assert raised.value.exit_code == 5


def private(hub: Hub) -> None:
    hub.add("owner/name", {"a.pth": SIGMA}, private=True)


def gated(hub: Hub) -> None:
    hub.add("owner/name", {"a.pth": SIGMA}, gated=True)


def answering(status: int, body: bytes = b"") -> Callable[[Hub], None]:
    def prepare(hub: Hub) -> None:
        hub.answer = lambda method, path: (status, body)

    return prepare


LOG_IN = r"log in with `hf auth login`, or set HF_TOKEN$"
# how the hub is, the token, what is said
REFUSALS: dict[str, tuple[Callable[[Hub], object], str, str]] = {
    "no repository": (lambda hub: None, "", rf"the hub has no such model repository, or it is private: {LOG_IN}"),
    "none, logged in": (lambda hub: None, "hf_reader", "the hub has no such model repository, or it is private: "),
    "private": (private, "", rf"the hub has no such model repository, or it is private: {LOG_IN}"),
    "gated": (gated, "", rf"gated: ask for access on its page on the hub, and {LOG_IN}"),
    "gated, logged in": (gated, "hf_reader", "gated: ask for access on its page on the hub, and "),
    "a wrong token": (private, "hf_old", rf"the hub does not accept the token \(Invalid cred.*\): {LOG_IN}"),
    "forbidden": (answering(403, b'{"error": "blocked"}'), "", r"the hub does not allow it \(blocked\)$"),
    "broken": (answering(500), "", "the hub answers with status 500"),
    "too often": (answering(429), "", "the hub answers with status 429"),
    "moved": (answering(410, b"gone"), "", "the hub answers with status 410"),
    "no hub": (answering(200, b"<html>hello\nworld</html>"), "", "the hub"),
    "empty": (lambda hub: hub.add("owner/name", {}), "", "holds no weights: looked for"),
    "no weights": (lambda hub: hub.add("owner/name", {"README.md": b""}), "", "holds no weights: looked for"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name: str, hub: Hub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    prepare, token, words = REFUSALS[name]
    prepare(hub)
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(InputError, match=f"^owner/name: {words}") as raised:
        local("owner/name")
    assert str(raised.value).isprintable()
    assert capfd.readouterr() == ("", "")


def test_a_private_repository_with_a_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    private(hub)
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert local("owner/name").read_bytes() == SIGMA


def test_no_hub_at_all(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    words = r"^owner/name: not in the cache, and the hub at http://127\.0\.0\.1:9 cannot be"
    with within(30), pytest.raises(InputError, match=words):
        local("owner/name")


def test_a_hub_that_does_not_answer(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    over = threading.Event()
    hub.answer = lambda method, path: (503, b"too late") if over.wait(60) else None
    with pytest.raises(InputError, match=r"cannot be reached, or the connection broke: .*[Tt]imed out"):
        local("owner/name")
    over.set()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "not valid JSON: Expecting property name"),
        (b"[]", "weight_map: missing"),
        (b'{"weight_map": {}}', "weight_map: missing, empty"),
        (b'{"weight_map": {"a": "b.safetensors"}}', "the shard b.safetensors that the index names is not in the rep"),
        (b'{"weight_map": {"a": "../b.safetensors"}}', r"the shard \.\./b.safetensors that the index names is not"),
        (b'{"weight_map": {"a": 3}}', "the shard 3 that the index names is not in the repository"),
    ],
)
def test_an_index_that_makes_no_sense(content: bytes, words: str, hub: Hub) -> None:
    hub.add("owner/name", {"diffusion_pytorch_model.safetensors.index.json": content, "config.json": b"{}"})
    with pytest.raises(InputError, match=words), converter.open_checkpoint(local("owner/name")):
        pass


def test_the_client_is_left_as_it_was(hub: Hub) -> None:
    import logging
    import warnings

    from huggingface_hub.utils import are_progress_bars_disabled

    hub.add("owner/name", {"a.pth": SIGMA})
    before = logging.getLogger("huggingface_hub").level, [*warnings.filters], are_progress_bars_disabled()
    local("owner/name", quiet=True)
    with pytest.raises(InputError):
        local("owner/none")
    assert (logging.getLogger("huggingface_hub").level, warnings.filters, are_progress_bars_disabled()) == before


def test_inspect(hub: Hub, converted: Files, cli: Callable[..., Result]) -> None:
    hub.add("owner/name", converted)
    hub.add("owner/file", {"a.pth": SIGMA})
    for text, kind in (("owner/name", "folder of safetensors"), ("hf://owner/file/a.pth", "torch archive")):
        result = cli("pixart", "inspect", text)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.startswith(f"source: {text}, ")
        assert kind in result.stdout.splitlines()[0]
    result = cli("pixart", "inspect", "hf://owner/file", "--json")
    assert '"name": "hf://owner/file"' in result.stdout
    for text, code in (("owner/none", 3), ("hf://owner", 2), ("hf://owner/file/b.pth", 3)):
        result = cli("pixart", "inspect", text)
        assert (result.returncode, result.stdout) == (code, "")
        assert LINE.fullmatch(result.stderr)
        assert text in result.stderr


def test_inspect_as_a_process_of_its_own(hub: Hub, environment: dict[str, str]) -> None:
    """HF_ENDPOINT and HF_HOME hold, and the client says nothing of what it does, nor of what it does again."""
    hub.add("owner/name", {"a.pth": SIGMA})
    hub.cuts = [1000]
    result = launch("pixart", "inspect", "owner/name", env=environment)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("source: owner/name, ")
    result = launch("pixart", "inspect", "owner/name", env=environment | {"HF_HUB_OFFLINE": "1"})
    assert result.returncode == 3
    assert "name one of hf://owner/name/a.pth" in result.stderr
    result = launch("pixart", "inspect", "hf://owner/name/a.pth", env=environment | {"HF_HUB_OFFLINE": "1"})
    assert (result.returncode, result.stderr) == (0, "")


def test_a_progress_bar_on_a_terminal(hub: Hub, environment: dict[str, str]) -> None:
    hub.add("owner/name", {"a.pth": SIGMA})
    code, out, shown = terminal("pixart", "inspect", "owner/name", env=environment)
    assert code == 0
    assert out.startswith("source: owner/name, ")
    assert re.search(rb"\d+%\|.*\d+k/\d+k", shown)
    code, _, shown = terminal("pixart", "inspect", "owner/name", env=environment)
    assert (code, shown) == (0, b"")  # nothing to wait for
