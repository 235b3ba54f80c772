"""A hub on loopback: the part of its HTTP protocol that `huggingface_hub` speaks for model repositories.

Large files live in a store of their own, by SHA-256, and are served under another host name, as the real ones are.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
TOKENS = {"hf_writer": "write", "hf_reader": "read"}
Files = dict[str, bytes]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def etag(name: str, data: bytes) -> str:
    return sha256(data) if name.endswith(LARGE) else git_oid(data)


@dataclass
class Repo:
    """One repository: commits by their SHA, what each branch points to."""

    private: bool = False
    gated: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: Files, message: str = "", branch: str = "main") -> str:
        sha = hashlib.sha1(f"{len(self.commits)} {message} {sorted(files)}".encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.branches[branch] = sha
        self.messages.append(message)
        return sha

    def resolve(self, revision: str) -> str | None:
        sha = self.branches.get(revision, revision)
        return sha if sha in self.commits else None

    @property
    def files(self) -> Files:
        return self.commits[self.branches["main"]]


class Hub:
    """The server: start it with `with Hub() as hub`, and look at what was asked in `hub.log`."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.log: list[tuple[str, str, dict[str, str]]] = []
        self.cuts: list[int] = []  # after how many bytes of a large file the next connections break off
        # Instead of the true one.
        self.answer: Callable[[str, str], tuple[int, bytes] | None] = lambda method, path: None
        # What is said in headers, instead of the true ones: (method, path, headers) -> headers.
        self.headers: Callable[[str, str, dict[str, str]], dict[str, str]] = lambda method, path, headers: headers
        self._held: tuple[int, threading.Event, threading.Event] | None = None
        self.on_commit: Callable[[Repo], None] = lambda repo: None
        self.failures: list[BaseException] = []  # of this server itself
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.hub = self
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *how: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        assert not self.failures

    def add(self, name: str, files: Files, **how: Any) -> Repo:
        repo = self.repos[name] = Repo(**how)
        repo.commit({".gitattributes": b"", **files}, "initial commit")
        return repo

    def hold_after(self, count: int) -> threading.Event:
        """Send that much of a large file and no more until `release`; the event says that it is sent."""
        self._held = count, threading.Event(), threading.Event()
        return self._held[1]

    def release(self) -> None:
        assert self._held
        self._held[2].set()
        self._held = None

    def asked(self, method: str, part: str = "") -> list[str]:
        return [path for m, path, _ in self.log if m == method and part in path]

    def downloads(self) -> Counter[str]:
        """How often each large file, or a part of it, was sent."""
        return Counter(self.asked("GET", "/cdn/"))


