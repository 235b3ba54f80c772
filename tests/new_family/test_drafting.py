"""Drafted tables against the true ones: what is called sure is right, and what is not known is marked or listed."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import GOLDEN, HEADS, ROOT, dit, pixart, save, stated, tree
from safetensors.torch import save_file
from shaped import inventory, shaped

import converter
from converter import Family, InputError, KeyMapping, families
from converter.mapping.rows import Row
from converter.models.dit.table import DIT
from converter.models.pixart.table import PIXART
from converter.new_family import Draft, KeyList, draft, read_keys, render
from converter.new_family.key_layout import key_layout
from converter.new_family.symbols import Symbols
from converter.new_family.values import CONSTANT

Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is registered here outlives its test."""
    monkeypatch.setattr(families, "_REGISTERED", {})


def true_rows(family: Family, keys: KeyList) -> dict[str, Row]:
    """The rows of the real table that move something of this list."""
    return {row.source: row for row in family.keys.rows if row.targets and any(map(row.match, keys.shapes))}


def judged(made: Draft, truth: dict[str, Row]) -> tuple[list[str], list[str], list[str]]:
    """(sure and right, right but marked, sure and wrong) of the rows that go to some target."""
    drafted = {row.source: row for row in made.rows if row.targets}
    right = {source for source, row in drafted.items() if source in truth and truth[source].targets == row.targets}
    sure = {source for source, row in drafted.items() if row.sure}
    return sorted(right & sure), sorted(right - sure), sorted(sure - right)


CASES = [("sigma-ms.pth", PIXART), ("alpha-ms.pth", PIXART), ("dit.pt", DIT)]


@pytest.fixture(params=CASES, ids=lambda case: case[0])
def drafted(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Draft, Family, KeyList]:
    """A recording's keys against those of the folder that stock diffusers loads."""
    name, family = request.param
    converter.convert(GOLDEN / name, tmp_path / "out", hyper_parameters={"num_attention_heads": HEADS})
    keys = read_keys(GOLDEN / name)
    return draft(keys, read_keys(tmp_path / "out")), family, keys


def test_what_is_sure_is_right_and_everything_is_found(drafted: tuple[Draft, Family, KeyList]) -> None:
    made, family, keys = drafted
    truth = true_rows(family, keys)
    sure, marked, wrong = judged(made, truth)
    assert wrong == []
    assert sorted([*sure, *marked]) == sorted(truth)  # every row of the real table
    if family is PIXART:
        assert marked == []
    else:
        copied = [row.source for row in truth.values() if row.operation and row.operation.must_agree]
        assert marked == sorted([*copied, "final_layer.adaLN_modulation.1"])
    assert (made.unmatched_source, made.unmatched_target) == ((), ())
    # Marked rows say why, sure ones need not.
    assert all(bool(row.doubt) != row.sure for row in made.rows)


def test_what_has_no_home_is_marked(drafted: tuple[Draft, Family, KeyList]) -> None:
    made, family, _ = drafted
    left = {row.source: (row.kind, row.sure) for row in made.rows if not row.targets}
    null = {"y_embedder.y_embedding": ("kept in the sidecar", False)} if family is PIXART else {}
    assert left == {"pos_embed": ("computed", False)} | null


@pytest.mark.parametrize("name", ["sigma-256", "alpha-1024-ms", "sigma-900m", "dit-xl-2-256"])
def test_the_released_models_at_their_size(name: str) -> None:
    family = DIT if name.startswith("dit") else PIXART
    keys = read_keys(ROOT / "fixtures" / "inventories" / f"{name}.json")
    plan = family.keys.plan(inventory(name))
    shapes = {}
    for move in plan.moves:
        rows, *rest = keys.shapes[move.sources[0]]
        shapes |= dict.fromkeys(move.targets, (int(rows * move.operation.share(len(move.parts))), *rest))
    sure, marked, wrong = judged(draft(keys, KeyList("target", shapes)), truth := true_rows(family, keys))
    assert wrong == []
    assert len(sure) + len(marked) == len(truth)
    assert len(sure) >= 0.6 * len(truth)


