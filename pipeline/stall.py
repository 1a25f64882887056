"""Nothing moves: which stage is at what, and since when?

Every stage keeps a `Pulse` of what it is at. What takes long is noted on a board, an actor that the
driver asks when no shard has come through for a while. While all goes well nothing is sent.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

_LOOK_EVERY_S = 5.0
_LAST_LOOK_S = 1.0


@dataclass(frozen=True)
class Note:
    """What an actor is at: its stage, the shard or unit, and for how many seconds."""

    stage: str
    what: str
    seconds: float


class Board:
    """Notes by actor; made an actor of Ray by the executor."""

    def __init__(self) -> None:
        self._notes: dict[str, tuple[Note, float]] = {}

    def pin(self, key: str, note: Note | None) -> None:
        """An actor's latest note, or none."""
        self._notes.pop(key, None)
        if note is not None:
            self._notes[key] = note, time.monotonic()

    def notes(self) -> list[Note]:
        """All notes, the longest first."""
        now = time.monotonic()
        aged = [
            Note(note.stage, note.what, note.seconds + now - pinned)
            for note, pinned in self._notes.values()
        ]
        return sorted(aged, key=lambda note: -note.seconds)


class Pulse:
    """What one actor is at. `pin`, if there is one, gets a note of what has taken long, and None
    when it is over."""

    def __init__(
        self,
        stage: str,
        pin: Callable[[str, Note | None], object] | None = None,
        look_every_s: float = _LOOK_EVERY_S,
    ) -> None:
        self.stage = stage
        self._key = uuid.uuid4().hex
        self._started: dict[object, tuple[str, float]] = {}
        self._is_pinned = False
        self._every = look_every_s
        if pin is not None:
            threading.Thread(target=self._look, args=(pin,), name="pulse", daemon=True).start()

    @classmethod
    def on(cls, stage: str, board: Any) -> Self:
        """A pulse whose notes go to a board that is an actor."""
        return cls(stage, board.pin.remote)

    @contextmanager
    def at(self, what: str) -> Iterator[None]:
        """While inside, the actor is at this; several threads may be at several things."""
        key = object()
        self._started[key] = what, time.monotonic()
        try:
            yield
        finally:
            del self._started[key]

    def _look(self, pin: Callable[[str, Note | None], object]) -> None:
        stop = threading.Event()
        while not stop.wait(self._every):
            now = time.monotonic()
            # A copy, as others come and go.
            started = list(self._started.values())
            what, since = min(started, key=lambda item: item[1], default=("", now))
            takes_long = now - since >= self._every
            if takes_long or self._is_pinned:
                pin(self._key, Note(self.stage, what, now - since) if takes_long else None)
            self._is_pinned = takes_long


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
