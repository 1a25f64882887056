import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import cpm_core

FOLDER = Path(cpm_core.__file__).parent

CUT_ONLY = """
import sys
import cpm_core
from cpm_core.crops import Cropper
from cpm_core.locators import LocatorSpec
from cpm_core.looks import NetElsewhere
from cpm_core.people import WholeImage, YoloxDetector
from cpm_core.poses import without_doubles
from cpm_core.whole_image import wide_view
from cpm_core.skeleton import load_skeleton
load_skeleton("lsp14")
print(sorted({"torch", "ray", "onnxruntime", "openvino", "pipeline"} & set(sys.modules)))
"""


def test_cutting_crops_needs_neither_torch_nor_ray():
    command = [sys.executable, "-c", CUT_ONLY]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=FOLDER.parent)
    assert done.stdout.strip() == "[]"


LOADED = """
import sys
import cpm_core
from cpm_core.person_net.locate import PersonNetLocator
cpm_core.load("cpm-lite", device="cpu")
PersonNetLocator()
print(sorted({"torch._dynamo", "torch._inductor", "sympy"} & set(sys.modules)))
print(sorted(name for name in sys.modules if name.startswith("openvino_telemetry.")))
"""


def test_networks_load_without_torchs_compiler_and_tell_nobody(tmp_path):
    command = [sys.executable, "-c", LOADED]
    settings = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(FOLDER.parent)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=settings)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]
    assert not (tmp_path / "intel").exists()


def test_the_core_uses_few_packages():
    used = set()
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                used |= {alias.name.split(".")[0] for alias in node.names}
            if isinstance(node, ast.ImportFrom):
                used.add((node.module or "").split(".")[0])
    assert used - set(sys.stdlib_module_names) == {
        "cpm_core",
        "cv2",
        "numpy",
        "onnxruntime",
        "openvino",
        "safetensors",
        "torch",
        "yaml",
    }


def test_public_names():
    assert set(cpm_core.__all__) == {
        "Cpm",
        "CpmConfig",
        "CpmError",
        "Cropper",
        "Estimator",
        "Skeleton",
        "load",
        "load_skeleton",
        "preset",
    }
    for name in cpm_core.__all__:
        assert getattr(cpm_core, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        cpm_core.lod  # noqa: B018
