"""The table of `posemill annotate` as labels: annotate, review and train close the loop."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import UsageError
from tests.pipeline.conftest import Place
from tests.pipeline.importing.outputs import frame, local, person, pictures, write_table
from tests.pipeline.importing.sources import SIZE, pose, rows, run, write_picture
from tests.pipeline.videos import write_video


def test_confident_joints_are_labels(store: Place, tmp_path: Path) -> None:
    """Local and on S3; people without a confident joint are left out, and beside nobody."""
    coarse = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    uri = store.put("photo.jpg", cv2.imencode(".jpg", coarse)[1].tobytes())
    source = write_table(
        store.output(),
        [
            person(0, uri, [0.9, 0.5, 0.49]),
            person(0, uri, [0.2], person_index=1),
            {"unit_id": 1, "uri": "x", "media_type": "image", "status": "no_person"},
        ],
    )
    counts = run("annotations", source, tmp_path, threshold=0.5, tune_share=0)
    (row,) = rows(tmp_path)
    assert row["labelled"] == [True, True, *[False] * 12]
    assert row["x"][0] == pytest.approx(pose(0)[0, 0])
    assert row["box"] == [1, 2, 30, 40]
    assert (row["split"], row["uri"], row["occluded"], row["others"]) == ("train", uri, None, [])
    assert counts.skeleton == "lsp14"


def test_the_whole_picture_is_nobodys_box(tmp_path: Path) -> None:
    (uri,) = pictures(tmp_path, 1)
    row = person(0, uri, [0.9] * 14, box=[0.0, 0.0, *map(float, SIZE)], box_source="whole-image")
    run("annotations", write_table(local(tmp_path), [row]), tmp_path, tune_share=0)
    np.testing.assert_allclose(rows(tmp_path)[0]["box"][:2], pose(0).min(axis=0), atol=1e-5)


def test_people_of_a_picture_stand_beside_each_other(tmp_path: Path) -> None:
    uris = pictures(tmp_path, 2)
    people = [person(0, uris[0], [0.9]), person(0, uris[0], [0.9, 0.9], person_index=1)]
    source = write_table(local(tmp_path), people, [person(1, uris[1], [0.9])])
    run("annotations", source, tmp_path, tune_share=0)
    assert [len(row["others"]) for row in rows(tmp_path)] == [1, 1, 0]


def test_pictures_that_are_gone_or_have_changed_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uris = pictures(tmp_path, 5)
    Path(uris[1]).unlink()
    write_picture(Path(uris[3]), 3, (30, 30))
    source = write_table(local(tmp_path), [person(i, uri, [0.9]) for i, uri in enumerate(uris)])
    counts = run("annotations", source, tmp_path, split="mine")
    assert [row["source"] for row in rows(tmp_path)] == [uris[0], uris[2], uris[4]]
    assert (counts.left_out, dict(counts.splits)) == (2, {"mine": 3})
    assert "1.jpg left out: not_found" in caplog.text
    assert "3.jpg left out: it is 30 x 30" in caplog.text


@pytest.mark.parametrize("timed", [True, False])
def test_frames_of_a_video_are_decoded(timed: bool, tmp_path: Path) -> None:
    """Those with people, whatever units they are in; each is a picture of its own."""
    video = write_video(tmp_path / "v.mp4", frames=40)
    from tests.pipeline.videos import drawing

    chosen = [(0, 3), (0, 4), (0, 11), (1, 13), (1, 39)]
    # The container counts in 1/12800 s, and there are 25 frames per second.
    found = [frame(unit, str(video), i, 512 * i if timed else None) for unit, i in chosen]
    source = write_table(local(tmp_path), found[:3], found[3:])
    counts = run("annotations", source, tmp_path, tune_share=0)
    assert (counts.samples, counts.left_out) == (5, 0)
    for row, (_, index) in zip(rows(tmp_path), chosen, strict=True):
        assert row["source"] == f"{video}#{index}"
        assert row["uri"] == str(video)
        picture = cv2.imdecode(np.frombuffer(row["image"], np.uint8), cv2.IMREAD_COLOR_RGB)
        assert picture is not None
        assert np.abs(picture.astype(int) - drawing(index)).mean() < 12


def test_frames_that_cannot_be_had_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A video that is gone, a frame that is not in it, and addresses that frames do not have."""
    video, (uri,) = write_video(tmp_path / "v.mp4", frames=10), pictures(tmp_path, 1)
    found = [
        frame(0, str(tmp_path / "gone.mp4"), 0, 0),
        frame(1, str(video), 2, 512 * 2),
        frame(1, str(video), 3, 512 * 3 + 1),
        person(2, uri, [0.9]),
    ]
    source = write_table(local(tmp_path), found)
    counts = run("annotations", source, tmp_path, tune_share=0)
    assert [row["uri"] for row in rows(tmp_path)] == [str(video), uri]
    assert counts.left_out == 2
    assert "gone.mp4 left out: there is no such file" in caplog.text
    assert "v.mp4 left out: the frame was not found" in caplog.text
    run("annotations", source, tmp_path, pictures="uri", tune_share=0)
    assert [row["uri"] for row in rows(tmp_path)] == [uri]
    assert "use --pictures bytes" in caplog.text


def test_frames_are_grouped_and_set_apart(tmp_path: Path) -> None:
    """Both passes decode; the frames of a still camera are all alike."""
    video = write_video(tmp_path / "v.mp4", frames=20)
    source = write_table(local(tmp_path), [frame(0, str(video), i, 512 * i) for i in range(20)])
    counts = run("annotations", source, tmp_path, tune_share=0.1)
    assert counts.samples == 20
    assert counts.splits["tune"] == 2
    assert all(row["group"] is not None for row in rows(tmp_path))


@pytest.mark.parametrize("there", ["nothing", "a folder", "another table"])
def test_a_folder_without_a_table_is_told(there: str, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "annotations"
    if there != "nothing":
        folder.mkdir(parents=True)
    if there == "another table":
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"a": [1]}), folder / "a.parquet")
    with pytest.raises(UsageError, match=r"no annotation table: give the output folder"):
        run("annotations", tmp_path / "out", tmp_path)
