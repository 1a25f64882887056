"""What a prepare actor and its decoder processes say to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpm_core.locators import LocatorSpec
from cpm_core.whole_image import WIDE
from pipeline.storage import StorageOptions

OUT_OF_MEMORY = 77
"""Exit code of a decoder process that ran out of memory in the middle of a message."""


@dataclass(frozen=True)
class DecoderConfig:
    """All that a decoder process needs to know."""

    storage: StorageOptions
    crop_size: int
    box_factor: float
    scales: tuple[float, ...]
    people: LocatorSpec
    max_people: int
    max_pixels: int
    max_bytes: int
    max_seconds: float
    max_memory: int
    fps: float | None
    max_frames: int = 10_000_000

    @property
    def view_shape(self) -> tuple[int, int, int, int]:
        """(V, S, S, 3), what is cut for a person: V crops, or one wide view of the picture."""
        if self.people.kind == "whole-image":
            side = WIDE * self.crop_size
            return 1, side, side, 3
        return len(self.scales), self.crop_size, self.crop_size, 3


@dataclass(frozen=True)
class Probe:
    """Ask how to cut a video."""

    uri: str
    largest: int


@dataclass(frozen=True)
class FrameResult:
    """A decoded frame: its people, best first. The crops follow as raw bytes."""

    frame_index: int | None
    pts: int | None
    timestamp_s: float | None
    width: int
    height: int
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    source: str | None
    box_error: str | None = None


@dataclass(frozen=True)
class Alive:
    """No answer yet, but the work goes on."""


@dataclass(frozen=True)
class Failure:
    """The unit could not be finished; frames sent before it stand."""

    code: str
    message: str


@dataclass(frozen=True)
class Finished:
    """The unit is done. `value` answers a probe."""

    value: Any = None
