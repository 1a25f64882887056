import dataclasses
import hashlib
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cpm_core import cpu
from cpm_core.errors import LocatorError
from cpm_core.info import FOLDER
from cpm_core.locators import LocatorSpec, check_name, read_locator
from cpm_core.looks import NetElsewhere
from cpm_core.people import WholeImage, YoloxDetector
from cpm_core.person_net.compiled import CompiledPersonNet

from .onnx_files import FLOAT, model

DETECTOR = model([("images", FLOAT, (1, 3, 64, 64))], [("out", np.zeros((1, 84, 6)))])


@pytest.mark.parametrize("name", ["person-net", "boxes", "whole-image", "detector:d.onnx"])
def test_names(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "detector", "detector:", "person-net:", "boxes:b.csv", "Person-Net", "everyone"]
)
def test_other_names_are_refused(name):
    with pytest.raises(LocatorError, match="choose person-net, boxes, whole-image or detector:"):
        check_name(name)


def test_boxes_need_no_locator():
    spec = read_locator("boxes")
    assert spec == LocatorSpec("boxes")
    assert spec.build() is None


def test_the_whole_image():
    spec = read_locator("whole-image")
    assert (spec.identity, spec.threshold) == ("whole-image", None)
    assert isinstance(spec.build(), WholeImage)


@pytest.mark.parametrize(("given", "threshold"), [(None, 0.4), (0.2, 0.2)])
def test_a_detector_travels_as_its_bytes(tmp_path, given, threshold):
    path = tmp_path / "d.onnx"
    path.write_bytes(DETECTOR)
    spec = read_locator(f"detector:{path}", given)
    path.unlink()
    built = spec.build()
    assert isinstance(built, YoloxDetector)
    assert (built.threshold, spec.threshold) == (threshold, threshold)
    assert spec.identity == f"detector:{hashlib.sha256(DETECTOR).hexdigest()}"
    assert repr(DETECTOR[:9])[2:-1] not in repr(spec)


@pytest.mark.skipif(not (FOLDER / "person-net.safetensors").exists(), reason="needs its weights")
def test_the_shipped_locator_finds_as_it_does_in_the_process_that_read_it():
    content = (FOLDER / "person-net.safetensors").read_bytes()
    spec = read_locator("person-net", 0.35)
    assert spec.identity == f"person-net:{hashlib.sha256(content).hexdigest()}"
    assert spec.build().threshold == 0.35
    default = read_locator("person-net")
    assert default.build().threshold == default.threshold != 0.35


def people_like_picture():
    """RGB (320, 480, 3) in which a low threshold finds something."""
    coarse = np.random.default_rng(4).integers(0, 256, (10, 15, 3), np.uint8)
    return coarse.repeat(32, axis=0).repeat(32, axis=1)


def compiled(spec):
    return dataclasses.replace(spec, net=CompiledPersonNet.shipped())


def test_compiled_the_shipped_locator_finds_the_same(monkeypatch):
    pytest.importorskip("openvino")
    plain = read_locator("person-net", 0.005)
    spec = compiled(plain)
    expected = plain.build().locate(people_like_picture())
    assert len(expected.boxes) >= 2
    locators = [spec.build()]
    monkeypatch.setattr(cpu, "has_openvino", lambda: False)
    locators.append(spec.build())
    assert [isinstance(each, NetElsewhere) for each in locators] == [True, False]
    for locator in locators:
        found = locator.locate(people_like_picture())
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.05)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)


COMPILED = """
import pickle
import sys
import numpy as np
spec = pickle.loads(sys.stdin.buffer.read())
print(len(spec.build().locate(np.zeros((64, 64, 3), np.uint8)).boxes))
print("torch" in sys.modules)
"""


def test_a_compiled_person_net_needs_no_torch():
    pytest.importorskip("openvino")
    data = pickle.dumps(compiled(read_locator("person-net")))
    command = [sys.executable, "-c", COMPILED]
    done = subprocess.run(command, input=data, capture_output=True, cwd=FOLDER.parents[1])
    assert done.stdout.split() == [b"0", b"False"], done.stderr


def test_only_a_person_net_needs_torch():
    """Decoder processes would be slow to start, and large."""
    code = (
        "import sys\n"
        "from cpm_core.locators import LocatorSpec\n"
        f"LocatorSpec('detector', 0.4, 'sha', bytes.fromhex('{DETECTOR.hex()}')).build()\n"
        "LocatorSpec('whole-image').build()\n"
        "print(sorted({'torch', 'ray', 'pipeline'} & set(sys.modules)))\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert done.stdout.strip() == "[]"
