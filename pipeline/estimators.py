"""What an estimator is made of, as it travels from the driver to the workers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from cpm_core import cpu
from cpm_core.decode import Refinement
from cpm_core.info import WeightsInfo
from cpm_core.keypoints import KeypointEstimator, Precision

if TYPE_CHECKING:
    from cpm_core.compiled import Graph
    from pipeline.weights import WeightsFile


@dataclass(frozen=True)
class EstimatorSettings:
    """How weights are used: see `cpm_core.load`."""

    precision: Precision = "auto"
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    refinement: Refinement = "gaussian"
    box_factor: float | None = None

    def want_compiled(self, info: WeightsInfo) -> bool:
        """Whether CPUs are to have the network compiled: where every crop is looked at once, as it
        is, and PyTorch is not quicker. The large kernels of the original net are in fp32 only
        there, and `auto` is theirs to choose."""
        is_plain = not self.flip and self.scales == (1.0,)
        return is_plain and (info.config.trunk != "original" or self.precision == "bf16")


@dataclass(frozen=True)
class EstimatorSpec:
    """Weights and how to use them, for workers with one kind of device and so many threads each.

    They travel as their file's bytes, so that PyTorch is imported only where they are used: not
    where there is a `graph` and OpenVINO.
    """

    settings: EstimatorSettings
    device: str
    threads: int
    info: WeightsInfo
    sha256: str
    file: bytes = field(repr=False)
    graph: Graph | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        weights: WeightsFile,
        settings: EstimatorSettings,
        device: str,
        threads: int,
        graph: Graph | None,
    ) -> Self:
        """For workers that are laid out so; on GPUs PyTorch computes. Raises UsageError where the
        weights' file has changed meanwhile."""
        graph = graph if device == "cpu" else None
        content = weights.content()
        return cls(settings, device, threads, weights.info, weights.sha256, content, graph)

    def build(self) -> KeypointEstimator:
        """The estimator."""
        how = self.settings
        if self.graph is not None and cpu.has_openvino():
            from cpm_core.compiled_estimator import CompiledEstimator

            return CompiledEstimator(
                self.info,
                self.sha256,
                self.graph,
                self.threads,
                how.precision,
                how.refinement,
                how.box_factor,
            )
        import torch

        from cpm_core.estimator import Estimator
        from cpm_core.weights import Weights

        torch.set_num_threads(self.threads)
        weights = Weights.of(self.info, self.file, self.sha256)
        return Estimator(weights, self.device, **vars(how))
