"""No import in `converter.checkpoint` goes up or in a circle."""

from __future__ import annotations

import ast
from pathlib import Path

from converter import checkpoint

ORDER = [
    "dtypes", "cast", "file", "json_file", "recognition", "weight_names", "text_writer", "tensor", "safetensors_reader",
    "torch_file", "write", "weights_kind", "key_names", "state_dicts", "folders", "opener",
]  # fmt: skip
INNER = {
    "torch_file": ["zip_directory", "archive", "unpickle", "kinds", "reader", "tree"],
    "folders": ["folder"],
    "write": ["interrupt", "target", "publish", "layout", "torch_writer", "transfer"],
}
ROOT = Path(checkpoint.__file__).parent


def imported(path: Path) -> list[list[str]]:
    """The modules of this package that a module imports, from its first level below the package on."""
    package = path.relative_to(ROOT).parts[:-1]
    modules = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and 0 < node.level <= len(package) + 1:
            modules.append([*package[: len(package) + 1 - node.level], *(node.module or "").split(".")])
    return modules


def test_every_module_imports_only_what_stands_before_it() -> None:
    for path in ROOT.rglob("*.py"):
        *package, name = path.relative_to(ROOT).with_suffix("").parts
        if name == "__init__":
            continue
        for module in imported(path):
            same_package = package and module[0] == package[0]
            order = INNER[package[0]] if same_package else ORDER
            own, other = (name, module[1]) if same_package else ((*package, name)[0], module[0])
            assert order.index(other) < order.index(own), f"{path}: {'.'.join(module)}"
