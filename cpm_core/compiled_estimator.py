"""An estimator on a CPU that was handed its network compiled: it works without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cpm_core.compiled import CompiledNetwork, Graph
from cpm_core.decode import Refinement, decode
from cpm_core.info import WeightsInfo
from cpm_core.keypoints import CPU_BATCHES, THREAD_BATCHES, KeypointEstimator, Precision

if TYPE_CHECKING:
    from cpm_core.weights import Weights


@dataclass(frozen=True)
class CompiledWeights:
    """What `Weights` are to an `Estimator`: the network as a graph of its last stage's maps."""

    info: WeightsInfo
    sha256: str
    graph: Graph

    @classmethod
    def of(cls, weights: Weights) -> CompiledWeights:
        """From weights, which takes PyTorch and OpenVINO."""
        from cpm_core.lite import fold_batch_norm
        from cpm_core.translate import graph_of

        config = weights.info.config
        batches = {1, THREAD_BATCHES[config.trunk]}
        graph = graph_of(fold_batch_norm(weights.model()), config.input_size, batches)
        return cls(weights.info, weights.sha256, graph)


class CompiledEstimator(KeypointEstimator):
    """As `Estimator` on a CPU with `threads`, without mirrored or resized views."""

    def __init__(
        self,
        weights: CompiledWeights,
        threads: int,
        precision: Precision = "auto",
        refinement: Refinement = "gaussian",
        box_factor: float | None = None,
    ) -> None:
        info = weights.info
        super().__init__(info, weights.sha256, "cpu", precision, (1.0,), refinement, box_factor)
        self._batch = CPU_BATCHES[info.config.trunk]
        self._network = CompiledNetwork(weights.graph.models(), self.bf16, threads)

    def _keypoints(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        config = self.info.config
        found = [np.empty((0, len(self.info.skeleton), 3), np.float32)]
        for start in range(0, len(crops), self._batch):
            (maps,) = self._network(crops[start : start + self._batch, 0])
            found.append(decode(maps[:, :-1], config.cell_offset, self.refinement))
        return np.concatenate(found)
