"""The model card: what it says of a conversion, and that no text from a file can make it say anything else."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from makers import GOLDEN, convert

from converter.publishing.card import card, model_folders
from converter.publishing.target import MARK
from converter.reports.report import FAIL, INCONCLUSIVE, PASS, Phase, Report

HOSTILE = (
    "<script>alert(1)</script>|`x`|\n\n# heading\n- [link](http://evil.example) ![i](http://evil.example/i.png)\n"
    "```\n---\nlicense: mit\n--- <!-- {{ x }} @someone www.evil.example \x1b[31m\u202e *b* _i_ ~s~ $x$"
)
SECTIONS = ["What it was made from", "How", "Hyper-parameters", "Is it the same model?"]


def record_of(name: str, place: Path, **options: Any) -> dict[str, Any]:
    done = convert(GOLDEN / name, place, dry_run=False, **options)
    return done.record


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return record_of("alpha-ms.pth", tmp_path_factory.mktemp("made") / "out", weights="ema")


def parity(verdict: str = PASS, **more: Any) -> dict[str, Any]:
    phase = Phase("weights", verdict, "all 60 tensors are the original's")
    return Report(verdict, "at worst 1.02 times the noise floor", phases=[phase], **more).as_dict()


def headings(text: str) -> list[str]:
    return [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]


def test_what_it_says(record: dict[str, Any]) -> None:
    made = card(record, repo="owner/name", class_names={"transformer": "PixArtTransformer2DModel"})
    read = ModelCard(made)
    assert read.data.to_dict() == {"library_name": "diffusers", "pipeline_tag": "text-to-image", "tags": ["pixart"]}
    assert headings(made) == [*SECTIONS[:3], "Notes", SECTIONS[3]]
    assert MARK in made
    for words in (
        "# name\n\n`alpha-ms.pth`, converted to the layout of diffusers by `convert-pixart` ",
        'transformer = PixArtTransformer2DModel.from_pretrained("owner/name", subfolder="transformer")',
        "| weights | EMA, from `state_dict_ema` |",
        "| also there | raw weights (state_dict) |",
        "| `num_attention_heads` | `4` | given by the user | --num_attention_heads |",
        "Assumed, as the source holds no evidence of it: `kv_compress` = `False`. If that is wrong, so is the model.",
        "Nobody has compared the two nets yet.",
        "nothing was computed with them",
        f"| `transformer/config.json` | {record['written']['transformer/config.json']['size']} bytes | ",
        record["written"]["transformer/config.json"]["sha256"],
    ):
        assert words in made
    for finding in record["hyper_parameters"]:
        assert f"| `{finding}` | " in made


def test_where_it_was_made_from(record: dict[str, Any], tmp_path: Path) -> None:
    """A place on the hub is the base model; a path on this machine is nobody's business."""
    made = card(record, source="hf://owner/base@v1/runs/a.pth")
    assert ModelCard(made).data.base_model == "owner/base"
    assert "| source | `hf://owner/base/runs/a.pth` |\n| revision | `v1` |" in made
    assert "| file | `alpha-ms.pth` |" in made
    assert ModelCard(card(record, source="owner/base")).data.base_model == "owner/base"
    for path in ("/home/me/alpha-ms.pth", str(tmp_path), "me/alpha-ms.pth"):
        made = card(record, source=path)
        assert path not in made
        assert "base_model" not in made


def test_without_a_repository_or_a_class_there_is_no_example(record: dict[str, Any]) -> None:
    for given in (
        {},
        {"repo": "o/n"},
        {"class_names": {"transformer": "X"}},
        {"repo": "o/n", "class_names": {"transformer": "os; import x"}},
    ):
        assert "from_pretrained" not in card(record, **given)


def test_each_model_folder_has_its_line(tmp_path: Path) -> None:
    """Of a ControlNet the base is diffusers' own class; that of the adapter travels with its weights."""
    record = record_of("alpha-controlnet.pth", tmp_path / "out")
    assert sorted(model_folders(record)) == ["controlnet", "transformer"]
    kinds = {"transformer": "PixArtTransformer2DModel", "controlnet": "PixArtControlNetAdapterModel"}
    made = card(record, repo="owner/name", class_names=kinds)
    for line in (
        "from diffusers import AutoModel, PixArtTransformer2DModel",
        'transformer = PixArtTransformer2DModel.from_pretrained("owner/name", subfolder="transformer")',
        'controlnet = AutoModel.from_pretrained("owner/name", subfolder="controlnet", trust_remote_code=True)',
    ):
        assert line in made.splitlines()


