"""What a prepare actor and its decoder processes say to each other."""

from __future__ import annotations

import pickle
import socket
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpm_core.locators import LocatorSpec
from cpm_core.whole_image import WIDE
from pipeline.storage import StorageOptions

OUT_OF_MEMORY = 77
"""Exit code of a decoder process that ran out of memory in the middle of a message."""


@dataclass(frozen=True)
class DecoderConfig:
    """All that a decoder process needs to know."""

    storage: StorageOptions
    crop_size: int
    box_factor: float
    scales: tuple[float, ...]
    people: LocatorSpec
    max_people: int
    max_pixels: int
    max_bytes: int
    max_seconds: float
    max_memory: int
    fps: float | None
    max_frames: int = 10_000_000
    look_size: int | None = None
    """Side of the square in which a picture is shown to the parent, who then says who is in it;
    None: the decoder process finds that out itself."""

    @property
    def view_shape(self) -> tuple[int, int, int, int]:
        """(V, S, S, 3), what is cut for a person: V crops, or one wide view of the picture."""
        if self.people.kind == "whole-image":
            side = WIDE * self.crop_size
            return 1, side, side, 3
        return len(self.scales), self.crop_size, self.crop_size, 3


@dataclass(frozen=True)
class Probe:
    """Ask how to cut a video."""

    uri: str
    largest: int


@dataclass(frozen=True)
class Look:
    """Who is in a picture? It follows, boxed, as raw bytes (S, S, 3), where S is `look_size`.

    The answer is boxes and scores, as `cpm_core.looks.Found`.
    """


@dataclass(frozen=True)
class FrameResult:
    """A decoded frame: its people, best first. The crops follow as raw bytes."""

    frame_index: int | None
    pts: int | None
    timestamp_s: float | None
    width: int
    height: int
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    source: str | None
    box_error: str | None = None


@dataclass(frozen=True)
class Alive:
    """No answer yet, but the work goes on."""


@dataclass(frozen=True)
class Failure:
    """The unit could not be finished; frames sent before it stand."""

    code: str
    message: str


@dataclass(frozen=True)
class Finished:
    """The unit is done. `value` answers a probe."""

    value: Any = None


class Line:
    """One end of a socket between the two. A message is pickled; raw bytes may follow it.

    Bytes go straight to where they are wanted; multiprocessing's own connection would gather them
    in pieces and copy them. Receiving raises EOFError when the other side is gone, and either way
    OSError.
    """

    _LENGTH = struct.Struct("!Q")

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def send(self, message: object, raw: memoryview | None = None) -> None:
        """A message and the bytes that follow it."""
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        self._socket.sendall(self._LENGTH.pack(len(data)) + data)
        if raw is not None:
            self._socket.sendall(raw)

    def receive(self) -> Any:
        """The next message."""
        (length,) = self._LENGTH.unpack(self.receive_raw(self._LENGTH.size))
        return pickle.loads(self.receive_raw(length))

    def receive_raw(self, count: int) -> memoryview:
        """So many bytes that follow a message."""
        whole = np.empty(count, np.uint8).data
        left = whole
        while left:
            received = self._socket.recv_into(left, flags=socket.MSG_WAITALL)
            if not received:
                raise EOFError
            left = left[received:]
        return whole

    def wait_at_most(self, seconds: float) -> None:
        """From now on raise BlockingIOError when nothing can be sent or received for so long."""
        # 0 would mean for ever.
        limit = struct.pack("@ll", *divmod(max(1, int(seconds * 1e6)), 1_000_000))
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, limit)

    def is_silent(self) -> bool:
        """Whether the other side is there and has said nothing that was not received."""
        try:
            self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        """Hang up."""
        self._socket.close()
