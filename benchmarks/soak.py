"""Runs that are broken on purpose, again and again: is anything lost or doubled?

    python benchmarks/soak.py --faults 200 --units 1000 --seed 0 [--write docs/reliability.md]

Annotates a folder and a bucket of small pictures in turn (random weights, small shards) and, at
seeded moments from the first import to `_SUCCESS`, kills or stops processes of the run, or breaks
the storage behind it. What ends is started again with the same command until it says that it is
done. Then the output is read without PoseMill's code and compared with what went in. Exit code 1
if a unit is lost or doubled, or anything else is wrong with an output.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import psutil  # noqa: E402
import pyarrow.fs  # noqa: E402

from tests.faults.output import Findings, examine, part_files  # noqa: E402
from tests.faults.processes import family, hit, is_worker, with_role  # noqa: E402
from tests.faults.proxy import Proxy, Rule  # noqa: E402

SHARD_SIZE = 4
MAX_SECONDS = 4
FAULTS_PER_OUTPUT = 16
QUIET_SECONDS = 180.0
BAD_EVERY = 50

ENDING = {"kill driver", "SIGTERM driver", "SIGINT driver", "kill raylet"}
"""After these a run has to end; the others it should survive."""

ON_ACTORS = {
    "kill prepare actor": ("prepare", signal.SIGKILL),
    "kill estimate actor": ("estimate", signal.SIGKILL),
    "kill commit actor": ("commit", signal.SIGKILL),
    "kill decoder": ("decoder", signal.SIGKILL),
    "stop decoder": ("decoder", signal.SIGSTOP),
    "kill raylet": ("raylet", signal.SIGKILL),
}
ON_DRIVER = {
    "kill driver": signal.SIGKILL,
    "SIGTERM driver": signal.SIGTERM,
    "SIGINT driver": signal.SIGINT,
}
ON_STORAGE = {
    "storage: SlowDown": Rule("slow_down"),
    "storage: 500": Rule("server_error", share=0.5),
    "storage: resets": Rule("reset", share=0.5),
    "storage: lost answers": Rule("lost_answer", share=0.5),
    "storage: cut bodies": Rule("cut", "GET", share=0.5),
    "storage: time-outs": Rule("stall", share=0.05, times=3),
    "storage: slow reads": Rule("drip", "GET", share=0.5),
}


@dataclass
class Place:
    """Where inputs and outputs are: as users name it, and as pyarrow reads it."""

    uri: str
    root: str
    fs: pyarrow.fs.FileSystem
    environment: dict[str, str]
    proxy: Proxy | None = None


@dataclass
class Tally:
    """What became of the runs that a kind of fault struck."""

    injected: int = 0
    restarts: int = 0

    @property
    def went_on(self) -> int:
        """Runs that committed more and met another fault, or came to their end."""
        return self.injected - self.restarts


@dataclass
class Soak:
    """The whole soak: its dice, its counts."""

    units: int
    faults: int
    dice: random.Random
    weights: Path
    logs: Path
    only: tuple[str, ...] = ()
    by_fault: dict[str, Tally] = field(default_factory=dict)
    outputs: int = 0
    hung: int = 0
    failed_alone: int = 0
    left_over: int = 0
    findings: Findings = field(default_factory=Findings)
    met: set[psutil.Process] = field(default_factory=set)

    @property
    def injected(self) -> int:
        """Faults so far."""
        return sum(tally.injected for tally in self.by_fault.values())

    def output(self, place: Place) -> None:
        """One output from nothing to `_SUCCESS`, with faults on the way."""
        name = f"out-{self.outputs:03d}"
        self.outputs += 1
        wanted = min(FAULTS_PER_OUTPUT, self.faults - self.injected)
        possible = [*ON_ACTORS, *ON_DRIVER, *(ON_STORAGE if place.proxy else ())]
        kinds = [kind for kind in possible if kind in self.only or not self.only]
        planned = [self.dice.choice(kinds) for _ in range(wanted)]
        started, restarts = time.monotonic(), -1
        decoders_hit = 0
        code = None
        while code != 0:
            restarts += 1
            assert restarts <= 4 * FAULTS_PER_OUTPUT, f"{place.uri}/{name} never ends"
            with self._started(place, name) as process:
                struck = self._run(process, place, name, planned)
                code = process.wait()
            decoders_hit += sum("decoder" in kind for kind in struck)
            self._count(struck, code, name)
        found = examine(place.fs, f"{place.root}/{name}", self.units, BAD_EVERY, decoders_hit)
        self.findings.add(found)
        print(
            f"{name} on {place.uri.partition(':')[0][:8]}: {wanted - len(planned)} faults, "
            f"{restarts} restarts, {time.monotonic() - started:.0f} s; {found}; "
            f"{self.injected} of {self.faults} faults",
            flush=True,
        )

    def _run(
        self,
        process: subprocess.Popen[str],
        place: Place,
        name: str,
        planned: list[str],
    ) -> list[str]:
        """Disturb one start of the command until it ends; what struck it."""
        struck: list[str] = []
        while planned and process.poll() is None:
            if not self._moment(process, place, name, bool(struck)):
                break
            self.met.update(family(process.pid))
            if not self._inject(planned[-1], process, place):
                continue
            struck.append(planned.pop())
            if struck[-1] in ENDING:
                break
        self._await_end(process, place, name)
        return struck

    def _moment(self, process: subprocess.Popen[str], place: Place, name: str, later: bool) -> bool:
        """Wait for a random moment: one in three lies before the first part is there, or, late in
        the run, is when all parts are. False if the run ended before."""
        shards = -(-self.units // SHARD_SIZE)
        there = len(part_files(place.fs, f"{place.root}/{name}"))
        if self.dice.random() < 0.33 and not later:
            return not self._ends_within(process, self.dice.uniform(0.0, 8.0))
        goal = there + self.dice.randint(1, max(2, 2 * shards // FAULTS_PER_OUTPUT))
        deadline = time.monotonic() + QUIET_SECONDS
        while len(part_files(place.fs, f"{place.root}/{name}")) < min(goal, shards):
            if self._ends_within(process, 0.1):
                return False
            if time.monotonic() > deadline:
                return True
        return not self._ends_within(process, self.dice.uniform(0.0, 0.5))

    def _inject(self, fault: str, process: subprocess.Popen[str], place: Place) -> bool:
        """False if there is nobody to hit at this moment."""
        if fault in ON_DRIVER:
            process.send_signal(ON_DRIVER[fault])
            return True
        if fault in ON_STORAGE:
            assert place.proxy
            with place.proxy.broken(_fresh(ON_STORAGE[fault])):
                self._ends_within(process, self.dice.uniform(0.5, 4.0))
            return True
        role, number = ON_ACTORS[fault]
        there = with_role(role, process.pid)  # type: ignore[arg-type]
        return bool(there) and hit(self.dice.choice(there), number)

    def _await_end(self, process: subprocess.Popen[str], place: Place, name: str) -> None:
        """Until the run ends. One in which nothing happens any more hangs, and is ended."""
        parts, deadline = -1, 0.0
        while not self._ends_within(process, 0.5):
            there = len(part_files(place.fs, f"{place.root}/{name}"))
            if there > parts:
                parts, deadline = there, time.monotonic() + QUIET_SECONDS
            elif time.monotonic() > deadline:
                self.hung += 1
                print(f"{name}: hung for {QUIET_SECONDS:g} s with {parts} parts", flush=True)
                self.met.update(family(process.pid))
                process.kill()

    @staticmethod
    def _ends_within(process: subprocess.Popen[str], seconds: float) -> bool:
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _count(self, struck: list[str], code: int, name: str) -> None:
        for kind in struck:
            self.by_fault.setdefault(kind, Tally()).injected += 1
        if code and struck:
            self.by_fault[struck[-1]].restarts += 1
        if code and not ENDING & set(struck):
            self.failed_alone += 1
            last = (self.logs / f"{name}.log").read_text().strip().splitlines()[-1:]
            print(f"{name}: exit code {code} after {struck}: {''.join(last)[:300]}", flush=True)

    @contextmanager
    def _started(self, place: Place, name: str) -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, "-m", "jobs.cli", "annotate", f"{place.uri}/in"]
        command += [f"{place.uri}/{name}", "--weights", str(self.weights)]
        command += ["--people", "whole-image", "--shard-size", str(SHARD_SIZE)]
        command += ["--max-seconds", str(MAX_SECONDS)]
        with (self.logs / f"{name}.log").open("a") as log:
            process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env=place.environment,
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
                # A shell's background ignores it, and children inherit that.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait()

    def sweep(self) -> None:
        """End what outlived its driver. Ray's own agents take their time, which is not waited for;
        workers should not."""
        deadline = time.monotonic() + 15
        # Not psutil's own wait, which fails where a process goes as it is looked up.
        while (left := self._workers_left()) and time.monotonic() < deadline:
            time.sleep(0.2)
        self.left_over = left
        for process in self.met:
            hit(process)

    def _workers_left(self) -> int:
        return sum(process.is_running() and is_worker(process) for process in self.met)

    def table(self) -> str:
        """The outcome as Markdown."""
        found = self.findings
        lines = [
            "| fault | injected | the run went on | same command again |",
            "|---|---:|---:|---:|",
        ]
        for kind, tally in sorted(self.by_fault.items()):
            cells = kind, tally.injected, tally.went_on, tally.restarts
            lines.append(f"| {' | '.join(map(str, cells))} |")
        all_kinds = self.by_fault.values()
        total = Tally(sum(t.injected for t in all_kinds), sum(t.restarts for t in all_kinds))
        cells = "all", total.injected, total.went_on, total.restarts
        lines.append(f"| {' | '.join(f'**{cell}**' for cell in cells)} |")
        lines += [
            "",
            f"{self.outputs} outputs, {found.units:,} units: {found.lost} lost, {found.doubled} "
            f"doubled, {found.wrong} otherwise wrong. {found.failed_by_fault} units failed because "
            f"their decoder was hit. {self.hung} runs hung, {self.failed_alone} gave up although "
            f"they should have survived. {found.stray} stray temporary files and {self.left_over} "
            "workers were left.",
        ]
        return "\n".join(lines)


def _fresh(rule: Rule) -> Rule:
    """The rule, its counts at nought."""
    return Rule(rule.fault, rule.methods, rule.key, rule.share, rule.after, rule.times)


def tiny_weights(path: Path) -> None:
    """Random weights for 64-pixel crops, as the end-to-end tests have them."""
    import torch

    from cpm_core.config import preset
    from cpm_core.info import WeightsInfo
    from cpm_core.model import Cpm
    from cpm_core.skeleton import load_skeleton
    from cpm_core.weights import save_weights

    torch.manual_seed(0)
    config = preset("cpm-lite", input_size=64, stages=1)
    save_weights(path, Cpm(config).eval(), WeightsInfo("tiny", config, load_skeleton("lsp14")))


def put_pictures(place: Place, units: int) -> None:
    """The inputs: every fiftieth is no picture."""
    rng = np.random.default_rng(0)
    place.fs.create_dir(f"{place.root}/in")
    for i in range(units):
        data = b"not a picture"
        if i % BAD_EVERY:
            picture = rng.integers(0, 255, (64, 48, 3), np.uint8)
            data = cv2.imencode(".jpg", picture)[1].tobytes()
        with place.fs.open_output_stream(f"{place.root}/in/{i:06d}.jpg") as file:
            file.write(data)


@contextmanager
def places(folder: Path) -> Iterator[list[Place]]:
    """A folder, and a bucket behind a proxy."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "soak", "AWS_SECRET_ACCESS_KEY": "soak"}
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "POSEMILL_"))}
    plain["PYTHONPATH"] = str(REPOSITORY)
    disk = Place(str(folder / "disk"), str(folder / "disk"), pyarrow.fs.LocalFileSystem(), plain)
    s3 = pyarrow.fs.S3FileSystem(
        access_key="soak",
        secret_key="soak",
        endpoint_override=f"http://{host}:{port}",
        region="us-east-1",
        allow_bucket_creation=True,
    )
    s3.create_dir("soak")
    try:
        with Proxy(f"http://{host}:{port}") as proxy:
            reached = {**plain, **keys, "AWS_ENDPOINT_URL": proxy.url}
            reached["AWS_DEFAULT_REGION"] = "us-east-1"
            yield [disk, Place("s3://soak", "soak", s3, reached, proxy)]
            requests = Counter(proxy.outcomes)
        print("requests to S3:", dict(requests))
    finally:
        server.stop()


