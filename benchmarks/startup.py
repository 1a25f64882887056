"""From the command to the first rows: `posemill annotate` on a few pictures, and once more.

    python -m benchmarks.startup [--pictures 300] [--rounds 3] [--trees . ../before]

People are found by person-net, all by itself. *First* is the time until the first part is there,
*all* until the command is back, *again* the same command when nothing is left to do. Memory, by
role, is of a run of its own, since to look at it costs time. `--trees` are checkouts to compare, in
turn. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.processes import Watch
from benchmarks.throughput import SHARED

_LOOK_EVERY_S = 0.02


def main() -> None:
    """All trees in turn, then a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trees", type=Path, nargs="+", default=[Path()])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="posemill-startup-") as name:
        folder = Path(name)
        listed = sorted((SHARED / "bulk_unlabelled/people").glob("*.jpg"))[: options.pictures]
        if len(listed) < options.pictures:
            sys.exit(f"{SHARED} has {len(listed)} pictures; {options.pictures} are asked for")
        (folder / "list.txt").write_text("".join(f"{path}\n" for path in listed))
        memory = {tree: watched(tree, folder) for tree in options.trees}
        runs: dict[Path, list[list[float]]] = {tree: [] for tree in options.trees}
        for _ in range(options.rounds):
            for tree in options.trees:
                runs[tree].append(timed(tree, folder))
    print("| | first, s | all, s | again, s | peak MiB |\n|---|---:|---:|---:|---|")
    for tree, figures in runs.items():
        medians = [f"{statistics.median(column):.1f}" for column in zip(*figures, strict=True)]
        print(f"| {tree} | {' | '.join(medians)} | {memory[tree]} |")


def start(tree: Path, folder: Path, output: str) -> subprocess.Popen[bytes]:
    """The command, from the sources of a tree."""
    command = [sys.executable, "-m", "jobs.cli", "annotate"]
    command += [str(folder / "list.txt"), str(folder / output)]
    environment = os.environ | {"PYTHONPATH": str(tree.resolve())}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, cwd=tree, env=environment, stdout=log, stderr=log)


def watched(tree: Path, folder: Path) -> str:
    """Memory of a run: all, and the largest of each role."""
    with tempfile.TemporaryDirectory(dir=folder) as output:
        process = start(tree, folder, output)
        with Watch(process, memory=True) as watch:
            pass
        _check(process, folder)
    roles = ", ".join(f"{role} {mib:.0f}" for role, mib in sorted(watch.peaks.items()))
    return f"{watch.peak_mib:.0f}: {roles}"


def timed(tree: Path, folder: Path) -> list[float]:
    """Seconds to the first part, to the end, and of the same once more."""
    with tempfile.TemporaryDirectory(dir=folder) as output:
        began = time.monotonic()
        process = start(tree, folder, output)
        first = None
        while process.poll() is None:
            if first is None and any(Path(output, "annotations").rglob("part-*.parquet")):
                first = time.monotonic() - began
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK_EVERY_S)
        _check(process, folder)
        ended = time.monotonic()
        again = start(tree, folder, output)
        again.wait()
        _check(again, folder)
        assert first is not None
        return [first, ended - began, time.monotonic() - ended]


def _check(process: subprocess.Popen[bytes], folder: Path) -> None:
    if process.returncode:
        sys.exit((folder / "log").read_text()[-3000:])


if __name__ == "__main__":
    main()
