"""Decoding pictures: every kind shows the same scene, and whatever is hostile gets its code."""

from __future__ import annotations

import io
import resource
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import InputError
from pipeline.pictures import Still, decode_picture

MOST = 10_000_000
WIDTH, HEIGHT = 48, 32
RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)


def scene() -> NDArray[np.uint8]:
    """Four quarters: red, green over blue, yellow."""
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture[:16, :24], picture[:16, 24:] = RED, GREEN
    picture[16:, :24], picture[16:, 24:] = BLUE, YELLOW
    return picture


def encoded(image: Image.Image | None = None, kind: str = "PNG", **options: Any) -> bytes:
    """A picture (default: the scene) as the bytes of a file."""
    buffer = io.BytesIO()
    (Image.fromarray(scene()) if image is None else image).save(buffer, kind, **options)
    return buffer.getvalue()


def close(picture: NDArray[np.uint8], expected: NDArray[np.uint8], by: int = 0) -> bool:
    """The same, but for `by` in the middle of the quarters (lossy formats blur their borders)."""
    if picture.shape != expected.shape:
        return False
    rows, columns = np.ix_([6, -6], [6, -6]) if by else np.ix_(*map(np.arange, picture.shape[:2]))
    difference = picture[rows, columns].astype(int) - expected[rows, columns]
    return bool(np.abs(difference).max() <= by)


@pytest.mark.parametrize(
    ("data", "by"),
    [
        pytest.param(encoded(kind="PNG"), 0, id="PNG"),
        pytest.param(encoded(kind="JPEG", quality=95, subsampling=0), 4, id="JPEG"),
        pytest.param(
            encoded(kind="JPEG", quality=95, subsampling=0, progressive=True), 4, id="prog"
        ),
        pytest.param(encoded(kind="WEBP", lossless=True), 0, id="WebP"),
        pytest.param(encoded(kind="WEBP", quality=95), 12, id="lossy WebP"),
        pytest.param(encoded(kind="BMP"), 0, id="BMP"),
        pytest.param(encoded(kind="TIFF"), 0, id="TIFF"),
        pytest.param(encoded(kind="TIFF", compression="tiff_lzw"), 0, id="LZW TIFF"),
        pytest.param(encoded(kind="TIFF", compression="tiff_adobe_deflate"), 0, id="zip TIFF"),
        pytest.param(encoded(kind="PPM"), 0, id="PPM"),
        pytest.param(encoded(kind="GIF"), 0, id="GIF"),
        pytest.param(encoded(Image.fromarray(scene()).convert("P"), "PNG"), 0, id="palette PNG"),
        pytest.param(encoded(Image.fromarray(scene()).quantize(4), "BMP"), 0, id="palette BMP"),
        pytest.param(
            encoded(Image.fromarray(scene()).convert("CMYK"), "JPEG", quality=95), 12, id="CMYK"
        ),
        pytest.param(encoded(Image.fromarray(scene()).convert("CMYK"), "TIFF"), 0, id="CMYK TIFF"),
        pytest.param(encoded(Image.fromarray(scene()).convert("RGBA")), 0, id="opaque alpha"),
    ],
)
def test_every_format_shows_the_same(data: bytes, by: int) -> None:
    picture = decode_picture(data, MOST)
    assert picture.dtype == np.uint8
    assert picture.flags["C_CONTIGUOUS"]
    assert close(picture, scene(), by)


@pytest.mark.parametrize("white", [1, 100, 255, 1023, 65535])
@pytest.mark.parametrize("kind", [b"P5", b"P6"])
def test_white_is_what_a_ppm_says_it_is(kind: bytes, white: int) -> None:
    channels = 3 if kind == b"P6" else 1
    values = np.repeat([white, 0], channels).astype(np.uint8 if white < 256 else ">u2")
    picture = decode_picture(kind + b"\n2 1\n%d\n" % white + values.tobytes(), MOST)
    assert picture.tolist() == [[[255] * 3, [0] * 3]]


UPRIGHT: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
    9: lambda stored: stored,
}
"""What a viewer does with the stored picture, by EXIF orientation; 9 is not one."""


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "grey JPEG", "alpha PNG"])
@pytest.mark.parametrize("orientation", list(UPRIGHT))
def test_pictures_are_turned_upright(kind: str, orientation: int) -> None:
    image, expected = Image.fromarray(scene()), UPRIGHT[orientation](scene())
    if kind == "grey JPEG":
        image = image.convert("L")
        expected = UPRIGHT[orientation](np.repeat(np.array(image)[..., None], 3, axis=2))
    if kind == "alpha PNG":
        image = image.convert("RGBA")
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(image, kind.split()[-1], exif=exif, **lossless)
    assert close(decode_picture(data, MOST), expected, 8 if "JPEG" in kind else 0)


