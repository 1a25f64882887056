"""Entry point of `posemill import`."""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    # Started as a script, from a clone that is not installed: the packages are beside this folder.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jobs.run import NOTHING_KEPT, run
from pipeline.importing import ImportSettings, import_samples
from pipeline.picture_files import check_picture_name


def main(arguments: list[str] | None = None) -> int:
    """Write a samples table; returns the exit code."""

    def job(settings: ImportSettings) -> None:
        if settings.preview:
            check_picture_name(settings.preview)  # Before an hour's work, not after it.
        counts = import_samples(settings)
        splits = ", ".join(f"{split} {count:,}" for split, count in sorted(counts.splits.items()))
        print(
            f"{settings.output}: {counts.samples:,} samples ({splits}) of {counts.pictures:,} "
            f"pictures in {counts.skeleton}; left out: {counts.left_out:,} pictures, "
            f"{counts.without_joints + counts.too_small:,} people"
        )
        if settings.preview:
            from pipeline.sample_sheet import write_sheet  # It loads PyTorch.

            count = write_sheet(settings.output, settings.preview, options=settings.storage)
            print(f"{settings.preview}: {count} samples")

    return run("posemill import", ImportSettings, job, arguments, NOTHING_KEPT)


if __name__ == "__main__":
    sys.exit(main())
