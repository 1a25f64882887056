"""Entry point of `ray job submit -- python jobs/annotate.py …` and of `posemill annotate`."""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    # Started as a script, from a clone that is not installed: the packages are beside this folder.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jobs.run import run
from pipeline.annotate import Report, annotate
from pipeline.config import AnnotateSettings
from pipeline.errors import PosemillError
from pipeline.progress import Reporter
from pipeline.summary import Summary


def main(arguments: list[str] | None = None) -> int:
    """Run the job; returns the exit code."""

    def job(settings: AnnotateSettings) -> None:
        with Reporter() as reporter:
            report = annotate(settings, reporter)
        if not settings.dry_run:
            print("\n".join(summary(report, settings)))
            refuse_too_many_failures(report.total, settings)

    return run("posemill annotate", AnnotateSettings, job, arguments)


def refuse_too_many_failures(total: Summary, settings: AnnotateSettings) -> None:
    """A finished table of which too much failed is no success; raises PosemillError."""
    if total.failed_units > settings.max_failures * total.units:
        code, _ = total.failed.most_common(1)[0]
        raise PosemillError(
            f"all is accounted for, but {total.failed_units} of {total.units} units failed (most: "
            f"{code}), over --max-failures {settings.max_failures:g}"
        )


def summary(report: Report, settings: AnnotateSettings) -> list[str]:
    """The closing lines."""
    now, total = report.now, report.total
    lines = ["nothing left to do"]
    if now.shards:
        rate = now.frames / report.seconds if report.seconds else 0.0
        lines = [
            f"annotated {now.frames:,} pictures and frames in {report.seconds:.1f} s "
            f"({rate:.1f} per second)"
        ]
    lines.append(
        f"table: {total.rows:,} rows, {total.people:,} people, {total.units:,} units, "
        f"{total.failed_units:,} failed"
    )
    lines += [f"  {code}: {count:,}" for code, count in total.failed.most_common()]
    lines.append(f"{settings.output.rstrip('/')}/annotations")
    return lines


if __name__ == "__main__":
    sys.exit(main())
