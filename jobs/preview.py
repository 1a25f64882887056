"""Entry point of `posemill preview`."""

from __future__ import annotations

import sys

from jobs.run import run
from pipeline.preview import PreviewSettings, preview


def main(arguments: list[str] | None = None) -> int:
    """Draw the sheet; returns the exit code."""

    def job(settings: PreviewSettings) -> None:
        count = preview(settings)
        print(f"{settings.to}: {count} pictures")

    return run("posemill preview", PreviewSettings, job, arguments)


if __name__ == "__main__":
    sys.exit(main())
