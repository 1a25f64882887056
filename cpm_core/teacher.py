"""Hints: what another network sees in a crop, for a network in training to foretell.

A network that has seen many more pictures knows what a limb looks like better than a few thousand
labels can say. Here it gives no labels: the network learns, beside its own task, to foretell from
its features the features that the teacher has at one of its layers (Romero et al., FitNets, ICLR
2015). The one layer that this takes is thrown away after training.
"""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from cpm_core.config import STRIDE
from cpm_core.errors import ConfigError

if TYPE_CHECKING:
    import openvino as ov

_SOME = 12


@dataclass(frozen=True)
class TeacherSpec:
    """An ONNX file that takes pictures, RGB of 0 to 255, and the name of one of its tensors."""

    path: str
    tensor: str


class Teacher:
    """Runs a teacher on crops. Raises ConfigError for a file that is none.

    OpenVINO is called from a thread of its own (see `cpm_core.compiled`).
    """

    def __init__(self, spec: TeacherSpec) -> None:
        if importlib.util.find_spec("openvino") is None:
            raise ConfigError("a teacher needs OpenVINO, which is there for x86-64 only")
        self._thread = ThreadPoolExecutor(1, "teacher")
        self._thread.submit(self._open, spec).result()

    def hints(self, crops: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Crops (B, S, S, 3) -> features (B, `channels`, S / 8, S / 8)."""
        return self._thread.submit(self._hints, crops).result()

    def _open(self, spec: TeacherSpec) -> None:
        from cpm_core.vino import bf16_is_native, ops, ov

        core = ov.Core()
        if not Path(spec.path).is_file():
            raise ConfigError(f"{spec.path}: there is no such file")
        try:
            model = core.read_model(spec.path)
        except RuntimeError as error:
            raise ConfigError(f"{spec.path}: no network that can be read: {error}") from error
        layers = [node.output(0) for node in model.get_ordered_ops() if node.get_output_size()]
        layer = next((one for one in layers if spec.tensor in one.get_names()), None)
        if layer is None:
            raise ConfigError(f"{spec.path} has no tensor {spec.tensor!r}; {_some_of(layers)}")
        self.size, self._axes = _input(spec.path, model.inputs)
        shape = layer.get_partial_shape()
        if len(shape) != 4 or any(side.is_dynamic for side in list(shape)[1:]):
            raise ConfigError(
                f"{spec.path}: {spec.tensor} is {shape}; a map (1, C, H, W) is needed"
            )
        self.channels = int(shape[1].get_length())
        hints = {
            "INFERENCE_NUM_THREADS": 1,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "bf16" if bf16_is_native() else "f32",
            "ENABLE_CPU_PINNING": False,
        }
        ends = ov.Model([ops.result(layer)], model.get_parameters())
        self._type = model.inputs[0].get_element_type().to_dtype()
        self._request = core.compile_model(ends, "CPU", hints).create_infer_request()

    def _hints(self, crops: NDArray[np.uint8]) -> NDArray[np.float16]:
        cells = crops.shape[1] // STRIDE
        found = np.empty((len(crops), self.channels, cells, cells), np.float16)
        for i, crop in enumerate(crops):
            image = cv2.resize(crop, (self.size, self.size), interpolation=cv2.INTER_LINEAR)
            image = image.transpose(self._axes)[None].astype(self._type)
            (maps,) = self._request.infer({0: np.ascontiguousarray(image)}).values()
            for target, one in zip(found[i], maps[0].astype(np.float32), strict=True):
                target[:] = cv2.resize(one, (cells, cells), interpolation=cv2.INTER_AREA)
        return found


def _input(path: str, inputs: list[ov.Output]) -> tuple[int, tuple[int, int, int]]:
    """The side of the pictures that a network takes, and the order of its axes (H, W, 3)."""
    shapes = [str(one.get_partial_shape()) for one in inputs]
    if len(inputs) == 1 and inputs[0].get_partial_shape().is_static:
        match tuple(inputs[0].get_shape()):
            case (1, height, width, 3) if height == width:
                return height, (0, 1, 2)
            case (1, 3, height, width) if height == width:
                return height, (2, 0, 1)
    raise ConfigError(f"{path} takes {', '.join(shapes)}; (1, S, S, 3) or (1, 3, S, S) is needed")


def _some_of(layers: list[ov.Output]) -> str:
    """Names of maps that a teacher's features could be, of the last layers first."""
    maps = [one for one in reversed(layers) if len(one.get_partial_shape()) == 4]
    named = [sorted(one.get_names())[0] for one in maps if one.get_names()]
    return f"the last of its maps are {', '.join(named[:_SOME])}"