def _module(key: str) -> tuple[str, str]:
    """Its path, and the suffix of a module's tensor."""
    stem, dot, last = key.rpartition(".")
    return (stem, dot + last) if last in ("weight", "bias") else (key, "")


@settings(max_examples=30)
@given(st.randoms(use_true_random=False))
def test_names_that_say_nothing_are_never_sure(shuffle: random.Random) -> None:
    """Where only shapes could tell, and several are alike, no row may pretend to know."""
    keys = read_keys(GOLDEN / "sigma-ms.pth")
    paths = sorted({_module(key)[0] for key in keys.shapes})
    blind = {path: f"m{i}" for i, path in enumerate(shuffle.sample(paths, len(paths)))}
    shapes = {blind[_module(key)[0]] + _module(key)[1]: shape for key, shape in keys.shapes.items()}
    made = draft(keys, KeyList("blind", shapes))
    for row in made.rows:
        if row.sure:
            assert len(row.pattern.split()) > 2  # the only one of its shape
            assert row.targets == (blind[row.source],)


def test_a_lost_tensor_is_listed_and_its_neighbours_are_not_taken_for_it() -> None:
    keys = read_keys(GOLDEN / "sigma-ms.pth")
    converted = PIXART.keys.targets
    shapes = {
        key: tuple(tensor.shape)
        for key, tensor in PIXART.keys({k: torch.zeros(s) for k, s in keys.shapes.items()}).items()
    }
    assert converted.known(shapes) == len(shapes)
    lost = {key: shape for key, shape in shapes.items() if "attn2.to_q" not in key}
    made = draft(keys, KeyList("lost", lost))
    _, _, wrong = judged(made, true_rows(PIXART, keys))
    assert wrong == []
    row = [row for row in made.rows if row.source == "blocks.{}.cross_attn.q_linear"]
    assert "blocks.{}.cross_attn.q_linear" in made.unmatched_source or not row[0].sure
    more = draft(keys, KeyList("more", shapes | {"guidance.weight": (7, 9), "guidance.bias": (7,)}))
    assert more.unmatched_target == ("guidance",)


# The module that is written.


def module(text: str, path: Path) -> dict[str, Any]:
    path.write_text(text)
    made: dict[str, Any] = {"__name__": path.stem}
    exec(compile(text, str(path), "exec"), made)
    return made


