"""What a weights file says of itself. No torch in here."""

from __future__ import annotations

from dataclasses import dataclass, field

from cpm_core.config import CpmConfig
from cpm_core.skeleton import Skeleton


@dataclass(frozen=True)
class WeightsInfo:
    """The metadata of a weights file.

    `box_factor` is the side of the crop in units of the box's longer side.
    """

    name: str
    config: CpmConfig
    skeleton: Skeleton
    box_factor: float = 1.25
    training_data: str = "unknown"
    licence: str = "unknown"
    metrics: dict[str, float] = field(default_factory=dict)
