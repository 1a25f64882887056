"""Benchmarks that run as `python -m benchmarks.NAME`: they import, and count rightly."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers.task import BATCH, CLIP_FRAMES, Item, Recorder, in_threads
from benchmarks.processes import Watch
from benchmarks.simulate import Cluster
from cpm_core.crops import Cropper
from tests.pipeline.videos import write_video

MODULES = [
    "busy",
    "curves",
    "depthwise",
    "forward",
    "gpu",
    "memory",
    "simulate",
    "startup",
    "throughput",
    "train_scaling",
]
PEERS = ["daft_class", "dataloader", "loop", "onnx_threads", "posemill", "ray_data"]
NEEDS = {"peers.daft_class": "daft"}


@pytest.mark.parametrize("name", [*MODULES, *(f"peers.{peer}" for peer in PEERS)])
def test_it_can_be_imported(name: str) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    assert callable(import_module(f"benchmarks.{name}").main)


def test_threads_do_every_picture_once(tmp_path: Path) -> None:
    import cv2

    items = []
    for i in range(2 * BATCH + 3):
        path = tmp_path / f"{i}.png"
        cv2.imwrite(str(path), np.full((20, 30, 3), i, np.uint8))
        items.append(Item(str(path), (0, 0, 30, 20), i))
    assert_once(items, tmp_path / "result.npz")


def test_threads_do_every_frame_once(tmp_path: Path) -> None:
    items = [
        Item(str(write_video(tmp_path / f"{i}.mp4", CLIP_FRAMES)), (0, 0, 30, 20), i * CLIP_FRAMES)
        for i in range(3)
    ]
    assert_once(items, tmp_path / "result.npz")


def assert_once(items: list[Item], result: Path) -> None:
    """Each frame has its keypoints."""

    def estimate(crops: np.ndarray) -> np.ndarray:
        keypoints = np.zeros((len(crops), 2, 3), np.float32)
        keypoints[..., 2] = crops[:, 0, 16, 16, 0][:, None]
        return keypoints

    count = sum(item.frames for item in items)
    in_threads(items, 2, Cropper(32, 1.0), estimate).save(result)
    with np.load(result) as record:
        assert record["indices"].tolist() == list(range(count))
        assert record["counts"][-1] == count
        assert record["keypoints"].shape == (count, 2, 3)


def test_a_record_is_in_the_order_of_the_list(tmp_path: Path) -> None:
    recorder = Recorder()
    for indices in ([2, 0], [1]):
        recorder.add(np.array(indices), np.array(indices, np.float32).reshape(-1, 1, 1))
    recorder.save(tmp_path / "r.npz")
    with np.load(tmp_path / "r.npz") as record:
        assert record["keypoints"].ravel().tolist() == [0, 1, 2]
        assert record["counts"].tolist() == [2, 3]


def test_a_watch_sees_memory_and_cpu_of_a_process() -> None:
    code = (
        "import time; x = bytearray(60 << 20); t = time.time()\nwhile time.time() < t + 1.5: pass"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    with Watch(process, memory=True, every_s=0.1) as watch:
        pass
    assert watch.peak_mib > 60
    assert watch.peaks["driver"] == watch.peak_mib
    busy = watch.cpus(0, np.inf)
    assert set(busy) == {"driver"}
    assert 0 < busy["driver"] < 1.5


def test_the_model_names_what_gives_out_first() -> None:
    cluster = Cluster(
        gpus=10,
        crops_per_gpu=1000,
        cores_per_gpu=16,
        pictures_per_core=50,
        gigabits_per_gpu=8,
        picture_bytes=1e6,
        crop_pixels=256,
        driver_per_shard=0.01,
        commit_per_part=0.1,
        commits_at_once=4,
        drivers=2,
    )
    assert cluster.images_per_shard == 341
    limits = cluster.limits()
    assert limits == pytest.approx(
        {"GPUs": 10_000, "decoding": 8000, "network": 10_000, "drivers": 68_200, "commits": 136_400}
    )
    assert min(limits, key=limits.__getitem__) == "decoding"
