"""Hostile videos: damage, declared sizes, endless frames; each gets its code and costs little."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.guard import Decoder
from pipeline.ranges import plan_ranges
from pipeline.reader import read_frames
from pipeline.units import Unit
from pipeline.video import Range
from tests.pipeline import corpus
from tests.pipeline.conftest import OPTIONS
from tests.pipeline.corpus import endless_video, patched
from tests.pipeline.test_hostile_pictures import address_space, peak, process
from tests.pipeline.test_pictures import encoded, png
from tests.pipeline.test_plan import decoder_config
from tests.pipeline.videos import write_video

MOST_FRAMES = 5000
QUICK = {"preset": "ultrafast", "deadline": "realtime", "cpu-used": "8"}
DAMAGED = {"ok", "empty", "corrupt", "no_video", "too_many_pixels", "too_many_frames"}
REFUSED_BY_FFMPEG = "out_of_memory"
"""What it says of some tables of absurd lengths, which it does not even try to take."""


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return corpus.videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decoder]:
    """One process for all tests of the module."""
    config = decoder_config(
        max_pixels=1_000_000, max_memory=1024, max_seconds=20.0, max_frames=MOST_FRAMES
    )
    with Decoder(config) as decoder:
        path = write_video(tmp_path_factory.mktemp("warm") / "v.mp4", frames=10)
        assert outcome(decoder, path) == "ok"
        yield decoder


def outcome(decoder: Decoder, path: Path) -> str:
    """Plan a video and read its first and last range, as a run does."""
    try:
        ranges = decoder.ranges(str(path), 512)
        assert 0 < sum(r.frames for r in ranges) <= 2 * MOST_FRAMES
        for r in {ranges[0], ranges[-1]}:
            unit = Unit(
                *(0, 0, str(path), "video", None, None, None),
                *(r.start_pts, r.end_pts, r.start_frame, r.frames),
            )
            for frame, _ in decoder.frames(unit, None):
                assert 0 < frame.width * frame.height <= 1_000_000
    except InputError as error:
        return error.code
    return "ok"


def outcomes(decoder: Decoder, cases: Iterable[bytes], path: Path) -> Counter[str]:
    before = process(decoder)
    found: Counter[str] = Counter()
    for data in cases:
        path.write_bytes(data)
        found[outcome(decoder, path)] += 1
    # After this code a new process takes over, whatever the reason.
    assert process(decoder) == before or found[REFUSED_BY_FFMPEG]
    return found


@pytest.mark.parametrize("name", list(corpus.VIDEOS))
def test_a_video_cut_anywhere(
    decoder: Decoder, wholes: dict[str, bytes], name: str, tmp_path: Path
) -> None:
    found = outcomes(decoder, corpus.truncated(wholes[name], step=6), tmp_path / name)
    assert found.total() > 30
    assert set(found) <= {"ok", "empty", "corrupt", "no_video"}
    assert found["corrupt"] > 5


@pytest.mark.parametrize("name", list(corpus.VIDEOS))
def test_a_changed_video(
    decoder: Decoder, wholes: dict[str, bytes], name: str, tmp_path: Path
) -> None:
    found = outcomes(decoder, corpus.changed(wholes[name], 3, 60), tmp_path / name)
    assert set(found) <= DAMAGED
    assert found.total() == 60


@pytest.mark.soak
@pytest.mark.parametrize("name", list(corpus.VIDEOS))
def test_many_more_changes(
    decoder: Decoder, wholes: dict[str, bytes], name: str, tmp_path: Path
) -> None:
    cases = corpus.changed(wholes[name], 4, 3000)
    assert set(outcomes(decoder, cases, tmp_path / name)) <= DAMAGED | {REFUSED_BY_FFMPEG}


@pytest.mark.parametrize("suffix", ["mp4", "avi", "webm", "ts", "exe"])
def test_the_suffix_of_a_video_does_not_matter(
    decoder: Decoder, wholes: dict[str, bytes], suffix: str, tmp_path: Path
) -> None:
    for name, data in wholes.items():
        path = tmp_path / f"{name}.{suffix}"
        path.write_bytes(data)
        assert outcome(decoder, path) == "ok", name


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(corpus.archive(), {"corrupt"}, id="zip"),
        pytest.param(b"<html><video src='file:///etc/passwd'></html>", {"corrupt"}, id="HTML"),
        pytest.param(encoded(kind="JPEG"), {"corrupt", "no_video"}, id="JPEG"),
        pytest.param(encoded(kind="GIF"), {"corrupt", "no_video"}, id="GIF"),
        pytest.param(b"#EXTM3U\nfile:///etc/passwd\n", {"corrupt"}, id="playlist"),
        pytest.param(b"<?xml version='1.0'?><MPD></MPD>", {"corrupt"}, id="DASH"),
        pytest.param(b"[Script Info]\nTitle: x\n", {"corrupt"}, id="subtitles"),
        pytest.param(b"v=0\no=- 0 0 IN IP4 127.0.0.1\n", {"corrupt"}, id="SDP"),
        pytest.param(corpus.box(b"ftyp", b"isom") * 5000, {"corrupt"}, id="5,000 heads"),
        pytest.param(
            corpus.box(b"ftyp", b"isom") + b"\0\0\0\1moov" + b"\xff" * 8,
            {"corrupt"},
            id="box of 2^64 bytes",
        ),
        pytest.param(
            corpus.box(b"ftyp", b"isom") + b"\0\0\x7f\xffmoov" * 3000,
            {"corrupt"},
            id="nested boxes",
        ),
    ],
)
def test_what_is_no_video_but_named_so(
    decoder: Decoder, data: bytes, expected: set[str], tmp_path: Path
) -> None:
    assert set(outcomes(decoder, [data], tmp_path / "a.mp4")) <= expected


NUMBERS: dict[str, tuple[str, bytes, int, str, tuple[int, ...]]] = {
    "no samples": ("h264.mp4", b"stsz", 8, ">I", (0,)),
    "4 billion samples": ("h264.mp4", b"stsz", 8, ">I", (0xFFFFFFFF,)),
    "samples of 1 byte, 4 billion": ("h264.mp4", b"stsz", 4, ">II", (1, 0xFFFFFFF0)),
    "2 billion times": ("h264.mp4", b"stts", 8, ">I", (0x7FFFFFFF,)),
    "times that go back": ("h264.mp4", b"stts", 12, ">I", (0xFFFFFFFF,)),
    "2 billion in a chunk": ("h264.mp4", b"stsc", 12, ">I", (0x7FFFFFFF,)),
    "no time scale": ("h264.mp4", b"mdhd", 12, ">I", (0,)),
    "time scale of 2^32 - 1": ("h264.mp4", b"mdhd", 12, ">I", (0xFFFFFFFF,)),
    "136 years": ("h264.mp4", b"mdhd", 16, ">I", (0xFFFFFFFF,)),
    "65,535 x 65,535": ("h264.mp4", b"avc1", 24, ">HH", (65_535, 65_535)),
    "0 x 0": ("h264.mp4", b"avc1", 24, ">HH", (0, 0)),
    "track of 60,000 x 60,000": ("h264.mp4", b"tkhd", 76, ">II", (60_000 << 16, 60_000 << 16)),
    "AVI of 60,000 x 60,000": ("mjpeg.avi", b"strf", 8, "<II", (60_000, 60_000)),
    "AVI of 2 billion frames": ("mjpeg.avi", b"strh", 36, "<I", (0x7FFFFFFF,)),
    "AVI without a rate": ("mjpeg.avi", b"strh", 24, "<II", (0, 0)),
}


@pytest.mark.parametrize("case", list(NUMBERS))
def test_absurd_numbers_in_headers(
    decoder: Decoder, wholes: dict[str, bytes], case: str, tmp_path: Path
) -> None:
    """The frames themselves decide, where they can be found."""
    name, box, offset, layout, values = NUMBERS[case]
    before = peak(decoder)
    data = patched(wholes[name], box, offset, layout, *values)
    assert set(outcomes(decoder, [data], tmp_path / name)) <= {"ok", "corrupt", "no_video"}
    assert peak(decoder) - before < 100


def spliced(path: Path, frame: bytes) -> Path:
    """A video of PNG frames of 16 x 16, but for the second one, which is `frame`."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "rgb24"
        small = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), "rgb24")
        container.mux(stream.encode(small))
        packet: Any = av.Packet(frame)
        packet.stream, packet.pts, packet.dts = stream, 1, 1
        packet.time_base, packet.is_keyframe = Fraction(1, 25), True
        container.mux(packet)
    return path


