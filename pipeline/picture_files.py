"""Pictures that commands write: a contact sheet, belief maps, training crops."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError

_ENDINGS = (".jpg", ".jpeg", ".png")


def check_picture_name(to: str) -> None:
    """Raise UsageError for a name that no picture can be written under, before any work is done."""
    if not to.lower().endswith(_ENDINGS):
        raise UsageError(f"cannot write {to}: a picture's name ends with {', '.join(_ENDINGS)}")


def write_picture(to: str, picture: NDArray[np.uint8]) -> None:
    """Write an RGB picture (H, W, 3) to a local file. Raises UsageError."""
    check_picture_name(to)
    try:
        written = cv2.imwrite(to, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    except cv2.error as error:
        raise UsageError(f"cannot write {to}: {error.err}") from error
    if not written:
        raise UsageError(f"cannot write {to}: use a folder that exists and may be written to")
