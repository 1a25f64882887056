"""What the large presets cost on one CPU thread at full size: an estimate and a training step.

    python benchmarks/large.py

CPU seconds, so that other work on the machine matters less, and the most memory that the process
has had by then. Prints a Markdown table.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import torch

from cpm_core.config import preset
from cpm_core.model import Cpm
from cpm_core.recipe import RECIPES
from cpm_core.training import Batch, Fit

PRESETS = ("cpm", "cpm-vgg")


def main() -> None:
    """A process for each preset, or else the second would seem to need the first one's memory."""
    if len(sys.argv) > 1:
        torch.set_num_threads(1)
        print(row(sys.argv[1]))
        return
    print("| one thread, 368 px | estimate a person | training step, 1 sample | 4 samples |")
    print("|---|---:|---:|---:|", flush=True)
    for name in PRESETS:
        subprocess.run([sys.executable, __file__, name], check=True)


def row(name: str) -> str:
    """The figures of a preset."""
    model = Cpm(preset(name)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    crop = torch.zeros(1, 3, 368, 368, dtype=torch.uint8)
    with torch.inference_mode():
        cells = [second_call(lambda: model.eval()(crop))]
    fit = Fit(Cpm(preset(name)), RECIPES[name], total_steps=100)
    cells += [second_call(partial(fit.step, batch(count))) for count in (1, 4)]
    return f"| `{name}` | {' | '.join(cells)} |"


def batch(count: int) -> Batch:
    """Grey crops with joints somewhere."""
    crops = torch.full((count, 368, 368, 3), 128, dtype=torch.uint8)
    return Batch(crops, 368 * torch.rand(count, 14, 2), torch.ones(count, 14, dtype=torch.bool))


def second_call(call: Callable[[], object]) -> str:
    """CPU seconds of the second call, as the first one allocates; memory after it."""
    call()
    started = time.process_time()
    call()
    seconds = time.process_time() - started
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return f"{seconds:.1f} s, {memory:.1f} GB"


if __name__ == "__main__":
    main()
