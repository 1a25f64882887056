"""A person-net's maps -> boxes. No torch in here."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cpm_core.looks import Found
from cpm_core.person_net.config import LARGEST_LOG, OFFSET, SIZE_UNIT, STRIDE

MOST = 100
"""People per picture."""

Maps = NDArray[np.float32]


def peaks(maps: Maps, threshold: float, most: int = MOST) -> list[Found]:
    """What maps (B, 5, H, W) of the last stage say: boxes (N, 4) in pixels of the input and scores
    (N,) per image, best first.

    A peak is a cell that no neighbour exceeds.
    """
    # 1 / (1 + exp(-x)), without its overflow.
    beliefs = 0.5 + 0.5 * np.tanh(0.5 * maps[:, 0])
    is_peak = (beliefs >= threshold) & (beliefs >= _largest_around(beliefs))
    return [_best(*each, most) for each in zip(beliefs, is_peak, maps, strict=True)]


def _largest_around(beliefs: Maps) -> Maps:
    """The largest of the nine cells around each of (B, H, W)."""
    height, width = beliefs.shape[1:]
    padded = np.pad(beliefs, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    lines = np.maximum.reduce([padded[:, :, i : i + width] for i in range(3)])
    largest: Maps = np.maximum.reduce([lines[:, i : i + height] for i in range(3)])
    return largest


def _best(belief: Maps, is_peak: NDArray[np.bool_], maps: Maps, most: int) -> Found:
    """The best of one image's peaks: boxes and scores."""
    rows, columns = np.nonzero(is_peak)
    scores = belief[rows, columns]
    order = np.argsort(-scores, kind="stable")[:most]
    rows, columns, scores = rows[order], columns[order], scores[order]
    _, dx, dy, *logs = maps[:, rows, columns]
    size = np.exp(np.clip(logs, -LARGEST_LOG, LARGEST_LOG)) * np.float32(SIZE_UNIT)
    centre = np.stack([columns + dx, rows + dy]) * STRIDE + OFFSET
    boxes = np.concatenate([centre - (size - 1) / 2, size])
    return boxes.T.astype(np.float32), scores
