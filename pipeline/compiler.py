"""Weights are checked, and networks made ready for the workers, by a child of the driver, which
needs no PyTorch then.

The child, `python -m pipeline.compiler PIPE FILE WEIGHTS [pose] [person-net]`, answers through a
pipe: with the weights' SHA-256 once it has found them good, then with nothing when the networks
that are named are in the file, compiled. So it ends when it is done, however long the driver lists
inputs. An error takes the place of either answer, and is the last one.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, TYPE_CHECKING, Any

from cpm_core import cpu
from cpm_core.errors import CpmError
from pipeline import children
from pipeline.errors import PosemillError, UsageError

if TYPE_CHECKING:
    from cpm_core.compiled import Graph
    from cpm_core.person_net.compiled import CompiledPersonNet
    from pipeline.weights import WeightsFile

    Networks = tuple[Graph | None, CompiledPersonNet | None]

POSE, PERSON_NET = "pose", "person-net"
_NICENESS = 10


class Compiler:
    """The driver's side: checks weights, and compiles the pose network and the person-net where
    that is asked for and there is OpenVINO.

    The child is started by `start`, or when something is wanted of it, and does all that at a
    stretch, beside what the driver does meanwhile.
    """

    def __init__(self, weights: WeightsFile, pose: bool, person_net: bool) -> None:
        self._weights = weights
        wanted = {POSE: pose, PERSON_NET: person_net}
        self._wanted = [name for name, is_wanted in wanted.items() if is_wanted]
        if not cpu.has_openvino():
            self._wanted = []
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: IO[bytes] | None = None
        self._file: IO[bytes] | None = None
        self._is_checked = False
        self._stack = ExitStack()

    def start(self) -> None:
        """Begin, if that is not done. Raises PosemillError where no process can be started."""
        if self._process is not None:
            return
        try:
            self._start(self._stack)
        except OSError as error:
            raise PosemillError(
                f"the process that makes the networks ready cannot be started: {error}; are there "
                "too many processes on this machine, or too little memory or room in TMPDIR?"
            ) from error

    def _start(self, stack: ExitStack) -> None:
        path = stack.enter_context(self._weights.path())
        # Whatever happens to the child, its files go.
        folder = stack.enter_context(TemporaryDirectory(prefix="posemill-networks-"))
        # Threads of OpenMP would spin.
        environment = {"TMPDIR": folder, "OMP_NUM_THREADS": "1"}
        self._file = stack.enter_context(TemporaryFile())  # noqa: SIM115
        read_end, write_end = os.pipe()
        self._answers = stack.enter_context(os.fdopen(read_end, "rb"))
        with open(write_end, "wb"):
            handed = write_end, self._file.fileno()
            words = str(path), *self._wanted
            process = children.start("pipeline.compiler", words, handed, environment)
        self._process = stack.enter_context(process)
        stack.callback(process.kill)

    def check(self) -> None:
        """Wait until the weights are found good. Raises UsageError for a file with other tensors
        than it says, or that has changed meanwhile."""
        self.start()
        if self._is_checked:
            return
        try:
            self._weights.check(self._receive())
        except CpmError as error:
            raise self._weights.refused(error) from error
        self._is_checked = True

    def networks(self) -> Networks:
        """Wait for what is asked for. Raises UsageError as `check`."""
        self.check()
        try:
            self._receive()
        except CpmError as error:
            raise UsageError(str(error)) from error
        assert self._file is not None
        self._file.seek(0)
        networks: Networks = pickle.load(self._file)
        self.close()
        return networks

    def close(self) -> None:
        """End the child, and remove its files."""
        self._stack.close()
        self._process = None
        self._is_checked = False

    def _receive(self) -> Any:
        """The next answer. Raises CpmError for a file that is none, else PosemillError."""
        assert self._process is not None
        assert self._answers is not None
        try:
            answer = pickle.load(self._answers)
        except (EOFError, pickle.UnpicklingError) as error:
            raise _failure(_post_mortem(self._process.wait())) from error
        if isinstance(answer, CpmError):
            raise answer
        if isinstance(answer, Exception):
            raise _failure(f"has failed: {answer}")
        return answer


def _failure(what: str) -> PosemillError:
    return PosemillError(
        f"the process that makes the networks ready {what}; mend it, then run the same command "
        "again"
    )


def _post_mortem(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed, as happens when the machine is short of memory"
    return f"died: {children.cause_of_death(code)}"


def main() -> None:
    """The child."""
    pipe_fd, file_fd, path, *wanted = sys.argv[1:]
    try:
        with open(int(pipe_fd), "wb") as pipe, open(int(file_fd), "wb") as file:
            for answer in _answers(file, path, wanted):
                pickle.dump(answer, pipe, pickle.HIGHEST_PROTOCOL)
                pipe.flush()
    except BrokenPipeError:
        sys.exit(1)


def _answers(file: IO[bytes], path: str, wanted: Sequence[str]) -> Iterator[str | Exception | None]:
    try:
        from cpm_core.weights import load_weights

        weights = load_weights(path)
        yield weights.sha256
        # Ray starts meanwhile, and has the CPUs first.
        os.nice(_NICENESS)
        graph = net = None
        if POSE in wanted:
            from cpm_core.keypoints import THREAD_BATCHES
            from cpm_core.translate import graph_of

            graph = graph_of(weights, THREAD_BATCHES[weights.info.config.trunk])
        if PERSON_NET in wanted:
            from cpm_core.person_net.compiled import CompiledPersonNet

            net = CompiledPersonNet.shipped()
        pickle.dump((graph, net), file, pickle.HIGHEST_PROTOCOL)
        file.flush()
        yield None
    except Exception as error:  # noqa: BLE001  (whatever it is, the driver must tell it)
        yield error if isinstance(error, CpmError) else RuntimeError(repr(error))


if __name__ == "__main__":
    main()
