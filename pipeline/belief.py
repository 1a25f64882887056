"""What the network believes about a joint, stage by stage, in one picture."""

from __future__ import annotations

import difflib
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator

from cpm_core.belief import stages_figure
from cpm_core.skeleton import Skeleton
from pipeline.config import setting
from pipeline.errors import InputError, UsageError
from pipeline.fetch import fetch
from pipeline.picture_files import check_picture_name, write_picture
from pipeline.pictures import decode_picture
from pipeline.settings import Settings
from pipeline.storage import StorageOptions
from pipeline.weights import estimator

_MOST_BYTES = 1 << 28
_MOST_PIXELS = 100_000_000


class BeliefSettings(Settings):
    """Draw belief maps over a person, one row per joint and one column per stage.

    posemill belief photo.jpg --joint right_elbow right_wrist --to belief.png
    """

    picture: str = setting("run", ..., "picture, local or any fsspec URL", min_length=1)
    joint: tuple[str, ...] = setting(
        "run", (), "keypoints of the weights' skeleton, such as right_elbow (default: all)"
    )
    box: tuple[float, ...] | None = setting(
        "run", None, "the person's x, y, width and height in pixels (default: the whole picture)"
    )
    weights: str = setting("run", "cpm-lite", "shipped weights or a .safetensors file")
    to: str = setting("run", "belief.png", "picture to write (.jpg or .png)")
    size: int = setting("run", 240, "pixels per crop in the picture", ge=50, le=2000)
    device: Literal["cpu", "cuda"] | None = setting("run", None, "default: a GPU if there is one")
    s3_endpoint: str | None = setting("run", None, "URL of an S3-compatible server")
    s3_anonymous: bool = setting("run", False, "read public buckets without credentials")

    @field_validator("box")
    @classmethod
    def _check_box(cls, box: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if box is not None and (len(box) != 4 or min(box[2:]) <= 0):
            raise ValueError("expected X Y WIDTH HEIGHT in pixels, width and height above 0")
        return box


def draw_belief(settings: BeliefSettings) -> tuple[str, ...]:
    """Write the figure; returns the joints on it. Raises UsageError."""
    check_picture_name(settings.to)
    network = estimator(settings.weights, _storage(settings), settings.device)
    skeleton = network.info.skeleton
    joints = settings.joint or skeleton.keypoints
    for joint in joints:
        _check_joint(joint, skeleton)
    picture = _picture(settings)
    try:
        crop, maps = network.belief(picture, _box(settings.box, picture))
    except ValueError as error:  # a box of absurd extent
        raise UsageError(f"--box: {error}") from error
    offset = network.info.config.cell_offset
    write_picture(settings.to, stages_figure(crop, maps, skeleton, joints, offset, settings.size))
    return joints


def _check_joint(joint: str, skeleton: Skeleton) -> None:
    if joint in skeleton.keypoints:
        return
    near = difflib.get_close_matches(joint, skeleton.keypoints, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UsageError(
        f"--joint {joint}: {hint}skeleton {skeleton.name} has {', '.join(skeleton.keypoints)}"
    )


def _storage(settings: BeliefSettings) -> StorageOptions:
    return StorageOptions(settings.s3_endpoint, settings.s3_anonymous)


def _picture(settings: BeliefSettings) -> NDArray[np.uint8]:
    try:
        return decode_picture(
            fetch(settings.picture, _storage(settings), _MOST_BYTES), _MOST_PIXELS
        )
    except InputError as error:
        raise UsageError(f"cannot read {settings.picture}: {error}") from error


def _box(given: tuple[float, ...] | None, picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    """x, y, w, h; one that shares no pixel with the picture would show nothing but padding."""
    height, width = picture.shape[:2]
    x, y, w, h = given or (0, 0, width, height)
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        shown = " ".join(f"{value:g}" for value in (x, y, w, h))
        raise UsageError(
            f"--box {shown} lies outside the picture, which is {width} x {height} pixels"
        )
    return np.array([x, y, w, h], np.float64)