def test_a_frame_over_the_limit_takes_no_memory(tmp_path: Path) -> None:
    """It was decoded, 225 MB of it, and looked at then. The good frame before it is kept."""
    path = spliced(tmp_path / "v.mov", png(15_000, 15_000, 8, 0, bytes(15_000 * 15_001)))
    assert path.stat().st_size < 2_000_000
    with Decoder(decoder_config()) as decoder:
        [whole] = decoder.ranges(str(path), 100)
        held, addresses = peak(decoder), address_space(decoder)
        unit = Unit(0, 0, str(path), "video", start_pts=whole.start_pts, start_frame=0, frames=2)
        frames = decoder.frames(unit, None)
        assert next(frames)[0].width == 16
        with pytest.raises(InputError) as caught:
            next(frames)
        assert caught.value.code == "too_many_pixels"
        assert peak(decoder) - held < 64
        # The threads of FFmpeg have stacks.
        assert address_space(decoder) - addresses < 300


@pytest.mark.parametrize(
    ("codec", "name"),
    [
        ("libx264", "v.mp4"),
        ("libx264", "v.ts"),
        ("mpeg4", "v.avi"),
        ("libvpx-vp9", "v.webm"),
        ("mjpeg", "v.avi"),
        ("mpeg2video", "v.mpg"),
        ("flv", "v.flv"),
    ],
)
def test_every_decoder_refuses_large_frames_itself(codec: str, name: str, tmp_path: Path) -> None:
    """2,080 x 2,080, where FFmpeg may take 2 million pixels more than are allowed."""
    with av.open(str(tmp_path / name), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options=QUICK)
        stream.width = stream.height = 2080
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((2080, 2080, 3), np.uint8), "rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    [whole, *_] = plan_ranges(str(tmp_path / name), OPTIONS, 512, None, max_pixels=1_000_000)
    with pytest.raises(InputError, match="a frame has more pixels than") as caught:
        list(read_frames(str(tmp_path / name), OPTIONS, whole, None, 1_000_000))
    assert caught.value.code == "too_many_pixels"


