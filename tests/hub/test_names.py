"""Names on the hub: which text is one, and which stays a path."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.errors import InputError, UsageError
from converter.hub import local
from converter.hub.names import HubPath, hub_path

PLACES = {
    "owner/name": ("owner/name", None, ""),
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": ("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", None, ""),
    "hf://owner/name": ("owner/name", None, ""),
    "hf://owner/name/": ("owner/name", None, ""),
    "hf://models/owner/name": ("owner/name", None, ""),
    "hf://owner/name/a.pth": ("owner/name", None, "a.pth"),
    "hf://owner/name/runs/epoch 5.pth": ("owner/name", None, "runs/epoch 5.pth"),
    "hf://owner/name@v1.0": ("owner/name", "v1.0", ""),
    "hf://owner/name@v1.0/runs/a.pth": ("owner/name", "v1.0", "runs/a.pth"),
    "hf://owner/name@a%2Fb/a@b.pth": ("owner/name", "a/b", "a@b.pth"),
    "hf://owner/name@refs/pr/3/a.pth": ("owner/name", "refs/pr/3", "a.pth"),
}
WRONG = [
    *("hf://", "hf://owner", "hf://owner/", "hf:///name", "hf://owner//a.pth", "hf://owner/name//a.pth"),
    *("hf://owner/name@/a.pth", "hf://owner/a--b", "hf://owner/na..me", "hf://-owner/name", "hf://owner/na me"),
    *("hf://owner/name/../a.pth", "hf://owner/name/./a.pth", "hf://owner/name.git", f"hf://owner/{'x' * 97}"),
]
# As a file that is not there they are reported by whoever opens them.
PATHS = [
    *("a.pth", "name", "runs/epoch_5.pth", "runs/EPOCH.SAFETENSORS", "./name", "../name", "/owner/name", "a/b/c"),
    *("owner/na me", "owner/a--b", "owner/", "~/name", "-a/b", "", "owner\\name", "owner/näme", "https://owner/name"),
]


@pytest.mark.parametrize("text", PLACES)
def test_places(text: str) -> None:
    assert hub_path(text) == HubPath(text, *PLACES[text])


def test_a_place_that_was_made_a_path(tmp_path: Path) -> None:
    """`Path` makes one slash of two."""
    place = hub_path(str(Path("hf://owner/name/a.pth")))
    assert place is not None
    assert (place.repo, place.path) == ("owner/name", "a.pth")


@pytest.mark.parametrize("text", WRONG)
def test_what_is_misspelt(text: str) -> None:
    with pytest.raises(UsageError, match=r"not a place on the hub: hf://OWNER/NAME\[@REVISION\]\[/FILE\]$"):
        local(text)


@pytest.mark.parametrize("kind", ["datasets", "spaces", "kernels", "buckets"])
def test_only_models(kind: str) -> None:
    with pytest.raises(UsageError, match="only model repositories are read"):
        local(f"hf://{kind}/owner/name/a.pth")


@pytest.mark.parametrize("text", PATHS)
def test_paths(text: str) -> None:
    assert hub_path(text) is None
    assert local(text) == Path(text)


def test_what_is_here_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("owner").mkdir()
    with pytest.raises(
        InputError, match=r"^owner/name: no such file or folder here \(on the hub, .* hf://owner/name\)"
    ):
        local("owner/name")
    for make in (Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")):
        path = Path(f"owner/{make.__name__.strip('<>')}")
        make(path)
        assert local(str(path)) == path
    Path("hf:/a").mkdir(parents=True)
    Path("hf:/a/b").touch()
    assert local("hf://a/b") == Path("hf://a/b")


def test_a_path_needs_no_client(tmp_path: Path) -> None:
    """It takes a third of a second to import."""
    (tmp_path / "a").touch()
    code = (
        "import sys\nfrom converter.hub import local\n"
        "for path in ('a', 'b.pth', 'runs/b.pth', '/x/y/z'): local(path)\n"
        "print('huggingface_hub' in sys.modules)"
    )
    made = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (made.stdout, made.stderr) == ("False\n", "")


WORDS = st.text("abcXYZ019-_.@%/~: \t\né\0", max_size=12)


@given(st.one_of(WORDS, st.builds("hf://{}".format, WORDS), st.builds("{}/{}".format, WORDS, WORDS)))
def test_any_text_is_a_place_a_path_or_misspelt(text: str) -> None:
    words = ""
    try:
        place = hub_path(text)
    except (UsageError, InputError) as error:
        place, words = None, str(error)
    assert words.isprintable()
    if place is not None:
        assert place.repo.count("/") == 1
        assert not {"..", "."} & {*place.path.split("/"), *place.repo.split("/")}


NAME = st.from_regex(r"[a-z0-9][a-z0-9_]{0,5}", fullmatch=True)
REVISION = st.one_of(st.none(), NAME, st.sampled_from(["refs/pr/7", "v1.0", "a%2Fb", "refs/convert/parquet"]))


@given(NAME, NAME, REVISION, st.lists(st.sampled_from(["a", "b.pth", "c d", "@", "e@f"]), max_size=3))
def test_places_are_those_of_the_hub_itself(owner: str, name: str, revision: str | None, path: list[str]) -> None:
    """The oracle is the client's own parser, which the older ones do not have."""
    utils = pytest.importorskip("huggingface_hub.utils._hf_uris")
    text = f"hf://{owner}/{name}" + (f"@{revision}" if revision else "") + "".join(f"/{part}" for part in path)
    place, theirs = hub_path(text), utils.parse_hf_uri(text)
    assert place is not None
    assert (place.repo, place.revision, place.path) == (theirs.id, theirs.revision, theirs.path_in_repo)
