"""The package as others use it: its names, lazy checkpoints, tables on live state dicts, families of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers import CONTAINERS, GOLDEN, ROOT, convert, diffusers_keyed, pixart, raw_bytes, save, tree
from safetensors.torch import load_file, save_file

import converter
from converter import families
from converter.models.pixart.table import KEYS

ALPHA = GOLDEN / "alpha-ms.pth"
SIGMA = GOLDEN / "sigma-ms.pth"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def test_importing_it_costs_nothing() -> None:
    code = (
        "import sys; before = set(sys.modules); import converter; "
        "print(*sorted({m.partition('.')[0] for m in set(sys.modules) - before if not m.startswith('converter')}))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-S", "-c", code], env=environment, capture_output=True, text=True)
    assert result.stderr == ""
    assert not set(result.stdout.split()) & {"torch", "numpy", "click", "diffusers", "safetensors", "tqdm", "json"}


def test_every_name_that_it_promises_is_there() -> None:
    assert sorted(converter.__all__) == converter.__all__
    for name in converter.__all__:
        assert getattr(converter, name) is not None
    assert (Path(converter.__file__).parent / "py.typed").exists()
    with pytest.raises(AttributeError, match="no attribute 'convertt'"):
        _ = converter.convertt


def test_the_errors() -> None:
    assert issubclass(converter.UsageError, converter.ConverterError)
    assert issubclass(converter.InputError, converter.ConverterError)
    assert issubclass(converter.MappingError, converter.InputError)
    codes = [e.exit_code for e in (converter.UsageError, converter.InputError, converter.ConverterError)]
    assert codes == [2, 3, 5]


def test_a_checkpoint_is_a_read_only_mapping_of_what_torch_loads() -> None:
    loaded = torch.load(ALPHA, weights_only=True)
    for weights, key in ((None, "state_dict"), ("raw", "state_dict"), ("ema", "state_dict_ema")):
        with converter.open_checkpoint(ALPHA, weights=weights) as checkpoint:
            assert isinstance(checkpoint, Mapping)
            assert not hasattr(checkpoint, "__setitem__")
            assert list(checkpoint) == list(loaded[key])
            assert len(checkpoint) == len(loaded[key])
            assert "pos_embed" in checkpoint
            assert "module.pos_embed" not in checkpoint
            with pytest.raises(KeyError):
                checkpoint["nothing"]
            for name, tensor in checkpoint.items():
                wanted = loaded[key][name]
                assert tensor.shape == tuple(wanted.shape)
                assert tensor.dtype.name == str(wanted.dtype).removeprefix("torch.")
                assert tensor.read() == raw_bytes(wanted)
                assert torch.equal(tensor.torch(), wanted)
                assert np.array_equal(tensor.numpy(), wanted.numpy())
            assert "alpha-ms.pth" in repr(checkpoint)


def test_a_tensor_of_a_closed_checkpoint_cannot_be_read(tmp_path: Path) -> None:
    with converter.open_checkpoint(SIGMA) as checkpoint:
        tensor = checkpoint["pos_embed"]
    with pytest.raises(converter.InputError):
        tensor.read()


def test_opening_leaves_no_descriptor_behind(tmp_path: Path) -> None:
    bad = save({"a": 1}, tmp_path / "bad.pth")
    before = set(os.listdir("/proc/self/fd"))
    for path in (SIGMA, bad, tmp_path / "absent", GOLDEN / "dit.pt", tmp_path):
        for call in (converter.open_checkpoint, converter.inspect):
            try:
                opened = call(path)
            except converter.InputError:
                continue
            if isinstance(opened, converter.Checkpoint):
                opened.close()
    convert(SIGMA, tmp_path / "out")
    with pytest.raises(converter.InputError):
        converter.convert(GOLDEN / "sana-controlnet.pth", tmp_path / "no")
    assert set(os.listdir("/proc/self/fd")) == before


def test_weights_that_do_not_exist_as_a_word() -> None:
    with pytest.raises(converter.UsageError, match="`weights` best: one of raw, ema"):
        converter.open_checkpoint(SIGMA, weights="best")


def test_inspecting_reads_the_index_and_not_the_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(CONTAINERS["training-alpha"](pixart(hidden_size=120, depth=4)), tmp_path / "made.pth")
    read = 0
    real = os.preadv

    def counting(fd: int, buffers: Any, offset: int) -> int:
        nonlocal read
        count = real(fd, buffers, offset)
        read += count
        return count

    monkeypatch.setattr(os, "preadv", counting)
    converter.inspect(path)
    assert 0 < read < path.stat().st_size // 50


def test_what_convert_returns(tmp_path: Path) -> None:
    done = convert(str(SIGMA), str(tmp_path / "out"))
    assert done.path == tmp_path / "out"
    assert done.written
    assert done.record["tensors"] == 62
    planned = convert(SIGMA, tmp_path / "other", dry_run=True)
    assert not planned.written
    assert not (tmp_path / "other").exists()
    assert [row["source"] for row in planned.record["plan"]] == [row["source"] for row in done.record["plan"]]


def test_progress_adds_up_to_what_it_announced(tmp_path: Path) -> None:
    totals: list[int] = []
    counts: list[int] = []
    lock = threading.Lock()

    def progress(total: int) -> Any:
        totals.append(total)

        def step(count: int) -> None:
            with lock:
                counts.append(count)

        return step

    convert(SIGMA, tmp_path / "out", progress=progress)
    assert len(totals) == 1
    # The headers are counted as bytes to come and are not read in parts: at most a few per cent.
    assert 0.95 * totals[0] < sum(counts) <= totals[0]
    assert all(count > 0 for count in counts)


def test_an_exception_of_the_caller_passes_through_and_leaves_nothing(tmp_path: Path) -> None:
    def progress(total: int) -> Any:
        def step(count: int) -> None:
            raise LookupError("mine")

        return step

    with pytest.raises(LookupError, match="mine"):
        convert(SIGMA, tmp_path / "out", progress=progress)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("targets", [1, 4])
def test_from_several_threads_at_once(targets: int, tmp_path: Path) -> None:
    """Into folders of their own, and into one: there, one whole result."""
    wanted, failures = tree(convert(SIGMA, tmp_path / "wanted").path), []
    outs = [tmp_path / str(i % targets) for i in range(4)]

    def work(out: Path) -> None:
        try:
            convert(SIGMA, out)
        except converter.UsageError as error:
            failures.append(str(error))

    threads = [threading.Thread(target=work, args=(out,)) for out in outs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(tree(out) == wanted for out in outs)
    assert len(failures) <= 4 - targets
    assert {p.name for p in tmp_path.iterdir()} == {"wanted", *(out.name for out in outs)}


@pytest.mark.parametrize("name", ["alpha-ms", "alpha-fixed", "sigma-ms"])
def test_keys_there_and_back_with_torch(name: str) -> None:
    loaded = torch.load(GOLDEN / f"{name}.pth", weights_only=True)
    state = loaded.get("state_dict", loaded)
    theirs = KEYS(state)
    wanted = diffusers_keyed(state)
    assert theirs.keys() == wanted.keys()
    assert all(torch.equal(theirs[key], wanted[key]) for key in wanted)
    left = KEYS.left(state)
    assert set(left) == {"pos_embed", "y_embedder.y_embedding"}
    back = KEYS.inverse(theirs, left)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_keys_with_numpy_and_as_views() -> None:
    state = {key: tensor.numpy() for key, tensor in pixart().items()}
    theirs = KEYS(state)
    assert np.shares_memory(theirs["transformer_blocks.0.attn1.to_k.weight"], state["blocks.0.attn.qkv.weight"])
    back = KEYS.inverse(theirs)
    assert back.keys() == state.keys() - {"pos_embed", "y_embedder.y_embedding"}
    assert all(np.array_equal(back[key], state[key]) for key in back)


def test_a_family_may_have_a_prefix_on_some_of_its_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`model.embed` beside `lm_head`: to others a mixture, to it the names of its tensors."""
    keys = converter.KeyMapping({"model.{}.fc [W W]": "layers.{}", "lm_head [V W]": "head"})
    toy = converter.Family("toy", "Toy", keys, lambda *_: None, lambda found: {}, subfolder="prior")
    monkeypatch.setattr(families, "_REGISTERED", {"toy": toy})
    state = {f"{name}.{part}": torch.randn(3, 3) if part == "weight" else torch.randn(3)
             for name in ("model.0.fc", "model.1.fc", "lm_head") for part in ("weight", "bias")}  # fmt: skip
    for made in (state, {f"module.{key}": tensor for key, tensor in state.items()}):
        path = save(made, tmp_path / "toy.pth")
        with converter.open_checkpoint(path) as checkpoint:
            assert set(checkpoint) == set(state)
        done = converter.convert(path, tmp_path / "out", overwrite=True)
        written = load_file(done.path / "prior" / "diffusion_pytorch_model.safetensors")
        assert torch.equal(written["layers.1.weight"], state["model.1.fc.weight"])
        assert len(written) == len(state)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_of_a_known_family_a_prefix_on_some_keys_is_refused_by_name(share: float, tmp_path: Path) -> None:
    state = pixart()
    some = list(state)[: round(len(state) * share)]
    mixed = {f"module.{key}" if key in some else key: tensor for key, tensor in state.items()}
    path = save(mixed, tmp_path / "mixed.pth")
    says = rf"mixed\.pth: .*{len(some)} of {len(state)} keys carry the prefix 'module\.' .* mixed prefixes"
    with pytest.raises(converter.InputError, match=says) as caught:
        convert(path, tmp_path / "out")
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert any("mixed prefixes" in problem for problem in converter.inspect(path)["problems"])


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_table_works_on_an_open_checkpoint_unread(suffix: str, tmp_path: Path) -> None:
    state = pixart()
    path = tmp_path / f"made.{suffix}"
    save_file(state, path) if suffix == "safetensors" else save(state, path)
    with converter.open_checkpoint(path) as checkpoint:
        lazy = KEYS(checkpoint)
        left = KEYS.left(checkpoint)
        assert all(isinstance(tensor, converter.LazyTensor) for tensor in [*lazy.values(), *left.values()])
        whole = KEYS(state)
        assert lazy.keys() == whole.keys()
        assert all(torch.equal(lazy[key].torch(), whole[key]) for key in whole)
        with pytest.raises(TypeError, match=r"a LazyTensor cannot be concatenated: give arrays, such as its numpy\(\)"):
            KEYS.inverse(lazy)
        arrays = {key: tensor.numpy() for key, tensor in lazy.items()}
        back = KEYS.inverse(arrays, {key: tensor.numpy() for key, tensor in left.items()})
        assert back.keys() == state.keys()
        assert all(np.array_equal(back[key], state[key].numpy()) for key in state)
