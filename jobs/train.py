"""Entry point of `ray job submit -- python jobs/train.py …` and of `posemill train`."""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    # Started as a script, from a clone that is not installed: the packages are beside this folder.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jobs.run import DONE, NOTHING_TO_DO, run
from pipeline.progress import Reporter
from pipeline.sample_sheet import write_sheet
from pipeline.storage import StorageOptions
from pipeline.training.run import train
from pipeline.training.settings import TrainSettings


def main(arguments: list[str] | None = None) -> int:
    """Train or continue a run; returns the exit code."""
    return run("posemill train", TrainSettings, job, arguments)


def job(settings: TrainSettings) -> int:
    """Draw the preview, or train."""
    if settings.preview is not None:
        recipe = settings.recipe()
        count = write_sheet(
            settings.samples,
            settings.preview,
            recipe.augmentation,
            settings.network(joints=1),
            recipe.sigma_at(0),
            seed=recipe.seed,
            box_factor=recipe.box_factor,
            options=StorageOptions(settings.s3_endpoint),
        )
        print(f"{settings.preview}: {count} augmented samples and their maps")
        return DONE
    with Reporter() as reporter:
        trained = train(settings, reporter)
    if not trained.new:
        print(f"already trained; nothing to do: {trained.weights}")
        return NOTHING_TO_DO
    print(
        f"{trained.weights}\nannotate with it: posemill annotate IN OUT --weights {trained.weights}"
    )
    return DONE


if __name__ == "__main__":
    sys.exit(main())
