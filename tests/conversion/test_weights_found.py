"""Weights wherever trainers put them: what `convert`, `inspect`, `diff` and parity take of files that people hold.

Every file is written by torch itself; the names of keys are those that the named library writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import HEADS, State, convert, pixart, prefixed, save
from safetensors.torch import save_file
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

import converter
from converter import diff, inspect
from converter.conversion.model_files import open_model
from converter.errors import ConverterError, InputError, UsageError
from converter.parity import check
from converter.parity.ci.cache import digest

RAW, EMA = pixart(seed=1), pixart(seed=2)
OPTIMIZER = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": RAW["t_block.1.weight"]}}, "param_groups": [{"lr": 1}]}


def module(state: State) -> torch.nn.Module:
    """A tree of modules with this state dict."""
    root = torch.nn.Module()
    for key, tensor in state.items():
        *parents, name = key.split(".")
        place = root
        for parent in parents:
            if parent not in dict(place.named_children()):
                place.add_module(parent, torch.nn.Module())
            place = place.get_submodule(parent)
        place.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=False))
    return root


def averaged(state: State) -> State:
    return AveragedModel(module(state), use_buffers=True).state_dict()


def compiled(state: State) -> State:
    whole = module(state)
    blocks = whole.get_submodule("blocks")
    for name, block in list(blocks.named_children()):
        setattr(blocks, name, torch.compile(block) if name == "0" else checkpoint_wrapper(block))
    return whole.state_dict()


def ema_pytorch(online: torch.nn.Module) -> State:
    """Of `EMA(model).state_dict()`: the model itself is a part of it, the very same tensors."""
    found = prefixed(online.state_dict(), "online_model.") | prefixed(EMA, "ema_model.")
    return found | {"initted": torch.tensor([True]), "step": torch.tensor([3])}


ONLINE = module(RAW)
# name -> (what torch.save is given, or makes that; where the raw weights lie, where the EMA)
HELD: dict[str, tuple[Any, str, str]] = {
    "torch's recipe": (
        {"epoch": 1, "model_state_dict": RAW, "optimizer_state_dict": OPTIMIZER, "loss": 0.1}, "model_state_dict", "",
    ),
    "DeepSpeed": (
        {"module": RAW, "optimizer": OPTIMIZER, "param_shapes": [{}], "ds_version": "0.16"}, "module", "",
    ),
    "a merged distributed checkpoint": ({"app": {"model": RAW, "optim": OPTIMIZER}}, "app.model", ""),
    "Composer": ({"state": {"model": prefixed(RAW, "module."), "optimizers": {"AdamW": OPTIMIZER}}}, "state.model", ""),
    "torch's AveragedModel": ({"model": RAW, "ema": averaged(EMA)}, "model", "ema"),
    "Lightning's averaging": (
        {"state_dict": prefixed(EMA, "model."), "current_model_state": prefixed(RAW, "model."), "epoch": 2},
        "current_model_state", "state_dict",
    ),
    "mmengine's EMAHook": (
        {"meta": {}, "message_hub": {}, "state_dict": EMA, "ema_state_dict": prefixed(RAW, "module.")},
        "ema_state_dict", "state_dict",
    ),
    "timm": (
        {"state_dict": RAW, "state_dict_ema": EMA, "arch": "PixArt", "optimizer": OPTIMIZER}, "state_dict",
        "state_dict_ema",
    ),
    "BasicSR": ({"params": RAW, "params_ema": EMA}, "params", "params_ema"),
    "distillation": ({"generator": RAW, "generator_ema": EMA, "step": 3}, "generator", "generator_ema"),
    "ema-pytorch": ({"model": ONLINE.state_dict(), "ema": ema_pytorch(ONLINE), "step": 3}, "model", "ema.ema_model"),
    "a list": ([{"lr": 0.1}, {"net": RAW}], "1.net", ""),
    "deep": ({"state": {"app": {"model": {"net": prefixed(RAW, "wrapped.by.me.")}}}}, "state.app.model.net", ""),
    "blocks compiled and checkpointed": (lambda: {"state_dict": compiled(RAW)}, "state_dict", ""),
    "the same dict twice": ({"model": RAW, "state_dict": RAW}, "model", ""),
    "beside parameter groups": ({"model": RAW, "param_groups": [{"lr": 1}], "state": {}}, "model", ""),
    "under whole numbers": ({100: {"model": RAW}}, "100.model", ""),

    "moments under the weights' names": ({"net": RAW, "exp_avg": EMA, "grads": EMA}, "net", ""),
}  # fmt: skip


def saved(folder: Path, content: Any) -> Path:
    return save(content, folder / "held.ckpt")


def equal(path: Path, wanted: State, **which: Any) -> bool:
    with open_model(path, **which) as checkpoint:
        found = {key: tensor.torch() for key, tensor in checkpoint.items()}
    return found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("name", HELD)
def test_where_the_weights_lie(tmp_path: Path, name: str) -> None:
    content, raw, ema = HELD[name]
    path = saved(tmp_path, content() if callable(content) else content)
    assert equal(path, RAW)
    for weights, where, state in (("raw", raw, RAW), ("ema", ema, EMA)):
        if not where:
            with pytest.raises(UsageError, match="`weights` ema, but the file holds only raw weights"):
                equal(path, EMA, weights="ema")
            continue
        assert equal(path, state, weights=weights)
        assert equal(path, state, state_dict_key=where)
        source = convert(path, tmp_path / weights, weights=weights).record["source"]
        assert (source["weights"], source["where"]) == (weights, where)


@pytest.mark.parametrize("place", ["opt", "optimizer_and_model", "optim"])
def test_in_a_place_where_optimizers_keep_theirs(tmp_path: Path, place: str) -> None:
    assert equal(saved(tmp_path, {place: {"model": RAW}, "step": 3}), RAW)


def test_the_record_and_parity_name_the_place(tmp_path: Path) -> None:
    """Parity takes the very weights that the record names, and says which ones others are."""
    path = saved(tmp_path, HELD["Lightning's averaging"][0])
    made = convert(path, tmp_path / "out", weights="ema")
    assert "state_dict: Lightning's WeightAveraging keeps the average there" in made.notes
    record = json.loads((made.path / "conversion.json").read_text())
    for source in (record["source"], {k: v for k, v in record["source"].items() if k != "where"}):
        # Records of conversions of conversions have not always passed on where the weights lay.
        (made.path / "conversion.json").write_text(json.dumps(record | {"source": source}))
        report = check(path, tmp_path / "out")
        assert report.verdict == "PASS", report.reason
        assert (report.original["weights"], report.original["where"]) == ("ema", "state_dict")
    assert inspect(made.path)["source"]["weights"] == "ema"
    assert converter.convert(made.path, tmp_path / "again", max_shard_size=3000).record["source"]["weights"] == "ema"
    wrong = check(path, tmp_path / "out", weights="raw")
    assert wrong.verdict == "FAIL"
    assert "the converted model has the ema weights of the file, state_dict (--weights ema)" in wrong.reason
    assert diff(path, path, weights_b="ema").words.startswith("B is the EMA weights of A, byte for byte")


DOUBTFUL: dict[str, tuple[Any, str]] = {
    "an exchange that may be": (
        {"state_dict": RAW, "ema_state_dict": EMA}, "unknown: some frameworks exchange the two when they save",
    ),
    "students and teachers": ({"student": RAW, "teacher": EMA}, "student (raw), teacher (unknown)"),
    "one of an unknown name beside an EMA": ({"mine": RAW, "ema": EMA}, "mine (unknown), ema (ema)"),
    "two of unknown names": ({"one": RAW, "two": EMA}, "one (unknown), two (unknown)"),
    "in one state dict": ({**prefixed(RAW, "one."), **prefixed(EMA, "two.")}, "one (unknown), two (unknown)"),
    "two raw ones": ({"state_dict": RAW, "model": EMA}, "several raw state dicts"),
}  # fmt: skip


@pytest.mark.parametrize("name", DOUBTFUL)
def test_where_it_is_doubtful_the_user_chooses_by_the_place(tmp_path: Path, name: str) -> None:
    content, words = DOUBTFUL[name]
    path = saved(tmp_path, content)
    with pytest.raises(InputError) as refused:
        convert(path, tmp_path / "out")
    assert words in str(refused.value)
    flag = str(refused.value).rpartition("`state_dict_key` ")[2]
    assert equal(path, RAW, state_dict_key=flag)
    made = convert(path, tmp_path / "out", state_dict_key=flag)
    assert made.record["source"]["where"] == flag
    assert check(path, tmp_path / "out").verdict == "PASS"
    with pytest.raises(UsageError, match="`state_dict_key` nowhere: there is "):
        equal(path, RAW, state_dict_key="nowhere")
    with pytest.raises(UsageError, match="give one"):
        equal(path, RAW, state_dict_key=flag, weights="raw")


def test_of_two_averages_the_note_names_the_place(tmp_path: Path) -> None:
    """What a note or an error advises has to work."""
    path = saved(tmp_path, {"model": RAW, "ema_fast": EMA, "ema_slow": pixart(seed=3)})
    made = convert(path, tmp_path / "out")
    (told,) = (note for note in made.notes if note.startswith("took the raw"))
    assert "--state_dict_key ema_fast takes those" in told
    assert equal(path, EMA, state_dict_key="ema_fast")
    with pytest.raises(InputError, match=r"several ema state dicts: ema_fast .*`state_dict_key` ema_fast"):
        equal(path, EMA, weights="ema")
    with pytest.raises(UsageError, match=r"`weights` raw \(ema_fast holds ema weights too\)"):
        convert(path, tmp_path / "new", require_evidence=True)


NAMELESS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "diffusers' EMAModel": (
        {"decay": 0.9, "shadow_params": list(EMA.values())}, ("shadow_params", "without names", "EMAModel.copy_to"),
    ),
    "a module": ({"model": module(RAW), "epoch": 3}, ("model: a whole pickled module", "save its .state_dict()")),
    "an optimizer": ({"optimizer": OPTIMIZER, "epoch": 3}, ("an optimizer's state but no weights",)),
    "its own state": (OPTIMIZER, ("an optimizer's state but no weights",)),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMELESS)
def test_what_cannot_be_read_is_called_what_it_is(tmp_path: Path, name: str) -> None:
    content, words = NAMELESS[name]
    with pytest.raises(InputError) as refused:
        convert(saved(tmp_path, content), tmp_path / "out")
    assert all(word in str(refused.value) for word in words)
    assert str(refused.value).isprintable()


def test_an_average_without_names_is_told_to_who_asks_for_it(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": RAW, "ema": {"shadow_params": list(EMA.values())}})
    assert equal(path, RAW)
    assert any("ema.shadow_params" in entry for entry in inspect(path)["other_entries"])
    with pytest.raises(UsageError, match=r"only raw weights \(model\); ema\.shadow_params: \d+ tensors in a list"):
        equal(path, EMA, weights="ema")


BESIDE = {
    "vae.decoder.conv_in.weight": torch.ones(2), "text_encoders.t5.encoder.block.0.layer.0.w": torch.ones(2),
    "betas": torch.ones(3), "loss.lpips.lin0.weight": torch.ones(1),
}  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "model.", "net.dit."])
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_whole_program_in_one_file(tmp_path: Path, prefix: str, suffix: str) -> None:
    path = tmp_path / f"all{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(prefixed(RAW, prefix) | BESIDE, path)
    assert equal(path, RAW)
    made = convert(path, tmp_path / "out")
    (told,) = (note for note in made.notes if note.startswith("left out"))
    assert all(name in told for name in ("vae.* (1 key)", "text_encoders.*", "betas", "loss.*"))
    assert sorted(inspect(path)["left_out"]) == sorted(BESIDE)
    assert check(path, tmp_path / "out").verdict == "PASS"


@pytest.mark.parametrize(("more", "words"), [
    ({"controlnet.0.before_proj.weight": torch.ones(1)}, "a PixArt ControlNet"),
    ({"lora_unet_blocks_0_attn.lora_down.weight": torch.ones(1)}, "LoRA"),
    ({"pos_embed": RAW["pos_embed"]}, "mixed prefixes"),
])  # fmt: skip
def test_what_changes_the_model_is_not_left_out(tmp_path: Path, more: State, words: str) -> None:
    path = saved(tmp_path, prefixed(RAW, "base_model.") | more)
    with pytest.raises(InputError) as refused:
        convert(path, tmp_path / "out")
    assert words in str(refused.value)


def test_the_keys_that_are_not_known_are_shown(tmp_path: Path) -> None:
    half = {key: RAW[key] for key in list(RAW)[:4]}
    path = saved(tmp_path, half | {f"mine.{n}.weight": torch.ones(1) for n in range(9)})
    with pytest.raises(InputError, match=r"knows these keys: mine\.\{0\.\.8\}\.weight \(the other 4 of 13 are known\)"):
        convert(path, tmp_path / "out")


names = st.sampled_from(["state", "run", "trainer", "model", "net", "best", "ckpt", "x y", "a.b"])
values: st.SearchStrategy[Any] = st.sampled_from([3, 0.5, None, "text", torch.ones(2), [1, 2], {"lr": 0.1}])


@settings(max_examples=40)
@given(
    st.lists(names, min_size=1, max_size=5), st.dictionaries(st.text(max_size=5), values, max_size=4), st.integers(0, 4)
)
def test_any_nesting(
    tmp_path_factory: pytest.TempPathFactory, path: list[str], others: dict[str, Any], at: int
) -> None:
    """One model's weights are found wherever they lie, beside whatever else."""
    content: Any = RAW
    for depth, key in enumerate(reversed(path)):
        content = (others if depth == at else {}) | {key: content}
    where = saved(tmp_path_factory.mktemp("nested"), content)
    assert equal(where, RAW)
    with open_model(where) as checkpoint:
        place = checkpoint.selected.where
    assert equal(where, RAW, state_dict_key=place)


