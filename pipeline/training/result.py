"""What a finished run hands over: weights and model card."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from cpm_core.config import CpmConfig
from cpm_core.info import WeightsInfo
from cpm_core.model import Cpm
from cpm_core.weights import load_weights, save_weights
from pipeline.lock import Lock
from pipeline.samples import SampleTable
from pipeline.storage import Output
from pipeline.training.card import model_card
from pipeline.training.logbook import Logbook
from pipeline.training.settings import TrainSettings


def export(
    settings: TrainSettings,
    table: SampleTable,
    config: CpmConfig,
    state: dict[str, Any],
    logbook: Logbook,
    output: Output,
    lock: Lock,
) -> None:
    """Write the best averaged weights (the last ones without a tuning split) and their card."""
    best = state["best"]
    model = Cpm(config)
    model.load_state_dict(best["weights"] if best else state["ema"])
    by_stage = best["by_stage"] if best else []
    info = WeightsInfo(
        name=settings.name,
        config=config.at_size(best["size"]) if best else config,
        skeleton=table.skeleton,
        box_factor=settings.recipe().box_factor,
        training_data=f"{Path(settings.samples).name} ({table.digest})",
        licence=settings.licence,
        metrics={f"tune_pck_stage_{t + 1}": value for t, value in enumerate(by_stage)},
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{settings.name}.safetensors"
        save_weights(path, model.eval(), info)
        card = model_card(settings, load_weights(path), table, logbook.records(), best)
        lock.check()
        output.replace(f"{settings.name}.md", card.encode())
        output.replace(path.name, path.read_bytes())
