"""parity.toml: what it says is what is run, and what it may not say is an error that names the place."""

from __future__ import annotations

import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from makers import ROOT
from toml_values import ANY, toml

from converter.conversion.pairs import Pair
from converter.errors import UsageError
from converter.parity.choices import PRECISIONS, PROFILES, SELF_TESTS, WEIGHTS, CheckOptions
from converter.parity.ci.settings import Settings, chosen, load_settings

TODAY = date(2026, 6, 1)
WHOLE = """
profile = "quick"
given = { micro_condition = true, interpolation_scale = 2.0 }

[[checkpoint]]
original = "runs/*.pth"
converted = "converted/{stem}"
family = "pixart"
weights = "ema"
profile = "standard"
cast = "float16"
self_test = "full"
dtype = ["float32", "bfloat16"]
cases = "cases.safetensors"
given = { num_attention_heads = 16, interpolation_scale = 1.0 }

[[checkpoint]]
original = "/elsewhere.pth"
converted = "out"

[[waiver]]
case = "t999"
statistic = "float32 relative L2"
bound = 3.4
reason = "fused attention"
expires = 2027-01-31
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("settings")


def write(folder: Path, text: str) -> Path:
    path = folder / "parity.toml"
    path.write_text(text)
    return path


def test_all_of_it(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    for name in ("2.pth", "10.pth"):
        (tmp_path / "runs" / name).touch()
    settings = load_settings(write(tmp_path, WHOLE), TODAY)
    listed = {
        "profile": "standard",
        "family": "pixart",
        "weights": "ema",
        "cast": "float16",
        "self_test": "full",
        "dtype": ["float32", "bfloat16"],
        "cases": str(tmp_path / "cases.safetensors"),
    }
    given = {"micro_condition": True, "interpolation_scale": 1.0, "num_attention_heads": 16}
    assert chosen([], [], settings) == [
        Pair(str(tmp_path / "runs" / "2.pth"), str(tmp_path / "converted" / "2"), listed, given),
        Pair(str(tmp_path / "runs" / "10.pth"), str(tmp_path / "converted" / "10"), listed, given),
        Pair(
            "/elsewhere.pth",
            str(tmp_path / "out"),
            {"profile": "quick"},
            {"micro_condition": True, "interpolation_scale": 2.0},
        ),
    ]
    assert [waiver.case for waiver in settings.waivers] == ["t999"]


def test_flags_fill_what_is_not_said(tmp_path: Path) -> None:
    text = 'profile = "full"\nweights = "raw"\n[[checkpoint]]\noriginal = "a"\nconverted = "b"\nweights = "ema"'
    flags = {"profile": "standard", "weights": "raw", "device": None}
    settings = load_settings(write(tmp_path, text))
    (pair,) = chosen([], [], settings, flags=flags, hyper_parameters={"num_attention_heads": 4})
    assert pair.options == {"profile": "standard", "weights": "ema"}
    assert pair.hyper_parameters == {"num_attention_heads": 4}


def test_a_file_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, '[[checkpoint]]\noriginal = "a.pth"\nconverted = "{stem}"')
    assert chosen([], [], load_settings("parity.toml")) == [Pair("a.pth", "a")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('profil = "quick"', "profil: unknown; did you mean profile?"),
        ('profile = "fast"', "profile: one of quick, standard, full, not 'fast'"),
        ("zzz = 1", "zzz: unknown; allowed: profile, family, weights"),
        ('original = "a"', "original: unknown"),
        ("[checkpoint]\n", "checkpoint: written as [[checkpoint]], once for each"),
        ("[[checkpoint]]\n", "[[checkpoint]] 1: original is missing"),
        ('[[checkpoint]]\noriginal = "a"', "[[checkpoint]] 1: converted is missing"),
        ('[[checkpoint]]\noriginal = "a"\nconverted = ""', "[[checkpoint]] 1: converted: a text that is not empty"),
        ('[[checkpoint]]\noriginal = ["a"]', "[[checkpoint]] 1: original: a text that is not empty, not ['a']"),
        ("[[checkpoint]]\natol = 1", "[[checkpoint]] 1: atol: unknown"),
        ("[[checkpoint]]\nself_test = false", "[[checkpoint]] 1: self_test: one of quick, full, not False"),
        ("[[checkpoint]]\ndtype = []", "[[checkpoint]] 1: dtype: a dtype, or a list of them, not []"),
        ('[[checkpoint]]\ndtype = ["int8"]', "[[checkpoint]] 1: dtype: one of float64"),
        ("require_evidence = 1", "require_evidence: true or false, not 1"),
        ("given = { require_evidence = true }", "given: names of hyper-parameters (require_evidence is not one)"),
        ("given = 16", "given: a table such as { num_attention_heads = 16 }, not 16"),
        ("given = { heads = [1] }", "given: one value each (heads)"),
        ("given = { scale = nan }", "given: one value each (scale)"),
        ('given = { profile = "full" }', "given: names of hyper-parameters (profile is not one)"),
        ('given = { original = "x" }', "given: names of hyper-parameters (original is not one)"),
        ("given = { 'a-b' = 1 }", "given: names of hyper-parameters (a-b is not one)"),
        ("[[waiver]]\n", "[[waiver]] 1: case is missing"),
        ('"\\u001b[31m" = 1', "\\x1b[31m: unknown"),
        ("profile", "not TOML: "),
    ],
)
def test_what_it_may_not_say(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        load_settings(path, TODAY)
    message = str(caught.value)
    assert message.startswith(f"{path}: {words}")
    assert message.isprintable()  # one line


def test_what_is_wrong_with_the_files_names_the_table(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, '[[checkpoint]]\noriginal = "runs/*.pth"\nconverted = "{stem}"'))
    with pytest.raises(UsageError, match=r"parity.toml: \[\[checkpoint\]\] 1: .*runs/\*.pth: matches no checkpoint"):
        chosen([], [], settings)


def test_a_list_without_checkpoints(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, 'profile = "full"'))
    with pytest.raises(UsageError, match=r"parity.toml: lists no \[\[checkpoint\]\]"):
        chosen([], [], settings)


def test_what_the_command_line_names_comes_before_what_is_listed() -> None:
    settings = Settings("parity.toml", {"profile": "full"}, [{"original": "a", "converted": "b"}])
    assert chosen([], [], settings) == [Pair("a", "b", {"profile": "full"})]
    assert chosen(["x"], ["y"], settings, flags={"weights": "ema", "dtype": None}) == [
        Pair("x", "y", {"profile": "full", "weights": "ema"})
    ]
    assert chosen(["x"], ["y"], flags={"weights": "ema"}) == [Pair("x", "y", {"weights": "ema"})]
    with pytest.raises(UsageError, match="nothing to compare"):
        chosen([], [])
    with pytest.raises(UsageError, match="got 1 `orig_ckpt_path` and 0 `converted_path`"):
        chosen(["x"], [], settings)


WORDS = st.sampled_from([*PROFILES, *SELF_TESTS, *PRECISIONS, *WEIGHTS, "fast", "int8", ""])


@given(
    st.sampled_from(["profile", "self_test", "weights", "cast", "dtype", "threads"]),
    WORDS | st.lists(WORDS, max_size=3) | st.integers(-2, 1100) | ANY,
)
def test_an_option_may_be_what_the_checker_takes(folder: Path, name: str, value: Any) -> None:
    """And nothing else; that it is left out is for the file to show by leaving it out."""
    kind = (str, list) if name == "dtype" else (int,) if name == "threads" else (str,)
    try:
        if type(value) not in kind or not value:
            raise UsageError
        CheckOptions(**{name: value}).validate()
    except UsageError:
        with pytest.raises(UsageError, match=f"parity.toml: {name}: "):
            load_settings(write(folder, f"{name} = {toml(value)}"))
    else:
        assert load_settings(write(folder, f"{name} = {toml(value)}")).defaults == {name: value}


def test_reading_it_imports_neither_torch_nor_diffusers() -> None:
    program = (
        "import sys, converter.parity.ci.settings, converter.parity.ci.batch, converter.parity.ci.cache as cache;"
        "cache.program();"
        "print(*(m for m in ('torch', 'diffusers', 'numpy') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("\n", "")
