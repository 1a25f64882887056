"""Hostile files, made as they are needed: whole ones, cut ones, changed ones, bombs, polyglots.

Everything is derived from small files that Pillow, OpenCV and FFmpeg write here, or built by hand
where no encoder would write such a thing.
"""

from __future__ import annotations

import io
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.pipeline.test_pictures import encoded, png, scene
from tests.pipeline.videos import write_video

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@cache
def pictures() -> dict[str, bytes]:
    """Whole pictures of every kind that is read, small, so that their headers weigh much."""
    noise = np.random.default_rng(0).integers(0, 255, (40, 56, 3), np.uint8)
    rgb, busy = Image.fromarray(scene()), Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    return {
        "jpeg": encoded(busy, "JPEG"),
        "jpeg-progressive": encoded(busy, "JPEG", progressive=True),
        "jpeg-restarts": encoded(busy, "JPEG", restart_marker_blocks=2),
        "jpeg-grey": encoded(busy.convert("L"), "JPEG"),
        "jpeg-cmyk": encoded(busy.convert("CMYK"), "JPEG"),
        "jpeg-metadata": encoded(
            rgb, "JPEG", exif=exif, icc_profile=os.urandom(99_000), comment=b"c" * 999
        ),
        "mpo": encoded(rgb, "MPO", **_several(rgb.size)),
        "png": encoded(busy, "PNG"),
        "png-palette": encoded(rgb.quantize(4), "PNG", transparency=1),
        "png-alpha": encoded(busy.convert("RGBA"), "PNG", exif=exif),
        "png-16-bits": encoded(Image.fromarray(noise[..., 0].astype(np.uint16) * 257), "PNG"),
        "png-animation": encoded(rgb, "PNG", **_several(rgb.size)),
        "webp": encoded(busy, "WEBP"),
        "webp-lossless": encoded(busy, "WEBP", lossless=True, exif=exif),
        "webp-animation": encoded(rgb, "WEBP", lossless=True, **_several(rgb.size)),
        "gif": encoded(busy, "GIF"),
        "gif-animation": encoded(rgb, "GIF", disposal=2, **_several(rgb.size)),
        "tiff": encoded(busy, "TIFF"),
        "tiff-lzw": encoded(busy, "TIFF", compression="tiff_lzw"),
        "tiff-jpeg": encoded(busy, "TIFF", compression="jpeg"),
        "tiff-deflate-alpha": encoded(
            busy.convert("RGBA"), "TIFF", compression="tiff_adobe_deflate"
        ),
        "tiff-pages": encoded(rgb, "TIFF", **_several(rgb.size)),
        "bmp": encoded(busy, "BMP"),
        "bmp-palette": encoded(rgb.quantize(4), "BMP"),
        "ppm": encoded(busy, "PPM"),
        "pgm": encoded(busy.convert("L"), "PPM"),
    }


def _several(size: tuple[int, int]) -> dict[str, Any]:
    """Options to save more pictures in the same file; new ones, as Pillow leaves notes on them."""
    others = [Image.new("RGB", size, colour) for colour in ("black", "white", "red")]
    return {"save_all": True, "append_images": others}


VIDEOS: dict[str, dict[str, Any]] = {
    "h264.mp4": {"b_frames": 2},
    "h264-head-first.mp4": {"faststart": True},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mjpeg.avi": {"codec": "mjpeg"},
    "h264.mkv": {},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "h264.ts": {},
    "mpeg2.mpg": {"codec": "mpeg2video"},
    "flv.flv": {"codec": "flv"},
}


def videos(folder: Path) -> dict[str, bytes]:
    """Whole videos of most containers that are read, ten frames each."""
    return {
        name: write_video(folder / name, frames=10, keyframe_every=4, **options).read_bytes()
        for name, options in VIDEOS.items()
    }


def real_files(suffix: str, count: int, most: int = 200_000) -> list[bytes]:
    """Some real files of the project's `shared` folder; none where it is absent."""
    found = (path for path in sorted(SHARED.rglob(f"*{suffix}")) if path.stat().st_size <= most)
    return [path.read_bytes() for path, _ in zip(found, range(count), strict=False)]


