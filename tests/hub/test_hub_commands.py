"""The commands, from the hub and to it: a checkpoint that lies there is converted, proven, published and taken back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from makers import GOLDEN, HEADS, Result, convert
from server import Hub, Repo

import converter

Cli = Callable[..., Result]
SIGMA = GOLDEN / "sigma-ms.pth"


@pytest.fixture(autouse=True)
def writer(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    monkeypatch.chdir(tmp_path)
    hub.repos["someone/originals"] = Repo()
    hub.repos["someone/originals"].commit({"sigma.pth": SIGMA.read_bytes(), "README.md": b"# mine"})


def command(cli: Cli, source: str, *more: object) -> Result:
    return cli("convert-pixart", "--orig_ckpt_path", source, "--num_attention_heads", HEADS, *more)


@pytest.mark.parametrize("source", ["hf://someone/originals/sigma.pth", "someone/originals"])
def test_from_the_hub_to_the_hub_and_back(source: str, hub: Hub, cli: Cli, tmp_path: Path) -> None:
    done = command(cli, source, "--dump_path", "out", "--parity", "--push_to_hub", "me/sigma")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"published: {hub.url}/me/sigma" in done.stdout
    published = hub.repos["me/sigma"]
    card = published.commits[published.branches["main"]]["README.md"].decode()
    assert "PASS" in card
    assert "base_model: someone/originals" in card
    record = json.loads(Path("out/conversion.json").read_text())
    assert record["source"]["name"] == source
    back = cli("pixart", "revert", "--converted_path", "me/sigma", "--dump_path", "back.pth")
    assert (back.returncode, back.stderr) == (0, "")
    wanted = torch.load(SIGMA, weights_only=True)
    made = torch.load("back.pth", weights_only=True)["state_dict"]
    assert list(made) == list(wanted)
    assert all(torch.equal(made[key], tensor) for key, tensor in wanted.items())


def test_what_could_not_be_published_is_not_begun(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    done = command(cli, str(SIGMA), "--dump_path", "out", "--push_to_hub", "me/sigma")
    assert done.returncode == 2
    assert "token" in done.stderr
    assert not Path("out").exists()


def test_a_target_that_is_in_the_way_is_said_before_anything_is_fetched(hub: Hub, cli: Cli) -> None:
    Path("out").mkdir()
    Path("out/mine").touch()
    done = command(cli, "someone/originals", "--dump_path", "out")
    assert done.returncode == 2
    assert hub.log == []


def test_the_library_takes_a_name_too(tmp_path: Path) -> None:
    done = convert("hf://someone/originals/sigma.pth", tmp_path / "out")
    assert done.written
    with pytest.raises(converter.InputError, match="none/such"):
        converter.convert("none/such", tmp_path / "other")
