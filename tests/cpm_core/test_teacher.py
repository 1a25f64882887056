"""A teacher's features, and a network that learns to foretell them."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cpm_core.config import preset
from cpm_core.errors import ConfigError
from cpm_core.hints import Pupil, hint_loss
from cpm_core.model import Cpm
from cpm_core.recipe import Phase, Recipe
from cpm_core.teacher import Teacher, TeacherSpec
from cpm_core.training import Batch, Fit
from tests.teacher_files import write_teacher

RECIPE = Recipe(phases=(Phase(0, 64),), warmup_steps=2, teacher_weight=2.0)


def test_hints_are_the_features_on_the_network_s_own_grid(tmp_path: Path) -> None:
    """Crops of 64 pixels: the teacher sees them at 32, and a cell of 8 is one of its means."""
    cells = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    crops = np.repeat(np.repeat(cells, 8, axis=1), 8, axis=2)
    teacher = Teacher(write_teacher(tmp_path))
    assert teacher.channels == 3
    hints = teacher.hints(crops)
    assert hints.dtype == np.float16
    np.testing.assert_allclose(hints, cells.transpose(0, 3, 1, 2), atol=1.0)


@pytest.mark.parametrize("kind", [np.float32, np.int32, np.uint8])
def test_teachers_take_pictures_in_either_order_and_of_any_type(tmp_path: Path, kind: type) -> None:
    crops = np.random.default_rng(1).integers(0, 256, (3, 48, 48, 3)).astype(np.uint8)
    found = [
        Teacher(write_teacher(tmp_path, shape, kind)).hints(crops)
        for shape in ((1, 3, 32, 32), (1, 32, 32, 3))
    ]
    assert found[0].shape == (3, 3, 6, 6)
    np.testing.assert_array_equal(*found)


def test_a_tensor_that_is_not_there_and_those_that_are(tmp_path: Path) -> None:
    spec = replace(write_teacher(tmp_path), tensor="heat")
    with pytest.raises(ConfigError, match=r"has no tensor 'heat'; the last of its maps are .*sums"):
        Teacher(spec)


@pytest.mark.parametrize(
    ("shape", "words"), [((1, 3, 32, 48), r"\[1,3,32,48\]"), ((2, 3, 32, 32), r"\[2,3,32,32\]")]
)
def test_a_network_for_something_else(tmp_path: Path, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=rf"takes {words}; \(1, S, S, 3\) or"):
        Teacher(write_teacher(tmp_path, shape))


def test_files_that_are_no_network(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.onnx: there is no such file"):
        Teacher(TeacherSpec(str(tmp_path / "nowhere.onnx"), "means"))
    path = tmp_path / "text.onnx"
    path.write_text("not a network")
    with pytest.raises(ConfigError, match=r"text\.onnx: no network that can be read"):
        Teacher(TeacherSpec(str(path), "means"))


def test_without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs OpenVINO"):
        Teacher(TeacherSpec("a.onnx", "means"))


@pytest.mark.parametrize(
    ("name", "stages"), [("cpm", 1), ("cpm", 2), ("cpm-vgg", 1), ("cpm-vgg", 2), ("cpm-lite", 2)]
)
@torch.no_grad()
def test_a_pupil_s_maps_are_the_network_s(name: str, stages: int) -> None:
    model = Cpm(preset(name, stages=stages, input_size=64)).eval()
    images = torch.rand(2, 3, 64, 64) * 255
    maps, foretold = Pupil(model, 5)(images)
    for got, expected in zip(maps, model(images), strict=True):
        assert torch.equal(got, expected)
    assert foretold.shape == (2, 5, 8, 8)


def test_the_loss_of_hints_has_no_scale() -> None:
    """Whatever the range of a channel: 0 for the right answer, 1 for none; half a batch has half of
    the sum. A channel that is always the same asks for nothing."""
    hints = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    hints = hints * torch.tensor([1e-2, 1.0, 50.0]).view(1, 3, 1, 1) + 7
    hints[:, 1] = 7.0
    deviation, mean = torch.std_mean(hints, dim=(0, 2, 3), keepdim=True, correction=0)
    right = (hints - mean) / deviation.clamp(min=1e-3)
    assert hint_loss(right, hints).abs().max() < 1e-6
    none = hint_loss(torch.zeros_like(hints), hints)
    assert none.shape == (4,)
    assert none.mean().item() == pytest.approx(2 / 3, rel=1e-3)


@pytest.fixture
def taught(figures: Batch) -> Batch:
    """Figures with the mean colours of cells as hints."""
    colors = figures.crops.permute(0, 3, 1, 2).float()
    return replace(figures, hints=torch.nn.functional.avg_pool2d(colors, 8).half())


def fit_of(recipe: Recipe = RECIPE) -> Fit:
    torch.manual_seed(0)
    model = Cpm(preset("cpm-lite", stages=2, input_size=64))
    return Fit(model, recipe, 12, pupil=Pupil(model, 3))


def test_a_pupil_learns_to_foretell(taught: Batch) -> None:
    fit = fit_of()
    losses = [fit.step(taught) for _ in range(12)]
    assert losses[0].shape == (3,)
    assert losses[0][-1] == pytest.approx(1.0, abs=0.05)
    assert losses[-1][-1] < 0.75 * losses[0][-1]
    assert not any(name.startswith("foretell") for name in fit.ema.state_dict())


def test_hints_reach_the_trunk(taught: Batch) -> None:
    """Once the last layer has learned something, by as much as they weigh."""

    def gradient(weight: float) -> Tensor:
        fit = fit_of(replace(RECIPE, teacher_weight=weight))
        assert fit.pupil is not None
        torch.manual_seed(1)
        torch.nn.init.normal_(fit.pupil.foretell.weight)
        fit.gradients(taught)
        lateral = fit.model.shared.get_submodule("lateral.0.0").get_parameter("weight")
        assert lateral.grad is not None
        return lateral.grad

    none, one, two = (gradient(w) for w in (0.0, 1.0, 2.0))
    assert not torch.allclose(none, one)
    torch.testing.assert_close(two - none, 2 * (one - none), rtol=1e-3, atol=1e-4)


def test_a_taught_run_goes_on_bit_by_bit(taught: Batch) -> None:
    fit = fit_of()
    fit.step(taught)
    fit.step(taught)
    saved = io.BytesIO()
    torch.save(fit.state_dict(), saved)
    saved.seek(0)
    resumed = fit_of()
    resumed.load_state_dict(torch.load(saved, weights_only=True))
    assert torch.equal(fit.step(taught), resumed.step(taught))
    for one, other in zip(fit.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(one, other)
