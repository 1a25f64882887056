"""Entry point of `posemill status`."""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    # Started as a script, from a clone that is not installed: the packages are beside this folder.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jobs.run import NOTHING_KEPT, run
from pipeline.progress import duration
from pipeline.upkeep.settings import StatusSettings
from pipeline.upkeep.status import Status, status


def main(arguments: list[str] | None = None) -> int:
    """Print how far it is; returns the exit code."""

    def job(settings: StatusSettings) -> None:
        print("\n".join(lines(status(settings))))

    return run("posemill status", StatusSettings, job, arguments, NOTHING_KEPT)


def lines(found: Status) -> list[str]:
    """What to print."""
    done = found.done
    share = 100 * done.units / found.units if found.units else 100.0
    text = [
        f"{done.units:,} of {found.units:,} units done ({share:.1f} %), {found.left:,} left",
        f"{done.rows:,} rows, {done.frames:,} frames, {done.people:,} people",
        f"{done.failed_units:,} units failed",
        *(f"  {code}: {count:,}" for code, count in found.failed.most_common()),
    ]
    for holder in found.holders:
        state = "at work" if holder["alive"] else "gone, and its lock is left"
        text.append(
            f"{state}: process {holder['pid']} of {holder['user']} on {holder['host']}, "
            f"since {holder['started']}"
        )
    if found.rate:
        left = duration(found.left / found.rate)
        text.append(f"{found.rate:.1f} units per second, {left} left")
    if not any(holder["alive"] for holder in found.holders):
        text.append("complete" if found.is_complete else "not complete, and nobody is at work")
    if found.runs:
        last = found.runs[-1]
        text.append(f"{len(found.runs)} runs came to their end, the last one {last['finished']}")
    return text


if __name__ == "__main__":
    sys.exit(main())
