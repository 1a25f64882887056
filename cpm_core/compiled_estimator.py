"""An estimator on a CPU that was handed its network compiled: it works without PyTorch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cpm_core.compiled import CompiledNetwork, Graph
from cpm_core.decode import Refinement, decode
from cpm_core.info import WeightsInfo
from cpm_core.keypoints import CPU_BATCHES, KeypointEstimator, Precision


class CompiledEstimator(KeypointEstimator):
    """As `Estimator` on a CPU with `threads`, without mirrored or resized views.

    `graph` is of its last stage's maps.
    """

    def __init__(
        self,
        info: WeightsInfo,
        sha256: str,
        graph: Graph,
        threads: int,
        precision: Precision = "auto",
        refinement: Refinement = "gaussian",
        box_factor: float | None = None,
    ) -> None:
        super().__init__(info, sha256, "cpu", precision, (1.0,), refinement, box_factor)
        self._network = CompiledNetwork(graph.models(), self.bf16, threads)

    def _keypoints(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        config = self.info.config
        batch = CPU_BATCHES[config.trunk]
        found = [np.empty((0, len(self.info.skeleton), 3), np.float32)]
        for start in range(0, len(crops), batch):
            (maps,) = self._network(crops[start : start + batch, 0])
            found.append(decode(maps[:, :-1], config.cell_offset, self.refinement))
        return np.concatenate(found)
