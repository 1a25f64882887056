"""Labelled pictures of any source -> one `samples` Parquet file (see
`pipeline.schema.samples_table`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cpm_core.geometry import box_of_points
from cpm_core.skeleton import Skeleton
from pipeline import schema
from pipeline.config import setting
from pipeline.errors import UsageError
from pipeline.settings import Settings

_ROWS_PER_GROUP = 256


class ImportSettings(Settings):
    """Turn a folder of labelled pictures into a samples table.

    posemill import FOLDER train.parquet        FOLDER has images/ and annotations.json
    """

    input: str = setting("run", ..., "folder with images/ and annotations.json", min_length=1)
    output: str = setting("run", ..., "samples table to write (.parquet)", min_length=1)
    skeleton: str = setting("run", "lsp14", "lsp14, mpii16, coco17 or a YAML file")
    tune_share: float = setting(
        "run", 0.04, "share of a training split that is kept apart for tuning", ge=0, le=0.5
    )


def import_json(folder: Path, output: Path, skeleton: Skeleton, tune_share: float = 0.04) -> int:
    """Write the samples of a folder with `images/` and `annotations.json`; returns how many.

    The JSON has `joint_names`, `split`, and `images` with `file` and `keypoints` [x, y, labelled]
    per joint, matched to the skeleton by name. Of a training split, about `tune_share` becomes the
    split `tune`, by a hash of the file name: it may steer training, the reporting split never does.
    """
    try:
        document = json.loads((folder / "annotations.json").read_text())
        names, images, split = document["joint_names"], document["images"], document["split"]
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{folder}: no usable annotations.json ({error!r})") from error
    if missing := [name for name in skeleton.keypoints if name not in names]:
        raise UsageError(
            f"{folder}: its joints lack {', '.join(missing)} of skeleton {skeleton.name}"
        )
    order = [names.index(name) for name in skeleton.keypoints]
    table_schema = schema.samples_table(len(skeleton)).with_metadata(
        schema.table_metadata({}, skeleton)
    )
    count, partial = 0, output.with_name(f"{output.name}.partial")
    try:
        with pq.ParquetWriter(partial, table_schema, compression="none") as writer:
            for rows in _chunks(_json_rows(folder, images, order, split, tune_share)):
                writer.write_table(pa.Table.from_pylist(rows, schema=table_schema))
                count += len(rows)
        partial.replace(output)
    except (OSError, KeyError, ValueError, IndexError) as error:
        partial.unlink(missing_ok=True)
        raise UsageError(f"{folder} -> {output}: sample {count} or later: {error!r}") from error
    return count


def _json_rows(
    folder: Path, images: list[dict[str, Any]], order: list[int], split: str, tune_share: float
) -> Iterator[dict[str, Any]]:
    for i, image in enumerate(images):
        points = np.array(image["keypoints"], dtype=np.float64)[order]
        labelled = points[:, 2] > 0
        if not labelled.any():
            continue
        path = folder / "images" / image["file"]
        tune = split == "train" and _share(image["file"]) < tune_share
        yield {
            "sample_id": i,
            "source": image["file"],
            "split": "tune" if tune else split,
            "uri": str(path.resolve()),
            "image": path.read_bytes(),
            "box": box_of_points(points[labelled, :2]).tolist(),
            "x": points[:, 0].tolist(),
            "y": points[:, 1].tolist(),
            "labelled": labelled.tolist(),
        }


def _share(name: str) -> float:
    """A number in 0..1 that depends on nothing but the name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def _chunks(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    chunk: list[dict[str, Any]] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == _ROWS_PER_GROUP:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
