"""A real client of S3 against a server of it: from bucket to bucket, and what is said where something is wrong."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from makers import GOLDEN, Result, convert, tree

from converter.checkpoint.file import InputFile
from converter.conversion.up_to_date import is_up_to_date
from converter.errors import ConverterError, InputError, UsageError
from converter.remote import fetched, target

SIGMA = GOLDEN / "sigma-ms.pth"
SECRET = "vErYsEcReT/of40Characters+that0nobodySees"  # the key that the fixture sets
SOURCE = "s3://lab/runs/sigma/checkpoints/epoch_1.pth"
Cli = Callable[..., Result]


@pytest.fixture
def lab(s3: Any) -> Any:
    s3.pipe_file(SOURCE, SIGMA.read_bytes())
    return s3


def test_from_bucket_to_bucket_and_back(lab: Any, tmp_path: Path) -> None:
    done = convert(SOURCE, "s3://lab/out")
    here = tree(convert(SIGMA, tmp_path / "here").path)
    names = [name.removeprefix("lab/out/") for name in lab.find("lab/out")]
    assert names == sorted(here)
    assert all(lab.cat(f"lab/out/{name}") == here[name] for name in names if name != "conversion.json")
    assert done.notes[-1] == "s3://lab/out: 4 files sent, what lies there proven by the store's MD5"
    known = {"hyper_parameters": {"num_attention_heads": 4}}
    assert is_up_to_date(SOURCE, "s3://lab/out", **known) == []
    assert is_up_to_date(SOURCE, "s3://lab/nothing", **known) is None
    with pytest.raises(UsageError, match=r"^s3://lab/out: exists and is not empty; use `overwrite`"):
        convert(SOURCE, "s3://lab/out")
    convert(SOURCE, "s3://lab/out", overwrite=True)
    convert("s3://lab/out", "s3://lab/back.pth", to="original")
    convert(tmp_path / "here", tmp_path / "back.pth", to="original")
    assert lab.cat("lab/back.pth") == (tmp_path / "back.pth").read_bytes()


def test_what_is_sent_in_parts_is_proven_too(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "PART", 5 << 20)  # S3 takes none that is smaller, but for the last
    big = bytes(range(256)) * (45 << 10)
    with target.target_at("s3://lab/big.bin", "elsewhere") as there:
        there.path.write_bytes(big)
        assert target.send(there) == "s3://lab/big.bin: 1 file sent, what lies there proven by the store's MD5"
    assert lab.info("lab/big.bin")["ETag"].endswith('-3"')
    with fetched("s3://lab/big.bin") as path, InputFile(path) as file:
        assert file.read(0, file.size) == big


def test_an_interrupt_leaves_no_object_and_no_part_of_one(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(file: Any, there: Any, size: int) -> None:
        there.write(bytes(size))  # a part is there by then
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.copyfileobj", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(SIGMA, "s3://lab/out")
    assert lab.find("lab/out") == []
    assert lab.list_multipart_uploads("lab") == []


@pytest.mark.parametrize(("settings", "words"), [
    ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "no credentials: set them as"),
    ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "the store cannot be reached (Could not connect to the endpoint"),
    ({"AWS_ENDPOINT_URL": f"http://me:{SECRET}@127.0.0.1:9"}, "the store "),
    ({"AWS_PROFILE": "nobody"}, "no credentials: set them as"),
])  # fmt: skip
def test_no_credentials_and_a_wrong_address(
    settings: dict[str, str], words: str, lab: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    for source, out, kinds in ((SOURCE, tmp_path / "out", {3}), (SIGMA, "s3://lab/out", {2, 5})):
        with pytest.raises(ConverterError) as refused:
            convert(source, out)
        line = str(refused.value)
        assert line.startswith(f"{SOURCE if source == SOURCE else out}: {words}")
        assert refused.value.exit_code in kinds
        assert SECRET not in line
        assert "\n" not in line


def test_a_bucket_that_is_not_there_or_goes(lab: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^s3://none/a\.pth: no such file, folder or bucket"):
        convert("s3://none/a.pth", tmp_path / "out")
    with pytest.raises(UsageError, match=r"^s3://none/out: its bucket: no such file, folder or bucket"):
        convert(SIGMA, "s3://none/out")

    def vanishes(total: int) -> Callable[[int], None]:
        lab.rm("lab", recursive=True)
        return lambda count: None

    with pytest.raises(ConverterError, match=r"^s3://lab/(out|runs/sigma/checkpoints/epoch_1\.pth): .*no such file"):
        convert(SOURCE, "s3://lab/out", progress=vanishes)
    assert not lab.exists("lab")


def test_the_nightly_run(lab: Any, cli: Cli, tmp_path: Path) -> None:
    """Every new checkpoint of a bucket is converted, and all are compared, with a report for CI."""
    pattern, template = "s3://lab/runs/*/checkpoints/*.pth", "s3://lab/converted/{run}/{stem}"
    done = cli("convert-pixart", pattern, template, "--num_attention_heads", 4, "--json")
    assert done.returncode == 0, done.stderr
    assert '"original": "s3://lab/runs/sigma/checkpoints/epoch_1.pth"' in done.stdout
    assert lab.exists("lab/converted/sigma/epoch_1/conversion.json")
    shown = cli("pixart", "inspect", "s3://lab/converted/sigma/epoch_1")
    assert shown.stdout.startswith("source: s3://lab/converted/sigma/epoch_1, 602 kB, folder of safetensors\n")
    compared = cli("pixart", "parity", pattern, template, "--report", tmp_path / "junit.xml")
    assert compared.returncode == 0, compared.stderr
    assert "\nPASS: " in compared.stdout
    suites = ET.parse(tmp_path / "junit.xml").getroot()
    assert suites.get("failures") == "0"
    assert all(case.get("classname").startswith("parity.epoch_1.") for case in suites.iter("testcase"))


def test_what_follows_a_conversion_needs_it_here(cli: Cli) -> None:
    done = cli("convert-pixart", SIGMA, "s3://lab/out", "--parity")
    assert (done.returncode, "--parity needs a result on this machine, not at s3://lab/out" in done.stderr) == (2, 1)
