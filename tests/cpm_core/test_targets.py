import math

import pytest
import torch

from cpm_core.targets import belief_maps, map_weights


def one(x, y, labelled=True, **options):
    """Maps (2, 8, 8) of one joint and the background in a 64 px crop."""
    point = torch.tensor([[[x, y]]], dtype=torch.float64)
    options = {"map_size": 8, "sigma": 7.0} | options
    return belief_maps(point, torch.tensor([[labelled]]), **options)[0]


@pytest.mark.parametrize(
    ("offset", "column", "row", "dx", "dy"),
    [
        # A joint at (30, 21): cell (3, 2) is centred at (27.5, 19.5), so (2.5, 1.5) away.
        (3.5, 3, 2, 2.5, 1.5),
        (3.5, 4, 2, -5.5, 1.5),
        (3.5, 3, 3, 2.5, -6.5),
        # In the port, cell (4, 3) is centred at (32, 24).
        (0.0, 4, 3, -2.0, -3.0),
    ],
)
def test_value_at_a_cell(offset, column, row, dx, dy):
    maps = one(30.0, 21.0, cell_offset=offset)
    value = math.exp(-(dx**2 + dy**2) / (2 * 7.0**2))
    assert float(maps[0, row, column]) == pytest.approx(value, rel=1e-12)


def test_joint_on_a_cell_centre_has_belief_1():
    maps = one(27.5, 19.5)
    assert float(maps[0, 2, 3]) == 1
    assert float(maps[1, 2, 3]) == 0


def test_far_cells_are_exactly_empty():
    maps = one(27.5, 19.5)
    # exp(-d^2 / 98) falls under 0.01 at 21.2 px: two cells (16 px) are in, three (24 px) are out.
    assert float(maps[0, 2, 5]) == pytest.approx(math.exp(-(16**2) / 98))
    assert float(maps[0, 2, 6]) == 0
    assert float(maps[1, 2, 6]) == 1


def test_background_is_one_minus_the_highest():
    points = torch.tensor([[[27.5, 19.5], [30.0, 40.0]]])
    maps = belief_maps(points, torch.ones(1, 2, dtype=torch.bool), 8, 7.0)
    torch.testing.assert_close(maps[:, 2], 1 - torch.maximum(maps[:, 0], maps[:, 1]))
    assert maps.shape == (1, 3, 8, 8)


@pytest.mark.parametrize("place", [30.0, 0.0, -5.0, math.nan, math.inf])
def test_unlabelled_joint_has_an_empty_map_and_no_weight(place):
    maps = one(place, place, labelled=False)
    assert torch.equal(maps[0], torch.zeros(8, 8, dtype=torch.float64))
    assert torch.equal(maps[1], torch.ones(8, 8, dtype=torch.float64))
    assert map_weights(torch.tensor([[False, True]])).tolist() == [[0, 1, 1]]


def test_people_are_added_and_clipped():
    two = torch.tensor([[[[27.5, 27.5]], [[35.5, 27.5]]]], dtype=torch.float64)
    both = belief_maps(two, torch.ones(1, 2, 1, dtype=torch.bool), 8, 7.0)[0, 0]
    separate = [one(x, 27.5)[0] for x in (27.5, 35.5)]
    total = separate[0] + separate[1]
    assert total.max() > 1
    torch.testing.assert_close(both, total.clamp(max=1))
    # A person without the label adds nothing.
    seen = torch.tensor([[[True], [False]]])
    torch.testing.assert_close(belief_maps(two, seen, 8, 7.0)[0, 0], separate[0])
