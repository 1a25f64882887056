"""What further stages and their losses are worth: the ablation of the CPM paper, with cpm-lite.

    posemill import json FOLDER train.parquet
    python benchmarks/ablation.py --samples train.parquet --output docs/ablation

Trains nets of 1 to T stages with a loss after every stage, and of 2 to T stages with one after the
last only, all on the same crops in the same order and from the same weights. Writes results.json,
table.md and ablation.png. Every finished net is written at once; the same command goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ablation_figure
import ablation_table
import ablation_training as training
import cv2
import torch

from cpm_core.errors import CpmError
from pipeline.errors import PosemillError, UsageError
from pipeline.progress import duration
from pipeline.samples import SampleTable

_LINE_EVERY_S = 10.0


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 2 a setting is wrong, 130 stopped by Ctrl-C."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(1)
    try:
        ablation = Ablation(options)
        ablation.run()
    except (CpmError, PosemillError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on after the last finished net", file=sys.stderr)
        return 130
    document = {**ablation.document(), "command": command(options)}
    table = ablation_table.table(document)
    (options.output / "table.md").write_text(table)
    ablation_figure.figure(document).savefig(options.output / "ablation.png", dpi=150)
    print(table, end="")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = options.add_argument
    add("--samples", required=True, help="samples table with the splits train and tune")
    add("--output", type=Path, required=True, help="folder of the results")
    add("--trunk", type=Path, help="EfficientNet-Lite0 checkpoint (default: no pretraining)")
    add("--stages", type=int, default=4, help="the most stages (default: %(default)s)")
    add("--steps", type=int, default=600, help="per net (default: %(default)s)")
    add("--batch-size", type=int, default=16, help="(default: %(default)s)")
    add("--size", type=int, default=128, help="of the crops in pixels (default: %(default)s)")
    add("--threads", type=int, default=1, help="for the network (default: %(default)s)")
    add("--seed", type=int, default=0, help="(default: %(default)s)")
    return options


def command(options: argparse.Namespace) -> str:
    """What repeats the run; of files only the names, as folders differ from machine to machine."""
    words = ["python", "benchmarks/ablation.py"]
    for name, value in vars(options).items():
        if value is not None:
            short = Path(value).name if name in ("samples", "trunk") else str(value)
            words += [f"--{name.replace('_', '-')}", short]
    return shlex.join(words)


@dataclass(frozen=True)
class Variant:
    """One net to train."""

    stages: int
    intermediate: bool

    def __str__(self) -> str:
        plural = "" if self.stages == 1 else "s"
        losses = "" if self.intermediate else ", last loss only"
        return f"{self.stages} stage{plural}{losses}"

    @property
    def cost(self) -> float:
        """Of a step, in units of a stage: the trunk costs about three and a half."""
        return 3.5 + self.stages


class Ablation:
    """The nets of one command, and what is known of them."""

    def __init__(self, options: argparse.Namespace) -> None:
        if options.stages < 2:
            raise UsageError(f"--stages is {options.stages}; there is nothing to compare below 2")
        if min(options.steps, options.batch_size) < 1:
            raise UsageError("--steps and --batch-size are at least 1")
        self.table = SampleTable(options.samples)
        self.setting = training.Setting(
            options.stages,
            options.steps,
            options.batch_size,
            options.size,
            options.seed,
            options.trunk,
        )
        every = range(1, options.stages + 1)
        self.variants = [Variant(t, losses) for t in every for losses in (True, False)]
        self.variants.remove(Variant(1, False))
        self.key = {
            "most_stages": options.stages,
            "steps": options.steps,
            "batch_size": options.batch_size,
            "size": options.size,
            "seed": options.seed,
            "samples": self.table.digest,
            "trunk": _digest(options.trunk) if options.trunk else None,
        }
        self.results = Results(options.output / "results.json")

    def run(self) -> None:
        """Measure whatever is not known yet."""
        feed = training.Crops(self.table, self.setting)
        todo = [v for v in self.variants if not self.results.find(self._key(v))]
        progress = Progress(sum(v.cost for v in todo) * self.setting.steps)
        for number, variant in enumerate(self.variants, 1):
            if variant not in todo:
                print(f"net {number}, {variant}: known", file=sys.stderr)
                continue
            progress.start(f"net {number} of {len(self.variants)}, {variant}", variant.cost)
            started = time.monotonic()
            measured = training.train(
                self.setting, feed, variant.stages, variant.intermediate, progress
            )
            measured |= {"seconds": round(time.monotonic() - started), **_here()}
            self.results.add(self._key(variant), measured)
        if not self.results.find(self._key(None)):
            print("gradients of the paper's net", file=sys.stderr)
            measured = training.paper_gradients(self.setting, feed)
            self.results.add(self._key(None), {"gradients": measured, **_here()})

    def document(self) -> dict[str, Any]:
        """The results of this command's settings."""
        return {
            "settings": self.key,
            "train": len(self.table.rows("train")),
            "tune": len(self.table.rows("tune")),
            "variants": [
                {**vars(variant), **(self.results.find(self._key(variant)) or {})}
                for variant in self.variants
            ],
            "paper": self.results.find(self._key(None)) or {},
        }

    def _key(self, variant: Variant | None) -> dict[str, Any]:
        """Of a net, or None for the gradients of the paper's."""
        return {**self.key, **(vars(variant) if variant else {"preset": "cpm"})}


class Results:
    """results.json: a list of what was measured under which settings."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.records: list[dict[str, Any]] = []
        if path.exists():
            try:
                self.records = json.loads(path.read_text())
            except ValueError as error:
                raise UsageError(f"{path}: not written by this command ({error})") from error

    def find(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """What was measured under exactly these settings."""
        found = (r["measured"] for r in self.records if r["settings"] == key)
        return next(found, None)

    def add(self, key: dict[str, Any], measured: dict[str, Any]) -> None:
        """Keep it; a crash in between leaves the old file."""
        self.records.append({"settings": key, "measured": measured})
        # A record a line: readable by people, and by their diff.
        lines = ",\n".join(json.dumps(record) for record in self.records)
        beside = self.path.with_suffix(".json.part")
        beside.write_text(f"[\n{lines}\n]\n")
        os.replace(beside, self.path)


class Progress:
    """A line on standard error now and then, with the time left for all nets."""

    def __init__(self, total: float) -> None:
        self.total = total
        self.done = 0.0
        self.name, self.cost = "", 0.0
        self.started = self._last_line = time.monotonic()

    def start(self, name: str, cost: float) -> None:
        """The net to come, and what a step of it costs."""
        self.name, self.cost = name, cost

    def step(self, number: int, total: int, losses: list[float]) -> None:
        """Count a step."""
        self.done += self.cost
        now = time.monotonic()
        if number < total and now - self._last_line < _LINE_EVERY_S:
            return
        self._last_line = now
        left = (self.total - self.done) * (now - self.started) / self.done
        by_stage = " ".join(f"{loss:.3f}" for loss in losses)
        print(
            f"{self.name}: step {number} of {total}, loss by stage {by_stage}; "
            f"{duration(left)} left for all",
            file=sys.stderr,
        )


def _digest(path: Path) -> str:
    if not path.is_file():
        raise UsageError(f"--trunk {path}: no such file")
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _here() -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    sys.exit(main())
