"""The plain JSON forms, and what is common to all formats: joints, pictures, table, command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cpm_core.skeleton import load_skeleton
from jobs.cli import main
from pipeline import schema
from pipeline.errors import UsageError
from tests.pipeline.importing.sources import (
    SIZE,
    metadata,
    points_of,
    pose,
    rows,
    run,
    write_json,
)

LSP = list(load_skeleton("lsp14").keypoints)
COCO = list(load_skeleton("coco17").keypoints)
SHARED = Path(__file__).parents[4] / "shared" / "data"


def person(seed: int, joints: int = 14, flag: int = 1) -> list[list[float]]:
    return np.column_stack([pose(seed, joints), np.full(joints, flag)]).tolist()  # type: ignore[no-any-return]


def write_people(folder: Path, count: int, split: str = "train") -> Path:
    """One person per picture."""
    images = [{"file": f"{i}.jpg", "keypoints": person(i)} for i in range(count)]
    return write_json(folder, images, joint_names=LSP, split=split)


def test_one_person_per_picture(tmp_path: Path) -> None:
    """Pixels count from 0; the third number is a label or none, occlusion is not told."""
    keypoints = person(1)
    keypoints[4] = [0, 0, 0]
    image = {"file": "a.jpg", "width": SIZE[0], "height": SIZE[1], "keypoints": keypoints}
    write_json(tmp_path, [image], joint_names=LSP, split="val")
    run("json", tmp_path, tmp_path)
    (row,) = rows(tmp_path)
    assert row["labelled"] == [i != 4 for i in range(14)]
    assert (row["occluded"], row["group"], row["others"]) == (None, None, [])
    np.testing.assert_allclose(points_of(row)[:4], pose(1)[:4], atol=1e-5)
    assert row["image"] == (tmp_path / "images" / "a.jpg").read_bytes()
    assert row["uri"] == str(tmp_path / "images" / "a.jpg")


def test_several_people_per_picture(tmp_path: Path) -> None:
    """COCO's visibility, boxes, and a split of each picture's own."""
    people = [{"bbox": [1, 2, 30, 40], "keypoints": person(i, 17, i)} for i in (0, 1, 2)]
    images = [{"file": "a.jpg", "coco_split": "val2017", "people": people}]
    write_json(tmp_path, images, keypoint_names=COCO)
    run("json", tmp_path, tmp_path)
    first, second = rows(tmp_path)
    assert (first["split"], first["box"]) == ("val", [1, 2, 30, 40])
    assert (first["occluded"], second["occluded"]) == ([True] * 17, [False] * 17)
    assert [other["x"] for other in first["others"]] == [second["x"]]


def test_people_without_labels_and_crowds_are_ignored(tmp_path: Path) -> None:
    """No samples of their own; what is found there is no false positive."""
    people = [{"bbox": [1, 2, 30, 40], "keypoints": person(1, 17, 2)}]
    people += [
        {"bbox": [3, 3, 9, 9], "keypoints": person(3, 17, 0)},
        {"bbox": [4, 4, 9, 9], "keypoints": person(4, 17, 2), "iscrowd": 1, "area": 7.0},
    ]
    images = [{"file": "a.jpg", "coco_split": "val2017", "people": people}]
    write_json(tmp_path, images, keypoint_names=COCO)
    run("json", tmp_path, tmp_path)
    (row,) = rows(tmp_path)
    assert row["ignored"] == [
        {"box": [3, 3, 9, 9], "area": None, "crowd": False},
        {"box": [4, 4, 9, 9], "area": 7.0, "crowd": True},
    ]
    # The crowd has joints, so it stands beside the others.
    assert len(row["others"]) == 1


@pytest.mark.parametrize("box", [[], [1, 2, 3], "none"])
def test_what_is_no_box_is_refused(tmp_path: Path, box: Any) -> None:
    """It ended in a traceback when the table was written."""
    people = [{"bbox": box, "keypoints": person(1, 17, 2)}]
    write_json(tmp_path, [{"file": "a.jpg", "people": people}], keypoint_names=COCO)
    with pytest.raises(UsageError, match=r"annotations\.json: the labels after picture 0 .*Error"):
        run("json", tmp_path, tmp_path, split="val")


def test_joints_are_matched_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A joint that the labels lack is unlabelled everywhere; one line says which."""
    caplog.set_level("INFO", "posemill")
    write_people(tmp_path, 1, "val")
    run("json", tmp_path, tmp_path, skeleton="coco17")
    (row,) = rows(tmp_path)
    for i, name in enumerate(COCO):
        assert row["labelled"][i] == (name in LSP)
        if name in LSP:
            assert row["x"][i] == pytest.approx(pose(0)[LSP.index(name), 0])
    assert "the labels do not have them: nose, left_eye, right_eye, left_ear" in caplog.text
    assert "coco17 does not have them: neck, head_top" in caplog.text


