"""Evaluation of MATLAB files, as the LSP data sets and the CPM release have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.evaluate import main
from pipeline.errors import UsageError
from pipeline.evaluate import EvaluateSettings, evaluate, report
from tests.pipeline.test_evaluate_weights import total

SHARED = Path(__file__).parents[2].parent / "shared"
io = pytest.importorskip("scipy.io")


def run(**values: Any) -> dict[str, Any]:
    """The figures."""
    return evaluate(EvaluateSettings.build(values))


def lsp_labels(count: int = 4) -> np.ndarray:
    """(3, 14, count): joints 10 px apart on a line, torso 70 px; row 3 flags occluded joints."""
    joints = np.zeros((3, 14, count))
    joints[0] = 100 + 10 * np.arange(14)[:, None]
    joints[1], joints[2, 6] = 50, 1
    return joints


def save(path: Path, **arrays: np.ndarray) -> str:
    """A .mat file."""
    io.savemat(path, arrays)
    return str(path)


def prediction(joints: np.ndarray, wrong: int = 0) -> np.ndarray:
    """(14, 2, N) as the release stores it, bytes, with the wrists of `wrong` people off."""
    points = joints[:2].transpose(1, 0, 2).copy()
    points[6, 1, :wrong] -= 40
    return points.astype(np.uint8)


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("prediction_all", lambda p: p),
        ("mine", lambda p: p.astype(np.float64)),
        ("mine", lambda p: p.transpose(1, 0, 2)),
        ("mine", lambda p: np.concatenate([p, p[:, :1]], axis=1)),
    ],
    ids=["as released", "any name", "coordinates first", "with scores"],
)
def test_lsp_files(tmp_path: Path, key: str, change: Any) -> None:
    """Occluded joints count; bytes do not wrap around."""
    labels = lsp_labels()
    figures = run(
        predictions=save(tmp_path / "p.mat", **{key: change(prediction(labels, wrong=1))}),
        labels=save(tmp_path / "l.mat", joints=labels),
    )
    assert list(figures["metrics"]) == ["pck_lsp"]
    assert total(figures, "pck_lsp") == pytest.approx(100 * 55 / 56)
    assert figures["metrics"]["pck_lsp"]["by_joint"]["right_wrist"]["at"]["0.2"] == 75


def test_lspet_files(tmp_path: Path) -> None:
    """The third column says what is labelled; a joint that is not does not count."""
    joints = lsp_labels().transpose(1, 0, 2)
    joints[:, 2] = 1
    joints[6, 2, 0] = 0
    figures = run(
        predictions=save(tmp_path / "p.mat", prediction_all=prediction(lsp_labels(), wrong=1)),
        labels=save(tmp_path / "l.mat", joints=joints),
    )
    assert list(figures["metrics"]) == ["pck_lspet"]
    assert total(figures) == 100
    assert figures["metrics"]["pck_lspet"]["joints_counted"] == 55


def test_the_test_half_of_lsp(tmp_path: Path) -> None:
    """1000 predictions go with the second half of 2000 labels, and the report says so."""
    labels = lsp_labels(2000)
    labels[:2, :, :1000] = 0
    figures = run(
        predictions=save(tmp_path / "p.mat", prediction_all=prediction(labels[:, :, 1000:])),
        labels=save(tmp_path / "l.mat", joints=labels),
    )
    assert total(figures, "pck_lsp") == 100
    assert "1001 to 2000" in report(figures)


def test_one_picture(tmp_path: Path) -> None:
    """MATLAB drops the last axis of a single page."""
    labels = lsp_labels(1)[..., 0]
    figures = run(
        predictions=save(tmp_path / "p.mat", prediction_all=labels[:2].T),
        labels=save(tmp_path / "l.mat", joints=labels),
    )
    assert total(figures, "pck_lsp") == 100


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ({"p": np.ones((14, 2, 3))}, {"joints": lsp_labels()}, "3 people and .* 4"),
        ({"p": np.ones((16, 2, 4))}, {"joints": lsp_labels()}, r"\(16, 2, 4\); expected \(14, 2"),
        ({"p": np.ones((14, 2, 4))}, {"joints": np.ones((4, 4, 4))}, "LSPET"),
        ({"p": np.ones((14, 2, 4)), "q": np.ones((1, 1, 2))}, {"joints": lsp_labels()}, "p, q"),
        ({"p": np.array([["text"]], object)}, {"joints": lsp_labels()}, "single one"),
    ],
    ids=["counts", "joints", "labels", "two arrays", "no numbers"],
)
def test_files_that_do_not_fit(
    tmp_path: Path, predictions: dict[str, Any], labels: dict[str, Any], message: str
) -> None:
    """The message names the file and what was expected."""
    files = {
        "predictions": save(tmp_path / "p.mat", **predictions),
        "labels": save(tmp_path / "l.mat", **labels),
    }
    with pytest.raises(UsageError, match=message):
        run(**files)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, r"cannot read .*p\.mat: there is no such file"),
        (b"", r"p\.mat: not a readable"),
        (b"not a .mat file" * 50, r"p\.mat: not a readable"),
    ],
    ids=["none", "empty", "text"],
)
def test_unreadable_files(tmp_path: Path, data: bytes | None, said: str) -> None:
    """One line with the name."""
    path = tmp_path / "p.mat"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UsageError, match=said):
        run(predictions=str(path), labels=save(tmp_path / "l.mat", joints=lsp_labels()))


@pytest.mark.parametrize("metric", ["oks", "pckh"])
def test_what_a_mat_file_cannot_give(tmp_path: Path, metric: str) -> None:
    """There are neither scores nor heads in it."""
    labels = lsp_labels()
    files = {
        "predictions": save(tmp_path / "p.mat", prediction_all=prediction(labels)),
        "labels": save(tmp_path / "l.mat", joints=labels),
    }
    with pytest.raises(UsageError, match="use --metric"):
        run(**files, metric=(metric,))


@pytest.mark.parametrize(
    ("name", "rows", "auc"),
    [
        ("cpm_lsp", "96.85 87.10 80.40 75.10 86.50 83.15 81.15 84.32", "59.29"),
        ("cpm_mpii_lsp", "97.80 92.50 87.05 83.90 91.50 90.85 89.90 90.50", "65.44"),
    ],
)
def test_the_papers_table(
    name: str, rows: str, auc: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the authors' own predictions: 84.32 and 90.50."""
    folder = SHARED / "fixtures" / "lsp_pck"
    if not folder.exists():
        pytest.skip(f"{folder} is not here")
    files = [folder / f"{name}_6s_predictions.mat", folder / "lsp_joints_pc.mat"]
    assert main(["--predictions", str(files[0]), "--labels", str(files[1])]) == 0
    table = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line}
    names = ("Head", "Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle", "Total")
    assert [table[row][1] for row in names] == rows.split()
    assert table["Total"][-1] == auc


def test_a_damaged_compressed_file(tmp_path: Path) -> None:
    """Compression's own errors are no traceback."""
    path = tmp_path / "p.mat"
    io.savemat(path, {"prediction_all": prediction(lsp_labels())}, do_compression=True)
    data = bytearray(path.read_bytes())
    data[150:170] = bytes(20)
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"p\.mat: not a readable"):
        run(predictions=str(path), labels=save(tmp_path / "l.mat", joints=lsp_labels()))
