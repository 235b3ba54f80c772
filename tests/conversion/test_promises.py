"""What a record promises of a converted folder: damage is told in every direction, and vouched for in none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from makers import convert, converted, diffusers_keyed, dit, folder, pixart, save, stated

import converter
from converter.checkpoint import open_checkpoint
from converter.conversion.pairs import Pair
from converter.conversion.record import LIKE, UNLIKE
from converter.filenames import RECORD, SIDECAR

STEPS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "shards": {"max_shard_size": "20KB"},
    "variant": {"variant": "mine"},
    "float16": {"dtype": "float16"},
    "bfloat16": {"dtype": "bfloat16"},
    "float32": {"dtype": "float32"},
}
ENDS: list[dict[str, Any]] = [
    {"to": "original"},
    {"to": "comfyui"},
    {"to": "original", "dtype": "float16"},
    {},
    {"dtype": "bfloat16"},
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Converted from an original, from a folder that nobody converted, and a DiT, with copies in every block."""
    tmp = tmp_path_factory.mktemp("folders")
    made = {name: tmp / name for name in ("original", "found", "dit")}
    convert(save(pixart(), tmp / "a.pth"), made["original"])
    convert(save(dit(), tmp / "dit.pt"), made["dit"])
    config = json.loads((made["original"] / "transformer/config.json").read_text())
    converter.convert(folder(diffusers_keyed(pixart()), tmp / "source", config), made["found"])
    return made


def flip(model: Path, which: int, bit: int) -> str:
    """Flip one bit of one weight of a model, and return its key."""
    with open_checkpoint(model) as checkpoint:
        keys = [key for key in checkpoint if ".norm1.emb." not in key]  # copies that differ are refused anyway
        tensor = checkpoint[key := keys[which % len(keys)]]
        path, at = Path(tensor.storage.file.path), tensor.storage.start + (bit // 8) % tensor.nbytes
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit % 8
    path.write_bytes(data)
    return key


def told(notes: list[str]) -> list[str]:
    return [note for note in notes if RECORD in note]


@settings(max_examples=8, phases=(Phase.explicit, Phase.generate))
@given(
    st.sampled_from(["original", "found", "dit"]),
    st.integers(0, 999),
    st.integers(0, 1 << 16),
    st.lists(st.sampled_from([*STEPS]), max_size=3),
    st.integers(0, 3),
    st.sampled_from(ENDS),
)
@example("original", 3, 1, ["float16", "shards"], 0, {"to": "original"})
@example("found", 3, 1, ["float16", "as it is"], 0, {"to": "original"})
@example("original", 3, 1, ["float16", "float32"], 1, {"to": "comfyui"})
@example("dit", 3, 1, ["bfloat16"], 0, {"to": "original", "dtype": "float16"})
def test_no_chain_of_conversions_vouches_for_a_flipped_bit(
    folders: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    which: int,
    bit: int,
    chain: list[str],
    when: int,
    end: dict[str, Any],
) -> None:
    """Whenever it happens, every conversion after it says so, and none before it."""
    tmp, flipped = tmp_path_factory.mktemp("chain"), False
    last = shutil.copytree(folders[kind], tmp / "0")
    said: dict[str, Any] = {"allow_nonfinite": True, "allow_overflow": True}
    for number, step in enumerate([*chain, None], 1):
        if not flipped and (number > when or step is None):
            key, flipped = flip(last, which, bit), True
        options = end if step is None else STEPS[step]
        file = {"original": "end.pth", "comfyui": "end.safetensors"}.get(options.get("to", ""))
        if kind == "dit" and options.get("to") == "comfyui":
            options, file = {"to": "original"}, "end.pth"  # ComfyUI knows none
        done = converter.convert(last, tmp / (file or str(number)), **stated(**options, **said))
        (note,) = told(done.notes)
        assert note.endswith(UNLIKE if flipped else LIKE)
        assert note.startswith("1 of " if flipped else "all ")
        assert [*done.record.get("changed", {})] == ([key] if flipped else [])
        last = done.path
    shutil.rmtree(tmp)


def test_what_was_put_right_is_vouched_for_again(folders: dict[str, Path], tmp_path: Path) -> None:
    made = shutil.copytree(folders["original"], tmp_path / "a")
    flip(made, 5, 3)
    again = converter.convert(made, tmp_path / "b")
    assert told(again.notes)[0].endswith(UNLIKE)
    flip(again.path, 5, 3)
    done = converter.convert(again.path, tmp_path / "c")
    assert told(done.notes)[0].endswith(LIKE)
    assert "changed" not in done.record


@pytest.mark.parametrize("end", [{"to": "original"}, {"to": "original", "dtype": "float16"}, {}, {"dtype": "float16"}])
@pytest.mark.parametrize("at", [-1, -40])
def test_a_sidecar_that_changed_is_refused_in_every_direction(
    folders: dict[str, Path], tmp_path: Path, end: dict[str, Any], at: int
) -> None:
    made = shutil.copytree(folders["original"], tmp_path / "a")
    data = bytearray((made / SIDECAR).read_bytes())
    data[at] ^= 1
    (made / SIDECAR).write_bytes(data)
    target = tmp_path / ("b.pth" if end.get("to") else "b")
    with pytest.raises(converter.InputError, match=r"y_embedding: is not what conversion\.json says"):
        converter.convert(made, target, **stated(**end))
    assert not target.exists()


@pytest.mark.parametrize("options", [{}, {"dtype": "float16"}])
def test_a_result_that_is_there_already_says_it_too(
    folders: dict[str, Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    made = shutil.copytree(folders["original"], tmp_path / "a")
    flip(made, 5, 3)
    pair = Pair(str(made), str(tmp_path / "b"))
    for status in ("converted", "unchanged"):
        (done,) = converted([pair], **options)
        assert done.status == status, done.words
        assert told(done.notes) == [f"1 of 57 tensors {UNLIKE}"]


@pytest.mark.parametrize("odd", [7, [], {"a": 7}, "x"])
def test_a_record_whose_changes_are_none_is_not_believed(folders: dict[str, Path], tmp_path: Path, odd: Any) -> None:
    made = shutil.copytree(folders["original"], tmp_path / "a")
    content = json.loads((made / RECORD).read_text())
    (made / RECORD).write_text(json.dumps(content | {"changed": odd}))
    assert any("is ignored" in note for note in converter.convert(made, tmp_path / "b").notes)
