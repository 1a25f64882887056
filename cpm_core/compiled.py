"""Networks compiled by OpenVINO, for inference on CPUs. No torch in here.

OpenVINO fuses layers and makes kernels for the processor at hand: it is quicker than PyTorch, and
most so where that has bf16 instructions (`benchmarks/forward.py`). A process that is handed a
network as a `Graph` need not import PyTorch, which takes a second and a half and 0.2 GiB.
`cpm_core.translate` makes graphs. OpenVINO is imported where it is used: a graph may reach a worker
that has none, and works in PyTorch.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from cpm_core.vino import ov


@dataclass(frozen=True)
class Graph:
    """A network as it travels: for every batch size OpenVINO's description and its constants."""

    by_batch: Mapping[int, tuple[bytes, bytes]] = field(repr=False)

    def models(self) -> dict[int, ov.Model]:
        """As OpenVINO's models, by batch size."""
        from cpm_core.vino import ov

        core = ov.Core()
        return {batch: core.read_model(*parts) for batch, parts in self.by_batch.items()}


class CompiledNetwork:
    """A network, given as OpenVINO's models for batches of 1 and, if need be, of another size.

    Called with crops (N, S, S, 3) of uint8 it returns float32 maps of every stage. As many of them
    as the larger batch holds, or one, go through the network at a time. Where there is a larger
    batch, each of `threads` CPU threads works at such a part of its own; a lone part, and crops of
    a network for batches of 1, have them all. Several threads may call it.

    OpenVINO itself is called from threads of its own, or the main one, which is quicker for a lone
    image: in threads that Python has not made (Daft's, Ray's) it leaves Python with a wrong idea of
    them, and the process dies.
    """

    def __init__(self, models: Mapping[int, ov.Model], bf16: bool, threads: int) -> None:
        self._batch = max(models)
        streams = threads if self._batch > 1 else 1
        self._side_by_side = _Streams(models, bf16, threads, streams)
        self._together = self._side_by_side if streams == 1 else _Streams(models, bf16, threads, 1)

    def __call__(self, crops: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        is_one = len(crops) in (1, self._batch)
        streams = self._together if is_one else self._side_by_side
        whole = len(crops) - len(crops) % (self._batch * streams.count)
        parts = streams.infer(
            [
                *(crops[n : n + self._batch] for n in range(0, whole, self._batch)),
                *(crops[n : n + 1] for n in range(whole, len(crops))),
            ]
        )
        return [np.concatenate(stage) for stage in zip(*parts, strict=True)]


class _Streams:
    """A network compiled for batches of some sizes, of which `count` are in the making at a
    time."""

    def __init__(
        self, models: Mapping[int, ov.Model], bf16: bool, threads: int, count: int
    ) -> None:
        from cpm_core.vino import ov

        self.count = count
        hints = {
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": count,
            # Estimators on one machine know nothing of each other and would share a core.
            "ENABLE_CPU_PINNING": False,
        }
        core = ov.Core()
        self._compiled = {n: core.compile_model(m, "CPU", hints) for n, m in models.items()}
        self._threads = ThreadPoolExecutor(count, "openvino")
        self._own = threading.local()

    def infer(self, batches: Sequence[NDArray[np.uint8]]) -> Iterator[list[NDArray[np.float32]]]:
        """The maps of every stage of each batch."""
        if len(batches) == 1 and threading.current_thread() is threading.main_thread():
            return map(self._infer, batches)
        return self._threads.map(self._infer, batches)

    def _infer(self, crops: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        # A request serves one call at a time: every thread has its own.
        if not hasattr(self._own, "requests"):
            self._own.requests = {
                n: model.create_infer_request() for n, model in self._compiled.items()
            }
        answers = self._own.requests[len(crops)].infer({0: crops}, share_inputs=True)
        return list(answers.values())
