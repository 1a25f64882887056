"""What a run tells whoever watches: one line for every record of its log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def line_of(record: dict[str, Any]) -> str:
    """A record in words."""
    return _LINES[record["kind"]](record)


def _start_line(record: dict[str, Any]) -> str:
    step = f"from step {record['step']:,} on, " if record["step"] else ""
    return (
        f"{record['device']}: {record['samples']:,} samples to train on, "
        f"{record['tuning_samples']:,} for tuning; {step}{record['steps']:,} steps of "
        f"{record['steps_per_epoch']:,} an epoch; ready after {record['seconds_to_start']:.1f} s"
    )


def _progress_line(record: dict[str, Any]) -> str:
    losses = " ".join(f"{loss:.4g}" for loss in record["loss"])
    return (
        f"epoch {record['epoch']:.2f}, {record['size']} px, loss {losses}, "
        f"{record['samples_per_second']:,.0f} samples/s, cutting {record['cut_share']:.1%}, "
        f"{record['seconds_left'] / 60:.1f} min left"
    )


def _tune_line(record: dict[str, Any]) -> str:
    by_stage = " ".join(f"{pck:.2f}" for pck in record["tune_pck"]) or "of nothing"
    return f"epoch {record['epoch']:.2f}, {record['size']} px, tuning PCK@0.2 {by_stage}"


_LINES: dict[str, Callable[[dict[str, Any]], str]] = {
    "start": _start_line,
    "progress": _progress_line,
    "tune": _tune_line,
}
