import numpy as np
import pytest
import torch

import cpm_core
from cpm_core import cpu
from cpm_core.errors import ConfigError
from cpm_core.estimator import RELEASE_SCALES
from cpm_core.header import file_sha256
from cpm_core.info import FOLDER, WeightsInfo
from cpm_core.skeleton import load_skeleton
from cpm_core.weights import save_weights

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(scope="module")
def finder(dots_file):
    """Function: an estimator that finds dots (see `dots_file`)."""
    return lambda **options: cpm_core.load(str(dots_file), **({"device": "cpu"} | options))


@pytest.fixture(scope="module")
def fitted_file(fitted, tmp_path_factory):
    fit, _ = fitted
    path = tmp_path_factory.mktemp("fitted") / "fitted.safetensors"
    skeleton = load_skeleton("lsp14")
    save_weights(path, fit.ema, WeightsInfo("fitted", fit.model.config, skeleton))
    return path


def test_keypoints_are_in_pixels_of_the_picture(finder, dots_picture):
    """Two people in one picture, one of 64 px and one of 128 px, 40 px and more from its corner."""
    picture = dots_picture((70, 80), (90, 105), width=400, height=300)
    large = dots_picture((64, 60), (80, 110), width=128, height=128, radius=4)
    picture[150:278, 200:328] = large
    boxes = [[40, 50, 64, 64], [200, 150, 128, 128]]
    found = finder().estimate(picture, boxes)
    assert (found.shape, found.dtype) == ((2, 3, 3), np.float32)
    # Red at (70, 80): the left hand is 16 px of the crop to the right, the right hand to the left.
    small_person = [[86, 80], [54, 80], [90, 105]]
    large_person = [[264 + 32, 210], [264 - 32, 210], [280, 260]]
    # Cells are 8 and 16 px of the picture; the network only knows the dot's cell.
    assert np.abs(found[0, :, :2] - small_person).max() < 5
    assert np.abs(found[1, :, :2] - large_person).max() < 10
    assert (found[..., 2] > 0.2).all()


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"flip": True}, 0.01),
        ({"scales": (1.0, 1.0)}, 0.01),
        ({"flip": True, "scales": RELEASE_SCALES}, 4),
        ({"precision": "bf16"}, 1),
        ({"precision": "fp32"}, 0),
        ({"refinement": "quarter"}, 4),
        ({"refinement": "none"}, 4.01),
        ({"box_factor": 1.0}, 0),
    ],
    ids=str,
)
def test_options_agree_on_what_is_plain_to_see(finder, dots_picture, options, tolerance):
    """Mirroring swaps the hands of this network, so `flip` without the swap would be far off."""
    picture, box = dots_picture((30, 22), (37, 50)), [[0, 0, 64, 64]]
    plain = finder(precision="fp32").estimate(picture, box)
    found = finder(**({"precision": "fp32"} | options)).estimate(picture, box)
    assert np.abs(found[..., :2] - plain[..., :2]).max() <= tolerance


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


VIEWS = {"flip": True, "scales": (0.8, 1.0)}


@pytest.mark.parametrize(
    ("count", "has_openvino", "options"),
    [
        *((count, True, options) for count in (0, 1, 4, 41) for options in ({}, VIEWS)),
        *((count, False, {}) for count in (0, 1, 13)),
        (5, False, VIEWS),
        (5, False, {"precision": "bf16"}),
    ],
)
def test_threads_agree_with_one(count, options, has_openvino, three_threads, monkeypatch):
    """Each has crops of its own, which come back in their order."""
    if not has_openvino:
        monkeypatch.setattr(cpu, "has_openvino", lambda: False)
    side_by_side = cpm_core.load("cpm-lite", device="cpu", **options)
    torch.set_num_threads(1)
    alone = cpm_core.load("cpm-lite", device="cpu", **options)
    side = alone.cropper.size
    shape = (count, len(alone.cropper.scales), side, side, 3)
    crops = np.random.default_rng(count).integers(0, 256, shape, np.uint8)
    torch.set_num_threads(3)
    found = side_by_side.estimate_crops(crops)
    assert torch.get_num_threads() == 3
    torch.set_num_threads(1)
    expected = alone.estimate_crops(crops)
    assert found.shape == expected.shape == (count, 14, 3)
    np.testing.assert_allclose(found[..., 2], expected[..., 2], atol=1e-4)
    seen = expected[..., 2] > 0.1
    assert np.abs(found - expected)[seen].max(initial=0) < 0.1


