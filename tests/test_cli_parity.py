"""`pixart parity` and `convert-pixart --parity`: exit codes, what is printed where, written, and run again."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import pytest
import torch
from makers import HEADS, ROOT, Result, convert, imported, launch, pixart, save, start, terminal, training, tree
from safetensors.torch import load_file, save_file

from converter.errors import ConverterError, InputError, UsageError
from converter.parity.gates import LIMITS
from converter.reports.report import EXIT_CODES, FAIL, NOT_RUN, PASS, WORST_FIRST, Check, Phase, Report

Cli = Callable[..., Result]
LINE = re.compile(r"(pixart|convert-pixart): error: [^\n]+\n")
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
PHASES = ["provenance", "weights", "config", "function", "trajectory", "self-test"]
FILES = ("report.json", "report.xml", "report.md", "report.html")


@pytest.fixture(autouse=True)
def no_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    """With it, what goes wrong inside is a traceback."""
    monkeypatch.delenv("PIXART_DEBUG", raising=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint of two blocks, and the folder converted from it. Not to be changed."""
    place = tmp_path_factory.mktemp("made")
    original = save(pixart(), place / "small.pth")
    return original, convert(original, place / "small").path


@pytest.fixture
def changing(made: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A copy of it, to be spoilt."""
    shutil.copytree(made[1], tmp_path / "small")
    return shutil.copy(made[0], tmp_path / "small.pth"), tmp_path / "small"


def flags(pair: tuple[object, object], *more: object) -> list[object]:
    return ["parity", "--orig_ckpt_path", pair[0], "--converted_path", pair[1], *more]


def swap(folder: Path, block: int = 1) -> None:
    """Exchange queries and keys of a block's self-attention."""
    state = load_file(folder / WEIGHTS)
    for kind in ("weight", "bias"):
        q, k = (f"transformer_blocks.{block}.attn1.to_{name}.{kind}" for name in "qk")
        state[q], state[k] = state[k], state[q]
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def flip(path: Path) -> None:
    """Change one bit: the sign of the last number."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x80
    path.write_bytes(content)


class Checker:
    """Stands in for `check`: says or raises what it was told for an original, and keeps what it was called with."""

    def __init__(self) -> None:
        self.told: dict[str, str | Exception] = {}
        self.calls: list[tuple[str, str, dict[str, Any]]] = []

    def __call__(self, original: str, converted: str, **options: Any) -> Report:
        options.pop("progress", None)
        self.calls.append((original, converted, options))
        verdict = self.told.get(Path(original).stem, PASS)
        if isinstance(verdict, Exception):
            raise verdict
        failed = Check("t999 / epsilon", "float32 relative L2", 9.0, 3.0, verdict == PASS, "9 times (limit 3)")
        return Report(
            verdict,
            f"the reason of {verdict}",
            "pixart",
            "quick",
            original={"name": Path(original).name, "sha256": "0" * 64},
            converted={"name": Path(converted).name},
            assumed=[{"name": "kv_compress", "value": False, "why": "leaves no trace"}],
            notes=["something that is worth a note"],
            phases=[
                Phase("weights", PASS, "byte for byte"),
                Phase("function", verdict, "as it is", [failed], ["by the way"]),
                Phase("trajectory", NOT_RUN, "not part of the quick profile"),
            ],
        )

    @property
    def names(self) -> list[tuple[str, str]]:
        return [(Path(original).name, Path(converted).name) for original, converted, _ in self.calls]


@pytest.fixture
def checker(monkeypatch: pytest.MonkeyPatch) -> Checker:
    made = Checker()
    monkeypatch.setattr("converter.parity.checker.check", made)
    return made


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Checkpoints of a training run with a converted folder for each, by name only; the current folder holds them."""
    for epoch in (2, 9, 10):
        (tmp_path / "runs").mkdir(exist_ok=True)
        (tmp_path / f"runs/epoch_{epoch}.pth").touch()
        (tmp_path / f"converted/epoch_{epoch}/transformer").mkdir(parents=True)
    (tmp_path / "runs/notes.txt").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


EPOCHS = [(f"epoch_{n}.pth", f"epoch_{n}") for n in (2, 9, 10)]
ALL = ("runs/epoch_*.pth", "converted/{stem}")


# A real comparison: what is printed, and every report of it.


def test_a_pass_in_words_and_in_every_report(made: tuple[Path, Path], tmp_path: Path, cli: Cli) -> None:
    before = tree(made[1])
    wanted = [word for name in FILES for word in ("--report", tmp_path / name)]
    result = cli("pixart", *flags(made, *wanted, "--card", tmp_path / "card.md"))
    assert (result.returncode, result.stderr) == (0, "")  # no progress bar: standard error is no terminal
    lines = result.stdout.splitlines()
    assert lines[0] == f"{made[0]} -> {made[1]}"
    found = [re.match(r"  ([a-z-]+) +(PASS|NOT RUN) +\S", line) for line in lines[1:7]]
    assert [(m[1], m[2]) for m in found if m] == [(p, NOT_RUN if p == "trajectory" else PASS) for p in PHASES]
    assert all(line.startswith("assumed: ") and " = " in line for line in lines[7:-2])
    assert lines[-2].startswith("note: stated, and shown by nothing in the original: num_attention_heads = ")
    assert any(line.startswith("assumed: kv_compress = False (") for line in lines)
    assert re.fullmatch(r"PASS: (float32 output within \d\.\d+ times the .* 3\)|outputs identical in .*)", lines[-1])
    assert lines[-1].removeprefix("PASS: ") in lines[4], "the phase says it too, and more"
    assert tree(made[1]) == before

    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["verdict"], report["exit_code"], report["family"]) == (PASS, 0, "pixart")
    assert [phase["name"] for phase in report["phases"]] == PHASES
    assert report["headline"] == lines[-1].removeprefix("PASS: ")
    command = report["run"]["command"]
    assert command.startswith(f"pixart parity --orig_ckpt_path {made[0]} --converted_path {made[1]} --report ")
    suites = ElementTree.parse(tmp_path / "report.xml").getroot()
    assert int(suites.get("tests") or 0) > 10
    assert (suites.get("failures"), suites.get("errors")) == ("0", "0")
    markdown = (tmp_path / "report.md").read_text()
    assert "PASS" in markdown.splitlines()[0]
    assert "small.pth" in markdown
    html = (tmp_path / "report.html").read_text()
    assert html.lstrip().lower().startswith("<!doctype html>")
    assert html.rstrip().endswith("</html>")
    assert "<svg" in html
    card = (tmp_path / "card.md").read_text()
    assert card.startswith("# Verification of `small`\n")
    assert report["original"]["sha256"] in card
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*FILES, "card.md"])  # nothing temporary is left