def landscape(width: int, height: int) -> NDArray[np.uint8]:
    """Soft colours that differ everywhere."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (8, 12, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("kind", ["JPEG", "progressive", "grey"])
@pytest.mark.parametrize("orientation", list(UPRIGHT))
@pytest.mark.parametrize(
    ("shrink", "reduction"), [(1, 1), (1.99, 1), (2, 2), (3.9, 2), (4, 4), (8, 8), (np.inf, 8)]
)
def test_a_jpeg_is_decoded_as_finely_as_needed(
    kind: str, orientation: int, shrink: float, reduction: int
) -> None:
    size = (333, 250) if orientation == 1 else (336, 248)
    image = Image.fromarray(landscape(*size)).convert("L" if kind == "grey" else "RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, "JPEG", exif=exif, quality=95, progressive=kind == "progressive")
    still = Still(data, MOST)
    assert still.longest == size[0]
    found, whole = still.at(shrink), decode_picture(data, MOST)
    assert found.reduction == reduction
    assert (found.height, found.width) == whole.shape[:2]
    n = reduction
    rows, columns = whole.shape[0] // n, whole.shape[1] // n
    means = whole[: rows * n, : columns * n].reshape(rows, n, columns, n, 3).mean(axis=(1, 3))
    # Colours are stored at half the size, so that single pixels differ.
    assert np.abs(found.pixels[:rows, :columns] - means).mean() < 1
    assert found.pixels.shape[:2] == (-(-whole.shape[0] // n), -(-whole.shape[1] // n))


def test_what_was_decoded_finely_enough_is_used_again() -> None:
    still = Still(encoded(Image.fromarray(landscape(400, 300)), "JPEG"), MOST)
    coarse = still.at(8)
    assert still.at(9) is coarse
    fine = still.at(2)
    assert fine.reduction == 2
    assert still.at(4) is still.at(np.inf) is fine
    assert still.at(1).reduction == 1


def test_a_turned_jpeg_is_not_shifted() -> None:
    """Its last, smaller cell would come first."""
    exif = Image.Exif()
    exif[0x0112] = 3
    data = encoded(Image.fromarray(landscape(404, 308)), "JPEG", exif=exif)
    assert Still(data, MOST).at(8).reduction == 4


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP"])
def test_other_formats_come_whole(kind: str) -> None:
    data = encoded(Image.fromarray(landscape(400, 300)), kind)
    assert Still(data, MOST).at(8).reduction == 1


@pytest.mark.parametrize("size", [(128, 127), (127, 128), (128, 128), (1, 1), (9, 500)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_the_size_is_that_of_the_picture_itself(size: tuple[int, int], orientation: int) -> None:
    """Turned or not cannot be seen where both sides become the same."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(landscape(*size)), "JPEG", exif=exif)
    found = Still(data, MOST).at(8)
    assert (found.width, found.height) == (size if orientation == 1 else size[::-1])


def test_damaged_exif_does_not_matter() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "maker"
    for kind, tolerance in [("JPEG", 8), ("PNG", 0), ("WEBP", 8)]:
        data = encoded(kind=kind, exif=exif)
        at = data.index(b"MM\0*") if b"MM\0*" in data else data.index(b"II*\0")
        for garbage in (b"XX", b"\xff\xff\xff\xff\xff\xff\xff\xff", bytes(16)):
            damaged = bytearray(data)
            damaged[at : at + len(garbage)] = garbage
            if kind == "PNG":
                _fix_checksum(damaged, b"eXIf")
            picture = decode_picture(bytes(damaged), MOST)
            assert close(picture, scene(), tolerance) or picture.shape == (WIDTH, HEIGHT, 3)


def _fix_checksum(png: bytearray, chunk: bytes) -> None:
    at = png.index(chunk)
    (length,) = struct.unpack(">I", png[at - 4 : at])
    checksum = zlib.crc32(png[at : at + 4 + length])
    png[at + 4 + length : at + 8 + length] = struct.pack(">I", checksum)


def deep(kind: str, values: NDArray[Any]) -> bytes:
    return encoded(Image.fromarray(values), kind)


