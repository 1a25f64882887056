"""A teacher's features, and a network that learns to predict them."""

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
from cpm_core.model import Cpm
from cpm_core.recipe import Phase, Recipe
from cpm_core.student import Student, hint_loss
from cpm_core.teacher import Teacher, TeacherSpec
from cpm_core.training import Batch, Fit
from tests.teacher_files import write_teacher

RECIPE = Recipe(phases=(Phase(0, 64),), warmup_steps=2, teacher_weight=2.0)


def normal(features: np.ndarray) -> np.ndarray:
    """Every sample's features with mean 0 and standard deviation 1."""
    flat = features.reshape(len(features), -1).astype(float)
    flat = (flat - flat.mean(axis=1, keepdims=True)) / flat.std(axis=1, keepdims=True)
    return flat.reshape(features.shape)


def noise(seed: int, count: int, size: int) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3))
    return pixels.astype(np.uint8)


def test_hints_are_the_features_on_the_network_s_own_grid(tmp_path: Path) -> None:
    """Crops of 64 pixels: the teacher sees them at 32, and a cell of 8 is one of its means."""
    cells = noise(0, 2, 8)
    crops = np.repeat(np.repeat(cells, 8, axis=1), 8, axis=2)
    teacher = Teacher(write_teacher(tmp_path))
    assert teacher.channels == 3
    hints = teacher.hints(crops)
    assert hints.dtype == np.float16
    np.testing.assert_allclose(hints, normal(cells.transpose(0, 3, 1, 2)), atol=0.02)
    np.testing.assert_array_equal(teacher.hints(crops[1:]), hints[1:])


def test_a_map_coarser_than_the_grid_has_no_steps(tmp_path: Path) -> None:
    """A ramp stays one where eight of the teacher's cells become sixteen of the network's."""
    ramp = np.linspace(0, 255, 128).astype(np.uint8)
    crops = np.broadcast_to(ramp[None, None, :, None], (1, 128, 128, 3))
    (row,) = Teacher(write_teacher(tmp_path)).hints(crops)[:, 0, 5].astype(float)
    rises = np.diff(row)[1:-1]
    assert rises.min() > 0.8 * rises.max() > 0


@pytest.mark.parametrize("kind", [np.float32, np.int32, np.uint8])
def test_teachers_take_pictures_in_either_order_and_of_any_type(tmp_path: Path, kind: type) -> None:
    crops = noise(1, 3, 48)
    shapes = (1, 3, 32, 32), (1, 32, 32, 3)
    found = [Teacher(write_teacher(tmp_path, shape, kind)).hints(crops) for shape in shapes]
    assert found[0].shape == (3, 3, 6, 6)
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("tensor", ["heat", "pictures", "weights", "last", "few"])
def test_what_is_no_map_of_a_picture(tmp_path: Path, tensor: str) -> None:
    """Not there, the picture itself, weights, channels last, fewer axes; some that are there."""
    spec = replace(write_teacher(tmp_path), tensor=tensor)
    with pytest.raises(ConfigError, match=rf"has no map '{tensor}'; the last .* are sums, means$"):
        Teacher(spec)


@pytest.mark.parametrize(
    ("shape", "words"), [((1, 3, 32, 48), r"\[1,3,32,48\]"), ((2, 3, 32, 32), r"\[2,3,32,32\]")]
)
def test_a_network_for_something_else(tmp_path: Path, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=rf"takes {words}; \(1, S, S, 3\) or"):
        Teacher(write_teacher(tmp_path, shape))


def test_features_that_are_not_finite(tmp_path: Path) -> None:
    """Large ones are no harm."""
    assert np.isfinite(Teacher(write_teacher(tmp_path, scale=1e6)).hints(noise(2, 1, 64))).all()
    with pytest.raises(ConfigError, match="values of means are not finite"):
        Teacher(write_teacher(tmp_path, scale=np.inf)).hints(noise(2, 1, 64))


def test_files_that_are_no_network(tmp_path: Path) -> None:
    write_teacher(tmp_path)
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
def test_a_student_s_maps_are_the_network_s(name: str, stages: int) -> None:
    model = Cpm(preset(name, stages=stages, input_size=64)).eval()
    images = torch.rand(2, 3, 64, 64) * 255
    maps, predicted = Student(model, 5)(images)
    for got, expected in zip(maps, model(images), strict=True):
        assert torch.equal(got, expected)
    assert predicted.shape == (2, 5, 8, 8)


def test_the_loss_of_each_sample() -> None:
    """By hand; none for one without labels, whose picture could not be read."""
    hints = torch.zeros(3, 2, 4, 4).half()
    predicted = torch.zeros(3, 2, 4, 4)
    predicted[0], predicted[1, 0], predicted[2] = 2.0, 3.0, 5.0
    labelled = torch.tensor([[True, False], [False, True], [False, False]])
    assert hint_loss(predicted, hints, labelled).tolist() == [4.0, 4.5, 0.0]


@pytest.fixture
def taught(figures: Batch) -> Batch:
    """Figures with the mean colours of cells as hints."""
    colors = figures.crops.permute(0, 3, 1, 2).float()
    means = torch.nn.functional.avg_pool2d(colors, 8).numpy()
    return replace(figures, hints=torch.from_numpy(normal(means)).half())


def fit_of(recipe: Recipe = RECIPE) -> Fit:
    torch.manual_seed(0)
    model = Cpm(preset("cpm-lite", stages=2, input_size=64))
    return Fit(model, recipe, 12, student=Student(model, 3))


def test_a_student_learns_to_predict(taught: Batch) -> None:
    fit = fit_of()
    losses = [fit.step(taught) for _ in range(12)]
    assert losses[0].shape == (3,)
    assert losses[0][-1] == pytest.approx(1.0, abs=0.05)
    assert losses[-1][-1] < 0.75 * losses[0][-1]
    assert not any("regressor" in name for name in fit.ema.state_dict())


def test_hints_reach_the_trunk(taught: Batch) -> None:
    """Once the regressor has learned something, by as much as they weigh."""

    def gradient(weight: float) -> Tensor:
        fit = fit_of(replace(RECIPE, teacher_weight=weight))
        assert fit.student is not None
        torch.manual_seed(1)
        torch.nn.init.normal_(fit.student.regressor.weight)
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
