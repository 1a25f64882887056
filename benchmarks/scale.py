"""Planning and resuming at 10^5, 10^6 and 10^7 inputs: time and peak memory of the driver.

    python benchmarks/scale.py [--counts 100000 1000000 10000000] [--write docs/scale.json]

The inputs are synthetic: a file system that lists so many pictures and holds none. Each step runs
in a process of its own, whose peak memory is the driver's. `plan`: the first start; `again`: a
start that finds all inputs planned; `resume`: one that finds all of them done, to its end.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import fsspec
from fsspec.spec import AbstractFileSystem

STEPS = ("plan", "again", "parts", "resume")
_PER_FOLDER = 1000
_FOLDERS = 100


class SyntheticFileSystem(AbstractFileSystem):
    """`synthetic://N` holds N pictures, a thousand to a folder, a hundred folders to a folder."""

    protocol = "synthetic"
    cachable = False

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        name = self._strip_protocol(path)
        if name.endswith(".jpg"):
            return {"name": name, "type": "file", "size": 100_000, "mtime": 1.7e9}
        return {"name": name, "type": "directory", "size": 0}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        root, *above = self._strip_protocol(path).split("/")
        total = int(root)
        if len(above) == 2:
            first = (int(above[0]) * _FOLDERS + int(above[1])) * _PER_FOLDER
            last = min(first + _PER_FOLDER, total)
            names = [f"{path}/picture-{i:09d}.jpg" for i in range(first, last)]
        else:
            step = _PER_FOLDER * _FOLDERS if not above else _PER_FOLDER
            first = int(above[0]) * _FOLDERS * _PER_FOLDER if above else 0
            last = min(first + _FOLDERS * _PER_FOLDER, total) if above else total
            count = -(-(last - first) // step)
            names = [f"{path}/{i:03d}" for i in range(count)]
        return [self.info(name) for name in names] if detail else names


def main() -> None:
    """Run all steps for all counts, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[10**5, 10**6, 10**7])
    parser.add_argument("--write", type=Path, help="figures as JSON")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--output", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(step(options.step, options.counts[0], options.output)))
        return
    rows = []
    print("| inputs | step | seconds | peak memory of the driver |\n|---:|---|---:|---:|")
    for count in options.counts:
        with tempfile.TemporaryDirectory(prefix="posemill-scale-") as folder:
            for name in STEPS:
                command = [sys.executable, __file__, "--counts", str(count)]
                command += ["--step", name, "--output", f"{folder}/out"]
                figures = json.loads(subprocess.check_output(command, text=True))
                if name == "parts":
                    continue
                rows.append({"inputs": count, "step": name, **figures})
                print(
                    f"| {count:,} | {name} | {figures['seconds']:.1f} | {figures['mb']:,.0f} MB |"
                )
    if options.write:
        machine = {"machine": platform.machine(), "python": platform.python_version()}
        document = {"date": time.strftime("%Y-%m-%d"), **machine, "rows": rows}
        options.write.write_text(json.dumps(document, indent=2) + "\n")


def step(name: str, count: int, output: str) -> dict[str, float]:
    """One step: seconds without the imports, and the process's peak memory in MB."""
    from pipeline.annotate import Run
    from pipeline.config import AnnotateSettings
    from pipeline.progress import Reporter

    fsspec.register_implementation("synthetic", SyntheticFileSystem)
    words = [f"synthetic://{count}", output, "--people", "whole-image"]
    started = time.perf_counter()
    with Reporter() as reporter:
        run = Run(AnnotateSettings.parse(words, "scale"), reporter)
        if name == "parts":
            write_parts(run)
        elif name == "resume":
            assert run.go().total.units == count
        else:
            run.run_file.begin({"fingerprint": run.fingerprint})
            assert run.planner.plan(run.planner.look_up(), write=True).next_unit == count
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def write_parts(run: Any) -> None:
    """Parts that say that all is done, without the rows."""
    from pipeline import schema
    from pipeline.commit import commit_part
    from pipeline.manifest import Manifest
    from pipeline.summary import Summary

    empty = schema.annotation_table(14).empty_table()
    for ref in Manifest.load(run.output).shards(run.output):
        summary = Summary(shards=1, units=ref.units, frames=ref.units, rows=ref.units)
        commit_part(run.output, ref.shard, empty, {}, summary)


if __name__ == "__main__":
    main()
