"""What the pictures of the function are made of: errors stage by stage, and a map of the differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ..nets import Values
from ..reports.report import FLOOR_LIMIT
from .statistics import relative

TRACED = 1 << 22  # numbers of one stage's output up to which a case's stages are compared one by one
Watch = Callable[[str, Values], None]


class Tracer:
    """Follows one case stage by stage: how far each precision's values are from the original's in float64."""

    def __init__(self) -> None:
        self._truth: dict[str, Values] = {}
        self.errors: dict[str, dict[str, float]] = {}

    def truth(self, stage: str, values: Values) -> None:
        if all(value.numel() <= TRACED for value in values.values()):
            self._truth[stage] = {name: value.cpu() for name, value in values.items()}

    def against(self, side: str) -> Watch:
        def watch(stage: str, values: Values) -> None:
            if stage in self._truth:
                truth = self._truth[stage]
                self.errors.setdefault(side, {})[stage] = max(
                    relative(value.cpu(), truth[name]) for name, value in values.items() if name in truth
                )

        return watch


@dataclass(frozen=True)
class StageErrors:
    """Of one case the error of each stage, on its own values, and the original's own; as a report shows it."""

    case: str
    precision: str
    stages: list[str]
    converted: list[float]
    floor: list[float] | None
    limit: float = FLOOR_LIMIT


@dataclass(frozen=True)
class HeatMap:
    """Of one case the differences by output channel and place, relative, the rows of a channel one after the other."""

    case: str
    precision: str
    channels: list[str]
    rows: int
    columns: int
    values: list[list[float]]
    unit: str = "|difference| / RMS of the output, mean over the batch"


@dataclass
class Detail:
    """What the pictures of the phase are made of."""

    blocks: StageErrors | None = None
    heat: HeatMap | None = None
    cases: list[dict[str, str]] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Without what there is not."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def pictures(
    case: str, precision: str, outputs: tuple[Tensor, Tensor], tracer: Tracer, parts: Mapping[str, slice]
) -> Detail:
    """Error per stage with the floor, and a map of the differences per output channel.

    Args:
        outputs: of the case the converted output, and the original's in float64.
    """
    candidate, reference = outputs[0].double(), outputs[1]
    scale = float(reference.square().mean().sqrt()) or 1.0
    apart = (candidate - reference).abs().mean(dim=0) / scale
    heat = HeatMap(
        case,
        precision,
        channels=[f"{part} {i}" for part, channels in parts.items() for i in range(apart[channels].shape[0])],
        rows=apart.shape[1],
        columns=apart.shape[2],
        # Four digits are more than a colour shows.
        values=[[float(f"{value:.3e}") for value in channel.flatten().tolist()] for channel in apart],
    )
    errors, floor = tracer.errors.get("converted", {}), tracer.errors.get("original", {})
    if not errors:
        return Detail(heat=heat)
    floors = [floor[stage] for stage in errors] if floor else None
    blocks = StageErrors(case, precision, list(errors), converted=list(errors.values()), floor=floors)
    return Detail(blocks, heat)
