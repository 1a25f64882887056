"""An onnxruntime script: a pool of threads decodes and crops, and calls the session.

The model is the file in POSEMILL_ONNX, which `export` makes: uint8 crops in, belief maps of the
last stage out.
"""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.peers.task import in_threads, options, read_list
from cpm_core.crops import Cropper
from cpm_core.decode import decode
from cpm_core.lite import fold_batch_norm
from cpm_core.weights import Weights, load_weights


class LastStage(nn.Module):
    """Crops (N, S, S, 3) uint8 -> belief maps (N, K + 1, S / 8, S / 8) of the last stage."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, crops: Tensor) -> Tensor:
        """As the estimator, without its views."""
        maps: Tensor = self.model(crops.permute(0, 3, 1, 2))[-1]
        return maps


def export(weights: Weights, path: Path) -> None:
    """Write weights as ONNX, batch of any size."""
    size = weights.info.config.input_size
    model = LastStage(fold_batch_norm(weights.model())).eval()
    example = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    shapes = {"crops": {0: torch.export.Dim("batch")}}
    torch.onnx.export(
        model,
        (example,),
        path,
        input_names=["crops"],
        output_names=["maps"],
        dynamic_shapes=shapes,
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def main() -> None:
    """Run."""
    args = options()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    info = load_weights("cpm-lite").info
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = args.threads
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(
        os.environ["POSEMILL_ONNX"], settings, providers=["CPUExecutionProvider"]
    )

    def estimate(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        (maps,) = session.run(None, {"crops": crops[:, 0]})
        return decode(maps[:, :-1], info.config.cell_offset)

    cropper = Cropper(info.config.input_size, info.box_factor)
    in_threads(read_list(args.list), args.workers, cropper, estimate).save(args.result)


if __name__ == "__main__":
    main()
