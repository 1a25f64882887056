"""Near-duplicates, and what is kept apart for tuning."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cpm_core.skeleton import load_skeleton
from pipeline.importing.near_duplicates import near_duplicate_groups, thumbnail
from tests.pipeline.importing.sources import pose, rows, run, write_json, write_picture

LSP = list(load_skeleton("lsp14").keypoints)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (60, 80, 3), np.uint8)


def test_thumbnails_do_not_see_size_brightness_or_contrast() -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    picture = np.asarray(cv2.resize(coarse, (80, 60), interpolation=cv2.INTER_LINEAR), np.uint8)
    larger = cv2.resize(picture, (400, 300), interpolation=cv2.INTER_CUBIC)
    darker = (picture * 0.4 + 20).astype(np.uint8)
    for other in (larger, darker):
        assert thumbnail(picture) @ thumbnail(np.asarray(other, np.uint8)) > 0.99
    assert abs(thumbnail(picture) @ thumbnail(noise(1))) < 0.5


def test_flat_pictures_are_like_nothing() -> None:
    flat = thumbnail(np.full((60, 80, 3), 7, np.uint8))
    assert list(near_duplicate_groups(np.stack([flat, flat]))) == [0, 1]


def test_groups_are_the_same_as_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Across blocks, and by way of others: a like b and b like c puts a and c together."""
    monkeypatch.setattr("pipeline.importing.near_duplicates._BLOCK", 7)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(12, 256))
    kinds = rng.integers(0, 12, 60)
    values = centres[kinds] + rng.normal(scale=0.38, size=(60, 256))
    vectors = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
    expected = np.arange(60)
    alike = vectors @ vectors.T > 0.9
    for _ in range(60):
        expected = np.array([expected[row].min() for row in alike])
    assert len(set(expected)) < 60
    np.testing.assert_array_equal(near_duplicate_groups(vectors), expected)


def write(folder: Path, images: list[dict[str, Any]], split: str = "train") -> Path:
    labelled = np.column_stack([pose(), np.ones(14)]).tolist()
    for image in images:
        image["people"] = [{"keypoints": labelled}] * image.pop("number", 1)
    return write_json(folder, images, keypoint_names=LSP, split=split)


def splits(folder: Path) -> dict[str, set[str]]:
    """Splits of the rows of every picture."""
    found = defaultdict(set)
    for row in rows(folder):
        found[row["source"]].add(row["split"])
    return found


def test_the_share_is_met_with_whole_pictures(tmp_path: Path) -> None:
    """All people of a picture are on the same side."""
    write(tmp_path, [{"file": f"{i}.jpg", "number": 1 + i % 3} for i in range(60)])
    counts = run("json", tmp_path, tmp_path, tune_share=0.2)
    assert counts.groups == 60
    assert counts.splits["tune"] == pytest.approx(0.2 * 120, abs=2)
    assert all(len(found) == 1 for found in splits(tmp_path).values())


def test_near_duplicates_are_on_the_same_side(tmp_path: Path) -> None:
    """Twenty scenes of four pictures each, which differ in quality and brightness."""
    for i in range(80):
        write_picture(tmp_path / "images" / f"{i}.jpg", i // 4)
        picture = cv2.imread(str(tmp_path / "images" / f"{i}.jpg"))
        cv2.imwrite(str(tmp_path / "images" / f"{i}.jpg"), picture // (1 + i % 4))
    write(tmp_path, [{"file": f"{i}.jpg"} for i in range(80)])
    counts = run("json", tmp_path, tmp_path, tune_share=0.25)
    assert (counts.groups, counts.splits["tune"]) == (20, 20)
    scenes = defaultdict(set)
    for row in rows(tmp_path):
        scenes[int(row["source"].removesuffix(".jpg")) // 4].add((row["group"], row["split"]))
    assert all(len(found) == 1 for found in scenes.values())


def test_the_choice_does_not_depend_on_the_order(tmp_path: Path) -> None:
    images = [{"file": f"{i}.jpg"} for i in range(40)]
    write(tmp_path, images)
    run("json", tmp_path, tmp_path, tune_share=0.2)
    first = splits(tmp_path), {row["source"]: row["group"] for row in rows(tmp_path)}
    document = json.loads((tmp_path / "annotations.json").read_text())
    document["images"].reverse()
    (tmp_path / "annotations.json").write_text(json.dumps(document))
    run("json", tmp_path, tmp_path, tune_share=0.2)
    assert first == (splits(tmp_path), {row["source"]: row["group"] for row in rows(tmp_path)})


def test_pictures_that_all_look_alike_are_taken_one_by_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A camera that does not move: better a flattering figure, and a word about it, than none."""
    for i in range(20):
        write_picture(tmp_path / "images" / f"{i}.jpg", 0)
    write(tmp_path, [{"file": f"{i}.jpg"} for i in range(20)])
    counts = run("json", tmp_path, tmp_path, tune_share=0.1)
    assert (counts.groups, counts.splits) == (1, {"train": 18, "tune": 2})
    assert "whose figures will flatter" in caplog.text


def test_other_splits_are_left_as_they_are_and_leaks_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What looks like a picture of `val` is never chosen for tuning."""
    images = [{"file": f"{i}.jpg", "split": "train" if i < 20 else "val"} for i in range(30)]
    for i in range(30):
        write_picture(tmp_path / "images" / f"{i}.jpg", 0 if i >= 28 else i)
    write(tmp_path, images)
    run("json", tmp_path, tmp_path, tune_share=0.5)
    found = splits(tmp_path)
    assert all(found[f"{i}.jpg"] == {"val"} for i in range(20, 30))
    assert found["0.jpg"] == {"train"}
    assert "1 training pictures have a near-duplicate in another split" in caplog.text


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"split": "val"}, {"val"}),
        ({"tune_share": 0}, {"train"}),
        ({"split": "train", "tune_share": 0.5}, {"train", "tune"}),
    ],
)
def test_groups_are_for_training_pictures(
    values: dict[str, Any], expected: set[str], tmp_path: Path
) -> None:
    """Where nothing is set apart, nothing is compared."""
    write(tmp_path, [{"file": f"{i}.jpg"} for i in range(8)])
    counts = run("json", tmp_path, tmp_path, **values)
    assert set(counts.splits) == expected
    assert (counts.groups is None) == (len(expected) == 1)
    assert all((row["group"] is None) == (len(expected) == 1) for row in rows(tmp_path))