def test_a_fail_names_the_block_and_the_repair_and_can_be_replayed(
    changing: tuple[Path, Path], made: tuple[Path, Path], tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    swap(changing[1])
    result = cli("pixart", *flags(changing, "--save_failing", tmp_path / "deep" / "failing"))
    assert (result.returncode, result.stderr) == (1, "")
    lines = result.stdout.splitlines()
    phases = dict(re.findall(r"^  ([a-z-]+) +(PASS|FAIL|NOT RUN) ", result.stdout, re.M))
    assert list(phases) == PHASES
    assert phases == dict(zip(PHASES, [PASS, FAIL, PASS, FAIL, NOT_RUN, NOT_RUN], strict=True))
    assert "it goes wrong in block 1" in result.stdout
    assert "block 0" not in result.stdout
    assert "    block 1 is right again with attn1.to_q and attn1.to_k swapped in block 1" in lines
    right = "transformer_blocks.1.attn1.to_q.weight holds what belongs in transformer_blocks.1.attn1.to_k.weight"
    assert right in lines[2]
    assert lines[-1] == "FAIL: attn1.to_q and attn1.to_k swapped in block 1"
    (saved,) = (tmp_path / "deep" / "failing").iterdir()
    assert f"note: saved {saved}: run it again with --cases" in lines
    assert re.search(r"^    and \d+ more$", result.stdout, re.M)  # not every failed check is printed

    monkeypatch.setattr("converter.parity.localise.MENDED", 0)
    result = cli("pixart", *flags(changing, "--cases", saved, "--json"))
    assert result.returncode == 1
    function = json.loads(result.stdout)["phases"][PHASES.index("function")]
    (case,) = function["detail"]["cases"]
    assert (case["name"], case["axes"]) == (saved.stem, f"from {saved.name}")
    result = cli("pixart", *flags(made, "--cases", saved))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1].startswith(PASS)


@pytest.mark.usefixtures("no_search")
def test_the_other_set_of_weights_is_named(tmp_path: Path, cli: Cli) -> None:
    raw = pixart(depth=1)
    ema = {key: value if key == "pos_embed" else value * 0.99 for key, value in raw.items()}
    path = save(training(raw, ema), tmp_path / "training.pth")
    folder = convert(path, tmp_path / "out", weights="ema").path
    result = cli("pixart", *flags((path, folder), "--weights", "raw"))
    assert (result.returncode, result.stderr) == (1, "")
    hint = "the converted model has the ema weights of the file, state_dict_ema (--weights ema)"
    assert f"  weights     FAIL          {hint}; " in result.stdout
    assert result.stdout.splitlines()[-1] == f"FAIL: weights: {hint.partition(',')[0]}"
    for more in ((), ("--weights", "ema")):  # by default what the record says was taken
        assert cli("pixart", *flags((path, folder), *more)).returncode == 0


def zero(place: Path) -> Path:
    """A checkpoint as training begins with it: its output is zero whatever its blocks are."""
    state = pixart(depth=1)
    for kind in ("weight", "bias"):
        state[f"final_layer.linear.{kind}"].zero_()
    return save(state, place / "zero.pth")


def test_what_cannot_be_told_is_inconclusive(tmp_path: Path, cli: Cli) -> None:
    path = zero(tmp_path)
    folder = convert(path, tmp_path / "zero").path
    result = cli("pixart", *flags((path, folder)))
    assert (result.returncode, result.stderr) == (4, "")
    assert result.stdout.splitlines()[-1].startswith("INCONCLUSIVE: function: ")
    assert result.stdout.splitlines()[-1].endswith("the original's output is zero everywhere")


# Exit codes, and the one line of an error.


@pytest.mark.parametrize("verdict", EXIT_CODES)
def test_exit_codes(verdict: str, runs: Path, checker: Checker, cli: Cli) -> None:
    checker.told["epoch_2"] = verdict
    result = cli("pixart", *flags(("runs/epoch_2.pth", "converted/epoch_2")))
    assert result.returncode == EXIT_CODES[verdict]
    if verdict in ("REJECTED", "INTERNAL"):
        assert (result.stdout, result.stderr) == ("", f"pixart: error: the reason of {verdict}\n")
    else:
        assert result.stderr == ""
        assert result.stdout.splitlines()[-1] == f"{verdict}: the reason of {verdict}"


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (InputError("made.pth: no\nsuch \x1b[31mkey"), 3, "made.pth: no such \\x1b[31mkey"),
        (UsageError("--this: is wrong"), 2, "--this: is wrong"),
        (ConverterError("the disk fails"), 5, "the disk fails"),
        (RuntimeError("two\nlines"), 5, r"internal error: RuntimeError: two\nlines"),
        (MemoryError(), 5, "internal error: MemoryError: "),
    ],
)
def test_what_goes_wrong_is_one_line(
    error: Exception, code: int, words: str, runs: Path, checker: Checker, cli: Cli
) -> None:
    checker.told["epoch_2"] = error
    for how in ("--quiet", "--json"):
        result = cli("pixart", *flags(("runs/epoch_2.pth", "converted/epoch_2"), how))
        assert result.returncode == code
        assert result.stderr.rstrip() == f"pixart: error: {words}".rstrip()
        assert LINE.fullmatch(result.stderr)
        assert result.stdout.count("\n") == (how == "--json")
    content = json.loads(result.stdout)
    assert (content["ok"], content["exit_code"], content["error"]) == (False, code, words.rstrip())


