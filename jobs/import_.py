"""Entry point of `posemill import`."""

from __future__ import annotations

import sys

from jobs.run import run
from pipeline.importing import ImportSettings, import_samples


def main(arguments: list[str] | None = None) -> int:
    """Write a samples table; returns the exit code."""

    def job(settings: ImportSettings) -> None:
        counts = import_samples(settings)
        splits = ", ".join(f"{split} {count:,}" for split, count in sorted(counts.splits.items()))
        print(
            f"{settings.output}: {counts.samples:,} samples ({splits}) of {counts.pictures:,} "
            f"pictures in {counts.skeleton}; {counts.left_out:,} pictures left out"
        )
        if settings.preview:
            from pipeline.sample_sheet import write_sheet

            count = write_sheet(samples=settings.output, to=settings.preview)
            print(f"{settings.preview}: {count} samples")

    return run("posemill import", ImportSettings, job, arguments)


if __name__ == "__main__":
    sys.exit(main())
