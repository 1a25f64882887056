"""How many crops a second ours and MoveNet Thunder estimate on the same threads, side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from quality_data import Set
from quality_models import MoveNet, Ours

import cpm_core
from cpm_core.geometry import crop_matrix, warp
from cpm_core.weights import find_weights

CROPS = 16
"""Per round, in one call of ours; the peer takes one at a time."""


def speed(ours: Ours, peer: MoveNet, people: Set, rounds: int) -> dict[str, Any]:
    """Crops per second, uint8 crops in and keypoints out: medians, and the median ratio."""
    estimator = ours.estimator(1.25)
    our_crops, peer_crops = [], []
    for i, picture in people.pictures():
        box = people.labels.box[i]
        our_crops.append(estimator.cropper.cut(picture, box[None]))
        peer_crops.append(warp(picture, crop_matrix(box, peer.SIZE, 1.25), peer.SIZE))
        if len(our_crops) == CROPS:
            break
    crops = np.concatenate(our_crops)
    seconds = interleaved(
        lambda: estimator.estimate_crops(crops),
        lambda: [peer.keypoints(crop) for crop in peer_crops],
        rounds,
    )
    rates = [[len(crops) / value for value in values] for values in seconds]
    return {
        "ours": statistics.median(rates[0]),
        "peer": statistics.median(rates[1]),
        "ratio": median_ratio(*seconds),
        "rounds": rounds,
    }


def interleaved(
    ours: Callable[[], object], peer: Callable[[], object], rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds per round of each, in turn, so that a slow spell of the machine hits both.

    One round before does not count.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for call, times in zip((ours, peer), seconds, strict=True):
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
    return seconds[0][1:], seconds[1][1:]


def median_ratio(ours: list[float], peer: list[float]) -> float:
    """How many times faster ours is: the median over rounds."""
    return statistics.median(theirs / mine for mine, theirs in zip(ours, peer, strict=True))


def file_figures(weights: str) -> dict[str, float]:
    """Size in MB, and seconds until an estimator is ready in a process that has torch."""
    path: Path = find_weights(weights)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        cpm_core.load(weights, device="cpu")
        seconds.append(time.perf_counter() - started)
    return {"megabytes": path.stat().st_size / 1e6, "seconds": statistics.median(seconds)}
