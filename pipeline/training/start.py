"""Where a run starts from: the network's configuration and its first weights."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
import torch

from cpm_core.config import CpmConfig
from cpm_core.errors import CpmError
from cpm_core.lite import LiteTrunk
from cpm_core.model import Cpm
from cpm_core.pretrained import VGG_MEAN, load_efficientnet_lite0, load_vgg16
from cpm_core.skeleton import Skeleton
from cpm_core.teacher import Teacher
from cpm_core.weights import Weights
from pipeline.errors import UsageError
from pipeline.storage import StorageOptions
from pipeline.training.settings import TrainSettings
from pipeline.weights import read_weights

log = logging.getLogger("posemill")

_COLORS = ("color_order", "mean", "std")
_CONVENTIONS = (*_COLORS, "pooling", "cell_offset")
"""Parts of a configuration that change no shape, but what the layers mean."""


@dataclass(frozen=True)
class Start:
    """The network, for the size that it will have at last; `given` names the weights it takes."""

    config: CpmConfig
    weights: dict[str, torch.Tensor]
    given: str | None


def make_start(settings: TrainSettings, skeleton: Skeleton) -> Start:
    """Build the network and give it its first weights. Raises UsageError."""
    given = None
    try:
        weights = None
        if settings.start_from is not None:
            weights = read_weights(settings.start_from, StorageOptions(settings.s3_endpoint))
            given = weights.sha256
        config = _network(settings, skeleton, weights)
        torch.manual_seed(settings.seed)
        model = Cpm(config)
        if settings.trunk is not None:
            _load_trunk(model, settings.trunk)
        if weights is not None:
            _copy_fitting(model, weights, skeleton)
        if settings.teacher_spec is not None:
            # What fails here would otherwise fail in the loaders of every node.
            Teacher(settings.teacher_spec).hints(np.full((1, 64, 64, 3), 128, np.uint8))
    except CpmError as error:
        raise UsageError(str(error)) from error
    return Start(config, model.state_dict(), given)


def _network(settings: TrainSettings, skeleton: Skeleton, given: Weights | None) -> CpmConfig:
    """The preset's network, with the colours for which its first layers were made.

    Given weights of the same kind bring theirs. With VGG's mean, padding is the colour that a VGG
    trunk learned to see around pictures.
    """
    config = settings.network(len(skeleton))
    if given is not None and given.info.config.trunk == config.trunk:
        return replace(config, **{name: getattr(given.info.config, name) for name in _COLORS})
    if settings.trunk is not None and config.trunk == "vgg":
        return replace(config, mean=VGG_MEAN)
    return config


def _load_trunk(model: Cpm, path: str) -> None:
    if isinstance(model.shared, LiteTrunk):
        load_efficientnet_lite0(model.shared, path)
    elif model.config.trunk == "vgg":
        load_vgg16(model, path)
    else:
        raise UsageError("--trunk goes with --preset cpm-lite or cpm-vgg")


def _copy_fitting(model: Cpm, given: Weights, skeleton: Skeleton) -> None:
    """Take what fits by name and shape; with other joints, not what makes or reads their maps."""
    state = model.state_dict()
    fitting = {k: v for k, v in given.tensors.items() if k in state and v.shape == state[k].shape}
    if given.info.skeleton.keypoints != skeleton.keypoints:
        for name in _of_joints(model.config):
            fitting.pop(name, None)
    if not fitting:
        raise UsageError("--start-from holds nothing that fits this preset")
    model.load_state_dict(state | fitting)
    log.info("starting from %d of %d given tensors", len(fitting), len(given.tensors))
    for name in _CONVENTIONS:
        theirs, ours = getattr(given.info.config, name), getattr(model.config, name)
        if theirs != ours:
            log.warning("--start-from was made for %s %s, it goes on as %s", name, theirs, ours)


def _of_joints(config: CpmConfig) -> set[str]:
    """Names of the tensors whose shape depends on the number of joints."""
    with torch.device("meta"):
        one, other = (Cpm(replace(config, joints=joints)).state_dict() for joints in (1, 2))
    return {name for name, value in one.items() if value.shape != other[name].shape}
