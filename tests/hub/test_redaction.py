"""Tokens and passwords: no text of a hub or its client brings them to a line, a record or a card."""

from __future__ import annotations

import base64
import io
import json
import os
import time
import traceback
from pathlib import Path
from urllib.parse import quote

import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from makers import GOLDEN, convert
from server import Hub

from converter.cli.main import run
from converter.cli.parity import parity
from converter.errors import ConverterError
from converter.hub import local
from converter.hub.redaction import redacted, repeats_secret
from converter.publishing import check, push

TOKEN = "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"
PASSWORD = "pa/ss w:ord@9"
SIGMA = GOLDEN / "sigma-ms.pth"


@pytest.fixture
def secrets(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A token, and a password in the endpoint's URL; in every form in which they could be told."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    login = f"me:{quote(PASSWORD, safe='')}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url.replace("://", f"://{login}@"))
    template = constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    forms = [TOKEN, PASSWORD, quote(PASSWORD), quote(PASSWORD, safe="")]
    return forms + [base64.b64encode(text.encode()).decode() for text in (login, f"me:{PASSWORD}")]


def told(error: BaseException) -> str:
    """What a person could see of it: the line, and what Python prints of the chain."""
    lines = io.StringIO()
    traceback.print_exception(error, file=lines)
    return f"{error}\n{lines.getvalue()}"


@pytest.mark.parametrize(
    ("how", "status"),
    [(how, status) for how in ("body", "json", "header", "cut") for status in (400, 401, 403, 404, 412, 500)]
    + [("redirect", 302)],
)
def test_what_a_server_repeats(
    how: str, status: int, hub: Hub, secrets: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    # Where a text is cut, half a token must not be left over.
    words = ("x" * 190 if how == "cut" else "you said ") + " and ".join(secrets)
    body = json.dumps({"error": words}).encode() if how == "json" else words.encode()
    hub.answer = lambda method, path: (status, body if how in ("body", "json", "cut") else b"")
    extra = {"header": {"X_Error_Message": words}, "redirect": {"Location": f"http://127.0.0.1:9/?token={TOKEN}"}}
    hub.headers = lambda method, path, true: {**true, **extra.get(how, {})}
    made = convert(SIGMA, tmp_path / "out").path if status == 403 else None
    calls = [lambda: local("hf://owner/name/a.pth"), lambda: check("owner/name")]
    for call in [*calls, *([lambda: push(made, "owner/name")] if made else [])]:
        with pytest.raises(ConverterError) as raised:
            call()
        shown = told(raised.value)
        assert [secret for secret in [*secrets, TOKEN[:12]] if secret in shown] == []


def test_a_hub_out_of_reach_is_told_without_its_password(
    hub: Hub, secrets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "ENDPOINT", constants.ENDPOINT.rpartition(":")[0] + ":9")
    with pytest.raises(ConverterError, match=r"the hub at http://\*\*\*@127\.0\.0\.1:9 cannot be reached") as raised:
        local("hf://owner/name/a.pth")
    assert [secret for secret in secrets if secret in told(raised.value)] == []


@pytest.mark.parametrize("where", ["X_Repo_Commit", "ETag"])
def test_a_header_that_repeats_the_token(where: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    hub.add("owner/name", {"b.json": b"{}"})
    hub.headers = lambda method, path, true: {**true, where: '"hf_writer"'} if "/resolve/" in path else true
    with pytest.raises(ConverterError, match=r"\*\*\*") as raised:
        local("hf://owner/name/b.json")
    assert "hf_writer" not in told(raised.value)


def test_a_file_named_like_the_token_is_not_taken(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its name would stand in the record and on the card."""
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    hub.add("owner/name", {"hf_writer.pth": SIGMA.read_bytes()})
    with pytest.raises(ConverterError, match=r"a file '\*\*\*\.pth'"):
        convert("owner/name", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_page_that_repeats_the_token_is_told_without(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    out = convert(SIGMA, tmp_path / "out").path
    page = json.dumps({"url": f"{hub.url}/owner/name?token=hf_writer", "name": "owner/name"}).encode()
    hub.add("owner/name", {})
    hub.answer = lambda method, path: (200, page) if path == "/api/repos/create" else None
    shown = ""
    try:
        done = push(out, "owner/name")
        shown = f"{done.url} {done.commit} {done.notes}"
    except ConverterError as error:
        shown = told(error)
    assert shown
    assert "hf_writer" not in shown


def test_the_last_line_hides_it_too(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Errors of what came with a file from there, such as its keys."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert run(parity, "x", ["--config", str(tmp_path / TOKEN), "--json"]) in (2, 3)
    assert TOKEN not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET https://me:pw@host/x?a=b&sig=12 no", "GET https://***@host/x?a=b&sig=*** no"),
        ("https://host/x?X-Amz-Signature=abc&X-Amz-Date=1", "https://host/x?X-Amz-Signature=***&X-Amz-Date=1"),
        ("https://p@ss@host/", "https://***@host/"),
        ("somebody's hf_0123456789abcdefghij", "somebody's ***"),
        ("write to me@host about a@b", "write to me@host about a@b"),
        ("what? tokens=3 and a?b", "what? tokens=3 and a?b"),
        ("an organisation's api_org_0123456789abcdefghij", "an organisation's ***"),
        ("a test's hf_abc123", "a test's ***"),
        ("hf_hub_download, hf_xet, hf_transfer", "hf_hub_download, hf_xet, hf_transfer"),
    ],
)
def test_what_is_secret_whoever_says_it(text: str, shown: str, hub: Hub) -> None:
    assert redacted(text) == shown


@pytest.mark.parametrize("token", ["a", "hf", "test", "config", "main", "404", "not"])
def test_a_token_that_is_a_word_garbles_nothing(token: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    text = "404 not found: hf config of a test is not at main"
    assert redacted(text) == text
    assert redacted(f"Authorization: Bearer {token}, token={token}!") == "Authorization: Bearer ***, token=***!"
    assert not repeats_secret("transformer/config.json")


@given(st.text(max_size=30), st.text(max_size=30))
def test_the_token_is_hidden_whatever_stands_around_it(before: str, after: str) -> None:
    os.environ["HF_TOKEN"] = TOKEN
    try:
        for form in (TOKEN, TOKEN.upper(), TOKEN.lower()):
            assert form not in redacted(before + form + after)
    finally:
        del os.environ["HF_TOKEN"]


def test_the_token_hides_in_time_linear_in_the_text() -> None:
    for part in ("://", "?a", "&token", "hf_", "://a", "?" + "a" * 70, "bearer "):
        redacted(part * 100_000)


def test_a_token_that_is_a_word_hides_in_time_linear_in_the_text(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "main")
    start = time.process_time()
    for text in ("key" + " " * 50_000, "key =" + " " * 50_000 + "main", "key = " * 10_000, "auth" * 20_000):
        redacted(text)
    assert time.process_time() - start < 5
