"""Nets that a user brings: those beside his family, never another's; compared anew once they change; of any rank."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from makers import Result

import converter
from converter.parity import check
from converter.reports.report import PASS

Cli = Callable[..., Result]
FAMILY = """
import converter

def describe(plan, state, findings):
    findings.file("depth", plan.blocks, "its blocks")

def config(findings):
    return {"depth": findings.value("depth")}

KEYS = converter.KeyMapping({"stem [D 4 2 2]": "embed", "layers.{}.qkv [3D D]": ("b.{}.q", "b.{}.k", "b.{}.v")})
FAMILY = converter.Family("NAME", "Toy", KEYS, describe, config, parity="MODULE:PARITY")
"""
NETS = """
import torch.nn.functional as F
from converter import parity
from converter.nets import Stage, Staged

def net(depth, weights, stem, qkv):
    def linear(x, path):
        return F.linear(x, weights[f"{path}.weight"], weights[f"{path}.bias"])
    def embed(values, probe):
        x = F.conv2d(values["latent"], weights[f"{stem}.weight"], weights[f"{stem}.bias"], stride=2)
        return {"x": x.flatten(2).transpose(1, 2)}
    def layer(i):
        return Stage(f"layer {i}", lambda values, probe: {"x": values["x"] + attend(*qkv(values["x"], i, linear))})
    def out(values, probe):
        x = values["x"].transpose(1, 2).unflatten(2, (4, 4))
        return {"output": OUTPUT}
    return Staged([Stage("stem", embed), *map(layer, range(depth)), Stage("out", out)])

def attend(q, k, v):
    return F.scaled_dot_product_attention(*(part[:, None] for part in (q, k, v)))[:, 0]

def original(findings, weights):
    return net(findings.value("depth"), weights, "stem", lambda x, i, linear: linear(x, f"layers.{i}.qkv").chunk(3, -1))

def converted(config, weights):
    return net(config["depth"], weights, "embed", lambda x, i, linear: [linear(x, f"b.{i}.{part}") for part in "qkv"])

def cases(findings, profile, own):
    return [parity.Case("noise", {"latent": parity.noise(1, 2, 4, 8, 8)})]

PARITY = parity.ParitySpec(original, converted, cases)
"""
WRONG = NETS.replace('for part in "qkv"', 'for part in "kqv"')


def write(folder: Path, nets: str, module: str = "toy_nets", name: str = "toy") -> Path:
    """A family with its nets beside it, or in a package there."""
    place = folder / f"{module.strip('.').replace('.', '/')}.py"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(nets.replace("OUTPUT", "x"))
    (folder / "toy.py").write_text(FAMILY.replace("MODULE", module).replace("NAME", name))
    return folder / "toy.py"


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    sizes = {"stem.weight": (6, 4, 2, 2), "stem.bias": (6,)}
    for i in range(2):
        sizes |= {f"layers.{i}.qkv.weight": (18, 6), f"layers.{i}.qkv.bias": (18,)}
    torch.save({key: torch.randn(size) * 0.3 for key, size in sizes.items()}, "toy.pth")
    family = write(tmp_path / "right", NETS)
    converter.convert("toy.pth", "out", family=str(family))
    return tmp_path


def test_what_a_cast_leaves_alone_is_not_rounded_in_the_reference(toy: Path) -> None:
    (toy / "kept").mkdir()
    family = write(toy / "kept", NETS)
    family.write_text(family.read_text().replace('parity="', 'keep_dtype=("embed",), parity="'))
    converter.convert("toy.pth", "half", family=str(family), dtype="float16")
    report = check("toy.pth", "half", family=str(family))
    assert report.verdict == PASS, report.reason


def test_of_two_families_each_has_the_nets_beside_it(toy: Path) -> None:
    """Though both modules are called alike, and are imported in one process."""
    right, wrong = toy / "right/toy.py", write(toy / "wrong", WRONG)
    verdicts = [check("toy.pth", "out", family=str(family)).verdict for family in (right, wrong, right)]
    assert verdicts == ["PASS", "FAIL", "PASS"]


@pytest.mark.parametrize("module", ["toy_nets", ".toy_nets", "nets.inner", ".nets.inner"])
def test_a_pass_ends_where_the_nets_change(cli: Cli, toy: Path, module: str) -> None:
    family = write(toy / "mine", NETS, module)
    parity = ["--orig_ckpt_path", toy / "toy.pth", "--converted_path", toy / "out", "--family", family]
    convert = ["--orig_ckpt_path", toy / "to*.pth", "--dump_path", toy / "{stem}_out", "--family", family, "--parity"]
    runs = [("pixart", "parity", *parity, "--cache", toy / "cache"), ("convert-pixart", *convert)]
    for nets, code in ((NETS, 0), (WRONG, 1)):
        write(toy / "mine", nets, module)
        assert [cli(*run).returncode for run in runs] == [code, code]
        again = [cli(*run) for run in runs]
        assert [done.returncode for done in again] == [code, code]
    assert "unchanged" in again[0].stdout


@pytest.mark.parametrize(
    "output",
    ["x.flatten(2).transpose(1, 2)", "x[:, :, None].repeat(1, 1, 3, 1, 1)"],
    ids=["tokens", "video"],
)
def test_outputs_that_are_no_image(toy: Path, output: str) -> None:
    (toy / "right/toy_nets.py").write_text(NETS.replace("OUTPUT", output))
    report = check("toy.pth", "out", family=str(toy / "right/toy.py"))
    assert report.verdict == PASS, report.reason
    (toy / "wrong").mkdir()
    write(toy / "wrong", "")
    (toy / "wrong/toy_nets.py").write_text(WRONG.replace("OUTPUT", output))
    report = check("toy.pth", "out", family=str(toy / "wrong/toy.py"))
    assert report.verdict == "FAIL"
    assert "layer 0" in report.reason + " ".join(phase.words for phase in report.phases)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("return [parity.Case", "return [] and [parity.Case", "it gives no cases"),
        (
            "return net(findings",
            "raise KeyError('k'); return net(findings",
            r"parity: .*toy_nets.py, line 23: KeyError: 'k'",
        ),
        ("return net(findings", "exit(); return net(findings", r"parity: .*toy_nets.py, line 23: SystemExit"),
        ("return [parity.Case", "1 / 0; return [parity.Case", r"parity: .*toy_nets.py, line 29: ZeroDivisionError"),
        ("PARITY =", "OTHER =", r"its parity toy_nets:PARITY: AttributeError"),
        ("import torch", "import torchh", r"its parity toy_nets:PARITY: ModuleNotFoundError"),
    ],
)
def test_what_goes_wrong_in_them_names_the_family_and_the_line(toy: Path, old: str, new: str, words: str) -> None:
    family = write(toy / "bad", NETS.replace(old, new, 1))
    with pytest.raises(converter.UsageError, match=f"`family` toy: {words}"):
        check("toy.pth", "out", family=str(family))
