"""What is fetched of a source: the index and the weights that are kept, each byte once, and all of one version."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from makers import GOLDEN, State, convert, diffusers_keyed, folder, other, pixart, save, training, tree

import converter
from converter.checkpoint import open_checkpoint
from converter.errors import InputError
from converter.remote import fetched
from converter.remote import source as pieces

URL = "watched://runs/sigma/checkpoints/epoch_1.pth"
SIGMA = GOLDEN / "sigma-ms.pth"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, State]:
    """What training leaves (weights, their average and the optimizer's two), and the weights."""
    state = pixart(hidden_size=96, depth=3)
    return save(training(state, other(state)), tmp_path_factory.mktemp("run") / "epoch_1.pth"), state


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE", 8192)


def put(store: Any, data: bytes, url: str = URL) -> str:
    store().pipe_file(url, data)
    return url


@pytest.mark.parametrize("options", [{}, {"weights": "ema"}, {"dtype": "float16"}], ids=str)
def test_of_a_training_file_only_what_is_kept_comes_and_once(
    options: dict[str, Any], run: tuple[Path, State], watched: Any, tmp_path: Path
) -> None:
    path, state = run
    there = convert(put(watched, path.read_bytes()), tmp_path / "there", **options)
    ranges = sorted((start, end) for _, start, end in watched.ranges)
    assert all(end <= start for (_, end), (start, _) in pairwise(ranges)), "a byte came twice"
    with zipfile.ZipFile(path) as archive:
        index = path.stat().st_size - archive.start_dir + archive.getinfo("epoch_1/data.pkl").file_size
    kept = sum(tensor.nbytes for tensor in state.values())
    came = sum(end - start for start, end in ranges)
    assert came <= kept + index + (pieces.AHEAD + 4) * pieces.PIECE < path.stat().st_size / 2
    here = convert(path, tmp_path / "here", **options)
    differing = {name for name, data in tree(here.path).items() if tree(tmp_path / "there")[name] != data}
    assert differing == {"conversion.json"}  # it names the URL
    assert there.record["source"].pop("name") == URL
    assert here.record["source"].pop("name") == "epoch_1.pth"
    assert there.record == here.record


def test_shards_are_read_from_a_store(watched: Any, tmp_path: Path) -> None:
    model = folder(diffusers_keyed(pixart()), tmp_path / "model", {"_class_name": "PixArtTransformer2DModel"}, shards=3)
    for name, data in tree(model).items():
        put(watched, data, f"watched://hub/model/{name}")
    assert converter.inspect(model)["source"]["container"] == "folder of safetensors, 3 shards"
    with fetched("watched://hub/model") as path, open_checkpoint(path) as there, open_checkpoint(model) as here:
        assert {key: tensor.read() for key, tensor in there.items()} == {
            key: tensor.read() for key, tensor in here.items()
        }


def replaced(store: Any) -> None:
    store().pipe_file(URL, SIGMA.read_bytes()[:-1] + b"\0")


def gone(store: Any) -> None:
    store().rm_file(URL)


def shorter(store: Any) -> None:
    store().pipe_file(URL, SIGMA.read_bytes()[:400_000])


@pytest.mark.parametrize(("change", "words"), [
    (replaced, "another version came while it was read"),
    (gone, "no such file, folder or bucket"),
    (shorter, "it ends at offset"),
])  # fmt: skip
def test_one_that_changes_while_it_is_read_is_refused(
    change: Callable[[Any], None], words: str, watched: Any, tmp_path: Path
) -> None:
    put(watched, SIGMA.read_bytes())
    watched.on_read = staticmethod(lambda count: change(watched) if count == 5 else None)
    with pytest.raises(InputError) as refused:
        convert(URL, tmp_path / "out")
    assert str(refused.value).startswith(f"{URL}: {words}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [0, 300_000, 812_000])
def test_a_half_uploaded_file_is_refused_by_the_name_of_its_url(size: int, watched: Any, tmp_path: Path) -> None:
    put(watched, SIGMA.read_bytes()[:size])
    with pytest.raises(InputError) as refused:
        convert(URL, tmp_path / "out")
    assert str(refused.value).startswith(f"{URL}: ")
    assert "pixart-" not in str(refused.value)


def test_what_a_damaged_piece_breaks_is_named_by_its_url(watched: Any, tmp_path: Path) -> None:
    data = bytearray(SIGMA.read_bytes())
    data[400_000] ^= 1
    with pytest.raises(InputError, match=rf"^{URL}: data/\d+: CRC-32 mismatch"):
        convert(put(watched, bytes(data)), tmp_path / "out")


def test_a_full_disk_is_no_fault_of_the_source(watched: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(watched, SIGMA.read_bytes())
    real = open

    def full(path: Any, mode: str = "r", *args: Any) -> Any:
        if mode == "r+b":
            raise OSError(28, "No space left on device")
        return real(path, mode, *args)

    monkeypatch.setattr(pieces, "open", full, raising=False)
    with pytest.raises(converter.ConverterError, match="cannot be written: No space left on device") as failed:
        convert(URL, tmp_path / "out")
    assert failed.value.exit_code == 5


def test_the_record_beside_a_file_is_seen(watched: Any, tmp_path: Path) -> None:
    for name, data in tree(convert(SIGMA, tmp_path / "out").path).items():
        put(watched, data, f"watched://converted/{name}")
    weights = "watched://converted/transformer/diffusion_pytorch_model.safetensors"
    for source in (weights, "watched://converted/transformer", "watched://converted"):
        back = tmp_path / f"back-{len(source)}.pth"
        assert "all 78 tensors are what conversion.json says" in " ".join(convert(source, back, to="original").notes)
