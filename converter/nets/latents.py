"""What the comparisons of nets on patches of a latent have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..families import Findings
from ..families.amended import Amended
from ..families.travelling import CLASS
from .inputs import Array, Case, Draws
from .net import Net, Weights
from .patches import PATCHES
from .spec import Cases, ParitySpec, PostLoadFix
from .stock import Stock

STANDARD_TOKENS = 1024  # tokens of one sample in the standard profile; the attention grows with their square
LARGEST = 1024  # latent side that is believed of a config: a table of positions grows with its square


def described(findings: Findings) -> dict[str, Any]:
    """The fields of a `LatentShape` that an original file shows, but for the scale and `multi_scale`."""
    names = {name: name for name in ("depth", "hidden_size", "patch_size", "out_channels")}
    names |= {"num_heads": "num_attention_heads", "input_size": "sample_size"}
    return {field: findings.value(name) for field, name in names.items()}


def parts(findings: Findings) -> dict[str, slice]:
    """The halves of the output: the noise, and the variance where the net predicts it."""
    channels, out = findings.value("in_channels"), findings.value("out_channels")
    return {"epsilon": slice(0, channels)} | ({"variance": slice(channels, out)} if out > channels else {})


def image_size_hint(side: Any, factor: int) -> int | None:
    """The image size of a config's `sample_size`, at `factor` pixels each; None where that is no number, or absurd."""
    return side * factor if isinstance(side, int) and side <= LARGEST else None


class LatentInputs(Draws):
    """Noise for one model of latents, whose sides are counted in patches; `side` is the model's own."""

    def __init__(self, findings: Findings) -> None:
        super().__init__()
        self.patch, self.channels = findings.value("patch_size"), findings.value("in_channels")
        self.side = findings.value("sample_size") // self.patch

    def latent(self, batch: int, rows: int, columns: int) -> Array:
        return self.draw(batch, self.channels, rows * self.patch, columns * self.patch)


def own_size(findings: Findings) -> list[tuple[str, Case]]:
    """The stage that makes tokens, on a latent of the model's own size: it shows the table that the original stores, at
    the cost of no block."""
    draws = LatentInputs(findings)
    latent = draws.latent(1, draws.side, draws.side)
    return [(PATCHES, Case("native", {"latent": latent}, "the model's own size"))]


def latent_spec(reference: Callable[[Findings, Weights], Net], stock: Stock, cases: Cases, **more: Any) -> ParitySpec:
    """The spec of a model on patches of a latent, whose target is a model class of diffusers."""
    return ParitySpec(
        reference,
        stock.net,
        cases,
        parts=parts,
        patch=lambda findings: int(findings.value("patch_size")),
        resolve_config=stock.resolve_config,
        stages=own_size,
        loaded=stock.loaded,
        **more,
    )


def amended_spec(as_loaded: ParitySpec, stock: Stock, amended: Amended) -> ParitySpec:
    """The same of a class of diffusers that needs amendments, unless the config names ours: with the line that is shown
    run on the loaded model."""

    def fix(findings: Findings, config: Mapping[str, Any]) -> PostLoadFix | None:
        line = amended.line(findings)
        if not line or config.get(CLASS) == amended.exact:
            return None

        def run(model: Any) -> Any:
            exec(line, {"model": model})
            return model

        mended = replace(stock, post_load=run)
        spec = replace(as_loaded, converted=mended.net, loaded=mended.loaded)
        return PostLoadFix(amended.flag, amended.why(findings), line, spec)

    return replace(as_loaded, fix=fix)
