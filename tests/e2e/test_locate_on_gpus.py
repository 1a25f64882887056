"""People located by preparers that share GPUs with estimators, on a Ray that believes in GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from cpm_core.info import FOLDER
from cpm_core.locators import read_locator
from pipeline.units import Unit
from pipeline.worker import UnitWorker
from tests.e2e.conftest import REPOSITORY, Job, draw_figure, job_environment
from tests.e2e.test_annotate import assert_accounted, assert_clean, read_table
from tests.pipeline.test_plan import decoder_config

GPUS_THAT_ARE_NONE = """
import sys
from dataclasses import replace
import ray
from jobs.cli import main
from pipeline import layout

real = layout._layout_with_locators
layout._layout_with_locators = lambda *a: replace(real(*a), device="cpu", locator_device="cpu")
ray.init(address="local", include_dashboard=False, num_cpus=16, num_gpus=2)
sys.exit(main(sys.argv[1:]))
"""
BROKEN_DEVICE = """
from pipeline import lookout

def refuse(self, image):
    raise lookout.LookoutError("the device fell off")

lookout.Lookout.find = refuse
"""
THRESHOLD = 0.02
"""Low enough to find something in drawn figures."""


def annotate(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`posemill annotate` on two GPUs, in whose place the CPU computes. Ray would start a process
    for each of the 16 CPUs at once."""
    return subprocess.run(
        [sys.executable, "-c", GPUS_THAT_ARE_NONE, "annotate", *words, "--locator-device", "cuda"],
        env=job_environment() | {"RAY_prestart_worker_first_driver": "0"} | environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.skipif(
    not (FOLDER / "person-net.safetensors").exists(), reason="needs the shipped locator"
)
def test_a_run_on_gpus_locates_there(tmp_path: Path, tiny_weights: str) -> None:
    """All actors find their places, and the boxes are those that decoders find themselves."""
    photos, out = tmp_path / "photos", str(tmp_path / "out")
    photos.mkdir()
    for i in range(12):
        cv2.imwrite(str(photos / f"{i:02d}.jpg"), draw_figure(i, 160 + 20 * i, 300))
    (photos / "12.jpg").write_text("no picture")
    words = [str(photos), out, "--weights", tiny_weights, "--decoders", "2", "--same-person", "1"]
    done = annotate(*words, "--person-threshold", str(THRESHOLD))
    assert done.returncode == 0, done.stderr
    assert "2 prepare (7.8 CPU, 0.25 GPU), 2 estimate (0.1 CPU, 0.75 GPU)" in done.stderr
    assert "people are located on the GPUs" in done.stderr
    assert_clean(out)
    table = read_table(out)
    assert_accounted(table, 13)
    assert table["status"].to_pylist().count("failed") == 1

    worker = UnitWorker(decoder_config(people=read_locator("person-net", THRESHOLD)))
    expected = []
    for i in range(12):
        [(frame, _)] = worker.frames(Unit(i, 0, f"{photos}/{i:02d}.jpg", "image"), None)
        expected += frame.boxes.tolist()
    boxes = [box for box in table["box"].to_pylist() if box is not None]
    assert len(expected) > 12
    np.testing.assert_allclose(boxes, expected, atol=0.05)


@pytest.mark.soak
@pytest.mark.skipif(
    not (FOLDER / "person-net.safetensors").exists(), reason="needs the shipped locator"
)
def test_no_input_is_blamed_for_a_device_that_is_gone(tmp_path: Path, tiny_weights: str) -> None:
    """Units that run alone have their people located on the CPU."""
    (tmp_path / "photos").mkdir()
    for i in range(3):
        cv2.imwrite(str(tmp_path / "photos" / f"{i}.jpg"), draw_figure(i, 160, 300))
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(BROKEN_DEVICE)
    out = str(tmp_path / "out")
    words = [str(tmp_path / "photos"), out, "--weights", tiny_weights, "--decoders", "2"]
    done = annotate(*words, PYTHONPATH=f"{tmp_path}/hook{os.pathsep}{REPOSITORY}")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("once more") == 2
    table = read_table(out)
    assert_accounted(table, 3)
    assert "failed" not in table["status"].to_pylist()


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--people", "whole-image"], 2, "--people person-net, not whole-image"),
        (["--people", "person-net"], 1, "--locator-device cuda: the cluster has no GPU"),
    ],
)
def test_what_cannot_be_is_refused(
    words: list[str],
    code: int,
    told: str,
    photos: Path,
    tmp_path: Path,
    posemill: Job,
    tiny_weights: str,
) -> None:
    out = str(tmp_path / "out")
    given = ["--weights", tiny_weights, "--locator-device", "cuda", *words]
    result = posemill("annotate", str(photos), out, *given)
    assert result.returncode == code, result.stderr
    assert told in result.stderr
