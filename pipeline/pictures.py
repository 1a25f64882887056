"""Bytes -> an RGB picture, with limits enforced before memory is spent.

Runs in decoder processes. Pillow reads the header (format, size, orientation); OpenCV decodes the
common cases, Pillow those that OpenCV gets wrong: transparency, CMYK, palettes, and orientation
outside JPEG.
"""

from __future__ import annotations

import io
import struct
import warnings

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.errors import InputError

Picture = NDArray[np.uint8]

# Our own limit is checked on the header, before anything is decoded.
Image.MAX_IMAGE_PIXELS = None

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
_MAGIC = (
    b"\xff\xd8\xff",
    b"\x89PNG",
    b"RIFF",
    b"BM",
    b"II*\x00",
    b"MM\x00*",
    b"GIF8",
    b"P4",
    b"P5",
    b"P6",
)
_OPENCV_MODES = {
    "JPEG": ("RGB", "L"),
    "MPO": ("RGB", "L"),
    "PNG": ("RGB", "L"),
    "PPM": ("RGB", "L"),
}
_ORIENTATION = 0x0112


def decode_picture(data: bytes, max_pixels: int) -> Picture:
    """(H, W, 3) RGB, upright as the EXIF orientation says; the first picture of an animation.

    Transparent pixels are shown over white, 16-bit values are scaled to 8. Raises InputError with
    `empty`, `unknown_format`, `too_many_pixels` or `corrupt`.
    """
    if not data:
        raise InputError("empty", "the file has no bytes")
    with warnings.catch_warnings():
        # Pillow warns about damaged EXIF; the picture itself decides whether it can be used.
        warnings.simplefilter("ignore")
        image = _header(data)
        width, height = image.size
        if width * height > max_pixels:
            raise InputError(
                "too_many_pixels", f"{width} x {height} is more than {max_pixels} pixels"
            )
        if image.mode in _OPENCV_MODES.get(image.format or "", ()) and (
            image.format in ("JPEG", "MPO") or _upright(image)
        ):
            return _with_opencv(data)
        return _with_pillow(image)


def _header(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        if data.startswith(_MAGIC):
            raise InputError("corrupt", "the header is damaged") from None
        raise InputError("unknown_format", f"starts with {data[:8]!r}") from None
    except (OSError, ValueError, SyntaxError, struct.error) as error:
        raise InputError("corrupt", f"the header is damaged: {error}") from error


def _upright(image: Image.Image) -> bool:
    try:
        return bool(image.getexif().get(_ORIENTATION, 1) == 1)
    except (OSError, ValueError, SyntaxError, struct.error):
        return True


def _with_opencv(data: bytes) -> Picture:
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError from error
        raise InputError("corrupt", f"cannot be decoded: {error.err}") from error
    if picture is None:
        raise InputError("corrupt", "the data is damaged or ends early")
    return np.asarray(picture, np.uint8)


def _with_pillow(image: Image.Image) -> Picture:
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16") or image.mode in ("I", "F"):
            return _from_deep(np.asarray(image))
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            picture = image.convert("RGBA")
            paper = Image.new("RGBA", picture.size, "white")
            image = Image.alpha_composite(paper, picture)
        return np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error) as error:
        raise InputError("corrupt", f"the data is damaged or ends early: {error}") from error


def _from_deep(values: NDArray[np.generic]) -> Picture:
    """Grey values of 16 or more bits -> RGB: 16-bit ones divided by 256, others by their largest
    value."""
    deep = values.astype(np.float64)
    top = 65535.0 if deep.max(initial=0) <= 65535 else float(deep.max())
    grey = np.clip(deep * (255.0 / top), 0, 255).round().astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)