@pytest.mark.parametrize("side", [(64, 48), (65, 47), (1920, 1080)])
def test_a_frame_of_just_the_limit_is_read(side: tuple[int, int], tmp_path: Path) -> None:
    """H.264 codes 1,088 rows of 1,080."""
    width, height = (n // 2 * 2 for n in side)
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8), "rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    path = str(tmp_path / "v.mp4")
    [frame] = read_frames(path, OPTIONS, Range(0, None, 0, 1), None, width * height)
    assert frame.picture.shape == (height, width, 3)
    with pytest.raises(InputError) as caught:
        list(read_frames(path, OPTIONS, Range(0, None, 0, 1), None, width * height - 1))
    assert caught.value.code == "too_many_pixels"


def code_of_plan(path: Path, most: int, largest: int = 512) -> str:
    with pytest.raises(InputError) as caught:
        plan_ranges(str(path), OPTIONS, largest, None, max_frames=most)
    return caught.value.code


@pytest.mark.parametrize("name", list(corpus.VIDEOS))
def test_a_video_of_too_many_frames_is_refused(
    wholes: dict[str, bytes], name: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(wholes[name])
    assert sum(r.frames for r in plan_ranges(str(path), OPTIONS, 4, None, max_frames=10)) == 10
    assert code_of_plan(path, 9) == "too_many_frames"


def test_the_limit_on_frames_is_of_the_video_not_of_what_is_taken(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", frames=30)
    with pytest.raises(InputError, match="more than 29 frames"):
        plan_ranges(str(path), OPTIONS, 512, 1.0, max_frames=29)


def test_endless_frames_of_a_small_file_are_refused_before_they_take_memory(
    tmp_path: Path,
) -> None:
    """40 kB that hold ten million frames: one pixel each, all at the same place."""
    path = tmp_path / "v.mov"
    path.write_bytes(endless_video(4000))
    with Decoder(decoder_config(max_frames=1_000_000)) as decoder:
        assert len(decoder.ranges(str(path), 512)) == 8
        held = peak(decoder)
        path.write_bytes(endless_video(3_000_000))
        assert path.stat().st_size < 20_000
        with pytest.raises(InputError) as caught:
            decoder.ranges(str(path), 512)
        assert caught.value.code == "too_many_frames"
        # The index of FFmpeg itself.
        assert peak(decoder) - held < 150
        path.write_bytes(endless_video(4000))
        assert len(decoder.ranges(str(path), 512)) == 8


def test_endless_frames_within_the_limit_are_all_there(tmp_path: Path) -> None:
    path = tmp_path / "v.mov"
    path.write_bytes(endless_video(20_000))
    ranges = plan_ranges(str(path), OPTIONS, 512, None)
    assert sum(r.frames for r in ranges) == 20_000
    frames = list(read_frames(str(path), OPTIONS, ranges[-1], None, 100))
    assert [frame.index for frame in frames] == list(range(19_968, 20_000))
    assert frames[0].picture.tolist() == [[[200, 100, 50]]]


def test_an_index_that_promises_more_than_the_file_holds(tmp_path: Path) -> None:
    """600 bytes that declare a million frames of which 5 are there."""
    path = tmp_path / "v.mov"
    path.write_bytes(endless_video(1_000_000, per_chunk=1_000_000))
    assert code_of_plan(path, 999_999) == "too_many_frames"
    ranges = plan_ranges(str(path), OPTIONS, 512, None)
    with pytest.raises(InputError, match="frames can be decoded") as caught:
        list(read_frames(str(path), OPTIONS, ranges[0], None, 100))
    assert caught.value.code == "corrupt"


def test_the_memory_of_a_plan_is_a_few_bytes_a_frame(tmp_path: Path) -> None:
    """Lists, sets and sorted copies took 200 bytes a frame."""
    path = tmp_path / "v.mov"
    with Decoder(decoder_config()) as decoder:
        path.write_bytes(endless_video(4000))
        decoder.ranges(str(path), 512)
        held = peak(decoder)
        path.write_bytes(endless_video(400_000))
        assert len(decoder.ranges(str(path), 512)) == 782
        assert peak(decoder) - held < 50
