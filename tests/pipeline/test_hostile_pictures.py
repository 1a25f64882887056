"""Thousands of hostile pictures through one guarded decoder: each gets its code, none ends it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import InputError
from pipeline.guard import Decoder
from pipeline.units import Unit
from tests.pipeline import corpus
from tests.pipeline.corpus import jpeg_with, packed, pictures, png_with
from tests.pipeline.test_pictures import encoded, png
from tests.pipeline.test_plan import decoder_config

MOST_PIXELS = 1_000_000
DAMAGED = {"ok", "corrupt", "unknown_format", "too_many_pixels"}
SEEDS = range(2)


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    """One process for all tests of the module, with the least memory that can be chosen."""
    config = decoder_config(max_pixels=MOST_PIXELS, max_memory=512, max_seconds=20.0)
    with Decoder(config) as decoder:
        assert outcome(decoder, encoded()) == "ok"
        yield decoder


def outcome(decoder: Decoder, data: bytes) -> str:
    """`ok`, or the code of the failure. `ok` is a picture within the limit, with its crop."""
    try:
        [(frame, crops)] = decoder.frames(Unit(0, 0, "s3://b/x", "image"), data)
    except InputError as error:
        return error.code
    assert 0 < frame.width * frame.height <= MOST_PIXELS
    assert len(crops) == 128 * 128 * 3
    return "ok"


def outcomes(decoder: Decoder, cases: Iterable[bytes]) -> Counter[str]:
    """How often each outcome came; all by the same process, which took no memory that lasts."""
    before = process(decoder)
    found = Counter(outcome(decoder, data) for data in cases)
    assert process(decoder) == before
    return found


def process(decoder: Decoder) -> int | None:
    return decoder._process and decoder._process.pid


def memory(decoder: Decoder, name: str) -> int:
    """What the kernel says about the decoder process's memory, in MiB."""
    status = Path(f"/proc/{process(decoder)}/status").read_text()
    return int(status.partition(f"{name}:")[2].split()[0]) >> 10


def peak(decoder: Decoder) -> int:
    """Most memory that the process ever held."""
    return memory(decoder, "VmHWM")


def held(decoder: Decoder) -> int:
    """Memory that the process holds."""
    return memory(decoder, "VmRSS")


def address_space(decoder: Decoder) -> int:
    """Most address space that the process ever had; `--max-memory` limits it."""
    return memory(decoder, "VmPeak")


@pytest.mark.parametrize("name", list(pictures()))
def test_whole_pictures_are_read(decoder: Decoder, name: str) -> None:
    """What the other tests damage is in order."""
    assert outcome(decoder, pictures()[name]) == "ok"


FIRST_PICTURE = {
    "mpo": b"\xff\xd9",
    "gif-animation": b"\0!\xf9",
    "png-animation": b"fcTL",
    "tiff-pages": b"",
    "webp-animation": b"",
}
"""Where there are more pictures, one cut behind the first is as good as whole."""


@pytest.mark.parametrize("name", list(pictures()))
def test_a_picture_cut_anywhere_is_corrupt_or_whole(decoder: Decoder, name: str) -> None:
    """Cut before its last pixel: never a picture with a grey rest."""
    data = pictures()[name]
    found = outcomes(decoder, corpus.truncated(data))
    assert found.total() > 100
    assert set(found) <= {"ok", "empty", "corrupt", "unknown_format"}
    assert found["unknown_format"] <= 8, "a cut behind the magic number is damage"
    if name not in FIRST_PICTURE:
        half = outcomes(decoder, (data[:at] for at in range(8, len(data) * 9 // 10, 97)))
        assert set(half) <= {"corrupt", "unknown_format"}


@pytest.mark.parametrize("name", list(pictures()))
def test_a_changed_picture_is_a_picture_or_gets_a_code(decoder: Decoder, name: str) -> None:
    """Bits, lengths, counts; parts doubled and left out."""
    data = pictures()[name]
    for seed in SEEDS:
        found = outcomes(decoder, corpus.changed(data, seed, 100))
        assert set(found) <= DAMAGED
        assert found["corrupt"] > 5


@settings(
    max_examples=1000,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    name=st.sampled_from(sorted(pictures())),
    cut=st.floats(0, 1),
    other=st.sampled_from(sorted(pictures())),
    patch=st.lists(st.tuples(st.integers(0, 300), st.binary(min_size=1, max_size=6)), max_size=4),
)
def test_spliced_and_patched_pictures(
    decoder: Decoder, name: str, cut: float, other: str, patch: list[tuple[int, bytes]]
) -> None:
    """The head of one picture, the rest of another, and strange bytes in the header."""
    one, two = pictures()[name], pictures()[other]
    data = bytearray(one[: int(cut * len(one))] + two[int(cut * len(two)) :])
    for at, value in patch:
        data[at : at + len(value)] = value
    assert outcome(decoder, bytes(data)) in DAMAGED


def test_real_pictures_damaged(decoder: Decoder) -> None:
    found = corpus.real_files(".jpg", 12)
    if not found:
        pytest.skip("needs ../shared")
    for seed, data in enumerate(found):
        assert outcome(decoder, data) == "ok"
        assert set(outcomes(decoder, corpus.truncated(data, step=9))) <= DAMAGED | {"empty"}
        assert set(outcomes(decoder, corpus.changed(data, seed, 25))) <= DAMAGED


def relabelled(marker: int) -> bytes:
    """A JPEG that says it is coded in another way: arithmetic, lossless, hierarchical."""
    return encoded(kind="JPEG").replace(b"\xff\xc0\0", bytes([0xFF, marker, 0]), 1)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(encoded(kind="JPEG") + corpus.archive(), "ok", id="JPEG and zip"),
        pytest.param(encoded() + b"<script>alert(1)</script>", "ok", id="PNG and HTML"),
        pytest.param(corpus.gif_script(), "too_many_pixels", id="GIF that is a script"),
        pytest.param(encoded(kind="GIF") + b"*/=1;alert(1)", "ok", id="GIF and script"),
        pytest.param(corpus.archive() + encoded(kind="JPEG"), "unknown_format", id="zip and JPEG"),
        pytest.param(b"%PDF-1.7\n" + encoded(kind="JPEG"), "unknown_format", id="PDF and JPEG"),
        pytest.param(b"<html>" + encoded(kind="JPEG"), "unknown_format", id="HTML and JPEG"),
        pytest.param(b"\x7fELF" + bytes(2000), "unknown_format", id="program"),
        pytest.param(b"#!/bin/sh\nrm -rf /\n", "unknown_format", id="script"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unknown_format", id="SVG"),
        pytest.param(b"\0\0\0\x1cftypheic" + bytes(900), "unknown_format", id="HEIC"),
        pytest.param(b"\0\0\0\x18ftypmp42" + bytes(900), "unknown_format", id="video"),
        pytest.param(b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99), "unknown_format", id="JPEG 2000"),
        pytest.param(b"push graphic-context\nurl(https://h/)", "unknown_format", id="MVG"),
        pytest.param(b"P7\nWIDTH 2\nHEIGHT 2\n", "unknown_format", id="PAM"),
        pytest.param(b"P6\n-1 -1\n255\n" + bytes(99), "corrupt", id="negative size"),
        pytest.param(b"P6\n1e9 1\n255\n" + bytes(99), "corrupt", id="size with an exponent"),
        pytest.param(b"P6\n" + b"9" * 5000, "corrupt", id="endless number"),
        pytest.param(b"P6\n#" + b"x" * 100_000, "corrupt", id="endless comment"),
        pytest.param(b"RIFF\xff\xff\xff\xffWEBPVP8X", "corrupt", id="WebP of 4 GiB"),
        pytest.param(b"BM" + b"\xff" * 60, "corrupt", id="BMP of ones"),
        pytest.param(b"GIF89a" + b"\xff" * 60, "corrupt", id="GIF of ones"),
        pytest.param(b"GIF89a", "corrupt", id="GIF without a screen"),
        pytest.param(b"GIF89a\1\0\1\0\0\0\0;", "corrupt", id="GIF without a frame"),
        pytest.param(b"II*\0\x08\0\0\0\0\0", "corrupt", id="TIFF without tags"),
        pytest.param(b"MM\0*\0\0\0\0", "corrupt", id="TIFF without a page"),
        # Any bytes are a picture in arithmetic coding, which is read.
        pytest.param(relabelled(0xC9), "ok", id="arithmetic coding"),
        pytest.param(relabelled(0xC3), "corrupt", id="lossless JPEG"),
        pytest.param(relabelled(0xC5), "corrupt", id="hierarchical JPEG"),
    ],
)
def test_polyglots_and_foreign_files(decoder: Decoder, data: bytes, expected: str) -> None:
    """What a file begins with decides what it is, whatever hangs on it."""
    assert outcomes(decoder, [data]) == {expected: 1}


BOMBS = corpus.declared_bombs()


@pytest.mark.parametrize("name", list(BOMBS))
def test_a_declared_size_is_refused_before_it_takes_memory(name: str) -> None:
    """Pillow took 1.5 GiB for a GIF and 27 GiB of addresses for a WebP before it told the size."""
    config = decoder_config(max_pixels=100_000_000, max_memory=4096)
    with Decoder(config) as decoder:
        assert outcome(decoder, png(2, 2, 8, 2, bytes(14))) == "ok"
        held, addresses = peak(decoder), address_space(decoder)
        assert outcomes(decoder, [BOMBS[name]]) == {"too_many_pixels": 1}
        assert peak(decoder) - held < 24
        assert address_space(decoder) - addresses < 100


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(jpeg_with(0xFE, b"c" * 65_533, 400), "ok", id="25 MB of JPEG comments"),
        pytest.param(
            jpeg_with(0xE1, b"Exif\0\0MM\0*" + b"\1" * 65_000, 60), "ok", id="60 damaged EXIF"
        ),
        pytest.param(
            encoded(kind="JPEG", icc_profile=bytes(8 << 20)), "ok", id="8 MiB ICC in a JPEG"
        ),
        pytest.param(
            png_with(packed(b"iCCP", bytes(range(256)) * 8192)), "ok", id="2 MiB ICC in a PNG"
        ),
        pytest.param(png_with(packed(b"iCCP", bytes(70 << 20))), "corrupt", id="ICC bomb in a PNG"),
        pytest.param(png_with(packed(b"zTXt", bytes(99 << 20))), "corrupt", id="text bomb"),
        pytest.param(
            png_with(*[packed(b"zTXt", bytes(1 << 20))] * 80), "corrupt", id="80 texts of 1 MiB"
        ),
        pytest.param(png_with(b"tEXtx\0" + b"a" * (10 << 20)), "ok", id="10 MiB of plain text"),
        pytest.param(png_with(b"eXIfMM\0*" + b"\xff" * (1 << 20)), "ok", id="1 MiB of EXIF"),
        pytest.param(png_with(*[b"vpAg" + bytes(9)] * 20_000), "ok", id="20,000 unknown chunks"),
        pytest.param(
            encoded(kind="WEBP", lossless=True, exif=b"Exif\0\0MM\0*" + bytes(9 << 20)),
            "ok",
            id="9 MiB of EXIF in a WebP",
        ),
        pytest.param(corpus.tiff(t270=(2, 0xFFFFFFF0, 8)), "ok", id="tag of 4 GB"),
        pytest.param(corpus.tiff(t277=(3, 1, 65_535)), "corrupt", id="65,535 samples a pixel"),
        pytest.param(corpus.tiff(t273=(4, 0xFFFFFF, 8)), "corrupt", id="16 million strips"),
    ],
)
def test_huge_metadata(decoder: Decoder, data: bytes, expected: str) -> None:
    """Profiles of more than 1 MiB made a good PNG `corrupt`."""
    assert outcomes(decoder, [data]) == {expected: 1}


