"""What a finished run hands over: weights and model card."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from cpm_core.config import CpmConfig
from cpm_core.result import Best, Origin, save_result
from cpm_core.weights import load_weights
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
    best = Best(**state["best"]) if state["best"] else None
    origin = Origin(
        name=settings.name,
        skeleton=table.skeleton,
        box_factor=settings.recipe().box_factor,
        training_data=f"{Path(settings.samples).name} ({table.digest})",
        licence=settings.licence,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{settings.name}.safetensors"
        save_result(path, config, best, state["ema"], origin)
        card = model_card(settings, load_weights(path), table, logbook.records(), state["best"])
        lock.check()
        output.replace(f"{settings.name}.md", card.encode())
        output.replace(path.name, path.read_bytes())
