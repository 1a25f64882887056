import numpy as np
import pytest
import torch

import cpm_core
from cpm_core.belief import overlay, sample_tile, stages_figure, tile_sheet
from cpm_core.crops import Cropper
from cpm_core.decode import decode
from cpm_core.draw import rgb
from cpm_core.errors import SkeletonError
from cpm_core.targets import belief_maps

OFFSETS = [0, 3.5, 7]
NOBODY = np.zeros((0, 3, 2)), np.zeros((0, 3), bool)


def belief_at(x, y, size=96, cell_offset=3.5, sigma=8.0, peak=1.0):
    place, labelled = torch.tensor([[[x, y]]], dtype=torch.float32), torch.tensor([[True]])
    return peak * belief_maps(place, labelled, size // 8, sigma, cell_offset)[0, 0].numpy()


def grey(size=96, value=100):
    return np.full((size, size, 3), value, np.uint8)


@pytest.mark.parametrize("cell_offset", OFFSETS)
@pytest.mark.parametrize(
    ("x", "y"),
    [
        (40, 40),  # a cell's centre, with offset 0
        (43.5, 51.5),  # one, with offset 3.5
        (47.25, 41.5),  # in between
        (30.4, 62.9),
    ],
)
def test_the_peak_is_drawn_where_it_is(x, y, cell_offset):
    """Up to half belief, green grows with belief: its centre is the peak's, to half a pixel."""
    belief = belief_at(x, y, cell_offset=cell_offset, peak=0.5)
    green = overlay(grey(value=0), belief, cell_offset)[..., 1].astype(float)
    weights = np.where(green > green.max() / 2, green, 0)
    rows, columns = np.mgrid[:96, :96]
    found = [(weights * axis).sum() / weights.sum() for axis in (columns, rows)]
    assert np.abs(np.subtract(found, [x, y])).max() < 0.5


@pytest.mark.parametrize("cell_offset", OFFSETS)
def test_a_peak_in_the_corner_is_drawn_there(cell_offset):
    belief = np.zeros((12, 12))
    belief[-1, -1] = 1
    changed = (overlay(grey(), belief, cell_offset) != 100).any(axis=2)
    assert changed[-1, -1]
    assert not changed[:72].any()
    assert not changed[:, :72].any()


def test_no_belief_leaves_the_picture_and_more_covers_more():
    picture = np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8)
    before = picture.copy()
    assert (overlay(picture, np.zeros((12, 12))) == picture).all()
    assert (overlay(picture, np.full((12, 12), -0.3)) == picture).all()
    contrast = [overlay(picture, np.full((12, 12), v))[..., 0].std() for v in (0.0, 0.1, 0.3, 0.5)]
    assert contrast == sorted(contrast, reverse=True)
    assert contrast[-1] > 0.15 * contrast[0]
    # A network may believe more than 1.
    assert (overlay(picture, np.full((12, 12), 2.0)) == overlay(picture, np.ones((12, 12)))).all()
    assert (picture == before).all()


def test_a_figure_has_a_row_per_joint_and_a_column_per_stage(hands):
    maps = np.zeros((3, 4, 12, 12), np.float32)
    maps[0, 1, 2, 2] = maps[1, 1, 2, 9] = maps[2, 1, 9, 9] = 0.9
    maps[:, 0, 9, 2] = 0.9
    crop = grey()
    figure = stages_figure(crop, maps, hands, ["right_hand", "left_hand"], width=192)
    band, pitch_x, pitch_y = 21, 200, 221
    assert figure.shape == (8 + 2 * pitch_y, 8 + 3 * pitch_x, 3)
    assert (crop == 100).all()
    # Cell g is at 8 g + 3.5 of the crop, which is twice as large here: 19.5 -> 39.5, 75.5 -> 151.5
    cells = [[(39.5, 39.5), (151.5, 39.5), (151.5, 151.5)], [(39.5, 151.5)] * 3]
    for row, places in enumerate(cells):
        for column, place in enumerate(places):
            y, x = 8 + row * pitch_y, 8 + column * pitch_x
            tile = figure[y : y + 192, x : x + 192]
            ys, xs = (tile > 220).all(axis=2).nonzero()
            assert np.abs([xs.mean() - place[0], ys.mean() - place[1]]).max() < 1
            caption = figure[y + 192 : y + 192 + band, x : x + 192]
            assert (caption < 100).any()


def test_a_figure_names_the_joints_there_are(hands):
    with pytest.raises(SkeletonError, match="left_hand, right_hand, head_top"):
        stages_figure(grey(), np.zeros((1, 4, 12, 12), np.float32), hands, ["elbow"])


