"""Labelled figures as a samples table."""

from __future__ import annotations

from pathlib import Path

import cv2
import pyarrow as pa
import pyarrow.parquet as pq

from cpm_core.skeleton import Skeleton
from pipeline import schema
from tests.e2e.conftest import draw_figure

PLACES = {
    "head": (48, 25),
    "chest": (48, 42),
    "left_foot": (72, 120),
    "tail": (48, 120),
    "right_foot": (24, 120),
}
"""Where `draw_figure` puts them; the five joints of the skeleton that a user brings along."""

SKELETON_FILE = """\
name: five
keypoints: [head, chest, left_foot, tail, right_foot]
limbs: [[head, chest], [chest, left_foot], [chest, tail], [chest, right_foot]]
flip_pairs: [[left_foot, right_foot]]
oks_sigmas: [0.08, 0.08, 0.09, 0.09, 0.09]
pck_reference: [[chest, tail]]
"""


def write_samples(path: Path, skeleton: Skeleton, count: int, tune: int = 0) -> str:
    """A table of `count` samples, the last `tune` of them in the split `tune`.

    Joints that the figures do not have lie beside those that they have.
    """
    places = list(PLACES.values())
    joints = len(skeleton)
    points = [
        (x + 4 * (i // 5), y - 4 * (i // 5)) for i in range(joints) for x, y in [places[i % 5]]
    ]
    rows = []
    for i in range(count):
        ok, data = cv2.imencode(".jpg", draw_figure(i))
        assert ok
        rows.append(
            {
                "sample_id": i,
                "source": f"{i}.jpg",
                "split": "tune" if i >= count - tune else "train",
                "image": data.tobytes(),
                "box": [20.0, 12.0, 56.0, 112.0],
                "x": [float(x) for x, _ in points],
                "y": [float(y) for _, y in points],
                "labelled": [True] * joints,
            }
        )
    table_schema = schema.samples_table(joints).with_metadata(schema.table_metadata({}, skeleton))
    pq.write_table(pa.Table.from_pylist(rows, schema=table_schema), path, row_group_size=16)
    return str(path)
