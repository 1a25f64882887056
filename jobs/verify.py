"""Entry point of `posemill verify`."""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    # Started as a script, from a clone that is not installed: the packages are beside this folder.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jobs.run import DONE, FAILED, NOTHING_KEPT, run
from pipeline.progress import Reporter
from pipeline.upkeep.settings import VerifySettings
from pipeline.upkeep.verify import Findings, verify


def main(arguments: list[str] | None = None) -> int:
    """Print what is wrong; returns the exit code: 0 if nothing is."""

    def job(settings: VerifySettings) -> int:
        with Reporter() as reporter:
            found = verify(settings, reporter.steps("verified", "shards"))
        print("\n".join(lines(found)))
        return DONE if found.is_clean else FAILED

    return run("posemill verify", VerifySettings, job, arguments, NOTHING_KEPT)


def lines(found: Findings) -> list[str]:
    """What to print."""
    text = [f"{found.units:,} units, {found.rows:,} rows, {found.failed_units:,} units failed"]
    for kind, count in found.wrong.most_common():
        text.append(f"{kind}: {count:,}")
        text += [f"  {example}" for example in found.examples[kind]]
    return [*text, "clean" if found.is_clean else "not clean"]


if __name__ == "__main__":
    sys.exit(main())
