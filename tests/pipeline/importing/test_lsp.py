"""LSP and LSPET: two arrays that look alike, with flags that mean the opposite."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from pipeline.errors import UsageError
from pipeline.importing.lsp import person
from tests.pipeline.importing.sources import (
    points_of,
    pose,
    rows,
    run,
    write_lsp,
    write_lspet,
)

REAL = Path(__file__).parents[4] / "shared" / "fixtures" / "lsp_pck" / "lsp_joints_pc.mat"


def labels(flags: list[int], seed: int = 0) -> np.ndarray:
    """(14, 3): a pose with the same flags for the first joints and 0 for the others."""
    return np.column_stack([pose(seed), [*flags, *[0] * (14 - len(flags))]])


def test_flag_trap_of_lsp_row_3_is_occluded_not_labelled(tmp_path: Path) -> None:
    """Joints 0 and 2 are flagged: all 14 are labelled, those two are occluded (B2)."""
    write_lsp(tmp_path, {1: labels([1, 0, 1])}, count=1)
    run("lsp", tmp_path, tmp_path)
    (row,) = rows(tmp_path)
    assert row["labelled"] == [True] * 14
    assert row["occluded"] == [True, False, True, *[False] * 11]


def test_flag_trap_of_lspet_column_3_is_labelled_not_occluded(tmp_path: Path) -> None:
    write_lspet(tmp_path, [labels([1, 0, 1])])
    run("lspet", tmp_path, tmp_path)
    (row,) = rows(tmp_path)
    assert row["labelled"] == [True, False, True, *[False] * 11]
    assert row["occluded"] is None


@pytest.mark.parametrize("name", ["lsp", "lspet"])
def test_matlab_counts_pixels_from_1(name: str, tmp_path: Path) -> None:
    write = write_lsp if name == "lsp" else None
    given = labels([1] * 14)
    if write:
        write_lsp(tmp_path, {1: given}, count=1)
    else:
        write_lspet(tmp_path, [given])
    run(name, tmp_path, tmp_path)
    (row,) = rows(tmp_path)
    np.testing.assert_allclose(points_of(row), given[:, :2] - 1, atol=1e-5)
    low, high = given[:, :2].min(axis=0) - 1, given[:, :2].max(axis=0) - 1
    np.testing.assert_allclose(row["box"], [*low, *(high - low + 1)], atol=1e-5)


def test_unlabelled_lspet_joints_at_the_origin_are_no_points(tmp_path: Path) -> None:
    """B1: they are at (0, 0) in the file; neither the points nor the box know of them."""
    given = labels([1] * 14)
    given[3] = 0
    write_lspet(tmp_path, [given])
    run("lspet", tmp_path, tmp_path)
    (row,) = rows(tmp_path)
    assert [i for i, flag in enumerate(row["labelled"]) if not flag] == [3]
    assert (row["x"][3], row["y"][3]) == (0, 0)
    assert row["box"][0] == pytest.approx(np.delete(given, 3, axis=0)[:, 0].min() - 1)


def test_the_first_thousand_pictures_of_lsp_are_for_training(tmp_path: Path) -> None:
    """The others are the test; pictures that are not there are counted, and cost nothing else."""
    write_lsp(tmp_path, {n: labels([0], n) for n in (1, 999, 1000, 1001, 1003)}, count=1003)
    counts = run("lsp", tmp_path, tmp_path)
    splits = {row["source"]: row["split"] for row in rows(tmp_path)}
    assert {n for n, split in splits.items() if split == "test"} == {"im1001.jpg", "im1003.jpg"}
    assert sorted(splits.values()) == ["test", "test", "train", "train", "tune"]
    assert (counts.pictures, counts.left_out) == (5, 998)


def test_unsigned_bytes_do_not_wrap_around() -> None:
    """Some copies are of uint8: 0 - 1 is -1."""
    joints = np.zeros((3, 14), np.uint8)
    assert person("lsp", joints).points.min() == -1


@pytest.mark.parametrize(
    ("shape", "name", "hint"),
    [
        ((14, 3, 5), "lsp", r"\(14, 3, 5\).*looks like lspet; use `posemill import lspet`"),
        ((3, 14, 5), "lspet", r"\(3, 14, 5\).*looks like lsp; use `posemill import lsp`"),
        ((5, 14, 3), "lsp", r"\(5, 14, 3\).*lsp has \(3, 14, N\)"),
        ((7,), "lspet", r"lspet has \(14, 3, N\)"),
    ],
)
def test_a_wrong_shape_is_told(
    shape: tuple[int, ...], name: str, hint: str, tmp_path: Path
) -> None:
    savemat(tmp_path / "joints.mat", {"joints": np.ones(shape)})
    with pytest.raises(UsageError, match=f"joints.mat.*{hint}"):
        run(name, tmp_path, tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a mat file", b"MATLAB 5.0 MAT-file" + bytes(300)])
def test_a_damaged_file_is_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "joints.mat").write_bytes(content)
    with pytest.raises(UsageError, match=r"joints\.mat.*give the folder of the lsp dataset"):
        run("lsp", tmp_path, tmp_path)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"joints\.mat.*give the folder of the lspet dataset"):
        run("lspet", tmp_path, tmp_path)


def test_the_real_labels_of_lsp() -> None:
    """7 % of the joints are flagged: occluded. As "labelled", 93 % of the data would be lost."""
    if not REAL.exists():
        pytest.skip("the fixture is not here")
    joints = loadmat(REAL)["joints"]
    people = [person("lsp", joints[:, :, i]) for i in range(joints.shape[2])]
    assert len(people) == 2000
    assert all(p.labelled.all() for p in people)
    occluded = np.array([p.occluded for p in people])
    assert occluded[:1000].mean() == pytest.approx(0.071, abs=0.001)
    assert occluded[1000:].mean() == pytest.approx(0.075, abs=0.001)
    np.testing.assert_array_equal(people[7].points, joints[:2, :, 7].T.astype(float) - 1)


def test_without_scipy_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is needed for Matlab files only, so that a plain installation does without."""
    write_lspet(tmp_path, [labels([1])])
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(UsageError, match=r"joints\.mat.*pip install 'posemill\[train\]'"):
        run("lspet", tmp_path, tmp_path)


def test_a_damaged_compressed_file_is_told(tmp_path: Path) -> None:
    """Compression's own errors are no traceback."""
    savemat(tmp_path / "joints.mat", {"joints": np.ones((3, 14, 9))}, do_compression=True)
    data = bytearray((tmp_path / "joints.mat").read_bytes())
    data[150:170] = bytes(20)
    (tmp_path / "joints.mat").write_bytes(data)
    with pytest.raises(UsageError, match=r"joints\.mat: not a readable .*give the folder"):
        run("lsp", tmp_path, tmp_path)