def lint(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--config", ROOT / "ruff.toml", path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_module_runs_and_its_table_is_the_real_one(drafted: tuple[Draft, Family, KeyList], tmp_path: Path) -> None:
    made, family, keys = drafted
    space = module(render("mine", made), tmp_path / "mine.py")
    lint(tmp_path / "mine.py")
    assert families.families()["mine"] is space["FAMILY"]
    ours, theirs = (
        {move.sources: (move.targets, move.operation.word) for move in table.plan(shaped(keys.shapes)).moves}
        for table in (space["KEYS"], family.keys)
    )
    assert ours == theirs
    assert space["config"]  # and it is the config of the target's class
    assert f'"{made.config["_class_name"]}"' in (tmp_path / "mine.py").read_text()


@pytest.mark.parametrize("kind", ["dit", "pixart"])
def test_a_drafted_family_converts_as_the_built_in_one(kind: str, tmp_path: Path, cli: Call) -> None:
    state = dit() if kind == "dit" else pixart()
    source = save(state, tmp_path / "model.pth")
    stock = {"num_attention_heads": HEADS} | ({} if kind == "dit" else {"version": "sigma"})
    converter.convert(source, tmp_path / "stock", stock=True, **stated(**stock))
    out = tmp_path / "mine.py"
    done = cli("pixart", "new-family", "mine", source, "--target", tmp_path / "stock", "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith(f"wrote: {out}, ")
    lint(out)
    done = cli("pixart", "inspect", source, "--family", out, "--json")
    found = json.loads(done.stdout)
    assert (found["family"], found["problems"], found["needs"][:21]) == ("mine", [], "--num_attention_heads")
    paths = ("--orig_ckpt_path", source, "--dump_path", tmp_path / "ours", "--family", out)
    done = cli("pixart", "convert", *paths, "--num_attention_heads", HEADS, "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    ours, theirs = tree(tmp_path / "ours"), tree(tmp_path / "stock")
    weights, config = "transformer/diffusion_pytorch_model.safetensors", "transformer/config.json"
    assert ours[weights] == theirs[weights]
    assert json.loads(ours[config]) == json.loads(theirs[config])
    # And back, with the same file.
    back = tmp_path / "back.pth"
    done = cli("pixart", "revert", "--converted_path", tmp_path / "ours", "--dump_path", back, "--family", out)
    assert (done.returncode, done.stderr) == (0, "")
    again = torch.load(back, weights_only=True)
    again = again.get("state_dict", again)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)


def test_without_a_target_every_path_becomes_itself_and_is_marked(tmp_path: Path) -> None:
    keys = read_keys(GOLDEN / "sigma-ms.pth")
    made = draft(keys)
    assert not any(row.sure for row in made.rows)
    assert all(row.targets == (row.source,) for row in made.rows)
    text = render("alone", made)
    space = module(text, tmp_path / "alone.py")
    lint(tmp_path / "alone.py")
    assert space["KEYS"](shaped(keys.shapes)).keys() == keys.shapes.keys()
    assert text.count("# ?\n") >= len(made.rows)


def test_hostile_keys_stay_comments(tmp_path: Path) -> None:
    """Text of a file goes into a program: it must not become one."""
    evil = ['a"): __import__("os")', "a\nimport os", "a # ?", "a\u2028b", "x" * 1000, "a..b", "a.{}.b", "", "é.weight"]
    keys = KeyList('"""\nimport os', {name: (2, 2) for name in evil} | {"stem.weight": (8, 4, 2, 2)})
    config = {
        '"x': "y\n",
        "_class_name": '"\\',
        "n": [1, float("inf")],
        "d": {"a": 1},
        "z": "é\ud800" * 99,
        "k" * 200: 1,
    }
    target = KeyList("b", {name: (3, 3) for name in evil} | {"embed.weight": (8, 4, 2, 2)}, config)
    made = draft(keys, target)
    assert [row.source for row in made.rows] == ["stem.weight"]
    assert set(evil) <= set(made.unmatched_source)
    text = render("evil", made)
    text.encode("ascii")
    space = module(text, tmp_path / "evil.py")
    lint(tmp_path / "evil.py")
    assert "os" not in space
    assert [row.source for row in space["KEYS"].rows] == ["stem.weight"]
    assert space["config"](converter.Findings({"num_attention_heads": 2}))["_class_name"] == '"\\'


def test_long_paths_fit_the_module(tmp_path: Path) -> None:
    long = ".".join(["segment_of_a_path"] * 8)
    shapes = {f"{long}.qkv.weight": (24, 8), f"{long}.qkv.bias": (24,)}
    theirs = {
        f"{long}.to_{c}.{end}": (8, 8)[: 2 if end == "weight" else 1] for c in "qkv" for end in ("weight", "bias")
    }
    made = draft(KeyList("a", shapes), KeyList("b", theirs))
    space = module(render("long", made), tmp_path / "long.py")
    lint(tmp_path / "long.py")
    (row,) = space["KEYS"].rows
    assert row.targets == tuple(f"{long}.to_{c}" for c in "qkv")


# Places and symbols.


def test_blocks_are_folded_and_other_numbers_are_not() -> None:
    keys = dict.fromkeys(
        ["net.0.fc.weight", "net.0.fc.bias", "net.1.fc.weight", "net.1.fc.bias", "mlp.0.weight", "mlp.2.weight", "g"],
        (4,),
    )
    made = key_layout(keys | {"net.1.only.weight": (4, 4), "few.0.a.b": (4,)})
    assert made.stacks == {"net": 2}
    paths = {place.path: (place.module, place.indexed, place.sparse) for place in made.entries}
    assert paths == {
        "net.{}.fc": (True, True, False),
        "mlp.0.weight": (False, False, False),
        "mlp.2.weight": (False, False, False),
        "g": (False, False, False),
        "net.{}.only.weight": (False, True, True),
        "few.0.a.b": (False, False, False),
    }


def test_shapes_that_differ_from_block_to_block_are_listed() -> None:
    made = key_layout({"net.0.a.b": (4,), "net.1.a.b": (5,), "net.0.c.d": (1,), "net.1.c.d": (1,)})
    assert [place.path for place in made.entries] == ["net.{}.c.d"]
    assert sorted(made.unusable) == ["net.0.a.b", "net.1.a.b"]


@pytest.mark.parametrize("name", ["sigma-256", "alpha-1024-ms", "dit-xl-2-512"])
def test_patterns_fit_what_they_were_drafted_from(name: str) -> None:
    keys = read_keys(ROOT / "fixtures" / "inventories" / f"{name}.json")
    places = key_layout(keys.shapes).entries
    symbols = Symbols(places)
    assert symbols.dims["D"] == 1152
    rows = {f"{place.path} [{symbols.patterns[place]}]": converter.Extra() for place in places}
    plan = KeyMapping(rows).plan(inventory(name))  # raises for a shape that does not fit
    assert {name: plan.dims[name] for name in symbols.dims} == symbols.dims


# Bad input.


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "no JSON object of keys and shapes"),
        ("{}", "no JSON object of keys and shapes"),
        ('{"a": 3}', "a: 3 is not a shape"),
        ('{"a": [true]}', "a: [True] is not a shape"),
        ('{"a": [-1]}', "a: [-1] is not a shape"),
        ('{"a": [1,1,1,1,1,1,1,1,1]}', "is not a shape"),
        ('{"a": [1], "a": [1]}', "duplicate key"),
        ("{", "header"),
    ],
)
def test_a_list_of_keys_that_is_none_is_refused(content: str, said: str, tmp_path: Path, cli: Call) -> None:
    (tmp_path / "keys.json").write_text(content)
    done = cli("pixart", "new-family", "mine", tmp_path / "keys.json", "--out", tmp_path / "mine.py")
    assert done.returncode == 3
    assert said in done.stderr or said == "header"
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "mine.py").exists()


