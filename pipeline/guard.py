"""The parent's side of a decoder process: start it, time it, replace it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from pipeline.errors import InputError
from pipeline.messages import DecoderConfig, Failure, Finished, FrameResult, Probe
from pipeline.units import Unit

_START_SECONDS = 60.0


class Decoder:
    """One guarded decoder process, one unit at a time; not for use by two threads at once.

    The process is started when needed. If it dies, hangs for `max_seconds` without an answer, or
    runs out of memory, it is replaced, and the unit it was at gets an InputError.
    """

    def __init__(self, config: DecoderConfig) -> None:
        self.config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._lifeline: int | None = None
        self._fresh = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def ranges(self, uri: str, largest: int) -> list[Any]:
        """How to cut a video into units. Raises InputError."""
        for value in self._ask(Probe(uri, largest), None):
            return value  # type: ignore[no-any-return]
        raise AssertionError("a probe has one answer")

    def frames(self, unit: Unit, data: bytes | None) -> Iterator[tuple[FrameResult, bytes]]:
        """Frames of a unit with their crops as bytes, in order. May raise InputError after some."""
        yield from self._ask(unit, data)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._connection is not None:
            self._connection.close()
        if self._lifeline is not None:
            os.close(self._lifeline)
        self._process = self._connection = self._lifeline = None

    def _ask(self, request: Unit | Probe, data: bytes | None) -> Iterator[Any]:
        connection = self._connection or self._start()
        try:
            connection.send((request, data))
            while True:
                reply = self._receive(connection)
                if isinstance(reply, Failure):
                    raise InputError(reply.code, reply.message)
                if isinstance(reply, Finished):
                    if isinstance(request, Probe):
                        yield reply.value
                    return
                crops = self._receive_bytes(connection) if len(reply.boxes) else b""
                yield reply, crops
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise self._post_mortem() from error
        except GeneratorExit:
            # The unit was left in mid-answer: what is still in the pipe must not reach the next
            # one.
            self.close()
            raise

    def _receive(self, connection: Connection) -> Any:
        self._wait(connection)
        return connection.recv()

    def _receive_bytes(self, connection: Connection) -> bytes:
        self._wait(connection)
        return connection.recv_bytes()

    def _wait(self, connection: Connection) -> None:
        # Its first answer includes the imports.
        seconds = self.config.max_seconds + (_START_SECONDS if self._fresh else 0)
        if not connection.poll(seconds):
            self.close()
            raise InputError("timeout", f"no answer within {self.config.max_seconds:g} s")
        self._fresh = False

    def _post_mortem(self) -> InputError:
        assert self._process is not None
        code = self._process.wait()
        self.close()
        if code == -signal.SIGKILL:
            return InputError("out_of_memory", "the decoder process was killed, as the kernel does")
        reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return InputError("worker_crashed", f"the decoder process died: {reason}")

    def _start(self) -> Connection:
        ours, theirs = socket.socketpair()
        read_end, write_end = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.decoder", str(theirs.fileno()), str(read_end)],
            pass_fds=(theirs.fileno(), read_end),
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        theirs.close()
        os.close(read_end)
        self._lifeline = write_end
        self._connection = Connection(ours.detach())
        self._connection.send(self.config)
        self._fresh = True
        return self._connection
