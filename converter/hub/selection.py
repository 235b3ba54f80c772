"""Which files of a repository the reader needs, told by their names alone."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from pathlib import PurePosixPath

from ..checkpoint.folders.folder import CONFIG
from ..checkpoint.weight_names import STEMS, SUFFIXES, weights_among
from ..errors import InputError, printable, shortened
from ..filenames import RECORD, SIDECAR, record_places
from .names import Place

_SHOWN = 8


@dataclass(frozen=True)
class Choice:
    """What to fetch, by its path in the repository.

    Attributes:
        files: these.
        index: the one of them that names further ones, the shards; '' without.
        result: what the reader is to open: one of the files, or the folder (that is '', or ends in '/') they lie in.
    """

    files: tuple[str, ...]
    index: str
    result: str


def choose(names: Set[str], place: Place, *, whole: bool = True) -> Choice:
    """What is needed of a repository that holds `names`, where the user asks for `place` in it.

    Of a pipeline the transformer; of a model its config and its weights, as the reader of folders prefers them
    (`checkpoint.folder.weight_files`); else the only checkpoint there is, be it a variant in half precision.

    Args:
        whole: whether `names` are all that the repository holds, and not just what was fetched of it before.

    Raises: `InputError` where nothing fits, or too much.

    >>> names = {"transformer/config.json", "transformer/diffusion_pytorch_model.safetensors", "vae/config.json"}
    >>> choose(names, Place("owner/name", "owner/name"))
    Choice(files=('transformer/config.json', 'transformer/diffusion_pytorch_model.safetensors'), index='', result='')
    """
    if place.path in names:
        return Choice((place.path, *_beside(names, place.path)), "", place.path)
    root = f"{place.path}/" if place.path else ""
    if not any(name.startswith(root) for name in names):
        raise InputError.at(place.asked, "", f"the file or folder {absent(whole)}")
    inner = f"{root}transformer/"
    folder = inner if any(name.startswith(inner) for name in names) else root
    try:
        found = weights_among({name.removeprefix(folder) for name in names if name.startswith(folder)})
    except ValueError as error:
        raise InputError.at(place.asked, folder, str(error)) from None
    if not whole:  # a variant is taken only where it is known to be all there is
        found = [(file, index) for file, index in found if {file, index.removesuffix(".index.json")} & {*STEMS}]
    for single, index in found:
        if not whole and f"{folder}{CONFIG}" not in names:  # other programs fetch by the file
            raise InputError.at(place.asked, "", f"{folder}{CONFIG} {absent(whole)}")
        ours = (f"{root}{RECORD}", f"{root}{SIDECAR}") if f"{root}{RECORD}" in names else ()
        wanted = (*ours, f"{folder}{CONFIG}", *(f"{folder}{name}" for name in (index, single) if name))
        return Choice(tuple(name for name in wanted if name in names), f"{folder}{index}" if index else "", root)
    only = _only(sorted(name for name in names if name.startswith(folder) and name.endswith(SUFFIXES)), place, whole)
    return Choice((only,), "", only)


def _beside(names: Set[str], file: str) -> list[str]:
    """What the reader looks for beside a file of a model folder, as it does where the folder is given."""
    folder = PurePosixPath(file).parent
    if str(folder / CONFIG) not in names:
        return []
    roots = [root for root in dict.fromkeys(record_places(folder)) if str(root / RECORD) in names]
    ours = [str(root / name) for root in roots for name in (RECORD, SIDECAR)]
    return [str(folder / CONFIG), *(name for name in ours if name in names)]


def _only(found: list[str], place: Place, whole: bool) -> str:
    if len(found) == 1 and whole:
        return found[0]
    if not found:
        rule = f"holds no weights: looked for {', '.join(STEMS)}, their .index.json, *{', *'.join(SUFFIXES)}"
        raise InputError.at(place.asked, "", rule if whole else f"weights in it: {absent(whole)}")
    what = "holds several checkpoints" if len(found) > 1 else "what else it holds, the cache does not tell"
    revision = f"@{place.revision}" if place.revision else ""
    names = shortened([printable(f"hf://{place.repo}{revision}/{name}") for name in found], _SHOWN)
    raise InputError.at(place.asked, "", f"{what}: name one of {names}")


def absent(whole: bool) -> str:
    """What there is to say of a file that is not among the names."""
    return "is not in the repository" if whole else "is not in the cache, and the hub is out of reach"
