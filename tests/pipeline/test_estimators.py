"""What travels to the workers, and what they make of it."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpm_core import cpu
from cpm_core.config import preset
from cpm_core.estimator import Estimator, load
from cpm_core.info import WeightsInfo
from cpm_core.locators import read_locator
from cpm_core.model import Cpm
from cpm_core.skeleton import load_skeleton
from cpm_core.weights import Weights, load_weights
from pipeline.estimators import EstimatorSettings, EstimatorSpec

pytest.importorskip("openvino")

ROOT = Path(__file__).parents[2]
FP32 = EstimatorSettings("fp32")


def weights_of(name: str) -> Weights:
    """The shipped ones, or random ones of a small network of that preset."""
    if name == "cpm-lite":
        return load_weights(name)
    config = preset(name, input_size=64, stages=2)
    model = Cpm(config).eval()
    return Weights(WeightsInfo(name, config, load_skeleton("lsp14")), model.state_dict(), "0")


def crops(count: int, size: int) -> np.ndarray:
    """(count, 1, size, size, 3) of noise that has shapes in it, not to be written to."""
    coarse = np.random.default_rng(count).integers(0, 256, (count, 1, size // 16, size // 16, 3))
    fine = coarse.repeat(16, axis=2).repeat(16, axis=3).astype(np.uint8)
    fine.flags.writeable = False
    return fine


@pytest.mark.parametrize(
    ("name", "device", "settings", "has_openvino", "is_compiled"),
    [
        ("cpm-lite", "cpu", {}, True, True),
        ("cpm-lite", "cpu", {"refinement": "quarter", "box_factor": 2.0}, True, True),
        ("cpm-vgg", "cpu", {}, True, True),
        ("cpm", "cpu", {}, True, False),  # PyTorch is quicker in the frequency domain
        ("cpm", "cpu", {"precision": "bf16"}, True, True),
        ("cpm-lite", "cpu", {"flip": True}, True, False),
        ("cpm-lite", "cpu", {"scales": (0.8, 1.0)}, True, False),
        ("cpm-lite", "cuda", {}, True, False),
        ("cpm-lite", "cpu", {}, False, False),
    ],
)
def test_who_gets_a_compiled_network(
    name: str,
    device: str,
    settings: dict[str, Any],
    has_openvino: bool,
    is_compiled: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu, "has_openvino", lambda: has_openvino)
    spec = EstimatorSpec.of(weights_of(name), EstimatorSettings(**settings), device, threads=2)
    assert (spec.device, spec.threads) == (device, 2)
    assert (spec.compiled is not None) == is_compiled


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
    name: str, count: int, threads: int, settings: EstimatorSettings
) -> None:
    weights = weights_of(name)
    seen = crops(count, weights.info.config.input_size)
    plain = Estimator(weights, "cpu", **vars(settings))
    compiled = EstimatorSpec.of(weights, settings, "cpu", threads).build()
    assert not isinstance(compiled, Estimator)
    assert (compiled.info, compiled.sha256) == (plain.info, plain.sha256)
    assert compiled.cropper == plain.cropper
    found, expected = compiled.estimate_crops(seen), plain.estimate_crops(seen)
    assert found.shape == expected.shape == (count, 14, 3)
    np.testing.assert_allclose(found[..., 2], expected[..., 2], atol=1e-5)
    np.testing.assert_allclose(found[..., :2], expected[..., :2], atol=0.01)


def test_a_picture_with_boxes_and_what_is_refused() -> None:
    settings = EstimatorSettings("fp32", box_factor=1.5)
    estimator = EstimatorSpec.of(weights_of("cpm-lite"), settings, "cpu", 1).build()
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


def test_a_worker_without_openvino_has_pytorch(tmp_path: Path) -> None:
    """Nodes need not be alike: what they are sent must be readable there, too."""
    spec = EstimatorSpec.of(weights_of("cpm-lite"), FP32, "cpu", 1)
    locator = read_locator("person-net").compiled()
    assert spec.compiled is not None
    assert locator.net is not None
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


def test_a_worker_on_a_cpu_imports_no_pytorch(tmp_path: Path) -> None:
    """It takes a second and a half to start, and 0.2 GiB."""
    spec = EstimatorSpec.of(weights_of("cpm-lite"), EstimatorSettings(), "cpu", 1)
    (tmp_path / "spec").write_bytes(pickle.dumps(spec))
    command = [sys.executable, "-c", WORKER, str(tmp_path / "spec")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines() == ["(5, 14, 3)", "[]"], done.stderr
