"""People located by the parent, for all its decoders: as each would, and never at a unit's cost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cpm_core.info import FOLDER
from cpm_core.locators import LocatorSpec
from pipeline.errors import InputError
from pipeline.guard import Decoder
from pipeline.lookout import Lookout, LookoutError
from pipeline.messages import FrameResult
from pipeline.rows import boxes_of, crops_of
from pipeline.stages import Prepare
from pipeline.stall import Pulse
from pipeline.storage import Output
from pipeline.units import Unit
from pipeline.worker import UnitWorker
from tests.e2e.conftest import draw_figure
from tests.pipeline.conftest import OPTIONS
from tests.pipeline.test_plan import decoder_config
from tests.pipeline.videos import write_video

SIZE = 32
NET = LocatorSpec("person-net", 0.02, "sha")
"""Low enough to find something in drawn figures."""
needs_net = pytest.mark.skipif(
    not (FOLDER / "person-net.safetensors").exists(), reason="needs the shipped locator"
)


class Net:
    """Finds a box as high as the first value of what it looks at; `before` happens first."""

    size = SIZE
    largest_batch = 3

    def __init__(self, before: Callable[[int], None] = lambda count: None) -> None:
        self.before = before
        self.batches: list[int] = []

    def look(self, images: NDArray[np.uint8]) -> list[Any]:
        assert images.shape[1:] == (SIZE, SIZE, 3)
        self.batches.append(len(images))
        self.before(len(images))
        box = [[4.0, 4.0, 8.0, float(image[0, 0, 0])] for image in images]
        return [(np.array([b], np.float32), np.array([0.5], np.float32)) for b in box]


def image_of(value: int) -> NDArray[np.uint8]:
    return np.full((SIZE, SIZE, 3), value, np.uint8)


@pytest.fixture
def open_lookout() -> Iterator[Callable[[Any], Lookout]]:
    """Makes lookouts, and ends them."""
    made: list[Lookout] = []

    def make(net: Any) -> Lookout:
        made.append(Lookout(net, Pulse("prepare")))
        return made[-1]

    yield make
    for lookout in made:
        lookout.close()
        assert not lookout._thread.is_alive()


def test_what_comes_while_it_is_busy_is_the_next_batch(
    open_lookout: Callable[[Any], Lookout],
) -> None:
    """The first one does not wait for others, and everybody gets their own answer."""
    is_busy, go_on = threading.Event(), threading.Event()

    def wait(_: int) -> None:
        is_busy.set()
        assert go_on.wait(60)

    net = Net(wait)
    lookout = open_lookout(net)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(lookout.find, image_of(1))
        assert is_busy.wait(60)
        later = [pool.submit(lookout.find, image_of(value)) for value in range(2, 9)]
        while lookout._asked.qsize() < len(later):
            threading.Event().wait(0.005)
        assert [note.what for note in lookout._pulse.notes()] == [
            "locating people, pictures at once: 1"
        ]
        go_on.set()
        found = [future.result()[0][0, 3] for future in (first, *later)]
    assert found == list(range(1, 9))
    assert net.batches == [1, 3, 3, 1]


def test_whatever_goes_wrong_is_told_to_all_who_wait(
    open_lookout: Callable[[Any], Lookout],
) -> None:
    """And the next ones are looked at."""
    net = Net()
    lookout = open_lookout(net)

    def fail(_: int) -> None:
        raise torch.cuda.OutOfMemoryError("all is taken")

    net.before = fail
    with ThreadPoolExecutor(5) as pool:
        for future in [pool.submit(lookout.find, image_of(value)) for value in range(5)]:
            with pytest.raises(LookoutError, match=r"all is taken.*--locator-device cpu") as caught:
                future.result()
            assert isinstance(caught.value.__cause__, torch.cuda.OutOfMemoryError)
    net.before = lambda count: None
    assert lookout.find(image_of(7))[0][0, 3] == 7


def test_a_net_that_leaves_an_answer_out_leaves_nobody_waiting(
    open_lookout: Callable[[Any], Lookout], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Net, "look", lambda self, images: [])
    with pytest.raises(LookoutError):
        open_lookout(Net()).find(image_of(1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of many sizes, and a video."""
    root = tmp_path_factory.mktemp("lookout")
    figure = draw_figure(0, 192, 256)
    cv2.imwrite(str(root / "figure.png"), figure)
    cv2.imwrite(str(root / "large.jpg"), cv2.resize(figure, (3001, 3999)))
    cv2.imwrite(str(root / "wide.png"), cv2.resize(figure, (900, 30)))
    cv2.imwrite(str(root / "tiny.png"), np.full((1, 1, 3), 200, np.uint8))
    cv2.imwrite(str(root / "nobody.png"), np.zeros((80, 120, 3), np.uint8))
    for i in range(8):
        cv2.imwrite(str(root / f"{i}.jpg"), draw_figure(i, 160 + 40 * i, 300))
    write_video(root / "v.mp4", frames=5)
    return root


PICTURES = ["figure.png", "large.jpg", "wide.png", "tiny.png", "nobody.png"] + [
    f"{i}.jpg" for i in range(8)
]


