"""Our estimator and MoveNet Thunder on the same threads, each in processes of its own, in turn.

    python benchmarks/speed.py --threads 2 --movenet movenet_thunder_fp16w.onnx

In one process (`benchmarks/quality.py`) the thread pools of torch and onnxruntime get in each
other's way. Run it on an idle machine. Prints milliseconds per crop and the ratio of each round.
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
        call = ours(args.weights, args.threads) if args.only == "ours" else movenet(args)
        print(1e3 * median_seconds(call) / CROPS)
        return
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    ratios = []
    for _ in range(args.rounds):
        ms = {}
        for only in ("ours", "movenet"):
            command = [sys.executable, __file__, *sys.argv[1:], "--only", only]
            ms[only] = float(subprocess.check_output(command, env=environment, text=True))
        ratios.append(ms["movenet"] / ms["ours"])
        print(f"ours {ms['ours']:.1f} ms, MoveNet {ms['movenet']:.1f} ms, ratio {ratios[-1]:.2f}")
    print(f"median ratio on {args.threads} threads: {statistics.median(ratios):.2f}")


def ours(weights: str, threads: int) -> Callable[[], object]:
    """uint8 crops in, keypoints out."""
    import torch

    import cpm_core

    torch.set_num_threads(threads)
    estimator = cpm_core.load(weights, device="cpu")
    size = estimator.info.config.input_size
    crops = np.random.default_rng(0).integers(0, 256, (CROPS, 1, size, size, 3), np.uint8)
    return lambda: estimator.estimate_crops(crops)


def movenet(args: argparse.Namespace) -> Callable[[], object]:
    """It takes one crop at a time."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = args.threads
    session = ort.InferenceSession(str(args.movenet), options, providers=["CPUExecutionProvider"])
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
