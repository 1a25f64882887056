"""Where training starts from: the first weights of a network."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from cpm_core.config import CpmConfig
from cpm_core.errors import ConfigError
from cpm_core.lite import LiteTrunk
from cpm_core.model import Cpm
from cpm_core.pretrained import VGG_MEAN, load_efficientnet_lite0, load_vgg16
from cpm_core.skeleton import Skeleton
from cpm_core.weights import Weights

log = logging.getLogger("posemill")

_COLORS = ("color_order", "mean", "std")
_CONVENTIONS = (*_COLORS, "pooling", "cell_offset")
"""Parts of a configuration that change no shape, but what the layers mean."""


def first_network(
    config: CpmConfig,
    skeleton: Skeleton,
    seed: int,
    trunk: str | None = None,
    given: Weights | None = None,
) -> Cpm:
    """A network of a preset's `config`, with the colours for which its first layers were made.

    Random weights of `seed`, then a pretrained `trunk` (a file), then all that fits of `given`
    weights. Raises CpmError for files that do not fit.
    """
    torch.manual_seed(seed)
    model = Cpm(_coloured(config, trunk, given))
    if trunk is not None:
        _load_trunk(model, trunk)
    if given is not None:
        _copy_fitting(model, given, skeleton)
    return model


def _coloured(config: CpmConfig, trunk: str | None, given: Weights | None) -> CpmConfig:
    """Given weights of the same kind bring their colours. With VGG's mean, padding is the colour
    that a VGG trunk learned to see around pictures."""
    if given is not None and given.info.config.trunk == config.trunk:
        return replace(config, **{name: getattr(given.info.config, name) for name in _COLORS})
    if trunk is not None and config.trunk == "vgg":
        return replace(config, mean=VGG_MEAN)
    return config


def _load_trunk(model: Cpm, path: str) -> None:
    if isinstance(model.shared, LiteTrunk):
        load_efficientnet_lite0(model.shared, path)
    elif model.config.trunk == "vgg":
        load_vgg16(model, path)
    else:
        raise ConfigError("--trunk goes with --preset cpm-lite or cpm-vgg")


def _copy_fitting(model: Cpm, given: Weights, skeleton: Skeleton) -> None:
    """Take what fits by name and shape; with other joints, not what makes or reads their maps."""
    state = model.state_dict()
    fitting = {k: v for k, v in given.tensors.items() if k in state and v.shape == state[k].shape}
    if given.info.skeleton.keypoints != skeleton.keypoints:
        for name in _of_joints(model.config):
            fitting.pop(name, None)
    if not fitting:
        raise ConfigError("--start-from holds nothing that fits this preset")
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
