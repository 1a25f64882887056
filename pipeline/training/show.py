"""What a person sees of a training run."""

from __future__ import annotations

import time
from typing import Any

from pipeline.progress import Reporter, duration
from pipeline.training.logbook import Logbook
from pipeline.training.resources import Resources

_NAMED_BAD_SAMPLES = 5
_PATIENCE_S = 60.0
_WORTH_A_WORD = 0.1


class Show:
    """Passes records on to the log book and says the gist of them."""

    def __init__(self, reporter: Reporter, logbook: Logbook, total_steps: int) -> None:
        self.reporter, self.logbook = reporter, logbook
        self.total_steps = total_steps
        self.stopping = False
        self._bad = 0
        self._wants = ""
        self._waiting_since: float | None = None

    def resources(self, resources: Resources) -> None:
        """Say what the run asks the cluster for."""
        self._wants = str(resources)
        self._waiting_since = time.monotonic()
        self.reporter.say(f"training on {resources.device}: {resources}")

    def waiting(self) -> None:
        """Say now and then that no workers have come yet."""
        now = time.monotonic()
        if self._waiting_since is not None and now - self._waiting_since >= _PATIENCE_S:
            self._waiting_since = now
            self.reporter.say(
                f"still waiting for workers ({self._wants}): the cluster is busy or too small"
            )

    def stop(self) -> None:
        """Say that the workers were asked to stop."""
        self.stopping = True
        self.reporter.say("stopping after a checkpoint; once more to stop at once")

    def record(self, record: dict[str, Any]) -> None:
        """Take one record of the workers."""
        kind = record["kind"]
        if kind == "start":
            self._waiting_since = None
            self.logbook.rewind(record["step"])
        self.logbook.write(record)
        match kind:
            case "start":
                how = f"from step {record['step']}" if record["step"] else "from the start"
                workers = "1 worker" if record["workers"] == 1 else f"{record['workers']} workers"
                self.reporter.say(f"{workers}, {self.total_steps} steps, {how}")
            case "progress":
                self.reporter.say(self._progress(record))
            case "epoch":
                self.reporter.say(_epoch(record))
            case "lost_worker":
                self._waiting_since = time.monotonic()
                self.reporter.say(f"lost {record['message']}")
            case "bad_sample":
                self._bad += 1
                if self._bad <= _NAMED_BAD_SAMPLES:
                    self.reporter.say(f"left out: {record['message']}")

    def _progress(self, record: dict[str, Any]) -> str:
        losses = " ".join(f"{value:.3f}" for value in record["loss"])
        if "hint_loss" in record:
            losses += f", of hints {record['hint_loss']:.3f}"
        left = (self.total_steps - record["step"]) * record["seconds_per_step"]
        return (
            f"step {record['step']} of {self.total_steps} ({record['size']} px): loss by stage "
            f"{losses}, {record['samples_per_second']:.1f} samples/s, "
            f"{_waiting(record['wait_share'])}{duration(left)} left"
        )


def _waiting(share: float) -> str:
    """Only if it is worth a word."""
    return f"{share:.0%} of the time waiting for samples, " if share >= _WORTH_A_WORD else ""


def _epoch(record: dict[str, Any]) -> str:
    if not record["tune_pck"]:
        return f"epoch {record['epoch']:g} done; no split 'tune' to measure on"
    stages = " ".join(f"{value:.1f}" for value in record["tune_pck"])
    return f"epoch {record['epoch']:g} done; PCK on the tuning split by stage {stages} %"
