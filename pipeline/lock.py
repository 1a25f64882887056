"""One run per output, or one per partition of it: lock files with a heartbeat.

The holder rewrites the lock every 30 s. Another run takes it over once it has watched it stay the
same for 180 s by its own clock, or at once when the holder was a process on this boot of this
machine that is gone.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from pipeline.errors import LockedError, PosemillError
from pipeline.storage import Output

_HEARTBEAT_S = 30.0
_STALE_S = 180.0
_POLL_S = 10.0
_SETTLE_S = 1.0
FOLDER = "_locks"
_HOLDER = ("run", "host", "user", "boot", "pid", "process_start", "started")
_UNKNOWN: dict[str, Any] = {**dict.fromkeys(_HOLDER, "unknown"), "ending": False}


class Lock:
    """Holds `_locks/i-of-n` of an output while in a `with` block.

    Raises LockedError naming the run that holds it, or the lock of another number of partitions,
    which would share shards with this one. `on_wait` is told why it waits for a lock that may be
    stale.
    """

    def __init__(
        self,
        output: Output,
        partition: tuple[int, int],
        on_wait: Callable[[str], None],
        heartbeat_s: float = _HEARTBEAT_S,
        stale_s: float = _STALE_S,
        poll_s: float = _POLL_S,
    ) -> None:
        self.output = output
        self.suffix = f"-of-{partition[1]}"
        self.name = f"{FOLDER}/{partition[0] + 1}{self.suffix}"
        self.on_wait = on_wait
        self.heartbeat_s, self.stale_s, self.poll_s = heartbeat_s, stale_s, poll_s
        self.me = {
            "run": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "user": _user(),
            "boot": _boot_id(),
            "pid": os.getpid(),
            "process_start": _process_start(os.getpid()),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self.beats = 0
        self.lost = False
        self._is_ending = False
        self._cleared = False
        self._last_beat = time.monotonic()
        self._stop = threading.Event()
        self._renewal = threading.Lock()
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)

    def __enter__(self) -> Self:
        while not self._acquire():
            self._clear_stale(self.name)
            self._cleared = True
        # It beats while others are watched, too, which takes as long as it takes to go stale.
        self._last_beat = time.monotonic()
        self._thread.start()
        try:
            # Of two that start at the same time, each may see the other, and both stop.
            for name in self.output.list(FOLDER):
                if not name.endswith(self.suffix):
                    self._clear_stale(f"{FOLDER}/{name}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        # A lock that cannot be removed goes stale.
        with contextlib.suppress(PosemillError):
            if self._is_mine():
                self.output.remove(self.name)

    def check(self) -> None:
        """Raise PosemillError if another run took the lock over, or may have."""
        if self.lost:
            raise PosemillError(
                f"another run took over {self.output.uri}; this one stops, nothing is lost"
            )
        if time.monotonic() - self._last_beat > self.stale_s:
            raise PosemillError(
                f"{self.output.uri} could not be reached for {self.stale_s:g} s, and another run "
                "may have taken it over; run the same command again, nothing is lost"
            )

    def is_last(self) -> bool:
        """Whether no other run is at work on the output any more, but at its end as this one.

        Each says so before it looks: of two that end together at least one sees that it is the
        last.
        """
        self._is_ending = True
        self._renew()
        self.check()
        others = (holder for holder in holders(self.output) if holder["run"] != self.me["run"])
        return not any(holder["alive"] and not holder["ending"] for holder in others)

    def _acquire(self) -> bool:
        """Create the lock. One that was there before was cleared: by others at the same time, too,
        so that theirs, or this one, may be gone again at once."""
        if not self.output.create(self.name, self._document()) and not self._is_mine():
            return False
        if self._cleared:
            self._stop.wait(min(self.poll_s, _SETTLE_S))
        return not self._cleared or self._is_mine()

    def _document(self) -> bytes:
        return json.dumps({**self.me, "beats": self.beats, "ending": self._is_ending}).encode()

    def _is_mine(self) -> bool:
        data = self.output.read(self.name)
        return data is not None and _parse(data)["run"] == self.me["run"]

    def _beat(self) -> None:
        while not self._stop.wait(self.heartbeat_s):
            # Storage that is away for a while is no reason to stop; `check` says when it is.
            with contextlib.suppress(PosemillError):
                self._renew()
                if self.lost:
                    return

    def _renew(self) -> None:
        with self._renewal:
            found = self.output.read_version(self.name)
            if found is None or _parse(found[0])["run"] != self.me["run"]:
                self.lost = True
                return
            self.beats += 1
            # Somebody who takes it over in between is not overwritten, and seen next time.
            if self.output.replace_if(self.name, self._document(), found[1]):
                self._last_beat = time.monotonic()

    def _clear_stale(self, name: str) -> None:
        """Remove a lock if its holder is gone; raise if it is alive."""
        first = self.output.read(name)
        if first is None:
            return
        holder = _parse(first)
        if holder["boot"] == self.me["boot"] and holder["process_start"]:
            if _process_start(holder["pid"]) == holder["process_start"]:
                raise self._held_by(holder)
        else:
            self._watch(name, first, holder)
        self.output.remove(name)

    def _watch(self, name: str, first: bytes, holder: dict[str, Any]) -> None:
        """Return once the lock has not changed for `stale_s`; raise if it does."""
        self.on_wait(
            f"{self.output.uri} is locked by process {holder['pid']} on {holder['host']}; "
            f"watching it for up to {self.stale_s:g} s"
        )
        deadline = time.monotonic() + self.stale_s
        while time.monotonic() < deadline:
            self._stop.wait(self.poll_s)
            now = self.output.read(name)
            if now is None:
                return
            if now != first:
                raise self._held_by(_parse(now))

    def _held_by(self, holder: dict[str, Any]) -> LockedError:
        return LockedError(
            f"{self.output.uri} is in use by another run: process {holder['pid']} on "
            f"{holder['host']}, started {holder['started']}; wait for it, or give another --output"
        )


def holders(output: Output) -> list[dict[str, Any]]:
    """What the locks of an output say of those who hold them; `alive` says whether they may be.

    On this boot of this machine a process is asked for, elsewhere the age of the heartbeat.
    """
    found = []
    for name, beaten in output.times(FOLDER).items():
        data = output.read(f"{FOLDER}/{name}")
        if data is None:
            continue
        holder = _parse(data)
        if holder["boot"] == _boot_id() and holder["process_start"]:
            alive = _process_start(holder["pid"]) == holder["process_start"]
        else:
            alive = (datetime.now(UTC) - beaten).total_seconds() < _STALE_S
        found.append({**holder, "alive": alive})
    return found


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container's user may have no name.
        return str(os.getuid())


def _parse(data: bytes) -> dict[str, Any]:
    """A lock's document; a damaged one is of an unknown run."""
    try:
        return {**_UNKNOWN, **json.loads(data)}
    except (ValueError, TypeError):
        return _UNKNOWN


def _boot_id() -> str:
    """Names this boot of this machine (and, within it, this process namespace)."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    if not boot.exists():
        return f"{socket.gethostname()}-{uuid.getnode()}"
    return f"{boot.read_text().strip()}-{os.readlink(namespace)}"


def _process_start(pid: int) -> str | None:
    """When a process of this machine started, in clock ticks since boot; None if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    is_gone = fields[0] in "ZX"
    return None if is_gone else fields[19]
