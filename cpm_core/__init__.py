"""The model half of PoseMill: Convolutional Pose Machines in PyTorch. No Ray, no object storage.

    import cpm_core
    estimator = cpm_core.load("cpm-lite")
    keypoints = estimator.estimate(picture, boxes)  # (N, K, 3): x and y in pixels, score

Names are loaded on first use, so that a process which only cuts crops does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cpm_core.config import CpmConfig as CpmConfig
    from cpm_core.config import preset as preset
    from cpm_core.crops import Cropper as Cropper
    from cpm_core.errors import CpmError as CpmError
    from cpm_core.estimator import Estimator as Estimator
    from cpm_core.estimator import load as load
    from cpm_core.model import Cpm as Cpm
    from cpm_core.skeleton import Skeleton as Skeleton
    from cpm_core.skeleton import load_skeleton as load_skeleton

_HOME = {
    "Cpm": "model",
    "CpmConfig": "config",
    "CpmError": "errors",
    "Cropper": "crops",
    "Estimator": "estimator",
    "Skeleton": "skeleton",
    "load": "estimator",
    "load_skeleton": "skeleton",
    "preset": "config",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cpm_core' has no attribute {name!r}")
    return getattr(import_module(f"cpm_core.{_HOME[name]}"), name)