def test_a_list_without_blocks_is_not_compared_for_ever() -> None:
    with pytest.raises(InputError, match="700 different paths"):
        draft(KeyList("many", {f"w{i}_x": (4, 4) for i in range(700)}))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("Mine", "k.json"), "NAME Mine: use lower-case"),
        (("class", "k.json"), "NAME class: use lower-case"),
        (("pixart", "k.json"), "NAME pixart: a family of that name already exists"),
        (("mine", "k.json", "--out", "mine.txt"), "must be a Python module"),
        (("mine", "k.json", "--out", "nowhere/mine.py"), "cannot be written there"),
        (("there", "k.json"), "use --overwrite to replace it"),
    ],
)
def test_a_wrong_call_writes_nothing(
    arguments: tuple[str, ...], said: str, tmp_path: Path, cli: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "k.json").write_text('{"stem.weight": [8, 4, 2, 2]}')
    (tmp_path / "there.py").write_text("mine")
    before = tree(tmp_path)
    done = cli("pixart", "new-family", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert tree(tmp_path) == before
    done = cli("pixart", "new-family", "there", "k.json", "--overwrite", "--json")
    assert done.returncode == 0
    made = json.loads(done.stdout)
    assert (made["ok"], made["path"], made["unsure"], made["rows"][0]["source"]) == (True, "there.py", 1, "stem.weight")
    assert (tmp_path / "there.py").read_text() != "mine"


def test_a_target_may_be_any_checkpoint(tmp_path: Path) -> None:
    save_file({"embed.weight": torch.zeros(8, 4, 2, 2)}, tmp_path / "b.safetensors")
    save({"state_dict": {"module.stem.weight": torch.zeros(8, 4, 2, 2)}}, tmp_path / "a.pth")
    made = draft(read_keys(tmp_path / "a.pth"), read_keys(tmp_path / "b.safetensors"))
    assert [(row.source, row.targets) for row in made.rows] == [("stem.weight", ("embed.weight",))]


def test_only_the_patch_embedding_has_a_patch() -> None:
    """A depthwise kernel of 3 by 3, as in SANA's feed-forward layers, made a patch of 3 out of it."""
    shapes: dict[str, tuple[int, ...]] = {"x_embedder.proj.weight": (16, 4, 2, 2)}
    for i in range(2):
        shapes |= {f"blocks.{i}.attn.weight": (16, 16), f"blocks.{i}.conv.weight": (16, 1, 3, 3)}
        shapes[f"blocks.{i}.wide.weight"] = (48, 16, 1, 1)
    for order in (list(shapes), list(shapes)[::-1]):
        made = draft(KeyList("a", {key: shapes[key] for key in order}))
        patterns = {row.source: row.pattern for row in made.rows}
        assert patterns["x_embedder.proj.weight"] == "D C p p"
        assert patterns["blocks.{}.conv.weight"] == "D 1 3 3"
        assert patterns["blocks.{}.wide.weight"] == "3D D 1 1"
        assert (made.dims["p"], made.dims["C"]) == (2, 4)


def test_of_two_stacks_as_deep_the_draft_converts(tmp_path: Path) -> None:
    """Such as the encoder and the decoder of a U-ViT."""
    names = [f"{stack}.{i}.attn.{part}" for stack in ("enc", "dec") for i in range(3) for part in ("q", "k")]
    save_file({f"{name}.weight": torch.randn(6, 6) for name in names}, tmp_path / "two.safetensors")
    (tmp_path / "two.py").write_text(render("two", draft(read_keys(tmp_path / "two.safetensors"))))
    words = stated(family=str(tmp_path / "two.py"), num_attention_heads=2)
    done = converter.convert(tmp_path / "two.safetensors", tmp_path / "out", **words)
    found = done.record["hyper_parameters"]
    assert (found["enc_depth"]["value"], found["dec_depth"]["value"]) == (3, 3)


# What is not certain is marked.


def side(keys: dict[str, tuple[int, ...]], **config: Any) -> KeyList:
    """A list of keys; a path with a weight and a bias is one entry, and `{}` stands for two blocks."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path, shape in keys.items():
        for i in range(2 if "{}" in path else 1):
            key = path.replace("{}", str(i))
            shapes |= {key: shape} if key.endswith(".weight") else {f"{key}.weight": shape, f"{key}.bias": shape[:1]}
    return KeyList("a", shapes, config)


def marked(keys: dict[str, tuple[int, ...]], **config: Any) -> dict[str, str]:
    """Hyper-parameters and fields of a net's own config whose value is marked -> why."""
    made = draft(side(keys), side(keys, **config))
    fields = {one.key: one.doubt for one in made.fields if one.doubt}
    return fields | {one.name: one.doubt for one in made.shown if one.doubt}


NET: dict[str, tuple[int, ...]] = {
    "conv_in": (16, 4, 3, 3),
    "blocks.{}.attn.q": (16, 16),
    "blocks.{}.attn.out": (16, 16),
}


def test_a_kernel_is_no_patch_for_certain() -> None:
    found = marked(NET)
    assert found["patch_size"] == "3, the side of the kernel conv_in: a kernel that moves by 1 is no patch"
    assert found["in_channels"] == "4, the channels that conv_in takes: is it the patch embedding?"
    assert found["hidden_size"].startswith("16, the size that most matrices have")
    sure = marked(NET, patch_size=3, in_channels=4, hidden_size=16, num_layers=2)
    assert sure == {}
    other = draft(side(NET), side(NET, patch_size=1))
    assert [row.pattern for row in other.rows if row.source == "conv_in"] == ["D C 3 3"]
    assert "patch_size" not in {one.name for one in other.shown}
    assert marked(NET, patch_size=1)["patch_size"] == CONSTANT


def test_which_of_two_kernels_is_the_patch_embedding_is_marked() -> None:
    found = marked({"first": (16, 4, 2, 2), "second": (16, 8, 4, 4)} | NET)
    assert "conv_in" in found["patch_size"]  # by its name
    found = marked({"first": (16, 4, 2, 2), "second": (16, 8, 4, 4), "blocks.{}.attn.q": (16, 16)}, in_channels=8)
    assert found["in_channels"].startswith("4, and config.json has in_channels 8: the channels that first takes")


def test_channels_heads_and_what_no_tensor_shows() -> None:
    net = NET | {"patch_embed": (16, 4, 2, 2), "final_layer.linear": (32, 16), "text": (16, 24)}
    config = {"in_channels": 4, "out_channels": 8, "patch_size": 2, "num_attention_heads": 2, "attention_head_dim": 8}
    made = draft(side(net), side(net, **config, learn_sigma=True, caption_channels=24, num_key_value_heads=1))
    assert {one.key: one.doubt for one in made.fields if one.doubt} == dict.fromkeys(
        ["learn_sigma", "num_key_value_heads"], CONSTANT
    )
    # 24 is the size of an axis of a text embedding; that it is the caption's is a guess.
    assert [one.name for one in made.shown if one.doubt] == ["caption_channels"]
    codes = {one.key: one.code for one in made.fields}
    assert codes["attention_head_dim"] == 'found.value("hidden_size") // found.value("num_attention_heads")'
    assert codes["out_channels"] == 'found.value("out_channels")'
    assert "attention_head_dim" in marked(net, **config | {"attention_head_dim": 4})


def test_what_is_no_square_shows_no_side() -> None:
    net = NET | {"head": (24, 16)}
    for count, side_of_it in ((16, 12), (77, None)):
        keys = side(net).shapes | {"pos_embed": (1, count, 16)}
        made = {one.name: one.size for one in draft(KeyList("a", keys), side(net)).shown}
        assert made.get("sample_size") == side_of_it
        assert "out_channels" not in made  # 24 rows for 9 places of a patch


def test_each_stack_has_its_depth() -> None:
    keys = NET | {f"refiner.{i}.attn.q": (16, 16) for i in range(3)}
    made = draft(side(keys), side(keys, num_layers=2, num_refiner_layers=3))
    assert made.stacks == {"blocks": 2, "refiner": 3}
    assert {one.key: (one.code, one.doubt) for one in made.fields} == {
        "num_layers": ('found.value("blocks_depth")', ""),
        "num_refiner_layers": ('found.value("refiner_depth")', ""),
    }
    alike = NET | {f"refiner.{i}.attn.q": (16, 16) for i in range(2)}
    made = draft(side(alike), side(alike, num_layers=2, num_refiner_layers=2))
    assert {one.key: (one.code, one.doubt) for one in made.fields} == {
        "num_layers": ('found.value("blocks_depth")', "or refiner_depth"),
        "num_refiner_layers": ('found.value("refiner_depth")', "or blocks_depth"),
    }


def test_stacks_of_one_name_have_each_a_depth_and_are_marked(tmp_path: Path) -> None:
    stacks = {"a.b": 2, "a_b": 3, "A_B": 4, "a_b_2": 5, "c": 6}
    keys = {f"{stack}.{i}.attn.q": (16, 16) for stack, count in stacks.items() for i in range(count)}
    for target in (None, side(keys, num_layers=6)):
        drafted = draft(side(keys), target)
        depths = [one for one in drafted.shown if one.name.endswith("depth")]
        assert len({one.name for one in depths}) == 5
        assert [one.size for one in depths] == [2, 3, 4, 5, 6]
        assert {one.name for one in depths if not one.doubt} == {"c_depth"}
        text = render("stacked", drafted)
        for one in depths[:4]:
            line = next(line for line in text.splitlines() if f'found.file("{one.name}"' in line)
            assert line.endswith("# ?")
        findings = converter.Findings({})
        loaded = module(text, tmp_path / "stacked.py")
        loaded["describe"](loaded["KEYS"].survey(shaped(side(keys).shapes)), SimpleNamespace(config={}), findings)
        assert [findings.value(one.name) for one in depths] == [2, 3, 4, 5, 6]


ODD = ["smile \U0001f600", "\ud83d", "é", 'a"b', "a'b\\", "\x7f\u2028", "{name}", "\x00\n"]


def test_a_config_with_any_characters_is_given_as_it_is(tmp_path: Path) -> None:
    config = {text: [text, 1] for text in ODD} | {"label": ODD[0], "_class_name": ODD[0]}
    loaded = module(render("odd", draft(side(NET), side(NET, **config))), tmp_path / "odd.py")
    assert loaded["config"](converter.Findings({})) == config
    assert (tmp_path / "odd.py").read_bytes().isascii()


def test_a_link_to_nothing_is_kept(tmp_path: Path, cli: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("k.json").write_text(json.dumps({"a.weight": [4, 4]}))
    Path("mine.py").symlink_to("gone.py")
    done = cli("pixart", "new-family", "mine", "k.json")
    assert (done.returncode, Path("mine.py").is_symlink()) == (2, True)
    assert "mine.py: exists; use --overwrite to replace it" in done.stderr
    done = cli("pixart", "new-family", "mine", "k.json", "--overwrite")
    assert (done.returncode, Path("mine.py").is_symlink(), Path("gone.py").exists()) == (0, False, False)


def test_a_bias_on_one_side_only_is_named() -> None:
    target = side({"t.{}.attn.to_q": (16, 16), "t.{}.attn.to_k": (16, 16), "t.{}.attn.to_v": (16, 16)})
    made = draft(side({"blocks.{}.attn.qkv.weight": (48, 16)}), target)
    (note,) = made.notes
    assert note.startswith("blocks.{}.attn.qkv has no bias, and t.{}.attn.to_q, t.{}.attn.to_k, t.{}.attn.to_v one: ")
    made = draft(side({"stem": (8, 4, 2, 2)}), side({"stem.weight": (8, 4, 2, 2)}))
    assert made.notes == ("stem has a bias, and stem none: was the target made with other options (`attention_bias`)?",)


def test_a_split_of_some_blocks_is_a_module_that_runs(tmp_path: Path) -> None:
    """A long one was written without the brackets of its tuple."""
    long = "of_a_name_that_fills_its_line." * 2
    ours = {f"blocks.{i}.attn.q.weight": (8, 8) for i in range(2)} | {f"blocks.0.{long}kv.weight": (16, 8)}
    theirs = {f"t.{i}.attn.to_q.weight": (8, 8) for i in range(2)}
    theirs |= {f"t.0.{long}to_{part}.weight": (8, 8) for part in "kv"}
    text = render("sparse", draft(KeyList("a", ours), KeyList("b", theirs)))
    keys = module(text, tmp_path / "sparse.py")["KEYS"]
    assert {target for move in keys.plan(shaped(ours)).moves for target in move.parts} == theirs.keys()