STEPS_16 = np.array([[0, 257, 32768, 65535]], np.uint16)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(
            encoded(Image.fromarray(np.array([[0, 90, 255]], np.uint8))), [0, 90, 255], id="grey"
        ),
        pytest.param(deep("PNG", STEPS_16), [0, 1, 128, 255], id="16-bit PNG"),
        pytest.param(deep("TIFF", STEPS_16), [0, 1, 128, 255], id="16-bit TIFF"),
        pytest.param(deep("TIFF", np.array([[0, 65535]], np.int32)), [0, 255], id="32-bit TIFF"),
        pytest.param(deep("TIFF", np.array([[0, 10**6]], np.int32)), [0, 255], id="beyond 16 bits"),
        pytest.param(deep("TIFF", np.array([[-5, 65535]], np.int32)), [0, 255], id="below zero"),
        pytest.param(deep("TIFF", np.array([[0, 0.5, 1]], np.float32)), [0, 128, 255], id="float"),
        pytest.param(
            deep("TIFF", np.array([[np.nan, 2, np.inf]], np.float32)), [0, 255, 0], id="not finite"
        ),
        pytest.param(deep("TIFF", np.zeros((1, 2), np.float32)), [0, 0], id="all zero"),
        pytest.param(encoded(Image.new("1", (2, 1), 1)), [255, 255], id="one bit"),
    ],
)
def test_grey_values_are_scaled_to_eight_bits(data: bytes, expected: list[int]) -> None:
    picture = decode_picture(data, MOST)
    assert picture[0].tolist() == [[value] * 3 for value in expected]


def test_colours_of_sixteen_bits_are_scaled() -> None:
    rows = b"\0" + struct.pack(">6H", 65535, 0, 32768, 0, 65535, 0)
    assert decode_picture(png(2, 1, 16, 2, rows), MOST).tolist() == [[[255, 0, 128], [0, 255, 0]]]


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: bytes) -> bytes:
    """A PNG from its parts; `rows` with their filter bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + checksum

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    middle = b"".join(chunk(c[:4], c[4:]) for c in chunks)
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + middle + body


def half_transparent(mode: str) -> Image.Image:
    image = Image.new(mode, (3, 1))
    for x, alpha in enumerate((0, 128, 255)):
        image.putpixel((x, 0), (200, 0, 0, alpha) if mode == "RGBA" else (0, alpha))
    return image


def clear_palette() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.putpixel((1, 0), 1)
    return image


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(
            encoded(half_transparent("RGBA")), [(255,) * 3, (227, 127, 127), (200, 0, 0)], id="RGBA"
        ),
        pytest.param(
            encoded(half_transparent("LA")),
            [(255,) * 3, (127,) * 3, (0,) * 3],
            id="grey with alpha",
        ),
        pytest.param(
            encoded(half_transparent("RGBA"), "TIFF"),
            [(255,) * 3, (227, 127, 127), (200, 0, 0)],
            id="TIFF",
        ),
        pytest.param(
            encoded(clear_palette(), transparency=0), [(255,) * 3, (200, 0, 0)], id="palette PNG"
        ),
        pytest.param(
            encoded(clear_palette(), "GIF", transparency=0), [(255,) * 3, (200, 0, 0)], id="GIF"
        ),
        pytest.param(
            png(
                2, 1, 8, 2, b"\0" + bytes([1, 2, 3, 200, 0, 0]), b"tRNS" + bytes([0, 1, 0, 2, 0, 3])
            ),
            [(255,) * 3, (200, 0, 0)],
            id="one colour of an RGB PNG",
        ),
    ],
)
def test_transparency_is_shown_over_white(data: bytes, expected: list[tuple[int, ...]]) -> None:
    picture = decode_picture(data, MOST)[0].astype(int)
    assert np.abs(picture - np.array(expected)).max() <= 1


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_the_first_of_several_pictures_counts(kind: str) -> None:
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    others = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("black", "white")]
    data = encoded(kind=kind, save_all=True, append_images=others, **options)
    assert close(decode_picture(data, MOST), scene(), 8 if kind == "MPO" else 0)


def grid(kind: str, **options: Any) -> bytes:
    """A picture whose data are longer than its headers."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    return encoded(Image.fromarray(noise), kind, **options)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.99])
