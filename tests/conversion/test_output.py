"""Where a conversion goes and in which files: named and cut as huggingface_hub and diffusers name and cut them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.serialization._base import parse_size_to_int
from hypothesis import example, given, settings
from hypothesis import strategies as st
from makers import GOLDEN, HEADS, State, pixart, raw_bytes, save, stated, tree
from safetensors.torch import load_file

import converter
from converter.checkpoint import LazyTensor
from converter.checkpoint.dtypes import BY_CODE, F16, F32
from converter.checkpoint.file import InputFile
from converter.checkpoint.tensor import Storage, row_major
from converter.checkpoint.write.publish import FilePublication, Publication
from converter.conversion.options import ConversionOptions
from converter.conversion.output import Destination, bytes_of
from converter.conversion.record import files_we_wrote
from converter.conversion.write import TensorWrite
from converter.errors import UsageError
from converter.models.pixart.table import PIXART

U8 = BY_CODE["U8"]
SOURCE = InputFile(Path(__file__))  # whose bytes are never asked for


def part(*keys: str, rows: int = 4, width: int = 1, dtype: Any = U8) -> TensorWrite:
    shape = (rows * len(keys), width)
    place = Storage(SOURCE, keys[0], shape[0] * width * dtype.itemsize)
    return TensorWrite((LazyTensor(keys[0], dtype, shape, place, row_major(shape)),), keys, dtype)


def test_a_link_decides_where_a_file_lies_and_not_what_it_is(tmp_path: Path) -> None:
    """As in a cache, where names are links to blobs."""
    source = save(pixart(), tmp_path / "a.pth")
    for name in ("b.safetensors", "b.pth"):
        (tmp_path / "blob").write_bytes(b"old")
        (tmp_path / name).symlink_to("blob")
        words: dict[str, Any] = {"to": "original", "num_attention_heads": HEADS, "overwrite": True}
        converter.convert(source, tmp_path / name, **stated(**words))
        assert (tmp_path / name).is_symlink()
        state = load_file(tmp_path / name) if name == "b.safetensors" else torch.load(tmp_path / name)
        state = state.get("state_dict", state)
        assert state.keys() == pixart().keys()
        assert all(torch.equal(state[key], tensor) for key, tensor in pixart().items())


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 40), st.sampled_from(["", "fp8", "a-b_c"]))
@example([6, 6, 2, 6, 2, 2], 10, "")  # the example of huggingface_hub's documentation
@example([30, 1, 30, 1], 5, "")
@example([5], 5, "")
@example([1, 6, 1], 5, "")
@settings(max_examples=300)
def test_cut_as_huggingface_hub_cuts(sizes: list[int], limit: int, variant: str) -> None:
    """The same names, the same tensors in each, the same index."""
    tensors = {f"w{(n * 7) % 41:02}": torch.zeros(size, dtype=torch.uint8) for n, size in enumerate(sizes)}
    stem = "diffusion_pytorch_model" + (f".{variant}" if variant else "")
    theirs = huggingface_hub.split_torch_state_dict_into_shards(
        tensors, max_shard_size=limit, filename_pattern=stem + "{suffix}.safetensors"
    )
    parts = [part(key, rows=tensor.numel()) for key, tensor in tensors.items()]
    wanted = Destination.of("out", ConversionOptions(max_shard_size=limit, variant=variant))
    files, texts = wanted.files(parts, PIXART)
    found = {file.name: [entry.key for entry in file.layout.entries] for file in files}
    assert found == {f"transformer/{name}": sorted(keys) for name, keys in theirs.filename_to_tensors.items()}
    if not theirs.is_sharded:
        assert texts == {}
        return
    suffix = f".{variant}" if variant else ""
    ((name, text),) = texts.items()
    assert name == f"transformer/diffusion_pytorch_model.safetensors.index{suffix}.json"
    index = json.loads(text)
    assert index["weight_map"] == theirs.tensor_to_filename
    assert index["metadata"] == theirs.metadata
    assert list(index["weight_map"]) == sorted(index["weight_map"])


def test_one_file_however_large_without_a_limit_and_parts_of_a_split_tensor_in_different_shards() -> None:
    huge, split = [part("huge", rows=10**13), part("more", rows=10**13)], [part("q", "k", "v", rows=5)]
    for limit, parts, held in ((None, huge, [["huge", "more"]]), (10, split, [["k", "q"], ["v"]])):
        files, _ = Destination.of("out", ConversionOptions(max_shard_size=limit)).files(parts, PIXART)
        assert [[entry.key for entry in file.layout.entries] for file in files] == held


@pytest.fixture(scope="module")
def state() -> State:
    return pixart()


@pytest.fixture(scope="module")
def source(state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(state, tmp_path_factory.mktemp("source") / "a.pth")


def convert(source: Path, out: Path, **flags: Any) -> Path:
    converter.convert(source, out, **stated(num_attention_heads=HEADS, **flags))
    return out / "transformer"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "config.json")


def weights(folder: Path) -> State:
    return {key: tensor for path in sorted(folder.glob("*.safetensors")) for key, tensor in load_file(path).items()}


@pytest.mark.parametrize("variant", [None, "fp16", "non_ema"])
@pytest.mark.parametrize("limit", [None, "20KB", "1GB"])
def test_diffusers_writes_and_reads_the_same_names(
    source: Path, tmp_path: Path, variant: str | None, limit: str | None
) -> None:
    from diffusers import PixArtTransformer2DModel

    dtype = "float16" if variant == "fp16" else None
    mine = convert(source, tmp_path / "ours", variant=variant, max_shard_size=limit, dtype=dtype)
    kind = torch.float16 if dtype else torch.float32
    model = PixArtTransformer2DModel.from_pretrained(mine, variant=variant, torch_dtype=kind)
    model.save_pretrained(tmp_path / "theirs", variant=variant, max_shard_size=limit or "10GB")
    # diffusers cuts in the order of its modules, we in that of the file: how many shards that gives may differ.
    forms = [{re.sub(r"\d{5}", "N", name) for name in names(place)} for place in (mine, tmp_path / "theirs")]
    assert forms[0] == forms[1]
    assert (len(names(mine)) > 3) == (limit == "20KB")
    found, expected = weights(mine), weights(tmp_path / "theirs")
    assert {k: (v.dtype, raw_bytes(v)) for k, v in found.items()} == {
        k: (v.dtype, raw_bytes(v)) for k, v in expected.items()
    }
    if limit != "20KB":
        return
    index, other = (json.loads(next(place.glob("*index*")).read_text()) for place in (mine, tmp_path / "theirs"))
    assert set(index["weight_map"]) == set(other["weight_map"]) == set(found)
    assert index["metadata"]["total_size"] == other["metadata"]["total_size"]
    assert sum(tensor.nbytes for tensor in found.values()) == index["metadata"]["total_size"]
    # No shard is larger than was asked for, but one that holds a single tensor.
    for path in mine.glob("*.safetensors"):
        held = load_file(path)
        assert len(held) == 1 or sum(tensor.nbytes for tensor in held.values()) <= 20_000
        assert {index["weight_map"][key] for key in held} == {path.name}


def test_shards_and_variants_are_the_same_weights_and_convert_back(source: Path, state: State, tmp_path: Path) -> None:
    whole = weights(convert(source, tmp_path / "whole"))
    for flags in ({"max_shard_size": "20KB"}, {"variant": "mine"}, {"max_shard_size": "20KB", "variant": "mine"}):
        place = tmp_path / "-".join(flags)
        made = weights(convert(source, place, **stated(**flags)))
        assert {k: raw_bytes(v) for k, v in made.items()} == {k: raw_bytes(v) for k, v in whole.items()}
        with converter.open_checkpoint(place) as checkpoint:
            assert {key: tensor.read() for key, tensor in checkpoint.items()} == {
                key: raw_bytes(tensor) for key, tensor in whole.items()
            }
        back = tmp_path / "back.pth"
        converter.convert(place, back, to="original", overwrite=True)
        restored = torch.load(back, weights_only=True)["state_dict"]
        assert {k: raw_bytes(v) for k, v in restored.items()} == {k: raw_bytes(v) for k, v in state.items()}
        assert list(restored) == list(state)


def test_converted_again_with_other_shards_no_old_one_stays(source: Path, tmp_path: Path) -> None:
    place = convert(source, tmp_path / "out", max_shard_size="20KB")
    assert len(names(place)) > 3
    convert(source, tmp_path / "out", overwrite=True, variant="mine")
    assert names(place) == ["diffusion_pytorch_model.mine.safetensors"]
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert {*record["written"], "conversion.json"} == set(tree(tmp_path / "out"))


@pytest.mark.parametrize("variant", ["fp16", "bf16", "fp32"])
def test_a_variant_that_says_what_it_holds_holds_it(source: Path, tmp_path: Path, variant: str) -> None:
    kinds = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
    for dtype in (None, *kinds.values()):
        if (dtype or "float32") == kinds[variant]:
            made = weights(convert(source, tmp_path / f"{dtype}", variant=variant, dtype=dtype))
            assert {str(tensor.dtype) for tensor in made.values()} == {f"torch.{kinds[variant]}"}
            continue
        words = f"`variant` {variant}: the weights would be {dtype or 'float32'}; `dtype` {kinds[variant]} rounds them"
        with pytest.raises(UsageError, match=re.escape(words)):
            convert(source, tmp_path / "none", variant=variant, dtype=dtype)
        assert not (tmp_path / "none").exists()


@given(st.integers(1, 10**6), st.sampled_from(["", ".5", ".125", ".999"]), st.sampled_from(["", " "]), st.booleans(),
       st.sampled_from(["KB", "MB", "GB", "TB"]))  # fmt: skip
def test_a_size_is_what_huggingface_hub_makes_of_it(whole: int, part: str, space: str, lower: bool, unit: str) -> None:
    size = f"{space}{whole}{part}{space}{unit.lower() if lower else unit}{space}"
    assert bytes_of(size) == parse_size_to_int(size)
    assert bytes_of(whole**3) == bytes_of(str(whole**3)) == whole**3  # in bytes it is exact


@pytest.mark.parametrize("size", [
    "", "0", 0, -1, "-5GB", "GB", "5GiB", "5G", "5 B", "five", "1e9", "0.0001KB", "nan", "inf", "5GB5", "\uff15GB",
    "5GB\n5", None, True, "9" * 400, "9" * 400 + "GB", "9" * 5000, "\x1b[31m", ".5GB", "5.GB", 0.5,
], ids=lambda size: repr(size)[:20])  # fmt: skip
def test_what_is_no_size(size: Any) -> None:
    with pytest.raises(UsageError, match=r"`max_shard_size` .*: give a size such as 5GB") as caught:
        bytes_of(size)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("variant", [
    "a.b", "a/b", "..", "/", "a b", "x" * 41, "größe", "a\n", "\x1b", "-00001-of-00002", "fp16-00001-of-00002",
])  # fmt: skip
def test_what_is_no_name_of_a_variant(variant: str) -> None:
    """One that looks like a shard's number among them: no reader, ours included, could tell it from a shard."""
    with pytest.raises(UsageError, match=r"^`variant` ") as caught:
        destination("out", variant=variant)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("variant", ["fp16", "a", "A-1_b", "x" * 40, "00001-of-00002x"])