REJECTED: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "no checkpoint": (lambda original, folder: original.unlink(), "small.pth: No such file or directory"),
    "not converted yet": (lambda original, folder: shutil.rmtree(folder), "convert it first"),
    "another family": (lambda original, folder: save({"conv.weight": torch.ones(2)}, original), "no model family"),
    "a truncated shard": (
        lambda original, folder: os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - 500),
        "diffusion_pytorch_model.safetensors",
    ),
    "no config": (lambda original, folder: (folder / "transformer/config.json").unlink(), "config.json"),
}


@pytest.mark.parametrize("name", REJECTED)
def test_bad_input(name: str, changing: tuple[Path, Path], cli: Cli) -> None:
    spoil, words = REJECTED[name]
    spoil(*changing)
    result = cli("pixart", *flags(changing))
    assert (result.returncode, result.stdout) == (3, "")
    assert LINE.fullmatch(result.stderr), result.stderr
    assert words in result.stderr


def test_bad_cases_are_bad_input(made: tuple[Path, Path], tmp_path: Path, cli: Cli) -> None:
    save_file({"t1.latent": torch.ones(1)}, tmp_path / "odd.safetensors")
    for name in ("absent.safetensors", "odd.safetensors"):
        result = cli("pixart", *flags(made, "--cases", tmp_path / name))
        assert (result.returncode, result.stdout) == (3, "")
        assert LINE.fullmatch(result.stderr)
        assert name in result.stderr


USAGES: dict[str, tuple[list[str], str]] = {
    "nothing": ([], "nothing to compare: give --orig_ckpt_path and --converted_path, or --config parity.toml"),
    "no original": (["--converted_path=out"], "got 0 --orig_ckpt_path and 1 --converted_path"),
    "a glob of nothing": (["--orig_ckpt_path=x*.pth", "--converted_path=y"], "x*.pth: matches no checkpoint"),
    "several on one folder": (["--orig_ckpt_path=runs", "--converted_path=y"], "{stem}"),
    "an unknown flag": (["{base}", "--frobnicate"], "No such option"),
    "no tolerance": (["{base}", "--tolerance=1"], "No such option"),
    "an argument too many": (["{base}", "extra"], "extra"),
    **{
        word: (["{base}", f"--{word}"], f"--{word.partition('=')[0]}")
        for word in (
            *("profile=huge", "weights=best", "dtype=float8", "cast=float8", "self_test=none"),
            *("num_attention_heads=0", "image_size=7", "interpolation_scale=big"),
        )
    },
    "an absent config": (["--config=absent.toml"], "absent.toml: No such file"),
    "an absent file of waivers": (["{base}", "--waivers=absent.toml"], "absent.toml: No such file"),
    "a card of several": (
        ["--orig_ckpt_path=runs", "--converted_path=converted/{stem}", "--card=card.md"],
        "--card needs exactly one comparison; got 3",
    ),
    "no suffix": (["{base}", "--report=report"], "its suffix must be one of .json, .xml, .md, .html"),
    "an unknown suffix": (["{base}", "--report=r.json", "--report=r.pdf"], "--report r.pdf: its suffix must be"),
    "an empty report": (["{base}", "--report="], "its suffix must be"),
    **{
        f"nowhere to write {path}": (["{base}", f"--{word}={path}"], f"{path}: cannot be written there")
        for word, path in (
            *(("report", path) for path in ("none/r.json", "runs/notes.txt/r.json", "folder.md", "/proc/r.json")),
            *(("card", path) for path in ("none/card.md", "runs")),
        )
    },
}


@pytest.mark.parametrize("name", USAGES)
def test_bad_usage_before_any_work(name: str, runs: Path, checker: Checker, cli: Cli) -> None:
    (runs / "folder.md").mkdir()
    before = sorted(runs.rglob("*"))
    words, message = USAGES[name]
    base = ["--orig_ckpt_path=absent.pth", "--converted_path=absent"]  # 3, if anything looked at them
    arguments = [part for word in words for part in (base if word == "{base}" else [word])]
    result = cli("pixart", "parity", *arguments, "--json")
    assert result.returncode == 2
    assert LINE.fullmatch(result.stderr), result.stderr
    assert message in result.stderr
    assert checker.calls == []
    assert sorted(runs.rglob("*")) == before
    error = result.stderr.removeprefix("pixart: error: ").rstrip("\n")
    assert json.loads(result.stdout) == {"ok": False, "exit_code": 2, "error": error}