def test_folders_of_raw_and_averaged_weights(tmp_path: Path) -> None:
    """What the training scripts of diffusers save: the model, and its EMA by `EMAModel.save_pretrained`."""
    (checkpoint_500 := tmp_path / "checkpoint-500").mkdir()
    for name, state in (("transformer", RAW), ("transformer_ema", EMA)):
        place = convert(saved(tmp_path, {"state_dict": state}), tmp_path / f"made-{name}").path
        (place / "transformer").rename(checkpoint_500 / name)
    config = checkpoint_500 / "transformer_ema" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"decay": 0.9999, "use_ema_warmup": True}))

    def made(path: Path, **which: Any) -> tuple[str, str, list[str], bytes]:
        done = convert(path, tmp_path / "out", **which, overwrite=True)
        weights = done.path / "transformer" / "diffusion_pytorch_model.safetensors"
        return done.record["source"]["weights"], done.record["source"]["where"], done.notes, weights.read_bytes()

    raw, ema = made(checkpoint_500), made(checkpoint_500, weights="ema")
    assert raw[:2] == ("raw", "transformer")
    assert "took the raw weights (transformer); EMA weights are there too: --weights ema takes those" in raw[2]
    assert ema[:2] == ("ema", "transformer_ema")
    assert raw[3] != ema[3]
    for path in (checkpoint_500 / "transformer_ema", checkpoint_500 / "transformer"):
        assert made(path, weights="ema")[3] == ema[3]
    assert made(checkpoint_500 / "transformer_ema")[:2] == ("ema", "transformer_ema")
    assert made(checkpoint_500, state_dict_key="transformer")[3] == raw[3]
    assert {"transformer", "transformer_ema"} <= {Path(name).parts[0] for name in digest(checkpoint_500)}
    (checkpoint_500 / "transformer_ema").rename(checkpoint_500 / "ema_transformer")
    assert made(checkpoint_500, weights="ema")[1] == "ema_transformer"
    (checkpoint_500 / "ema_transformer").rename(checkpoint_500 / "transformer_ema")
    (checkpoint_500 / "transformer").rename(checkpoint_500 / "non_ema")
    assert made(checkpoint_500 / "non_ema")[0] == "raw"
    (checkpoint_500 / "non_ema").rename(checkpoint_500 / "model")
    (checkpoint_500 / "transformer_ema").rename(checkpoint_500 / "model_ema")
    assert (made(checkpoint_500)[3], made(checkpoint_500, weights="ema")[3]) == (raw[3], ema[3])


