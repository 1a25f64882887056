"""What travels to the workers, and what they make of it."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpm_core.config import preset
from cpm_core.estimator import Estimator, load
from cpm_core.info import WeightsInfo, find_weights
from cpm_core.keypoints import THREAD_BATCHES
from cpm_core.locators import read_locator
from cpm_core.model import Cpm
from cpm_core.person_net.compiled import CompiledPersonNet
from cpm_core.skeleton import load_skeleton
from cpm_core.weights import load_weights, save_weights
from pipeline.estimators import EstimatorSettings, EstimatorSpec
from pipeline.storage import StorageOptions
from pipeline.weights import WeightsFile

translate = pytest.importorskip("cpm_core.translate", exc_type=ImportError)

ROOT = Path(__file__).parents[2]
FP32 = EstimatorSettings("fp32")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The shipped weights, and random ones of small networks, by preset."""
    found = {"cpm-lite": find_weights("cpm-lite")}
    for name in ("cpm", "cpm-vgg"):
        config = preset(name, input_size=64, stages=2)
        found[name] = tmp_path_factory.mktemp("weights") / f"{name}.safetensors"
        info = WeightsInfo(name, config, load_skeleton("lsp14"))
        save_weights(found[name], Cpm(config).eval(), info)
    return found


def spec_of(
    path: Path, settings: EstimatorSettings, threads: int = 1, compiled: bool = True
) -> EstimatorSpec:
    """As the driver makes it for CPUs."""
    weights = load_weights(path)
    batch = THREAD_BATCHES[weights.info.config.trunk]
    graph = translate.graph_of(weights, batch) if compiled else None
    return EstimatorSpec.of(file_of(path), settings, "cpu", threads, graph)


def file_of(path: Path) -> WeightsFile:
    return WeightsFile(str(path), StorageOptions())


def crops(count: int, size: int) -> np.ndarray:
    """(count, 1, size, size, 3) of noise that has shapes in it, not to be written to."""
    coarse = np.random.default_rng(count).integers(0, 256, (count, 1, size // 16, size // 16, 3))
    fine = coarse.repeat(16, axis=2).repeat(16, axis=3).astype(np.uint8)
    fine.flags.writeable = False
    return fine


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("cpm-lite", {}, True),
        ("cpm-lite", {"refinement": "quarter", "box_factor": 2.0}, True),
        ("cpm-vgg", {}, True),
        ("cpm", {}, False),  # PyTorch is quicker in the frequency domain
        ("cpm", {"precision": "fp32"}, False),
        ("cpm", {"precision": "bf16"}, True),
        ("cpm-lite", {"flip": True}, False),
        ("cpm-lite", {"scales": (0.8, 1.0)}, False),
    ],
)
def test_who_wants_a_compiled_network(name: str, settings: dict[str, Any], expected: bool) -> None:
    info = WeightsInfo(name, preset(name), load_skeleton("lsp14"))
    assert EstimatorSettings(**settings).want_compiled(info) == expected


@pytest.mark.parametrize(("device", "is_compiled"), [("cpu", True), ("cuda", False)])
def test_who_gets_a_compiled_network(
    device: str, is_compiled: bool, files: dict[str, Path]
) -> None:
    graph = spec_of(files["cpm-lite"], FP32).graph
    assert graph is not None
    placed = EstimatorSpec.of(file_of(files["cpm-lite"]), FP32, device, 2, graph)
    assert (placed.device, placed.threads) == (device, 2)
    assert (placed.graph is not None) == is_compiled