def test_bad_usage_that_the_checkpoint_shows(made: tuple[Path, Path], tmp_path: Path, cli: Cli) -> None:
    settings = tmp_path / "parity.toml"
    settings.write_text('[[checkpoint]]\noriginal = "{}"\nconverted = "{}"\nfamily = "unet"\n'.format(*made))
    for command, words in (
        (flags(made, "--num_attention_heads", 5), "is not a multiple of it"),
        (flags(made, "--interpolation_scale", "nan"), "finite number"),
        (flags(made, "--image_size", 1024), "contradicts the file"),
        (flags(made, "--weights", "ema"), "holds only raw weights"),
        (flags(made, "--device", "warp9"), "--device warp9"),
        (flags((made[1], made[1])), "in diffusers' layout already"),
        (["parity", "--config", settings], "--family unet: unknown"),
    ):
        result = cli("pixart", *command)
        assert (result.returncode, result.stdout) == (2, "")
        assert LINE.fullmatch(result.stderr)
        assert words in result.stderr
    settings.write_text(settings.read_text() + settings.read_text().replace("unet", "vae"))
    result = cli("pixart", "parity", "--config", settings)
    assert (result.returncode, result.stdout.splitlines()[-1]) == (3, "summary: 2 REJECTED")  # it is one of the results
    assert len(result.stderr.splitlines()) == 2
    assert "invalid arguments: --family vae: unknown" in result.stderr


WAIVER = f"""[[waiver]]
case = "CASE"
statistic = "float32 relative L2"
bound = 3.4
reason = "fused attention"
expires = {date.today() + timedelta(days=30)}
"""


@pytest.mark.parametrize(
    ("content", "words"), [("[[waiver", "not TOML"), ("[[waiver]]\n", "[[waiver]] 1: case is missing")]
)
def test_waivers_with_wrong_content(content: str, words: str, runs: Path, checker: Checker, cli: Cli) -> None:
    path = runs / "waivers.toml"
    path.write_text(content)
    result = cli("pixart", *flags(("absent.pth", "absent"), "--waivers", path))
    assert (result.returncode, result.stdout, checker.calls) == (2, "", [])
    assert LINE.fullmatch(result.stderr)
    assert words in result.stderr
    assert str(path) in result.stderr


def test_waivers_are_passed_on_from_both_files(runs: Path, checker: Checker, cli: Cli) -> None:
    pair = '[[checkpoint]]\noriginal = "runs/epoch_2.pth"\nconverted = "converted/epoch_2"\n'
    (runs / "parity.toml").write_text(WAIVER.replace("CASE", "x3") + pair)
    (runs / "w.toml").write_text(WAIVER.replace("CASE", "t999-t321"))
    assert cli("pixart", "parity", "--config", "parity.toml", "--waivers", "w.toml").returncode == 0
    assert [waiver.case for waiver in checker.calls[0][2]["waivers"]] == ["x3", "t999-t321"]


def test_hyphens_and_every_option(runs: Path, checker: Checker, cli: Cli) -> None:
    command = ["--orig-ckpt-path=runs/epoch_2.pth", "--converted-path", "converted/epoch_2", "--num-attention-heads=4"]
    command += ["--image-size=512", "--interpolation_scale", "2", "--save-failing=a-b_c", "--self-test", "full"]
    command += ["--profile=full", "--family=pixart", "--weights=ema", "--device=cpu", "--cases=x-y"]
    command += ["--dtype=bfloat16", "--dtype=float32", "--cast", "float16"]
    result = cli("pixart", "parity", *command)
    assert (result.returncode, result.stderr) == (0, "")
    assert checker.calls == [
        (
            "runs/epoch_2.pth",
            "converted/epoch_2",
            {
                "hyper_parameters": {"num_attention_heads": 4, "image_size": 512, "interpolation_scale": 2.0},
                "save_failing": "a-b_c",
                "self_test": "full",
                "profile": "full",
                "family": "pixart",
                "weights": "ema",
                "device": "cpu",
                "cases": "x-y",
                "dtype": ("bfloat16", "float32"),
                "cast": "float16",
            },
        )
    ]


def test_what_was_not_said_is_not_passed_on(runs: Path, checker: Checker, cli: Cli) -> None:
    """So that the defaults are those of the library, the record and the parity.toml."""
    assert cli("pixart", *flags(("runs/epoch_2.pth", "converted/epoch_2"))).returncode == 0
    assert checker.calls[0][2] == {}


def test_pairs_in_the_order_of_the_flags(runs: Path, checker: Checker, cli: Cli) -> None:
    checker.told = {"epoch_2": FAIL}
    pairs = [flags((f"runs/epoch_{n}.pth", f"converted/epoch_{n}"))[1:] for n in (10, 2, 9)]
    result = cli("pixart", "parity", *(word for pair in pairs for word in pair))
    assert (result.returncode, result.stderr) == (1, "")
    assert checker.names == [EPOCHS[2], EPOCHS[0], EPOCHS[1]]
    block = [
        "runs/epoch_{n}.pth -> converted/epoch_{n}",
        "  weights     PASS          byte for byte",
        "  function    {v:<12}  as it is",
        "{failed}",
        "    by the way",
        "  trajectory  NOT RUN       not part of the quick profile",
        "assumed: kv_compress = False (leaves no trace)",
        "note: something that is worth a note",
        "{v}: the reason of {v}",
    ]
    failed = "    t999 / epsilon, float32 relative L2: 9 times (limit 3)"
    expected = [
        line.format(n=n, v=verdict, failed=failed)
        for n, verdict in ((10, PASS), (2, FAIL), (9, PASS))
        for line in block
        if line != "{failed}" or verdict == FAIL
    ]
    expected += ["runs/epoch_2.pth -> converted/epoch_2: FAIL: the reason of FAIL", "summary: 2 PASS, 1 FAIL"]
    assert result.stdout.splitlines() == expected


@pytest.mark.parametrize("original", ["runs/epoch_*.pth", "runs", "runs/"])
def test_a_glob_and_a_folder(original: str, runs: Path, checker: Checker, cli: Cli) -> None:
    result = cli("pixart", *flags((original, "converted/{stem}"), "--profile", "standard"))
    assert (result.returncode, result.stderr) == (0, "")
    assert checker.names == EPOCHS  # 9 before 10
    assert all(options == {"profile": "standard"} for _, _, options in checker.calls)
    assert result.stdout.count("PASS: ") == 3