@pytest.mark.parametrize(("name", "weights"), [
    ("pixart_ema.pth", "ema"), ("x-EMA.pth", "ema"), ("ema_0.9999_400000.pt", "ema"), ("pixart_non_ema.pth", "raw"),
    ("schema.pth", "raw"), ("epoch_5.pth", "raw"),
])  # fmt: skip
def test_of_a_bare_state_dict_the_name_is_all_there_is(tmp_path: Path, name: str, weights: str) -> None:
    torch.save(RAW, tmp_path / name)
    assert inspect(tmp_path / name)["source"]["weights"] == weights


def test_what_a_record_names_and_is_gone_is_told(tmp_path: Path) -> None:
    """However many conversions later; and so is a config that was changed since."""
    made = convert(saved(tmp_path, {"state_dict": RAW}), tmp_path / "out")
    (made.path / "original_extras.safetensors").unlink()
    config = made.path / "transformer" / "config.json"
    content = json.loads(config.read_text())
    heads = content["num_attention_heads"]
    content |= {"num_attention_heads": heads // 2, "attention_head_dim": content["attention_head_dim"] * 2}
    config.write_text(json.dumps(content))
    for hop, options in enumerate(({"max_shard_size": 3000}, {"dtype": "bfloat16"})):
        notes = converter.convert(made.path, tmp_path / str(hop), **options).notes
        assert any("missing tensors that" in note and "y_embedder.y_embedding" in note for note in notes)
        assert any(note.startswith(f"num_attention_heads is {heads // 2}") for note in notes)
        assert not any("all " in note and "are what" in note for note in notes)


def test_a_quantised_text_encoder_beside_the_model_does_not_matter(tmp_path: Path) -> None:
    """Of what is left out no dtype counts, whatever the container."""
    beside = {
        "text_encoders.t5.q.weight": torch.ones(2, 2).to(torch.float8_e4m3fn),
        "vae.phase": torch.ones(2, dtype=torch.complex64),
    }
    save_file(prefixed(RAW, "model.diffusion_model.") | beside, tmp_path / "all.safetensors")
    assert equal(tmp_path / "all.safetensors", RAW)
    broken = prefixed(RAW, "model.") | {"model.t_block.1.weight": RAW["t_block.1.weight"].to(torch.float8_e4m3fn)}
    save_file(broken, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"t_block\.1\.weight: dtype F8_E4M3 is not accepted"):
        equal(tmp_path / "model.safetensors", RAW)


def test_the_command_line(cli: Callable[..., Any], tmp_path: Path) -> None:
    path = saved(tmp_path, {"student": RAW, "teacher": EMA})
    made = ("convert-pixart", "--orig_ckpt_path", path, "--dump_path", tmp_path / "out", "--num_attention_heads", HEADS)
    drafted = ("pixart", "new-family", "drafted", path, "--out", tmp_path / "drafted.py")
    diffed = ("pixart", "diff", path, path)
    for command in (made, ("pixart", "inspect", path), diffed, drafted):
        done = cli(*command)
        assert done.returncode == 3
        assert f"--state_dict_key{'_a' if command == diffed else ''} student" in done.stderr
    assert cli(*drafted, "--state_dict_key", "student").returncode == 0
    assert cli(*diffed, "--state_dict_key_a", "student", "--state_dict_key_b", "teacher").returncode == 1
    done = cli("pixart", "inspect", path, "--state_dict_key", "teacher", "--json")
    assert json.loads(done.stdout)["source"]["where"] == "teacher"
    assert cli(*made, "--state_dict_key", "teacher").returncode == 0
    assert cli("pixart", "parity", "--orig_ckpt_path", path, "--converted_path", tmp_path / "out").returncode == 0


def test_a_file_is_never_both(tmp_path: Path) -> None:
    """Whatever a flag asks for and the file lacks is an error of the library too."""
    path = saved(tmp_path, {"ema": EMA})
    for which in ({"weights": "raw"}, {"state_dict_key": "model"}):
        with pytest.raises(ConverterError):
            convert(path, tmp_path / "out", **which)
    assert not (tmp_path / "out").exists()
