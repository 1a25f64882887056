"""Entry point of `posemill import`."""

from __future__ import annotations

import sys
from pathlib import Path

from cpm_core.errors import CpmError
from cpm_core.skeleton import load_skeleton
from jobs.run import run
from pipeline.errors import UsageError
from pipeline.importing import ImportSettings, import_json


def main(arguments: list[str] | None = None) -> int:
    """Write a samples table; returns the exit code."""

    def job(settings: ImportSettings) -> None:
        try:
            skeleton = load_skeleton(settings.skeleton)
        except CpmError as error:
            raise UsageError(str(error)) from error
        output = Path(settings.output)
        count = import_json(Path(settings.input), output, skeleton, settings.tune_share)
        print(f"{output}: {count:,} samples")

    return run("posemill import", ImportSettings, job, arguments)


if __name__ == "__main__":
    sys.exit(main())