CONFIG = """
profile = "standard"

[[checkpoint]]
original = "runs/epoch_*.pth"
converted = "converted/{stem}"
family = "pixart"
weights = "ema"
given = { num_attention_heads = 16 }

[[checkpoint]]
original = "runs/epoch_2.pth"
converted = "converted/epoch_2"
family = "other"
profile = "full"
"""


def test_a_config(runs: Path, checker: Checker, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    (runs / "parity.toml").write_text(CONFIG)
    (runs / "elsewhere").mkdir()
    monkeypatch.chdir(runs / "elsewhere")  # its paths are relative to itself
    result = cli("pixart", "parity", "--config", "../parity.toml", "--weights", "raw", "--device", "cpu")
    assert (result.returncode, result.stderr) == (0, "")
    assert checker.names == [*EPOCHS, EPOCHS[0]]
    first = {"profile": "standard", "family": "pixart", "weights": "ema", "device": "cpu"}
    first |= {"hyper_parameters": {"num_attention_heads": 16}}
    other = {"profile": "full", "family": "other", "weights": "raw", "device": "cpu"}
    assert [options for _, _, options in checker.calls] == [first, first, first, other]


def test_a_config_beside_flags_gives_defaults(runs: Path, checker: Checker, cli: Cli) -> None:
    (runs / "parity.toml").write_text(CONFIG)
    assert cli("pixart", *flags(("runs/epoch_9.pth", "converted/epoch_9"), "--config=parity.toml")).returncode == 0
    assert checker.calls == [("runs/epoch_9.pth", "converted/epoch_9", {"profile": "standard"})]


def test_a_config_with_wrong_content(runs: Path, checker: Checker, cli: Cli) -> None:
    (runs / "parity.toml").write_text(CONFIG.replace("family", "famly", 1))
    result = cli("pixart", "parity", "--config", "parity.toml")
    assert (result.returncode, result.stdout, checker.calls) == (2, "", [])
    assert result.stderr == "pixart: error: parity.toml: [[checkpoint]] 1: famly: unknown; did you mean family?\n"


def test_one_that_goes_wrong_stops_none(runs: Path, checker: Checker, cli: Cli) -> None:
    checker.told = {"epoch_2": InputError("it is broken"), "epoch_9": "INCONCLUSIVE"}
    result = cli("pixart", *flags(ALL))
    assert result.returncode == 3
    assert result.stderr == "pixart: error: runs/epoch_2.pth -> converted/epoch_2: it is broken\n"
    starts = [line for line in result.stdout.splitlines() if re.search(r" -> \S+$", line)]
    assert starts == [f"runs/epoch_{n}.pth -> converted/epoch_{n}" for n in (9, 10)]
    checker.told["epoch_10"] = FAIL
    assert cli("pixart", *flags(ALL)).returncode == 1
    checker.told["epoch_9"] = RuntimeError("ours")
    result = cli("pixart", *flags(ALL))
    assert result.returncode == 5
    assert len(result.stderr.splitlines()) == 2
    assert "FAIL: the reason of FAIL" in result.stdout


LINES = {
    "epoch_2": "runs/epoch_2.pth -> converted/epoch_2: REJECTED: it is broken",
    "epoch_9": "runs/epoch_9.pth -> converted/epoch_9: INCONCLUSIVE: the reason of INCONCLUSIVE",
    "epoch_10": "runs/epoch_10.pth -> converted/epoch_10: FAIL: the reason of FAIL",
}


def test_a_batch_ends_with_what_did_not_pass_the_worst_first(runs: Path, checker: Checker, cli: Cli) -> None:
    shutil.copytree(runs / "converted/epoch_2", runs / "converted/epoch_11")
    (runs / "runs/epoch_11.pth").touch()
    checker.told = {"epoch_2": InputError("it is broken"), "epoch_9": "INCONCLUSIVE", "epoch_10": FAIL}
    result = cli("pixart", *flags(ALL))
    assert result.returncode == 1
    summary = "summary: 1 PASS, 1 FAIL, 1 REJECTED, 1 INCONCLUSIVE"
    assert result.stdout.splitlines()[-4:] == [LINES["epoch_10"], LINES["epoch_2"], LINES["epoch_9"], summary]
    quiet = cli("pixart", *flags(ALL, "--quiet"))
    assert (quiet.returncode, quiet.stderr) == (1, result.stderr)  # a rejection is an error, and is printed there
    assert quiet.stdout.splitlines() == [LINES["epoch_9"], LINES["epoch_10"], summary]
    assert json.loads(cli("pixart", *flags(ALL, "--quiet", "--json")).stdout)["verdict"] == FAIL  # and nothing else


def test_quiet_is_silent_where_all_pass_and_only_there(runs: Path, checker: Checker, cli: Cli) -> None:
    one = ("runs/epoch_10.pth", "converted/epoch_10")
    for pairs in (ALL, one):
        result = cli("pixart", *flags(pairs, "--quiet"))
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert cli("pixart", *flags(ALL)).stdout.splitlines()[-2:] == [f"PASS: the reason of {PASS}", "summary: 3 PASS"]
    assert "summary" not in cli("pixart", *flags(one)).stdout
    checker.told = {"epoch_10": FAIL, "epoch_9": "INCONCLUSIVE"}
    for name in checker.told:
        pair = (f"runs/{name}.pth", f"converted/{name}")
        result = cli("pixart", *flags(pair, "--quiet", "--report=report.json"))
        assert (result.stdout, result.stderr) == (LINES[name] + "\n", "")
        assert json.loads((runs / "report.json").read_text())["exit_code"] == result.returncode


def test_reports_of_several(runs: Path, checker: Checker, cli: Cli) -> None:
    checker.told = {"epoch_2": InputError("it is broken"), "epoch_9": FAIL}
    wanted = [word for name in FILES for word in ("--report", runs / name)]
    assert cli("pixart", *flags(ALL, *wanted)).returncode == 1
    content = json.loads((runs / "report.json").read_text())
    assert (content["verdict"], content["exit_code"]) == (FAIL, 1)
    assert [report["verdict"] for report in content["reports"]] == ["REJECTED", FAIL, PASS]
    assert all(report["run"]["command"].startswith("pixart parity ") for report in content["reports"])
    suites = ElementTree.parse(runs / "report.xml").getroot()
    assert (suites.get("failures"), suites.get("errors")) == ("1", "1")
    for name in ("report.md", "report.html"):
        text = (runs / name).read_text().replace("<wbr>", "").lower()
        assert all(f"epoch_{n}.pth" in text for n in (2, 9, 10))
        assert "it is broken" in text


def test_a_report_replaces_the_last_one_and_follows_the_umask(runs: Path, checker: Checker, cli: Cli) -> None:
    (runs / "report.md").write_text("old")
    before = os.umask(0o027)
    try:
        assert cli("pixart", *flags(ALL, "--report", "report.md")).returncode == 0
    finally:
        os.umask(before)
    assert "old" not in (runs / "report.md").read_text()
    assert (runs / "report.md").stat().st_mode & 0o777 == 0o640


def test_a_card_of_a_single_match(runs: Path, checker: Checker, cli: Cli) -> None:
    """What counts is how many comparisons there are, not how they were named."""
    assert cli("pixart", *flags(("runs/*_2.pth", "converted/{stem}"), "--card=card.md")).returncode == 0
    assert (runs / "card.md").read_text().startswith("# Verification of `epoch_2`\n")


def test_a_report_that_can_no_longer_be_written(
    runs: Path, checker: Checker, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verdict is on the screen by then; the exit code says that not all was done, and no part of it stays."""

    def full(*paths: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    before = sorted(runs.rglob("*"))
    result = cli("pixart", *flags(ALL, "--report=report.json"))
    assert result.returncode == 5
    assert result.stderr == "pixart: error: report.json: cannot be written: No space left on device\n"
    assert sorted(runs.rglob("*")) == before


def test_json_of_one_and_of_several(runs: Path, checker: Checker, cli: Cli) -> None:
    result = cli("pixart", *flags(("runs/epoch_2.pth", "converted/epoch_2"), "--json", "--report=report.json"))
    assert (result.returncode, result.stderr) == (0, "")
    content = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1  # one object, on one line, and nothing else
    assert content.pop("ok") is True
    assert content == json.loads((runs / "report.json").read_text())
    checker.told["epoch_9"] = FAIL
    result = cli("pixart", *flags(ALL, "--json", "--report=report.json"))
    assert (result.returncode, result.stderr) == (1, "")
    content = json.loads(result.stdout)
    assert content.pop("ok") is False
    assert content == json.loads((runs / "report.json").read_text())
    assert [report["verdict"] for report in content["reports"]] == [PASS, FAIL, PASS]


def test_json_of_a_rejection(made: tuple[Path, Path], tmp_path: Path, cli: Cli) -> None:
    result = cli("pixart", *flags((tmp_path / "absent.pth", made[1]), "--json"))
    content = json.loads(result.stdout)
    assert (result.returncode, content["exit_code"], content["ok"], content["verdict"]) == (3, 3, False, "REJECTED")
    assert result.stderr == f"pixart: error: {content['error']}\n"
    assert content["error"] == content["reason"] == f"{tmp_path / 'absent.pth'}: No such file or directory"
    result = cli("pixart", *flags((tmp_path / "absent.pth", made[1]), *flags((made[0], tmp_path / "a"))[1:], "--json"))
    content = json.loads(result.stdout)
    assert (result.returncode, content["ok"]) == (3, False)
    assert [report["verdict"] for report in content["reports"]] == ["REJECTED", "REJECTED"]
    assert "error" not in content
    assert len(result.stderr.splitlines()) == 2


def test_control_characters_never_reach_the_terminal(runs: Path, checker: Checker, cli: Cli) -> None:
    evil = "a\x1b]0;owned\x07\x1b[31m\x9b2J\u202eb"
    (runs / f"{evil}.pth").touch()
    (runs / evil).mkdir()
    checker.told = {"epoch_2": InputError("broken")}
    absent = flags((f"{evil}2.pth", "x"))
    for command in (
        flags((f"{evil}.pth", evil)),
        flags((f"{evil}.pth", evil), *flags(("runs/epoch_2.pth", f"no{evil}"))[1:]),
        flags((f"{evil}.pth", evil), "--json"),
        [*absent, f"--report={evil}/{evil}/x.md"],
        [*absent, f"--config={evil}.toml"],
        ["parity", f"--{evil}"],
    ):
        result = cli("pixart", *command)
        assert all(c.isprintable() or c == "\n" for c in result.stdout + result.stderr), result


# The cache.

HEAVY_FOR_ALL = {"torch", "diffusers", "transformers", "jinja2", "matplotlib"}


@pytest.mark.usefixtures("no_search")
def test_only_what_has_changed_is_run_again(changing: tuple[Path, Path], tmp_path: Path, cli: Cli) -> None:
    command = flags(changing, "--cache", tmp_path / "cache.json")
    result = cli("pixart", *command)
    assert (result.returncode, result.stderr) == (0, "")
    assert "unchanged since" not in result.stdout
    first = result.stdout

    code, printed, modules, _ = imported("pixart", *command)  # in a process that has imported nothing before
    assert code == 0
    assert not modules & HEAVY_FOR_ALL
    assert re.fullmatch(rf"{re.escape(first.rstrip())} \(unchanged since \d{{4}}-\d\d-\d\d\)\n", printed)
    content = json.loads(cli("pixart", *command, "--json").stdout)
    assert content["ok"] is True
    assert f"(unchanged since {content['run']['cached']})" in printed

    flip(changing[1] / WEIGHTS)
    result = cli("pixart", *command)
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1].startswith("FAIL: weights: ")
    assert "unchanged since" not in result.stdout
    result = cli("pixart", *command)  # a FAIL is kept as well
    assert result.returncode == 1
    assert "(unchanged since" in result.stdout.splitlines()[-1]
    flip(changing[1] / WEIGHTS)
    result = cli("pixart", *command)
    assert result.returncode == 0
    assert "(unchanged since" in result.stdout.splitlines()[-1]


def test_the_cache_of_several(changing: tuple[Path, Path], checker: Checker, tmp_path: Path, cli: Cli) -> None:
    shutil.copytree(changing[1], tmp_path / "other")
    shutil.copy(changing[0], tmp_path / "other.pth")
    command = flags((tmp_path / "*.pth", f"{tmp_path}/{{stem}}"), "--cache", tmp_path / "cache.json")
    assert cli("pixart", *command).returncode == 0
    assert checker.names == [("other.pth", "other"), ("small.pth", "small")]
    flip(tmp_path / "other" / WEIGHTS)
    result = cli("pixart", *command)
    assert checker.names[2:] == [("other.pth", "other")]
    verdicts = [line for line in result.stdout.splitlines() if line.startswith("PASS")]
    assert ["unchanged" in line for line in verdicts] == [False, True]
    cli("pixart", *command, "--profile", "standard")
    assert len(checker.calls) == 5  # other options, other comparisons


def test_a_cache_that_cannot_be_used_is_said_and_changes_no_verdict(runs: Path, checker: Checker, cli: Cli) -> None:
    (runs / "mine.json").write_text('{"mine": true}')
    result = cli("pixart", *flags(ALL, "--cache", "mine.json", "--json"))
    assert result.returncode == 0
    assert json.loads(result.stdout)["ok"] is True
    assert re.fullmatch(r"note: cache \S+mine\.json: not a cache .*\n", result.stderr)
    assert (runs / "mine.json").read_text() == '{"mine": true}'


def converting(source: object, out: object, *more: object) -> list[object]:
    return ["--orig_ckpt_path", source, "--dump_path", out, "--num_attention_heads", HEADS, "--parity", *more]


@pytest.mark.slow
def test_converted_and_proven_on_a_terminal(made: tuple[Path, Path], tmp_path: Path, cli: Cli) -> None:
    code, out, shown = terminal("convert-pixart", *converting(made[0], tmp_path / "out"))
    assert code == 0
    assert re.search(rb"\rcomparing: +0%\|", shown)
    assert re.search(rb"\r +\r$", shown)  # the bar is wiped in the end
    assert "%|" not in out
    lines = out.splitlines()
    assert lines[0].startswith("source: small.pth")
    done = next(i for i, line in enumerate(lines) if line.startswith("done: "))
    assert lines[done + 1] == f"{made[0]} -> {tmp_path / 'out'}"
    assert re.match("PASS: .*output", lines[-2])
    assert lines[-1] == f"wrote: {tmp_path / 'out/parity.json'}"
    report = json.loads((tmp_path / "out/parity.json").read_text())
    assert (report["verdict"], report["profile"]) == (PASS, "quick")
    assert report["run"]["command"].startswith("convert-pixart --orig_ckpt_path ")
    assert (tmp_path / "out/conversion.json").is_file()
    # But for the report it is the folder that it is without --parity; which stays replaceable.
    assert {k: v for k, v in tree(tmp_path / "out").items() if k != "parity.json"} == tree(made[1])
    plain = ["--orig_ckpt_path", made[0], "--dump_path", tmp_path / "out", "--num_attention_heads", HEADS]
    assert cli("convert-pixart", *plain).returncode == 2
    result = cli("convert-pixart", *plain, "--overwrite")
    assert (result.returncode, result.stderr) == (0, "")
    assert tree(tmp_path / "out") == tree(made[1])  # an old verdict is none on a new conversion


@pytest.mark.parametrize("more", [[], ["--quiet"], ["--json"]])
def test_what_it_is_doing_is_said_before_torch_is_imported(
    more: list[str], made: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no torch yet')")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    code, _, shown = terminal("pixart", *flags(made, *more), env={"PYTHONPATH": path})
    assert code not in (0, 1)
    words = b"\rcomparing: reading both sides, importing torch and diffusers\r"
    assert shown.startswith(words) if not more else b"comparing" not in shown
    assert re.search(rb"(^|\r +\r)pixart: error: [^\r\n]*\r\n$", shown) or more == ["--json"]  # wiped before it


def test_an_error_on_a_terminal_is_one_line(made: tuple[Path, Path], tmp_path: Path) -> None:
    code, out, shown = terminal("pixart", *flags((tmp_path / "absent.pth", made[1])))
    assert (code, out) == (3, "")
    assert re.search(rb"(^|\r)pixart: error: [^\r\n]*absent.pth: No such file or directory\r\n$", shown)


@pytest.mark.usefixtures("no_search")
@pytest.mark.parametrize("how", ["text", "json", "quiet"])
def test_the_verdict_is_the_exit_code(
    how: str, made: tuple[Path, Path], tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LIMITS, "relative L2", 1e-30)  # as no two nets agree
    result = cli("convert-pixart", *converting(made[0], tmp_path / "out", *([] if how == "text" else [f"--{how}"])))
    assert (result.returncode, result.stderr) == (1, "")
    report = json.loads((tmp_path / "out/parity.json").read_text())
    assert (report["verdict"], report["exit_code"]) == (FAIL, 1)
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (made[1] / WEIGHTS).read_bytes()  # it is there to be looked at
    if how == "quiet":
        assert result.stdout == ""
    elif how == "text":
        assert result.stdout.splitlines()[-2].startswith("FAIL: function: ")
    else:
        content = json.loads(result.stdout)
        assert set(content) == {"ok", "path", "written", "record", "parity", "notes"}
        assert (content["ok"], content["written"]) == (False, True)
        assert content["parity"] == report


def test_a_conversion_of_which_nothing_can_be_told(tmp_path: Path, cli: Cli) -> None:
    result = cli("convert-pixart", *converting(zero(tmp_path), tmp_path / "out"))
    assert (result.returncode, result.stderr) == (4, "")
    assert "\nINCONCLUSIVE: function: " in result.stdout


def test_a_conversion_that_is_refused_is_not_compared(checker: Checker, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "made.pth").write_text("<html>")
    result = cli("convert-pixart", *converting(tmp_path / "made.pth", tmp_path / "out"))
    assert (result.returncode, result.stdout, checker.calls) == (3, "", [])
    assert LINE.fullmatch(result.stderr)
    assert not (tmp_path / "out").exists()


def test_parity_of_a_dry_run(made: tuple[Path, Path], checker: Checker, tmp_path: Path, cli: Cli) -> None:
    for source in (made[0], tmp_path / "absent.pth"):
        result = cli("convert-pixart", *converting(source, tmp_path / "out", "--dry_run"))
        assert (result.returncode, result.stdout, checker.calls) == (2, "", [])
        assert result.stderr.startswith("convert-pixart: error: --parity cannot be combined with --dry_run")
        assert LINE.fullmatch(result.stderr)
    assert list(tmp_path.iterdir()) == []


def test_a_checker_that_fails_after_a_conversion(
    made: tuple[Path, Path], checker: Checker, tmp_path: Path, cli: Cli
) -> None:
    checker.told["small"] = RuntimeError("ours")
    result = cli("convert-pixart", *converting(made[0], tmp_path / "out", "--family", "pixart"))
    assert result.returncode == 5
    assert LINE.fullmatch(result.stderr)
    assert checker.calls[0][2] == {"family": "pixart"}
    assert tree(tmp_path / "out") == tree(made[1])  # the conversion is done, and no verdict lies in it


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"])
def test_a_signal_during_the_comparison_says_what_stays(
    number: int, code: int, made: tuple[Path, Path], tmp_path: Path
) -> None:
    """The conversion was finished before: to say that nothing is left would not be true."""
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = ["convert-pixart", *converting(made[0], tmp_path / "out"), "--quiet"]
    with start(*command, **options) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "out").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
        time.sleep(0.3)  # in the imports, most likely
        process.send_signal(number)
        out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "")
    assert LINE.fullmatch(errors), errors
    named = f"{signal.Signals(number).name}; {tmp_path / 'out'} is converted, whole, and was not compared"
    assert named in errors
    assert tree(tmp_path / "out") == tree(made[1])


# In a process of its own, help, and documents.


def test_a_rejection_in_a_process_of_its_own(made: tuple[Path, Path], tmp_path: Path) -> None:
    result = launch("pixart", *flags((tmp_path / "absent.pth", made[1]), "--quiet"))
    assert (result.returncode, result.stdout) == (3, "")
    assert LINE.fullmatch(result.stderr)


def test_help_is_light_and_shows_every_flag() -> None:
    from converter.cli.main import parity

    code, printed, modules, seconds = imported("pixart", "parity", "--help")
    assert (code, modules) == (0, set())
    assert seconds < 0.5
    shown = set(re.findall(r"^  (?:-h, )?(--\w+)", printed, re.M))
    options = parity.get_params(click.Context(parity, help_option_names=["-h", "--help"]))
    assert shown == {name for option in options for name in option.opts if name.startswith("--")}
    for option in filter(lambda option: isinstance(option, click.Option), options):
        assert getattr(option, "help", None), option.name
    assert {"--orig_ckpt_path", "--converted_path", "--config", "--report", "--card", "--cache", "--cases"} <= shown
    words = " ".join(printed.split())
    names = {"REJECTED": "input rejected", "INTERNAL": "internal"}
    assert all(f"{code} {names.get(verdict, verdict)}" in words for verdict, code in EXIT_CODES.items())
    code, printed, modules, _ = imported("pixart", "--help")
    assert (code, modules) == (0, set())
    assert re.search(r"^  parity +Prove ", printed, re.M)


def test_usage_errors_are_light() -> None:
    code, printed, modules, seconds = imported("pixart", "parity", "--orig_ckpt_path", "a", errors=LINE.pattern)
    assert (code, printed, modules & HEAVY_FOR_ALL) == (2, "", set())
    assert seconds < 1


def test_the_page_on_ci_agrees() -> None:
    page = (ROOT / "docs" / "ci.md").read_text()
    table = dict(re.findall(r"^\| (\d|128 \+ n) \| (.*) \|$", page, re.M))
    assert list(table) == ["0", "1", "2", "3", "4", "5", "128 + n"]
    for verdict, code in EXIT_CODES.items():
        if verdict in (PASS, FAIL, "INCONCLUSIVE"):
            assert verdict in table[str(code)]
    for error, word in ((UsageError, "call is wrong"), (InputError, "input is refused"), (ConverterError, "internal")):
        assert word in table[str(error.exit_code)]
    assert (EXIT_CODES["REJECTED"], EXIT_CODES["INTERNAL"]) == (InputError.exit_code, ConverterError.exit_code)
    order = [EXIT_CODES[verdict] for verdict in WORST_FIRST]
    assert "that of the worst: {} internal, then {}, {}, {}, {}".format(*order) in " ".join(page.split())
