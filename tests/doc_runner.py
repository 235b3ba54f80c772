"""A reader who does what a page says: runs its commands and its Python, writes its files, and compares what it prints.

What the blocks mean:
    python  a file, where its first line is `# NAME.py`; shown out of one, where it is `# from NAME.py` (`...` for
            what is left out); else it is run
    toml    a file, `# NAME.toml`
    sh      commands; a comment may say the exit code. With `\\` at its end a line goes on in the next one
    text    what the commands or the Python before it printed, with `...` for what differs from machine to machine; of
            VARYING numbers those of a real run may stand there
    diff    a change to a file, its parts separated by `@@`
"""

from __future__ import annotations

import doctest
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from makers import ROOT, launch

from converter.parity.ci.tomlfile import read_toml

PROGRAMS = ("convert-pixart", "pixart")
# Numbers that differ from machine to machine: how close two nets are, threads, seconds, the size of a record.
VARYING = re.compile(
    r"float32 output within [\d.]+ times the noise floor \(limit 3\)|outputs identical in float32(?! and)|"
    r"(?<=within )\d[\d.,e+-]*|(?<=threads: )\d+|(?<= in )\d[\d.]*(?= s\b)|(?<=conversion\.json \()\d[\d.]*"
)
Launch = Callable[..., subprocess.CompletedProcess[str]]


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.M | re.S)


def commands(content: str) -> list[str]:
    """The lines of a block of commands, each whole."""
    return [line for line in content.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]


class Reader:
    """Follows one page in a folder. `session` are the names that its Python begins with, and then has.

    `cli` carries out a command inside this process, in its current folder; without it each is a process of its own.
    """

    def __init__(self, page: str, folder: Path, session: dict[str, Any], cli: Launch | None = None) -> None:
        self.page, self.folder, self.session, self.cli = page, folder, session, cli
        self.printed = ""

    def follow(self, text: str, wanted: Callable[[str], bool] = lambda command: True) -> int:
        """Do what the blocks say, in order; of commands, those that are `wanted`. Returns how many texts agreed."""
        compared = 0
        for language, content in blocks(text):
            first, _, rest = content.partition("\n")
            named = re.fullmatch(r"# (\w+\.(py|toml))", first)
            if language in ("python", "toml") and named:
                (self.folder / named[1]).write_text(rest)
            elif language == "python" and (shown := re.fullmatch(r"# from (\w+\.py)", first)):
                held = (self.folder / shown[1]).read_text()
                for part in re.split(r"^ *\.\.\.\n", rest, flags=re.M):
                    assert part in held, f"{self.page}: {shown[1]} does not hold\n{part}"
                compared += 1
            elif language == "python":
                with redirect_stdout(io.StringIO()) as out:
                    exec(compile(content, self.page, "exec"), self.session)
                self.printed = out.getvalue()
            elif language == "diff":
                self._change(content)
            elif language == "sh":
                self.printed = "".join(self._run(line) for line in commands(content) if wanted(line))
            elif language == "text":
                shown, printed = (VARYING.sub("#", each) for each in (content, self.printed))
                same = doctest.OutputChecker().check_output(shown, printed, doctest.ELLIPSIS)
                assert same, f"{self.page} shows\n{content}\nand this was printed:\n{self.printed}"
                compared += 1
        return compared

    def _run(self, line: str) -> str:
        program, *arguments = shlex.split(line, comments=True)
        code = re.search(r"# exit code (\d+)$", line)
        if (program, *arguments) == ("pip", "install", "."):
            self.cli = None  # what is installed is found by a process that starts
            return self._install()
        paths = {"cwd": self.folder, "env": {"PYTHONPATH": f"{ROOT}:{self.folder}"}}
        if program == "python":
            done = subprocess.run([sys.executable, *arguments], cwd=self.folder, capture_output=True, text=True)
        else:
            program = program.removeprefix("bin/")
            assert program in PROGRAMS, line
            done = self.cli(program, *arguments) if self.cli else launch(program, *arguments, **paths)
        assert done.returncode == int(code[1] if code else 0), f"{line}: {done.returncode}\n{done.stdout}{done.stderr}"
        if not code:
            assert done.stderr == "", line
        return done.stdout + done.stderr

    def _install(self) -> str:
        """What installing leaves that matters: modules that are found, and the entry points of their metadata."""
        project = read_toml(self.folder / "pyproject.toml")["project"]
        info = self.folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
        groups = [
            "\n".join([f"[{group}]", *(f"{name} = {value}" for name, value in points.items())])
            for group, points in project["entry-points"].items()
        ]
        (info / "entry_points.txt").write_text("\n".join(groups) + "\n")
        return ""

    def _change(self, content: str) -> None:
        first, _, rest = content.partition("\n")
        path = self.folder / first.removeprefix("--- ")
        text = path.read_text()
        for part in rest.split("@@\n"):
            old, new = (
                "".join(line[1:] + "\n" for line in part.splitlines() if line[:1] in kept) for kept in ("- ", "+ ")
            )
            assert text.count(old) == 1, f"{self.page}: {path.name} has {text.count(old)} times\n{old}"
            text = text.replace(old, new)
        path.write_text(text)
