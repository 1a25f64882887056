"""A sheet of training crops with their labels, for the eye: are they right?"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cpm_core.augment import Augmentation, Sample, training_crop
from cpm_core.belief import sample_tile, tile_sheet
from cpm_core.config import preset
from cpm_core.skeleton import Skeleton
from cpm_core.weights import WeightsInfo
from pipeline.errors import UsageError
from pipeline.samples import decode_sample, read_skeleton

_NETWORK = preset("cpm-lite")
_COLUMNS = 3
_ROWS_AT_ONCE = 8
_BUFFER = 1 << 20
_FORMATS = (".jpg", ".jpeg", ".png")


def write_sheet(
    samples: str,
    to: str,
    augmentation: Augmentation = Augmentation(),  # noqa: B008  (it is frozen)
    size: int | None = None,
    count: int = 24,
    seed: int = 0,
    box_factor: float = WeightsInfo.box_factor,
    sigma: float = _NETWORK.label_sigma,
) -> int:
    """Draw training crops of a samples table on one sheet; returns how many are on it.

    Up to `count` samples spread over the table, cropped as in the first epoch of a training run
    with this augmentation, crop size in pixels (default: that of cpm-lite), seed and box factor;
    `sigma` of the target in crop pixels. Raises UsageError for a file that cannot be written or is
    no samples table.
    """
    check_picture_name(to)
    skeleton = read_skeleton(samples)
    size = size or _NETWORK.input_size
    tiles, captions = [], []
    for row in _spread(samples, count):
        at = (seed, 0, int(row["sample_id"]))
        sample = training_crop(decode_sample(row), skeleton, size, box_factor, augmentation, at)
        tiles.append(_tile(sample, skeleton, sigma))
        labels = f"{sum(row['labelled'])} of {len(skeleton)} joints"
        captions.append(f"{row['split']} {row['sample_id']}: {Path(row['source']).name}, {labels}")
    if not tiles:
        raise UsageError(f"{samples}: the table is empty, nothing to draw")
    write_picture(to, tile_sheet(tiles, captions, _COLUMNS))
    return len(tiles)


def check_picture_name(to: str) -> None:
    """Raise UsageError for a name that no picture can be written under, before any work is done."""
    if not to.lower().endswith(_FORMATS):
        raise UsageError(f"cannot write {to}: a picture's name ends with {', '.join(_FORMATS)}")


def write_picture(to: str, picture: NDArray[np.uint8]) -> None:
    """Write an RGB picture (H, W, 3) to a local file. Raises UsageError."""
    check_picture_name(to)
    if not cv2.imwrite(to, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)):
        raise UsageError(f"cannot write {to}: use a folder that exists and may be written to")


def _spread(samples: str, count: int) -> Iterator[dict[str, Any]]:
    """Rows spread over the table. Little more than these is read, as rows hold whole pictures."""
    try:
        with pq.ParquetFile(samples, buffer_size=_BUFFER) as file:
            for group, places in groupby(_places(file.metadata, count), key=lambda at: at[0]):
                yield from _rows(file, group, {place for _, place in places})
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{samples}: cannot read the samples ({error})") from error


def _places(metadata: pq.FileMetaData, count: int) -> list[tuple[int, int]]:
    """(row group, row in it) of up to `count` rows, spread evenly."""
    groups = metadata.num_row_groups
    lengths = [metadata.row_group(group).num_rows for group in range(groups)]
    starts = np.cumsum([0, *lengths])
    total = int(starts[-1])
    rows = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int))
    owners = np.searchsorted(starts, rows, side="right") - 1
    # A group's first row is the quickest to reach; with many groups these are spread enough.
    first_only = groups >= count
    inner = np.zeros_like(rows) if first_only else rows - starts[owners]
    return sorted(set(zip(owners.tolist(), inner.tolist(), strict=True)))


def _rows(file: pq.ParquetFile, group: int, places: set[int]) -> Iterator[dict[str, Any]]:
    """The rows at these places of a row group, read no further than the last one."""
    start = 0
    for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, row_groups=[group]):
        for place in sorted(p for p in places if start <= p < start + len(batch)):
            yield batch.slice(place - start, 1).to_pylist()[0]
        start += len(batch)
        if start > max(places):
            return


def _tile(sample: Sample, skeleton: Skeleton, sigma: float) -> NDArray[np.uint8]:
    return sample_tile(
        sample.image,
        sample.keypoints,
        sample.labelled,
        sample.others,
        sample.others_labelled,
        skeleton,
        sigma,
        _NETWORK.cell_offset,
    )
