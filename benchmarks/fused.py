"""The estimator of `cpm-lite` with fused layers and with plain ones, side by side, on a CPU.

    python -m benchmarks.fused --threads 1

Rounds alternate, so that other work on the machine strikes both. Prints crops/s (medians, by the
process's own CPU time on one thread, else by the clock) and how far the answers differ.
"""

from __future__ import annotations

import argparse
import statistics
import time
from unittest import mock

import numpy as np
import torch

from cpm_core import estimator
from cpm_core.weights import load_weights


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="cpm-lite")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--crops", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    loaded = load_weights(args.weights)
    with mock.patch.object(estimator, "can_fuse", return_value=False):
        plain = estimator.Estimator(loaded, "cpu", "fp32")
    fused = estimator.Estimator(loaded, "cpu", "fp32")
    size = loaded.info.config.input_size
    shape = (args.crops, 1, size, size, 3)
    crops = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    apart = np.abs(plain.estimate_crops(crops) - fused.estimate_crops(crops))[..., :2].max()

    variants = [("plain", plain, 8), ("plain", plain, 4), ("fused", fused, 8), ("fused", fused, 4)]
    seconds: list[list[float]] = [[] for _ in variants]
    for _ in range(args.rounds):
        for (_, one, batch), times in zip(variants, seconds, strict=True):
            one.largest_batch = batch
            start = clock()
            one.estimate_crops(crops)
            times.append(clock() - start)
    medians = [statistics.median(times) for times in seconds]
    print("| layers | crops at a time | crops/s | ratio |")
    print("|---|---|---|---|")
    for (name, _, batch), median in zip(variants, medians, strict=True):
        print(f"| {name} | {batch} | {args.crops / median:.1f} | {medians[0] / median:.2f} |")
    print(f"\n{size} px, {args.threads} threads; answers at most {apart:.4f} px apart")


if __name__ == "__main__":
    main()
