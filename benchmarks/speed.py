"""Our estimator and MoveNet Thunder on the same threads, each in processes of its own, in turn.

    python benchmarks/speed.py --threads 2 --movenet movenet_thunder_fp16w.onnx

In one process the thread pools of torch and onnxruntime would get in each other's way. Run it on an
idle machine. Prints milliseconds per crop and the ratio of each round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SIZE = 256
CROPS = 8


def main() -> None:
    """Alternate, or be one of the two."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--movenet", type=Path, required=True, help="movenet_thunder_fp16w.onnx")
    parser.add_argument("--weights", default="cpm-lite")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("ours", "movenet"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        make = {"ours": ours, "movenet": movenet_call}[args.only]
        call = make(args.weights if args.only == "ours" else str(args.movenet), args.threads)
        print(1e3 * median_seconds(call) / CROPS)
        return
    figures = measure(args.weights, args.movenet, args.threads, args.rounds)
    print(f"median ratio on {args.threads} threads: {figures['ratio']:.2f}")


def measure(weights: str, movenet: Path, threads: int, rounds: int) -> dict[str, Any]:
    """Crops per second of each and their ratio, medians over the rounds; prints each round."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, "--movenet", str(movenet), "--weights", weights]
    command += ["--threads", str(threads), "--only"]
    ms: dict[str, list[float]] = {"ours": [], "movenet": []}
    ratios = []
    for _ in range(rounds):
        for only, values in ms.items():
            output = subprocess.check_output([*command, only], env=environment, text=True)
            values.append(float(output))
        ratios.append(ms["movenet"][-1] / ms["ours"][-1])
        print(f"ours {ms['ours'][-1]:.1f} ms, MoveNet {ms['movenet'][-1]:.1f} ms, {ratios[-1]:.2f}")
    rates = {only: 1e3 / statistics.median(values) for only, values in ms.items()}
    return {**rates, "ratio": statistics.median(ratios), "rounds": rounds}


def file_figures(weights: str) -> dict[str, float]:
    """Size in MB, and seconds until an estimator is ready in a process that has torch."""
    import cpm_core
    from cpm_core.info import find_weights

    path: Path = find_weights(weights)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        cpm_core.load(weights, device="cpu")
        seconds.append(time.perf_counter() - started)
    return {"megabytes": path.stat().st_size / 1e6, "seconds": statistics.median(seconds)}


def ours(weights: str, threads: int) -> Callable[[], object]:
    """uint8 crops in, keypoints out; fp32, as the other."""
    import torch

    import cpm_core

    torch.set_num_threads(threads)
    estimator = cpm_core.load(weights, device="cpu", precision="fp32")
    size = estimator.info.config.input_size
    crops = np.random.default_rng(0).integers(0, 256, (CROPS, 1, size, size, 3), np.uint8)
    return lambda: estimator.estimate_crops(crops)


def movenet_call(file: str, threads: int) -> Callable[[], object]:
    """It takes one crop at a time."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    crops = np.random.default_rng(0).integers(0, 256, (CROPS, 1, SIZE, SIZE, 3)).astype(np.int32)
    return lambda: [session.run(None, {"input:0": crop}) for crop in crops]


def median_seconds(call: Callable[[], object], rounds: int = 15) -> float:
    """Of one call, after two that do not count."""
    seconds = []
    for i in range(rounds + 2):
        start = time.perf_counter()
        call()
        if i >= 2:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
