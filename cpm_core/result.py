"""What training hands over: the averaged weights that did best on the tuning split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from cpm_core.config import CpmConfig
from cpm_core.info import WeightsInfo
from cpm_core.model import Cpm
from cpm_core.skeleton import Skeleton
from cpm_core.weights import save_weights


@dataclass
class Best:
    """The averaged weights that did best on the tuning split so far, with crops of `size`."""

    pck: float
    epoch: int
    size: int
    by_stage: list[float]
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class Origin:
    """What a weights file says of itself beside its network."""

    name: str
    skeleton: Skeleton
    box_factor: float
    training_data: str
    licence: str


def save_result(
    path: str | Path, config: CpmConfig, best: Best | None, last: dict[str, Tensor], origin: Origin
) -> None:
    """Write the best weights, or the `last` ones without a tuning split. Raises WeightsError."""
    model = Cpm(config)
    model.load_state_dict(best.weights if best else last)
    by_stage = best.by_stage if best else []
    info = WeightsInfo(
        name=origin.name,
        config=config.at_size(best.size) if best else config,
        skeleton=origin.skeleton,
        box_factor=origin.box_factor,
        training_data=origin.training_data,
        licence=origin.licence,
        metrics={f"tune_pck_stage_{t + 1}": value for t, value in enumerate(by_stage)},
    )
    save_weights(path, model.eval(), info)
