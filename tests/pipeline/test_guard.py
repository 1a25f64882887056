"""Decoder processes: whatever an input does to one, its unit gets a row and the next one works."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from cpm_core.info import FOLDER
from cpm_core.locators import LocatorSpec
from pipeline.errors import InputError, PosemillError
from pipeline.guard import Decoder
from pipeline.messages import FrameResult
from pipeline.storage import StorageOptions
from pipeline.units import Unit
from tests.faults.proxy import Proxy, Rule
from tests.pipeline.conftest import Place
from tests.pipeline.test_pictures import png
from tests.pipeline.test_plan import decoder_config
from tests.pipeline.videos import write_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs, good and hostile, and the hook that makes the hostile ones work."""
    root = tmp_path_factory.mktemp("guard")
    (root / "hook").mkdir()
    hook = Path(__file__).with_name("hostile.py")
    (root / "hook" / "sitecustomize.py").write_text(hook.read_text())
    cv2.imwrite(str(root / "good.png"), np.full((40, 60, 3), 200, np.uint8))
    write_video(root / "v.mp4", frames=30)
    for word in ["ABORT", "EXIT", "KILL", "HANG", "STUCK", "HUNGRY", "RAISE", "REFUSE", "NOISE"]:
        (root / word).write_text(f"{word} ")
    (root / "large-rgb.png").write_bytes(png(15_000, 15_000, 8, 2, b""))
    (root / "large-rgba.png").write_bytes(png(15_000, 15_000, 8, 6, b""))
    (root / "text.png").write_text("hello")
    return root


