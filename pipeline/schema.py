"""The schemas of every table that PoseMill writes. `tests/pipeline/test_schema.py` locks them."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from cpm_core.skeleton import Skeleton

SCHEMA_VERSION = 1
METADATA_KEY = b"posemill"
KEYPOINT_COLUMNS = ("x", "y", "keypoint_score")
POSE_COLUMNS = (*KEYPOINT_COLUMNS, "score")


def annotation_table(num_keypoints: int) -> pa.Schema:
    """One row per person; a frame with nobody, or a failed one, has one row without
    `person_index`."""
    per_keypoint = pa.list_(pa.float32(), num_keypoints)
    return pa.schema(
        [
            pa.field("unit_id", pa.int64(), nullable=False),
            pa.field("uri", pa.string(), nullable=False),
            pa.field("media_type", pa.string(), nullable=False),
            pa.field("frame_index", pa.int32()),
            pa.field("pts", pa.int64()),
            pa.field("timestamp_s", pa.float64()),
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
            pa.field("status", pa.string(), nullable=False),
            pa.field("error_code", pa.string()),
            pa.field("error_message", pa.string()),
            pa.field("person_index", pa.int16()),
            pa.field("box", pa.list_(pa.float32(), 4)),
            pa.field("box_score", pa.float32()),
            pa.field("box_source", pa.string()),
            pa.field("x", per_keypoint),
            pa.field("y", per_keypoint),
            pa.field("keypoint_score", per_keypoint),
            pa.field("score", pa.float32()),
        ]
    )


def table_metadata(values: dict[str, Any], skeleton: Skeleton) -> dict[bytes, bytes]:
    """The file metadata of a part: one JSON value under `posemill`, in the manner of GeoParquet."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "skeleton": json.loads(skeleton.to_json()),
        "coordinates": {
            "unit": "pixel",
            "origin": "the centre of the top left pixel is (0, 0)",
            "orientation": "EXIF orientation applied",
            "box": "x, y, width, height; unpadded",
        },
        "keypoint_score": "belief at the peak, 0 outside the picture",
        **values,
    }
    return {METADATA_KEY: json.dumps(document, sort_keys=True).encode()}


_GIVEN_BOX = pa.struct(
    [
        pa.field("x", pa.float64(), nullable=False),
        pa.field("y", pa.float64(), nullable=False),
        pa.field("w", pa.float64(), nullable=False),
        pa.field("h", pa.float64(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("frame_index", pa.int32()),
    ]
)

MANIFEST = pa.schema(
    [
        pa.field("unit_id", pa.int64(), nullable=False),
        pa.field("shard", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("size", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("mtime", pa.timestamp("us", tz="UTC")),
        pa.field("start_pts", pa.int64()),
        pa.field("end_pts", pa.int64()),
        pa.field("start_frame", pa.int32()),
        pa.field("frames", pa.int32(), nullable=False),
        pa.field("boxes", pa.list_(_GIVEN_BOX)),
        pa.field("error_code", pa.string()),
        pa.field("error_message", pa.string()),
    ]
)
"""One row per unit, one row group per shard; `pipeline.units.Unit` says what the columns mean."""

RETIRED = pa.schema(
    [pa.field("unit_id", pa.int64(), nullable=False), pa.field("shard", pa.int64(), nullable=False)]
)
"""Units of earlier generations that count no more."""

_IGNORED = pa.struct(
    [
        pa.field("box", pa.list_(pa.float32(), 4)),
        pa.field("area", pa.float32()),
        pa.field("crowd", pa.bool_()),
    ]
)


def samples_table(num_keypoints: int) -> pa.Schema:
    """Training samples, one per labelled person; docs/samples.md tells more.

    All places are pixels of the upright picture: an integer is a pixel's centre, the first one 0.

    - `source` names the picture within its dataset; `image` holds the encoded picture, or is null
      where only its address, `uri`, is kept (of a video's frame, `uri` is the video);
    - `box` x, y, w, h: the source's, else the box around the labelled joints;
    - `centre` and `scale`: MPII's own (scale * 200 px is the person's height);
    - `x`, `y`: 0 where not `labelled`; `occluded` is null where the source does not tell, and an
      occluded joint is labelled all the same;
    - `others`: the other people of the picture, as far as they are labelled;
    - `group`: pictures with the same number are near-duplicates; null where not looked for;
    - `head_size`: PCKh's unit in pixels, 0.6 of the diagonal of MPII's head box;
    - `area`: COCO's, of the person's outline, in square pixels;
    - `ignored`: people of the picture who are no samples, as nobody labelled a joint of theirs, and
      crowds: an evaluation passes over what is found there.
    """
    floats = pa.list_(pa.float32(), num_keypoints)
    flags = pa.list_(pa.bool_(), num_keypoints)
    return pa.schema(
        [
            pa.field("sample_id", pa.int64(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("split", pa.string(), nullable=False),
            pa.field("uri", pa.string()),
            pa.field("image", pa.binary()),
            pa.field("box", pa.list_(pa.float32(), 4), nullable=False),
            pa.field("centre", pa.list_(pa.float32(), 2)),
            pa.field("scale", pa.float32()),
            pa.field("x", floats, nullable=False),
            pa.field("y", floats, nullable=False),
            pa.field("labelled", flags, nullable=False),
            pa.field("occluded", flags),
            pa.field("others", pa.list_(pa.struct({"x": floats, "y": floats, "labelled": flags}))),
            pa.field("group", pa.int64()),
            pa.field("head_size", pa.float32()),
            pa.field("area", pa.float32()),
            pa.field("ignored", pa.list_(_IGNORED)),
        ]
    )
