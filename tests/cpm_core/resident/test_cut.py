"""Crops cut on a device against those of `cpm_core.augment`."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from cpm_core.augment import NONE, Augmentation, Sample, training_crop
from cpm_core.resident.cut import cut, levels
from cpm_core.resident.draws import Samples, generator
from cpm_core.resident.pictures import decoded
from tests.cpm_core.resident.packs import LSP, blobs, pack_of

CPU = torch.device("cpu")
STILL = Augmentation(brightness=0, contrast=0, color=0)


def figure(seed, width, height, others=0):
    rng = np.random.default_rng(seed)
    box = np.array([width * 0.3, height * 0.2, width * 0.35, height * 0.6])
    low, high = box[:2], box[:2] + box[2:]
    return Sample(
        blobs(seed, width, height),
        box.astype(np.float32).astype(np.float64),
        rng.uniform(low, high, (14, 2)).astype(np.float32).astype(np.float64),
        rng.random(14) < 0.8,
        rng.uniform(low, high, (others, 14, 2)).astype(np.float32).astype(np.float64),
        rng.random((others, 14)) < 0.8,
    )


@pytest.fixture(scope="module")
def people():
    """Samples of pictures of several shapes, some with other people, and their pack."""
    samples = [
        figure(0, 128, 128),
        figure(1, 128, 70, 2),
        figure(2, 60, 120, 1),
        figure(3, 101, 99),
    ]
    return samples, pack_of(
        [s.image for s in samples], [(i, "train", s) for i, s in enumerate(samples)], LSP
    )


@pytest.fixture(scope="module")
def pictures(people):
    return decoded(people[1], CPU, threads=2)


def crops(pack, pictures, options, size=96, rows=None, seed=0, factor=1.25):
    samples = Samples(pack)
    rows = torch.arange(len(pack.picture)) if rows is None else rows
    draws = samples.draw(rows, factor, options, generator(seed))
    return cut(pictures, draws, size), draws


@pytest.mark.parametrize("size", [64, 96, 160])
def test_without_augmentation_they_are_training_crops(people, pictures, size):
    """OpenCV rounds places to a 32nd of a pixel; labels agree to the last bit of fp32."""
    batch, draws = crops(people[1], pictures, NONE, size)
    assert levels(draws, size).max() == 0
    assert batch.crops.dtype == torch.uint8
    for i, sample in enumerate(people[0]):
        plain = training_crop(sample, LSP, size, 1.25, NONE, (0,))
        apart = np.abs(batch.crops[i].numpy().astype(int) - plain.image)
        assert apart.max() <= 4
        assert apart.mean() < 0.5
        np.testing.assert_array_equal(
            batch.keypoints[i].numpy(), plain.keypoints.astype(np.float32)
        )
        np.testing.assert_array_equal(batch.labelled[i].numpy(), plain.labelled)
        count = len(plain.others)
        np.testing.assert_array_equal(
            batch.others[i, :count].numpy(), plain.others.astype(np.float32)
        )
        np.testing.assert_array_equal(
            batch.others_labelled[i, :count].numpy(), plain.others_labelled
        )
        assert not batch.others_labelled[i, count:].any()


def test_what_shrinks_is_averaged(hands):
    """Stripes of one pixel become grey, as in `warp`, and stay in their place."""
    image = np.zeros((128, 128, 3), np.uint8)
    image[:, ::2] = 255
    image[40:60, 40:60] = (255, 0, 0)
    sample = Sample(image, np.array([0.0, 0, 128, 128]), np.zeros((3, 2)), np.zeros(3, bool))
    pack = pack_of([image], [(0, "train", sample)], hands)
    pictures = decoded(pack, CPU)
    for size, level in ((64, 1), (44, 1), (32, 2), (20, 2)):
        batch, draws = crops(pack, pictures, NONE, size, factor=1.0)
        assert levels(draws, size).tolist() == [level]
        plain = training_crop(sample, hands, size, 1.0, NONE, (0,)).image
        apart = np.abs(batch.crops[0].numpy().astype(int) - plain)
        assert np.median(apart) <= 2
        assert apart.mean() < 8


def test_outside_of_the_picture_it_is_grey(people, pictures):
    far = replace(NONE, scale=(0.2, 0.2))
    for size in (64, 256):
        batch, _ = crops(people[1], pictures, far, size)
        border = torch.cat([batch.crops[:, :8].flatten(), batch.crops[:, -8:].flatten()])
        assert (border == 128).all()


def test_labels_move_with_the_pixels_and_a_mirror_swaps_sides(hands):
    """Three coloured dots: in a mirrored picture, what is at the red one is the right hand."""
    image = np.full((128, 128, 3), 128, np.uint8)
    points = np.array([[50.0, 50], [80, 52], [64, 85]])
    for channel, (x, y) in enumerate(points.astype(int).tolist()):
        color = [0, 0, 0]
        color[channel] = 255
        cv2.circle(image, (x, y), 5, color, -1)
    sample = Sample(image, np.array([40.0, 40, 50, 55]), points, np.ones(3, bool))
    pack = pack_of([image], [(0, "train", sample)], hands)
    options = replace(STILL, rotation_degrees=180, shift=0.1)
    rows = torch.zeros(60, dtype=torch.long)
    batch, _ = crops(pack, decoded(pack, CPU), options, 128, rows, factor=1.8)
    flips = 0
    for crop, labels in zip(batch.crops.numpy(), batch.keypoints.numpy(), strict=True):
        found = dots(crop)
        flipped = turns_left(found) != turns_left(points)
        expected = found[[1, 0, 2]] if flipped else found
        assert np.abs(labels - expected).max() < 0.35
        flips += flipped
    assert 15 < flips < 45


def dots(crop):
    """x, y of the red, the green and the blue dot."""
    places = []
    for channel in range(3):
        others = np.delete(crop.astype(int), channel, axis=2).max(axis=2)
        mass = np.clip(crop[..., channel].astype(int) - others, 0, None)
        ys, xs = np.indices(mass.shape)
        places.append([(mass * xs).sum() / mass.sum(), (mass * ys).sum() / mass.sum()])
    return np.array(places)


def turns_left(points):
    (x0, y0), (x1, y1), (x2, y2) = points
    return (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0) < 0


def test_how_far_crops_differ(people, pictures):
    """Scale, rotation, shift, mirroring and colour fill the ranges that are set, evenly."""
    rows = torch.zeros(4000, dtype=torch.long)
    draws = Samples(people[1]).draw(rows, 1.25, Augmentation(), generator(3))
    longer = people[0][0].box[2:].max()
    scale = 1.25 * longer / draws.side.numpy()
    linear = torch.linalg.inv(draws.back).numpy()
    flipped = np.linalg.det(linear) < 0
    angle = np.rad2deg(np.arctan2(linear[:, 1, 0], linear[:, 1, 1]))
    box = people[0][0].box
    shift = (draws.centre.numpy() - (box[:2] + (box[2:] - 1) / 2)) / longer
    for values, low, high in ((scale, 0.7, 1.3), (angle, -40, 40), (shift, -0.05, 0.05)):
        evenly = np.linspace(low, high, 5)
        np.testing.assert_allclose(
            np.percentile(values, [0, 25, 50, 75, 100]), evenly, atol=(high - low) / 25
        )
        assert low - 1e-9 <= values.min()
        assert values.max() <= high + 1e-9
    assert 0.45 < flipped.mean() < 0.55
    grey = draws.gain.numpy() * 128 + draws.bias.numpy()[:, None]
    assert 128 - 25.6 - 15.4 - 1 <= grey.min() < 110
    assert 150 < grey.max() <= 128 + 25.6 + 15.4


def test_some_crops_show_a_part_of_the_body(people):
    """As `training_crop` chooses them: as often, and as large."""
    rows = torch.zeros(400, dtype=torch.long)
    sample = replace(people[0][0], labelled=np.ones(14, bool))
    pack = replace(people[1], labelled=np.ones_like(people[1].labelled))
    options = replace(NONE, part=0.5)
    points = Samples(pack).draw(rows, 1.25, options, generator(0)).keypoints.numpy()
    theirs = np.array(
        [training_crop(sample, LSP, 1, 1.25, options, (i,)).keypoints for i in range(400)]
    )
    ours, theirs = (np.sort(np.ptp(p, axis=1).max(axis=1)) for p in (points, theirs))
    assert ours[0] == pytest.approx(theirs[0])
    for share in (0.3, 0.6, 0.75, 0.9):
        assert np.quantile(ours, share) == pytest.approx(np.quantile(theirs, share), rel=0.12)
    few = replace(pack, labelled=np.arange(14) < np.full((4, 1), 5))
    draws = Samples(few).draw(rows, 1.25, replace(NONE, part=1.0), generator(0))
    assert np.ptp(draws.side.numpy()) < 1e-9


def test_unlabelled_joints_may_hold_anything(people, pictures):
    keypoints = people[1].keypoints.copy()
    keypoints[~people[1].labelled] = np.nan
    pack = replace(people[1], keypoints=keypoints)
    batch, _ = crops(pack, pictures, Augmentation(part=1.0), 64)
    assert torch.isfinite(batch.keypoints[batch.labelled]).all()


def test_erasing_paints_over_parts_and_keeps_the_labels(people, pictures):
    rows = torch.zeros(80, dtype=torch.long)
    plain, _ = crops(people[1], pictures, STILL, 96, rows)
    batch, _ = crops(people[1], pictures, replace(STILL, erase=0.5), 96, rows)
    assert torch.equal(batch.keypoints, plain.keypoints)
    share = (batch.crops != plain.crops).any(dim=3).float().mean(dim=(1, 2))
    assert share.max() <= 3 * 0.25**2
    assert 25 < int((share > 0).sum()) < 55


def test_the_same_seed_gives_the_same_crops(people, pictures):
    one, same, other = (crops(people[1], pictures, Augmentation(), seed=s)[0] for s in (1, 1, 2))
    assert torch.equal(one.crops, same.crops)
    assert torch.equal(one.keypoints, same.keypoints)
    assert not torch.equal(one.crops, other.crops)


def test_nobody_beside_anybody(people, hands):
    sample = replace(people[0][0], keypoints=np.zeros((3, 2)), labelled=np.ones(3, bool))
    pack = pack_of([sample.image], [(0, "train", sample)], hands)
    batch, _ = crops(pack, decoded(pack, CPU), Augmentation(), 64)
    assert batch.others is None
    assert batch.others_labelled is None
