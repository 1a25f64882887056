"""What an estimator is made of, as it travels from the driver to the workers."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

from cpm_core import cpu
from cpm_core.decode import Refinement
from cpm_core.keypoints import KeypointEstimator, Precision

if TYPE_CHECKING:
    from cpm_core.compiled_estimator import CompiledWeights
    from cpm_core.weights import Weights


@dataclass(frozen=True)
class EstimatorSettings:
    """How weights are used: see `cpm_core.load`."""

    precision: Precision = "auto"
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    refinement: Refinement = "gaussian"
    box_factor: float | None = None

    @property
    def is_plain(self) -> bool:
        """Whether every crop is looked at once, as it is."""
        return not self.flip and self.scales == (1.0,)


@dataclass(frozen=True)
class EstimatorSpec:
    """Weights and how to use them, for workers with one kind of device and so many threads each.

    `weights` are pickled, so that PyTorch is imported only where they are used: not where
    `compiled` ones are there, and can be.
    """

    settings: EstimatorSettings
    device: str
    threads: int
    weights: bytes = field(repr=False)
    compiled: CompiledWeights | None = field(default=None, repr=False)

    @classmethod
    def of(cls, weights: Weights, settings: EstimatorSettings, device: str, threads: int) -> Self:
        """On CPUs with the network compiled, where that is quicker than PyTorch: the large kernels
        of the original net are in fp32 only without it, and `auto` is theirs to choose."""
        spec = cls(settings, device, threads, pickle.dumps(weights))
        is_quicker = weights.info.config.trunk != "original" or settings.precision == "bf16"
        if device != "cpu" or not (settings.is_plain and is_quicker and cpu.has_openvino()):
            return spec
        from cpm_core.compiled_estimator import CompiledWeights

        return replace(spec, compiled=CompiledWeights.of(weights))

    def build(self) -> KeypointEstimator:
        """The estimator."""
        settings = self.settings
        if self.compiled is not None and cpu.has_openvino():
            from cpm_core.compiled_estimator import CompiledEstimator

            return CompiledEstimator(
                self.compiled,
                self.threads,
                settings.precision,
                settings.refinement,
                settings.box_factor,
            )
        import torch

        from cpm_core.estimator import Estimator

        torch.set_num_threads(self.threads)
        return Estimator(pickle.loads(self.weights), self.device, **vars(settings))
