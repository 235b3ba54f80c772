"""A hub on loopback for every test, a cache of its own, and the client told so as HF_ENDPOINT would tell it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from server import Hub

# Read when the client is imported, which another test may have done long ago.
VARIABLES = (
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE"),
    *("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HF_HUB_DISABLE_PROGRESS_BARS"),
)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "hf"
    with Hub() as server:
        settings = {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HUGGINGFACE_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
            "HF_URL_HOSTS": frozenset({"127.0.0.1"}),
        }
        for name, value in settings.items():
            if hasattr(constants, name):
                monkeypatch.setattr(constants, name, value)
        yield server
        if close := getattr(huggingface_hub, "close_session", None):
            close()


@pytest.fixture
def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """The same for a process of its own."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "",
        "NO_PROXY": "127.0.0.1,localhost",
    }
