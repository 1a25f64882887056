"""The decoder process: one unit in, frames with people and their crops out.

A child of the prepare actor (see `pipeline.guard`), started as `python -m pipeline.decoder FD
LIFELINE SHARED`. Whatever an input does to it (crash, hang, memory) hits this process alone. It
imports no Ray, and torch only where it finds people itself and there is no OpenVINO.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError, redact
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
    from cpm_core.looks import Found
    from pipeline.worker import UnitWorker

log = logging.getLogger("posemill")

_OOM_SCORE = "900"
_ALIVE_EVERY_S = 1.0

Answer = tuple[FrameResult | Finished | Failure, NDArray[np.uint8] | None]


def main() -> None:
    """Serve one parent until it is gone."""
    fd, lifeline, shared = map(int, sys.argv[1:])
    line = Line(socket.socket(fileno=fd))
    _die_with_parent(lifeline)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(_OOM_SCORE)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            _serve(line, line.receive(), mmap.mmap(shared, 1))
        except MemoryError:
            # A message was cut off in the middle: only a new process can go on.
            os._exit(OUT_OF_MEMORY)


def _serve(line: Line, config: DecoderConfig, shared: mmap.mmap) -> None:
    from pipeline.worker import UnitWorker

    @contextlib.contextmanager
    def reading() -> Iterator[None]:
        shared[0] = True
        try:
            yield
        finally:
            shared[0] = False

    def ask(image: NDArray[np.uint8]) -> Found:
        line.send(Look(), image.data)
        found: Found = line.receive()
        return found

    worker = UnitWorker(config, _Heartbeat(line), reading, ask)
    _limit_memory(config.max_memory)
    # Its first unit's time starts now.
    line.send(Alive())
    while True:
        request, data = line.receive()
        for reply, crops in _answer(worker, request, data):
            line.send(reply, crops.data if crops is not None and crops.size else None)


def _answer(worker: UnitWorker, request: Unit | Probe, data: bytes | None) -> Iterator[Answer]:
    try:
        if isinstance(request, Probe):
            yield Finished(worker.probe(request)), None
        else:
            yield from worker.frames(request, data)
            yield Finished(), None
    except InputError as error:
        yield Failure(error.code, str(error)), None
    except MemoryError:
        yield Failure("out_of_memory", "decoding needs more than --max-memory"), None
    except Exception as error:  # noqa: BLE001  (whatever it is, its unit's row must say so)
        trace = traceback.format_exc()
        log.error("%s failed\n%s", redact(ascii(request.uri)), redact(trace))
        yield Failure("internal", repr(error)), None


class _Heartbeat:
    """Tells the parent, at most once a second, that work goes on."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.last = 0.0

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self.last >= _ALIVE_EVERY_S:
            self.last = now
            self.line.send(Alive())


def _die_with_parent(lifeline: int) -> None:
    """Be ended by a signal, whatever goes on here, as soon as the parent is gone.

    The parent holds the other end of this pipe, and never writes. SIGKILL ends even a process that
    hangs in a decoder, or is stopped.
    """
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    if select.select([lifeline], [], [], 0)[0]:
        os._exit(1)


def _limit_memory(mebibytes: int) -> None:
    """Address space that may be taken on top of what the imports hold."""
    with open("/proc/self/statm") as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    limit = held + (mebibytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main()
