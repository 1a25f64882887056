"""A log line with the rate, so that long work is seen to go on."""

from __future__ import annotations

import logging
import time

log = logging.getLogger("posemill")


class Pace:
    """Counts what is done, and every few seconds logs the count and the rate."""

    def __init__(self, doing: str, unit: str, seconds: float) -> None:
        self._doing, self._unit, self._seconds = doing, unit, seconds
        self._count = 0
        self._start = self._last = time.monotonic()

    def step(self) -> None:
        """One more is done."""
        self._count += 1
        now = time.monotonic()
        if now - self._last >= self._seconds:
            self._last = now
            rate = self._count / (now - self._start)
            log.info("%s: %s %s, %.1f/s", self._doing, f"{self._count:,}", self._unit, rate)