@pytest.mark.parametrize(
    "whole",
    [
        pytest.param(grid("JPEG"), id="JPEG"),
        pytest.param(grid("JPEG", progressive=True), id="progressive JPEG"),
        pytest.param(encoded(Image.fromarray(scene()).convert("CMYK"), "JPEG"), id="CMYK JPEG"),
        pytest.param(grid("PNG"), id="PNG"),
        pytest.param(grid("WEBP", lossless=True), id="WebP"),
        pytest.param(grid("BMP"), id="BMP"),
        pytest.param(grid("TIFF", compression="tiff_lzw"), id="TIFF"),
        pytest.param(grid("GIF"), id="GIF"),
        pytest.param(grid("PPM"), id="PPM"),
    ],
)
def test_a_truncated_picture_is_corrupt(whole: bytes, share: float) -> None:
    for shrink in (1, 8):
        with pytest.raises(InputError) as caught:
            Still(whole[: int(len(whole) * share)], MOST).at(shrink)
        assert caught.value.code == "corrupt"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(b"", "empty", id="nothing"),
        pytest.param(b"hello", "unknown_format", id="text"),
        pytest.param(b"<!DOCTYPE html><html></html>", "unknown_format", id="web page"),
        pytest.param(bytes(1000), "unknown_format", id="zeros"),
        pytest.param(b"%PDF-1.7 ...", "unknown_format", id="PDF"),
        pytest.param(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unknown_format", id="EPS"
        ),
        pytest.param(b"SIMPLE  =                    T" + bytes(3000), "unknown_format", id="FITS"),
        pytest.param(encoded(kind="ICO"), "unknown_format", id="a format not on the list"),
        pytest.param(b"\xff\xd8\xff", "corrupt", id="start of a JPEG"),
        pytest.param(b"\x89PNG\r\n\x1a\n", "corrupt", id="start of a PNG"),
        pytest.param(b"P6 0 0 255\n", "corrupt", id="no pixels"),
        pytest.param(png(2, 0, 8, 2, b""), "corrupt", id="no rows"),
        pytest.param(b"RIFF\x24\0\0\0WAVEfmt ", "corrupt", id="sound"),
        pytest.param(png(5, 5, 8, 2, b"\0" * 16), "corrupt", id="too few rows"),
        pytest.param(png(4001, 2500, 8, 2, b""), "too_many_pixels", id="just over the limit"),
    ],
)
def test_what_is_no_picture_gets_its_code(data: bytes, code: str) -> None:
    with pytest.raises(InputError) as caught:
        decode_picture(data, MOST)
    assert caught.value.code == code


@pytest.mark.parametrize("colour", [0, 2, 6])
def test_a_bomb_is_refused_before_it_is_decoded(colour: int) -> None:
    """400 megapixels in under 1 MB."""
    rows = bytes(20_000 * 2_501) if colour == 0 else b""
    bomb = png(20_000, 20_000, 1 if colour == 0 else 8, colour, rows)
    assert len(bomb) < 1 << 20
    before = peak_memory()
    with pytest.raises(InputError, match="20000 x 20000 is more than") as caught:
        decode_picture(bomb, 100_000_000)
    assert caught.value.code == "too_many_pixels"
    assert peak_memory() - before < 16 << 20


def peak_memory() -> int:
    """Most memory this process ever held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def test_the_name_does_not_matter_the_content_does() -> None:
    """`decode_picture` never sees a name: a PNG called .jpg is a PNG."""
    assert close(decode_picture(encoded(kind="PNG"), MOST), scene())


def test_any_damage_ends_in_a_picture_or_an_input_error() -> None:
    """Single bytes, flipped; what Pillow and OpenCV raise must not get out."""
    random = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    rgba = Image.fromarray(scene()).convert("RGBA")
    wholes = [
        encoded(kind="JPEG", exif=exif),
        encoded(rgba, exif=exif),
        encoded(Image.fromarray(scene()).quantize(4), "PNG"),
        encoded(rgba, "TIFF", compression="tiff_lzw"),
        encoded(Image.fromarray(scene()).convert("CMYK"), "TIFF"),
        encoded(kind="GIF"),
        encoded(kind="BMP"),
        encoded(rgba, "WEBP"),
        encoded(kind="MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))]),
        encoded(Image.fromarray(STEPS_16), "PNG"),
        encoded(kind="PPM"),
    ]
    for whole in wholes:
        for _ in range(200):
            damaged = bytearray(whole)
            place = random.integers(min(len(damaged), int(random.choice([40, 300, 10**6]))))
            damaged[place] = random.integers(256)
            try:
                picture = decode_picture(bytes(damaged), 1_000_000)
            except InputError:
                continue
            assert picture.ndim == 3
            assert picture.shape[2] == 3
            assert picture.size
