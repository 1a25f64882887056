"""`posemill preview`: which pictures are drawn, and what is said where none can be."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from jobs.cli import main
from pipeline import preview as module
from pipeline.errors import UsageError
from pipeline.preview import Drawn, PreviewSettings, Shown, preview
from tests.pipeline.importing.outputs import frame, local, person, pictures, write_table

NOBODY = {"unit_id": 9, "uri": "x", "media_type": "image", "status": "no_person"}


@pytest.mark.parametrize(
    ("to", "said"),
    [("sheet.txt", "ends with .jpg"), ("sheet.jpg", "holds no annotation table")],
)
def test_what_is_wrong_is_said_in_one_line(
    to: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The name of the picture is looked at first."""
    assert main(["preview", "--output", str(tmp_path), "--to", str(tmp_path / to)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_damaged_part_is_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, too."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "part-0.parquet").write_bytes(b"no table")
    assert main(["preview", str(tmp_path), "--to", str(tmp_path / "a.png")]) == 2
    assert "holds no annotation table" in capsys.readouterr().err


@pytest.fixture
def table(tmp_path: Path) -> str:
    """Two parts: pictures of one, two and one people; three frames that differ in pts only."""
    a, b, c = pictures(tmp_path, 3)
    joints = [0.9] * 14
    return write_table(
        local(tmp_path),
        [
            person(0, a, joints, score=0.3),
            person(1, b, joints, score=0.1),
            person(1, b, joints, score=0.9, person_index=1),
            NOBODY,
        ],
        [
            person(2, c, joints, score=0.7),
            *(frame(3, "v.mp4", 0, pts, score=0.2 * i) for i, pts in enumerate((0, 512, 1024))),
        ],
    )


def chosen(table: str, **given: object) -> list[tuple[int, int | None, int]]:
    """Unit, pts and people of what is drawn."""
    settings = PreviewSettings.build({"output": table, **given})
    dataset, _ = module.open_annotations(module.Output(table, module.StorageOptions()))
    shown: list[Shown] = module._chosen(dataset, settings.count, settings.order)
    return [(s.rows[0]["unit_id"], s.rows[0]["pts"], len(s.rows)) for s in shown]


ALL = [(0, None, 1), (1, None, 2), (2, None, 1), (3, 0, 1), (3, 512, 1), (3, 1024, 1)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ALL),
        ({"count": 1}, ALL[:1]),
        ({"count": 3}, [ALL[0], ALL[2], ALL[5]]),
        ({"order": "best", "count": 3}, [ALL[2], ALL[1], ALL[5]]),
        ({"order": "worst", "count": 3}, [ALL[3], ALL[4], ALL[0]]),
        ({"order": "worst"}, [ALL[3], ALL[4], ALL[0], ALL[5], ALL[1], ALL[2]]),
    ],
)
def test_pictures_are_chosen_over_the_whole_table(
    table: str, given: dict[str, object], expected: list[tuple[int, int | None, int]]
) -> None:
    assert chosen(table, **given) == expected


@pytest.mark.parametrize("size", [1, 2, 3])
def test_people_of_a_picture_stay_together_over_batches(
    size: int, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = module._batches
    monkeypatch.setattr(
        module,
        "_batches",
        lambda dataset, columns: (
            batch.slice(at, size)
            for batch in whole(dataset, columns)
            for at in range(0, len(batch), size)
        ),
    )
    assert chosen(table) == ALL


def test_a_picture_that_is_gone_is_grey(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = pictures(tmp_path, 2)
    joints = [0.9] * 14
    output = write_table(local(tmp_path), [person(0, a, joints), person(1, b, joints)])
    Path(a).unlink()
    to = tmp_path / "sheet.png"
    assert main(["preview", "--output", output, "--to", str(to), "--width", "100"]) == 0
    assert "2 pictures, 1 of them could not be read" in capsys.readouterr().out
    left, right = np.split(cv2.imread(str(to))[8:83, 8:-8], 2, axis=1)  # type: ignore[index]
    assert (left[10:60, 20:80] == 128).all()
    assert right[10:60, 20:80].std() > 10


def test_a_sheet_of_nothing_is_not_written(tmp_path: Path) -> None:
    output = write_table(local(tmp_path), [person(0, "gone.jpg", [0.9] * 14)], [NOBODY])
    to = tmp_path / "sheet.png"
    with pytest.raises(UsageError, match=r"gone\.jpg: there is no"):
        preview(PreviewSettings(output=output, to=str(to)))
    assert not to.exists()
    empty = write_table(local(tmp_path / "b"), [NOBODY])
    with pytest.raises(UsageError, match="nothing to draw"):
        preview(PreviewSettings(output=empty, to=str(to)))


def test_all_of_a_table_can_be_drawn(tmp_path: Path) -> None:
    uris = pictures(tmp_path, 5)
    rows = [person(i, uri, [0.9] * 14) for i, uri in enumerate(uris)]
    output = write_table(local(tmp_path), rows)
    drawn = preview(PreviewSettings(output=output, to=str(tmp_path / "s.png"), width=60))
    assert drawn == Drawn(5, 0)
