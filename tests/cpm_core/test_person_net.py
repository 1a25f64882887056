import cv2
import numpy as np
import pytest
import torch

from cpm_core.batches import padded
from cpm_core.errors import LocatorError
from cpm_core.looks import NetElsewhere, boxed, people
from cpm_core.person_net import PersonNetLocator
from cpm_core.person_net.config import SIZE_UNIT, PersonNetConfig
from cpm_core.person_net.info import PersonNetInfo
from cpm_core.person_net.losses import TargetMaps, box_loss, centre_loss, giou
from cpm_core.person_net.net import MAPS, PersonNet
from cpm_core.person_net.peaks import peaks
from cpm_core.person_net.targets import boxes_of, encode
from cpm_core.person_net.weights import PersonNetWeights

CELLS = 16
NOBODY = np.zeros((0, 4))


def ideal(boxes, cells=CELLS):
    """Maps (1, 5, cells, cells) that a perfect network would give for boxes (N, 4)."""
    targets = encode(np.asarray(boxes, float), NOBODY, cells)
    maps = torch.zeros(1, MAPS, cells, cells)
    maps[0, 0] = torch.from_numpy(targets.centre).clamp(1e-4, 1 - 1e-4).logit()
    y, x = np.mgrid[:cells, :cells] * 8 + 3.5
    left, top, w, h = targets.boxes
    maps[0, 1] = torch.from_numpy((left + (w - 1) / 2 - x) / 8)
    maps[0, 2] = torch.from_numpy((top + (h - 1) / 2 - y) / 8)
    maps[0, 3:] = torch.from_numpy(np.log(targets.boxes[2:] / SIZE_UNIT))
    return maps


def as_tensors(targets):
    fields = (targets.centre, targets.known, targets.boxes, targets.core)
    return TargetMaps(*(torch.from_numpy(value)[None] for value in fields))


def test_targets_of_one_person():
    """Centre (43.5, 67.5) is that of cell (5, 8); sigma is 0.09 of a side, in cells."""
    targets = encode(np.array([[24, 4, 40, 128]]), NOBODY, CELLS)
    assert np.unravel_index(targets.centre.argmax(), targets.centre.shape) == (8, 5)
    assert targets.centre[8, 5] == 1
    assert targets.centre[9, 5] == pytest.approx(np.exp(-1 / (2 * 1.44**2)), rel=1e-5)
    assert targets.centre[8, 6] == pytest.approx(np.exp(-1 / (2 * 0.6**2)), rel=1e-5)
    assert targets.core[9, 5] == targets.centre[9, 5]
    assert targets.core[8, 6] == 0  # below 0.4: too far off to learn the box
    np.testing.assert_array_equal(targets.boxes[:, 8, 5], [24, 4, 40, 128])
    assert targets.known.all()


def test_unlabelled_regions_teach_nothing():
    """The region covers the centres of cells 1 and 2 in x and 2 to 4 in y."""
    targets = encode(NOBODY, np.array([[11.5, 19, 9, 20]]), CELLS)
    unknown = np.argwhere(targets.known == 0)
    assert sorted(map(tuple, unknown)) == [(r, c) for r in (2, 3, 4) for c in (1, 2)]


def test_each_of_two_people_has_a_full_peak_and_its_own_box():
    boxes = np.array([[8, 8, 40, 100], [40, 8, 30, 100]], float)
    targets = encode(boxes, NOBODY, CELLS)
    assert (targets.centre == 1).sum() == 2
    found, _ = peaks(ideal(boxes).numpy(), 0.5)[0]
    np.testing.assert_allclose(found[np.argsort(found[:, 0])], boxes, atol=1e-3)


@pytest.mark.parametrize("side", [(20, 60), (60, 20), (90, 90), (7.5, 11)])
def test_any_place_in_the_input_survives_the_maps(side):
    rng = np.random.default_rng(1)
    for _ in range(20):
        box = np.array([*rng.uniform(0, 128 - np.array(side)), *side])
        found, scores = peaks(ideal([box]).numpy(), 0.5)[0]
        np.testing.assert_allclose(found, [box], atol=1e-3)
        assert scores[0] > 0.99


