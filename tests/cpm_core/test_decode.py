import pytest
import torch

from cpm_core.decode import decode
from cpm_core.skeleton import load_skeleton
from cpm_core.targets import belief_maps
from cpm_core.views import flip_back, resample

SIZE = 128
CELLS = SIZE // 8


def ideal(points, sigma=8.0, offset=3.5):
    """Maps (B, J + 1, H, W), background last, that speak of points (B, J, 2) without a flaw."""
    labelled = torch.ones(points.shape[:2], dtype=torch.bool)
    return belief_maps(points, labelled, CELLS, sigma, offset)


def decoded(maps, *options):
    """`decode`, as a tensor."""
    return torch.from_numpy(decode(maps, *options))


def spread(low, high, count=200):
    """(1, count, 2) random points."""
    return low + (high - low) * torch.rand(1, count, 2)


@pytest.mark.parametrize("offset", [0.0, 3.5, 7.0])
@pytest.mark.parametrize("sigma", [7.0, 8.0, 16.0, 24.0])
def test_gaussian_refinement_is_exact_on_ideal_maps(sigma, offset):
    # Anywhere but in the outermost cells, which lack a neighbour.
    points = spread(offset + 4.1, offset + 8 * (CELLS - 1) - 4.1)
    found = decoded(ideal(points, sigma, offset)[:, :-1], offset)
    assert float((found[..., :2] - points).abs().max()) < 0.05
    assert found[..., 2].min() > 0.7


@pytest.mark.parametrize(
    ("refinement", "dx", "dy", "expected"),
    [
        # A joint dx, dy pixels from the centre of a cell; where it is found from there.
        ("none", 3.0, -1.0, (0, 0)),
        ("quarter", 3.0, -1.0, (2, -2)),
        ("quarter", 0.0, 1.0, (0, 2)),
        ("gaussian", 3.0, -1.0, (3, -1)),
        ("gaussian", 0.0, 0.0, (0, 0)),
    ],
)
def test_refinements(refinement, dx, dy, expected):
    centre = torch.tensor([8 * 5 + 3.5, 8 * 9 + 3.5])
    maps = ideal((centre + torch.tensor([dx, dy]))[None, None])
    found = decoded(maps[:, :-1], 3.5, refinement)[0, 0, :2] - centre
    torch.testing.assert_close(found, torch.tensor(expected).float(), atol=0.01, rtol=0)


@pytest.mark.parametrize("refinement", ["gaussian", "quarter", "none"])
@pytest.mark.parametrize(
    ("point", "cell"),
    [
        ((0.0, 0.0), (0, 0)),
        ((127.0, 127.0), (15, 15)),
        ((1.0, 126.0), (0, 15)),
        ((-3.0, 130.0), (0, 15)),
    ],
)
def test_peaks_in_a_corner_stay_at_the_cells_centre(refinement, point, cell):
    found = decoded(ideal(torch.tensor([[point]]))[:, :-1], 3.5, refinement)[0, 0, :2]
    torch.testing.assert_close(found, torch.tensor(cell) * 8 + 3.5)


def test_a_peak_on_an_edge_is_refined_along_it():
    found = decoded(ideal(torch.tensor([[[1.0, 62.0], [62.0, 126.0]]]))[:, :-1])[0, :, :2]
    torch.testing.assert_close(found, torch.tensor([[3.5, 62.0], [62.0, 123.5]]), atol=0.01, rtol=0)


@pytest.mark.parametrize(("factor", "score"), [(1.7, 1.0), (0.5, 0.5), (0.0, 0.0), (-1.0, 0.0)])
def test_scores_are_the_peaks_clipped(factor, score):
    maps = factor * ideal(torch.tensor([[[43.5, 43.5]]]))[:, :-1]
    found = decoded(maps)[0, 0]
    assert float(found[2]) == pytest.approx(score)
    assert found.isfinite().all()


@pytest.mark.parametrize("value", [0.0, 0.3, -2.0])
def test_flat_maps_are_decoded_to_the_first_cell(value):
    found = decoded(torch.full((2, 3, 8, 8), value))
    assert found.shape == (2, 3, 3)
    assert (found[..., :2] == 3.5).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (2, 3)])
def test_tiny_maps(shape):
    found = decoded(torch.rand(4, *shape))
    assert found.shape == (4, 3)
    assert found.isfinite().all()


def test_any_leading_axes():
    maps = torch.rand(2, 5, 3, 9, 7)
    torch.testing.assert_close(decoded(maps)[1, 4, 2], decoded(maps[1, 4, 2]))


def test_half_precision_maps_are_decoded_in_full():
    points = spread(20, 100, 50)
    found = decoded(ideal(points)[:, :-1].to(torch.bfloat16))
    assert found.dtype == torch.float32
    assert float((found[..., :2] - points).abs().max()) < 0.5


def mirrored(points, skeleton):
    """What a mirrored crop shows: x reversed, and each left joint now a right one."""
    return torch.stack([SIZE - 1 - points[..., 0], points[..., 1]], dim=-1)[:, skeleton.flip_order]


@pytest.mark.parametrize(
    ("offset", "tolerance"),
    [(3.5, 1e-4), (0.0, 0.25), (7.0, 0.25)],
    ids=["own grid", "the port's grid", "Caffe's grid"],
)
def test_mirrored_maps_flipped_back_give_the_same_keypoints(offset, tolerance):
    skeleton = load_skeleton("lsp14")
    points = spread(28, SIZE - 29, 14 * 20).view(20, 14, 2)
    expected = decoded(ideal(points, 8.0, offset)[:, :-1], offset)
    maps = ideal(mirrored(points, skeleton), 8.0, offset)
    back = flip_back(maps, torch.from_numpy(skeleton.flip_order), offset)
    found = decoded(back[:, :-1], offset)
    assert float((found[..., :2] - expected[..., :2]).abs().max()) < tolerance
    # The background is still last and still says where nobody is.
    assert float((back[:, -1] - (1 - back[:, :-1].amax(dim=1))).abs().max()) < 0.2


def test_flip_back_twice_changes_nothing():
    order = torch.from_numpy(load_skeleton("coco17").flip_order)
    maps = torch.rand(2, 18, 8, 8)
    assert torch.equal(flip_back(flip_back(maps, order), order), maps)


@pytest.mark.parametrize("offset", [3.5, 0.0])
@pytest.mark.parametrize("scale", [0.7, 0.8, 1.0, 1.2, 1.3])
def test_views_speak_of_the_same_places(scale, offset):
    """A view that shows the person `scale` times as large, brought to the base crop's grid."""
    middle = (SIZE - 1) / 2
    points = spread(middle - 32, middle + 32, 100)
    view = middle + scale * (points - middle)
    maps = resample(ideal(view, 8.0, offset), 1 / scale, offset)
    assert maps.shape == (1, 101, CELLS, CELLS)
    found = decoded(maps[:, :-1], offset)
    assert float((found[..., :2] - points).abs().max()) < 0.3


def test_cells_that_a_view_does_not_cover_are_background():
    maps = torch.full((1, 3, CELLS, CELLS), 0.5)
    # The view covers the middle half of the base crop.
    found = resample(maps, 0.5)
    outside = torch.ones(CELLS, CELLS, dtype=torch.bool)
    outside[3:13, 3:13] = False
    assert (found[0, :2, outside] == 0).all()
    assert (found[0, 2, outside] == 1).all()
    torch.testing.assert_close(found[0, :, 5:11, 5:11], torch.full((3, 6, 6), 0.5))
