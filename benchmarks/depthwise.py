"""A training step of `cpm-lite` with PyTorch's own depthwise gradients and with ours, side by side.

    python -m benchmarks.depthwise --threads 1

Steps of both alternate, so that other work on the machine strikes both. Prints samples/s (medians,
by the process's own CPU time on one thread, else by the clock) and the ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from unittest import mock

import torch

from cpm_core import depthwise
from cpm_core.config import preset
from cpm_core.model import Cpm
from cpm_core.recipe import RECIPES
from cpm_core.training import Batch, Fit


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 192, 256])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    print("| crop | arithmetic | PyTorch's, samples/s | ours, samples/s | ratio |")
    print("|---|---|---|---|---|")
    for size in args.sizes:
        for name, bf16 in (("fp32", False), ("bf16", True)):
            before, after = _alternate(size, args.batch, bf16, args.rounds, clock)
            print(
                f"| {size} px | {name} | {args.batch / before:.1f} | {args.batch / after:.1f} "
                f"| {before / after:.2f} |",
                flush=True,
            )


def _alternate(
    size: int, batch_size: int, bf16: bool, rounds: int, clock: Callable[[], float]
) -> tuple[float, float]:
    """Median seconds per step: PyTorch's gradients, ours."""
    torch.manual_seed(0)
    model = Cpm(preset("cpm-lite")).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fit = Fit(model, replace(RECIPES["cpm-lite"], bf16=bf16), total_steps=1000)
    batch = Batch(
        torch.randint(0, 256, (batch_size, size, size, 3), dtype=torch.uint8),
        torch.rand(batch_size, 14, 2) * size,
        torch.ones(batch_size, 14, dtype=torch.bool),
    )
    theirs: list[float] = []
    ours: list[float] = []
    for i in range(rounds + 1):
        for seconds, smallest in ((theirs, 1_000), (ours, depthwise._SMALLEST_KERNEL)):
            with mock.patch.object(depthwise, "_SMALLEST_KERNEL", smallest):
                start = clock()
                fit.step(batch)
                if i:  # the first round sets up memory
                    seconds.append(clock() - start)
    return statistics.median(theirs), statistics.median(ours)


if __name__ == "__main__":
    main()
