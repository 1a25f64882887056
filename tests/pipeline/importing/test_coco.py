"""COCO keypoints, from the file that COCO hands out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpm_core.skeleton import load_skeleton
from pipeline.errors import UsageError
from tests.pipeline.importing.sources import SIZE, points_of, pose, rows, run, write_picture

JOINTS = load_skeleton("coco17").keypoints


def annotation(image: int, seed: int, visibility: list[int], **fields: Any) -> dict[str, Any]:
    """Somebody whose joints beyond `visibility` are not labelled."""
    flags = np.array([*visibility, *[0] * (17 - len(visibility))])
    keypoints = np.column_stack([np.where(flags[:, None], pose(seed, 17), 0), flags])
    return {
        "id": seed,
        "image_id": image,
        "category_id": 1,
        "bbox": [1.5, 2.5, 20.0, 30.0],
        "area": 123.5,
        "iscrowd": 0,
        "num_keypoints": int((flags > 0).sum()),
        "segmentation": [[1, 2, 3, 4]],
        "keypoints": keypoints.ravel().tolist(),
        **fields,
    }


def write_coco(
    folder: Path,
    annotations: list[dict[str, Any]],
    name: str = "person_keypoints_train2017.json",
    images: str = "train2017",
    joints: tuple[str, ...] = JOINTS,
) -> Path:
    """annotations/ and the pictures beside it, as COCO unpacks."""
    listed = [
        {"id": i, "file_name": f"{i:012d}.jpg", "width": SIZE[0], "height": SIZE[1]}
        for i in range(3)
    ]
    for entry in listed:
        write_picture(folder / images / str(entry["file_name"]), int(entry["id"]))
    categories = [{"id": 1, "name": "person", "keypoints": list(joints)}, {"id": 2, "name": "dog"}]
    document = {"images": listed, "annotations": annotations, "categories": categories}
    (folder / "annotations").mkdir()
    (folder / "annotations" / name).write_text(json.dumps(document))
    return folder


def test_the_official_file(tmp_path: Path) -> None:
    """Visibility 1 is labelled and occluded; pixels count from 0; box and area are kept."""
    write_coco(tmp_path, [annotation(0, 1, [2, 1, 0, 2])])
    counts = run("coco", tmp_path, tmp_path, tune_share=0)
    (row,) = rows(tmp_path)
    assert row["labelled"] == [True, True, False, True, *[False] * 13]
    assert row["occluded"] == [False, True, *[False] * 15]
    assert (row["x"][2], row["y"][2]) == (0, 0)
    np.testing.assert_allclose(points_of(row)[:2], pose(1, 17)[:2], atol=1e-5)
    assert (row["box"], row["area"]) == ([1.5, 2.5, 20, 30], 123.5)
    assert (row["split"], row["source"]) == ("train", "000000000000.jpg")
    assert counts.pictures == 1


def test_crowds_and_people_without_keypoints_are_no_samples(tmp_path: Path) -> None:
    """A crowd with keypoints still stands beside the others of its picture."""
    write_coco(
        tmp_path,
        [
            annotation(0, 1, [2]),
            annotation(0, 2, [2, 2], iscrowd=1),
            annotation(0, 3, []),
            annotation(1, 4, [2], iscrowd=1),
            annotation(2, 5, [2], category_id=2),
        ],
    )
    run("coco", tmp_path, tmp_path, tune_share=0)
    (row,) = rows(tmp_path)
    (other,) = row["others"]
    assert other["labelled"] == [True, True, *[False] * 15]


def test_who_is_no_sample_is_noted_for_evaluation(tmp_path: Path) -> None:
    """Crowds, and people nobody labelled a joint of, whether or not the file lists zeros."""
    write_coco(
        tmp_path,
        [
            annotation(0, 1, [2]),
            annotation(0, 2, [2, 2], iscrowd=1, bbox=[5, 6, 7, 8]),
            annotation(0, 3, []),
            annotation(0, 4, [], keypoints=[], bbox=[9, 9, 9, 9], area=None),
            annotation(0, 5, [], bbox=[9, 9, 0, 0]),
            annotation(1, 6, [2]),
            annotation(1, 7, [0, 0, 0, 0, 0, 2], bbox=[1, 1, 5, 5]),
        ],
    )
    run("coco", tmp_path, tmp_path, tune_share=0, skeleton="lsp14", split="val")
    (row,) = rows(tmp_path)
    assert row["source"] == "000000000001.jpg"
    # A nose is no joint of lsp14.
    assert row["ignored"] == [{"box": [1.5, 2.5, 20, 30], "area": 123.5, "crowd": False}]
    run("coco", tmp_path, tmp_path, tune_share=0, split="val")
    first, *_ = rows(tmp_path)
    assert first["ignored"] == [
        {"box": [5, 6, 7, 8], "area": 123.5, "crowd": True},
        {"box": [1.5, 2.5, 20, 30], "area": 123.5, "crowd": False},
        {"box": [9, 9, 9, 9], "area": None, "crowd": False},
    ]


@pytest.mark.parametrize("box", [[5, 5, 0, 0], None])
def test_a_box_without_area_gives_way_to_that_of_the_joints(tmp_path: Path, box: Any) -> None:
    write_coco(tmp_path, [annotation(0, 1, [2, 2], bbox=box)])
    run("coco", tmp_path, tmp_path, tune_share=0)
    (row,) = rows(tmp_path)
    points = pose(1, 17)[:2]
    np.testing.assert_allclose(row["box"][:2], points.min(axis=0), atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bbox": []}, r"bbox \[\] is not x, y, width, height"),
        ({"bbox": [1, 2, 3]}, r"bbox \[1, 2, 3\] is not x, y, width, height"),
        ({"bbox": ["a", 2, 3, 4]}, "could not convert string to float: 'a'"),
        ({"bbox": {"x": 1}}, "must be .* a real number, not 'dict'"),
        ({"keypoints": [{"x": 1}]}, "must be .* a real number, not 'dict'"),
        ({"keypoints": ["a"] * 51}, "could not convert string to float: 'a'"),
        ({"keypoints": [[1], [1, 2]]}, "inhomogeneous"),
        ({"keypoints": [1, 2]}, "cannot reshape"),
        ({"keypoints": [1, 2, 2]}, "1 keypoints, but the category has 17"),
        ({"keypoints": [10**400] * 51}, "too large"),
        ({"area": "x"}, "could not convert string to float: 'x'"),
    ],
)
def test_wrong_labels_are_refused_with_file_and_picture(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    """Some ended in a traceback, others were told of as no JSON."""
    write_coco(tmp_path, [annotation(0, 1, [2]), annotation(1, 2, [2], **fields)])
    place = r"person_keypoints_train2017\.json: the labels of 000000000001\.jpg: "
    with pytest.raises(UsageError, match=place + f".*{message}"):
        run("coco", tmp_path, tmp_path, tune_share=0)


def test_a_label_without_a_box_is_refused(tmp_path: Path) -> None:
    wrong = annotation(0, 1, [2, 2])
    del wrong["bbox"]
    write_coco(tmp_path, [wrong])
    with pytest.raises(UsageError, match=r"000000000000\.jpg: 'bbox' is missing"):
        run("coco", tmp_path, tmp_path, tune_share=0)


@pytest.mark.parametrize(
    ("name", "split", "expected"),
    [
        ("person_keypoints_val2017.json", None, "val"),
        ("person_keypoints_train2017.json", None, "train"),
        ("person_keypoints_train2017_small.json", None, "train"),
        ("person_keypoints_val2017.json", "mine", "mine"),
        ("labels.json", "mine", "mine"),
    ],
)
def test_the_file_name_tells_the_split(
    name: str, split: str | None, expected: str, tmp_path: Path
) -> None:
    write_coco(tmp_path, [annotation(0, 1, [2])], name)
    given = {"images": str(tmp_path / "train2017"), "split": split, "tune_share": 0}
    run("coco", tmp_path / "annotations" / name, tmp_path, **given)
    assert [row["split"] for row in rows(tmp_path)] == [expected]


def test_a_name_that_tells_no_split_is_refused(tmp_path: Path) -> None:
    write_coco(tmp_path, [annotation(0, 1, [2])], "labels.json")
    with pytest.raises(UsageError, match=r"labels\.json.*give --split"):
        run("coco", tmp_path / "annotations", tmp_path)


def test_instances_have_no_keypoints(tmp_path: Path) -> None:
    write_coco(tmp_path, [], "instances_train2017.json", joints=())
    with pytest.raises(UsageError, match="no category with keypoints"):
        run("coco", tmp_path / "annotations", tmp_path)


def test_an_own_skeleton_in_the_form_of_coco(tmp_path: Path) -> None:
    """Joints are matched by the category's names; nothing is assumed about their order."""
    names = tuple(reversed(JOINTS))
    write_coco(tmp_path, [annotation(0, 1, [2, 2])], joints=names)
    run("coco", tmp_path, tmp_path, tune_share=0)
    (row,) = rows(tmp_path)
    assert [i for i, flag in enumerate(row["labelled"]) if flag] == [15, 16]
    assert row["x"][16] == pytest.approx(pose(1, 17)[0, 0])


def test_a_picture_whose_size_is_not_the_labels_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Turned by its EXIF orientation, most often: its labels would be anywhere."""
    write_coco(tmp_path, [annotation(0, 1, [2]), annotation(1, 2, [2])])
    write_picture(tmp_path / "train2017" / "000000000001.jpg", 1, (SIZE[1], SIZE[0]))
    counts = run("coco", tmp_path, tmp_path, tune_share=0)
    assert (counts.samples, counts.left_out) == (1, 1)
    assert "it is 60 x 80, but its labels are for 80 x 60" in caplog.text
