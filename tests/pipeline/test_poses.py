"""From crops to rows: doubles go within their frame, and what was looked at is what is told."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch

from cpm_core.config import preset
from cpm_core.estimator import Estimator, load
from cpm_core.finder import PoseFinder
from cpm_core.info import FOLDER, WeightsInfo
from cpm_core.locators import LocatorSpec
from cpm_core.model import Cpm
from cpm_core.people import WholeImage, YoloxDetector
from cpm_core.skeleton import load_skeleton
from cpm_core.weights import save_weights
from pipeline import schema
from pipeline.poses import drop_doubles, estimate_rows
from pipeline.rows import UnitRows, annotation_rows, crops_table
from pipeline.units import Unit
from pipeline.worker import UnitWorker
from tests.pipeline.test_plan import decoder_config
from tests.pipeline.test_rows import unit_rows

LSP = load_skeleton("lsp14")
SIGMAS = (0.1, 0.1, 0.1)
SHARED = Path(__file__).parents[3] / "shared"


@pytest.fixture(scope="module")
def estimator(tmp_path_factory: pytest.TempPathFactory) -> Estimator:
    """Random weights for 64-pixel crops."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = preset("cpm-lite", input_size=64, stages=1)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(path, Cpm(config).eval(), WeightsInfo("tiny", config, LSP))
    return load(path, device="cpu")


def rows_of(units: list[list[list[float]]]) -> pa.Table:
    """Units of frames of people; a person is where it stands (pixels), all joints in one place."""
    table = crops_table(
        unit_rows(i, [len(frame) for frame in frames]) for i, frames in enumerate(units)
    )
    places = np.array([place for frames in units for frame in frames for place in frame])
    keypoints = np.zeros((len(places), 3, 3), np.float32)
    keypoints[..., :2] = places.reshape(-1, 1, 1)
    keypoints[..., 2] = 0.5
    table = table.set_column(
        table.column_names.index("box"),
        table.schema.field("box"),
        pa.array(
            [[0, 0, 40, 40] if v else None for v in table["person_index"].is_valid().to_pylist()],
            pa.list_(pa.float32(), 4),
        ),
    )
    return annotation_rows(table, keypoints, 3)


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        pytest.param([[[0, 0]]], [(0, 0)], id="twice"),
        pytest.param([[[0, 100]]], [(0, 0), (1, 100)], id="two"),
        pytest.param([[[0, 0, 100, 101, 200]]], [(0, 0), (1, 100), (2, 200)], id="counted anew"),
        pytest.param([[[0], [0]], [[0]]], [(0, 0)] * 3, id="other frames and units"),
        pytest.param(
            [[[], [5, 5], []], [[]], [[7]]],
            [(None, None), (0, 5), (None, None), (None, None), (0, 7)],
            id="nobody",
        ),
        pytest.param([], [], id="nothing"),
    ],
)
def test_doubles_go_within_their_frame(
    units: list[list[list[float]]], expected: list[tuple[int | None, float | None]]
) -> None:
    before = rows_of(units)
    after = drop_doubles(before, SIGMAS, 0.7)
    after.validate(full=True)
    assert after.schema.equals(schema.annotation_table(3))
    found = [(r["person_index"], r["x"] and r["x"][0]) for r in after.to_pylist()]
    assert found == expected
    frames = {(r["unit_id"], r["frame_index"]) for r in before.to_pylist()}
    assert {(r["unit_id"], r["frame_index"]) for r in after.to_pylist()} == frames


def shard(path: Path, picture: np.ndarray, **config: object) -> pa.Table:
    """Rows with crops of one picture, as a decoder process makes them."""
    assert cv2.imwrite(str(path), picture[..., ::-1])
    unit = Unit(0, 0, str(path), "image")
    rows = UnitRows(unit)
    for frame, crops in UnitWorker(decoder_config(**config)).frames(unit, None):
        rows.add_frame(frame, crops.tobytes())
    return crops_table([rows])


def test_the_whole_picture_is_told_as_the_box_that_was_looked_at(
    tmp_path: Path, estimator: Estimator
) -> None:
    """The table, and what the library gives for the same picture."""
    picture = np.random.default_rng(3).integers(0, 255, (90, 150, 3), np.uint8)
    table = estimate_rows(estimator, shard(tmp_path / "a.png", picture))
    (row,) = table.to_pylist()
    found = PoseFinder(WholeImage(), estimator).find(picture)
    np.testing.assert_allclose(row["box"], found.people.boxes[0], atol=1e-3)
    np.testing.assert_allclose(row["x"], found.keypoints[0, :, 0], atol=0.1)
    assert (row["box_source"], row["box_score"]) == ("whole-image", 1)
    assert row["score"] == pytest.approx(np.mean(row["keypoint_score"]))


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
@pytest.mark.skipif(not (FOLDER / "cpm-lite.safetensors").exists(), reason="needs weights")
def test_the_table_is_what_the_library_finds(tmp_path: Path) -> None:
    """A picture with several people, through decoder, rows and network, and by `PoseFinder`."""
    folder = SHARED / "data" / "coco_people"
    images = json.loads((folder / "annotations.json").read_text())["images"]
    name = next(image["file"] for image in images if 3 <= len(image["people"]) <= 5)
    bgr = cv2.imread(str(folder / "images" / name))
    assert bgr is not None
    onnx = (SHARED / "weights" / "yolox_nano.onnx").read_bytes()
    network = load("cpm-lite", device="cpu")
    config = {
        "crop_size": network.cropper.size,
        "box_factor": network.cropper.box_factor,
        "people": LocatorSpec("detector", 0.3, "sha", onnx),
    }
    crops = shard(tmp_path / "a.png", bgr[..., ::-1], **config)
    table = estimate_rows(network, crops, same_person=0.7).to_pylist()
    found = PoseFinder(YoloxDetector(onnx, 0.3), network, 0.7).find(bgr[..., ::-1])
    assert len(table) == len(found) >= 2
    np.testing.assert_allclose([r["score"] for r in table], found.scores, atol=1e-4)
    np.testing.assert_allclose([r["x"] for r in table], found.keypoints[..., 0], atol=0.1)