def test_a_sheet_refuses_what_it_cannot_lay_out():
    with pytest.raises(ValueError, match="at least one tile"):
        tile_sheet([], [], 3)
    with pytest.raises(ValueError, match="zip"):
        tile_sheet([grey()], ["one", "two"], 3)


LABELS = np.array([[70.0, 60], [20, 60], [45, 15]])


def test_a_sample_is_shown_with_its_labels_beside_its_target(hands):
    tile = sample_tile(grey(), LABELS, np.ones(3, bool), *NOBODY, hands, sigma=6)
    assert tile.shape == (96, 192, 3)
    drawn, target = tile[:, :96], tile[:, 96:]
    # Left and right differ even where the limbs' colours do not; limbs have theirs.
    dots = [drawn[y, x].tolist() for x, y in LABELS.astype(int)]
    assert dots == [list(rgb("#4d9de0")), list(rgb("#f78154")), [255, 255, 255]]
    assert drawn[37, 57].tolist() == [255, 0, 0]
    assert drawn[37, 33].tolist() == [0, 255, 0]
    for x, y in LABELS.astype(int):
        assert (target[y, x] != 100).any()
        assert target[y, x, 0] > target[y, x, 2]
    assert (target[80:] == 100).all()


@pytest.mark.parametrize("nowhere", [(70, 60), (np.nan, np.nan), (1e30, -1e30)])
def test_an_unlabelled_joint_is_not_drawn(hands, nowhere):
    """Neither as a joint, nor as a limb, nor in the target, whatever its coordinates."""
    labels = LABELS.copy()
    labels[0] = nowhere
    tile = sample_tile(grey(), labels, np.array([False, True, True]), *NOBODY, hands, sigma=6)
    assert (tile[:, 72:96] == 100).all()
    assert (tile[:, 168:] == 100).all()
    assert (tile[37, 55:60] == 100).all()
    assert (tile[60, 20] != 100).any()


def test_other_people_are_grey_and_weaker(hands):
    person, other = LABELS / 2, LABELS / 2 + 45
    flags = np.ones((1, 3), bool)
    flags[0, 1] = False
    other[1] = np.nan
    tile = sample_tile(grey(), person, np.ones(3, bool), other[None], flags, hands, sigma=6)
    drawn, target = tile[:, :96], tile[:, 96:]
    colors = {tuple(c) for c in drawn[46:, 46:].reshape(-1, 3).tolist()}
    assert colors == {(100, 100, 100), rgb("#c8c8c8")}
    alone = sample_tile(grey(), person, np.ones(3, bool), *NOBODY, hands, sigma=6)[:, 96:]
    x, y = other[2].astype(int)
    assert (alone[y, x] == 100).all()
    # Half belief is green, a whole one red.
    assert target[y, x].argmax() == 1
    assert target[7, 22].argmax() == 0


def test_drawing_a_sample_changes_nothing(hands):
    arrays = [grey(), LABELS.copy(), np.ones(3, bool), LABELS[None] + 5, np.ones((1, 3), bool)]
    copies = [array.copy() for array in arrays]
    sample_tile(*arrays, hands, sigma=6)
    for array, copy in zip(arrays, copies, strict=True):
        assert (array == copy).all()


@pytest.mark.parametrize("scales", [(1.0,), (0.8, 1.25)])
def test_belief_is_what_estimate_decodes(dots_file, dots_picture, scales):
    """The crop is the base crop whatever the views; the maps are those of every stage."""
    estimator = cpm_core.load(str(dots_file), device="cpu", scales=scales)
    picture = dots_picture((70, 80), (90, 105), width=200, height=150)
    box = [40, 50, 64, 64]
    crop, maps = estimator.belief(picture, box)
    assert (crop.shape, crop.dtype) == ((64, 64, 3), np.uint8)
    assert (crop == Cropper(64, 1.0).cut(picture, np.array([box], float))[0, 0]).all()
    assert (maps.shape, maps.dtype) == ((2, 4, 8, 8), np.float32)
    expected = estimator.estimate_crops(estimator.cropper.cut(picture, np.array([box], float)))[0]
    found = decode(torch.from_numpy(maps[-1, :-1]))
    assert np.abs(found - expected).max() < 1e-4
    # Stage 1 sees a hand where the dot is, stage 2 where it belongs.
    assert maps[0, 0].argmax() != maps[1, 0].argmax()


@pytest.mark.parametrize("box", [[], [1, 2, 3], [0, 0, 0, 5], [[0, 0, 5, 5]]])
def test_belief_refuses_what_is_no_box(dots_file, box):
    estimator = cpm_core.load(str(dots_file), device="cpu")
    with pytest.raises(ValueError, match="box"):
        estimator.belief(grey(), box)
