"""Entry point of `ray job submit -- python jobs/train.py …` and of `posemill train`."""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    # Started as a script, from a clone that is not installed: the packages are beside this folder.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jobs.run import run
from pipeline.train import TrainSettings, train


def main(arguments: list[str] | None = None) -> int:
    """Train or continue a run; returns the exit code."""

    def job(settings: TrainSettings) -> None:
        path = train(settings)
        print(f"{path}\nannotate with it: posemill annotate IN OUT --weights {path}")

    return run("posemill train", TrainSettings, job, arguments)


if __name__ == "__main__":
    sys.exit(main())
