"""Several samples tables as one, with some of them more often than once.

    python -m benchmarks.mix_samples OUT.parquet clean.parquet everyday.parquet:6 --least-joints 4

A table of a few hundred samples would be lost beside one of thousands: `:6` takes each of its
samples for training six times, every time cropped otherwise. Only the first table's other splits
are kept. Samples for training with fewer labelled joints than `--least-joints` are left out. That
no picture is for training in one table and for tuning in another is yours to see to.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.importing.table import SamplesWriter
from pipeline.samples import SampleTable, iter_rows


def main() -> None:
    """Read all in turn, write one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("tables", nargs="+", metavar="TABLE[:TIMES]")
    parser.add_argument("--least-joints", type=int, default=1)
    args = parser.parse_args()
    mix(args.output, args.tables, args.least_joints)


def mix(output: Path, tables: list[str], least_joints: int) -> None:
    """Write the table and say what is in it. Exits for tables of different skeletons."""
    skeleton = SampleTable(_name_and_times(tables[0])[0]).skeleton
    with SamplesWriter(output, skeleton) as writer:
        for place, given in enumerate(tables):
            name, times = _name_and_times(given)
            table = SampleTable(name)
            if table.skeleton.keypoints != skeleton.keypoints:
                raise SystemExit(f"{name} has other joints than {tables[0]}; import it with theirs")
            before, left_out = writer.count, 0
            for row in iter_rows(table):
                del row["sample_id"]
                if row["split"] != "train":
                    count = 1 if place == 0 else 0
                else:
                    count = times if sum(row["labelled"]) >= least_joints else 0
                left_out += count == 0
                for _ in range(count):
                    writer.add(dict(row))
            print(f"{name}: {writer.count - before:,} of the mix; {left_out:,} samples left out")
        writer.finish()
    print(f"{output}: {writer.count:,} samples")


def _name_and_times(given: str) -> tuple[str, int]:
    name, _, times = given.rpartition(":")
    return (name, int(times)) if name and times.isdecimal() and int(times) else (given, 1)


if __name__ == "__main__":
    main()