@pytest.mark.parametrize(("verdict", "icon"), [(PASS, "✅"), (FAIL, "❌"), (INCONCLUSIVE, "⚠️")])
def test_the_verdict_in_words(verdict: str, icon: str, record: dict[str, Any]) -> None:
    made = card(record, parity(verdict, original={"sha256": "a" * 64}))
    assert f"{icon} **{verdict}**: at worst 1.02 times the noise floor" in made
    assert f"| weights | {verdict} | all 60 tensors are the original's |" in made
    assert f"| original | `{'a' * 64}` |" in made
    assert ("do not use it in its place" in made) == (verdict == FAIL)


def test_a_cast_is_said(record: dict[str, Any]) -> None:
    made = card(record | {"cast": "bfloat16"})
    assert "The weights were rounded to `bfloat16`." in made
    assert "nothing was computed" not in made


def test_nothing_assumed_and_notes(record: dict[str, Any]) -> None:
    found = {name: f for name, f in record["hyper_parameters"].items() if f["source"] != "assumed"}
    assert "- look &#124; here" in card(record | {"notes": ["look | here"]})
    made = card(record | {"hyper_parameters": found, "notes": []})
    assert "Nothing was assumed." in made
    assert headings(made) == SECTIONS


def poisoned(value: Any, keys: bool = False) -> Any:
    """The same with every text replaced; of what the card looks up, the keys stay."""
    if isinstance(value, dict):
        return {(HOSTILE + key if keys else key): poisoned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    return HOSTILE if isinstance(value, str) else value


def hostile(record: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = poisoned(copy.deepcopy(record))
    for name in ("written", "sources", "hyper_parameters", "dtypes"):
        made[name] = poisoned(record[name], keys=True)
    made["sources"] = {HOSTILE: {"size": 1, "sha256": HOSTILE}}
    made["source"]["weights"] = "raw"
    made["candidates"] = [{"weights": "ema", "where": HOSTILE, "selected": False}]
    return made | {"notes": [HOSTILE], "cast": HOSTILE}


def test_no_text_breaks_out(record: dict[str, Any]) -> None:
    """The oracles are a YAML reader and a Markdown parser."""
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable(["table", "strikethrough"])
    report = parity(original={"sha256": HOSTILE}, converted={"sha256": HOSTILE})
    report["reason"] = HOSTILE
    report["phases"][0] |= {"name": HOSTILE, "words": HOSTILE}
    made = card(hostile(record), report, repo="owner/name", class_names={"transformer": HOSTILE})
    _, head, body = made.split("---\n", 2)
    metadata = yaml.safe_load(head)
    assert metadata.keys() == {"library_name", "pipeline_tag", "tags"}
    assert metadata["tags"] == [HOSTILE]
    assert ModelCard(made).data.tags == [HOSTILE]
    assert all(character.isprintable() or character == "\n" for character in body)
    tokens = markdown.parse(body)
    found = [token for top in tokens for token in (top, *(top.children or ()))]
    kinds = {token.type for token in found}
    assert not kinds & {"link_open", "image", "em_open", "s_open", "fence", "code_block", "hr"}
    assert [token.content.strip() for token in found if token.type == "html_block"] == [
        f"<!-- {MARK}: delete this line to make the next push keep your card -->"
    ]
    assert {token.content for token in found if token.type == "html_inline"} <= {"<code>", "</code>"}
    titles = [
        tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open" and token.tag == "h2"
    ]
    assert titles == [*SECTIONS[:3], "Notes", SECTIONS[3]]
    assert sum(token.type == "heading_open" for token in tokens) == len(titles) + 1
    assert "@someone" not in body
    assert "www.evil" not in body
    assert "http://" not in body


def test_every_table_has_its_columns(record: dict[str, Any]) -> None:
    made = card(hostile(record), parity())
    blocks = [block.splitlines() for block in made.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 4
    for rows in blocks:
        assert {row.count("|") for row in rows} == {rows[0].count("|")}


@pytest.mark.parametrize("name", ["source", "candidates", "written", "plan", "hyper_parameters", "tool"])
@pytest.mark.parametrize("value", ["absent", None, 3, "text", [1]], ids=repr)
def test_what_is_no_record(name: str, value: object, record: dict[str, Any]) -> None:
    changed = {key: item for key, item in record.items() if key != name} | ({} if value == "absent" else {name: value})
    with pytest.raises((KeyError, TypeError, AttributeError, ValueError)):
        card(changed)
