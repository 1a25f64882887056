"""Weights whose tensors are read only by who uses them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from cpm_core.model import Cpm
from cpm_core.weights import save_weights
from pipeline.annotate import annotate
from pipeline.config import AnnotateSettings
from pipeline.errors import UsageError
from pipeline.progress import Reporter
from pipeline.storage import StorageOptions
from pipeline.weights import WeightsFile, read_weights

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hollow(good: Path, tmp_path: Path) -> Path:
    """Says of itself what `good` does, and lacks a tensor."""
    path = tmp_path / "hollow.safetensors"
    with safe_open(str(good), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in list(file.keys())[1:]}
        save_file(tensors, str(path), file.metadata())
    return path


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_what_it_says_of_itself_and_what_is_in_it(form: str, good: Path) -> None:
    name = form.format(good)
    file, weights = (make(name, StorageOptions()) for make in (WeightsFile, read_weights))
    assert (weights.info, weights.sha256) == (file.info, file.sha256)
    assert file.content() == good.read_bytes()
    with file.path() as path:
        assert path.read_bytes() == good.read_bytes()
    assert path == good or not path.exists()


def test_a_file_that_changes_meanwhile(good: Path, hollow: Path) -> None:
    file = WeightsFile(str(good), StorageOptions())
    config = file.info.config
    save_weights(good, Cpm(config).eval(), file.info)
    with pytest.raises(UsageError, match=r"good\.safetensors was changed meanwhile"):
        file.content()


@pytest.mark.parametrize("form", ["{}", "file://{}"])
@pytest.mark.parametrize("name", ["nobody", "README.md"])
def test_what_says_nothing_usable_is_refused_at_once(name: str, form: str) -> None:
    with pytest.raises(UsageError, match=name):
        WeightsFile(form.format(ROOT / name), StorageOptions())


def test_a_file_that_lies_leaves_a_new_output_untouched(hollow: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in/a.png"), np.zeros((8, 8, 3), np.uint8))
    values = {
        "input": [str(tmp_path / "in")],
        "output": str(tmp_path / "out"),
        "weights": str(hollow),
        "people": "whole-image",
    }
    with Reporter() as reporter, pytest.raises(UsageError, match=r"hollow\.safetensors: tensor"):
        annotate(AnnotateSettings.build(values), reporter)
    left = [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert not left


NOTHING_TO_DO = """
import sys
from pipeline.annotate import Run
from pipeline.config import AnnotateSettings
from pipeline.progress import Reporter
with Reporter() as reporter:
    Run(AnnotateSettings.build({"input": ["in"], "output": sys.argv[1]}), reporter)
print(sorted({"torch", "onnxruntime", "ray"} & set(sys.modules)))
"""


def test_a_driver_without_work_imports_no_pytorch(tmp_path: Path) -> None:
    command = [sys.executable, "-c", NOTHING_TO_DO, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr
