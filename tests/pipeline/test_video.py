"""Videos: cut into ranges that hold every frame exactly once, with true times, and nothing lost."""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipeline import video
from pipeline.errors import InputError
from pipeline.ranges import plan_ranges
from pipeline.reader import VideoReader, read_frames
from pipeline.video import Frame, Range
from tests.pipeline.conftest import OPTIONS
from tests.pipeline.videos import (
    MOST,
    SIZE,
    cut,
    decode_all,
    drawing,
    read,
    read_on,
    write_audio,
    write_video,
)

VIDEOS: dict[str, dict[str, Any]] = {
    "v.mp4": {},
    "b-frames.mp4": {"b_frames": 3},
    "open-gop-of-3.mp4": {"b_frames": 3, "keyframe_every": 3},
    "long-gop.mp4": {"b_frames": 3, "keyframe_every": 250},
    "all-keyframes.mp4": {"keyframe_every": 1},
    "variable-rate.mp4": {"times_ms": [i * 20 + i % 3 * 7 + (i > 20) * 900 for i in range(40)]},
    "variable-rate.mkv": {"times_ms": [i * 50 + i % 2 * 17 for i in range(40)], "b_frames": 2},
    "v.webm": {"codec": "libvpx-vp9"},
    "v.ts": {"b_frames": 3},
    "long-gop.ts": {"keyframe_every": 250},
    "v.flv": {"b_frames": 3},
    "v.mpg": {"codec": "mpeg2video", "b_frames": 2},
    "v.avi": {"codec": "mpeg4", "b_frames": 2},
    "mjpeg.avi": {"codec": "mjpeg"},
}


@pytest.mark.parametrize("largest", [7, 16])
@pytest.mark.parametrize("name", list(VIDEOS))
def test_ranges_hold_every_frame_once(name: str, largest: int, tmp_path: Path) -> None:
    """TS, FLV, MPEG and AVI seek past the keyframe: they lost frames at every cut."""
    path = write_video(tmp_path / name, **VIDEOS[name])
    whole = decode_all(path)
    ranges = cut(path, largest)
    frames, failures = read(path, ranges)
    assert failures == []
    assert [frame.pts for frame in frames] == [pts for pts, _ in whole]
    assert [frame.index for frame in frames] == list(range(40))
    assert all(np.array_equal(f.picture, p) for f, (_, p) in zip(frames, whole, strict=True))
    assert all(r.frames <= largest for r in ranges)
    assert sum(r.frames for r in ranges) == 40


@pytest.mark.parametrize("fps", [None, 3.0])
@pytest.mark.parametrize("name", ["v.mp4", "v.ts", "v.avi"])
def test_the_last_range_knows_where_a_whole_video_ends(
    name: str, fps: float | None, tmp_path: Path
) -> None:
    path = write_video(tmp_path / name, **VIDEOS[name])
    *ranges, last = cut(path, 7, fps)
    assert last.end_frame == 40
    assert [r.end_frame for r in ranges] == [None] * len(ranges)


def test_nobody_knows_where_a_video_ends_that_was_cut_short(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mkv")
    shorten(path, 0.6)
    assert cut(path, 100)[-1].end_frame is None


def test_times_are_those_of_the_container(tmp_path: Path) -> None:
    times = [0, 40, 60, 160, 1000, 1010]
    path = write_video(tmp_path / "v.mp4", frames=6, times_ms=times)
    frames, _ = read(path, cut(path, 2))
    assert [frame.timestamp_s for frame in frames] == pytest.approx([t / 1000 for t in times])


def test_frames_show_what_was_recorded(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", frames=3, options={"crf": "1"})
    for frame in read(path, cut(path, 2))[0]:
        assert frame.picture.shape == (SIZE[1], SIZE[0], 3)
        assert frame.index is not None
        difference = frame.picture.astype(int) - drawing(frame.index)
        assert np.abs(difference)[2:10, 4:12].max() < 30


@pytest.mark.parametrize(
    ("keyframe_every", "largest", "expected"),
    [
        pytest.param(12, 12, [12, 12, 12, 4], id="a range per GOP"),
        pytest.param(12, 30, [24, 16], id="as many GOPs as fit"),
        pytest.param(12, 10, [10, 2, 10, 2, 10, 6], id="GOPs that do not fit are cut"),
        pytest.param(250, 15, [15, 15, 10], id="one GOP"),
        pytest.param(12, 100, [40], id="one range"),
    ],
)
def test_cuts_are_at_keyframes_where_possible(
    keyframe_every: int, largest: int, expected: list[int], tmp_path: Path
) -> None:
    path = write_video(tmp_path / "v.mp4", keyframe_every=keyframe_every)
    ranges = cut(path, largest)
    assert [r.frames for r in ranges] == expected
    assert [r.start_frame for r in ranges] == [sum(expected[:i]) for i in range(len(expected))]
    assert ranges[-1].end_pts is None


@pytest.mark.parametrize(
    ("fps", "expected"),
    [
        (5, [0, 5, 10, 15, 20, 25, 30, 35]),
        (1, [0, 25]),
        (10, [0, 3, 5, 8, 10, 13, 15, 18, 20, 23, 25, 28, 30, 33, 35, 38]),
        (25, list(range(40))),
        (100, list(range(40))),
        (0.1, [0]),
    ],
)
@pytest.mark.parametrize("largest", [3, 100])
def test_sampling_takes_the_first_frame_of_each_interval_whatever_the_cut(
    fps: float, expected: list[int], largest: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "sampled.mp4"
    if not path.exists():
        write_video(path, b_frames=2)
    frames, failures = read(path, cut(path, largest, fps), fps)
    assert [frame.index for frame in frames] == expected
    assert failures == []


def test_sampling_goes_by_time_where_the_rate_varies(tmp_path: Path) -> None:
    times = [0, 10, 20, 900, 1100, 1150, 3000, 3999, 4000]
    path = write_video(tmp_path / "v.mp4", frames=9, times_ms=times)
    for largest in (1, 2, 9):
        frames, failures = read(path, cut(path, largest, 1), 1)
        assert [round((frame.timestamp_s or 0) * 1000) for frame in frames] == [0, 1100, 3000, 4000]
        assert failures == []


@pytest.mark.parametrize(
    ("rotation", "corner"),
    [(0, (6, 8)), (90, (-8, 6)), (180, (-6, -8)), (-90, (8, -6))],
)
def test_frames_are_turned_upright(rotation: int, corner: tuple[int, int], tmp_path: Path) -> None:
    """The red corner goes where the display matrix (counter-clockwise) puts it."""
    path = write_video(tmp_path / "v.mp4", frames=2, rotation=rotation)
    frame = read(path, cut(path, 9))[0][0]
    turned = rotation % 180 != 0
    assert frame.picture.shape == ((SIZE[0], SIZE[1], 3) if turned else (SIZE[1], SIZE[0], 3))
    assert frame.picture.flags["C_CONTIGUOUS"]
    red, green, blue = frame.picture[corner].astype(int)
    assert red > 130
    assert max(green, blue) < 80


@pytest.mark.parametrize(
    ("matrix", "corner"),
    [
        ((-1, 0, 0, 1), (6, -8)),
        ((1, 0, 0, -1), (-6, 8)),
        ((0, 1, 1, 0), (8, 6)),
        ((0, -1, -1, 0), (-8, -6)),
    ],
    ids=["left to right", "upside down", "over the diagonal", "over the other diagonal"],
)
def test_mirrored_frames_are_mirrored_back(
    matrix: tuple[int, int, int, int], corner: tuple[int, int], tmp_path: Path
) -> None:
    """The red corner goes where the matrix (x' = a x + c y, y' = b x + d y) puts it."""
    path = write_video(tmp_path / "v.mp4", frames=2)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    red, green, blue = read(path, cut(path, 9))[0][0].picture[corner].astype(int)
    assert red > 130
    assert max(green, blue) < 80


@pytest.mark.parametrize("largest", [3, 100])
def test_a_counted_video_is_sampled_by_its_rate(largest: int, tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.avi", b_frames=3)
    ranges = cut(path, largest, 5)
    assert ranges[0].start_pts is None
    frames, failures = read(path, ranges, 5)
    assert [frame.index for frame in frames] == [0, 5, 10, 15, 20, 25, 30, 35]
    assert failures == []


def test_frames_of_a_damaged_counted_video_can_be_told_apart(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.avi", b_frames=3, noisy=True)
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    start, size = packets[20]
    data[start + 8 : start + 8 + size] = bytes(size)
    path.write_bytes(data)
    frames, failures = read(path, cut(path, 7))
    assert failures
    assert len(frames) > 20
    assert [frame.index for frame in frames] == list(range(len(frames)))


def test_a_video_without_usable_order_is_counted(tmp_path: Path) -> None:
    """H.264 with B-frames in AVI: its times are those of decoding, and 7 of 60 frames got lost."""
    path = write_video(tmp_path / "v.avi", b_frames=3)
    whole = decode_all(path)
    frames, failures = read(path, cut(path, 7))
    assert failures == []
    assert [frame.index for frame in frames] == list(range(40))
    assert {(frame.pts, frame.timestamp_s) for frame in frames} == {(None, None)}
    assert all(np.array_equal(f.picture, p) for f, (_, p) in zip(frames, whole, strict=True))


def test_a_recording_whose_clock_was_reset_is_counted(tmp_path: Path) -> None:
    """Two recordings, one after the other: times come twice."""
    one = write_video(tmp_path / "one.ts").read_bytes()
    path = tmp_path / "two.ts"
    path.write_bytes(one + one)
    frames, failures = read(path, cut(path, 30))
    assert failures == []
    assert [frame.index for frame in frames] == list(range(len(decode_all(path))))
    assert len(frames) > 70


def shorten(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize("share", [0.5, 0.8, 0.97])
@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.avi"])
@pytest.mark.parametrize("fps", [None, 10.0])
def test_a_truncated_video_keeps_its_frames_and_says_so(
    name: str, share: float, fps: float | None, tmp_path: Path
) -> None:
    """FFmpeg reads them to their early end without a word."""
    codec = "mpeg4" if name == "v.avi" else "libx264"
    path = write_video(tmp_path / name, codec=codec, faststart=name == "v.mp4", noisy=True)
    shorten(path, share)
    frames, failures = read(path, cut(path, 10, fps), fps)
    assert failures == ["corrupt"]
    assert len(frames) >= (30 if fps is None else 12) * share
    assert len(frames) < (40 if fps is None else 16) or name == "v.avi"
    assert [f.index for f in frames] == sorted({f.index for f in frames if f.index is not None})


def test_a_whole_video_promises_no_more_than_it_has(tmp_path: Path) -> None:
    """Unfinished Matroska (a crash, a live stream) leaves its length open."""
    path = write_video(tmp_path / "v.mkv")
    data = bytearray(path.read_bytes())
    at = data.index(bytes.fromhex("18538067")) + 4
    assert data[at] == 1
    data[at : at + 8] = b"\x01" + b"\xff" * 7
    path.write_bytes(data)
    frames, failures = read(path, cut(path, 100))
    assert (len(frames), failures) == (40, [])


@pytest.mark.parametrize("largest", [5, 100])
def test_a_video_that_is_damaged_in_the_middle_loses_nothing_silently(
    largest: int, tmp_path: Path
) -> None:
    path = write_video(tmp_path / "v.mp4", frames=60, keyframe_every=60, codec="mpeg4", noisy=True)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat")
    middle = start + (data.index(b"moov") - start) // 2
    data[middle : middle + 1500] = bytes(1500)
    path.write_bytes(data)
    ranges = cut(path, largest)
    frames, failures = read(path, ranges)
    assert failures
    assert set(failures) == {"corrupt"}
    whole = [frame for frame in frames if frame.index is not None]
    assert len(whole) >= 20
    # What has an index is that frame.
    assert all(frame.pts == frame.index * 512 for frame in whole if frame.index is not None)
    times = [frame.pts for frame in frames]
    assert len(times) == len(set(times))


@pytest.mark.parametrize(
    ("name", "make", "code"),
    [
        pytest.param("a.mp4", lambda path: write_audio(path), "no_video", id="sound only"),
        pytest.param("a.mp4", lambda path: path.write_bytes(b""), "empty", id="empty"),
        pytest.param("a.mp4", lambda path: path.write_text("hello " * 99), "corrupt", id="text"),
        pytest.param("a.mp4", lambda path: path.write_bytes(bytes(9999)), "corrupt", id="zeros"),
        pytest.param(
            "a.mp4", lambda path: shorten(write_video(path), 0.9), "corrupt", id="no moov"
        ),
        pytest.param("a.mp4", lambda path: path.mkdir(), "corrupt", id="folder"),
        pytest.param("a.mp4", lambda path: None, "not_found", id="missing"),
        pytest.param("a.mp4", lambda path: path.symlink_to("a.mp4"), "not_found", id="a loop"),
        pytest.param(
            "a.mp4", lambda path: path.symlink_to(f"{__file__}/b"), "not_found", id="link"
        ),
        pytest.param(
            "a.mp4",
            lambda path: path.write_text(f"ffconcat version 1.0\nfile '{path.parent}/b.mp4'\n"),
            "corrupt",
            id="a playlist that names another file",
        ),
        pytest.param(
            "a.mp4",
            lambda path: path.write_text(
                "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nb.mp4\n#EXT-X-ENDLIST\n"
            ),
            "corrupt",
            id="HLS",
        ),
    ],
)
@pytest.mark.parametrize("step", ["plan", "read"])
def test_what_is_no_video_gets_its_code(
    name: str, make: Callable[[Path], object], code: str, step: str, tmp_path: Path
) -> None:
    write_video(tmp_path / "b.mp4", frames=3)
    make(tmp_path / name)
    uri = str(tmp_path / name)
    with pytest.raises(InputError) as caught:
        cut(uri, 10) if step == "plan" else list(
            read_frames(uri, OPTIONS, Range(0, None, 0, 1), None, MOST)
        )
    assert caught.value.code == code


def test_a_large_frame_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", frames=2)
    with pytest.raises(InputError, match="64 x 48 is more than 3000 pixels") as caught:
        list(read_frames(str(path), OPTIONS, Range(0, None, 0, 2), None, 3000))
    assert caught.value.code == "too_many_pixels"


def test_signs_of_life_come_while_a_video_is_read(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4")
    alive: list[int] = []
    plan_ranges(str(path), OPTIONS, 5, None, lambda: alive.append(1))
    assert len(alive) >= 40
    alive.clear()
    # The last frame, at the end of a GOP: those before are decoded and passed over.
    wanted = Range(35 * 512, None, 35, 5)
    reader = VideoReader(OPTIONS, None, MOST, lambda: alive.append(1))
    [first, *_] = reader.frames(str(path), wanted)
    assert (first.index, len(alive) > 11) == (35, True)


def test_a_frame_that_cannot_be_reached_leaves_the_index_open(tmp_path: Path) -> None:
    """A range that starts where no frame is (a file that was replaced since it was planned)."""
    path = write_video(tmp_path / "v.mp4")
    frames, failures = read(path, [Range(10 * 512 + 100, 13 * 512, 10, 3)])
    assert [(f.pts, f.index) for f in frames] == [(11 * 512, None), (12 * 512, None)]
    assert failures == ["corrupt"]


def test_memory_stays_bounded_over_a_range(tmp_path: Path) -> None:
    """Frames are handed out one by one, none is kept."""
    path = write_video(tmp_path / "v.mp4", frames=200)
    sizes = [
        frame.picture.nbytes
        for frame in read_frames(str(path), OPTIONS, cut(path, 500)[0], None, MOST)
    ]
    assert sizes == [SIZE[0] * SIZE[1] * 3] * 200


def test_a_fractional_rate_does_not_drift() -> None:
    base = Fraction(1001, 30000)
    kept = [i for i in range(30000) if i == 0 or video.new_interval(i - 1, i, base, 29.97)]
    assert len(kept) == pytest.approx(30000, abs=2)


def test_the_segment_of_a_matroska_file_is_measured(tmp_path: Path) -> None:
    from pipeline.ranges import _segment_end

    path = write_video(tmp_path / "v.mkv", frames=3)
    data = path.read_bytes()
    assert _segment_end(data[:4096]) == len(data)
    assert _segment_end(b"") == 0
    assert _segment_end(b"nothing") == 0
    head = bytes.fromhex("1a45dfa380" + "18538067") + struct.pack(">B", 0x8A)
    assert _segment_end(head) == len(head) + 10


def test_av_is_quiet() -> None:
    """Its log would fill the workers' logs with one line per damaged packet."""
    assert av.logging.get_level() is None


def damaged(path: Path, share: float) -> Path:
    """The video with some bytes in its middle struck out."""
    data = bytearray(path.read_bytes())
    at = int(len(data) * share)
    data[at : at + 300] = bytes(300)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("fps", [None, 10.0])
@pytest.mark.parametrize("is_damaged", [False, True])
@pytest.mark.parametrize("name", [*VIDEOS, "order.avi"])
def test_what_was_read_before_changes_nothing(
    name: str, is_damaged: bool, fps: float | None, tmp_path: Path
) -> None:
    """A reader goes on where it was: in order, with gaps, backwards, with another in between."""
    made = {"order.avi": {"b_frames": 3}, **VIDEOS}[name]
    path = write_video(tmp_path / name, noisy=is_damaged, **made)
    other = write_video(tmp_path / f"other-{name}", **made)
    if is_damaged:
        damaged(path, 0.6)
    ranges = cut(path, 7, fps)
    alone = [read(path, [wanted], fps) for wanted in ranges]
    # By these the rows of a unit are told apart, after damage, too.
    assert all(len({(f.pts, f.index) for f in frames}) == len(frames) for frames, _ in alone)
    count = len(ranges)
    orders = [range(count), range(0, count, 2), range(count - 1, -1, -1), [0, 0, count - 1, 1]]
    for order in orders:
        reader = VideoReader(OPTIONS, fps, MOST)
        for n, i in enumerate(order):
            frames: list[Frame] = []
            codes: list[str] = []
            if n == 2:
                next(reader.frames(str(other), ranges[0]))
            read_on(reader, path, ranges[i], frames, codes)
            expected, failures = alone[i]
            assert codes == failures
            assert [(f.pts, f.index) for f in frames] == [(f.pts, f.index) for f in expected]
            # What FFmpeg's threads paint over damage is another thing every time.
            assert is_damaged or all(
                np.array_equal(f.picture, e.picture) for f, e in zip(frames, expected, strict=True)
            )


@pytest.mark.parametrize("name", ["v.mpg", "order.avi"])
def test_a_video_that_cannot_be_sought_is_decoded_once(name: str, tmp_path: Path) -> None:
    """Every range was decoded from the first frame: a long video took as long as its square."""
    made = {"v.mpg": VIDEOS["v.mpg"], "order.avi": {"b_frames": 3}}[name]
    path = write_video(tmp_path / name, frames=200, **made)
    signs = [0]

    def alive() -> None:
        signs[0] += 1

    reader = VideoReader(OPTIONS, None, MOST, alive)
    frames = [frame for wanted in cut(path, 10) for frame in reader.frames(str(path), wanted)]
    assert [frame.index for frame in frames] == list(range(200))
    # A sign for each packet and each frame, and a few for what is read to the end of the file.
    assert signs[0] < 450
