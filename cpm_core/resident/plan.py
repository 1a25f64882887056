"""How many steps fit into the time that there is."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from cpm_core.errors import CpmError
from cpm_core.model import Cpm
from cpm_core.recipe import Recipe
from cpm_core.resident.clock import synchronise
from cpm_core.resident.feed import Feed
from cpm_core.resident.options import LAYOUTS
from cpm_core.training import Fit, stage_pck

_WARM_UP_STEPS = 3
_MEASURED_S = 1.5
_SLACK_S = 1.0
"""For steps that turn out to be slower at last."""
_ENDLESS = 10**9
"""Steps of a run in which those that are measured are the first ones."""


@dataclass
class Plan:
    """Seconds of a step by crop size, of one look at the tuning split, and how many looks a run
    takes."""

    recipe: Recipe
    step_s: dict[int, float]
    tune_s: float
    tunes: int
    factor: float = field(default=1.0)
    """How much slower steps have turned out to be."""

    def learn(self, size: int, seconds: float) -> None:
        """A step with crops of that size took that long of late."""
        self.factor = seconds / self.step_s[size]

    def steps_left(self, progress: float, seconds: float) -> int:
        """How many more steps fit into `seconds` from that share of the run on; at least one."""
        left = seconds - _SLACK_S - self.tune_s * self.tunes * (1 - progress)
        return max(1, int(left / (self.factor * self._mean_step_s(progress))))

    def _mean_step_s(self, progress: float) -> float:
        """Over the rest of the run."""
        phases = sorted(self.recipe.phases, key=lambda phase: phase.start)
        ends = [phase.start for phase in phases[1:]] + [1.0]
        shares = [
            max(0.0, end - max(phase.start, progress))
            for phase, end in zip(phases, ends, strict=True)
        ]
        if not sum(shares):
            return self.step_s[phases[-1].size]
        total = sum(s * self.step_s[p.size] for s, p in zip(shares, phases, strict=True))
        return total / sum(shares)


def rehearsed(feed: Feed, fit: Fit, tunes: int) -> Plan:
    """Measure steps of every size and a look at the tuning split; the fit is as before then."""
    before, total_steps = copy.deepcopy(fit.state_dict()), fit.total_steps
    fit.total_steps = _ENDLESS
    sizes = sorted({phase.size for phase in fit.recipe.phases})
    step_s = {size: _seconds_per_step(feed, fit, size) for size in sizes}

    def look() -> None:
        stage_pck(
            fit.ema, feed.samples.skeleton, feed.tune(sizes[-1]), fit.recipe.uses_bf16(feed.device)
        )

    tune_s = _seconds_of(look, feed.device) if len(feed.tune_rows) else 0.0
    fit.load_state_dict(before)
    fit.total_steps = total_steps
    return Plan(fit.recipe, step_s, tune_s, tunes)


def quickest_layout(feed: Feed, model: Cpm) -> str:
    """The name of the memory format in which steps take least on the feed's device."""
    size, before = feed.recipe.phases[-1].size, feed.layout
    seconds = {}
    for name, layout in LAYOUTS.items():
        twin = copy.deepcopy(model).to(feed.device, memory_format=layout)  # type: ignore[call-overload]
        feed.layout = layout
        seconds[name] = _seconds_per_step(feed, Fit(twin, feed.recipe, _ENDLESS), size)
    feed.layout = before
    return min(seconds, key=lambda name: seconds[name])


def _seconds_per_step(feed: Feed, fit: Fit, size: int) -> float:
    steps, losses = 0, torch.zeros(())

    def step() -> None:
        nonlocal steps, losses
        losses = fit.step(feed.train(steps % feed.steps_per_epoch, size))
        steps += 1

    for _ in range(_WARM_UP_STEPS):
        step()
    synchronise(feed.device)
    started, before = time.perf_counter(), steps
    while time.perf_counter() - started < _MEASURED_S:
        step()
    synchronise(feed.device)
    seconds = (time.perf_counter() - started) / (steps - before)
    check_finite(losses.tolist(), fit.step_number)
    return seconds


def check_finite(losses: list[float], step: int) -> None:
    """Raises CpmError for a loss that is not finite."""
    if not all(math.isfinite(loss) for loss in losses):
        raise CpmError(
            f"the loss is {losses} at step {step}: training diverged; begin again with a lower "
            "--learning-rate"
        )


def _seconds_of(what: Callable[[], None], device: torch.device) -> float:
    """The second time: the first one makes plans and takes memory."""
    for _ in range(2):
        started = time.perf_counter()
        what()
        synchronise(device)
    return time.perf_counter() - started