def write(path: Path, soak: Soak) -> None:
    """JSON, or the table between two marks of a Markdown file, or as a new file."""
    if path.suffix == ".json":
        faults = {kind: vars(tally) for kind, tally in soak.by_fault.items()}
        document = {"faults": faults, "outputs": soak.outputs, "hung": soak.hung}
        path.write_text(json.dumps(document | {"findings": vars(soak.findings)}, indent=2))
        return
    block = f"<!-- soak -->\n{soak.table()}\n<!-- /soak -->"
    text = path.read_text() if path.exists() else ""
    if "<!-- soak -->" in text:
        text = re.sub(r"<!-- soak -->.*<!-- /soak -->", lambda _: block, text, flags=re.DOTALL)
    else:
        text = f"{text}\n{block}\n".lstrip()
    path.write_text(text)


def main() -> int:
    """Disk and S3 in turn until all faults are injected."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--units", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    every = sorted({*ON_ACTORS, *ON_DRIVER, *ON_STORAGE})
    parser.add_argument("--only", nargs="+", choices=every, default=(), help="kinds of faults")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing after")
    parser.add_argument("--write", type=Path, help="a .json, or a .md that gets the table")
    parser.add_argument("--logs", type=Path, help="keep what the runs print in this folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as temporary:
        folder = Path(temporary)
        logs = options.logs or folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        tiny_weights(folder / "tiny.safetensors")
        dice = random.Random(options.seed)
        weights = folder / "tiny.safetensors"
        soak = Soak(options.units, options.faults, dice, weights, logs, tuple(options.only))
        with places(folder) as both:
            if options.only and ON_STORAGE.keys() >= set(options.only):
                both = both[1:]
            for place in both:
                put_pictures(place, options.units)
            end = time.monotonic() + 60 * options.minutes
            while soak.injected < soak.faults and time.monotonic() < end:
                soak.output(both[soak.outputs % len(both)])
            soak.sweep()
    print(soak.table())
    if options.write:
        write(options.write, soak)
    return 1 if soak.findings.bad else 0


if __name__ == "__main__":
    sys.exit(main())
