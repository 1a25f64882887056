"""Hints: what another network sees in a crop, for a network in training to learn beside its labels.

A network that has seen many more pictures knows what a limb looks like better than a few thousand
labels can say. Here it gives no labels: the student learns to predict from its features those that
the teacher has at one of its layers (Romero et al., FitNets, ICLR 2015).
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

_NAMED_MAPS = 8
_LEAST_STD = 1e-3
_NO_MAPS = ("Parameter", "Constant", "Result")


@dataclass(frozen=True)
class TeacherSpec:
    """An ONNX or OpenVINO file that takes a square picture, RGB of 0 to 255, and the name of one of
    its maps."""

    path: str
    tensor: str


class Teacher:
    """Runs a teacher on crops, on one CPU thread. Raises ConfigError for a file that is none.

    `channels` is the number of its features. It compiles them when they are first asked for.
    """

    def __init__(self, spec: TeacherSpec) -> None:
        if importlib.util.find_spec("openvino") is None:
            raise ConfigError("a teacher needs OpenVINO, which is there for x86-64 only")
        if not Path(spec.path).is_file():
            raise ConfigError(f"{spec.path}: there is no such file; a teacher is a local one")
        self.spec = spec
        self._compiled: ov.CompiledModel | None = None
        # OpenVINO is called from a thread of its own, as in `cpm_core.compiled`.
        self._thread = ThreadPoolExecutor(1, "teacher")
        self._thread.submit(self._read).result()

    def hints(self, crops: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Crops (B, S, S, 3) -> features (B, `channels`, S / 8, S / 8).

        Those of each crop have mean 0 and standard deviation 1. Raises ConfigError where they are
        not finite.
        """
        return self._thread.submit(self._hints, crops).result()

    def _read(self) -> None:
        from cpm_core.vino import ops, ov

        path, tensor = self.spec.path, self.spec.tensor
        try:
            model = ov.Core().read_model(path)
        except RuntimeError as error:
            raise ConfigError(f"{path}: no network that can be read: {error}") from error
        self._size, self._axes = _input(path, model.inputs)
        self._type = model.inputs[0].get_element_type().to_dtype()
        maps = _maps(model)
        if tensor not in maps:
            some = ", ".join(list(maps)[: -_NAMED_MAPS - 1 : -1])
            raise ConfigError(f"{path} has no map {tensor!r}; the last of its maps are {some}")
        self.channels = int(maps[tensor].get_shape()[1])
        self._model = ov.Model([ops.result(maps[tensor])], model.get_parameters())

    def _hints(self, crops: NDArray[np.uint8]) -> NDArray[np.float16]:
        if self._compiled is None:
            self._compiled = _compiled(self.spec.path, self._model)
            self._request = self._compiled.create_infer_request()
        cells = crops.shape[1] // STRIDE
        found = np.empty((len(crops), self.channels, cells, cells), np.float16)
        for target, crop in zip(found, crops, strict=True):
            image = _resized(crop, self._size).transpose(self._axes)[None]
            (maps,) = self._request.infer({0: np.ascontiguousarray(image, self._type)}).values()
            features = np.stack([_resized(one, cells) for one in maps[0].astype(np.float32)])
            if not np.isfinite(features).all():
                raise ConfigError(f"{self.spec.path}: values of {self.spec.tensor} are not finite")
            target[:] = (features - features.mean()) / max(features.std(), _LEAST_STD)
        return found


def _input(path: str, inputs: list[ov.Output]) -> tuple[int, tuple[int, int, int]]:
    """The side of the pictures that a network takes, and the order of the axes of (H, W, 3)."""
    shapes = ", ".join(str(one.get_partial_shape()) for one in inputs)
    if len(inputs) == 1 and inputs[0].get_partial_shape().is_static:
        match tuple(inputs[0].get_shape()):
            case (1, height, width, 3) if height == width:
                return height, (0, 1, 2)
            case (1, 3, height, width) if height == width:
                return height, (2, 0, 1)
    raise ConfigError(f"{path} takes {shapes}; (1, S, S, 3) or (1, 3, S, S) is needed")


def _maps(model: ov.Model) -> dict[str, ov.Output]:
    """The maps (1, C, H, H) that a network makes of a picture, by each of their names, in order.

    Where the channels stand last, a map is not as high as it is wide, and is left out.
    """
    seeing: set[str] = set()
    maps: dict[str, ov.Output] = {}
    for node in model.get_ordered_ops():
        sources = (value.get_node().get_friendly_name() for value in node.input_values())
        if node.get_type_name() != "Parameter" and not any(name in seeing for name in sources):
            continue  # Made of weights alone.
        seeing.add(node.get_friendly_name())
        if node.get_type_name() in _NO_MAPS:
            continue
        for output in node.outputs():
            shape = output.get_partial_shape()
            if shape.is_static and _is_map(tuple(output.get_shape())):
                maps |= dict.fromkeys(sorted(output.get_names()), output)
    return maps


def _is_map(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[0] == 1 and shape[2] == shape[3] > 1


def _compiled(path: str, model: ov.Model) -> ov.CompiledModel:
    from cpm_core.vino import bf16_is_native, ov

    hints = {
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "bf16" if bf16_is_native() else "f32",
        "ENABLE_CPU_PINNING": False,
    }
    try:
        return ov.Core().compile_model(model, "CPU", hints)
    except RuntimeError as error:
        raise ConfigError(f"{path}: OpenVINO cannot run it: {error}") from error


def _resized(image: NDArray[np.generic], size: int) -> NDArray[np.generic]:
    """A square image or map with sides of `size`, without aliases where it shrinks."""
    way = cv2.INTER_AREA if size < len(image) else cv2.INTER_LINEAR
    return cv2.resize(image, (size, size), interpolation=way)  # type: ignore[arg-type]