def animation(kind: str, frames: int) -> bytes:
    pages = [Image.new("RGB", (4, 4), (i % 256, i // 256, 9)) for i in range(frames)]
    options = {"lossless": True} if kind == "WEBP" else {}
    return encoded(pages[0], kind, save_all=True, append_images=pages[1:], **options)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(corpus.tiff(pages=60_000), id="TIFF of 60,000 pages"),
        pytest.param(corpus.tiff(2)[:-4] + b"\x48\0\0\0", id="TIFF whose last page is the first"),
        pytest.param(animation("GIF", 2000), id="GIF"),
        pytest.param(animation("PNG", 2000), id="PNG"),
        pytest.param(animation("WEBP", 2000), id="WebP"),
    ],
)
def test_of_many_frames_only_the_first_costs(decoder: Decoder, data: bytes) -> None:
    before = peak(decoder)
    assert outcomes(decoder, [data]) == {"ok": 1}
    assert peak(decoder) - before < 40


@pytest.mark.parametrize(
    ("kind", "most"), [("PNG", 65_535), ("JPEG", 65_500), ("BMP", 65_535), ("PPM", 65_535)]
)
def test_long_sides(decoder: Decoder, kind: str, most: int) -> None:
    """One pixel, and as many as the encoders write; both ways."""
    for size in [(1, 1), (most, 1), (1, most)]:
        data = encoded(Image.new("RGB", size, (9, 99, 200)), kind)
        [(frame, _)] = decoder.frames(Unit(0, 0, "s3://b/x", "image"), data)
        assert (frame.width, frame.height) == size


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "tif", "webp", "bmp", "mp4.jpg", "exe"])
def test_the_suffix_of_a_picture_does_not_matter(
    decoder: Decoder, suffix: str, tmp_path: Path
) -> None:
    for name, data in pictures().items():
        path = tmp_path / f"{name}.{suffix}"
        path.write_bytes(data)
        [(frame, _)] = decoder.frames(Unit(0, 0, str(path), "image"), None)
        assert frame.width * frame.height in (40 * 56, 32 * 48)


