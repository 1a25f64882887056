"""Who is there? Pictures of many decoders, looked at together by one person-net.

A prepare actor that finds people on its device has one of these for all its decoder processes.
"""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cpm_core.looks import Found
from pipeline.errors import PosemillError
from pipeline.stall import Pulse

_Asked: TypeAlias = tuple[NDArray[np.uint8], "Future[Found]"]


class Net(Protocol):
    """What looks at pictures: a `PersonNetLocator`."""

    size: int
    largest_batch: int

    def look(self, images: NDArray[np.uint8]) -> list[Found]:
        """What is found in each of several boxed pictures (N, S, S, 3)."""
        ...


class LookoutError(PosemillError):
    """The network cannot look. That is no fault of what it should have looked at."""


class Lookout:
    """A network in a thread of its own, for all threads that ask.

    What came in while it was busy is its next batch: nobody waits for a batch to fill.
    """

    def __init__(self, net: Net, pulse: Pulse) -> None:
        self.size = net.size
        self._net = net
        self._pulse = pulse
        self._asked: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="lookout", daemon=True)
        self._thread.start()

    def find(self, image: NDArray[np.uint8]) -> Found:
        """What is found in a boxed picture (S, S, 3), however long that takes.

        Raises LookoutError.
        """
        answer: Future[Found] = Future()
        self._asked.put((image, answer))
        return answer.result()

    def close(self) -> None:
        """End the thread; nobody may be asking any more."""
        self._asked.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while batch := self._next():
            images, answers = zip(*batch, strict=True)
            try:
                with self._pulse.at(f"locating people, pictures at once: {len(images)}"):
                    found = list(zip(answers, self._net.look(np.stack(images)), strict=True))
            except Exception as error:  # noqa: BLE001  (whatever it is, those who wait must hear of it)
                for answer in answers:
                    answer.set_exception(cannot_look(error))
                continue
            for answer, one in found:
                answer.set_result(one)

    def _next(self) -> list[_Asked]:
        """What waits, at most a batch of it; nothing when it is over."""
        batch: list[_Asked] = []
        # Nobody else takes anything out, and when it is to end nobody asks any more.
        while not batch or (len(batch) < self._net.largest_batch and not self._asked.empty()):
            asked = self._asked.get()
            if asked is None:
                return []
            batch.append(asked)
        return batch


def cannot_look(error: Exception) -> LookoutError:
    """What to tell of an error of the network's. Each who waits gets one of their own, as a
    traceback is added where it is raised."""
    told = LookoutError(
        f"people cannot be located on this device: {error!r}; --locator-device cpu locates them "
        "without it"
    )
    told.__cause__ = error
    return told
