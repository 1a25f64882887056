"""The parent's side of a decoder process: start it, time it, replace it."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Self

import numpy as np

from pipeline import children
from pipeline.errors import InputError, PosemillError
from pipeline.messages import (
    OUT_OF_MEMORY,
    Alive,
    DecoderConfig,
    Failure,
    Finished,
    FrameResult,
    Line,
    Look,
    Probe,
)
from pipeline.units import Unit

if TYPE_CHECKING:
    from pipeline.lookout import Lookout
    from pipeline.video import Range

_START_SECONDS = 60.0
_EXIT_SECONDS = 5.0


class Decoder:
    """One guarded decoder process, one unit at a time; not for use by two threads at once.

    The process is started when needed. If it dies, hangs for `max_seconds` without an answer, or
    runs out of memory, it is replaced, and the unit it was at gets an InputError.

    With a `lookout` the process asks who is in a picture, one at a time, and waits for the answer.
    (To decode the next frame of a video meanwhile, frames would have to be held and, where one is
    damaged, given out before the error; more decoder processes keep the CPUs busy as well.) The
    time until the answer is not the unit's, whose own starts anew with it. Raises LookoutError
    where there is none.
    """

    def __init__(self, config: DecoderConfig, lookout: Lookout | None = None) -> None:
        self.config = config if lookout is None else replace(config, look_size=lookout.size)
        self._lookout = lookout
        self._process: subprocess.Popen[bytes] | None = None
        self._line: Line | None = None
        self._lifeline: int | None = None
        # One byte, not 0 while it waits for storage.
        self._reading: mmap.mmap | None = None
        self._fresh = True
        self._busy = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ranges(self, uri: str, largest: int) -> list[Range]:
        """How to cut a video into units. Raises InputError."""
        *_, (finished, _) = self._ask(Probe(uri, largest), None)
        assert isinstance(finished, Finished)
        return finished.value  # type: ignore[no-any-return]

    def frames(self, unit: Unit, data: bytes | None) -> Iterator[tuple[FrameResult, memoryview]]:
        """Frames of a unit with the bytes of their crops, in order. May raise InputError after
        some."""
        for reply, crops in self._ask(unit, data):
            if isinstance(reply, FrameResult):
                yield reply, crops

    def interrupt(self) -> None:
        """Make what another thread waits for fail at once."""
        if (process := self._process) is not None:
            process.kill()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._line is not None:
            self._line.close()
        if self._lifeline is not None:
            os.close(self._lifeline)
        if self._reading is not None:
            self._reading.close()
        self._process = self._line = self._lifeline = self._reading = None
        self._busy = False

    def _ask(
        self, request: Unit | Probe, data: bytes | None
    ) -> Iterator[tuple[FrameResult | Finished, memoryview]]:
        """Answers of the process, Finished last."""
        try:
            line = self._ready()
            self._busy = True
            line.send((request, data))
            while True:
                reply = self._receive(line)
                if isinstance(reply, Alive):
                    continue
                if isinstance(reply, Look):
                    self._look(line)
                    continue
                self._busy = isinstance(reply, FrameResult)
                if isinstance(reply, Failure):
                    if reply.code == "out_of_memory":
                        # Whatever filled it must not be left to the next unit.
                        self.close()
                    raise InputError(reply.code, reply.message)
                people = len(reply.boxes) if isinstance(reply, FrameResult) else 0
                yield reply, line.receive_raw(people * prod(self.config.view_shape))
                if not self._busy:
                    return
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise self._post_mortem() from error
        except BlockingIOError as error:
            raise self._timed_out() from error
        except OSError as error:
            # What a socket raises when the other side dies in the middle of a message.
            raise self._post_mortem() from error

    def _ready(self) -> Line:
        """The line to the process; to a new one where the old one cannot take a request.

        An idle process may be killed when the machine runs out of memory, which is not the next
        unit's fault. And after a unit that was left in mid-answer, the rest of it is on the line.
        """
        # What is idle has nothing to say but that it is gone.
        if self._busy or (self._line is not None and not self._line.is_silent()):
            self.close()
        return self._line or self._start()

    def _look(self, line: Line) -> None:
        """Answer who is in the picture that comes."""
        assert self._lookout is not None
        size = self._lookout.size
        image = np.frombuffer(line.receive_raw(size * size * 3), np.uint8)
        line.send(self._lookout.find(image.reshape(size, size, 3)))

    def _receive(self, line: Line) -> Alive | Look | FrameResult | Failure | Finished:
        reply: Alive | Look | FrameResult | Failure | Finished = line.receive()
        if self._fresh:
            # The first thing it says, after its imports, is that it is there.
            self._fresh = False
            line.wait_at_most(self.config.max_seconds)
        return reply

    def _timed_out(self) -> InputError:
        assert self._reading is not None
        is_storage = self._reading[0]
        self.close()
        within = f"within {self.config.max_seconds:g} s"
        if is_storage:
            return InputError("storage", f"cannot be read: the storage gave nothing {within}")
        return InputError("timeout", f"no answer {within}")

    def _post_mortem(self) -> InputError:
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_SECONDS)
        code = self._process.poll()
        self.close()
        if code == OUT_OF_MEMORY:
            return InputError("out_of_memory", "decoding needs more than --max-memory")
        if code == -signal.SIGKILL:
            return InputError(
                "out_of_memory",
                "the decoder was killed, as happens when the machine is short of it",
            )
        reason = children.cause_of_death(code)
        return InputError("worker_crashed", f"the decoder process died: {reason}")

    def _start(self) -> Line:
        """Raises PosemillError where the machine has no process, memory or descriptors left."""
        try:
            with ExitStack() as stack:
                line = self._started(stack)
        except OSError as error:
            self.close()
            raise PosemillError(
                f"a decoder process cannot be started: {error}; are there too many processes or "
                "open files on this machine, or too little memory?"
            ) from error
        line.send(self.config)
        return line

    def _started(self, stack: ExitStack) -> Line:
        """A new process's line; `stack` closes its ends of what leads to it on this side."""
        ours, theirs = socket.socketpair()
        stack.callback(theirs.close)
        self._line = Line(ours)
        read_end, self._lifeline = os.pipe()
        stack.callback(os.close, read_end)
        shared = os.memfd_create("posemill-reading")
        stack.callback(os.close, shared)
        os.ftruncate(shared, 1)
        self._reading = mmap.mmap(shared, 1)
        handed = theirs.fileno(), read_end, shared
        self._line.wait_at_most(self.config.max_seconds + _START_SECONDS)
        environment = {
            # Every thread's arena would take address space, which --max-memory limits.
            "MALLOC_ARENA_MAX": "2",
            # OpenCV reads these when it is imported. A file may show it another size than it
            # shows Pillow; and what is wrong with a picture stands in its row, not in the log.
            "OPENCV_IO_MAX_IMAGE_PIXELS": str(self.config.max_pixels),
            "OPENCV_LOG_LEVEL": "SILENT",
        }
        self._process = children.start("pipeline.decoder", (), handed, environment)
        self._fresh = True
        return self._line
