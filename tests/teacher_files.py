"""A small teacher, written by OpenVINO."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cpm_core.teacher import TeacherSpec

vino = pytest.importorskip("cpm_core.vino", exc_type=ImportError)


def write_teacher(
    folder: Path, shape: tuple[int, ...] = (1, 3, 32, 32), kind: type = np.float32
) -> TeacherSpec:
    """Its map `means` has the mean colour of 4 x 4 pixels, its `sums` their sum over the colours;
    `shape` and `kind` are those of the pictures that it takes."""
    ops, ov = vino.ops, vino.ov
    pictures = ops.parameter(list(shape), kind, name="pictures")
    colors = ops.convert(pictures, "f32")
    if shape[-1] == 3:
        colors = ops.transpose(colors, [0, 3, 1, 2])
    means = ops.avg_pool(colors, [4, 4], [0, 0], [0, 0], [4, 4], exclude_pad=True)
    means.output(0).set_names({"means"})
    sums = ops.reduce_sum(means, [1], keep_dims=True)
    sums.output(0).set_names({"sums"})
    path = folder / f"{'x'.join(map(str, shape))}-{kind.__name__}.xml"
    ov.save_model(ov.Model([sums], [pictures], "teacher"), path, compress_to_fp16=False)
    return TeacherSpec(str(path), "means")
