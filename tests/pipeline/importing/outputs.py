"""Output folders as `posemill annotate` leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from cpm_core.skeleton import load_skeleton
from pipeline import schema
from pipeline.commit import commit_part
from pipeline.storage import Output, StorageOptions
from pipeline.summary import Summary
from tests.pipeline.importing.sources import SIZE, pose, write_picture
from tests.pipeline.videos import SIZE as VIDEO_SIZE

LSP = load_skeleton("lsp14")


def person(unit: int, uri: str, scores: list[float], **fields: Any) -> dict[str, Any]:
    """A row; joints beyond `scores` have score 0."""
    points = pose(unit)
    return {
        "unit_id": unit,
        "uri": uri,
        "media_type": "image",
        "width": SIZE[0],
        "height": SIZE[1],
        "status": "ok",
        "person_index": 0,
        "box": [1.0, 2.0, 30.0, 40.0],
        "box_score": 1.0,
        "box_source": "given",
        "x": points[:, 0].tolist(),
        "y": points[:, 1].tolist(),
        "keypoint_score": [*scores, *[0.0] * (14 - len(scores))],
        "score": 0.5,
        **fields,
    }


def frame(unit: int, uri: str, index: int, pts: int | None, **fields: Any) -> dict[str, Any]:
    """A row of a video."""
    width, height = VIDEO_SIZE
    video = {"media_type": "video", "frame_index": index, "pts": pts, "timestamp_s": index / 25}
    return person(unit, uri, [0.9] * 14, **video, width=width, height=height, **fields)


def write_table(output: Output, *parts: list[dict[str, Any]]) -> str:
    """An output folder as `annotate` leaves it; returns its URI."""
    table_schema, metadata = schema.annotation_table(14), schema.table_metadata({}, LSP)
    for shard, part in enumerate(parts):
        table = pa.Table.from_pylist(part, schema=table_schema)
        assert commit_part(output, shard, table, metadata, Summary())
    return output.uri


def local(folder: Path) -> Output:
    return Output(str(folder / "out"), StorageOptions())


def pictures(folder: Path, count: int) -> list[str]:
    paths = [folder / f"{i}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        write_picture(path, i)
    return list(map(str, paths))
