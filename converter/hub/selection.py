"""Which files of a repository the reader needs, by their names alone."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from pathlib import PurePosixPath

from ..checkpoint.folder import CONFIG
from ..checkpoint.weight_names import STEMS, SUFFIXES, weights_among
from ..errors import InputError, printable, shortened
from ..filenames import RECORD, SIDECAR, record_places
from .names import HubPath

_SHOWN = 8
# What the files of components without weights end in; that of a scheduler may bring its class.
_TEXTS = {"tokenizer": (".json", ".model", ".txt"), "scheduler": (".json", ".py")}


@dataclass(frozen=True)
class Selection:
    """What to fetch, by its path in the repository.

    Attributes:
        files: these.
        index: the one of them that names further ones, the shards; '' without.
        result: what the reader is to open: one of the files, or the folder (that is '', or ends in '/') they lie in.
    """

    files: tuple[str, ...]
    index: str
    result: str


def select(names: Set[str], wanted: HubPath, *, complete: bool = True) -> Selection:
    """What is needed of a repository that holds `names`, where the user asks for `wanted` in it.

    Of a pipeline the transformer; of a model its config and its weights, as the reader of folders prefers them
    (`checkpoint.weight_names.weights_among`); else the only checkpoint there is, be it a variant in half precision.

    Args:
        complete: whether `names` are all that the repository holds, and not just what was fetched of it before.

    Raises: `InputError` where nothing fits, or too much.

    >>> names = {"transformer/config.json", "transformer/diffusion_pytorch_model.safetensors", "vae/config.json"}
    >>> select(names, HubPath("owner/name", "owner/name"))
    Selection(files=('transformer/config.json', 'transformer/diffusion_pytorch_model.safetensors'), index='', result='')
    """
    if wanted.path in names:
        return Selection((wanted.path, *_with_file(names, wanted.path)), "", wanted.path)
    root = f"{wanted.path}/" if wanted.path else ""
    if not any(name.startswith(root) for name in names):
        raise InputError.at(wanted.text, "", f"the file or folder {absent(complete)}")
    inner = f"{root}transformer/"
    folder = inner if any(name.startswith(inner) for name in names) else root
    try:
        pairs = weights_among({name.removeprefix(folder) for name in names if name.startswith(folder)})
    except ValueError as error:
        raise InputError.at(wanted.text, folder, str(error)) from None
    if not complete:  # a variant is taken only where it is known to be all there is
        pairs = [(file, index) for file, index in pairs if {file, index.removesuffix(".index.json")} & {*STEMS}]
    if not pairs:
        return _only_checkpoint([name for name in names if name.startswith(folder)], wanted, complete)
    if not complete and f"{folder}{CONFIG}" not in names:  # other programs fetch by the file
        raise InputError.at(wanted.text, "", f"{folder}{CONFIG} {absent(complete)}")
    file, index = pairs[0]
    files = [f"{root}{RECORD}", f"{root}{SIDECAR}"] if f"{root}{RECORD}" in names else []
    files += [f"{folder}{CONFIG}", *(f"{folder}{name}" for name in (index, file) if name)]
    return Selection(tuple(name for name in files if name in names), f"{folder}{index}" if index else "", root)


def component_files(names: Set[str], part: str) -> tuple[list[str], str]:
    """(the files of a component of a pipeline among the `names` in its folder, the index of its shards or '').

    Of weights, those in one format, as `weights_among` prefers them; the index names the shards.

    Raises: ValueError, as `weights_among` does.

    >>> component_files({"config.json", "README.md", "model.safetensors", "pytorch_model.bin"}, "text_encoder")
    (['config.json', 'model.safetensors'], '')
    """
    if suffixes := _TEXTS.get(part):
        return sorted(n for n in names if n.endswith(suffixes) and n != CONFIG and ".index." not in n), ""
    file, index = next(iter(weights_among(names)), ("", ""))
    return [name for name in (CONFIG, index, file) if name in names], index


def _with_file(names: Set[str], file: str) -> list[str]:
    """What the reader looks for with a file of a model folder, as it does where the folder is given."""
    folder = PurePosixPath(file).parent
    if str(folder / CONFIG) not in names:
        return []
    roots = [root for root in dict.fromkeys(record_places(folder)) if str(root / RECORD) in names]
    files = [str(root / name) for root in roots for name in (RECORD, SIDECAR)]
    return [str(folder / CONFIG), *(name for name in files if name in names)]


def _only_checkpoint(names: list[str], wanted: HubPath, complete: bool) -> Selection:
    checkpoints = sorted(name for name in names if name.endswith(SUFFIXES))
    if len(checkpoints) == 1 and complete:
        return Selection((checkpoints[0],), "", checkpoints[0])
    if not checkpoints:
        rule = f"holds no weights: looked for {', '.join(STEMS)}, their .index.json, *{', *'.join(SUFFIXES)}"
        raise InputError.at(wanted.text, "", rule if complete else f"weights in it: {absent(complete)}")
    problem = "holds several checkpoints" if len(checkpoints) > 1 else "the cache does not show what else it holds"
    revision = f"@{wanted.revision}" if wanted.revision else ""
    shown = shortened([printable(f"hf://{wanted.repo}{revision}/{name}") for name in checkpoints], _SHOWN)
    raise InputError.at(wanted.text, "", f"{problem}: name one of {shown}")


def absent(complete: bool) -> str:
    """What there is to say of a file that is not among the names."""
    return "is not in the repository" if complete else "is not in the cache, and the hub is out of reach"
