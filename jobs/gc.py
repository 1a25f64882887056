"""Entry point of `posemill gc`."""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    # Started as a script, from a clone that is not installed: the packages are beside this folder.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jobs.run import NOTHING_KEPT, run
from pipeline.progress import Reporter
from pipeline.upkeep.gc import gc
from pipeline.upkeep.settings import GcSettings


def main(arguments: list[str] | None = None) -> int:
    """Print what was removed; returns the exit code."""

    def job(settings: GcSettings) -> None:
        with Reporter() as reporter:
            found = gc(settings, reporter.say)
        verb = "would be removed" if settings.dry_run else "removed"
        print("\n".join(f"{verb}: {name}" for name in found.removed) or "nothing to remove")
        for name in found.left_alone:
            print(f"left alone, as no plan knows it: {name}")

    return run("posemill gc", GcSettings, job, arguments, NOTHING_KEPT)


if __name__ == "__main__":
    sys.exit(main())