@pytest.mark.parametrize(
    ("name", "count", "threads", "settings"),
    [
        ("cpm-lite", 0, 1, FP32),
        ("cpm-lite", 1, 1, FP32),
        ("cpm-lite", 6, 1, EstimatorSettings("fp32", refinement="none")),
        ("cpm-lite", 45, 2, FP32),
        ("cpm-vgg", 3, 2, FP32),
    ],
)
def test_compiled_ones_answer_as_the_others(
    name: str, count: int, threads: int, settings: EstimatorSettings, files: dict[str, Path]
) -> None:
    plain = load(files[name], "cpu", **vars(settings))
    seen = crops(count, plain.cropper.size)
    compiled = spec_of(files[name], settings, threads).build()
    assert not isinstance(compiled, Estimator)
    assert (compiled.info, compiled.sha256) == (plain.info, plain.sha256)
    assert compiled.cropper == plain.cropper
    found, expected = compiled.estimate_crops(seen), plain.estimate_crops(seen)
    assert found.shape == expected.shape == (count, 14, 3)
    np.testing.assert_allclose(found[..., 2], expected[..., 2], atol=1e-5)
    np.testing.assert_allclose(found[..., :2], expected[..., :2], atol=0.01)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cpm", EstimatorSettings()),
        ("cpm", EstimatorSettings("bf16", flip=True)),
        ("cpm-vgg", EstimatorSettings(scales=(0.8, 1.0), refinement="none")),
        ("cpm-lite", EstimatorSettings("fp32", flip=True, box_factor=2.0)),
    ],
)
def test_the_others_are_made_of_the_bytes_of_their_file(
    name: str, settings: EstimatorSettings, files: dict[str, Path]
) -> None:
    spec = spec_of(files[name], settings, compiled=False)
    built, expected = pickle.loads(pickle.dumps(spec)).build(), load(files[name], "cpu")
    assert isinstance(built, Estimator)
    assert (built.info, built.sha256) == (expected.info, expected.sha256)
    expected = load(files[name], "cpu", **vars(settings))
    seen = np.repeat(crops(2, built.cropper.size), len(settings.scales), axis=1)
    np.testing.assert_allclose(built.estimate_crops(seen), expected.estimate_crops(seen), atol=1e-3)


def test_a_picture_with_boxes_and_what_is_refused(files: dict[str, Path]) -> None:
    settings = EstimatorSettings("fp32", box_factor=1.5)
    estimator = spec_of(files["cpm-lite"], settings).build()
    picture = crops(1, 320)[0, 0]
    boxes = [[10, 20, 100, 200], [200, -40, 80, 90]]
    expected = load("cpm-lite", "cpu", "fp32", box_factor=1.5).estimate(picture, boxes)
    np.testing.assert_allclose(estimator.estimate(picture, boxes), expected, atol=0.05)
    with pytest.raises(ValueError, match=r"\(N, 1, 192, 192, 3\)"):
        estimator.estimate_crops(crops(1, 64))


WITHOUT_OPENVINO = """
import importlib.util, pickle, sys
from pathlib import Path
import numpy as np
sys.modules["openvino"] = None
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "openvino" else found(name, *rest)
spec, locator, crops = pickle.loads(Path(sys.argv[1]).read_bytes())
np.save(sys.argv[2], spec.build().estimate_crops(crops))
locator.build().locate(np.zeros((64, 64, 3), np.uint8))
print("torch" in sys.modules)
"""


def test_a_worker_without_openvino_has_pytorch(tmp_path: Path, files: dict[str, Path]) -> None:
    """Nodes need not be alike: what they are sent must be readable there, too."""
    spec = spec_of(files["cpm-lite"], FP32)
    locator = replace(read_locator("person-net"), net=CompiledPersonNet.shipped())
    seen = crops(2, 192)
    (tmp_path / "sent").write_bytes(pickle.dumps((spec, locator, seen)))
    command = [sys.executable, "-c", WITHOUT_OPENVINO, "sent", "found.npy"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.stdout.split() == ["True"], done.stderr
    expected = spec.build().estimate_crops(seen)
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected, atol=0.05)


WORKER = """
import pickle
import sys
from pathlib import Path
import numpy as np
from pipeline.stages import EstimateStage

stage = EstimateStage(pickle.loads(Path(sys.argv[1]).read_bytes()), None)
print(stage.estimator.estimate_crops(np.zeros((5, 1, 192, 192, 3), np.uint8)).shape)
print(sorted({"torch", "pandas", "onnxruntime"} & set(sys.modules)))
"""


def test_a_worker_on_a_cpu_imports_no_pytorch(tmp_path: Path, files: dict[str, Path]) -> None:
    """It takes a second and a half to start, and 0.2 GiB."""
    spec = spec_of(files["cpm-lite"], EstimatorSettings())
    (tmp_path / "spec").write_bytes(pickle.dumps(spec))
    command = [sys.executable, "-c", WORKER, str(tmp_path / "spec")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines() == ["(5, 14, 3)", "[]"], done.stderr
