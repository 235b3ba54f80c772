"""A hub that attacks: what it says of commits, contents and files leads nowhere, and our token nowhere else."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from makers import GOLDEN, convert
from server import Hub, Repo, etag, git_oid

from converter.errors import ConverterError, InputError
from converter.hub import local
from converter.hub.answers import UntrustedAnswer, check_same_repo, checked_commit, checked_names
from converter.publishing import push

CONTENT = b"not a checkpoint, only bytes"
SHA = "0123456789abcdef" * 2 + "01234567"
COMMITS = [
    *("../../../../x", "a/../../../../../../x", "/tmp/x", SHA[:39], SHA + "0", "0" * 64, SHA.upper(), "", "main"),
    *(f"{SHA}/x", f"./{SHA}", f"{SHA} {SHA}", "a" * 5000, "..\\..\\x"),
]
ETAGS = [
    *('"../../../../x"', "../../../../x", 'W/"../../x"', f'W/W/"{SHA}"', '""', f'"{SHA}', f'"{SHA[:39]}"', '"main"'),
    *(f'"{"0" * 63}"', f'"{SHA.upper()}"', f'"{SHA}/x"', '"' + "a" * 5000 + '"', f'"{SHA}", "../x"', '"..\\x"'),
]
NAMES = [
    *(
        "../x.pth",
        "a/../../../../x.pth",
        "/x.pth",
        "..\\x.pth",
        "C:/x.pth",
        "a/C:x.pth",
        "",
        "a//x.pth",
        ".",
        "x\0.pth",
    ),
    *("x\n.pth", "x\x1b[31m.pth", "x\x9b31m.pth", "x\ud800.pth", "x" * 2000 + ".pth", 5, None),
]


def shortened(value: object) -> str:
    return ascii(value)[:30]


def strays(home: Path) -> list[str]:
    """What lies in the cache or beside it and is not where the client puts things."""
    there = [path.relative_to(home).as_posix() for path in home.rglob("*") if not path.is_dir()]
    known = re.compile(
        r"hf/hub/(CACHEDIR\.TAG|models--owner--name/(blobs/([0-9a-f]{40}|[0-9a-f]{64})|refs/(main|[0-9a-f]{40})"
        r"|(snapshots|\.no_exist)/[0-9a-f]{40}/[\w.]+)|\.locks/models--owner--name/\w+\.lock)|out/.*|.*\.partial"
    )
    return [name for name in there if not known.fullmatch(name)]


def lying(hub: Hub, **headers: str) -> None:
    """Let every answer about files have these headers instead of the true ones."""
    hub.headers = lambda method, path, true: {**true, **headers} if "/resolve/" in path else true


@pytest.fixture(autouse=True)
def elsewhere(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    hub.add("owner/name", {"a.pth": CONTENT, "b.json": b"{}"})


def refuses(tmp_path: Path, place: str = "hf://owner/name/a.pth") -> str:
    with pytest.raises(InputError) as raised:
        local(place)
    assert raised.value.exit_code == 3
    assert strays(tmp_path) == []
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 400
    return str(raised.value)


@pytest.mark.parametrize("value", COMMITS, ids=shortened)
def test_a_commit_that_is_none(value: str, hub: Hub, tmp_path: Path) -> None:
    """Of a file, and of the whole repository."""
    place = "hf://owner/name/b.json"
    lying(hub, X_Repo_Commit=value)
    assert refuses(tmp_path, place).startswith(f"{place}: the hub's answer cannot be trusted")
    hub.headers = lambda method, path, true: true
    assert local(place).read_bytes()
    hub.log.clear()
    said = json.dumps({"id": "owner/name", "sha": value, "siblings": [{"rfilename": "a.pth"}]}).encode()
    hub.answer = lambda method, path: (200, said) if path.startswith("/api/models/") else None
    assert "which is not 40 hex digits" in refuses(tmp_path)
    assert not hub.asked("HEAD")


def test_a_commit_that_changes_its_mind(hub: Hub, tmp_path: Path) -> None:
    """The list of files names a true one; each file another one, true in form."""
    lying(hub, X_Repo_Commit=SHA)
    assert f"the commit '{SHA}', where " in refuses(tmp_path)


def test_a_commit_that_lies_only_once_the_branch_is_asked_for(hub: Hub, tmp_path: Path) -> None:
    lie = {"X_Repo_Commit": "../../../../../x"}
    hub.headers = lambda method, path, true: {**true, **lie} if "/resolve/main/" in path else true
    refuses(tmp_path)


@pytest.mark.parametrize("value", ["../../../../x", "../" * 9 + "x", "x/../../../y"])
def test_a_file_that_is_not_there_leaves_no_mark_outside(value: str, hub: Hub, tmp_path: Path) -> None:
    """The client notes that a file is missing, in a folder named like the commit."""
    true = hub.answer
    hub.answer = lambda method, path: (404, b"") if "/resolve/" in path else true(method, path)
    lying(hub, X_Repo_Commit=value, X_Error_Code="EntryNotFound")
    assert "which is not 40 hex digits" in refuses(tmp_path)


@pytest.mark.parametrize("value", ETAGS, ids=shortened)
@pytest.mark.parametrize(("name", "header"), [("b.json", "ETag"), ("a.pth", "X_Linked_ETag")])
def test_an_etag_that_is_none(name: str, header: str, value: str, hub: Hub, tmp_path: Path) -> None:
    lying(hub, **{header: value})
    assert "the ETag " in refuses(tmp_path, f"hf://owner/name/{name}")


def test_an_etag_on_a_redirect_counts_where_no_other_does(hub: Hub, tmp_path: Path) -> None:
    lie = {"X_Linked_ETag": "", "ETag": '"../../../x"'}
    hub.headers = lambda method, path, true: {**true, **lie} if "/resolve/" in path else true
    assert "the ETag " in refuses(tmp_path)


@pytest.mark.parametrize("form", ["{}", '"{}"', 'W/"{}"', "W/{}"])
@pytest.mark.parametrize("name", ["a.pth", "b.json"])
def test_an_etag_as_servers_write_it(name: str, form: str, hub: Hub, tmp_path: Path) -> None:
    """A cache on the way may weaken it."""
    data = hub.repos["owner/name"].files[name]
    said = form.format(etag(name, data))
    lying(hub, ETag=said, **({"X_Linked_ETag": said} if name == "a.pth" else {}))
    assert local(f"hf://owner/name/{name}").read_bytes() == data
    assert strays(tmp_path) == []


def test_a_hash_of_the_other_transfer(hub: Hub, tmp_path: Path) -> None:
    lying(hub, X_Xet_Hash="../../x", X_Xet_Refresh_Route=f"{hub.url}/x")
    assert "the Xet hash '../../x'" in refuses(tmp_path)


@pytest.mark.parametrize("value", NAMES, ids=shortened)
def test_a_file_name_that_is_none(value: Any, hub: Hub, tmp_path: Path) -> None:
    listing = {"id": "owner/name", "sha": SHA, "siblings": [{"rfilename": "a.pth"}, {"rfilename": value}]}
    said = json.dumps(listing).encode()
    hub.answer = lambda method, path: (200, said) if path.startswith("/api/models/") else None
    assert "not a plain path" in refuses(tmp_path)
    assert not hub.asked("HEAD")


@pytest.mark.parametrize(
    "said",
    [b"null", b"[]", b"3", b"{}", b'{"siblings": 3}', b'{"id": "x", "siblings": [{}]}', b'{"id": "x", "siblings": [3]}',
     b'{"id": "x", "sha": {}}', b'{"id": 5, "sha": 5}', b"{", b"", b"\xff\xfe", b"[" * 100_000,
     b'{"id": "x", "createdAt": "yesterday"}'],
)  # fmt: skip
def test_a_list_of_files_that_is_none(said: bytes, hub: Hub, tmp_path: Path) -> None:
    hub.answer = lambda method, path: (200, said) if path.startswith("/api/models/") else None
    assert refuses(tmp_path).startswith("hf://owner/name/a.pth: the hub's ")


def test_a_redirect_without_an_end(hub: Hub, tmp_path: Path) -> None:
    hub.answer = lambda method, path: (302, b"") if "/resolve/" in path else None
    hub.headers = lambda method, path, true: {**true, "Location": path} if "/resolve/" in path else true
    refuses(tmp_path)


@pytest.mark.parametrize("where", ["file:///etc/hostname", "ftp://127.0.0.1/x", "gopher:x", "//", "http://[", "\x01"])
def test_a_redirect_to_where_no_hub_is(where: str, hub: Hub, tmp_path: Path) -> None:
    lying(hub, Location=where)
    refuses(tmp_path)


class Elsewhere:
    """Another host, which keeps what it was told, and has the file."""

    def __enter__(self) -> Elsewhere:
        told = self.told = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                told.append({k.lower(): v for k, v in self.headers.items()} | {"path": self.path})
                self.send_response(200)
                self.send_header("Content-Length", str(len(CONTENT)))
                self.end_headers()
                self.wfile.write(CONTENT if self.command == "GET" else b"")

            do_HEAD = do_GET

            def log_message(self, *what: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://localhost:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *how: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    told: list[dict[str, str]]


@pytest.mark.parametrize("path", ["/resolve/", "/api/models/"])
def test_the_token_goes_to_no_other_host(path: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    with Elsewhere() as other:
        hub.answer = lambda method, asked: (302, b"") if path in asked else None
        hub.headers = lambda method, asked, true: (
            {**true, "Location": f"{other.url}/x", "X_Repo_Commit": next(reversed(hub.repos["owner/name"].commits)),
             "X_Linked_ETag": f'"{git_oid(CONTENT)}"', "X_Linked_Size": str(len(CONTENT))}
            if path in asked else true
        )  # fmt: skip
        try:
            assert local("hf://owner/name/a.pth").read_bytes() == CONTENT
        except InputError:
            assert path == "/api/models/"  # what the other host says is no list
        assert other.told
        assert not [asked for asked in other.told if "hf_writer" in str(asked)]
        assert any("hf_writer" in str(headers) for _, _, headers in hub.log)


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    return convert(GOLDEN / "sigma-ms.pth", tmp_path / "out").path


Attack = Callable[[Hub, Repo], object]


def another_repository(hub: Hub, repo: Repo) -> None:
    hub.add("somebody/else", {})
    said = f'{{"url": "{hub.url}/somebody/else", "name": "somebody/else"}}'.encode()
    hub.answer = lambda method, path: (200, said) if path == "/api/repos/create" else None


def no_head(hub: Hub, repo: Repo) -> None:
    repo.commits["../x"], repo.branches["main"] = repo.files, "../x"


def a_name(hub: Hub, repo: Repo) -> None:
    repo.commits[repo.branches["main"]]["../../x"] = b""


def a_list(hub: Hub, repo: Repo) -> None:
    hub.answer = lambda method, path: (200, b"[]") if path == "/api/repos/create" else None


@pytest.mark.parametrize("attack", [another_repository, no_head, a_name, a_list])
def test_nothing_is_published_where_the_hub_lies(attack: Attack, hub: Hub, out: Path, tmp_path: Path) -> None:
    repo = hub.repos["owner/name"]
    attack(hub, repo)
    with pytest.raises(ConverterError, match=r"^owner/name: the hub's ") as raised:
        push(out, "owner/name")
    assert len(repo.messages) == 1
    assert raised.value.exit_code == (5 if attack is a_list else 3)
    assert strays(tmp_path) == []


def test_a_published_commit_that_is_none(hub: Hub, out: Path) -> None:
    said = json.dumps({"commitUrl": f"{hub.url}/owner/name/commit/x", "commitOid": "../x", "success": True}).encode()
    hub.answer = lambda method, path: (200, said) if "/commit/" in path else None
    with pytest.raises(InputError, match=r"^owner/name: .*the commit '\.\./x', which is not 40 hex digits$"):
        push(out, "owner/name")


@given(st.text(st.sampled_from("0123456789abcdefABCg/.\\ \n"), min_size=38, max_size=42))
def test_only_forty_hex_digits_are_a_commit(text: str) -> None:
    right = len(text) == 40 and {*text} <= {*"0123456789abcdef"}
    try:
        taken = checked_commit(text) == text
    except UntrustedAnswer:
        taken = False
    assert taken == right


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["..", ".", "", "a", "C:", "b.c", "\\", "\0", "..."]), min_size=1, max_size=4))
def test_every_name_that_is_taken_stays_inside(tmp_path: Path, parts: list[str]) -> None:
    name = "/".join(parts)

    class Sibling:
        rfilename = name

    odd = {*parts} & {"..", ".", "", "C:", "\\", "\0"}
    try:
        (taken,) = checked_names([Sibling()])
    except UntrustedAnswer:
        taken = ""
    assert bool(taken) == (not odd)
    assert not taken or tmp_path in (tmp_path / taken).resolve().parents


def test_a_repository_may_be_asked_for_without_its_owner() -> None:
    check_same_repo("name", "owner/name")
    check_same_repo("owner/Name", "Owner/name")
    for asked, told in (("owner/name", "other/name"), ("name", "owner/other"), ("name", None), ("a/b", "x/a/b")):
        with pytest.raises(UntrustedAnswer):
            check_same_repo(asked, told)
