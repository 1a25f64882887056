"""Entry point of `posemill evaluate`."""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jobs.run import NOTHING_KEPT, run
from pipeline.evaluate import EvaluateSettings, evaluate, report


def main(arguments: list[str] | None = None) -> int:
    """Print the figures; returns the exit code."""

    def job(settings: EvaluateSettings) -> None:
        print(report(evaluate(settings)))

    return run("posemill evaluate", EvaluateSettings, job, arguments, NOTHING_KEPT)


if __name__ == "__main__":
    sys.exit(main())
