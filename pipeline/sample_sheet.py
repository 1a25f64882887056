"""A sheet of training crops with their labels, for the eye: are they right?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpm_core.augment import Augmentation, Sample, training_crop
from cpm_core.belief import sample_tile, tile_sheet
from cpm_core.config import CpmConfig, preset
from cpm_core.info import WeightsInfo
from cpm_core.skeleton import Skeleton
from pipeline.errors import UsageError
from pipeline.picture_files import check_picture_name, write_picture
from pipeline.samples import RowReader, SampleTable, decode_sample
from pipeline.storage import StorageOptions

_NETWORK = preset("cpm-lite")
_COLUMNS = 3


def write_sheet(
    samples: str,
    to: str,
    augmentation: Augmentation = Augmentation(),  # noqa: B008  (it is frozen)
    config: CpmConfig = _NETWORK,
    sigma_factor: float = 1.0,
    count: int = 24,
    seed: int = 0,
    box_factor: float = WeightsInfo.box_factor,
    options: StorageOptions | None = None,
) -> int:
    """Draw training crops of a samples table on one sheet; returns how many are on it.

    Up to `count` samples spread over the table, cropped as in the first epoch of a training run
    with this augmentation, network, seed and box factor; `sigma_factor` is that of the recipe on
    the network's label sigma. Raises UsageError for a file that cannot be written or is no samples
    table.
    """
    check_picture_name(to)
    table = SampleTable(samples, options)
    skeleton, sigma = table.skeleton, sigma_factor * config.label_sigma
    tiles, captions = [], []
    for row in _spread(table, count):
        at = (seed, 0, int(row["sample_id"]))
        sample = decode_sample(row, table.options)
        crop = training_crop(sample, skeleton, config.input_size, box_factor, augmentation, at)
        tiles.append(_tile(crop, skeleton, sigma, config.cell_offset))
        captions.append(_caption(row, crop))
    if not tiles:
        raise UsageError(f"{samples}: no samples")
    write_picture(to, tile_sheet(tiles, captions, _COLUMNS))
    return len(tiles)


def _spread(table: SampleTable, count: int) -> Iterator[dict[str, Any]]:
    """Up to `count` rows, evenly over the table."""
    rows = table.rows()
    places = np.linspace(0, max(0, len(rows) - 1), min(count, len(rows))).round().astype(int)
    # One row group in memory at a time: rows hold whole pictures.
    reader = RowReader(table.files, cache_bytes=0)
    for row in rows[places]:
        yield from reader.read([int(row)])


def _caption(row: dict[str, Any], crop: Sample) -> str:
    name, labelled = PurePosixPath(row["source"]).name, crop.labelled.sum()
    return f"{row['split']} {row['sample_id']}: {name}, {labelled} of {len(crop.labelled)} joints"


def _tile(
    sample: Sample, skeleton: Skeleton, sigma: float, cell_offset: float
) -> NDArray[np.uint8]:
    return sample_tile(
        sample.image,
        sample.keypoints,
        sample.labelled,
        sample.others,
        sample.others_labelled,
        skeleton,
        sigma,
        cell_offset,
    )
