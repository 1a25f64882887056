"""Bytes -> an RGB picture, with limits enforced before memory is spent.

Runs in decoder processes. Pillow reads the header (format, size, orientation); OpenCV decodes the
common cases, Pillow those that OpenCV gets wrong: transparency, CMYK, palettes, and orientation
outside JPEG. A JPEG of which less is needed is decoded at a half, a quarter or an eighth of its
size, which takes a third of the time.
"""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from pipeline.errors import InputError

Picture = NDArray[np.uint8]

# Our own limit is checked on the header, before anything is decoded.
Image.MAX_IMAGE_PIXELS = None

# Profiles of printers take more than the 1 MiB that Pillow allows; a bomb takes more than this.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY

# MPO (several JPEGs in a file, of which the first counts) comes with JPEG.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
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
_OPENCV_FORMATS = ("JPEG", "MPO", "PNG")
"""PPM is not: OpenCV takes its values as they are, whatever the file says is white."""
_REDUCED = {
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8 | cv2.IMREAD_COLOR_RGB,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4 | cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2 | cv2.IMREAD_COLOR_RGB,
    1: cv2.IMREAD_COLOR_RGB,
}
"""OpenCV's flags: the first names hold the size, and the second is why it is not grey."""
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_picture(data: bytes, max_pixels: int) -> Picture:
    """(H, W, 3) RGB at its own size, as `Still` has it. Raises InputError."""
    return Still(data, max_pixels).at(1).pixels


@dataclass(frozen=True)
class Scaled:
    """RGB `pixels` (H, W, 3), each of which stands for `reduction` squared of a picture.

    `width` and `height` are the picture's own. A box of the picture divided by `reduction` is that
    box here, since a box begins where its first pixel does.
    """

    pixels: Picture
    reduction: int
    width: int
    height: int


