"""What is fetched of a repository: what the reader would take of the whole of it, and nothing else."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.checkpoint.folder import model_folder, weight_files
from converter.checkpoint.weight_names import STEMS
from converter.errors import InputError
from converter.filenames import RECORD, SIDECAR
from converter.hub.names import HubPath
from converter.hub.selection import Selection, select

T, W = "transformer/", "diffusion_pytorch_model"
PIPELINE = ["model_index.json", "README.md", "vae/config.json", f"vae/{W}.safetensors", f"{T}config.json"]
WHOLE = [*PIPELINE, f"{T}{W}.safetensors"]
# files in the repository, path asked for, what is fetched
A, B = f"{T}config.json", f"{T}{W}.safetensors"
INDEXED = ["config.json", f"{W}.safetensors.index.json"]
FOLDERS = {
    "a pipeline": (WHOLE, "", [A, B]),
    "its transformer": (WHOLE, "transformer", [A, B]),
    "its VAE": (WHOLE, "vae", ["vae/config.json", f"vae/{W}.safetensors"]),
    "every kind of weights": ([*WHOLE, f"{T}{W}.bin", f"{T}{W}.fp16.safetensors", "original.pth"], "", [A, B]),
    "pickles only": ([f"{T}{W}.bin", f"{T}{W}.fp16.safetensors"], "", [f"{T}{W}.bin"]),
    "a model": (["config.json", f"{W}.safetensors"], "", ["config.json", f"{W}.safetensors"]),
    "shards": ([*INDEXED, f"{W}-00001-of-00001.safetensors"], "", INDEXED),
    "our own": ([RECORD, SIDECAR, "parity.json", "README.md", B], "", [RECORD, SIDECAR, B]),
    "sidecar of somebody": ([SIDECAR, f"{W}.bin"], "", [f"{W}.bin"]),
    "one variant": ([*PIPELINE, f"{T}{W}.fp16.safetensors"], "", [A, f"{T}{W}.fp16.safetensors"]),
}
FILES = {
    "one original": (["README.md", "runs/epoch_5.pth", "epoch.txt"], "", ["runs/epoch_5.pth"]),
    "a file": (["a.pth", "b.pth"], "b.pth", ["b.pth"]),
    "a file of a pipeline": ([*WHOLE, RECORD, SIDECAR], B, [B, A, RECORD, SIDECAR]),
    "a folder with one": (["x/a.pth", "y/b.pth"], "y", ["y/b.pth"]),
}
REFUSED = {
    "several": (["a.pth", "b.pth", "c.txt"], "", r"several checkpoints: name one of hf://o/n/a.pth, hf://o/n/b.pth$"),
    "many": ([f"{i}.pth" for i in range(20)], "", r"hf://o/n/15.pth and 12 more$"),
    "none": (["README.md"], "", "holds no weights: looked for"),
    "nothing at all": ([], "", "is not in the repository"),
    "no such file": (["a.pth"], "b.pth", "the file or folder is not in the repository"),
    "part of a name": (["abc/a.pth"], "ab", "the file or folder is not in the repository"),
    "both": ([f"{W}.bin", f"{W}.bin.index.json"], "", "one of them is stale"),
}


@pytest.mark.parametrize("name", FOLDERS | FILES)
def test_what_is_selected(name: str) -> None:
    names, path, files = (FOLDERS | FILES)[name]
    index = next((file for file in files if file.endswith(".index.json")), "")
    result = files[0] if name in FILES else f"{path}/" if path else ""
    assert select({*names}, HubPath("o/n", "o/n", None, path)) == Selection(tuple(files), index, result)


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    names, path, words = REFUSED[name]
    with pytest.raises(InputError, match=f"^hf://o/n.*: .*{words}"):
        select({*names}, HubPath(f"hf://o/n/{path}", "o/n", None, path))


def test_the_revision_is_named_too() -> None:
    with pytest.raises(InputError, match=r"hf://o/n@v1/a\.pth"):
        select({"a.pth", "b.pth"}, HubPath("hf://o/n@v1", "o/n", "v1"))


def test_what_is_in_the_cache_may_not_be_all_there_is() -> None:
    """A checkpoint that was fetched by its name is not thereby the only one of its repository."""
    place = HubPath("o/n", "o/n")
    for names in ({"a.pth"}, {f"{T}{W}.fp16.safetensors"}):
        assert select(names, place).files[-1:] == (*names,)
        with pytest.raises(InputError, match="the cache does not show what else it holds: name one of hf://o/n/"):
            select(names, place, complete=False)
        (name,) = names
        assert select(names, HubPath("", "o/n", None, name), complete=False).files == (name,)
    with pytest.raises(InputError, match="is not in the cache, and the hub is out of reach"):
        select({"a.pth"}, HubPath("", "o/n", None, "b.pth"), complete=False)
    with pytest.raises(InputError, match=r"transformer/config\.json is not in the cache"):
        select({f"{T}{W}.safetensors"}, place, complete=False)
    with pytest.raises(InputError, match="weights in it: is not in the cache"):
        select({"config.json"}, place, complete=False)


SHARD = "shard-1.safetensors"
NAMES = [
    *(f"{folder}{stem}{end}" for folder in ("", T) for stem in STEMS for end in ("", ".index.json")),
    *("config.json", f"{T}config.json", SHARD, f"{T}{SHARD}", "model_index.json", "a.pth", f"{T}{W}.fp16.safetensors"),
]


def outcome(whole: Path) -> tuple[set[str], bool, str]:
    """What the reader takes of a folder: the files of weights, whether an index says so; or the rule it breaks."""
    try:
        files, index, _ = weight_files(model_folder(whole))
    except InputError as error:
        return set(), False, str(error)
    return {path.relative_to(whole).as_posix() for path in files}, index is not None, ""


@given(st.sets(st.sampled_from(NAMES), max_size=8))
def test_it_is_what_the_reader_takes_of_the_whole_repository(names: set[str]) -> None:
    """The oracle is the reader of folders, on a repository that was fetched as a whole."""
    with tempfile.TemporaryDirectory() as made:
        whole = Path(made)
        for name in names:
            path = whole / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps({"weight_map": {"key": SHARD}}) if name.endswith("index.json") else "")
        read, index, rule = outcome(whole)
    if "is missing" in rule:  # a shard, which only the index tells
        return
    if rule:
        chosen, words = None, ""
        try:
            chosen = select(names, HubPath("o/n", "o/n"))
        except InputError as error:
            words = str(error)
        assert ("stale" in words) == ("stale" in rule)
        assert chosen is None or chosen.result in names  # the only checkpoint, which is no folder of a model
        return
    chosen = select(names, HubPath("o/n", "o/n"))
    assert chosen.result == ""
    assert bool(index) == bool(chosen.index)
    fetched = {*chosen.files} | ({chosen.index[: chosen.index.rfind("/") + 1] + SHARD} if index else set())
    config = {name for name in fetched if name.endswith("config.json")}
    assert fetched == read | config | ({chosen.index} if index else set())
    place = T if any(name.startswith(T) for name in names) else ""
    assert config == {f"{place}config.json"} & names