@pytest.mark.parametrize("scale", [0.7, 0.85, 1.15, 1.3])
def test_keypoints_of_any_view_are_in_pixels_of_the_base_crop(finder, dots_picture, scale):
    picture = dots_picture((31.5, 20), (47, 50))
    left, right, head = finder(scales=(scale,)).estimate(picture, [[0, 0, 64, 64]])[0]
    # The network sets the hands 16 px of the view apart from the dot.
    assert np.abs(head[:2] - [47, 50]).max() < 5
    assert np.abs(left[:2] - [31.5 + 16 / scale, 20]).max() < 5
    assert np.abs(right[:2] - [31.5 - 16 / scale, 20]).max() < 5


@pytest.mark.parametrize("options", [{}, {"flip": True, "scales": (0.8, 1.0)}], ids=str)
def test_stages(finder, dots_picture, options):
    """Stage 1 of this network finds both hands at the red dot, stage 2 moves them apart."""
    estimator, box = finder(**options), [[0, 0, 64, 64]]
    picture = dots_picture((31.5, 23.5), (39.5, 47.5))
    stages = estimator.estimate_stages(picture, box * 11)
    assert stages.shape == (2, 11, 3, 3)
    np.testing.assert_allclose(stages[1], estimator.estimate(picture, box * 11), atol=1e-3)
    assert np.abs(stages[0, :, :2, :2] - [31.5, 23.5]).max() < 5
    assert np.abs(stages[1, :, 0, :2] - [47.5, 23.5]).max() < 5
    assert np.abs(stages[1, :, 1, :2] - [15.5, 23.5]).max() < 5
    assert estimator.estimate_stages(picture, []).shape == (2, 0, 3, 3)


def test_refinement_none_gives_cell_centres(finder, dots_picture):
    found = finder(refinement="none").estimate(dots_picture((30, 22), (37, 50)), [[0, 0, 64, 64]])
    assert ((found[..., :2] - 3.5) % 8 == 0).all()


def test_joints_outside_the_picture_score_0(finder, dots_picture):
    # The crop shows 128 px; the left hand is 32 px right of the dot, beyond the border at 64.
    picture = dots_picture((56, 32), (32, 32), radius=4)
    left, right, head = finder().estimate(picture, [[-32, -32, 128, 128]])[0]
    assert left[0] > 63.5
    assert left[2] == 0
    assert right[2] > 0.2
    assert head[2] > 0.2


def test_nobody(finder):
    picture = np.zeros((50, 60, 3), np.uint8)
    for boxes in ([], np.empty((0, 4)), np.empty((0, 4), np.float32)):
        assert finder().estimate(picture, boxes).shape == (0, 3, 3)
    assert finder().estimate_crops(np.empty((0, 1, 64, 64, 3), np.uint8)).shape == (0, 3, 3)


@pytest.mark.parametrize("box", [[0, 0, 0, 5], [0, np.nan, 5, 5], [0, 0, 5, 5, 0.9], 7])
def test_unusable_boxes_are_refused(finder, box):
    with pytest.raises(ValueError, match="box"):
        finder().estimate(np.zeros((50, 60, 3), np.uint8), [box])


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, 64, 64, 3), np.uint8),
        ((1, 2, 64, 64, 3), np.uint8),
        ((1, 1, 64, 64, 4), np.uint8),
        ((1, 1, 32, 32, 3), np.uint8),
        ((1, 1, 3, 64, 64), np.uint8),
        ((1, 1, 64, 64, 3), np.float32),
    ],
)
def test_crops_of_another_shape_are_refused(finder, shape, dtype):
    with pytest.raises(ValueError, match=r"expected uint8 crops \(N, 1, 64, 64, 3\), got"):
        finder().estimate_crops(np.zeros(shape, dtype))


def test_unusable_options_are_refused(finder):
    for options in (
        {"scales": ()},
        {"scales": (0.0,)},
        {"box_factor": 0.0},
        {"precision": "fp16"},
        {"refinement": "dark"},
    ):
        with pytest.raises(ConfigError):
            finder(**options)


