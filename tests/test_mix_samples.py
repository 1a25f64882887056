"""Tables joined: what is there how often, and what is left out."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.mix_samples import mix
from cpm_core.skeleton import load_skeleton
from tests.pipeline.training.labelled import row, write_table


def test_some_are_there_more_often_than_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = write_table(tmp_path / "many.parquet", [row(0), row(1, "tune"), row(2, "test")])
    sparse = row(5)
    sparse["labelled"] = [True] * 3 + [False] * 11
    few = write_table(tmp_path / "few.parquet", [row(3), row(4, "tune"), sparse])
    out = tmp_path / "out.parquet"
    mix(out, [many, f"{few}:3"], least_joints=4)
    assert f"{few}: 3 of the mix; 2 samples left out\n" in capsys.readouterr().out
    table = pq.read_table(out)
    assert table["split"].to_pylist() == ["train", "tune", "test"] + ["train"] * 3
    assert table["x"][3:].to_pylist() == pq.read_table(few)["x"][:1].to_pylist() * 3
    assert table["sample_id"].to_pylist() == list(range(6)), "each is augmented by its own number"


def test_other_joints_do_not_mix(tmp_path: Path) -> None:
    one = write_table(tmp_path / "a.parquet", [row(0)])
    coco = load_skeleton("coco17")
    other = write_table(tmp_path / "b.parquet", [row(0, joints=17)], coco)
    with pytest.raises(SystemExit, match=r"b\.parquet has other joints"):
        mix(tmp_path / "out.parquet", [one, other], 1)
    assert not (tmp_path / "out.parquet").exists()
