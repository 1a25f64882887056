import io
from dataclasses import replace

import pytest
import torch
from torch import nn

from cpm_core.config import preset
from cpm_core.errors import ConfigError
from cpm_core.lite import LiteTrunk
from cpm_core.model import Cpm
from cpm_core.recipe import Phase, Recipe, parameter_groups
from cpm_core.skeleton import load_skeleton
from cpm_core.targets import belief_maps
from cpm_core.training import Batch, Fit, freeze, stage_pck

SMALL = Recipe(phases=(Phase(0, 64),), warmup_steps=2)


@pytest.fixture
def few(figures):
    return Batch(figures.crops[:2], figures.keypoints[:2], figures.labelled[:2])


def network(**changes):
    return Cpm(preset("cpm-lite", input_size=64, **changes))


def test_the_loss_falls_at_every_stage(fitted):
    _, losses = fitted
    assert len(losses[0]) == 3
    first, last = torch.stack(losses[:3]).mean(dim=0), torch.stack(losses[-3:]).mean(dim=0)
    assert (last < 0.75 * first).all()


def test_figures_are_recognised_better_than_before(fitted, figures):
    fit, _ = fitted
    skeleton = load_skeleton("lsp14")
    before = [pck.total for pck in stage_pck(network(), skeleton, [figures])]
    after = [pck.total for pck in stage_pck(fit.ema, skeleton, [figures])]
    assert min(after) > max(before) + 5


def test_the_averaged_weights_follow(few):
    fit = Fit(network(stages=1), SMALL, 10)
    name = "stages.0.out.weight"
    before = fit.ema.state_dict()[name].clone()
    fit.step(few)
    after = fit.model.state_dict()[name]
    # While the run is young the decay is (1 + n) / (10 + n) after n steps.
    expected = before * (2 / 11) + after * (9 / 11)
    torch.testing.assert_close(fit.ema.state_dict()[name], expected)
    assert not torch.equal(before, after)
    counters = [v for k, v in fit.ema.state_dict().items() if k.endswith("tracked")]
    assert int(counters[-1]) == 1
    assert not fit.ema.training
    assert not any(p.requires_grad for p in fit.ema.parameters())


@pytest.mark.parametrize("blocks", [0, 3])
def test_a_resumed_run_goes_on_bit_by_bit(figures, few, blocks):
    recipe = replace(SMALL, freeze_blocks=blocks)

    def batches():
        for start in (0, 2, 4, 1):
            part = slice(start, start + 2)
            yield Batch(figures.crops[part], figures.keypoints[part], figures.labelled[part])

    one, two, three, four = batches()
    fit = Fit(network(stages=2), recipe, 4)
    fit.step(one)
    fit.step(two)
    saved = io.BytesIO()
    torch.save(fit.state_dict(), saved)
    resumed = Fit(network(stages=2), recipe, 4)
    saved.seek(0)
    resumed.load_state_dict(torch.load(saved, weights_only=True))
    assert resumed.progress == 0.5
    for batch in (three, four):
        assert torch.equal(fit.step(batch), resumed.step(batch))
    for name in ("model", "ema"):
        theirs = resumed.state_dict()[name]
        for key, value in fit.state_dict()[name].items():
            assert torch.equal(value, theirs[key]), key


def test_frozen_layers_stay_as_they_are(few):
    fit = Fit(network(stages=1), replace(SMALL, freeze_blocks=3, weight_decay=0.5), 10)
    before = {name: value.clone() for name, value in fit.model.state_dict().items()}
    fit.step(few)
    fit.step(few)
    frozen = ("shared.stem.", "shared.blocks.0.", "shared.blocks.1.", "shared.blocks.2.")
    for model in (fit.model, fit.ema):
        for name, value in model.state_dict().items():
            same = torch.equal(value, before[name])
            assert same == name.startswith(frozen), name


def test_freezing_nothing_or_another_trunk():
    model = network(stages=1)
    freeze(model, replace(SMALL, freeze_blocks=0))
    assert all(p.requires_grad for p in model.parameters())
    other = Cpm(preset("cpm-vgg", stages=1, input_size=64))
    freeze(other, SMALL)
    assert all(p.requires_grad for p in other.parameters())


def test_a_wrapped_network_is_used(few):
    class Wrapper(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model
            self.calls = 0

        def forward(self, images):
            self.calls += 1
            return self.model(images)

    model = network(stages=1)
    wrapper = Wrapper(model)
    Fit(model, SMALL, 10, wrapper).step(few)
    assert wrapper.calls == 1


def test_every_parameter_has_its_rate_and_decay():
    model = network()
    groups = parameter_groups(model, SMALL)
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())
    by_id = {id(p): group for group in groups for p in group["params"]}
    assert isinstance(model.shared, LiteTrunk)
    for parameter, rate, decay in (
        (model.shared.stem[0].weight, 5e-4, 1e-2),
        (model.shared.stem[1].weight, 5e-4, 0),
        (model.stages[2].layers[0].out.weight, 2e-3, 1e-2),
        (model.stages[2].layers[0].out.bias, 2e-3, 0),
    ):
        group = by_id[id(parameter)]
        assert (group["lr"], group["weight_decay"]) == (rate, decay)