def test_no_common_joint_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path, [{"file": "a.jpg", "keypoints": [[1, 2, 1]]}], joint_names=["tail"])
    with pytest.raises(UsageError, match=r"of no skeleton that comes with posemill \(tail\)"):
        run("json", tmp_path, tmp_path, split="val")
    with pytest.raises(UsageError, match="lsp14 has none of the labelled joints"):
        run("json", tmp_path, tmp_path, split="val", skeleton="lsp14")
    with pytest.raises(UsageError, match="cannot read skeleton 'lsp15'"):
        run("json", tmp_path, tmp_path, split="val", skeleton="lsp15")


def test_pictures_that_cannot_be_used_are_counted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_people(tmp_path, 9)
    (tmp_path / "images" / "2.jpg").unlink()
    (tmp_path / "images" / "5.jpg").write_bytes(b"\xff\xd8\xff damaged")
    for share in (0, 0.25):
        caplog.clear()
        counts = run("json", tmp_path, tmp_path, tune_share=share)
        assert (counts.samples, counts.pictures, counts.left_out) == (7, 7, 2)
        assert "2.jpg left out: not_found" in caplog.text
        assert "5.jpg left out: corrupt" in caplog.text
    assert [row["sample_id"] for row in rows(tmp_path)] == list(range(7))


@pytest.mark.parametrize("share", [0, 0.25])
def test_an_import_of_nothing_is_an_error_and_leaves_nothing(share: float, tmp_path: Path) -> None:
    write_people(tmp_path, 2)
    for file in (tmp_path / "images").iterdir():
        file.unlink()
    with pytest.raises(UsageError, match="no sample is left: 2 pictures cannot be used"):
        run("json", tmp_path, tmp_path, tune_share=share)
    assert not [file for file in tmp_path.iterdir() if "parquet" in file.name]


@pytest.mark.parametrize("share", [0, 0.25])
def test_only_addresses_on_request(share: float, tmp_path: Path) -> None:
    write_people(tmp_path, 8)
    run("json", tmp_path, tmp_path, pictures="uri", tune_share=share)
    assert all(row["image"] is None for row in rows(tmp_path))
    assert all(Path(row["uri"]).exists() for row in rows(tmp_path))


def test_the_table_says_what_it_is(tmp_path: Path) -> None:
    """The schema, small row groups, and the metadata: where Arrow shows them, and in the footer."""
    write_people(tmp_path, 130)
    counts = run("json", tmp_path, tmp_path)
    file = pq.ParquetFile(tmp_path / "out.parquet")
    assert file.schema_arrow.equals(schema.samples_table(14))
    groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    assert groups == [64, 64, 2]
    shown = json.loads(pq.read_schema(tmp_path / "out.parquet").metadata[b"posemill"])
    assert metadata(tmp_path) == {**shown, "digest": counts.digest}
    assert shown["skeleton"]["name"] == "lsp14"


