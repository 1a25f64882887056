"""Removes what stopped and killed runs have left behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline import manifest
from pipeline.local_files import is_temporary
from pipeline.lock import Lock
from pipeline.manifest import Manifest
from pipeline.storage import Output
from pipeline.upkeep.settings import GcSettings
from pipeline.upkeep.verify import leftovers


@dataclass
class Rubbish:
    """Files that were removed (or would be), and files that are left alone: nobody's, or parts."""

    removed: list[str] = field(default_factory=list)
    left_alone: list[str] = field(default_factory=list)


def gc(settings: GcSettings, on_wait: Callable[[str], None]) -> Rubbish:
    """Remove files that were never whole, and plans that were never completed.

    Parts are never removed, nor is anything of a generation that was completed. Takes the lock of
    the whole output, so that nothing of a running job is removed. Raises LockedError where a run is
    at work, UsageError where nothing is planned.
    """
    output, plan = settings.planned()
    found = Rubbish()
    with Lock(output, (0, 1), on_wait) as lock:
        for name in leftovers(output, plan, set()):
            lock.check()
            if not is_temporary(name) and not _is_unfinished_plan(output, plan, name):
                found.left_alone.append(name)
                continue
            found.removed.append(name)
            if not settings.dry_run:
                output.remove(name)
    return found


def _is_unfinished_plan(output: Output, plan: Manifest, name: str) -> bool:
    """Whether a file is one that a generation's planner wrote and that no plan came to name."""
    folder, _, file = name.rpartition("/")
    if not folder.startswith(f"{manifest.FOLDER}/gen-") or not file.endswith(".parquet"):
        return False
    is_complete = output.read(f"{folder}/{manifest.COMPLETE}") is not None
    return not is_complete or folder.rpartition("/")[2] in plan.folders
