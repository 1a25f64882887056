"""Evaluation of weights on a samples table, end to end without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cpm_core.config import preset
from cpm_core.estimator import load
from cpm_core.info import WeightsInfo
from cpm_core.metrics import pck_lspet
from cpm_core.model import Cpm
from cpm_core.skeleton import Skeleton, load_skeleton
from cpm_core.weights import save_weights
from pipeline import schema
from pipeline.errors import UsageError
from pipeline.evaluate import EvaluateSettings, evaluate

LSP = load_skeleton("lsp14")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights of two stages for 64-pixel crops."""
    torch.manual_seed(0)
    config = preset("cpm-lite", input_size=64, stages=2)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(path, Cpm(config).eval(), WeightsInfo("tiny", config, LSP))
    return str(path)


def picture(seed: int) -> np.ndarray:
    """RGB noise (96, 80, 3)."""
    return np.random.default_rng(seed).integers(0, 255, (96, 80, 3), np.uint8)


def sample(
    number: int, skeleton: Skeleton = LSP, encoded: bool = True, **values: Any
) -> dict[str, Any]:
    """A row of a samples table: one person with random joints in a picture of noise."""
    rng = np.random.default_rng(1000 + number)
    data = cv2.imencode(".png", picture(number)[..., ::-1])[1].tobytes() if encoded else None
    row = {
        "sample_id": number,
        "source": f"im{number}.png",
        "split": "val",
        "image": data,
        "box": [10, 10, 60, 70],
        "x": rng.uniform(10, 70, len(skeleton)).tolist(),
        "y": rng.uniform(10, 80, len(skeleton)).tolist(),
        "labelled": [True] * len(skeleton),
    }
    return row | values


def write_samples(
    path: Path,
    rows: list[dict[str, Any]],
    skeleton: Skeleton = LSP,
    without: tuple[str, ...] = (),
) -> str:
    """A samples table, or an older one that lacks some columns."""
    table_schema = schema.samples_table(len(skeleton))
    for name in without:
        if name in table_schema.names:
            table_schema = table_schema.remove(table_schema.names.index(name))
    table_schema = table_schema.with_metadata(schema.table_metadata({}, skeleton))
    pq.write_table(pa.Table.from_pylist(rows, schema=table_schema), path)
    return str(path)


def run(**values: Any) -> dict[str, Any]:
    """The figures."""
    return evaluate(EvaluateSettings.build(values))


def total(figures: dict[str, Any], metric: str = "pck_lspet", threshold: str = "0.2") -> float:
    """Over all joints."""
    value: float = figures["metrics"][metric]["all"]["at"][threshold]
    return value


def test_weights_as_the_metric_on_their_estimates(tmp_path: Path, weights: str) -> None:
    """The figures are those of the estimator's own stages."""
    rows = [sample(i) for i in range(5)]
    samples = write_samples(tmp_path / "s.parquet", rows)
    figures = run(samples=samples, weights=weights, threshold=0.6)
    estimator = load(weights)
    box = np.array([[10, 10, 60, 70]])
    points = np.stack([estimator.estimate_stages(picture(i), box)[:, 0, :, :2] for i in range(5)])
    labels = np.array([np.stack([row["x"], row["y"]], axis=-1) for row in rows], np.float32)
    every = np.ones((5, 14), bool)
    measured = figures["metrics"]["pck_lspet"]
    expected = [pck_lspet(p, labels, every, LSP, 0.6).total for p in points.swapaxes(0, 1)]
    stages = [stage["all"]["at"]["0.6"] for stage in measured["by_stage"]]
    assert stages == pytest.approx(expected)
    assert total(figures, threshold="0.6") == stages[-1]
    assert 0 < stages[-1] < 100
    assert (figures["people"], measured["joints_counted"]) == (5, 70)
    assert list(figures["metrics"]) == ["pck_lspet"]


@pytest.mark.parametrize(
    ("value", "metric"),
    [(None, ["pck_lspet"]), (12.0, ["pck_lspet", "pckh"])],
    ids=["no head sizes", "head sizes"],
)
def test_default_metrics_of_mpii(
    tmp_path: Path, weights: str, value: float | None, metric: list[str]
) -> None:
    """PCKh where the head boxes are known; weights of another skeleton are matched by name."""
    mpii = load_skeleton("mpii16")
    rows = [sample(i, mpii, head_size=value) for i in range(2)]
    figures = run(samples=write_samples(tmp_path / "s.parquet", rows, mpii), weights=weights)
    assert list(figures["metrics"]) == metric
    assert "left out: pelvis, thorax" in figures["notes"][0]
    assert figures["metrics"]["pck_lspet"]["by_joint"]["pelvis"]["at"]["0.2"] is None
    assert figures["metrics"]["pck_lspet"]["joints_counted"] == 28


