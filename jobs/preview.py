"""Entry point of `posemill preview`."""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    # Started as a script, from a clone that is not installed: the packages are beside this folder.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jobs.run import NOTHING_KEPT, run
from pipeline.preview import PreviewSettings, preview


def main(arguments: list[str] | None = None) -> int:
    """Draw the sheet; returns the exit code."""

    def job(settings: PreviewSettings) -> None:
        drawn = preview(settings)
        unread = f", {drawn.unread} of them could not be read" if drawn.unread else ""
        print(f"{settings.to}: {drawn.pictures} pictures{unread}")

    return run("posemill preview", PreviewSettings, job, arguments, NOTHING_KEPT)


if __name__ == "__main__":
    sys.exit(main())
