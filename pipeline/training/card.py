"""The model card of a run, written from its records."""

from __future__ import annotations

from typing import Any

from cpm_core.analysis import multiply_adds, parameters
from cpm_core.model import Cpm
from cpm_core.weights import Weights
from pipeline.samples import SampleTable
from pipeline.training.settings import TrainSettings


def model_card(
    settings: TrainSettings,
    weights: Weights,
    table: SampleTable,
    records: list[dict[str, Any]],
    best: dict[str, Any] | None,
) -> str:
    """Markdown: what the network is, what it learned from and how, what it scores, its limits.

    `best` says which epoch the weights are of; the log may have lost its record in a kill.
    """
    info = weights.info
    sections = [
        f"# {info.name}",
        _network(weights),
        "## Data",
        _data(settings, table, info.licence),
        "## Recipe",
        _recipe(settings),
        "## Figures",
        _figures(records, best),
        "## Limits",
        "The figures are of the tuning split, which chose among the epochs: they flatter. Measure "
        "on pictures of your own with\n`posemill evaluate --samples … --weights …`. Scores are "
        "beliefs, not probabilities.",
        "",
    ]
    return "\n\n".join(sections)


def _network(weights: Weights) -> str:
    model, config = Cpm(weights.info.config), weights.info.config
    skeleton = weights.info.skeleton
    return (
        f"A Convolutional Pose Machine (Wei et al., CVPR 2016): trunk `{config.trunk}`, "
        f"{config.stages} stages, {config.input_size} px, {parameters(model) / 1e6:.2f} M "
        f"parameters, {multiply_adds(model) / 1e9:.2f} G multiply-adds per person.\n"
        f"Skeleton `{skeleton.name}`: {', '.join(skeleton.keypoints)}.\n"
        f"SHA-256 of the file: `{weights.sha256}`."
    )


def _data(settings: TrainSettings, table: SampleTable, licence: str) -> str:
    counts = {split: len(table.rows(split)) for split in table.splits.dictionary.to_pylist()}
    listed = ", ".join(f"{count:,} in split `{split}`" for split, count in counts.items())
    start = settings.start_from or settings.trunk or "random weights"
    taught = (
        f"Taught by the features `{settings.teacher_tensor}` of "
        f"{settings.teacher.rpartition('/')[2]}.\n"
        if settings.teacher
        else ""
    )
    return (
        f"`{table.uri.rstrip('/').rpartition('/')[2]}` (digest `{table.digest}`): {listed}; only "
        f"`train` was learned from.\nStarted from: {start.rpartition('/')[2]}.\n"
        f"{taught}Licence of the weights: {licence}."
    )


def _recipe(settings: TrainSettings) -> str:
    values = settings.recipe().to_dict()
    if settings.teacher is None:
        del values["teacher_weight"]
    values["phases"] = " ".join(f"{p['start']:g}:{p['size']}" for p in values["phases"])
    values["augmentation"] = ", ".join(f"{k} {v}" for k, v in values["augmentation"].items())
    rows = "\n".join(f"| {name} | {value} |" for name, value in values.items())
    return f"| setting | value |\n|---|---|\n{rows}"


def _figures(records: list[dict[str, Any]], best: dict[str, Any] | None) -> str:
    if best is None:
        return "No tuning split: the weights are those of the last step, and nothing was measured."
    epochs = [r for r in records if r["kind"] == "epoch" and r["tune_pck"]]
    chosen = [r for r in epochs if r["epoch"] == best["epoch"]]
    stages = ", ".join(f"{value:.1f}" for value in best["by_stage"])
    every = max(1, len(epochs) // 12)
    shown = [e for i, e in enumerate(epochs) if i % every == 0 or e in chosen]
    rows = "\n".join(
        f"| {e['epoch']:g} | {e['size']} | "
        f"{' '.join(f'{v:.1f}' for v in e['tune_pck'])}{' (chosen)' if e in chosen else ''} |"
        for e in shown
    )
    return (
        f"PCK@0.2 (`pck_lspet`) on the tuning split after each stage: {stages} %, in epoch "
        f"{best['epoch']:g}.\n\n| epoch | px | PCK by stage |\n|---|---|---|\n{rows}"
    )
