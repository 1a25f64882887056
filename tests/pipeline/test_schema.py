"""The tables' schemas, literally: users' queries rest on them."""

from __future__ import annotations

import json
import pickle

import pyarrow as pa
import pytest

from cpm_core.skeleton import load_skeleton
from pipeline import schema
from pipeline.errors import ERROR_CODES, InputError

ANNOTATIONS = """
unit_id: int64 not null
uri: string not null
media_type: string not null
frame_index: int32
pts: int64
timestamp_s: double
width: int32
height: int32
status: string not null
error_code: string
error_message: string
person_index: int16
box: fixed_size_list<element: float>[4]
box_score: float
box_source: string
x: fixed_size_list<element: float>[14]
y: fixed_size_list<element: float>[14]
keypoint_score: fixed_size_list<element: float>[14]
score: float
"""

MANIFEST = """
unit_id: int64 not null
shard: int64 not null
uri: string not null
kind: string not null
size: int64
etag: string
mtime: timestamp[us, tz=UTC]
start_pts: int64
end_pts: int64
start_frame: int32
frames: int32 not null
boxes: list<element: struct<x: double not null, y: double not null, w: double not null, \
h: double not null, score: double not null, frame_index: int32>>
error_code: string
error_message: string
"""

SAMPLES = """
sample_id: int64 not null
source: string not null
split: string not null
uri: string
image: binary
box: fixed_size_list<element: float>[4] not null
centre: fixed_size_list<element: float>[2]
scale: float
x: fixed_size_list<element: float>[14] not null
y: fixed_size_list<element: float>[14] not null
labelled: fixed_size_list<element: bool>[14] not null
occluded: fixed_size_list<element: bool>[14]
others: list<element: struct<x: fixed_size_list<element: float>[14], \
y: fixed_size_list<element: float>[14], labelled: fixed_size_list<element: bool>[14]>>
group: int64
head_size: float
area: float
ignored: list<element: struct<box: fixed_size_list<element: float>[4], area: float, crowd: bool>>
"""


def described(table: pa.Schema) -> str:
    """One line per column. What Arrow calls the element of a list differs between versions."""
    lines = (str(field).removeprefix("pyarrow.Field<")[:-1] for field in table)
    return "\n".join(lines).replace("item: ", "element: ")


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        pytest.param(schema.annotation_table(14), ANNOTATIONS, id="annotations"),
        pytest.param(schema.MANIFEST, MANIFEST, id="manifest"),
        pytest.param(schema.samples_table(14), SAMPLES, id="samples"),
    ],
)
def test_the_columns_are_these(table: pa.Schema, expected: str) -> None:
    assert described(table) == expected.strip()


def test_the_version_goes_up_with_every_change_of_the_columns_above() -> None:
    assert schema.SCHEMA_VERSION == 1


def test_the_metadata_say_how_to_read_the_table() -> None:
    skeleton = load_skeleton("lsp14")
    metadata = schema.table_metadata({"fingerprint": "f"}, skeleton)
    document = json.loads(metadata[b"posemill"])
    assert list(metadata) == [b"posemill"]
    assert document == {
        "schema_version": 1,
        "skeleton": json.loads(skeleton.to_json()),
        "coordinates": {
            "unit": "pixel",
            "origin": "the centre of the top left pixel is (0, 0)",
            "orientation": "EXIF orientation applied",
            "box": "x, y, width, height; unpadded",
        },
        "keypoint_score": "belief at the peak, 0 outside the picture",
        "fingerprint": "f",
    }


def test_the_error_codes_are_these() -> None:
    """Users filter and retry by them."""
    assert set(ERROR_CODES) == {
        "not_found",
        "forbidden",
        "storage",
        "bad_name",
        "empty",
        "too_large",
        "too_many_pixels",
        "too_many_frames",
        "unknown_format",
        "corrupt",
        "no_video",
        "bad_box",
        "timeout",
        "out_of_memory",
        "worker_crashed",
        "internal",
    }


def test_an_input_error_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(InputError("corrupt", "why")))
    assert (error.code, str(error)) == ("corrupt", "why")
