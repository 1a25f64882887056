"""Steps, looks at the tuning split, and what is told of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cpm_core.resident.clock import Stopwatch
from cpm_core.resident.feed import Feed
from cpm_core.resident.plan import Plan, check_finite
from cpm_core.result import Best
from cpm_core.training import Fit, stage_pck

_INTERVAL_S = 5.0

Tell = Callable[[dict[str, Any]], None]


class Loop:
    """Trains to the end, or until the time is up or somebody wishes it to stop.

    With a `plan`, the number of steps follows from the time that is left until `deadline` (of
    `time.monotonic`). `after_tune` is called after every look at the tuning split.
    """

    def __init__(
        self,
        feed: Feed,
        fit: Fit,
        best: Best | None,
        tunes: int,
        tell: Tell,
        stopping: threading.Event,
        after_tune: Callable[[], None],
        plan: Plan | None = None,
        deadline: float = float("inf"),
    ) -> None:
        self.feed, self.fit, self.best, self.tunes = feed, fit, best, tunes
        self.tell, self.stopping, self.after_tune = tell, stopping, after_tune
        self.plan, self.deadline = plan, deadline
        self._cutting = Stopwatch(feed.device)
        self._losses: list[Tensor] = []
        self._made_size = 0
        self._since = time.monotonic()

    def run(self) -> bool:
        """Whether it got to the end; what a stop leaves is in `fit` and `best`."""
        tuned = int(self.fit.progress * self.tunes)
        self._since = time.monotonic()
        while self.fit.step_number < self.fit.total_steps:
            if self.stopping.is_set() or time.monotonic() >= self.deadline:
                self._interval()
                if not self.stopping.is_set():
                    # The schedule is cut short: the last weights may be the best ones.
                    self._tune()
                return False
            self._step()
            due = int(self.fit.progress * self.tunes)
            if due > tuned or time.monotonic() - self._since >= _INTERVAL_S:
                self._interval()
            if due > tuned:
                tuned = due
                self._tune()
                self.after_tune()
                self._since = time.monotonic()
        return True

    @property
    def size(self) -> int:
        """Crop size of the step that was made last."""
        return self._made_size or self.fit.recipe.size_at(self.fit.progress)

    def _step(self) -> None:
        fit = self.fit
        size = fit.recipe.size_at(fit.progress)
        if size != self.size:
            self._interval()
        with self._cutting.running():
            batch = self.feed.train(fit.step_number, size)
        self._losses.append(fit.step(batch))
        self._made_size = size

    def _interval(self) -> None:
        """Add up the losses, which waits for the device; tell how it goes.

        Raises CpmError when a loss is not finite.
        """
        if not self._losses:
            return
        losses = torch.stack(self._losses).mean(dim=0).tolist()
        seconds = max(time.monotonic() - self._since, 1e-6)
        steps = len(self._losses)
        check_finite(losses, self.fit.step_number)
        if self.plan:
            self.plan.learn(self.size, seconds / steps)
        left = (self.fit.total_steps - self.fit.step_number) * seconds / steps
        self._tell(
            "progress",
            loss=losses,
            learning_rate=self.fit.optimizer.param_groups[-1]["lr"],
            samples_per_second=steps * self.feed.recipe.batch_size / seconds,
            cut_share=self._cutting.take() / seconds,
            seconds_left=left,
        )
        self._losses, self._since = [], time.monotonic()

    def _tune(self) -> None:
        """PCK of the averaged weights on the tuning split; keeps the best ones."""
        recipe, device = self.fit.recipe, self.feed.device
        if len(self.feed.tune_rows):
            pcks = stage_pck(
                self.fit.ema,
                self.feed.samples.skeleton,
                self.feed.tune(self.size),
                recipe.uses_bf16(device),
            )
            by_stage = [pck.total for pck in pcks] if pcks[0].counted else []
            if by_stage and (self.best is None or by_stage[-1] > self.best.pck):
                weights = {
                    name: value.to("cpu", copy=True)
                    for name, value in self.fit.ema.state_dict().items()
                }
                epoch = self.fit.step_number // self.feed.steps_per_epoch
                self.best = Best(by_stage[-1], epoch, self.size, by_stage, weights)
            self._tell("tune", tune_pck=by_stage)
        if self.plan and self.fit.step_number < self.fit.total_steps:
            left = self.plan.steps_left(self.fit.progress, self.deadline - time.monotonic())
            self.fit.replan(self.fit.step_number + left)

    def _tell(self, kind: str, **values: Any) -> None:
        step = self.fit.step_number
        epoch = step / self.feed.steps_per_epoch
        self.tell({"kind": kind, "step": step, "epoch": epoch, "size": self.size, **values})
