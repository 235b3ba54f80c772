"""The GitHub action: what its caller writes reaches the command as it was written, and never a shell as a program."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from makers import ROOT

ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS = ACTION["runs"]["steps"]
HOSTILE = ["$(touch hit)", "`touch hit`", "a b", "'", '"', "; touch hit", "-x", "\\", "*", "é", "${HOME}", "a' \"b"]
FAKE = """#!/bin/sh
printf '%s\\0' "$@" > "$RECORD"
while [ $# -gt 0 ]; do
    if [ "$1" = --report ] && [ -n "$WRITE" ]; then printf 'parity: `report`\\n' > "$2"; fi
    shift
done
exit "$STATUS"
"""


def step(name: str) -> dict[str, Any]:
    return next(step for step in STEPS if step.get("id") == name)


class Runner:
    """What GitHub's runner does with a step of a composite action that is a script."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.action = folder / "the action"
        (self.action / "bin").mkdir(parents=True)
        command = self.action / "bin" / "pixart"
        command.write_text(FAKE)
        command.chmod(0o755)
        self.reports = folder / "the reports"
        self.reports.mkdir()

    def run(self, step: dict[str, Any], status: int = 0, write: bool = True, **variables: str) -> int:
        for name in ("output", "summary", "record"):
            (self.folder / name).write_text("")
        environment = {
            "PATH": os.environ["PATH"],
            "GITHUB_ACTION_PATH": str(self.action),
            "GITHUB_OUTPUT": str(self.folder / "output"),
            "GITHUB_STEP_SUMMARY": str(self.folder / "summary"),
            "RUNNER_TEMP": str(self.folder),
            "RECORD": str(self.folder / "record"),
            "STATUS": str(status),
            "WRITE": "1" if write else "",
        }
        script = self.folder / "script.sh"
        script.write_text(step["run"])
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
            cwd=self.folder,
            env=environment | variables,
            capture_output=True,
            text=True,
            timeout=60,
        )
        self.printed = done.stdout + done.stderr
        assert not (self.folder / "hit").exists()
        return done.returncode

    def check(self, status: int = 0, write: bool = True, **inputs: str) -> int:
        """Run the step that compares, with the action's inputs as its `env` hands them on."""
        variables = {}
        for variable, text in step("check")["env"].items():
            variables[variable] = re.sub(
                r"\$\{\{ (.*?) \}\}",
                lambda place: (
                    {
                        "steps.prepare.outputs.folder": str(self.reports),
                        "steps.prepare.outputs.cache": "cache",
                        "steps.python.outputs.python-path": "python",
                    }.get(place[1])
                    or inputs.get(place[1].removeprefix("inputs."), "")
                ),
                text,
            )
        return self.run(step("check"), status, write, **variables)

    @property
    def arguments(self) -> list[str]:
        return (self.folder / "record").read_text().split("\0")[:-1]

    def read(self, name: str) -> str:
        return (self.folder / name).read_text()

    @property
    def fixed(self) -> list[str]:
        reports = [text for s in ("xml", "md", "html") for text in ("--report", f"{self.reports}/parity.{s}")]
        return [*reports, "--cache", "cache/cache.json"]


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


def test_no_input_is_part_of_a_script() -> None:
    scripts = [step["run"] for step in STEPS if "run" in step]
    assert len(scripts) == 3
    for script in scripts:
        assert "${{" not in script
    for step in STEPS:
        assert ("run" in step) == (step.get("shell") == "bash")


def test_every_input_is_used_and_every_used_one_is_there() -> None:
    text = (ROOT / "action.yml").read_text()
    assert set(re.findall(r"inputs\.([\w-]+)", text)) == set(ACTION["inputs"])
    ids = {step.get("id") for step in STEPS}
    assert set(re.findall(r"steps\.([\w-]+)\.", text)) <= ids
    assert all(entry["description"] for entry in ACTION["inputs"].values())
    assert ACTION["runs"]["using"] == "composite"


def test_what_is_kept_is_kept_of_a_failed_check_too() -> None:
    after = STEPS[STEPS.index(step("check")) + 1 :]
    assert [step["uses"].partition("@")[0] for step in after] == ["actions/cache/save", "actions/upload-artifact"]
    assert all(step["if"].startswith("always()") for step in after)
    for step_ in STEPS:  # each names a major version
        assert re.fullmatch(r"actions/[\w/-]+@v\d+", step_.get("uses", "actions/none@v1"))


def test_nothing_but_a_config(runner: Runner) -> None:
    assert runner.check(config="parity.toml") == 0
    assert runner.arguments == ["parity", "--config", "parity.toml", *runner.fixed]
    assert runner.read("summary") == "parity: `report`\n"
    assert runner.read("output") == "exit_code=0\n"


