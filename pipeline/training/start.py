"""Where a run starts from: the network's configuration and its first weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from cpm_core.config import CpmConfig
from cpm_core.errors import CpmError
from cpm_core.skeleton import Skeleton
from cpm_core.start import first_network
from cpm_core.teacher import Teacher
from pipeline.errors import UsageError
from pipeline.storage import StorageOptions
from pipeline.training.settings import TrainSettings
from pipeline.weights import read_weights


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
        if settings.start_from is not None:
            given = read_weights(settings.start_from, StorageOptions(settings.s3_endpoint))
        config = settings.network(len(skeleton))
        model = first_network(config, skeleton, settings.seed, settings.trunk, given)
        if settings.teacher_spec is not None:
            # What fails here would otherwise fail in the loaders of every node.
            Teacher(settings.teacher_spec).hints(np.full((1, 64, 64, 3), 128, np.uint8))
    except CpmError as error:
        raise UsageError(str(error)) from error
    return Start(model.config, model.state_dict(), given.sha256 if given else None)
