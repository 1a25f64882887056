"""The decoder process: one unit in, frames with people and their crops out.

A child of the prepare actor (see `pipeline.guard`), started as `python -m pipeline.decoder FD
LIFELINE`. Whatever an input does to it (crash, hang, memory) hits this process alone. It imports
neither Ray nor torch.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.messages import DecoderConfig, Failure, Finished, Probe
from pipeline.units import Unit

_OOM_SCORE = "900"


def main() -> None:
    """Serve one parent until it is gone."""
    connection, lifeline = Connection(int(sys.argv[1])), int(sys.argv[2])
    threading.Thread(target=_die_with_parent, args=(lifeline,), daemon=True).start()
    config: DecoderConfig = connection.recv()
    # OpenCV reads this once, at import.
    os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(max(config.max_pixels, 1 << 30))
    from pipeline.worker import UnitWorker

    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(_OOM_SCORE)
    worker = UnitWorker(config)
    _limit_memory(config.max_memory)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            request, data = connection.recv()
            for reply, crops in _answer(worker, request, data):
                connection.send(reply)
                if crops is not None and crops.size:
                    connection.send_bytes(crops.data.cast("B"))


def _answer(
    worker: Any, request: Unit | Probe, data: bytes | None
) -> Iterator[tuple[Any, NDArray[np.uint8] | None]]:
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


def _die_with_parent(lifeline: int) -> None:
    """Nobody writes to the lifeline: reading ends when the parent is gone, even in mid-decode."""
    os.read(lifeline, 1)
    os._exit(1)


def _limit_memory(mebibytes: int) -> None:
    """Address space that may be taken on top of what the imports hold."""
    with open("/proc/self/statm") as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    limit = held + (mebibytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main()
