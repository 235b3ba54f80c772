"""Our token, and passwords in URLs, hidden in whatever a hub or its client says."""

from __future__ import annotations

import base64
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress

from ..errors import HIDDEN, TOKEN

# A token or a password of fewer characters, or a token of letters alone, may be any word: it is hidden only where it
# stands as what it is (in a URL, after "token="): elsewhere hiding it would garble the text, and reveal it.
_SHORTEST, _LONG = 6, 16
_LOGIN = re.compile(r"(?<=://)[^/?#\s]*@")
_PARAMETER = re.compile(r"([?&][^=&?\s]{1,64}=)[^&#\s\"'<>]+")
_SECRET_NAME = re.compile(r"tok|secret|pass|pwd|sig|cred|key|auth|policy", re.IGNORECASE)
_AFTER = r"((?:bearer|basic|token|password|passwd|pwd|secret|key|auth\w{0,16})[\"']?\s{0,8}[=: ]\s{0,8}[\"']?)"
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


def redacted(text: object) -> str:
    """A text by others, with *** where it repeats the token or a password of the hub's or a proxy's URL, in plain
    letters, escaped for a URL, or in base64; likewise any login in a URL, its parameters that are secret, and what
    looks like a token of the hub. To be applied before the text is cut: half a token is too much.

    >>> redacted("GET https://me:pw@mirror/model?token=abc&x=1: no")
    'GET https://***@mirror/model?token=***&x=1: no'
    """
    shown = _LOGIN.sub(f"{HIDDEN}@", str(text))
    shown = _PARAMETER.sub(lambda match: match[1] + HIDDEN if _SECRET_NAME.search(match[1]) else match[0], shown)
    secrets = {*_secrets()}
    if literal := _any_of(secret for secret, distinctive in secrets if distinctive):
        shown = re.sub(literal, HIDDEN, shown, flags=re.IGNORECASE)
    if word := _any_of(secret for secret, distinctive in secrets if not distinctive):
        shown = re.sub(_AFTER + word + r"(?![A-Za-z0-9])", rf"\g<1>{HIDDEN}", shown, flags=re.IGNORECASE)
    return TOKEN.sub(HIDDEN, shown)


def repeats_secret(name: str) -> bool:
    """Whether a name that a hub chose holds our token or password, as no honest one would."""
    literal = _any_of(secret for secret, distinctive in _secrets() if distinctive)
    return bool(literal and re.search(literal, name, re.IGNORECASE))


def _any_of(secrets: Iterable[str]) -> str:
    from urllib.parse import quote, quote_plus

    forms = {form for s in secrets for form in (s, quote(s), quote(s, safe=""), quote_plus(s))}
    # Inside a longer word only what is long itself.
    parts = (
        re.escape(form) if len(form) >= _LONG else rf"(?<![A-Za-z0-9]){re.escape(form)}(?![A-Za-z0-9])"
        for form in sorted(forms, key=lambda form: (-len(form), form))
    )
    return f"(?:{'|'.join(parts)})" if forms else ""


def _secrets() -> Iterator[tuple[str, bool]]:
    """The secrets that the client has, and whether each is distinctive enough to be hidden wherever it stands."""
    from urllib.parse import unquote
    from urllib.request import getproxies

    tokens = [os.environ.get(name, "").strip() for name in _TOKENS]
    urls = [os.environ.get("HF_ENDPOINT", ""), *getproxies().values()]
    if "huggingface_hub" in sys.modules:
        from huggingface_hub import constants, get_token

        urls.append(constants.ENDPOINT)
        with suppress(OSError, ValueError):
            tokens.append(get_token() or "")
    for token in filter(None, tokens):
        yield token, len(token) >= _LONG or (len(token) >= _SHORTEST and not token.isalpha())
    for url in urls:
        login = url.partition("://")[2].partition("/")[0].rpartition("@")[0]
        user, _, password = login.partition(":")
        for text in filter(None, {login, unquote(login)}):
            yield base64.b64encode(text.encode()).decode(), True
        for secret in filter(None, {password or user, unquote(password or user)}):  # the user's name may be a token
            yield secret, len(secret) >= _SHORTEST