@pytest.mark.parametrize("most", [5, 100])
def test_peaks_are_the_highest_cells_of_their_neighbourhoods(most):
    """Held against a plain search, and their boxes against those of the training."""
    maps = torch.randn(3, MAPS, CELLS, CELLS, generator=torch.manual_seed(most)) * 3
    maps[2, 0] = -9
    beliefs, boxes = maps[:, 0].sigmoid().numpy(), boxes_of(maps).numpy()
    for belief, box, (found, scores) in zip(
        beliefs, boxes, peaks(maps.numpy(), 0.6, most), strict=True
    ):
        expected = [
            (belief[r, c], tuple(box[:, r, c]))
            for r, c in np.argwhere(belief >= 0.6)
            if belief[r, c] == belief[max(0, r - 1) : r + 2, max(0, c - 1) : c + 2].max()
        ]
        expected = sorted(expected, reverse=True)[:most]
        assert (len(found), len(scores)) == (len(expected), len(expected))
        for got, score, (belief_there, box_there) in zip(found, scores, expected, strict=True):
            assert score == pytest.approx(belief_there, abs=1e-6)
            np.testing.assert_allclose(got, box_there, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("value", [-1e4, 1e4])
def test_extreme_maps_raise_no_warning(value):
    with np.errstate(all="raise"):
        [(boxes, scores)] = peaks(np.full((1, MAPS, 3, 3), value, np.float32), 0.5)
    assert len(boxes) == len(scores) == (9 if value > 0 else 0)
    assert np.isfinite(boxes).all()


@pytest.mark.parametrize(("height", "width"), [(128, 128), (300, 200), (90, 500), (31, 17), (5, 2)])
def test_boxes_come_back_through_the_letterbox(height, width):
    """The picture is at the top left of the square; rounding of its size moves nothing."""
    picture = np.zeros((height, width, 3), np.uint8)
    image, ratio = boxed(picture, 128)
    assert image.shape == (128, 128, 3)
    # Of the smallest picture, just over a pixel wide: what is less than one is dropped.
    box = np.array([0.1 * width, 0.2 * height, 0.55 * width, 0.7 * height])
    inner = box * np.tile(ratio, 2)
    boxes, scores = peaks(ideal([inner]).numpy(), 0.5)[0]
    found = people((boxes, scores), ratio, width, height)
    np.testing.assert_allclose(found.boxes, [box], atol=2e-3 * max(height, width) / 128 + 1e-3)
    assert found.source == "person-net"


def test_the_letterbox_shows_the_picture_and_fills_the_rest():
    picture = np.full((60, 120, 3), (10, 20, 30), np.uint8)
    image, ratio = boxed(picture, 64)
    np.testing.assert_allclose(ratio, [64 / 120, 32 / 60])
    assert (image[:32] == (10, 20, 30)).all()
    assert (image[32:] == 128).all()


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
    ids=["grey", "alpha", "float", "empty"],
)
def test_other_pictures_are_refused(picture):
    with pytest.raises(ValueError, match="expected an RGB picture"):
        boxed(picture, 64)


def test_boxes_are_cut_to_the_picture_and_overlaps_suppressed():
    boxes = np.array([[-10, 5, 30, 20], [2, 5, 18, 20], [70, 5, 9, 9], [25, 5, 30, 20]], np.float32)
    scores = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
    found = people((boxes, scores), np.ones(2), 40, 30)
    np.testing.assert_allclose(found.boxes, [[0, 5, 20, 20], [25, 5, 15, 20]])
    np.testing.assert_allclose(found.scores, [0.9, 0.6], rtol=1e-6)


def test_losses_are_least_for_the_ideal_maps():
    boxes = np.array([[10, 10, 40, 90], [70, 20, 30, 60]], float)
    target = as_tensors(encode(boxes, NOBODY, CELLS))
    maps = ideal(boxes)
    assert box_loss(maps, target) < 1e-5
    best = centre_loss(maps[:, 0], target)
    moved = centre_loss(maps[:, 0].roll(3, dims=2), target)
    assert best < 0.6
    assert moved > 10 * best


def test_regions_to_ignore_and_empty_scenes_cost_nothing_but_belief():
    region = np.array([[0, 0, 128, 128]], float)
    sure = torch.full((1, CELLS, CELLS), 5.0)
    assert centre_loss(sure, as_tensors(encode(NOBODY, region, CELLS))) == 0
    assert centre_loss(sure, as_tensors(encode(NOBODY, NOBODY, CELLS))) > 100
    assert (
        box_loss(torch.zeros(1, MAPS, CELLS, CELLS), as_tensors(encode(NOBODY, region, CELLS))) == 0
    )


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0, 0, 4, 4], [0, 0, 4, 4], 1),
        ([0, 0, 4, 4], [2, 0, 4, 4], 1 / 3),
        ([0, 0, 2, 2], [4, 0, 2, 2], -4 / 12),  # apart: the gap's share of the hull
    ],
)
def test_giou(a, b, expected):
    values = giou(torch.tensor([a], dtype=torch.float32), torch.tensor([b], dtype=torch.float32))
    assert values.item() == pytest.approx(expected)


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    model = PersonNet(PersonNetConfig(input_size=64)).eval()
    info = PersonNetInfo("tiny", model.config, threshold=0.5)
    return PersonNetWeights(info, model.state_dict(), "0")


