"""MPII: the nested struct of the official file, and the JSON of the CPM release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from cpm_core.skeleton import load_skeleton
from pipeline.errors import UsageError
from tests.pipeline.importing.sources import (
    SIZE,
    mpii_person,
    mpii_point,
    points_of,
    pose,
    rows,
    run,
    structs,
    write_lspet,
    write_mpii,
    write_picture,
)

MPII = load_skeleton("mpii16").keypoints
LSP = load_skeleton("lsp14").keypoints
THREE = structs([{"image": 0}] * 3)


def full(seed: int, **fields: Any) -> dict[str, Any]:
    """Somebody with all 16 joints, all visible."""
    listed = [mpii_point(i, x, y, is_visible=1) for i, (x, y) in enumerate(pose(seed, 16))]
    return mpii_person(listed, **fields)


def centre(x: float, y: float) -> Any:
    return structs([{"x": x, "y": y}])


def test_the_official_file(tmp_path: Path) -> None:
    """Two people in a training picture; test pictures and people without joints are left out."""
    fields = {"scale": 2.5, "x1": 10, "y1": 20, "x2": 40, "y2": 60}
    first = full(1, objpos=centre(33, 44), **fields)
    nobody = {"objpos": centre(5, 5), "scale": 1.0}
    write_mpii(
        tmp_path,
        [
            ("a.jpg", [first, full(2), nobody], 1),
            ("b.jpg", [], 1),
            ("c.jpg", [nobody], 0),
            ("d.jpg", [full(3)], 1),
        ],
    )
    counts = run("mpii", tmp_path, tmp_path, tune_share=0)
    a, b, d = rows(tmp_path)
    assert (counts.samples, counts.pictures, counts.skeleton) == (3, 2, "mpii16")
    assert [row["source"] for row in (a, b, d)] == ["a.jpg", "a.jpg", "d.jpg"]
    assert {row["split"] for row in (a, b, d)} == {"train"}
    assert (a["centre"], a["scale"]) == ([32, 43], 2.5)
    assert a["head_size"] == pytest.approx(0.6 * 50)
    assert (b["centre"], b["scale"], b["head_size"]) == (None, None, None)
    np.testing.assert_allclose(points_of(a), pose(1, 16) - 1, atol=1e-5)  # counted from 1
    assert [other["x"] for other in a["others"]] == [b["x"]]
    assert [other["x"] for other in b["others"]] == [a["x"]]
    assert d["others"] == []


@pytest.mark.parametrize(
    ("visible", "occluded"),
    [
        ({"is_visible": 1}, False),
        ({"is_visible": 0}, True),
        ({"is_visible": 0.0}, True),
        ({"is_visible": "1"}, False),
        ({"is_visible": "0"}, True),
        ({"is_visible": np.zeros((0, 0))}, False),
        ({}, False),
    ],
)
def test_occluded_joints_stay_labelled(
    visible: dict[str, Any], occluded: bool, tmp_path: Path
) -> None:
    """B2, with every way in which MPII writes is_visible; unlisted joints are unlabelled."""
    listed = [mpii_point(9, 30, 10, **visible), mpii_point(2, 31, 50, **visible)]
    write_mpii(tmp_path, [("a.jpg", [mpii_person(listed)], 1)])
    run("mpii", tmp_path, tmp_path, tune_share=0)
    (row,) = rows(tmp_path)
    assert [i for i, flag in enumerate(row["labelled"]) if flag] == [2, 9]
    assert row["occluded"] == [occluded and i in (2, 9) for i in range(16)]
    assert row["box"] == [29, 9, 2, 41]


def record(joints: np.ndarray, **fields: Any) -> dict[str, Any]:
    """An entry of the CPM release's JSON."""
    return {
        "dataset": "MPI",
        "isValidation": 0.0,
        "img_paths": "a.jpg",
        "img_width": float(SIZE[0]),
        "img_height": float(SIZE[1]),
        "objpos": [21.0, 31.0],
        "joint_self": joints.tolist(),
        "scale_provided": 1.25,
        "joint_others": [],
        "numOtherPeople": 0.0,
        **fields,
    }


def joints_of_json(seed: int, visibility: float = 1) -> np.ndarray:
    return np.column_stack([pose(seed, 16), np.full(16, visibility)])


def write_release(folder: Path, root: list[dict[str, Any]]) -> Path:
    for i, name in enumerate(["a.jpg", "b.jpg"]):
        write_picture(folder / "images" / name, i)
    (folder / "MPI_annotations.json").write_text(json.dumps({"root": root}))
    return folder


def test_the_json_of_the_release(tmp_path: Path) -> None:
    """Visibility 0 is occluded, 2 missing; (0, 0) with visibility 0 is how Matlab filled gaps."""
    joints = joints_of_json(1)
    joints[0] = 0, 0, 0
    joints[1, 2] = 0
    joints[2, 2] = 2
    write_release(tmp_path, [record(joints)])
    run("mpii", tmp_path, tmp_path, tune_share=0)
    (row,) = rows(tmp_path)
    assert row["labelled"] == [False, True, False, *[True] * 13]
    assert row["occluded"] == [False, True, *[False] * 14]
    np.testing.assert_allclose(points_of(row)[3:], joints[3:, :2] - 1, atol=1e-5)
    assert (row["centre"], row["scale"]) == ([20, 30], 1.25)