def test_every_input(runner: Runner) -> None:
    assert (
        runner.check(
            original="runs/*/epoch_*.pth",
            converted="converted/{parent}/{stem}",
            config="parity.toml",
            profile="full",
            weights="ema",
            num_attention_heads="16",
            require_evidence="true",
            args="--self_test full --device 'cuda:0'\n--quiet",
        )
        == 0
    )
    flags = ["--orig_ckpt_path", "runs/*/epoch_*.pth", "--converted_path", "converted/{parent}/{stem}"]
    flags += ["--config", "parity.toml", "--profile", "full", "--weights", "ema", "--num_attention_heads", "16"]
    flags += ["--require_evidence", "true"]
    more = ["--self_test", "full", "--device", "cuda:0", "--quiet"]
    assert runner.arguments == ["parity", *flags, *runner.fixed, *more]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_values_arrive_as_they_are(runner: Runner, text: str) -> None:
    names = ("original", "converted", "config", "profile", "weights", "num_attention_heads", "require_evidence")
    assert runner.check(**dict.fromkeys(names, text)) == 0
    assert runner.arguments[2:15:2] == [text] * 7


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("$(touch hit) `touch hit`", ["$(touch", "hit)", "`touch", "hit`"]),
        ("'$(touch hit)' \"a b\" c\\ d", ["$(touch hit)", "a b", "c d"]),
        ("; touch hit", [";", "touch", "hit"]),
        ("* ${HOME} -n --", ["*", "${HOME}", "-n", "--"]),
        ("  \n ", []),
        ("--family ''", ["--family", ""]),
    ],
)
def test_more_flags(runner: Runner, text: str, words: list[str]) -> None:
    assert runner.check(config="c", args=text) == 0
    assert runner.arguments == ["parity", "--config", "c", *runner.fixed, *words]


def test_quotes_that_do_not_match(runner: Runner) -> None:
    assert runner.check(config="c", args="--family 'pixart") == 2
    assert "::error::args: the quotes do not match" in runner.printed
    assert runner.arguments == []
    assert runner.read("output") == "exit_code=2\n"
    assert "do not match" in runner.read("summary")


def test_several_pairs(runner: Runner) -> None:
    assert runner.check(original="a b.pth\n\nruns/*.pth\n", converted="A\n  \n{stem}\n") == 0
    assert runner.arguments == [
        *("parity", "--orig_ckpt_path", "a b.pth", "--orig_ckpt_path", "runs/*.pth"),
        *("--converted_path", "A", "--converted_path", "{stem}", *runner.fixed),
    ]


@pytest.mark.parametrize("status", [0, 1, 2, 3, 4, 5, 130])
@pytest.mark.parametrize("write", [True, False])
def test_the_exit_code_is_the_step_s(runner: Runner, status: int, write: bool) -> None:
    (runner.reports / "parity.md").write_text("of an earlier check")
    assert runner.check(status, write, config="c") == status
    assert runner.read("output") == f"exit_code={status}\n"
    wanted = "parity: `report`\n" if write else f"nothing was compared, exit code {status}"
    assert wanted in runner.read("summary")
    assert "earlier" not in runner.read("summary")


def test_preparing(runner: Runner) -> None:
    for name in ("pyproject.toml", "setup.cfg", "constraints.txt"):
        (runner.action / name).write_text(name)
    prepare = step("prepare")
    assert runner.run(prepare, PARITY_NAME="nightly-1.0", PARITY_TORCH_INDEX="") == 0
    made = dict(line.split("=", 1) for line in runner.read("output").splitlines())
    assert re.fullmatch("[0-9a-f]{40}", made["recipe"])
    assert made["folder"] == str(runner.folder / "pixart-nightly-1.0")
    assert Path(made["folder"]).is_dir()
    assert Path(made["cache"]).is_dir()
    for change in ({"PARITY_TORCH_INDEX": "https://x"}, {}):
        if not change:
            (runner.action / "constraints.txt").write_text("torch==9")
        assert runner.run(prepare, **{"PARITY_NAME": "parity", "PARITY_TORCH_INDEX": ""} | change) == 0
        assert f"recipe={made['recipe']}\n" not in runner.read("output")
    for name in ("", "a b", "../x", "$(touch hit)", "a\nb"):
        assert runner.run(prepare, PARITY_NAME=name, PARITY_TORCH_INDEX="") == 2
        assert runner.read("output") == ""


def test_installing(runner: Runner) -> None:
    (runner.action / "bin" / "pixart").write_text(
        '#!/bin/sh\nprintf "%s" "$*, ${PIP_EXTRA_INDEX_URL-none}" > "$RECORD"'
    )
    for index, seen in (("https://x/$(touch hit)", "https://x/$(touch hit)"), ("", "none")):
        assert runner.run(step("install"), PARITY_TORCH_INDEX=index) == 0
        assert runner.read("record") == f"--version, {seen}"