def unit_of(folder: Path, name: str, number: int = 0) -> Unit:
    kind = "video" if name.endswith("mp4") else "image"
    times = {"start_pts": 0, "start_frame": 0, "frames": 5} if kind == "video" else {}
    return Unit(number, 0, f"{folder}/{name}", kind, **times)


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, list[tuple[FrameResult, Any]]]:
    """What a decoder that locates people itself makes of each input."""
    worker = UnitWorker(decoder_config(people=NET))
    return {name: list(worker.frames(unit_of(folder, name), None)) for name in [*PICTURES, "v.mp4"]}


@needs_net
def test_boxes_are_those_that_decoders_find_themselves(
    folder: Path, alone: dict[str, list[tuple[FrameResult, Any]]]
) -> None:
    """Of several decoders at once, whose pictures come together in batches."""
    units = [unit_of(folder, name, i) for i, name in enumerate([*PICTURES, "v.mp4"])]
    config = decoder_config(people=NET)
    prepare = Prepare(config, Output(str(folder / "out"), OPTIONS), 4, locator_device="cpu")
    try:
        table = prepare.units(units)
        assert all(decoder.config.look_size == 416 for decoder in prepare.pool)
        assert not any(has_torch(decoder) for decoder in prepare.pool)
    finally:
        prepare.close()
    frames = [frame for unit in units for frame in alone[Path(unit.uri).name]]
    people = [len(result.boxes) for result, _ in frames]
    assert min(people) == 0
    assert max(people) > 1
    assert table["person_index"].to_pylist() == [
        i for count in people for i in (range(count) if count else [None])
    ]
    expected = np.concatenate([result.boxes for result, _ in frames])
    np.testing.assert_allclose(boxes_of(table), expected, atol=0.05)
    scores = np.concatenate([result.scores for result, _ in frames])
    np.testing.assert_allclose(table["box_score"].drop_null(), scores, atol=1e-4)
    crops = np.concatenate([crops for _, crops in frames]).astype(int)
    assert np.abs(crops_of(table, config.view_shape) - crops).mean() < 0.5
    assert set(table["box_source"].drop_null().to_pylist()) == {"person-net"}


def has_torch(decoder: Decoder) -> bool:
    """Whether the process has loaded PyTorch, and with it what it takes."""
    assert decoder._process is not None
    return "libtorch" in Path(f"/proc/{decoder._process.pid}/maps").read_text()


def pid_of(decoder: Decoder) -> int:
    assert decoder._process is not None
    return decoder._process.pid


def people_in(decoder: Decoder, folder: Path, name: str = "figure.png") -> int:
    return sum(len(r.boxes) for r, _ in decoder.frames(unit_of(folder, name), None))


@pytest.mark.parametrize(
    ("sent", "code", "message"),
    [
        pytest.param(signal.SIGKILL, "out_of_memory", "was killed", id="killed"),
        pytest.param(signal.SIGABRT, "worker_crashed", "Aborted", id="crashed"),
        pytest.param(signal.SIGSTOP, "timeout", "within 2 s", id="stops"),
    ],
)
def test_a_decoder_that_dies_while_it_waits_for_boxes_is_replaced(
    folder: Path,
    open_lookout: Callable[[Any], Lookout],
    sent: signal.Signals,
    code: str,
    message: str,
) -> None:
    """Its unit has its row at once; the answer is nobody else's."""
    net = Net()
    with Decoder(decoder_config(people=NET, max_seconds=2.0), open_lookout(net)) as decoder:
        assert people_in(decoder, folder) == 1
        before = pid_of(decoder)
        net.before = lambda count: os.kill(before, sent)
        with pytest.raises(InputError, match=message) as caught:
            people_in(decoder, folder)
        assert caught.value.code == code
        net.before = lambda count: None
        assert people_in(decoder, folder, "v.mp4") == 5
        assert pid_of(decoder) != before


def test_time_that_the_device_takes_is_not_the_units(
    folder: Path, open_lookout: Callable[[Any], Lookout]
) -> None:
    net = Net(lambda count: threading.Event().wait(1.2) and None)
    with Decoder(decoder_config(people=NET, max_seconds=1.0), open_lookout(net)) as decoder:
        assert people_in(decoder, folder) == 1
        assert people_in(decoder, folder) == 1
    assert net.batches == [1, 1]


def test_no_unit_is_blamed_for_a_net_that_cannot_look(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shard fails, with no rows; when the device is there again, the same actor goes on."""
    net = Net()
    monkeypatch.setattr(LocatorSpec, "build_net", lambda self, device: net)
    units = [unit_of(folder, name, i) for i, name in enumerate(PICTURES)]
    config = decoder_config(people=NET)
    prepare = Prepare(config, Output(str(folder / "out"), OPTIONS), 2, locator_device="cpu")

    def fail(_: int) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    try:
        net.before = fail
        with pytest.raises(LookoutError, match="illegal memory access"):
            prepare.units(units)
        net.before = lambda count: None
        table = prepare.units(units)
    finally:
        prepare.close()
    assert table["unit_id"].to_pylist() == list(range(len(units)))
    assert "failed" not in table["status"].to_pylist()