def test_the_digest_is_of_the_contents(tmp_path: Path) -> None:
    """Another folder gives the same digest; another point, split or picture another one."""
    folder = write_people(tmp_path / "a", 8)
    digest = run("json", folder, tmp_path).digest
    assert run("json", write_people(tmp_path / "b", 8), tmp_path).digest == digest
    others = {
        run("json", folder, tmp_path, **v).digest for v in ({"split": "x"}, {"tune_share": 0})
    }
    moved = write_people(tmp_path / "c", 8)
    (moved / "images" / "3.jpg").write_bytes((moved / "images" / "4.jpg").read_bytes())
    others.add(run("json", moved, tmp_path).digest)
    text = (folder / "annotations.json").read_text()
    (folder / "annotations.json").write_text(text.replace(str(pose(3)[2, 1]), "3.14159"))
    others.add(run("json", folder, tmp_path).digest)
    assert len(others | {digest}) == 5


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "no list `images`"),
        ({"images": []}, "no list `joint_names`"),
        ({"images": [{"file": "0.jpg"}], "joint_names": LSP}, "give --split"),
        ({"images": [{"file": "0.jpg"}], "joint_names": LSP, "split": "val"}, "after picture 0"),
        ({"images": [{"file": "0.jpg", "keypoints": [[1, 1, 1]]}], "joint_names": LSP,
          "split": "val"}, r"0\.jpg: keypoints of shape \(1, 3\), not 14 x 3"),
    ],
)  # fmt: skip
def test_bad_labels_are_told(document: Any, message: str, tmp_path: Path) -> None:
    text = document if isinstance(document, str) else json.dumps(document)
    (tmp_path / "annotations.json").write_text(text)
    with pytest.raises(UsageError, match=rf"annotations\.json.*{message}"):
        run("json", tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["jsn", "in", "out"], "no format 'jsn': did you mean json?"),
        (["in", "out"], "where FORMAT is one of lsp, lspet, mpii, coco, json, annotations"),
        (["--input", "in", "--output", "out"], "--format is needed: one of lsp, lspet, mpii"),
        (["in", "out", "--format", "tiff"], "'lsp', 'lspet', 'mpii', 'coco', 'json'"),
        (["json", "in"], "expected INPUT … OUTPUT"),
        (["json", "in", "s3://bucket/out.parquet"], "give a local file"),
        (["annotations", "in", "out", "--images", "x"], "--images does not go with annotations"),
    ],
)
def test_the_command_says_what_is_wrong(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_preview_of_another_kind_is_refused_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is imported."""
    folder, out = str(write_people(tmp_path, 4)), tmp_path / "out.parquet"
    assert main(["import", "json", folder, str(out), "--preview", "x.gif"]) == 2
    assert "x.gif: a picture's name ends with .jpg" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("words", [["json"], ["--format", "json"]])
def test_the_command(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The format may also stand behind a flag, before or after the other words."""
    folder, out = str(write_people(tmp_path, 4)), str(tmp_path / "new" / "out.parquet")
    order = [*words, folder, out] if words == ["json"] else [folder, out, *words]
    assert main(["import", *order, "--tune-share", "0.25"]) == 0
    assert "4 samples (train 3, tune 1) of 4 pictures in lsp14" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "skeleton", "samples", "pictures"),
    [("lspet_val", "lsp14", 500, 500), ("coco_people", "coco17", 433, 130)],
)
def test_the_shared_pictures(
    name: str, skeleton: str, samples: int, pictures: int, tmp_path: Path
) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip("the shared pictures are not here")
    counts = run("json", SHARED / name, tmp_path, split="val")
    assert (counts.samples, counts.pictures, counts.left_out) == (samples, pictures, 0)
    assert counts.skeleton == skeleton


def test_an_import_that_fails_leaves_the_earlier_table(tmp_path: Path) -> None:
    """Labels that turn out bad after a hundred pictures, on the way to the same output."""
    images = [{"file": f"{i}.jpg", "keypoints": person(i)} for i in range(100)]
    write_json(tmp_path, images, joint_names=LSP, split="val")
    digest = run("json", tmp_path, tmp_path).digest
    images.append({"file": "bad.jpg", "keypoints": [[1, 2]]})
    write_json(tmp_path, images, joint_names=LSP, split="val")
    with pytest.raises(UsageError, match="the labels after picture 100"):
        run("json", tmp_path, tmp_path)
    assert metadata(tmp_path)["digest"] == digest
    assert not list(tmp_path.glob(".*partial"))
