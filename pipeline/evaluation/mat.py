"""Predictions and labels in MATLAB files, as the LSP data sets and the CPM release have them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cpm_core.geometry import box_of_points
from cpm_core.metrics import LabelledPeople, default_area
from cpm_core.skeleton import load_skeleton
from pipeline.errors import UsageError
from pipeline.evaluation.comparison import Comparison
from pipeline.matlab import Layout, layout_of, pages, points_and_flags, read_mat
from pipeline.storage import StorageOptions

_JOINTS = 14
_ALL, _TEST = 2000, 1000


@dataclass(frozen=True)
class MatLabels:
    """Points (N, 14, 2) and flags (N, 14) of a labels file, and whose layout it has."""

    layout: Layout
    points: NDArray[np.float64]
    labelled: NDArray[np.bool_]


def compare_mat(
    predictions: str, labels: str, options: StorageOptions
) -> tuple[Comparison, Layout]:
    """Predictions (14, 2, N) against LSP's or LSPET's labels of N pictures. Raises UsageError.

    Both are in the same pixels (1-based as released, or not), so nothing is shifted.
    """
    points = read_predictions(predictions, options)
    truth = read_labels(labels, options)
    notes: tuple[str, ...] = ()
    if (len(truth.points), len(points)) == (_ALL, _TEST):
        half = slice(_ALL - _TEST, _ALL)
        truth = MatLabels(truth.layout, truth.points[half], truth.labelled[half])
        notes = (
            f"{labels} labels {_ALL} pictures and {predictions} has {_TEST}: "
            f"compared with the test half, pictures {_ALL - _TEST + 1} to {_ALL}",
        )
    if len(points) != len(truth.points):
        raise UsageError(
            f"{predictions} has {len(points)} people and {labels} {len(truth.points)}: they must "
            f"be of the same pictures in the same order (or {_TEST} predictions of LSP's test half)"
        )
    return _comparison(labels, points, truth, notes), truth.layout


def _comparison(
    name: str, points: NDArray[np.float64], truth: MatLabels, notes: tuple[str, ...]
) -> Comparison:
    count = len(points)
    pairs = zip(truth.points, truth.labelled, strict=True)
    box = [box_of_points(p[seen]) if seen.any() else np.zeros(4) for p, seen in pairs]
    boxes = np.array(box, np.float64).reshape(-1, 4)
    people = LabelledPeople(
        np.arange(count), truth.points, truth.labelled, boxes, default_area(boxes)
    )
    unknown = np.full(count, np.nan)
    every = np.ones(_JOINTS, bool)
    skeleton = load_skeleton("lsp14")
    return Comparison(name, skeleton, people, unknown, points[None], every, None, notes)


def read_predictions(path: str, options: StorageOptions) -> NDArray[np.float64]:
    """Points (N, 14, 2) from `prediction_all` or the file's only three-dimensional array."""
    values = _array(path, options, "prediction_all")
    # A third value is a score: it is not looked at.
    if values.shape[0] == _JOINTS and values.shape[1] in (2, 3):
        return values[:, :2].transpose(2, 0, 1)
    if values.shape[0] in (2, 3) and values.shape[1] == _JOINTS:
        return values[:2].transpose(2, 1, 0)
    raise UsageError(
        f"{path}: predictions are {values.shape}; expected ({_JOINTS}, 2, N): "
        "x and y of LSP's joints, one page per picture"
    )


def read_labels(path: str, options: StorageOptions) -> MatLabels:
    """`joints`: (3, 14, N) is LSP, whose third row flags occluded joints; (14, 3, N) is LSPET,
    whose third column flags labelled ones."""
    values = _array(path, options, "joints")
    layout = layout_of(values)
    if layout is not None:
        points, flags = points_and_flags(values, layout)
        finite = np.asarray(np.isfinite(points).all(axis=-1), bool)
        return MatLabels(layout, points, finite if layout == "lsp" else finite & flags)
    raise UsageError(
        f"{path}: joints are {values.shape}; expected (3, {_JOINTS}, N) as in LSP "
        f"or ({_JOINTS}, 3, N) as in LSPET"
    )


def _array(path: str, options: StorageOptions, key: str) -> NDArray[np.float64]:
    """The array named `key`, or the only one with three axes, as floats: the release stores
    unsigned bytes, whose differences would wrap around."""
    document = read_mat(path, options)
    numbers = {
        name: value
        for name, value in document.items()
        if isinstance(value, np.ndarray) and value.dtype.kind in "iuf"
    }
    cubes = [name for name, value in numbers.items() if value.ndim == 3]
    name = key if key in numbers else cubes[0] if len(cubes) == 1 else None
    if name is None:
        held = ", ".join(n for n in document if not n.startswith("__")) or "nothing"
        raise UsageError(
            f"{path}: no array {key!r}, nor a single one with three axes; it holds {held}"
        )
    values = numbers[name]
    return np.asarray(pages(values), np.float64)
