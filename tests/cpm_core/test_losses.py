import math

import pytest
import torch

from cpm_core.losses import LOSSES, peaked
from cpm_core.targets import belief_maps, map_weights

MASS = 2 * math.pi
"""Sum over the cells of a peak with a sigma of one cell."""


def mean(name, maps, target, weights):
    return LOSSES[name](maps, target, weights, MASS).mean()


def test_squared_error_is_half_of_caffes_sum():
    # Two samples of two maps of two cells; differences 1, 2 | 3, 0 and 0, 1 | 1, 1.
    target = torch.tensor([[[[1.0, 2]], [[3, 0]]], [[[0, 1]], [[1, 1]]]])
    maps = torch.zeros_like(target)
    # Caffe's EuclideanLoss: sum of squares / (2 N) = (1 + 4 + 9 + 1 + 1 + 1) / 4.
    assert float(mean("squared", maps, target, torch.ones(2, 2))) == 17 / 4
    # Without the second map of the first sample: 17 - 9 = 8.
    assert float(mean("squared", maps, target, torch.tensor([[1.0, 0], [1, 1]]))) == 8 / 4


@pytest.fixture
def scene():
    """Targets and weights of two samples with three joints, one unlabelled in the second."""
    points = torch.tensor([[[20.0, 20], [40, 44], [50, 10]], [[30, 30], [10, 50], [5, 60]]])
    labelled = torch.tensor([[True, True, True], [True, False, True]])
    return belief_maps(points, labelled, 8, 8.0), map_weights(labelled)


@pytest.mark.parametrize("name", LOSSES)
def test_unlabelled_joints_count_for_nothing(scene, name):
    target, weights = scene
    maps = torch.rand(target.shape)
    wild = maps.clone()
    wild[1, 1] = 1000 * torch.randn(8, 8)
    values = []
    for candidate in (maps, wild):
        candidate.requires_grad_()
        value = mean(name, candidate, target, weights)
        (gradient,) = torch.autograd.grad(value, candidate)
        assert torch.equal(gradient[1, 1], torch.zeros(8, 8))
        assert all(gradient[0, j].abs().max() > 0 for j in range(3))
        values.append(value.item())
    assert values[0] == values[1]


@pytest.mark.parametrize("name", LOSSES)
def test_ideal_maps_are_best(scene, name):
    target, weights = scene
    ideal = float(mean(name, target, target, weights))
    for worse in (torch.zeros_like(target), target.roll(1, dims=3), 0.5 * target, target + 0.1):
        assert float(mean(name, worse, target, weights)) > ideal


@pytest.mark.parametrize("name", LOSSES)
def test_loss_falls_as_the_peak_comes_nearer(scene, name):
    target, weights = scene
    values = []
    for distance in (4, 3, 2, 1, 0):
        points = torch.tensor([[[20.0 + 8 * distance, 20], [40, 44], [50, 10]]] * 2)
        maps = belief_maps(points, torch.ones(2, 3, dtype=torch.bool), 8, 8.0)
        maps[1] = target[1]
        values.append(float(mean(name, maps, target, weights)))
    # Peaks over three cells apart do not overlap any more: equally wrong.
    assert values[1:] == sorted(values[1:], reverse=True)
    assert values[0] >= values[1] > values[4]


def test_peaked_charges_about_1_for_a_missed_peak(scene):
    """Three joints and the background: 4 maps over which the squared part is a mean."""
    target, weights = scene
    missed = target.clone()
    missed[0, 0] = 0
    cost = peaked(missed, target, weights, MASS) - peaked(target, target, weights, MASS)
    from_place = 0.5 * (_place(missed, target, 0, 0) - _place(target, target, 0, 0)) / 3
    assert float((cost[0] - from_place) * 4) == pytest.approx(0.9, abs=0.15)
    assert float(cost[1]) == 0


def _place(maps, target, sample, joint):
    """Cross-entropy of where one peak is."""
    share = torch.softmax(10 * target[sample, joint].flatten(), 0)
    beliefs = torch.softmax(10 * maps[sample, joint].flatten(), 0)
    return -(share * beliefs.log()).sum()


@pytest.mark.parametrize("name", LOSSES)
def test_a_sample_costs_the_same_in_any_company(scene, name):
    """So that workers may share a batch."""
    target, weights = scene
    maps = torch.rand(target.shape)
    together = LOSSES[name](maps, target, weights, MASS)
    alone = [
        LOSSES[name](maps[i : i + 1], target[i : i + 1], weights[i : i + 1], MASS) for i in (0, 1)
    ]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_labels_is_no_accident(name):
    labelled = torch.zeros(2, 3, dtype=torch.bool)
    target = belief_maps(torch.full((2, 3, 2), torch.nan), labelled, 8, 8.0)
    maps = torch.rand(2, 4, 8, 8, requires_grad=True)
    value = mean(name, maps, target, map_weights(labelled))
    (gradient,) = torch.autograd.grad(value, maps)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()
    assert torch.equal(gradient[:, :3], torch.zeros(2, 3, 8, 8))
