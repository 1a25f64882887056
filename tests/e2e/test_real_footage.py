"""Real pictures and videos, where `../shared` has them: people are found, poses make sense."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cpm_core.info import FOLDER
from tests.e2e.conftest import REPOSITORY, Job
from tests.e2e.test_annotate import assert_accounted, read_table

SHARED = REPOSITORY.parent / "shared"
DETECTOR = SHARED / "weights" / "yolox_nano.onnx"
COCO = SHARED / "data" / "coco_people"

pytestmark = [
    pytest.mark.skipif(not DETECTOR.exists(), reason="needs ../shared"),
    pytest.mark.skipif(
        not (FOLDER / "cpm-lite.safetensors").exists(), reason="needs the shipped weights"
    ),
]


@pytest.mark.skipif(
    not (FOLDER / "person-net.safetensors").exists(), reason="needs the shipped locator"
)
def test_people_are_found_without_being_asked_for(tmp_path: Path, posemill: Job) -> None:
    """Without `--people` the shipped locator does it, and the table says so."""
    out = str(tmp_path / "out")
    result = posemill("annotate", str(COCO / "images"), out, "--limit", "8")
    assert result.returncode == 0, result.stderr
    table = read_table(out)
    assert_accounted(table, 8)
    rows = [row for row in table.to_pylist() if row["status"] == "ok"]
    assert {row["box_source"] for row in rows} == {"person-net"}
    assert len({row["uri"] for row in rows}) >= 5
    for row in rows:
        expected = row["box_score"] ** 0.5 * np.mean(row["keypoint_score"])
        assert row["score"] == pytest.approx(expected, abs=1e-3)
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["people"]["locator"] == "person-net"
    assert run["settings"]["people"] == f"person-net:{run['people']['locator_sha256']}"
    assert run["settings"]["person_threshold"] == run["people"]["threshold"] > 0
    refused = posemill("annotate", str(COCO / "images"), out, "--person-threshold", "0.9")
    assert refused.returncode == 2
    assert "person_threshold" in refused.stderr


def test_detector_finds_people_and_preview_draws_them(tmp_path: Path, posemill: Job) -> None:
    """Most large people of everyday pictures get a box; the contact sheet shows them."""
    out = str(tmp_path / "out")
    result = posemill(
        *("annotate", str(COCO / "images"), out, "--limit", "12", "--max-people", "6"),
        *("--people", f"detector:{DETECTOR}"),
    )
    assert result.returncode == 0, result.stderr
    table = read_table(out)
    assert_accounted(table, 12)
    people = json.loads((COCO / "annotations.json").read_text())["images"]
    rows = [row for row in table.to_pylist() if row["status"] == "ok"]
    assert max(row["person_index"] for row in rows) < 6
    large, found = 0, 0
    for image in people:
        boxes = [r["box"] for r in rows if r["uri"].endswith("/" + image["file"])]
        if boxes:
            biggest = max((p["bbox"] for p in image["people"]), key=lambda b: b[2] * b[3])
            large += 1
            found += max(overlap(biggest, box) for box in boxes) > 0.5
    assert large >= 8
    assert found >= 0.7 * large
    sheet = tmp_path / "sheet.jpg"
    drawn = posemill("preview", "--output", out, "--to", str(sheet), "--count", "4")
    assert drawn.returncode == 0, drawn.stderr
    assert sheet.stat().st_size > 10_000


def test_street_video(tmp_path: Path, posemill: Job) -> None:
    """A clip at five frames a second: true times, in order, nobody lost."""
    out = str(tmp_path / "out")
    video = SHARED / "data" / "videos" / "mmaction2_two_people_1080p.mp4"
    result = posemill(
        *("annotate", str(video), out, "--fps", "5", "--people", f"detector:{DETECTOR}")
    )
    assert result.returncode == 0, result.stderr
    rows = read_table(out).to_pylist()
    times = sorted({row["timestamp_s"] for row in rows})
    assert len(times) == 13
    assert np.diff(times).max() < 0.25
    assert sum(row["status"] == "ok" for row in rows) >= 20


def overlap(a: list[float], b: list[float]) -> float:
    """Intersection over union of boxes x, y, w, h."""
    low = np.maximum(a[:2], b[:2])
    high = np.minimum(np.add(a[:2], a[2:]), np.add(b[:2], b[2:]))
    common = np.prod(np.clip(high - low, 0, None))
    return float(common / (a[2] * a[3] + b[2] * b[3] - common))