@pytest.mark.parametrize("size", [0, 1, 1000, 1001, 1 << 40])
def test_bytes_over_the_limit_are_not_read(size: int, tmp_path: Path) -> None:
    """The largest is a terabyte of holes."""
    path = tmp_path / "a.jpg"
    path.touch()
    try:
        os.truncate(path, size)
    except OSError as error:
        pytest.skip(f"no such sparse file here: {error}")
    with Decoder(decoder_config(max_bytes=1000)) as decoder:
        with pytest.raises(InputError) as caught:
            list(decoder.frames(Unit(0, 0, str(path), "image"), None))
        expected = "empty" if not size else "unknown_format" if size <= 1000 else "too_large"
        assert caught.value.code == expected


def test_a_pipe_that_nobody_writes_to_is_a_timeout(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with Decoder(decoder_config(max_seconds=0.5)) as decoder:
        good = tmp_path / "b.png"
        good.write_bytes(encoded())
        assert len(list(decoder.frames(Unit(0, 0, str(good), "image"), None))) == 1
        with pytest.raises(InputError) as caught:
            list(decoder.frames(Unit(0, 0, f"{tmp_path}/a.jpg", "image"), None))
        assert caught.value.code == "timeout"


def test_the_limits_of_opencv_are_those_of_the_settings(decoder: Decoder) -> None:
    """They were set after OpenCV had read them."""
    environment = Path(f"/proc/{process(decoder)}/environ").read_bytes().split(b"\0")
    assert f"OPENCV_IO_MAX_IMAGE_PIXELS={MOST_PIXELS}".encode() in environment


@pytest.mark.soak
@pytest.mark.parametrize("name", list(pictures()))
def test_many_more_changes(decoder: Decoder, name: str) -> None:
    for seed in range(100, 160):
        assert set(outcomes(decoder, corpus.changed(pictures()[name], seed, 200))) <= DAMAGED


def test_memory_is_not_kept_from_picture_to_picture(decoder: Decoder) -> None:
    cases = [c for data in pictures().values() for c in corpus.changed(data, 7, 40)]
    outcomes(decoder, cases)
    before = held(decoder)
    outcomes(decoder, cases + cases)
    assert held(decoder) - before < 16