def test_names_of_variants(variant: str) -> None:
    parts = [part("w", dtype=F16 if variant == "fp16" else F32)]
    (file,), _ = destination("out", variant=variant).files(parts, PIXART)
    assert file.name == f"transformer/diffusion_pytorch_model.{variant}.safetensors"


def destination(path: str, **words: Any) -> Destination:
    return Destination.of(path, ConversionOptions(**words))


@pytest.mark.parametrize(("words", "rule"), [
    ({"path": "out", "to": "onnx"}, "`to` onnx: one of diffusers, original, comfyui"),
    ({"path": "out", "dtype": "float8"}, "`dtype` float8: one of float32, float16, bfloat16"),
    ({"path": "out", "to": "original"}, "out: `to` original writes a file that ends in .pth or .pt or .safetensors"),
    ({"path": "out.bin", "to": "original"}, "writes a file that ends in"),
    ({"path": "out.pth", "to": "comfyui"}, "out.pth: `to` comfyui writes a file that ends in .safetensors"),
    ({"path": "out.pth"}, "out.pth: `to` diffusers writes a folder"),
    ({"path": "out.SafeTensors"}, "`to` diffusers writes a folder"),
    ({"path": "out.pth", "to": "original", "max_shard_size": "5GB"}, "`max_shard_size` applies to the diffusers"),
    ({"path": "out.pth", "to": "original", "variant": "fp16"}, "`variant` applies to the diffusers layout only"),
])  # fmt: skip
def test_words_that_do_not_go_together(words: dict[str, Any], rule: str) -> None:
    with pytest.raises(UsageError, match=re.escape(rule)):
        destination(**words)


