"""What a killed run leaves in disorder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from pipeline.progress import Reporter
from pipeline.storage import Output, StorageOptions
from pipeline.training.tidy import tidy

SNAPSHOT = "checkpoint_manager_snapshot.json"
OLD, NEW, HALF = (f"checkpoint_2026-11-22_18-44-4{i}.652649" for i in (1, 2, 3))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two whole checkpoints, and one of which the state was cut short."""
    for name in (OLD, NEW, HALF):
        (tmp_path / name).mkdir()
        torch.save({"step_number": 4, "best": None}, tmp_path / name / "state.pt")
    whole = (tmp_path / HALF / "state.pt").read_bytes()
    (tmp_path / HALF / "state.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "checkpoint_notes.txt").write_text("a user's own")
    return tmp_path


def folders(run: Path) -> set[str]:
    return {name for name in os.listdir(run) if os.path.isdir(run / name)}


def test_unfinished_checkpoints_are_removed(run: Path) -> None:
    """Those that Ray Train's list does not have; nothing else."""
    listed = {"latest_checkpoint_result": {"checkpoint_dir_name": NEW}, "others": [OLD]}
    (run / SNAPSHOT).write_text(json.dumps(listed))
    with Reporter() as reporter:
        assert tidy(Output(str(run), StorageOptions()), reporter) is None
    assert folders(run) == {OLD, NEW}
    assert (run / "checkpoint_notes.txt").exists()


def test_a_damaged_list_is_no_end(run: Path) -> None:
    """The newest checkpoint that can be read is gone on from."""
    (run / SNAPSHOT).write_text('{"checkpoint_results": [')
    with Reporter() as reporter:
        checkpoint = tidy(Output(str(run), StorageOptions()), reporter)
    assert checkpoint is not None
    assert checkpoint.path.endswith(NEW)
    assert not (run / SNAPSHOT).exists()
    assert folders(run) == {OLD, NEW, HALF}


def test_a_new_run(tmp_path: Path) -> None:
    """There is nothing to put right."""
    with Reporter() as reporter:
        assert tidy(Output(str(tmp_path / "run"), StorageOptions()), reporter) is None
