"""Reading the `samples` table (`pipeline.schema.samples_table`); `pipeline.importing` writes it."""

from __future__ import annotations

import json
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cpm_core.augment import Sample
from cpm_core.skeleton import Skeleton
from pipeline import schema
from pipeline.errors import UsageError


def read_skeleton(path: str) -> Skeleton:
    """The skeleton in the metadata of a samples table."""
    try:
        metadata = pq.read_schema(path).metadata or {}
        return Skeleton.from_json(json.dumps(json.loads(metadata[schema.METADATA_KEY])["skeleton"]))
    except (OSError, pa.ArrowException, KeyError) as error:
        raise UsageError(
            f"{path}: not a samples table; write one with `posemill import` ({error!r})"
        ) from error


def decode_sample(row: dict[str, Any]) -> Sample:
    """A row of a samples table with its picture decoded."""
    image = cv2.imdecode(np.frombuffer(row["image"], np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise UsageError(f"sample {row['source']}: its picture cannot be decoded")
    keypoints = np.stack([row["x"], row["y"]], axis=-1).astype(np.float64)
    return Sample(
        image=np.asarray(image, np.uint8),
        box=np.asarray(row["box"], np.float64),
        keypoints=keypoints,
        labelled=np.asarray(row["labelled"], bool),
    )
