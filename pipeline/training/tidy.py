"""What a killed run may have left in disorder, put right before it goes on."""

from __future__ import annotations

import json
import pickle
import re

import ray.train

from pipeline.errors import PosemillError
from pipeline.progress import Reporter
from pipeline.storage import STORAGE_ERRORS, Output
from pipeline.training.loop import read_state

_SNAPSHOT = "checkpoint_manager_snapshot.json"
_BROKEN = (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError)
"""What reading half of a checkpoint raises."""


def tidy(output: Output, reporter: Reporter) -> ray.train.Checkpoint | None:
    """Remove checkpoints that were not finished; a checkpoint to go on from if Ray forgot it.

    Ray Train writes its list of checkpoints in place; a kill at that moment damages it. Then the
    newest checkpoint that can be read counts. Call with the run's lock held.
    """
    listed = output.read(_SNAPSHOT)
    names = _checkpoints(output)
    if listed is not None and not _is_json(listed):
        for name in reversed(names):
            checkpoint = ray.train.Checkpoint(output.path(name), output.arrow_filesystem())
            if _is_whole(checkpoint):
                reporter.say(f"the list of checkpoints is damaged; going on from {name}")
                output.remove(_SNAPSHOT)
                return checkpoint
        output.remove(_SNAPSHOT)
        return None
    for name in names:
        if listed is None or name.encode() not in listed:
            _remove(output, name)
    return None


def _checkpoints(output: Output) -> list[str]:
    """Names of the folders `checkpoint_*`, oldest first."""
    try:
        found = output.fs.glob(f"{output.root}/checkpoint_*")
    except STORAGE_ERRORS as error:
        raise PosemillError(f"cannot list {output.uri}: {error}") from error
    names = (str(path).rstrip("/").rpartition("/")[2] for path in found)
    return sorted(name for name in names if re.fullmatch(r"checkpoint_[0-9_.-]+", name))


def _remove(output: Output, name: str) -> None:
    try:
        output.fs.rm(output.path(name), recursive=True)
    except STORAGE_ERRORS as error:
        raise PosemillError(f"cannot remove {output.uri}/{name}: {error}") from error


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def _is_whole(checkpoint: ray.train.Checkpoint) -> bool:
    try:
        read_state(checkpoint)
    except _BROKEN:
        return False
    return True
