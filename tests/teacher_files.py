"""A small teacher, written by OpenVINO; a test that needs it is skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cpm_core.teacher import TeacherSpec


def write_teacher(
    folder: Path,
    shape: tuple[int, ...] = (1, 3, 32, 32),
    kind: type = np.float32,
    scale: float = 1.0,
) -> TeacherSpec:
    """Its map `means` has the mean colour of 4 x 4 pixels times `scale`, its map `sums` their sum
    over the colours; `pictures`, `weights`, `last` and `few` are no maps. `shape` and `kind` are
    those of the pictures that it takes."""
    vino = pytest.importorskip("cpm_core.vino", exc_type=ImportError)
    ops, ov = vino.ops, vino.ov
    pictures = ops.parameter(list(shape), kind, name="pictures")
    colors = ops.convert(pictures, "f32")
    if shape[-1] == 3:
        colors = ops.transpose(colors, [0, 3, 1, 2])
    weights = ops.constant(np.full((1, 3, 5, 5), scale, np.float32))
    factor = ops.reduce_max(weights, [0, 1, 2, 3], keep_dims=True)
    small = ops.avg_pool(colors, [4, 4], [0, 0], [0, 0], [4, 4], exclude_pad=True)
    means = ops.multiply(small, factor)
    sums = ops.reduce_sum(means, [1], keep_dims=True)
    last = ops.transpose(means, [0, 2, 3, 1])
    few = ops.reduce_sum(last, [0], keep_dims=False)
    named = {
        "pictures": pictures,
        "weights": weights,
        "means": means,
        "sums": sums,
        "last": last,
        "few": few,
    }
    for name, node in named.items():
        node.output(0).set_names({name})
    path = folder / f"{'x'.join(map(str, shape))}-{kind.__name__}-{scale:g}.xml"
    model = ov.Model([sums, few], [pictures], "teacher")
    ov.save_model(model, path, compress_to_fp16=False)
    return TeacherSpec(str(path), "means")
