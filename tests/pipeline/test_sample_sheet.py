"""Sheets of training crops from a samples table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cpm_core.augment import NONE
from cpm_core.config import preset
from cpm_core.skeleton import load_skeleton
from pipeline import sample_sheet, schema
from pipeline.errors import UsageError
from pipeline.sample_sheet import write_sheet
from pipeline.storage import StorageOptions
from tests.pipeline.conftest import Place

LSP = load_skeleton("lsp14")
SMALL = preset("cpm-lite").at_size(64)


def figure(seed: int) -> bytes:
    """A PNG of noise, 40 x 60 pixels."""
    noise = np.random.default_rng(seed).integers(0, 255, (60, 40, 3), np.uint8)
    return cv2.imencode(".png", noise)[1].tobytes()


def sample(number: int, **values: Any) -> dict[str, Any]:
    """A row with ten joints down a diagonal, the last four unlabelled and nowhere."""
    line = [*range(4, 34, 3), *[float("nan")] * 4]
    return {
        "sample_id": number,
        "source": f"folder/figure-{number}.png",
        "split": "tune" if number % 4 == 0 else "train",
        "image": figure(number),
        "box": [4, 4, 28, 28],
        "x": line,
        "y": line,
        "labelled": [value == value for value in line],
        **values,
    }


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Forty samples in row groups of eight; the second has another person beside."""
    other = {"x": [30.0] * 14, "y": [50.0] * 14, "labelled": [True] * 14}
    rows = [sample(number, others=[other] if number == 1 else []) for number in range(40)]
    return write(tmp_path / "samples.parquet", rows)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A samples table."""
    metadata = schema.table_metadata({}, LSP)
    table_schema = schema.samples_table(len(LSP)).with_metadata(metadata)
    pq.write_table(pa.Table.from_pylist(rows, table_schema), path, row_group_size=8)
    return path


@pytest.mark.parametrize(
    ("count", "drawn", "columns", "rows"),
    [
        (1, 1, 1, 1),  # one sample is a sheet, too
        (7, 7, 3, 3),  # the last row is not full
        (100, 40, 3, 14),  # more than there are
    ],
)
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_the_sheet_holds_so_many_samples(
    table: Path, tmp_path: Path, count: int, drawn: int, columns: int, rows: int, suffix: str
) -> None:
    """Two crops of 64 pixels per sample, a caption under them."""
    to = tmp_path / f"sheet.{suffix}"
    assert write_sheet(str(table), str(to), config=SMALL, count=count) == drawn
    sheet = cv2.imread(str(to))
    assert sheet is not None
    assert sheet.shape[1] == 8 + columns * (128 + 8)
    assert sheet.shape[0] == 8 + rows * (64 + 14 + 8)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(4, [0, 13, 26, 39]), (2, [0, 39])],
)
def test_samples_are_spread_over_the_table(
    table: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    expected: list[int],
) -> None:
    """From the first to the last of the table, and cropped with the seeds of training."""
    seen = []
    cropped = sample_sheet.training_crop

    def spy(*arguments: Any) -> Any:
        seen.append(arguments[-1])
        return cropped(*arguments)

    monkeypatch.setattr(sample_sheet, "training_crop", spy)
    to = str(tmp_path / "sheet.png")
    write_sheet(str(table), to, NONE, config=SMALL, count=count, seed=5)
    assert seen == [(5, 0, number) for number in expected]


def test_the_seed_decides_over_the_crops(table: Path, tmp_path: Path) -> None:
    """The same seed gives the same sheet, another one another."""
    sheets = []
    for seed in (1, 1, 2):
        to = tmp_path / "sheet.png"
        write_sheet(str(table), str(to), config=SMALL, count=2, seed=seed)
        sheets.append(to.read_bytes())
    assert sheets[0] == sheets[1] != sheets[2]


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("no/sheet.jpg", "a folder that exists"),
        ("sheet.gif", r"ends with \.jpg"),
        ("sheet", r"ends with \.jpg"),
    ],
)
def test_a_sheet_that_cannot_be_written(table: Path, tmp_path: Path, name: str, match: str) -> None:
    """The message names the file."""
    with pytest.raises(UsageError, match=match) as refused:
        write_sheet(str(table), str(tmp_path / name), count=1)
    assert name in str(refused.value)


def test_what_is_no_table_of_samples(table: Path, tmp_path: Path) -> None:
    """A missing file, another file, another table, one without rows, a damaged picture."""
    to = str(tmp_path / "sheet.png")
    text = tmp_path / "text.parquet"
    text.write_text("no table")
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"a": [1]}), other)
    for path in (tmp_path / "missing.parquet", text, other):
        with pytest.raises(UsageError, match=path.name):
            write_sheet(str(path), to)
    with pytest.raises(UsageError, match="no samples"):
        write_sheet(str(write(tmp_path / "empty.parquet", [])), to)
    damaged = write(tmp_path / "damaged.parquet", [sample(3, image=b"nothing")])
    with pytest.raises(UsageError, match=r"figure-3\.png"):
        write_sheet(str(damaged), to)
    assert not Path(to).exists()


@pytest.mark.parametrize(
    ("name", "factor", "sigma"), [("cpm", 1.0, 7 / 368 * 192), ("cpm-lite", 2.0, 16.0)]
)
def test_the_maps_are_those_of_the_network(
    table: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    factor: float,
    sigma: float,
) -> None:
    """Its sigma at this size, times the recipe's, and its cell offset."""
    seen = []
    drawn = sample_sheet.sample_tile

    def spy(*arguments: Any) -> Any:
        seen.append(arguments[-2:])
        return drawn(*arguments)

    monkeypatch.setattr(sample_sheet, "sample_tile", spy)
    config = preset(name).at_size(192)
    write_sheet(str(table), str(tmp_path / "sheet.png"), NONE, config, factor, count=1)
    assert seen == [(pytest.approx(sigma), config.cell_offset)]


def test_a_table_behind_another_endpoint(
    s3_place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is reached by the options, where the environment says nothing."""
    path = write(tmp_path / "samples.parquet", [sample(0)])
    s3_place.put("samples.parquet", path.read_bytes())
    options = StorageOptions(os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    to = str(tmp_path / "sheet.png")
    assert write_sheet(f"{s3_place.uri}/samples.parquet", to, options=options) == 1