def test_the_trunk_of_cpms_first_stage_has_the_trunks_rate():
    model = Cpm(preset("cpm", stages=2, input_size=64))
    by_id = {id(p): g["lr"] for g in parameter_groups(model, SMALL) for p in g["params"]}
    assert by_id[id(model.first[0].weight)] == by_id[id(model.shared[0].weight)] == 5e-4
    assert by_id[id(model.stages[0].layers[0].weight)] == 2e-3


def test_progress_never_falls(figures, few):
    """With more steps to come than were planned, the rest of the schedule gets longer."""
    fit = Fit(network(), SMALL, 4)
    batch = Batch(figures.crops[:2], figures.keypoints[:2], figures.labelled[:2])
    fit.step(batch)
    fit.step(batch)
    fit.replan(12)
    assert fit.progress == 0.5
    fit.step(batch)
    assert fit.progress == pytest.approx(0.55)
    resumed = Fit(network(), SMALL, 12)
    resumed.load_state_dict(fit.state_dict())
    assert resumed.progress == fit.progress
    fit.step_number = 20
    assert fit.progress == 1


def test_a_state_of_another_device_is_fused_as_this_one_is(figures, few):
    recipe = replace(SMALL, optimizer="adamw")
    fit = Fit(network(), recipe, 4)
    fit.step(Batch(figures.crops[:2], figures.keypoints[:2], figures.labelled[:2]))
    state = fit.state_dict()
    for group in state["optimizer"]["param_groups"]:
        group["fused"] = True
    resumed = Fit(network(), recipe, 4)
    resumed.load_state_dict(state)
    assert {group["fused"] for group in resumed.optimizer.param_groups} == {None}


def test_schedules():
    recipe = Recipe(warmup_steps=10)
    sizes = {0.0: 128, 0.59: 128, 0.6: 192, 0.84: 192, 0.85: 256, 1.0: 256}
    assert {share: recipe.size_at(share) for share in sizes} == sizes
    assert [recipe.sigma_at(share) for share in (0, 0.5, 1)] == [2, 1.5, 1]
    rates = [recipe.rate_at(step, step / 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == max(rates)
    assert rates[50] == pytest.approx(0.5)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "l1"}, "loss is 'l1'; choose one of squared, peaked"),
        ({"phases": ()}, "one must start at 0"),
        ({"phases": (Phase(0.5, 128),)}, "one must start at 0"),
    ],
)
def test_unusable_recipes_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        Recipe(**changes)


class Oracle(nn.Module):
    """Stage 1 is wrong by `error` pixels in x, stage 2 is right."""

    def __init__(self, batch, error):
        super().__init__()
        self.config = preset("cpm-lite", stages=2)
        self.batch = batch
        self.error = error

    def forward(self, images):
        maps = []
        for error in (self.error, 0):
            places = self.batch.keypoints + torch.tensor([error, 0.0])
            maps.append(belief_maps(places, torch.ones_like(self.batch.labelled), 32, 16.0))
        return maps


@pytest.mark.parametrize(("error", "pck"), [(3.0, 100.0), (-9.0, 0.0)])
def test_stage_pck(error, pck):
    """A torso of 40 px: up to 8 px are right. The head does not count, nor do unlabelled joints."""
    skeleton = load_skeleton("lsp14")
    keypoints = torch.rand(3, 14, 2) * 100 + 60
    keypoints[:, skeleton.index("right_shoulder")] = torch.tensor([100.0, 100.0])
    keypoints[:, skeleton.index("left_hip")] = torch.tensor([100.0, 140.0])
    labelled = torch.ones(3, 14, dtype=torch.bool)
    batch = Batch(torch.zeros(3, 256, 256, 3, dtype=torch.uint8), keypoints, labelled)
    oracle = Oracle(batch, error)
    truth = Batch(batch.crops, keypoints.clone(), labelled.clone())
    truth.keypoints[:, 12:] = 0
    truth.keypoints[0, 0] = torch.nan
    truth.labelled[0, 0] = False
    assert [stage.total for stage in stage_pck(oracle, skeleton, [truth])] == [pck, 100]


def test_stage_pck_of_nothing():
    assert stage_pck(network(stages=1), load_skeleton("lsp14"), []) == []
