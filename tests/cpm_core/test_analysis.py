"""Cost and reach of the networks against the figures of the paper and of its release."""

import pytest
import torch

from cpm_core.analysis import multiply_adds, parameters, receptive_fields
from cpm_core.config import preset
from cpm_core.model import Cpm


def empty(name, **changes):
    """A network without values: shapes only, no time, no memory."""
    with torch.device("meta"):
        return Cpm(preset(name, **changes)).eval()


def test_cpm_has_exactly_the_parameters_of_the_release():
    assert parameters(empty("cpm")) == 31_219_866


@pytest.mark.parametrize(
    ("name", "stages", "millions", "giga"),
    [
        ("cpm", 1, 4.39, 64.0),
        ("cpm", 2, 11.90, 134.6),
        ("cpm", 3, 16.73, 144.8),
        ("cpm", 4, 21.56, 155.0),
        ("cpm", 5, 26.39, 165.2),
        ("cpm", 6, 31.22, 175.4),
        ("cpm-vgg", 6, 29.85, 88.4),
    ],
)
def test_cost_by_stage_count(name, stages, millions, giga):
    model = empty(name, stages=stages)
    assert round(parameters(model) / 1e6, 2) == millions
    assert round(multiply_adds(model) / 1e9, 1) == giga


def test_cost_of_the_parts_of_cpm():
    by_stages = [empty("cpm", stages=stages) for stages in (1, 2, 3)]
    stage = parameters(by_stages[2]) - parameters(by_stages[1])
    shared = parameters(by_stages[1]) - parameters(by_stages[0]) - stage
    assert (round(stage / 1e6, 2), round(shared / 1e6, 2)) == (4.83, 2.69)
    one, two, three = (multiply_adds(model) / 1e9 for model in by_stages)
    assert (round(three - two, 1), round(two - one - (three - two), 1)) == (10.2, 60.4)


def test_lite_is_small():
    model = empty("cpm-lite")
    assert parameters(model) <= 5_000_000
    assert multiply_adds(model) <= 1_000_000_000
    assert multiply_adds(model, 128) * 4 == multiply_adds(model)


def test_counting_leaves_the_model_alone():
    model = Cpm(preset("cpm-lite", joints=3, stages=1)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    multiply_adds(model)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("pooling", ["padded", "ceil"])
@pytest.mark.parametrize("name", ["cpm", "cpm-vgg"])
def test_368_pixels_give_46_cells_at_every_stage(name, pooling):
    model = empty(name, pooling=pooling)
    maps = model(torch.zeros(2, 3, 368, 368, device="meta"))
    assert [tuple(stage.shape) for stage in maps] == [(2, 15, 46, 46)] * 6


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("cpm", [167, 407, 647, 887, 1127, 1367]),
        ("cpm-vgg", [164, 404, 644, 884, 1124, 1364]),
    ],
)
def test_receptive_fields_by_stage(name, fields):
    assert receptive_fields(empty(name)) == fields


@pytest.mark.parametrize(("name", "field"), [("cpm", 167), ("cpm-vgg", 164)])
def test_first_stage_sees_as_far_as_the_analysis_says(lively, name, field):
    """Spoil all pixels left (right) of a column: exactly the cells that see it are spoilt."""
    width, edge = 256, 80
    model = lively(preset(name, stages=1, input_size=width)).double()
    trunk = model.first if model.first is not None else model.shared
    # Not a number spreads through sums and maxima, and nowhere else. (fp32 may use transforms.)
    strips = torch.zeros(16, 3, 8, width, dtype=torch.float64)
    for i in range(8):
        strips[i, :, :, : edge + i] = torch.nan
        strips[8 + i, :, :, width - edge - i :] = torch.nan
    with torch.no_grad():
        maps = model.stages[0](trunk(strips))
    spoilt = [row.nonzero().flatten().tolist() for row in maps[:, 0, 0].isnan()]
    # Cell g sees from 8 g - before to 8 g + after.
    before = max(8 * max(spoilt[i]) - (edge + i - 1) for i in range(8))
    after = max(width - edge - i - 8 * min(spoilt[8 + i]) for i in range(8))
    assert before + after + 1 == field


def test_refinement_sees_15_cells_further():
    for name in ("cpm", "cpm-vgg"):
        stage = Cpm(preset(name, stages=2, centre_sigma=0.0)).stages[1].double()
        for parameter in stage.parameters():
            torch.nn.init.uniform_(parameter, 0.1, 0.2)
        shared, previous = torch.ones(2, 1, 128, 1, 48, dtype=torch.float64)
        previous = previous[:, :15]
        previous[..., 20] = torch.nan
        with torch.no_grad():
            spoilt = stage(shared, previous, None)[0, 0, 0].isnan().nonzero().flatten()
        assert (int(spoilt.min()), int(spoilt.max())) == (5, 35)