@pytest.fixture(scope="module")
def decoder(folder: Path) -> Iterator[Decoder]:
    """One for all tests: every test shows that it works after the one before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder / "hook"))
        config = decoder_config(max_seconds=4.0, max_memory=512, max_pixels=10**9)
        with Decoder(config) as decoder:
            frames(decoder, folder / "good.png")
            yield decoder


def frames(
    decoder: Decoder, path: Path | str, kind: str = "image", data: bytes | None = None
) -> list[tuple[FrameResult, bytes]]:
    return list(decoder.frames(Unit(0, 0, str(path), kind, start_frame=0, frames=30), data))


def works(decoder: Decoder, folder: Path) -> bool:
    [(result, crops)] = frames(decoder, folder / "good.png")
    if result.boxes.tolist() != [[0, 0, 60, 40]]:
        return False
    view = np.frombuffer(crops, np.uint8).reshape(128, 128, 3)
    return bool((view[64, 4:-4] == 200).all() and (view[0] == 128).all())


def pid_of(decoder: Decoder) -> int:
    assert decoder._process is not None
    return decoder._process.pid


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def wait_until_gone(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not is_gone(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_pictures_come_with_their_crops(decoder: Decoder, folder: Path) -> None:
    assert works(decoder, folder)
    first = pid_of(decoder)
    assert works(decoder, folder)
    assert pid_of(decoder) == first


def test_bytes_that_were_fetched_before_are_used(decoder: Decoder, folder: Path) -> None:
    data = (folder / "good.png").read_bytes()
    [(result, _)] = frames(decoder, "s3://bucket/x.png", data=data)
    assert (result.width, result.height) == (60, 40)


def test_videos_come_frame_by_frame(decoder: Decoder, folder: Path) -> None:
    unit = Unit(0, 0, f"{folder}/v.mp4", "video", start_pts=0, start_frame=0, frames=30)
    results = [result for result, _ in decoder.frames(unit, None)]
    assert [result.frame_index for result in results] == list(range(30))


def test_videos_are_cut(decoder: Decoder, folder: Path) -> None:
    """Each cut of a video ended the process once, so that every one paid for a start."""
    before = pid_of(decoder)
    for _ in range(2):
        assert [r.frames for r in decoder.ranges(f"{folder}/v.mp4", 12)] == [12, 12, 6]
    with pytest.raises(InputError) as caught:
        decoder.ranges(f"{folder}/text.png", 12)
    assert caught.value.code == "corrupt"
    assert pid_of(decoder) == before


@pytest.mark.parametrize(
    ("name", "code", "message", "survives"),
    [
        pytest.param("text.png", "unknown_format", "hello", True, id="no picture"),
        pytest.param("none.png", "not_found", "no such file", True, id="missing"),
        pytest.param("REFUSE", "corrupt", "is not text", True, id="a message that is not text"),
        pytest.param("RAISE", "internal", "RuntimeError.*a surprise", True, id="a bug"),
        pytest.param("HUNGRY", "out_of_memory", "--max-memory", False, id="memory, NumPy"),
        pytest.param("large-rgb.png", "out_of_memory", "--max-memory", False, id="memory, OpenCV"),
        pytest.param("large-rgba.png", "out_of_memory", "--max-memory", False, id="memory, Pillow"),
        pytest.param("ABORT", "worker_crashed", "Aborted", False, id="abort"),
        pytest.param("EXIT", "worker_crashed", "exit code 3", False, id="exit"),
        pytest.param("KILL", "out_of_memory", "killed", False, id="killed by the kernel"),
        pytest.param("HANG", "timeout", "within 4 s", False, id="sleeps"),
        pytest.param("STUCK", "timeout", "within 4 s", False, id="hangs in native code"),
    ],
)
def test_a_hostile_unit_gets_its_code_and_the_next_one_works(
    decoder: Decoder, folder: Path, name: str, code: str, message: str, survives: bool
) -> None:
    assert works(decoder, folder)
    before = pid_of(decoder)
    started = time.monotonic()
    with pytest.raises(InputError, match=message) as caught:
        frames(decoder, folder / name)
    assert caught.value.code == code
    assert time.monotonic() - started < 20
    assert survives or is_gone(before)
    assert works(decoder, folder)
    assert (pid_of(decoder) == before) == survives


def test_noise_on_the_standard_streams_does_not_matter(
    decoder: Decoder, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    [(result, crops)] = frames(decoder, folder / "NOISE")
    assert (result.width, len(crops)) == (8, 128 * 128 * 3)
    assert capfd.readouterr().out == ""


def test_a_unit_left_in_the_middle_does_not_leak_into_the_next(
    decoder: Decoder, folder: Path
) -> None:
    unit = Unit(0, 0, f"{folder}/v.mp4", "video", start_pts=0, start_frame=0, frames=30)
    unfinished = decoder.frames(unit, None)
    assert next(unfinished)[0].frame_index == 0
    assert works(decoder, folder)
    del unfinished
    assert works(decoder, folder)


def test_a_process_that_dies_while_idle_is_not_the_next_units_fault(
    decoder: Decoder, folder: Path
) -> None:
    """The kernel ends idle decoders first when memory is short."""
    assert works(decoder, folder)
    os.kill(pid_of(decoder), signal.SIGKILL)
    assert decoder._process is not None
    decoder._process.wait()
    assert works(decoder, folder)


def test_a_decoder_that_is_closed_starts_again(decoder: Decoder, folder: Path) -> None:
    assert works(decoder, folder)
    pid = pid_of(decoder)
    decoder.close()
    assert is_gone(pid)
    assert works(decoder, folder)


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE])
def test_no_unit_is_blamed_for_a_decoder_that_cannot_be_started(
    number: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was a timeout of the unit's, or an AssertionError, and every try kept descriptors."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    before = os.listdir("/proc/self/fd")
    with Decoder(decoder_config()) as decoder:
        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "Popen", refuse)
            for _ in range(3):
                with pytest.raises(PosemillError, match=f"started: .*{os.strerror(number)}; are"):
                    frames(decoder, folder / "good.png")
            assert len(os.listdir("/proc/self/fd")) == len(before)
        assert works(decoder, folder)


def test_a_picture_too_large_for_the_limit_is_out_of_memory(folder: Path) -> None:
    """Bytes that were fetched before do not even fit through the pipe."""
    with Decoder(decoder_config(max_memory=512, max_seconds=30.0)) as decoder:
        with pytest.raises(InputError) as caught:
            frames(decoder, "s3://b/x.png", data=bytes(300 << 20))
        assert caught.value.code == "out_of_memory"
        assert works(decoder, folder)


@pytest.mark.skipif(
    not (FOLDER / "person-net.safetensors").exists(), reason="needs the shipped locator"
)
def test_a_person_net_works_under_the_smallest_limit_on_memory(folder: Path) -> None:
    """What torch itself takes is not counted; what a picture takes is."""
    config = decoder_config(
        people=LocatorSpec("person-net", 0.3, "sha"), max_memory=512, max_seconds=60.0
    )
    with Decoder(config) as decoder:
        unit = Unit(0, 0, f"{folder}/v.mp4", "video", start_pts=0, start_frame=0, frames=30)
        results = [result for result, _ in decoder.frames(unit, None)]
        assert [result.frame_index for result in results] == list(range(30))
        assert {result.source for result in results} == {"person-net"}
        before = pid_of(decoder)
        with pytest.raises(InputError) as caught:
            frames(decoder, "s3://b/x.png", data=bytes(600 << 20))
        assert caught.value.code == "out_of_memory"
        [(result, _)] = frames(decoder, folder / "good.png")
        assert (result.source, result.width) == ("person-net", 60)
        assert pid_of(decoder) != before


def test_videos_are_read_from_s3(s3_place: Place, folder: Path) -> None:
    s3_place.put("v.mp4", (folder / "v.mp4").read_bytes())
    with Decoder(decoder_config()) as decoder:
        uri = f"{s3_place.uri}/v.mp4"
        [whole] = decoder.ranges(uri, 100)
        unit = Unit(0, 0, uri, "video", None, None, None, whole.start_pts, None, 0, 30)
        assert len(list(decoder.frames(unit, None))) == 30


@pytest.mark.parametrize("planned", [True, False])
def test_storage_that_gives_nothing_is_no_timeout_of_the_videos(
    planned: bool, s3_place: Place, moto_endpoint: str, folder: Path
) -> None:
    """That may pass: such shards are tried again before they are written."""
    data = (folder / "v.mp4").read_bytes()
    s3_place.put("v.mp4", data)
    uri = f"{s3_place.uri}/v.mp4"
    with Proxy(moto_endpoint) as proxy:
        config = decoder_config(max_seconds=3.0, storage=StorageOptions(proxy.url))
        with Decoder(config) as decoder:
            assert works(decoder, folder)
            proxy.set_rules(Rule("stall", "GET"))
            unit = Unit(0, 0, uri, "video", start_pts=0, start_frame=0, frames=30)
            with pytest.raises(InputError, match="gave nothing within 3 s") as caught:
                _ = list(decoder.frames(unit, None)) if planned else decoder.ranges(uri, 100)
            assert caught.value.code == "storage"
            proxy.set_rules()
            assert [r.frames for r in decoder.ranges(uri, 100)] == [30]


PARENT = """
import sys, threading
from pathlib import Path
from pipeline.guard import Decoder
from pipeline.units import Unit
from tests.pipeline.test_plan import decoder_config

