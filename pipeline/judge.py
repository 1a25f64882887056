"""When too much fails for the inputs to be the reason."""

from __future__ import annotations

from collections import Counter, deque

from pipeline.errors import PosemillError
from pipeline.stages import Outcome, access_failures
from pipeline.summary import Summary

_UNITS_BEFORE_JUDGING = 200


class Judge:
    """Stops a run of which too much fails.

    Of all failures the share in the whole run counts, as a folder of bad pictures is no reason to
    stop. Of objects that cannot be fetched the latest units count: credentials may expire late.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._run = Summary()
        self._latest: deque[Summary] = deque()

    def add(self, outcome: Outcome) -> None:
        """Count a shard; raises PosemillError."""
        if outcome.amended:
            # What is done again had failed before: that most of it fails once more is no news.
            return
        if outcome.committed:
            self._run.add(outcome.summary)
            self._judge(self._run.units, self._run.failed_units, self._run.failed)
        self._latest.append(outcome.summary)
        units = sum(summary.units for summary in self._latest)
        while units - self._latest[0].units >= _UNITS_BEFORE_JUDGING:
            units -= self._latest.popleft().units
        codes = sum((access_failures(summary) for summary in self._latest), Counter[str]())
        self._judge(units, codes.total(), codes)

    def _judge(self, units: int, failed: int, codes: Counter[str]) -> None:
        if units < _UNITS_BEFORE_JUDGING or failed <= self.limit * units:
            return
        code, count = codes.most_common(1)[0]
        raise PosemillError(
            f"{failed} of {units} units failed (most: {code}, {count}), over --max-failures "
            f"{self.limit:g}; check the inputs and the credentials, then run the same command again"
        )