def test_the_json_writer_drops_the_list_around_a_single_other_person(tmp_path: Path) -> None:
    one, two = joints_of_json(5), joints_of_json(6)
    root = [
        record(joints_of_json(1), joint_others=one.tolist(), numOtherPeople=1),
        record(joints_of_json(2), joint_others=[one.tolist(), two.tolist()], numOtherPeople=2),
        record(joints_of_json(3), img_paths="b.jpg", joint_others=None, isValidation=1),
        {"dataset": "MPI", "isValidation": 0},  # somebody without joints
    ]
    write_release(tmp_path, root)
    counts = run("mpii", tmp_path / "MPI_annotations.json", tmp_path, tune_share=0)
    first, second, third = rows(tmp_path)
    assert (len(first["others"]), len(second["others"]), len(third["others"])) == (1, 2, 0)
    np.testing.assert_allclose(first["others"][0]["x"], one[:, 0] - 1, atol=1e-5)
    assert [row["split"] for row in (first, second, third)] == ["train", "train", "val"]
    assert counts.pictures == 2


def test_one_pose_in_mpii_and_in_lsp_gives_the_same_joints(tmp_path: Path) -> None:
    """Left and right are the person's own in both: joints are matched by name, never by place."""
    places = dict(zip(MPII, pose(4, 16), strict=True))
    listed = [mpii_point(i, *places[name]) for i, name in enumerate(MPII)]
    mpii, lspet = tmp_path / "mpii", tmp_path / "lspet"
    write_mpii(mpii, [("a.jpg", [mpii_person(listed)], 1)])
    write_lspet(lspet, [np.array([[*places[name], 1] for name in LSP])])
    run("mpii", mpii, mpii, skeleton="lsp14", tune_share=0)
    run("lspet", lspet, lspet, tune_share=0)
    (a,), (b,) = rows(mpii), rows(lspet)
    assert (a["x"], a["y"], a["labelled"]) == (b["x"], b["y"], b["labelled"])
    run("lspet", lspet, lspet, skeleton="mpii16", tune_share=0)
    (row,) = rows(lspet)
    lacking = {name for name, flag in zip(MPII, row["labelled"], strict=True) if not flag}
    assert lacking == {"pelvis", "thorax"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"joints": np.ones((3, 14, 2))}, "holds no `RELEASE`"),
        ({"RELEASE": structs([{"version": 1}])}, "lacks a field"),
        (
            {"RELEASE": structs([{"annolist": THREE, "img_train": [1, 0]}])},
            "3 pictures",
        ),
    ],
)
def test_another_mat_file_is_told(content: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    savemat(tmp_path / "some.mat", content)
    with pytest.raises(UsageError, match=f"some.mat.*{message}"):
        run("mpii", tmp_path, tmp_path)


def test_a_label_that_is_not_as_the_format_says_is_told(tmp_path: Path) -> None:
    write_release(tmp_path, [record(joints_of_json(1)), record(np.ones((14, 3)))])
    with pytest.raises(UsageError, match=r"MPI_annotations\.json: the labels after picture 1 .*14"):
        run("mpii", tmp_path, tmp_path)
    assert not list(tmp_path.glob("*out.parquet*"))


def test_pictures_elsewhere_need_images(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "labels", [record(joints_of_json(1))])
    (folder / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="give --images"):
        run("mpii", folder, tmp_path)
    assert run("mpii", folder, tmp_path, images=str(tmp_path / "elsewhere")).samples == 1


@pytest.mark.parametrize(
    ("points", "box"),
    [
        ([(31, 21)], [30.5 - 25, 20.5 - 25, 50, 50]),  # one joint: a square
        ([(31, 11), (31, 34)], [30.5 - 25 / 24, 22 - 25, 50 / 24, 50]),  # in proportion
        ([(31, 11), (31, 71)], [30, 10, 1, 61]),  # joints that are far enough apart
    ],
)
def test_few_joints_get_half_the_height_that_the_scale_tells(
    points: list[tuple[float, float]], box: list[float], tmp_path: Path
) -> None:
    """Around the joints; the scale 0.5 stands for 100 pixels."""
    listed = [mpii_point(i, x, y) for i, (x, y) in enumerate(points)]
    write_mpii(tmp_path, [("a.jpg", [mpii_person(listed, scale=0.5)], 1)])
    run("mpii", tmp_path, tmp_path, tune_share=0)
    (row,) = rows(tmp_path)
    np.testing.assert_allclose(row["box"], box, rtol=1e-6)


def test_few_joints_of_a_person_of_unknown_size_are_no_sample(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are counted, and still stand beside the others."""
    caplog.set_level("INFO", "posemill")
    near = mpii_person([mpii_point(0, 31, 11), mpii_point(1, 38.5, 15)])
    apart = mpii_person([mpii_point(0, 31, 11), mpii_point(1, 31, 19)])
    write_mpii(tmp_path, [("a.jpg", [near, apart], 1)])
    counts = run("mpii", tmp_path, tmp_path, tune_share=0)
    (row,) = rows(tmp_path)
    assert row["box"] == [30, 10, 1, 9]
    assert len(row["others"]) == 1
    assert counts.too_small == 1
    assert "1 people left out: no box or scale, and joints that span less than 8" in caplog.text
    write_mpii(tmp_path, [("a.jpg", [near], 1)])
    with pytest.raises(UsageError, match="1 have joints that span less than 8 pixels"):
        run("mpii", tmp_path, tmp_path, tune_share=0)
