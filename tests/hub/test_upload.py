"""Publishing a conversion: what arrives at the hub, what is left alone there, and what stands against it."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, constants
from makers import GOLDEN, HEADS, convert, tree
from server import Hub, Repo, sha256

import converter
from converter.errors import ConverterError, InputError, UsageError
from converter.hub import local
from converter.parity.ci.cache import digest
from converter.pipelines.assemble import Components
from converter.publishing import Pushed, check, push
from converter.publishing.target import Repository
from converter.reports.report import Phase, Report

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
PATHS = {WEIGHTS, "transformer/config.json", "original_extras.safetensors", "conversion.json"}
CARD = "README.md"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("made") / "out"
    return convert(GOLDEN / "sigma-ms.pth", target).path


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


@pytest.fixture(autouse=True)
def token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_writer")


def with_parity(out: Path, verdict: str = "PASS") -> dict[str, Any]:
    """A report as the checker leaves it, of these files."""
    files = {name: {"sha256": sha, "size": (out / name).stat().st_size} for name, sha in digest(out).items()}
    report = Report(
        verdict,
        "at worst 1.02 times the noise floor (limit 3)",
        family="pixart",
        profile="quick",
        original={"name": "sigma-ms.pth", "sha256": "0" * 64},
        converted={"name": "out", "files": files},
        phases=[Phase("weights", verdict, "all 60 tensors are the original's")],
        run={"command": "pixart --dump_path /home/me/out", "date": "2026-05-12", "seconds": 8.0, "original": "/x"},
    ).as_dict()
    (out / "parity.json").write_text(json.dumps(report))
    return report


def test_a_conversion_goes_to_the_hub_and_comes_back(hub: Hub, out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = push(out, "owner/name")
    assert capfd.readouterr() == ("", "")  # no bars without a terminal
    repo = hub.repos["owner/name"]
    sent = {name: data for name, data in repo.files.items() if name not in (".gitattributes", CARD)}
    assert sent == tree(out)
    assert (done.url, str(done), done.notes) == (f"{hub.url}/owner/name", done.url, [])
    assert {*done.files} == PATHS | {CARD}
    assert done.commit == f"{hub.url}/owner/name/commit/{repo.branches['main']}"
    assert repo.messages == ["initial commit", f"sigma-ms.pth, converted by convert-pixart {converter.__version__}"]
    assert not repo.private
    place = local("owner/name")
    assert tree(place) == tree(out)
    with converter.open_checkpoint(place) as theirs, converter.open_checkpoint(out) as ours:
        assert theirs.keys() == ours.keys()
        for key, tensor in ours.items():
            assert torch.equal(theirs[key].torch(), tensor.torch())


def test_stock_diffusers_loads_it_as_the_card_says(hub: Hub, out: Path) -> None:
    from diffusers import PixArtTransformer2DModel

    push(out, "owner/name")
    card = hub.repos["owner/name"].files[CARD].decode()
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", card, flags=re.M | re.S)
    session: dict[str, Any] = {}
    exec(snippet, session)
    loaded = session["transformer"].state_dict()
    expected = PixArtTransformer2DModel.from_pretrained(out, subfolder="transformer").state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in expected.items())


def test_only_what_we_wrote_is_published(hub: Hub, out: Path) -> None:
    (out / "secret.txt").write_text("mine")
    (out / "transformer/optimizer.bin").write_text("mine")
    (out / CARD).write_text("mine")
    push(out, "owner/name")
    files = hub.repos["owner/name"].files
    assert files.keys() == PATHS | {CARD, ".gitattributes"}
    assert b"mine" not in b"".join(files.values())


def test_where_and_how_it_is_published(hub: Hub, out: Path) -> None:
    done = push(out, "name", private=True, revision="half/done", message="Try\nthis", source="hf://a/b/c.pth")
    repo = hub.repos["owner/name"]  # of whoever the token belongs to
    assert repo.private
    assert done.url == f"{hub.url}/owner/name/tree/half%2Fdone"
    assert repo.files.keys() == {".gitattributes"}
    card = ModelCard(repo.commits[repo.branches["half/done"]][CARD].decode())
    assert card.data.base_model == "a/b"
    assert 'from_pretrained("owner/name", subfolder="transformer", revision="half/done")' in card.text
    assert repo.messages[-1] == "Try\nthis"
    assert local("hf://owner/name@half%2Fdone/transformer").name == "transformer"


def test_the_parity_report_goes_with_it(hub: Hub, out: Path) -> None:
    report = with_parity(out)
    done = push(out, "owner/name", source=str(out))
    files = hub.repos["owner/name"].files
    assert "parity.json" in done.files
    assert json.loads(files["parity.json"]) == report | {"run": {"date": "2026-05-12", "seconds": 8.0}}
    assert not [name for name, data in files.items() if b"/home/me" in data or str(out).encode() in data]
    assert "**PASS**: at worst 1.02 times the noise floor" in files[CARD].decode()


@pytest.mark.parametrize("what", ["another conversion", "other weights", "a list", "nothing", "a path"])
def test_a_parity_report_of_something_else(what: str, hub: Hub, out: Path) -> None:
    report = with_parity(out)
    if what == "another conversion":
        record = json.loads((out / "conversion.json").read_text())
        (out / "conversion.json").write_text(json.dumps(record))
    elif what == "other weights":
        report["converted"]["files"][WEIGHTS]["sha256"] = "0" * 64
    elif what == "nothing":
        report["converted"]["files"] = {}
    elif what == "a path":
        report["converted"]["files"]["../../x"] = {"sha256": "0" * 64}
    (out / "parity.json").write_text("[1]" if what == "a list" else json.dumps(report))
    with pytest.raises(InputError, match=r"parity\.json: not of this conversion: compare again, or delete it$"):
        push(out, "owner/name")
    assert hub.log == []


def test_the_same_again_is_no_commit(hub: Hub, out: Path) -> None:
    first = push(out, "owner/name")
    assert push(out, "owner/name") == first
    assert len(hub.repos["owner/name"].messages) == 2


def test_the_card_of_a_person_is_kept(hub: Hub, out: Path) -> None:
    hub.add("owner/name", {CARD: b"# Mine"})
    done = push(out, "owner/name")
    assert hub.repos["owner/name"].files[CARD] == b"# Mine"
    assert done.notes == ["README.md in owner/name was not generated by this tool; it is kept as it is"]
    assert {*done.files} == PATHS


def test_a_card_of_ours_is_written_anew(hub: Hub, out: Path) -> None:
    push(out, "owner/name")
    first = hub.repos["owner/name"].files[CARD]
    with_parity(out, "FAIL")
    assert push(out, "owner/name").notes == []
    assert b"FAIL" in hub.repos["owner/name"].files[CARD]
    assert b"FAIL" not in first


def test_what_an_earlier_push_left_goes(hub: Hub, out: Path) -> None:
    """Shards, an index and a verdict of another model must not stand beside this one; other files stay."""
    index = f"{WEIGHTS}.index.json"
    shard = WEIGHTS.replace(".safetensors", "-00001-of-00001.safetensors")
    record = {
        "tool": {"name": "convert-pixart"},
        "written": {index: {"size": 2}, shard: {"size": 1}, "gone": {"size": 1}},
    }
    mine = {"notes.txt": b"mine", "vae/config.json": b"{}", CARD: b"# Mine"}
    earlier = {index: b"{}", shard: b"x", "parity.json": b"{}", "conversion.json": json.dumps(record).encode()}
    hub.add("owner/name", mine | earlier)
    push(out, "owner/name")
    files = hub.repos["owner/name"].files
    assert files.keys() == PATHS | {*mine, ".gitattributes"}
    assert {name: files[name] for name in mine} == mine
    assert len(hub.repos["owner/name"].messages) == 2  # deleted in the same commit


@pytest.mark.parametrize("record", [None, b"not JSON", b'{"written": {}}', b'{"tool": {"name": "x"}, "written": {}}'])
def test_other_weights_beside_ours_are_refused(record: bytes | None, hub: Hub, out: Path) -> None:
    index = f"{WEIGHTS}.index.json"
    repo = hub.add("owner/name", {index: b"{}"} | ({"conversion.json": record} if record else {}))
    with pytest.raises(
        UsageError, match=f"^owner/name: holds other weights, which would .*: {re.escape(index)}; delete"
    ):
        push(out, "owner/name")
    assert len(repo.messages) == 1
    assert not hub.asked("PUT")


@pytest.mark.parametrize("files", [{WEIGHTS}, {f"{WEIGHTS}.index.json", WEIGHTS.replace(".", "-00001-of-00001.")}])
@pytest.mark.parametrize("other", [WEIGHTS, f"{WEIGHTS}.index.json", "transformer/model.safetensors"])
def test_shards_beside_one_file_and_the_other_way_round(files: set[str], other: str) -> None:
    there = Repository("owner/name", "", False, {other, "vae/model.safetensors", CARD}, frozenset({CARD}))
    assert there.outdated(files) == set()  # a card is never deleted, whatever a record says
    if other in files:
        there.check(files, None)
        return
    with pytest.raises(UsageError, match="holds other weights"):
        there.check(files, None)
    replace(there, from_earlier_push={other}).check(files, None)


def test_weights_that_are_replaced_are_no_hindrance(hub: Hub, out: Path) -> None:
    hub.add("owner/name", {WEIGHTS: b"old", "vae/diffusion_pytorch_model.bin": b"other"})
    push(out, "owner/name")
    files = hub.repos["owner/name"].files
    assert files[WEIGHTS] == (out / WEIGHTS).read_bytes()
    assert files["vae/diffusion_pytorch_model.bin"] == b"other"


@pytest.mark.parametrize("private", [True, False])
def test_who_can_see_it_is_not_guessed(private: bool, hub: Hub, out: Path) -> None:
    repo = hub.add("owner/name", {}, private=not private)
    kind = "public" if private else "private"
    with pytest.raises(UsageError, match=f"^owner/name: exists and is {kind}; change it in the repository's settings$"):
        push(out, "owner/name", private=private)
    assert len(repo.messages) == 1
    push(out, "owner/name")
    push(out, "owner/name", private=not private)


def test_somebody_else_pushes_meanwhile(hub: Hub, out: Path) -> None:
    repo = hub.add("owner/name", {})
    hub.on_commit = lambda repo: repo.commit({"theirs": b""}, "theirs") and None
    with pytest.raises(
        UsageError, match=r"^owner/name: the repository was changed by somebody else meanwhile: try again$"
    ):
        push(out, "owner/name")
    assert repo.files == {"theirs": b""}


def test_what_the_hub_ignores_is_missed(hub: Hub, out: Path) -> None:
    hub.add("owner/name", {".gitignore": b"*.json"})
    words = r"^owner/name: published, but without .*config\.json, conversion\.json.* \(a \.gitignore there\?\)$"
    with pytest.raises(UsageError, match=words):
        push(out, "owner/name")


def test_check(hub: Hub) -> None:
    check("owner/name")
    check("name")
    assert hub.asked("GET", "whoami")
    assert not hub.repos


NAMES = ["", "a/b/c", "datasets/a/b", "hf://a/b", "a b", "a--b", "-a", "a/b.git", "a/../b", "x" * 97, "a/b\n", "ä/b"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("function", [check, lambda name: push(Path("out"), name)], ids=["check", "push"])
def test_names_that_cannot_be(
    name: str, function: Callable[[str], object], hub: Hub, out: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(out.parent)
    with pytest.raises(UsageError, match=r": not a name that the hub allows; use OWNER/NAME$"):
        function(name)
    assert hub.log == []


def offline(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def no_hub(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


def token_of(text: str) -> Callable[[pytest.MonkeyPatch, Hub], None]:
    return lambda monkeypatch, hub: monkeypatch.setenv("HF_TOKEN", text)


def down(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    hub.answer = lambda method, path: (500, b"")


# what is wrong, what `check` says, what `push` says where it says it otherwise, and with which exit code
HINDRANCES: dict[str, tuple[Callable[[pytest.MonkeyPatch, Hub], None], str, str, int]] = {
    "no token": (token_of(""), "publishing on the hub needs a token: log in with ", "log in with ", 2),
    "a wrong token": (token_of("hf_x"), "does not accept the token: log in with", "does not accept the token", 2),
    "a token to read": (token_of("hf_reader"), "can only read; use one with write access$", "not allow it", 2),
    "offline": (offline, "HF_HUB_OFFLINE is set, so the hub cannot be asked$", "", 5),
    "no hub": (no_hub, "the hub at http://127.0.0.1:9 cannot be reached", "", 5),
    "down": (down, "the hub answers with status 500", "", 5),
}


@pytest.mark.parametrize("name", HINDRANCES)
def test_hindrances(name: str, hub: Hub, out: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    prepare, check_words, push_words, code = HINDRANCES[name]
    repo = hub.add("owner/name", {})
    prepare(monkeypatch, hub)
    with pytest.raises(UsageError, match=f"^owner/name: .*{check_words}"):
        check("owner/name")
    with pytest.raises(ConverterError, match=f"^owner/name: .*{push_words or check_words}") as raised:
        push(out, "owner/name")
    assert raised.value.exit_code == code
    assert len(repo.messages) == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("status", "code"), [(500, 5), (403, 2), (507, 5)])
@pytest.mark.parametrize("part", ["/lfs/", "/commit/", "/preupload/", "/objects/batch"])
def test_an_upload_that_breaks_off(
    part: str, status: int, code: int, hub: Hub, out: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.answer = lambda method, path: (status, b'{"error": "no"}') if part in path else None
    with pytest.raises(ConverterError, match=r"^owner/name: .*(answers with status|does not allow it)") as raised:
        push(out, "owner/name")
    assert raised.value.exit_code == code
    assert hub.repos["owner/name"].files.keys() == {".gitattributes"}
    assert capfd.readouterr() == ("", "")
    hub.answer = lambda method, path: None
    assert isinstance(push(out, "owner/name"), Pushed)


def edit(out: Path, change: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads((out / "conversion.json").read_text())
    change(record)
    (out / "conversion.json").write_text(json.dumps(record))


def edit_config(out: Path) -> None:
    """Other values in as many bytes."""
    config = out / "transformer/config.json"
    config.write_bytes(config.read_bytes().replace(b"28", b"27").replace(b"true", b"tru ", 1))


def written(name: str) -> Callable[[Path], None]:
    """A record that says another file was written."""
    return lambda out: edit(out, lambda record: record["written"].update({name: {"size": 1}}))


NO_RECORD = "not the record of a conversion"
CHANGED = "missing, or not what conversion.json says was written"
ODD_RECORD = r"conversion\.json: not as this tool writes it"
FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no record": (lambda out: (out / "conversion.json").unlink(), "No such file"),
    "a record that is none": (lambda out: (out / "conversion.json").write_text("[]"), NO_RECORD),
    "another tool's": (lambda out: edit(out, lambda r: r["tool"].update(name="x")), NO_RECORD),
    "leading out": (written("../secret"), NO_RECORD),
    "absolute": (written("/etc/passwd"), NO_RECORD),
    "a missing file": (lambda out: (out / WEIGHTS).unlink(), CHANGED),
    "a truncated file": (lambda out: (out / WEIGHTS).write_bytes((out / WEIGHTS).read_bytes()[:-1]), CHANGED),
    "an edited config": (edit_config, CHANGED),
    "half a record": (lambda out: edit(out, lambda r: r.pop("plan")), ODD_RECORD),
    "an odd record": (lambda out: edit(out, lambda r: r.update(hyper_parameters=["x"])), ODD_RECORD),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_that_are_not_published(name: str, hub: Hub, out: Path) -> None:
    change, words = FOLDERS[name]
    change(out)
    with pytest.raises(InputError, match=words) as raised:
        push(out, "owner/name")
    assert str(raised.value).startswith(str(out))
    assert hub.log == []


def test_the_repositories_of_others_are_not_theirs_to_fill(hub: Hub, out: Path) -> None:
    """A record in the repository that names what it did not write can delete nothing but what is in it."""
    record = {"tool": {"name": "convert-pixart"}, "written": {"../other/a": {"size": 1}, "absent": {"size": 1}}}
    hub.repos["owner/other"] = Repo()
    hub.add("owner/name", {"conversion.json": json.dumps(record).encode(), "a": b"a"})
    push(out, "owner/name")
    assert "a" in hub.repos["owner/name"].files
    assert sha256(hub.repos["owner/name"].files[WEIGHTS]) == sha256((out / WEIGHTS).read_bytes())


def test_a_whole_pipeline_goes_there_as_copies_and_not_as_links(hub: Hub, tmp_path: Path) -> None:
    parts = GOLDEN.parent / "pipeline"
    for way in ("copy", "link"):
        beside = Components(vae=parts / "vae", components=way)
        words: dict[str, Any] = {"hyper_parameters": {"num_attention_heads": HEADS}, "components": beside}
        out = converter.convert(parts / "sigma-ms.pth", tmp_path / way, **words).path
        if way == "copy":
            push(out, "owner/name")
            sent = hub.repos["owner/name"].files
            assert {name: data for name, data in sent.items() if name not in (".gitattributes", CARD)} == tree(out)
            assert sent["vae/config.json"] == (parts / "vae" / "config.json").read_bytes()
        else:
            with pytest.raises(InputError, match=r"not published; replace it .* or convert with `components` copy"):
                push(out, "owner/other")
            assert "owner/other" not in hub.repos


@pytest.mark.parametrize("name", [WEIGHTS, "transformer", "transformer/config.json", "conversion.json", "parity.json"])
@pytest.mark.parametrize("to", ["the same", "another", "nothing"])
def test_a_link_is_never_published(name: str, to: str, hub: Hub, out: Path, tmp_path: Path) -> None:
    """Neither a file nor a folder, be the content what the record says; the folder itself may be one."""
    if name == "parity.json":
        with_parity(out)
    (moved := tmp_path / "moved").mkdir()
    (out / name).rename(moved / "it")
    target = {"the same": moved / "it", "another": Path(__file__), "nothing": tmp_path / "no"}[to]
    (out / name).symlink_to(target)
    with pytest.raises(InputError, match=r"a symbolic link, which is not published") as raised:
        push(out, "owner/name")
    assert str(out / name) in str(raised.value)
    assert not hub.log
    (out / name).unlink()
    (moved / "it").rename(out / name)
    (tmp_path / "link").symlink_to(out)
    (out / "another").symlink_to(__file__)
    assert "another" not in push(tmp_path / "link", "owner/name").files