class _Server(ThreadingHTTPServer):
    hub: Hub
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Kept for the end of the test: printed from a thread, it would end in whatever a test is capturing then."""
        error = sys.exc_info()[1]
        if error and not isinstance(error, ConnectionError):  # clients may hang up when they like
            self.hub.failures.append(error)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms for the header to be acknowledged
    routes: tuple[tuple[str, str, str], ...] = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("POST", r"/api/repos/create", "create"),
        ("GET", r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", "info"),
        ("POST", r"/api/models/([^/]+/[^/]+)/branch/(.+)", "branch"),
        ("POST", r"/api/models/([^/]+/[^/]+)/preupload/(.+)", "preupload"),
        ("POST", r"/api/models/([^/]+/[^/]+)/commit/(.+)", "commit"),
        ("POST", r"/api/models/([^/]+/[^/]+)/paths-info/(.+)", "paths_info"),
        ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/lfs/([0-9a-f]{64})", "store"),
        ("POST", r"/lfs/verify", "verify"),
        ("GET", r"/cdn/([0-9a-f]{64})", "cdn"),
        ("GET", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve"),
    )

    def log_message(self, *what: object) -> None:
        pass

    def _handle(self) -> None:
        path = urlsplit(self.path).path
        self.hub.log.append((self.command, unquote(path), {k.lower(): v for k, v in self.headers.items()}))
        self.body = self._read()
        if instead := self.hub.answer(self.command, path):
            return self._send(*instead)
        method = "GET" if self.command == "HEAD" else self.command
        for known, pattern, name in self.routes:
            if known == method and (found := re.fullmatch(pattern, path)):
                return getattr(self, f"_{name}")(*(unquote(part) if part else None for part in found.groups()))
        return self._send(404, b"no such route")

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, status: int, data: bytes = b"", **headers: str) -> None:
        headers = self.hub.headers(self.command, unquote(urlsplit(self.path).path), headers)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", headers.pop("size", str(len(data))))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), Content_Type="application/json")

    def _error(self, status: int, code: str, message: str = "") -> None:
        self._send(status, json.dumps({"error": message}).encode(), X_Error_Code=code, X_Error_Message=message)

    # Who is asking, and for which repository.

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _may_write(self) -> bool:
        role = TOKENS.get(self.token)
        if role is None:
            self._error(401, "", "Invalid username or password.")
        elif role != "write":
            self._error(403, "", "you need write access")
        return role == "write"

    def _repo(self, name: str) -> Repo | None:
        repo = self.hub.repos.get(name)
        if self.token and self.token not in TOKENS:
            self._error(401, "", "Invalid credentials in Authorization header")
        elif repo is None or (repo.private and not self.token):
            self._error(404 if self.token else 401, "RepoNotFound" if self.token else "", "Repository not found")
        else:
            return repo
        return None

    def _at(self, name: str, revision: str | None) -> tuple[Repo, str] | None:
        repo = self._repo(name)
        sha = repo.resolve(revision or "main") if repo else None
        if repo and sha is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return (repo, sha) if repo and sha else None

    # Reading.

    def _whoami(self) -> None:
        if self.token not in TOKENS:
            return self._error(401, "", "Invalid credentials in Authorization header")
        role = TOKENS[self.token]
        return self._json({"name": "owner", "type": "user", "auth": {"accessToken": {"role": role}}})

    def _info(self, name: str, revision: str | None) -> None:
        if found := self._at(name, revision):
            repo, sha = found
            siblings = [{"rfilename": path} for path in repo.commits[sha]]
            self._json({"id": name, "sha": sha, "private": repo.private, "siblings": siblings})

    def _resolve(self, name: str, revision: str, path: str) -> None:
        found = self._at(name, revision)
        if not found:
            return None
        repo, sha = found
        if repo.gated:
            return self._error(403 if self.token else 401, "GatedRepo", f"Access to model {name} is restricted")
        data = repo.commits[sha].get(path)
        if data is None:
            return self._error(404, "EntryNotFound", "Entry not found")
        common = {"X_Repo_Commit": sha, "ETag": f'"{etag(path, data)}"'}
        if not path.endswith(LARGE):
            return self._send(200, data, **common)
        self.hub.large[sha256(data)] = data
        where = f"http://localhost:{self.hub.port}/cdn/{sha256(data)}"
        linked = {"X_Linked_ETag": f'"{sha256(data)}"', "X_Linked_Size": str(len(data))}
        return self._send(302, b"", Location=where, **common, **linked)

    def _cdn(self, oid: str) -> None:
        data = self.hub.large[oid]
        start, status, headers = 0, 200, {}
        if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start, status = int(found[1]), 206
            headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        held = self.hub._held
        if not self.hub.cuts and not held:
            return self._send(status, data[start:], ETag=f'"{oid}"', **headers)
        self.send_response(status)
        self.send_header("Content-Length", str(len(data) - start))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data[start : start + (held[0] if held else self.hub.cuts.pop(0))])
        if held:
            self.wfile.flush()
            held[1].set()
            held[2].wait(60)
        self.close_connection = True
        return None

    def _paths_info(self, name: str, revision: str) -> None:
        if found := self._at(name, revision):
            repo, sha = found
            files = repo.commits[sha]
            asked = [path for path in parse_qs(self.body.decode())["paths"] if path in files]
            entries = {path: {"size": len(files[path]), "oid": git_oid(files[path])} for path in asked}
            self._json([{"type": "file", "path": path} | entries[path] for path in asked])

    # Writing.

    def _validate(self) -> None:
        content = json.loads(self.body)["content"]
        bad = [] if content.startswith("---\n") else [{"message": "no metadata"}]
        self._json({"errors": bad, "warnings": []})

    def _create(self) -> None:
        if self._may_write():
            asked = json.loads(self.body)
            name = f"{asked.get('organization') or 'owner'}/{asked['name']}"
            private = asked.get("visibility") == "private" or asked.get("private") is True
            there = name in self.hub.repos
            if not there:
                self.hub.add(name, {}, private=private)
            self._json({"url": f"{self.hub.url}/{name}", "name": name}, 409 if there else 200)

    def _branch(self, name: str, branch: str) -> None:
        repo = self._repo(name) if self._may_write() else None
        if repo and branch in repo.branches:
            self._error(409, "", "Reference already exists")
        elif repo:
            repo.branches[branch] = repo.branches["main"]
            self._json({})

    def _preupload(self, name: str, revision: str) -> None:
        found = self._at(name, revision) if self._may_write() else None
        if found:
            files = found[0].commits[found[1]]
            ignored = files.get(".gitignore", b"").decode().split()
            paths = [file["path"] for file in json.loads(self.body)["files"]]
            answers = [
                {
                    "path": path,
                    "uploadMode": "lfs" if path.endswith(LARGE) else "regular",
                    "shouldIgnore": any(fnmatch(path.rpartition("/")[2], pattern) for pattern in ignored),
                    "oid": etag(path, files[path]) if path in files else None,
                }
                for path in paths
            ]
            self._json({"files": answers})

    def _batch(self, name: str) -> None:
        if self._may_write() and self._repo(name):
            objects: list[dict[str, Any]] = []
            for wanted in json.loads(self.body)["objects"]:
                objects.append({"oid": wanted["oid"], "size": wanted["size"]})
                if wanted["oid"] not in self.hub.large:
                    upload = {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}
                    objects[-1]["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/lfs/verify"}}
            self._json({"transfer": "basic", "objects": objects})

    def _store(self, oid: str) -> None:
        if sha256(self.body) != oid:
            return self._send(400, b"the content is another one")
        self.hub.large[oid] = self.body
        return self._send(200)

    def _verify(self) -> None:
        asked = json.loads(self.body)
        data = self.hub.large.get(asked["oid"])
        self._send(200 if data is not None and len(data) == asked["size"] else 404)

    def _commit(self, name: str, branch: str) -> None:
        found = self._at(name, branch) if self._may_write() else None
        if not found:
            return None
        repo, _ = found
        self.hub.on_commit(repo)
        header, *operations = map(json.loads, self.body.splitlines())
        if header["value"].get("parentCommit", repo.branches[branch]) != repo.branches[branch]:
            return self._error(412, "", "The expected parent commit is not the current one")
        files = dict(repo.commits[repo.branches[branch]])
        for operation in operations:
            kind, value = operation["key"], operation["value"]
            if kind == "deletedFile":
                del files[value["path"]]
            elif kind == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            else:
                assert kind == "file"
                files[value["path"]] = base64.b64decode(value["content"])
        sha = repo.commit(files, header["value"]["summary"], branch)
        return self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha, "success": True})
