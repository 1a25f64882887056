"""Small samples tables of noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cpm_core.skeleton import Skeleton, load_skeleton
from pipeline import schema

LSP = load_skeleton("lsp14")


def picture(seed: int, width: int = 48, height: int = 64) -> bytes:
    """A PNG of noise."""
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    return cv2.imencode(".png", noise)[1].tobytes()


def person(seed: int, joints: int = 14) -> dict[str, Any]:
    """Labels of somebody in such a picture."""
    x, y = np.random.default_rng((seed, 1)).uniform([[6], [6]], [[40], [56]], (2, joints))
    return {"x": x.tolist(), "y": y.tolist(), "labelled": [True] * joints}


def row(number: int, split: str = "train", joints: int = 14, **values: Any) -> dict[str, Any]:
    """A row of a samples table."""
    return {
        "sample_id": number,
        "source": f"figure-{number}.png",
        "split": split,
        "image": picture(number),
        "box": [4.0, 4.0, 40.0, 56.0],
        **person(number, joints),
        **values,
    }


def write_table(
    path: Path | str,
    rows: Sequence[dict[str, Any]],
    skeleton: Skeleton = LSP,
    group_rows: int = 4,
    **metadata: Any,
) -> str:
    """Write a samples table; its path."""
    columns = schema.samples_table(len(skeleton)).with_metadata(
        schema.table_metadata(metadata, skeleton)
    )
    table = pa.Table.from_pylist(list(rows), schema=columns)
    pq.write_table(table, path, row_group_size=group_rows, compression="none")
    return str(path)
