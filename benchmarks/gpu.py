"""All that is worth knowing of a GPU, in one call: crops/s of every network, training, memory.

    python -m benchmarks.gpu [--seconds 240] [--pack pack.safetensors] [--json gpu.json]

"ours" is the estimator from uint8 crops in the host's memory to keypoints, as `annotate` uses it;
all other lines are the network alone, from crops on the device to belief maps of the last stage, in
the estimator's bf16 where nothing else is said. `benchmarks.gpu_variants` says what they are.
Weights are random but for `cpm-lite`. The share is that of a bf16 product of two matrices of 8192
on the same device. Error is the largest distance of the maps of one crop from those in
fp64, as a part of their largest value. What fails is told and does not end it; what does not fit
into the time is told, too. What was found so far is in the JSON at any time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_report import report
from benchmarks.gpu_training import Training
from benchmarks.gpu_variants import COMPILED, VARIANTS, Bench, device_named
from benchmarks.networks import peak

_PEAKS = {"cuda": ("bf16", "fp32"), "cpu": ("fp32",)}
_PEAK_SIDE = {"cuda": 8192, "cpu": 1024}
_LEAST_S = {"cuda": 2.0, "cpu": 0.0}
"""What must be left of the time to begin with one more figure."""
_TRAINING = (
    ("cpm-lite", 256, 128, "--memory-format channels_last"),
    ("cpm-vgg", 368, 32, "--memory-format channels_last"),
    ("cpm-lite", 256, 128, "--memory-format contiguous"),
    ("cpm-lite", 192, 128, "--memory-format channels_last"),
)
_PROFILED = _TRAINING[:2]
_COMPILED_TRAINING = (("cpm-lite", 256, 128, "--memory-format channels_last --compile"),)
"""Preset, crop size in pixels, batch, flags of `cpm_core.resident.train`: one layout each, as to
try both takes time."""
_FIRST = ("ours", "network")
"""Variants that are measured at every batch; others at the best two of those."""

Row = dict[str, Any]


def main(arguments: list[str] | None = None) -> None:
    """Measure and print; or, as a child, compile and measure one network."""
    options = _parser().parse_args(arguments)
    torch.backends.cuda.matmul.allow_tf32 = False
    bench = Bench(device_named(options.device), options.each)
    if options.one:
        method, *given = json.loads(options.one)
        by_name = {COMPILED: bench.compiled, "training": Training(bench.device).training}
        print(json.dumps(_guarded(lambda: by_name[method](*given))))
        return
    session = Session(options, bench)
    session.run()
    session.write()
    print(report(session.found()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--presets", nargs="+", default=["cpm-lite", "cpm-vgg", "cpm"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 64, 128, 256])
    parser.add_argument("--variants", nargs="+", choices=(*VARIANTS, COMPILED))
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--seconds", type=float, default=240, help="all that it may take")
    parser.add_argument("--each", type=float, default=0.3, help="seconds of measuring per figure")
    parser.add_argument("--pack", type=Path, help="samples to train on (`python -m pipeline.pack`)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser


class Session:
    """Everything in the order of its worth, while there is time."""

    def __init__(self, options: argparse.Namespace, bench: Bench) -> None:
        self.options, self.bench = options, bench
        self.peaks: dict[str, float] = {}
        self.started = time.monotonic()
        self.rows: list[Row] = []
        self.dropped: list[str] = []

    def run(self) -> None:
        """Measure everything."""
        bench, kind = self.bench, self.bench.device.type
        training = Training(bench.device)
        self.peaks = {p: peak(p, bench.device, _PEAK_SIDE[kind]) for p in _PEAKS[kind]}
        chosen = self.options.variants or [v for v in VARIANTS if kind in VARIANTS[v]]
        for variant in _FIRST:
            for preset in self.options.presets if variant in chosen else ():
                self._network(preset, variant, self.options.batches)
        self._figure("person-net", {"kind": "person-net"}, bench.person_net)
        for case in _TRAINING:
            self._train("training", case, training.training)
        for case in _PROFILED:
            self._train("profile", case, training.profile)
        for variant in (v for v in chosen if v not in (*_FIRST, COMPILED)):
            for preset in self.options.presets:
                self._network(preset, variant, self._best_batches(preset, 2))
        if COMPILED in chosen or (not self.options.variants and kind == "cuda"):
            for preset in self.options.presets:
                self._compiled(preset)
            for case in _COMPILED_TRAINING:
                self._train("training", case, partial(self._by_child, "training"))

    def found(self) -> dict[str, Any]:
        """All figures so far, and what they are of."""
        return {
            "device": _device_name(self.bench.device),
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
            "batches": self.options.batches,
            "peak_tflops": {name: value / 1e3 for name, value in self.peaks.items()},
            "seconds": time.monotonic() - self.started,
            "rows": self.rows,
            "dropped": self.dropped,
        }

    def write(self) -> None:
        """What there is, as JSON, where that is wished for."""
        if self.options.json:
            self.options.json.write_text(json.dumps(self.found(), indent=1))

    @property
    def left(self) -> float:
        """Seconds."""
        return self.options.seconds - (time.monotonic() - self.started)

    def _network(self, preset: str, variant: str, batches: list[int]) -> None:
        """Some batches; after one that fails, larger ones are not tried."""
        for batch in batches:
            what = {"kind": "network", "preset": preset, "variant": variant, "batch": batch}
            name = f"{preset} {variant} from batch {batch} on"
            row = self._figure(name, what, partial(self.bench.network, preset, variant, batch))
            if row is None or "error" in row:
                return

    def _train(
        self, kind: str, case: tuple[str, int, int, str], measure: Callable[..., Row]
    ) -> None:
        preset, size, batch, flag = case
        if self.options.pack is not None and preset in self.options.presets:
            what = {"kind": kind, "preset": preset, "size": size, "batch": batch}
            name = f"{kind} {preset} at {size} px {flag}".strip()
            measure = partial(measure, str(self.options.pack), *case)
            self._figure(name, what | {"flags": flag}, measure)

    def _compiled(self, preset: str) -> None:
        batch = self._best_batches(preset, 1)[0]
        what = {"kind": "network", "preset": preset, "variant": COMPILED, "batch": batch}
        self._figure(f"{preset} {COMPILED}", what, partial(self._by_child, COMPILED, preset, batch))

    def _by_child(self, method: str, *given: str | int) -> Row:
        """A method of `Bench` in a process of its own, which can be ended: to compile may take
        minutes."""
        command = [sys.executable, "-m", "benchmarks.gpu", "--device", self.bench.device.type]
        command += ["--each", str(self.options.each), "--one", json.dumps([method, *given])]
        return _in_time(command, self.left - 2)

    def _best_batches(self, preset: str, count: int) -> list[int]:
        """Those of the highest rates of the network so far, the smaller first."""
        mine = [row for row in self.rows if row.get("preset") == preset and "rate" in row]
        rates = {row["batch"]: row["rate"] for row in mine if row.get("variant") == "network"}
        best = sorted(rates or self.options.batches[:count], key=lambda batch: -rates.get(batch, 0))
        return sorted(best[:count])

    def _figure(self, name: str, what: Row, measure: Callable[[], Row]) -> Row | None:
        """Measure and keep; None where there is no time for it."""
        if self.left < _LEAST_S[self.bench.device.type] or self.left <= 0:
            self.dropped.append(name)
            return None
        row = what | _guarded(measure)
        self.rows.append(row)
        self.write()
        print(f"{self.options.seconds - self.left:.0f} s, {name}: {_said(row)}", file=sys.stderr)
        return row


def _said(row: Row) -> str:
    return row.get("error") or (f"{row['rate']:,.1f}/s" if "rate" in row else "done")


def _guarded(measure: Callable[[], Row]) -> Row:
    """What was measured, or why it was not."""
    try:
        return measure()
    except Exception as error:  # noqa: BLE001 - a figure's error is told; it must not end the session
        words = str(error).strip().splitlines() or [""]
        return {"error": f"{type(error).__name__}: {words[0]}"[:300]}
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _in_time(command: list[str], seconds: float) -> Row:
    """What a child prints last; it and all of its own children end when the time is over."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        try:
            out, err = child.communicate(timeout=max(1.0, seconds))
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
            return {"error": f"not done after {seconds:.0f} s"}
    if child.returncode or not out.strip():
        raise RuntimeError((err.strip().splitlines() or ["the child failed"])[-1])
    row: Row = json.loads(out.splitlines()[-1])
    return row


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()})"


if __name__ == "__main__":
    main()
