"""`posemill preview`, where nothing is drawn."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.cli import main


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
    assert main(["preview", "--output", str(tmp_path), "--to", str(tmp_path / "a.png")]) == 2
    assert "holds no annotation table" in capsys.readouterr().err