def test_every_stage_gives_maps_and_folding_changes_nothing(weights):
    model = weights.model()
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    with torch.inference_mode():
        assert [tuple(m.shape) for m in model(images)] == [(2, MAPS, 8, 12)] * 2
    locator = PersonNetLocator(weights)
    # A compiled network is for pictures of one size.
    images = images[..., : locator.size]
    with torch.inference_mode():
        maps = model(images)
        for a, b in zip(maps, locator.model(images), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_a_batch_says_the_same_as_single_pictures(weights):
    rng = np.random.default_rng(2)
    pictures = [
        cv2.resize(rng.integers(0, 256, (6, 6, 3), np.uint8), (int(w), int(h)))
        for w, h in rng.integers(20, 120, (11, 2))
    ]
    locator = PersonNetLocator(weights, threshold=0.04)
    together = locator.locate_batch(pictures)
    assert len(together) == 11
    assert any(len(found) for found in together)
    for picture, found in zip(pictures, together, strict=True):
        alone = locator.locate(picture)
        np.testing.assert_allclose(found.boxes, alone.boxes, atol=0.05)
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-4)
        assert (np.diff(found.scores) <= 0).all()
    assert locator.locate_batch([]) == []


def test_belief_is_shown_for_every_stage(weights):
    image, belief = PersonNetLocator(weights).belief(np.zeros((30, 60, 3), np.uint8))
    assert image.shape == (64, 64, 3)
    assert belief.shape == (2, 8, 8)
    assert (belief >= 0).all()
    assert (belief <= 1).all()


@pytest.mark.parametrize("options", [{"threshold": 0.0}, {"threshold": 1.5}, {"threads": 0}])
def test_unusable_options(weights, options):
    with pytest.raises(LocatorError, match=next(iter(options))):
        PersonNetLocator(weights, **options)


@pytest.fixture
def short_of_memory(weights, monkeypatch):
    """A locator and the sizes of the batches that it tried; more than three images are too many."""
    locator = PersonNetLocator(weights, threshold=0.04)
    sizes, run = [], locator._peaks

    def noted(images):
        sizes.append(len(images))
        if len(images) > 3:
            raise torch.cuda.OutOfMemoryError("no")
        return run(images)

    monkeypatch.setattr(locator, "_peaks", noted)
    return locator, sizes


def test_out_of_memory_halves_the_batch_and_loses_no_picture(weights, short_of_memory, caplog):
    rng = np.random.default_rng(2)
    pictures = [cv2.resize(rng.integers(0, 256, (6, 6, 3), np.uint8), (90, 70)) for _ in range(11)]
    locator, sizes = short_of_memory
    expected = PersonNetLocator(weights, threshold=0.04).locate_batch(pictures)
    assert any(len(found) for found in expected)
    for found, same in zip(locator.locate_batch(pictures), expected, strict=True):
        np.testing.assert_allclose(found.boxes, same.boxes, atol=0.05)
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 1]
    assert "batches of 2" in caplog.text


def test_memory_that_is_too_small_for_one_picture_is_an_error(short_of_memory, monkeypatch):
    locator, _ = short_of_memory
    locator.largest_batch = 1

    def no_memory(images):
        raise torch.cuda.OutOfMemoryError("no")

    monkeypatch.setattr(locator, "_peaks", no_memory)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        locator.look(np.zeros((3, 64, 64, 3), np.uint8))


@pytest.mark.parametrize(("count", "size"), [(1, 1), (2, 2), (3, 4), (9, 16), (32, 32)])
def test_batches_of_a_gpu_have_few_sizes(count, size):
    images = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1)
    full = padded(images, (32, 16, 8, 4, 2, 1))
    assert full.dtype == np.uint8
    assert full.ravel().tolist() == [*range(count), *[count - 1] * (size - count)]


def test_a_net_elsewhere_says_what_the_net_would(weights):
    """Of pictures of any size and shape, also where nobody is."""
    rng = np.random.default_rng(3)
    sizes = [(90, 70), (64, 64), (300, 20), (1, 1), (2, 50)]
    pictures = [cv2.resize(rng.integers(0, 256, (6, 6, 3), np.uint8), size) for size in sizes]
    locator = PersonNetLocator(weights, threshold=0.04)
    other = NetElsewhere(locator.size, lambda image: locator.look(image[None])[0])
    expected = [locator.locate(picture) for picture in pictures]
    assert {len(found) > 0 for found in expected} == {True, False}
    for found, same in zip(other.locate_batch(pictures), expected, strict=True):
        np.testing.assert_array_equal(found.boxes, same.boxes)
        np.testing.assert_array_equal(found.scores, same.scores)
        assert found.source == same.source == "person-net"