@pytest.mark.parametrize(("words", "kind", "first"), [
    ({"path": "a/out"}, Publication, b""), ({"path": "out.v1.0"}, Publication, b""),
    ({"path": "a/out.pth", "to": "original"}, FilePublication, b"PK"),
    ({"path": "out.PT", "to": "original"}, FilePublication, b"PK"),
    ({"path": "out.safetensors", "to": "original"}, FilePublication, b""),
    ({"path": "out.SAFETENSORS", "to": "comfyui"}, FilePublication, b""),
])  # fmt: skip
def test_kinds_of_destination(words: dict[str, Any], kind: type[Publication], first: bytes) -> None:
    wanted = destination(**words)
    assert type(wanted.publication(0, overwrite=False)) is kind
    (file,), _ = wanted.files(wanted.with_prefix([part("w")]), PIXART)
    if not wanted.folder:
        assert file.name == Path(words["path"]).name
    assert file.layout.frame({})[0][1].startswith(first)
    prefix = "model.diffusion_model." if wanted.to == "comfyui" else ""
    assert [entry.key for entry in file.layout.entries] == [f"{prefix}w"]


def test_what_is_ours_is_what_our_record_lists(tmp_path: Path) -> None:
    flags: dict[str, Any] = {"num_attention_heads": HEADS, "max_shard_size": "20KB"}
    done = converter.convert(GOLDEN / "sigma-ms.pth", tmp_path / "out", **stated(**flags))
    listed = set(done.record["written"])
    assert files_we_wrote(tmp_path / "out") == dict.fromkeys(
        [*listed, "conversion.json", "parity.json", "parity.html"], ""
    )
    assert sum("-of-" in name for name in listed) > 1
    record = tmp_path / "out" / "conversion.json"
    for text in ("", "[]", "{}", '{"tool": {"name": "other"}, "written": {"a": 1}}', '{"tool": 1, "written": {}}',
                 record.read_text().replace('"written"', '"wrote"')):  # fmt: skip
        record.write_text(text)
        assert files_we_wrote(tmp_path / "out") == {}
    record.unlink()
    assert files_we_wrote(tmp_path / "out") == files_we_wrote(tmp_path / "nowhere") == {}