def batches_agree(estimator, crops, tolerance):
    """The same crop alone, among others, and at another place among them."""
    together = estimator.estimate_crops(crops)
    assert len(together) == len(crops)
    alone = np.concatenate([estimator.estimate_crops(crops[i : i + 1]) for i in range(len(crops))])
    rolled = np.roll(estimator.estimate_crops(np.roll(crops, 5, axis=0)), -5, axis=0)
    for other in (alone, rolled):
        assert np.abs(other[..., :2] - together[..., :2]).max() <= tolerance
        assert np.abs(other[..., 2] - together[..., 2]).max() < 0.02


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 0.1), ("bf16", 1.0)])
def test_dots_are_found_whatever_batch_they_are_in(
    finder, dots_picture, device, precision, tolerance
):
    rng = np.random.default_rng(0)
    places = rng.uniform([22, 8], [42, 56], (19, 2, 2))
    crops = np.stack([dots_picture(*place)[None] for place in places])
    batches_agree(finder(device=device, precision=precision), crops, tolerance)


@pytest.mark.parametrize("device", DEVICES)
def test_a_fitted_network_gives_the_same_whatever_the_batch(fitted_file, figures, device):
    estimator = cpm_core.load(str(fitted_file), device=device, precision="fp32")
    crops = np.concatenate([figures.crops.numpy()] * 2)[:13, None]
    batches_agree(estimator, crops, 0.1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 0.1), ("bf16", 1.0)])
def test_shipped_weights_give_the_same_whatever_the_batch(shared, device, precision, tolerance):
    import cv2

    if not (FOLDER / "cpm-lite.safetensors").exists():
        pytest.skip("cpm-lite is not shipped yet")
    estimator = cpm_core.load("cpm-lite", device=device, precision=precision)
    folder = shared("data", "bulk_unlabelled", "people")
    crops = []
    for path in sorted(folder.glob("*.jpg"))[:10]:
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
        height, width = picture.shape[:2]
        crops.append(estimator.cropper.cut(picture, np.array([[0, 0, width, height]])))
    batches_agree(estimator, np.concatenate(crops), tolerance)


def test_what_an_estimator_says_about_itself(finder, dots_file):
    estimator = finder(scales=(0.7, 1.3), box_factor=2.5)
    assert estimator.info.name == "dots"
    assert estimator.sha256 == file_sha256(dots_file)
    assert (estimator.cropper.size, estimator.cropper.box_factor) == (64, 2.5)
    assert estimator.cropper.scales == (0.7, 1.3)
    assert finder().cropper.box_factor == 1.0


@pytest.mark.parametrize("native", [False, True])
def test_a_cpu_takes_bf16_where_it_has_it(native, finder, monkeypatch):
    monkeypatch.setattr("cpm_core.cpu.has_bf16", lambda: native)
    assert finder().bf16 == native
    assert finder(precision="bf16").bf16
    assert not finder(precision="fp32").bf16


def test_out_of_memory_halves_the_batch_and_goes_on(finder, dots_picture, monkeypatch, caplog):
    estimator = finder()
    estimator.largest_batch = 8
    crops = np.stack([dots_picture((22 + i, 20), (40, 50))[None] for i in range(20)])
    expected = estimator.estimate_crops(crops)
    sizes, run = [], estimator._run

    def short_of_memory(batch, every_stage):
        sizes.append(len(batch))
        if len(batch) > 3:
            raise torch.cuda.OutOfMemoryError("no")
        return run(batch, every_stage)

    monkeypatch.setattr(estimator, "_run", short_of_memory)
    np.testing.assert_allclose(estimator.estimate_crops(crops), expected, atol=1e-3)
    assert sizes == [8, 4] + [2] * 10
    assert "batches of 2" in caplog.text
    # For good: the next call does not try again.
    estimator.estimate_crops(crops[:8])
    assert sizes[12:] == [2] * 4


def test_memory_that_is_too_small_for_one_crop_is_an_error(finder, monkeypatch):
    estimator = finder()

    def no_memory(batch, every_stage):
        raise torch.cuda.OutOfMemoryError("no")

    monkeypatch.setattr(estimator, "_run", no_memory)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        estimator.estimate_crops(np.zeros((5, 1, 64, 64, 3), np.uint8))


def test_the_crops_are_not_changed(finder, dots_picture):
    crops = dots_picture((30, 22), (37, 50))[None, None]
    before = crops.copy()
    finder(flip=True).estimate_crops(crops)
    np.testing.assert_array_equal(crops, before)
