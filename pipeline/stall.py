"""Nothing moves: which stage is at what, and since when?

Every actor keeps a `Pulse` of what it is at, for which the driver asks when no shard has come
through for a while. While all goes well nothing is sent.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

_LAST_LOOK_S = 1.0


@dataclass(frozen=True)
class Note:
    """What an actor is at: its stage, the shard or unit, and for how many seconds."""

    stage: str
    what: str
    seconds: float


class Pulse:
    """What one actor is at: several threads may be at several things."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._started: dict[object, tuple[str, float]] = {}

    @contextmanager
    def at(self, what: str) -> Iterator[None]:
        """While inside, the actor is at this."""
        key = object()
        self._started[key] = what, time.monotonic()
        try:
            yield
        finally:
            del self._started[key]

    def notes(self) -> list[Note]:
        """All that it is at."""
        now = time.monotonic()
        # A copy, as others come and go.
        return [Note(self.stage, what, now - at) for what, at in list(self._started.values())]


class Watchdog:
    """Tells what does not move when nothing has come through for `after_s`, then twice that, ….

    A context; `moved` says that something came through.
    """

    def __init__(
        self,
        after_s: float,
        notes: Callable[[], list[Note]],
        say: Callable[[str], None],
    ) -> None:
        self._after, self._notes, self._say = after_s, notes, say
        self._stop = threading.Event()
        self._last = time.monotonic()
        self._patience = after_s
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self.moved()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        # Whoever is asked for notes at this moment may be gone for good.
        self._thread.join(_LAST_LOOK_S)

    def moved(self) -> None:
        """A shard came through."""
        self._last = time.monotonic()
        self._patience = self._after

    def _watch(self) -> None:
        while not self._stop.wait(max(0.1, self._last + self._patience - time.monotonic())):
            still = time.monotonic() - self._last
            if still < self._patience:
                continue
            self._patience *= 2
            self._say(f"no shard has come through for {still:.0f} s; {_described(self._notes())}")


def _described(notes: list[Note]) -> str:
    if not notes:
        return "no stage is at anything: see `ray status` for resources that are waited for"
    longest = "; ".join(f"{n.stage}: {n.what} for {n.seconds:.0f} s" for n in notes[:3])
    return f"the longest at work: {longest}"
