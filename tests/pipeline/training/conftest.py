"""A worker's surroundings and a table for it."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
import torch

from tests.pipeline.training.fake_ray import FakeRay, refuse_clusters
from tests.pipeline.training.labelled import row, write_table


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_clusters(monkeypatch)


@pytest.fixture
def fake_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    """Ray's stand-in, for one worker."""
    return FakeRay(tmp_path / "checkpoints").install(monkeypatch)


@pytest.fixture
def samples(tmp_path: Path) -> str:
    """Twelve samples to train on, four to tune with, four that are reported."""
    splits = ["train"] * 12 + ["tune"] * 4 + ["test"] * 4
    rows = [row(i, split) for i, split in enumerate(splits)]
    return write_table(tmp_path / "samples.parquet", rows)