def test_tables_without_the_newer_columns(tmp_path: Path, weights: str) -> None:
    """Area, head size and the rest may be absent; OKS then takes 0.53 of the box."""
    new = write_samples(tmp_path / "new.parquet", [sample(0, area=0.53 * 60 * 70), sample(1)])
    absent = ("area", "head_size", "group", "others", "occluded")
    old = write_samples(tmp_path / "old.parquet", [sample(0), sample(1)], without=absent)
    metrics = [
        run(samples=table, weights=weights, metric=("oks", "pck_lspet"))["metrics"]
        for table in (new, old)
    ]
    assert metrics[0] == metrics[1]
    assert metrics[0]["oks"]["labelled"] == 2


def test_only_one_split(tmp_path: Path, weights: str) -> None:
    """The others do not count."""
    samples = write_samples(tmp_path / "s.parquet", [sample(0), sample(1, split="tune")])
    assert run(samples=samples, weights=weights, split="tune")["people"] == 1
    with pytest.raises(UsageError, match="no samples in split 'test'"):
        run(samples=samples, weights=weights, split="test")


def test_an_own_skeleton_without_reference_pairs(tmp_path: Path, weights: str) -> None:
    """It has a PCK, too: in units of the box around its labelled joints."""
    own = Skeleton("own", ("neck", "tail"), ((0, 1),), (), (0.1, 0.1), ("#ff0000",))
    samples = write_samples(tmp_path / "s.parquet", [sample(0, own)], own)
    measured = run(samples=samples, weights=weights)["metrics"]["pck_lspet"]
    assert measured["unit"] == "longer side of the box around the labelled joints"
    assert measured["joints_counted"] == 1
    assert measured["limb_joints"] is None


@pytest.mark.parametrize(
    ("values", "metric", "message"),
    [
        ({"labelled": [False] * 14}, "pck_lspet", "nobody .* right_shoulder to left_hip"),
        ({}, "pckh", "nobody .* head size"),
        ({"labelled": [True] * 13 + [False]}, "pck_lsp", "1 of 1 people .* use --metric pck_lspet"),
    ],
)
def test_metrics_that_lack_their_input(
    tmp_path: Path, weights: str, values: dict[str, Any], metric: str, message: str
) -> None:
    """The file is named, and what to do."""
    samples = write_samples(tmp_path / "s.parquet", [sample(0, **values)])
    with pytest.raises(UsageError, match=message) as refused:
        run(samples=samples, weights=weights, metric=(metric,))
    assert samples in str(refused.value)


def test_no_joint_in_common(tmp_path: Path, weights: str) -> None:
    """Both skeletons are named."""
    own = Skeleton("own", ("nose", "tail"), ((0, 1),), (), (0.1, 0.1), ("#ff0000",))
    samples = write_samples(tmp_path / "s.parquet", [sample(0, own)], own)
    with pytest.raises(UsageError, match=r"lsp14 .* own: no joint"):
        run(samples=samples, weights=weights)


def test_pictures_that_cannot_be_read_are_left_out(tmp_path: Path, weights: str) -> None:
    """The figures are those of the others; a note counts the lost ones and names a few."""
    whole = write_samples(tmp_path / "whole.parquet", [sample(0), sample(9)])
    lost = [sample(i, image=b"no picture") for i in range(1, 6)]
    rows = [sample(0), *lost, sample(7, encoded=False, uri=str(tmp_path / "gone.png")), sample(9)]
    figures = run(samples=write_samples(tmp_path / "s.parquet", rows), weights=weights)
    assert figures["metrics"] == run(samples=whole, weights=weights)["metrics"]
    (note,) = figures["notes"]
    assert note.startswith("6 people left out: sample im1.png: ")
    assert "im3.png" in note
    assert "im4.png" not in note
    assert note.endswith("; …")


def test_nothing_that_can_be_read(tmp_path: Path, weights: str) -> None:
    """An error with the first reason."""
    samples = write_samples(tmp_path / "s.parquet", [sample(i, image=b"x") for i in range(2)])
    with pytest.raises(UsageError, match=r"none of 2 samples can be used.*im0\.png"):
        run(samples=samples, weights=weights)


def test_progress_is_logged(
    tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Count and rate, every so many seconds."""
    monkeypatch.setattr("pipeline.evaluation.weights._SECONDS", 0.0)
    caplog.set_level("INFO", "posemill")
    run(samples=write_samples(tmp_path / "s.parquet", [sample(0), sample(1)]), weights=weights)
    assert "evaluate: 2 people, " in caplog.text
    monkeypatch.setattr("pipeline.evaluation.weights._SECONDS", 1e9)
    caplog.clear()
    run(samples=write_samples(tmp_path / "s.parquet", [sample(0), sample(1)]), weights=weights)
    assert "people, " not in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(tmp_path: Path, weights: str) -> None:
    """The message says what to do."""
    samples = write_samples(tmp_path / "s.parquet", [sample(0)])
    with pytest.raises(UsageError, match="--device cuda: there is no GPU"):
        run(samples=samples, weights=weights, device="cuda")


def test_unusable_options_of_the_estimator(tmp_path: Path, weights: str) -> None:
    """They are a wrong setting, too."""
    samples = write_samples(tmp_path / "s.parquet", [sample(0)])
    with pytest.raises(UsageError, match="scale"):
        run(samples=samples, weights=weights, scales=(-1.0,))
