"""Opening the table that `posemill annotate` wrote."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.dataset as ds

from cpm_core.errors import CpmError
from cpm_core.skeleton import Skeleton
from pipeline import schema
from pipeline.commit import FOLDER
from pipeline.errors import UsageError
from pipeline.storage import STORAGE_ERRORS, Output


def open_annotations(output: Output) -> tuple[ds.Dataset, Skeleton]:
    """The table and its skeleton. Raises UsageError for a folder without one."""
    try:
        dataset = ds.dataset(output.path(FOLDER), filesystem=output.fs, format="parquet")
        document = json.loads((dataset.schema.metadata or {})[schema.METADATA_KEY])
        skeleton = Skeleton.from_json(json.dumps(document["skeleton"]))
    except (
        *(KeyError, TypeError, ValueError),
        *(CpmError, pa.ArrowException, *STORAGE_ERRORS),
    ) as error:
        raise UsageError(
            f"{output.uri} holds no annotation table: give the output folder of `posemill "
            f"annotate` ({error!r})"
        ) from error
    return dataset, skeleton
