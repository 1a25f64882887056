"""Entry point of `posemill belief`."""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jobs.run import NOTHING_KEPT, run
from pipeline.belief import BeliefSettings, draw_belief


def main(arguments: list[str] | None = None) -> int:
    """Draw the figure; returns the exit code."""

    def job(settings: BeliefSettings) -> None:
        joints = draw_belief(settings)
        print(f"{settings.to}: {', '.join(joints)}")

    words = sys.argv[1:] if arguments is None else arguments
    if words and not words[0].startswith("-"):
        words = ["--picture", *words]
    return run("posemill belief", BeliefSettings, job, words, NOTHING_KEPT)


if __name__ == "__main__":
    sys.exit(main())
