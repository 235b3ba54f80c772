"""A ControlNet brought to be compared: both nets are the same, and what a port gets wrong between them is noticed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from makers import GOLDEN, HEADS, convert, save
from originals import golden, random

from converter.checkpoint import open_checkpoint
from converter.conversion.analysis import analyse
from converter.conversion.model_config import config_of
from converter.errors import InputError
from converter.families import Findings
from converter.models.pixart.controlnet_parity import PARITY, STOCK, cases, reference
from converter.models.pixart.controlnet_table import PIXART_CONTROLNET
from converter.models.pixart.parity import cases as base_cases
from converter.nets import Weights
from converter.parity import check, selftest
from converter.parity.choices import CheckOptions
from converter.parity.configuration import audit
from converter.parity.opening import open_sides
from converter.parity.session import Session
from converter.parity.sides import spec_of
from converter.reports.report import FAIL, INCONCLUSIVE, PASS

FILE = GOLDEN / "alpha-controlnet.pth"
OWN = {
    "control ignored", "control not scaled", "controls of the other samples", "skip added one block late",
    "before_proj left out", "a copy of the wrong base block", "copied blocks one fewer in the copied blocks",
    "8 heads for 4 in the copied blocks",
}  # fmt: skip


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(FILE, tmp_path_factory.mktemp("parity") / "out").path


@contextmanager
def session(original: Path, folder: Path) -> Iterator[Session]:
    """The nets of a file and a folder."""
    with ExitStack() as stack:
        given = {"num_attention_heads": HEADS}
        yield Session(open_sides(stack, original, folder, CheckOptions(), hyper_parameters=given))


def findings() -> Findings:
    with open_checkpoint(FILE) as checkpoint:
        return analyse(checkpoint, {"num_attention_heads": HEADS}).findings


def test_it_is_what_the_family_brings() -> None:
    assert spec_of(PIXART_CONTROLNET) is PARITY


def test_the_golden_pair_passes(out: Path) -> None:
    report = check(FILE, out)
    assert (report.verdict, report.exit_code) == (PASS, 0)
    config = report.phase("config")
    assert config
    assert {"transformer.num_layers", "controlnet.num_layers", "pixart_controlnet.py"} <= {
        c.what for c in config.checks
    }
    assert {name.partition("/")[0] for name in report.converted["files"]} >= {"transformer", "controlnet"}


@pytest.mark.parametrize("folder", ["transformer", "controlnet"])
def test_a_module_that_was_not_compared_may_not_be_named(out: Path, tmp_path: Path, folder: str) -> None:
    """`AutoModel` would run it, whatever class the config names."""
    shutil.copytree(out, tmp_path / "out")
    path = tmp_path / "out" / folder / "config.json"
    change = {"auto_map": {"AutoModel": "evil.Evil"}}
    if folder == "controlnet":
        change["_class_name"] = "PixArtSigmaControlNetAdapterModel"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with session(FILE, tmp_path / "out") as opened:
        phase = audit(opened.sides)
    assert phase.verdict == FAIL
    assert phase.words.startswith(f"{folder}.auto_map is {{'AutoModel': 'evil.Evil'}}, and has to be left out")


@pytest.mark.parametrize("folder", ["transformer", "controlnet"])
def test_one_of_both_folders_is_not_compared(out: Path, folder: str) -> None:
    with pytest.raises(InputError, match="is one folder of this PixArt ControlNet, which has transformer and"):
        check(FILE, out / folder)


@pytest.fixture(scope="module")
def ready(out: Path) -> Iterator[Session]:
    with session(FILE, out) as opened:
        assert opened.function(opened.cases("quick"), ("float64",)).verdict == PASS
        yield opened


def test_the_faults_of_its_own_are_caught(ready: Session) -> None:
    faults = PARITY.faults(ready.sides.findings, ready.config, ready.sides.plan)
    own = [fault for fault in faults if fault.name in OWN]
    assert {fault.name for fault in own} == OWN
    phase = selftest.run(ready, own)
    assert (phase.verdict, phase.words) == (PASS, f"all {len(OWN)} deliberate faults were caught")
    assert len({fault.name for fault in faults}) == len(faults)


def test_where_it_goes_wrong_is_named(out: Path, tmp_path: Path) -> None:
    """A copied block that is damaged is told from the base's block of that number."""
    state = golden("alpha-controlnet").state
    wrong = {k: t * 1.1 if k.startswith("controlnet.1.after_proj.w") else t for k, t in state.items()}
    with session(save({"state_dict": wrong}, tmp_path / "other.pth"), out) as opened:
        phase = opened.function(opened.cases("quick"), ("float64",))
    assert phase.verdict == FAIL
    places = phase.detail["localisation"]["stages"]
    assert [place["name"] for place in places if place["faulty"]] == ["control block 1"]


def test_the_cases_are_those_of_a_pixart_with_a_control() -> None:
    found = findings()
    for case, base in zip(cases(found, "standard", {}), base_cases(found, "standard", {}), strict=True):
        assert case.name == base.name
        assert case.arrays["control"].shape == case.arrays["latent"].shape
        assert not np.array_equal(case.arrays["control"], case.arrays["latent"])
    controls = [case.arrays["control"].ravel()[:64].tobytes() for case in cases(found, "standard", {})]
    assert len(set(controls)) == len(controls)


@pytest.mark.parametrize("multi_scale", [True, False])
def test_both_nets_are_the_same(multi_scale: bool, tmp_path: Path) -> None:
    model = random(copied_blocks=2, depth=4, multi_scale=multi_scale)
    with open_checkpoint(save(model.state, tmp_path / "net.pth")) as checkpoint:
        given = {"num_attention_heads": HEADS, "version": "alpha", "multi_scale_train": multi_scale}
        found = analyse(checkpoint, given).findings
    inputs = cases(found, "quick", {})[0].tensors(torch.float64)
    ours = reference(found, Weights(model.state, torch.float64)).forward(inputs)
    target = Weights(PIXART_CONTROLNET.keys(model.state), torch.float64)
    net = STOCK.net(config_of(PIXART_CONTROLNET, found), target)
    assert (net.forward(inputs) - ours).abs().max() < 1e-11 * ours.square().mean().sqrt()
    assert [stage.name for stage in net.stages][3:7] == ["block 0", "control block 0", "control block 1", "block 1"]


def test_copies_alone_cannot_be_run(tmp_path: Path) -> None:
    copies = {key: t for key, t in golden("alpha-controlnet").state.items() if key.startswith("controlnet.")}
    file = save(copies, tmp_path / "copies.pth")
    convert(file, tmp_path / "out")
    report = check(file, tmp_path / "out")
    assert (report.verdict, report.exit_code) == (INCONCLUSIVE, 4)
    assert "nothing without their base" in report.reason
    assert [phase.verdict for phase in report.phases][1:3] == [PASS, PASS]
