"""Entry point of `posemill compact`."""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    # Started as a script, from a clone that is not installed: the packages are beside this folder.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jobs.run import run
from pipeline.progress import Reporter
from pipeline.upkeep.compact import compact
from pipeline.upkeep.settings import CompactSettings

_UNFINISHED = "stopped; remove what stands at --to and run the same command again"


def main(arguments: list[str] | None = None) -> int:
    """Write the compact table; returns the exit code."""

    def job(settings: CompactSettings) -> None:
        with Reporter() as reporter:
            rows = compact(settings, reporter.steps("copied", "rows"))
        print(f"{settings.to.rstrip('/')}/annotations: {rows:,} rows")

    return run("posemill compact", CompactSettings, job, arguments, _UNFINISHED)


if __name__ == "__main__":
    sys.exit(main())
