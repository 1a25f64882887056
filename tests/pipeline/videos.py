"""Small videos, made as they are needed, what is in them, and what is read of them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.ranges import plan_ranges
from pipeline.reader import VideoReader
from pipeline.video import Frame, Range
from tests.pipeline.conftest import OPTIONS

SIZE = (64, 48)
MOST = 10_000_000


def write_video(
    path: Path,
    frames: int = 40,
    codec: str = "libx264",
    keyframe_every: int = 12,
    b_frames: int = 0,
    times_ms: list[int] | None = None,
    faststart: bool = False,
    rotation: int = 0,
    noisy: bool = False,
    options: dict[str, str] | None = None,
) -> Path:
    """A video at 25 frames per second, or with the given times. Frame i has a column of its own.

    With `noisy`, frames are large against the headers, as in real files.
    """
    noise = np.random.default_rng(0).integers(
        0, 60 if noisy else 1, (frames, SIZE[1], SIZE[0], 3), np.uint8
    )
    quality = {"b": "2000000"} if noisy else {}
    x264 = {"x264-params": "scenecut=0:open-gop=1"} if codec == "libx264" else {}
    muxing = {"movflags": "faststart"} if faststart else {}
    with av.open(str(path), "w", options=muxing) as container:
        stream: Any = container.add_stream(
            codec,
            rate=25,
            options={
                "g": str(keyframe_every),
                "bf": str(b_frames),
                **x264,
                **quality,
                **(options or {}),
            },
        )
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(drawing(i) + noise[i], "rgb24")
            frame.pts = i if times_ms is None else times_ms[i]
            frame.time_base = Fraction(1, 25 if times_ms is None else 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def drawing(i: int) -> NDArray[np.uint8]:
    """The picture of frame i: red in the top left corner, and a bar that moves."""
    picture = np.full((SIZE[1], SIZE[0], 3), 40, np.uint8)
    picture[:, i % SIZE[0]] = 190
    picture[:12, :16] = (190, 0, 0)
    return picture


def decode_all(path: Path) -> list[tuple[int | None, NDArray[np.uint8]]]:
    """Time and picture of all frames, decoded in one go without the code under test."""
    with av.open(str(path)) as container:
        frames = container.decode(video=0)
        return [(f.pts, np.asarray(f.to_ndarray(format="rgb24"), np.uint8)) for f in frames]


def write_audio(path: Path) -> Path:
    """A file with sound only."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def read(
    uri: str | Path, ranges: list[Range], fps: float | None = None
) -> tuple[list[Frame], list[str]]:
    """All frames of all ranges, and the codes of the ranges' failures."""
    frames: list[Frame] = []
    codes: list[str] = []
    for wanted in ranges:
        # Each for itself, as decoders on many machines read them.
        read_on(VideoReader(OPTIONS, fps, MOST), uri, wanted, frames, codes)
    return frames, codes


def read_on(
    reader: VideoReader, uri: str | Path, wanted: Range, frames: list[Frame], codes: list[str]
) -> None:
    """Add what a reader finds in a range."""
    try:
        for frame in reader.frames(str(uri), wanted):
            frames.append(frame)
    except InputError as error:
        codes.append(error.code)


def cut(uri: str | Path, largest: int, fps: float | None = None) -> list[Range]:
    """The ranges of a video."""
    return plan_ranges(str(uri), OPTIONS, largest, fps)