class Still:
    """A still picture, decoded as finely as it is needed: the first of an animation.

    It is upright as the EXIF orientation says, transparent pixels are shown over white, 16-bit
    values are scaled to 8. Raises InputError, here or at decoding, with `empty`, `unknown_format`,
    `too_many_pixels` or `corrupt`.
    """

    index = pts = timestamp_s = None

    def __init__(self, data: bytes, max_pixels: int) -> None:
        if not data:
            raise InputError("empty", "the file has no bytes")
        if (declared := _declared_size(data)) is not None:
            _check_size(declared, max_pixels)
        self._data = data
        self._scaled: Scaled | None = None
        with warnings.catch_warnings():
            # Pillow warns about damaged EXIF; the picture itself decides whether it can be used.
            warnings.simplefilter("ignore")
            self._image = _header(data)
            _check_size(self._image.size, max_pixels)
            self._suits_opencv = _suits_opencv(self._image)
            self._is_turned = _orientation(self._image) != 1
        self.longest = max(self._image.size)

    def at(self, shrink: float) -> Scaled:
        """The picture, of which one pixel out of `shrink` each way is enough. What was decoded
        before is used again if it is fine enough."""
        reduction = next((r for r in _REDUCED if r <= shrink and self._can_be(r)), 1)
        if self._scaled is None or self._scaled.reduction > reduction:
            self._scaled = self._reduced(reduction) or self._whole()
        return self._scaled

    def _can_be(self, reduction: int) -> bool:
        """Only JPEG; where the last pixel stands for less than the others, turned it would be the
        first, and all would be shifted."""
        if not self._suits_opencv or self._image.format not in ("JPEG", "MPO"):
            return False
        return not self._is_turned or all(side % reduction == 0 for side in self._image.size)

    def _reduced(self, reduction: int) -> Scaled | None:
        """None where the picture's own size does not follow from that of the smaller one."""
        if reduction == 1:
            return None
        pixels = _with_opencv(self._data, reduction)
        # OpenCV turned it as it understood the orientation.
        sizes = {
            (width, height)
            for width, height in (self._image.size, self._image.size[::-1])
            if pixels.shape[:2] == (-(-height // reduction), -(-width // reduction))
        }
        return Scaled(pixels, reduction, *sizes.pop()) if len(sizes) == 1 else None

    def _whole(self) -> Scaled:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pixels = _with_opencv(self._data) if self._suits_opencv else _with_pillow(self._image)
        height, width = pixels.shape[:2]
        return Scaled(pixels, 1, width, height)


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise InputError("too_many_pixels", f"{width} x {height} is more than {max_pixels} pixels")


def _declared_size(data: bytes) -> tuple[int, int] | None:
    """The size in the header of a GIF or WebP, for which Pillow takes memory when it opens them."""
    try:
        if data.startswith(b"GIF8"):
            return _gif_size(data)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _webp_size(data)
    except (IndexError, struct.error):
        pass  # It ends early, which opening it finds out, too.
    return None


def _gif_size(data: bytes) -> tuple[int, int]:
    """The screen, or the first frame where that is larger."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (6 << (flags & 7) if flags & 0x80 else 0)
    while (block := data[at]) != ord(","):
        at += 1
        if block == ord(";"):
            return width, height
        if block == ord("!"):
            at += 1
            while length := data[at]:
                at += 1 + length
            at += 1
    x, y, w, h = struct.unpack_from("<4H", data, at + 1)
    return max(width, x + w), max(height, y + h)


def _webp_size(data: bytes) -> tuple[int, int] | None:
    match data[12:16]:
        case b"VP8X":
            width, more, height, most = struct.unpack_from("<HBHB", data, 24)
            return width + (more << 16) + 1, height + (most << 16) + 1
        case b"VP8L":
            (bits,) = struct.unpack_from("<I", data, 21)
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 ":
            width, height = struct.unpack_from("<HH", data, 26)
            return width & 0x3FFF, height & 0x3FFF
    return None


def _header(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        if data.startswith(_MAGIC):
            raise InputError("corrupt", "the header is damaged") from None
        raise InputError("unknown_format", f"starts with {data[:8]!r}") from None
    except MemoryError:
        raise
    except Exception as error:  # on damaged files, Pillow raises what comes
        raise InputError("corrupt", f"the header is damaged: {error!r}") from error


def _suits_opencv(image: Image.Image) -> bool:
    if image.format not in _OPENCV_FORMATS or image.mode not in ("RGB", "L"):
        return False
    if "transparency" in image.info:
        return False
    # Of these formats, OpenCV turns JPEG upright by itself.
    return image.format in ("JPEG", "MPO") or _orientation(image) == 1


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  (damaged EXIF is no reason to refuse the picture)
        return 1


def _with_opencv(data: bytes, reduction: int = 1) -> Picture:
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), _REDUCED[reduction])
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
        if (turn := _UPRIGHT.get(_orientation(image))) is not None:
            image = image.transpose(turn)
        if image.mode.startswith("I;16") or image.mode in ("I", "F"):
            return _from_deep(np.asarray(image))
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            picture = image.convert("RGBA")
            paper = Image.new("RGBA", picture.size, "white")
            paper.alpha_composite(picture)
            image = paper
        return np.array(image.convert("RGB"))
    except MemoryError:
        raise
    except Exception as error:  # on damaged files, Pillow raises what comes
        raise InputError("corrupt", f"the data is damaged or ends early: {error!r}") from error


def _from_deep(values: NDArray[np.generic]) -> Picture:
    """Grey values of 16 or more bits -> RGB: 65535, or what is more, becomes 255; of floating-point
    ones, the largest does."""
    deep = np.nan_to_num(values.astype(np.float32), copy=False, posinf=0, neginf=0)
    largest = float(deep.max(initial=0))
    top = max(largest, 65535.0) if values.dtype.kind != "f" else largest or 1.0
    deep *= 255.0 / top
    grey = np.clip(np.rint(deep, out=deep), 0, 255, out=deep).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)