folder, hostile = sys.argv[1:]
sys.path.insert(0, folder + "/hook")
decoder = Decoder(decoder_config())
list(decoder.frames(Unit(0, 0, folder + "/good.png", "image"), None))
hung = Unit(0, 0, folder + "/" + hostile, "image")
threading.Thread(target=lambda: list(decoder.frames(hung, None)), daemon=True).start()
print(decoder._process.pid, flush=True)
threading.Event().wait(60)
"""


@pytest.mark.parametrize("doing", ["good.png", "STUCK"])
def test_a_child_goes_with_its_parent(folder: Path, doing: str) -> None:
    """Also one that hangs in a decoder and cannot look after itself."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(folder), doing],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
        time.sleep(0.3)
        assert not is_gone(child)
        parent.kill()
        parent.wait()
    assert wait_until_gone(child, 5)


def test_a_stopped_child_goes_with_its_parent(folder: Path) -> None:
    """What is stopped hears no signal but one."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(folder), "good.png"],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
        os.kill(child, signal.SIGSTOP)
        parent.kill()
        parent.wait()
    assert wait_until_gone(child, 5)


def test_another_thread_can_interrupt_it(decoder: Decoder, folder: Path) -> None:
    """Ctrl-C while a plan is made does not wait for the video that is being read."""
    assert works(decoder, folder)
    timer = threading.Timer(0.3, decoder.interrupt)
    timer.start()
    started = time.monotonic()
    with pytest.raises(InputError):
        frames(decoder, folder / "HANG")
    assert time.monotonic() - started < 3
    timer.join()
    assert works(decoder, folder)
