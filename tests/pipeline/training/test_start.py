"""First weights: what is taken from given ones."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cpm_core.config import preset
from cpm_core.info import WeightsInfo
from cpm_core.model import Cpm
from cpm_core.skeleton import Skeleton, load_skeleton
from cpm_core.weights import save_weights
from pipeline.errors import UsageError
from pipeline.training.settings import TrainSettings
from pipeline.training.start import make_start
from tests.teacher_files import write_teacher

LSP = load_skeleton("lsp14")


def settings(**values: Any) -> TrainSettings:
    fixed = {"samples": "s", "output": "o", "name": "n", "stages": 2, "phases": ["0:64"]}
    return TrainSettings.build({**fixed, **values})


@pytest.fixture
def given(tmp_path: Path) -> tuple[str, dict[str, torch.Tensor]]:
    """Weights for `lsp14`, and what is in them."""
    torch.manual_seed(7)
    config = preset("cpm-lite", stages=2, input_size=64, cell_offset=0.0)
    model = Cpm(config).eval()
    path = tmp_path / "given.safetensors"
    save_weights(path, model, WeightsInfo("given", config, LSP), torch.float32)
    return str(path), model.state_dict()


def taken(weights: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> set[str]:
    return {
        name
        for name, value in weights.items()
        if value.ndim > 1 and value.shape == theirs[name].shape and torch.equal(value, theirs[name])
    }


def test_the_same_joints_take_all(given: tuple[str, dict[str, torch.Tensor]]) -> None:
    """Every layer, and the sha names them."""
    path, theirs = given
    start = make_start(settings(start_from=path), LSP)
    assert taken(start.weights, theirs) == {n for n, v in theirs.items() if v.ndim > 1}
    assert start.given is not None


def test_other_joints_take_no_maps(given: tuple[str, dict[str, torch.Tensor]]) -> None:
    """Nor do as many joints of another meaning: a map must not begin as another joint's."""
    path, theirs = given
    mirrored = replace(LSP, keypoints=tuple(reversed(LSP.keypoints)))
    kept = taken(make_start(settings(start_from=path), mirrored).weights, theirs)
    assert any(name.startswith("shared.") for name in kept)
    left = {n for n, v in theirs.items() if v.ndim > 1} - kept
    assert any(theirs[name].shape[0] == 15 for name in left), "what makes maps"
    assert any(theirs[name].shape[1] > 128 for name in left), "what reads them"
    five = Skeleton("five", LSP.keypoints[:5], (), (), (0.1,) * 5, ())
    assert taken(make_start(settings(start_from=path), five).weights, theirs) == kept


def test_other_conventions_are_told(
    given: tuple[str, dict[str, torch.Tensor]], caplog: pytest.LogCaptureFixture
) -> None:
    """The layers fit, but cells were elsewhere."""
    with caplog.at_level(logging.WARNING):
        make_start(settings(start_from=given[0]), LSP)
    assert "cell_offset" in caplog.text


@pytest.fixture
def vgg16(tmp_path: Path) -> str:
    """A VGG16 of zeros but for one weight."""
    blocks = ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 512, 512))
    arrays = {}
    for block, widths in enumerate(blocks, start=1):
        for i, (inputs, outputs) in enumerate(pairwise(widths), start=1):
            arrays[f"conv{block}_{i}.weight"] = np.zeros((outputs, inputs, 3, 3), np.float16)
            arrays[f"conv{block}_{i}.bias"] = np.zeros(outputs, np.float32)
    arrays["conv1_1.weight"][5, 2, 1, 1] = 3
    np.savez(tmp_path / "vgg16.npz", **arrays)
    return str(tmp_path / "vgg16.npz")


def test_a_vgg_trunk_brings_its_colours(vgg16: str, tmp_path: Path) -> None:
    """Also to a run that starts from the weights that came out of it, without that trunk."""
    first = make_start(settings(preset="cpm-vgg", trunk=vgg16), LSP)
    assert first.weights["shared.0.weight"][5, 2, 1, 1] == 3 * 256
    assert first.config.mean == pytest.approx((104.007, 116.669, 122.679))
    assert first.config.std == (256, 256, 256)
    model = Cpm(first.config)
    model.load_state_dict(first.weights)
    path = tmp_path / "first.safetensors"
    save_weights(path, model, WeightsInfo("first", first.config, LSP))
    second = make_start(settings(preset="cpm-vgg", start_from=str(path)), LSP)
    assert second.config == first.config
    # Another kind of net has nothing in common with those colours.
    assert make_start(settings(preset="cpm-vgg"), LSP).config.mean == (128, 128, 128)


def test_a_teacher_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers find its file from whatever folder; it was run once before they start."""
    spec = write_teacher(tmp_path)
    monkeypatch.chdir(tmp_path)
    given = settings(teacher=Path(spec.path).name, teacher_tensor=spec.tensor)
    assert given.teacher_spec == spec
    make_start(given, LSP)
    spoilt = write_teacher(tmp_path, scale=np.inf)
    with pytest.raises(UsageError, match="values of means are not finite"):
        make_start(settings(teacher=spoilt.path, teacher_tensor=spoilt.tensor), LSP)
    assert settings().teacher_spec is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"start_from": "none.safetensors"}, "no weights 'none.safetensors'"),
        ({"trunk": "t.pth", "preset": "cpm"}, "--trunk goes with --preset cpm-lite or cpm-vgg"),
        ({"trunk": "t.npz", "preset": "cpm-vgg"}, "t.npz: cannot be read as an .npz"),
        ({"teacher": "t.onnx", "teacher_tensor": "f"}, "t.onnx: there is no such file"),
    ],
)
def test_unusable_starts(values: dict[str, Any], message: str) -> None:
    """One line that names the setting or the file."""
    with pytest.raises(UsageError, match=message):
        make_start(settings(**values), LSP)