def joints(data: bytes) -> list[int]:
    """Where the parts of a file begin: its first bytes, JPEG markers, and the named parts of PNG,
    RIFF, TIFF and MP4 as far as their names are letters; scan data in even steps."""
    named = {m.start() for m in re.finditer(rb"[A-Za-z]{3}[A-Za-z0-9 ]", data)}
    markers = {m.start() for m in re.finditer(rb"\xff[\xc0-\xfe]", data)}
    steps = set(range(0, len(data), max(1, len(data) // 40)))
    parts = sorted(named | markers)[:120]
    return sorted({*range(min(64, len(data))), *parts, *steps})


def truncated(data: bytes, step: int = 1) -> Iterator[bytes]:
    """The file cut at, and just beside, the places where its parts begin."""
    for place in joints(data)[::step]:
        yield data[:place]
        yield data[: place + 3]


ODD = (b"\0", b"\xff", b"\x7f", b"\x80", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff")
"""What lengths and counts are overwritten with."""


def changed(data: bytes, seed: int, count: int) -> Iterator[bytes]:
    """Copies with some flipped bits, odd values, and parts doubled, moved or left out."""
    random = np.random.default_rng(seed)
    places = joints(data)
    for _ in range(count):
        copy = bytearray(data)
        for _ in range(random.integers(1, 4)):
            head = random.random() < 0.7
            at = int(random.choice(places)) if head else int(random.integers(len(copy)))
            at = min(at + int(random.integers(0, 12)), len(copy) - 1)
            match random.integers(5):
                case 0 | 1:
                    copy[at] ^= 1 << random.integers(8)
                case 2:
                    value = ODD[random.integers(len(ODD))]
                    copy[at : at + len(value)] = value
                case 3:
                    end = int(random.choice(places))
                    copy[at:at] = copy[at:end][:5000]
                case _:
                    del copy[at : at + int(random.integers(1, 40))]
            if not copy:
                break
        yield bytes(copy)


def archive() -> bytes:
    """A zip file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("evil.sh", "rm -rf /")
    return buffer.getvalue()


def gif_script() -> bytes:
    """A GIF that is a script, too: the width and height are the start of a comment."""
    screen = struct.pack("<2s2sBBB", b"/*", b"*/", 0, 0, 0)
    frame = b"," + struct.pack("<4HB", 0, 0, 8, 8, 0x80) + bytes([0, 0, 0, 255, 255, 255])
    return b"GIF89a" + screen + frame + b"\2\2\x4c\1\0;=1;alert(1)"


def gif(width: int, height: int, frame: tuple[int, int, int, int], disposal: int = 0) -> bytes:
    """A GIF by its declared sizes alone."""
    screen = struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    control = b"!\xf9\4" + bytes([disposal << 2, 0, 0, 0, 0])
    return b"GIF89a" + screen + control + b"," + struct.pack("<4HB", *frame, 0) + b"\2\2\x4c\1\0;"


def webp(kind: str, width: int, height: int) -> bytes:
    """A WebP by its declared size alone: `VP8X` (an animation), `VP8L` or `VP8 `."""
    small = encoded(Image.new("RGB", (8, 8)), "WEBP", lossless=kind != "VP8 ")
    at = small.index(b"VP8L" if kind != "VP8 " else b"VP8 ")
    (length,) = struct.unpack_from("<I", small, at + 4)
    body = bytearray(small[at + 8 : at + 8 + length])
    if kind == "VP8X":
        canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        picture = _riff(b"VP8L", bytes(body))
        frame = bytes(6) + (7).to_bytes(3, "little") * 2 + bytes([100, 0, 0, 0]) + picture
        parts = [(b"VP8X", b"\2\0\0\0" + canvas), (b"ANIM", bytes(6)), (b"ANMF", frame)]
    elif kind == "VP8L":
        struct.pack_into("<I", body, 1, (width - 1) | (height - 1) << 14)
        parts = [(b"VP8L", bytes(body))]
    else:
        struct.pack_into("<HH", body, 6, width, height)
        parts = [(b"VP8 ", bytes(body))]
    content = b"WEBP" + b"".join(_riff(name, part) for name, part in parts)
    return b"RIFF" + struct.pack("<I", len(content)) + content


def _riff(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def bmp(width: int, height: int) -> bytes:
    """A BMP by its declared size alone."""
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 64, 0, 0, 54) + info + bytes(10)


def tiff(pages: int = 1, width: int = 8, height: int = 8, **tags: tuple[int, int, int]) -> bytes:
    """A grey TIFF of many pages that share their 8 x 8 pixels. `tags` as t258=(type, count, value)
    replace others."""
    entries = {256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, 8), 262: (3, 1, 1)}
    entries |= {273: (4, 1, 8), 278: (4, 1, height), 279: (4, 1, 64)}
    entries |= {int(name[1:]): value for name, value in tags.items()}
    fields = b"".join(struct.pack("<HHII", tag, *entries[tag]) for tag in sorted(entries))
    page = struct.pack("<H", len(entries)) + fields
    size = len(page) + 4
    nexts = [72 + size * (i + 1) for i in range(pages - 1)] + [0]
    return (
        b"II*\0"
        + struct.pack("<I", 72)
        + bytes(64)
        + b"".join(page + struct.pack("<I", following) for following in nexts)
    )


def jpeg_of_size(width: int, height: int) -> bytes:
    """A JPEG that declares another size than it has."""
    data = encoded(Image.new("RGB", (8, 8)), "JPEG")
    at = data.index(b"\xff\xc0\x00\x11\x08") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def jpeg_with(marker: int, content: bytes, count: int) -> bytes:
    """The scene as a JPEG with `count` more segments of one kind, 65,533 bytes each at most."""
    whole = encoded(kind="JPEG")
    segment = bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content
    return whole[:2] + segment * count + whole[2:]


def png_with(*chunks: bytes) -> bytes:
    """A black PNG of 4 x 4 with more chunks, each as its name and content."""
    return png(4, 4, 8, 2, bytes(13 * 4), *chunks)


def packed(name: bytes, content: bytes) -> bytes:
    """A PNG chunk with compressed content: zTXt, iCCP."""
    return name + b"x\0\0" + zlib.compress(content)


def declared_bombs(side: int = 60_000) -> dict[str, bytes]:
    """Small files whose headers declare `side` x `side` pixels, or as many as the format can."""
    short = min(side, 16_383)
    return {
        "png": png(side, side, 8, 2, b""),
        "png-grey-rows": png(side, side, 1, 0, bytes(9999)),
        "jpeg": jpeg_of_size(side, side),
        "bmp": bmp(side, side),
        "ppm": b"P6 %d %d 255\n" % (side, side) + bytes(10),
        "tiff": tiff(1, side, side),
        "gif": gif(side, side, (0, 0, side, side)),
        "gif-disposal": gif(side, side, (0, 0, side, side), disposal=2),
        "gif-frame": gif(1, 1, (0, 0, side, side), disposal=2),
        "gif-corner": gif(1, 1, (side, side, 1, 1), disposal=3),
        "webp-animation": webp("VP8X", side, side),
        "webp-lossless": webp("VP8L", short, short),
        "webp-lossy": webp("VP8 ", short, short),
    }


def box(name: bytes, *parts: bytes) -> bytes:
    """A box of an MP4 or QuickTime file."""
    content = b"".join(parts)
    return struct.pack(">I", 8 + len(content)) + name + content


def _full(name: bytes, *parts: bytes) -> bytes:
    return box(name, bytes(4), *parts)


def endless_video(frames: int, per_chunk: int = 1000, width: int = 1, height: int = 1) -> bytes:
    """A QuickTime file of raw frames, all of which are the same few bytes of the file.

    Four bytes for every `per_chunk` frames; with the frames of one chunk, all but the first would
    lie beyond the end of the file.
    """
    pixels = bytes([200, 100, 50]) * per_chunk * width * height
    pixels = pixels if len(pixels) < 100_000 else pixels[:3]
    head = box(b"ftyp", b"qt  ", bytes(4), b"qt  ")
    matrix = struct.pack(">9I", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    movie = _full(
        b"mvhd",
        struct.pack(">IIIIIH", 0, 0, 25, frames, 1 << 16, 256) + bytes(10),
        matrix + bytes(24) + struct.pack(">I", 2),
    )
    size = struct.pack(">II", width << 16, height << 16)
    track = box(
        b"tkhd", b"\0\0\0\7" + struct.pack(">5I", 0, 0, 1, 0, frames) + bytes(16), matrix, size
    )
    media = _full(b"mdhd", struct.pack(">IIIIHH", 0, 0, 25, frames, 0, 0))
    handler = _full(b"hdlr", b"mhlrvide" + bytes(13))
    shape = struct.pack(">HHIIIH", width, height, 72 << 16, 72 << 16, 0, 1)
    raw = box(
        b"raw ", bytes(6) + b"\0\1" + bytes(16) + shape + bytes(32) + struct.pack(">Hh", 24, -1)
    )
    chunks = frames // per_chunk
    table = box(
        b"stbl",
        _full(b"stsd", struct.pack(">I", 1), raw),
        _full(b"stts", struct.pack(">3I", 1, frames, 1)),
        _full(b"stsc", struct.pack(">4I", 1, 1, per_chunk, 1)),
        _full(b"stsz", struct.pack(">II", 3 * width * height, frames)),
        _full(b"stco", struct.pack(">I", chunks) + struct.pack(">I", len(head) + 8) * chunks),
    )
    place = box(b"dinf", _full(b"dref", struct.pack(">I", 1), box(b"url ", b"\0\0\0\1")))
    info = box(b"minf", box(b"vmhd", b"\0\0\0\1" + bytes(8)), place, table)
    return (
        head
        + box(b"mdat", pixels)
        + box(b"moov", movie, box(b"trak", track, box(b"mdia", media, handler, info)))
    )


def patched(data: bytes, name: bytes, offset: int, layout: str, *values: int) -> bytes:
    """A copy with other numbers in the first box or chunk of that name, `offset` after the name."""
    copy = bytearray(data)
    struct.pack_into(layout, copy, data.index(name) + 4 + offset, *values)
    return bytes(copy)
