"""Defects of an earlier PyTorch port of CPM, one test or table each, that must not come back.

B1 to B12 are their numbers in the list that was made of them.
"""

from __future__ import annotations

import copy
import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import nn

from cpm_core.augment import NONE, Augmentation, Sample, training_crop
from cpm_core.config import preset
from cpm_core.crops import Cropper
from cpm_core.geometry import box_of_points, crop_matrix, inside, transform
from cpm_core.model import Cpm
from cpm_core.recipe import RECIPES, Phase, Recipe, parameter_groups
from cpm_core.skeleton import load_skeleton
from cpm_core.targets import belief_maps
from cpm_core.training import Batch, Fit, stage_pck
from pipeline.importing.lsp import person
from pipeline.importing.record import JointMap, Person
from pipeline.samples import SampleTable, decode_sample
from pipeline.training.loop import read_state
from tests.pipeline.training.fake_ray import FakeRay
from tests.pipeline.training.labelled import row, write_table

LSP = load_skeleton("lsp14")
FLIP = replace(NONE, flip=True)
TURN = replace(NONE, rotation_degrees=40.0)
SIZE = 64
PLAIN = Recipe(phases=(Phase(0, SIZE),), loss="squared", first_sigma=1.0, bf16=False)
"""Half the squared error, whose gradient is the difference between maps and labels."""


SAID = 0.5
"""What a network says everywhere that is asked what it is taught."""


class Says(nn.Module):
    """A network that says the same everywhere, at each of two stages."""

    def __init__(self, people: int, joints: int, cells: int):
        super().__init__()
        self.maps = nn.Parameter(torch.full((2, people, joints + 1, cells, cells), SAID))

    def forward(self, images):
        return list(self.maps)


def learning(batch, config=None):
    """Losses (T, B), and labels (T, B, J + 1, H, W) as far as a network is taught them.

    The gradient of half the squared error is what was said minus the label; a map that counts for
    nothing comes out as it was said.
    """
    joints, size = batch.keypoints.shape[1], batch.crops.shape[1]
    config = config or preset("cpm-lite", stages=2, joints=joints, input_size=size)
    with torch.device("meta"):
        model = Cpm(config)
    says = Says(len(batch.crops), joints, size // 8)
    losses = Fit(model, PLAIN, 10, says).losses(batch)
    losses.sum().backward()
    return losses.detach(), says.maps.detach() - says.maps.grad


def as_batch(*crops):
    """Crops as the loaders hand them over."""
    batch = Batch(
        torch.stack([torch.from_numpy(c.image) for c in crops]),
        torch.tensor(np.stack([c.keypoints for c in crops]), dtype=torch.float32),
        torch.tensor(np.stack([c.labelled for c in crops])),
    )
    if not len(crops[0].others):
        return batch
    others = torch.tensor(np.stack([c.others for c in crops]), dtype=torch.float32)
    seen = torch.tensor(np.stack([c.others_labelled for c in crops]))
    return replace(batch, others=others, others_labelled=seen)


@pytest.fixture
def sample():
    """Three joints of somebody in the middle of a picture, and two people beside them."""
    image = np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8)
    points = np.array([[60.0, 40], [95, 80], [75, 62]])
    others = np.stack([points + np.array([30, 5]), points - np.array([25, 8])])
    return Sample(
        image,
        np.array([50.0, 30, 60, 60]),
        points,
        np.ones(3, bool),
        others,
        np.array([[True, True, False], [False, True, True]]),
    )


@pytest.mark.parametrize("place", [(0.0, 0.0), (math.nan, math.nan), (80.0, 55.0), (-1.0, -1.0)])
@pytest.mark.parametrize("options", [NONE, FLIP, TURN, Augmentation()])
def test_b1_unlabelled_joints_have_no_peak(sample, hands, options, place):
    """It drew one for each joint, at the corner for those at (0, 0), which it also never moved."""
    keypoints = sample.keypoints.copy()
    keypoints[0] = place
    odd = replace(sample, keypoints=keypoints, labelled=np.array([False, True, True]), others=[])
    mirrored = set()
    for i in range(6):
        crop = training_crop(odd, hands, SIZE, 1.6, options, (i,))
        (missing,) = np.flatnonzero(~crop.labelled)
        mirrored.add(int(missing))
        _, labels = learning(as_batch(crop))
        assert (labels[:, 0, missing] == SAID).all(), "no loss, whatever is said"
        kept = [j for j in range(3) if j != missing]
        assert (labels[:, 0, kept].amax(dim=(2, 3)) > 0.5).all()
        # Nor a peak: the background has holes at the labelled joints only.
        expected = 1 - labels[:, 0, kept].amax(dim=1)
        torch.testing.assert_close(labels[:, 0, 3], expected)
    # The left hand is the unlabelled one; in a mirrored crop it is the right one.
    assert mirrored == ({0, 1} if options.flip else {0})


def test_b2_occluded_joints_are_joints_like_all(hands, tmp_path):
    """It left joints where they were whose third number was 0: in LSP, those that are hidden."""
    flags = np.arange(14) % 2
    joints = np.stack([np.linspace(10, 40, 14), np.linspace(50, 20, 14), flags])
    imported = person("lsp", joints)
    assert imported.labelled.all()
    assert imported.occluded.tolist() == flags.astype(bool).tolist()
    values = [row(0, occluded=hidden) for hidden in ([False] * 14, imported.occluded.tolist())]
    seen, hidden = (decode_sample(value) for value in values)
    for i in range(10):
        crops = [training_crop(one, LSP, SIZE, 1.6, Augmentation(), (i,)) for one in (seen, hidden)]
        np.testing.assert_array_equal(crops[0].keypoints, crops[1].keypoints)
        np.testing.assert_array_equal(crops[0].labelled, crops[1].labelled)


def test_b3_nothing_changes_the_stored_sample(sample, hands):
    """It moved the stored labels, so that a second epoch learned from other ones."""
    before = copy.deepcopy(sample)
    for field in fields(Sample):
        getattr(sample, field.name).setflags(write=False)
    epochs = [
        [training_crop(sample, hands, SIZE, 1.25, Augmentation(), (0, i)) for i in range(20)]
        for _ in range(2)
    ]
    for field in fields(Sample):
        now, then = getattr(sample, field.name), getattr(before, field.name)
        assert (now.shape, now.tobytes()) == (then.shape, then.tobytes()), field.name
        for first, second in zip(*epochs, strict=True):
            one, two = getattr(first, field.name), getattr(second, field.name)
            assert one.tobytes() == two.tobytes(), field.name
            assert not np.shares_memory(one, now), field.name


@pytest.mark.parametrize(
    ("name", "fast", "factor", "weights"),
    [
        # Stage 1 of the paper's net: five times; 4 convolutions of its trunk and 3 of its head.
        ("cpm", ("first.", "stages.0."), 5, 7),
        # Refinement of the VGG net: four times; seven convolutions in each of five stages.
        ("cpm-vgg", tuple(f"stages.{t}." for t in (1, 2, 3, 4, 5)), 4, 35),
    ],
)
def test_b4_rates_by_layer_are_the_releases(name, fast, factor, weights):
    """It matched layers by names that no layer had, and decayed biases.

    lr_mult and decay_mult of the release's prototxts; base_lr and weight_decay of genProto.py.
    """
    with torch.device("meta"):
        model = Cpm(preset(name))
    groups = parameter_groups(model, RECIPES[name])
    places = [id(p) for group in groups for p in group["params"]]
    assert sorted(places) == sorted(id(p) for p in model.parameters()), "each exactly once"
    of = {id(p): group for group in groups for p in group["params"]}
    for parameter_name, parameter in model.named_parameters():
        is_bias = parameter_name.endswith(".bias")
        expected = 8e-5 * (factor if parameter_name.startswith(fast) else 1) * (2 if is_bias else 1)
        group = of[id(parameter)]
        assert group["lr"] == pytest.approx(expected), parameter_name
        assert group["weight_decay"] == (0 if is_bias else 5e-4), parameter_name
    quick = [n for n, _ in model.named_parameters() if n.startswith(fast)]
    assert len(quick) == 2 * weights
    optimizer = Fit(model, RECIPES[name], 10).optimizer
    assert isinstance(optimizer, torch.optim.SGD)
    rates = {(g["lr"], g["weight_decay"], g["momentum"]) for g in optimizer.param_groups}
    assert rates == {(g["lr"], g["weight_decay"], 0.9) for g in groups}


def spread(maps):
    """Sigma in pixels of a Gaussian on cells of 8 px, from its logarithm's second difference."""
    peak = int(maps.argmax())
    column, line = peak % maps.shape[1], maps[peak // maps.shape[1]].double().log()
    bend = 2 * line[column] - line[column - 1] - line[column + 1]
    return math.sqrt(64 / float(bend))


@pytest.mark.parametrize("name", ["cpm", "cpm-vgg"])
def test_b5_sigmas_are_the_papers(name):
    """7 px for joints and 21 px for the centre, at 368 px; it had 24 px for both."""
    config = preset(name, stages=2)
    crops = torch.zeros(1, 368, 368, 3, dtype=torch.uint8)
    points = torch.full((1, 14, 2), 180.0)
    _, labels = learning(Batch(crops, points, torch.ones(1, 14, dtype=torch.bool)), config)
    assert spread(labels[0, 0, 0]) == pytest.approx(7, abs=0.01)
    assert spread(labels[1, 0, 13]) == pytest.approx(7, abs=0.01)
    # The mean over 9 px widens it: variances add up, (81 - 1) / 12 px^2 for the nine pixels.
    centre = Cpm(config).centre[0, 0]
    assert centre.shape == (46, 46)
    assert spread(centre) == pytest.approx(math.sqrt(21**2 + 80 / 12), abs=0.1)
    assert {RECIPES[name].sigma_at(share) for share in (0, 0.5, 1)} == {1.0}


STANDING = np.array([[100.0, 50], [100, 350], [140, 200]])
"""40 px wide and 300 px high."""


@pytest.mark.parametrize(
    ("points", "what"),
    [
        (STANDING, "standing"),
        (STANDING[:, ::-1], "lying: it took the height only, and magnified the person"),
        (STANDING @ np.array([[0.8, 0.6], [-0.6, 0.8]]) * 1.2, "leaning"),
    ],
)
@pytest.mark.parametrize("name", ["cpm", "cpm-vgg", "cpm-lite"])
def test_b6_scale_is_of_the_longer_side(hands, points, what, name):
    """The person's longer side is the same share of the crop however the person lies."""
    factor = RECIPES[name].box_factor
    image = np.zeros((400, 400, 3), np.uint8)
    sample = Sample(image, box_of_points(points), points, np.ones(3, bool))
    crop = training_crop(sample, hands, 368, factor, NONE, (0,))
    assert crop.labelled.all()
    extent = np.ptp(crop.keypoints, axis=0).max()
    # A box covers the outermost pixels, too: 301 px for joints 300 px apart.
    assert extent == pytest.approx(368 / factor, rel=0.006), what


def test_b6_unlabelled_joints_do_not_count():
    """Neither for the box nor for its middle."""
    points = np.column_stack([np.linspace(10, 40, 14), np.linspace(50, 90, 14)])
    labelled = np.arange(14) < 12
    points[12:] = [[0, 0], [5000, np.nan]]
    box = JointMap(LSP.keypoints, LSP)(Person(points, labelled)).box
    np.testing.assert_allclose(box, box_of_points(points[:12]))


def test_b6_one_labelled_joint_is_enough(hands):
    """It took the maximum of nothing where no joint had passed its filter."""
    points = np.zeros((14, 2))
    points[4] = 20, 30
    box = np.array([10.0, 10, 30, 50])
    only = JointMap(LSP.keypoints, LSP)(Person(points, np.arange(14) == 4, box=box))
    image = np.zeros((60, 60, 3), np.uint8)
    sample = Sample(image, only.box, only.points, only.labelled)
    for i in range(10):
        crop = training_crop(sample, LSP, SIZE, 1.25, Augmentation(), (i,))
        assert crop.labelled.sum() == 1
    for labelled in (np.zeros(14, bool), np.arange(14) == 4):
        unknown = JointMap(LSP.keypoints, LSP)(Person(points, labelled))
        assert unknown.box is None, "the importer leaves out whoever has no size"


@pytest.mark.parametrize("shape", [(300, 100), (100, 300), (200, 200)])
def test_b7_validation_sees_what_training_sees(hands, shape):
    """It squashed whole pictures into a square. Now: the training crop without augmentation."""
    height, width = shape
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    points = np.array([[20.0, 30], [60, 30], [20, 70]])
    sample = Sample(image, np.array([15.0, 25, 50, 50]), points, np.ones(3, bool))
    plain = training_crop(sample, hands, SIZE, 1.25, NONE, (0,))
    right, down = plain.keypoints[1] - plain.keypoints[0], plain.keypoints[2] - plain.keypoints[0]
    scale = SIZE / (1.25 * 50)
    np.testing.assert_allclose([right, down], [[40 * scale, 0], [0, 40 * scale]], atol=1e-9)
    # The same pixels as those that annotating cuts, and the middle of the range of training crops.
    cut = Cropper(SIZE, 1.25).cut(image, sample.box[None])[0, 0]
    np.testing.assert_array_equal(cut, plain.image)
    turned = (training_crop(sample, hands, SIZE, 1.25, TURN, (i,)).keypoints for i in range(5))
    lengths = [np.linalg.norm(points[1] - points[0]) for points in turned]
    np.testing.assert_allclose(lengths, 40 * scale)


def test_b7_validation_batches_are_plain_crops(tmp_path, monkeypatch):
    """What the loop is fed with on the tuning split, at the size of the epoch."""
    rows = [row(i, "tune" if i % 3 == 0 else "train") for i in range(12)]
    samples = write_table(tmp_path / "samples.parquet", rows)
    worker = FakeRay(tmp_path).install(monkeypatch).loop(samples)
    (batch,) = worker.feed.tune(SIZE)
    factor = worker.recipe.box_factor
    for place, value in enumerate(rows[::3]):
        sample = decode_sample(value)
        cut = Cropper(SIZE, factor).cut(sample.image, sample.box[None])[0, 0]
        np.testing.assert_array_equal(batch.crops[place].numpy(), cut)
        points = transform(sample.keypoints, crop_matrix(sample.box, SIZE, factor))
        np.testing.assert_allclose(batch.keypoints[place].numpy(), points, atol=1e-3)


@pytest.mark.parametrize(
    "box",
    [
        [1000.0, 10, 50, 50],  # right of the picture
        [-900.0, 10, 50, 50],  # left of it
        [10.0, 5000, 400, 50],  # below, and shrunk
        [-1e6, -1e6, 2.0, 1e3],  # far away
    ],
)
@pytest.mark.parametrize("options", [NONE, replace(TURN, flip=True)])
def test_b8_a_window_that_misses_the_picture_is_grey(sample, hands, box, options):
    """It raised ValueError."""
    away = replace(sample, box=np.array(box))
    crop = training_crop(away, hands, SIZE, 1.25, options, (1,))
    assert (crop.image == 128).all()
    assert not inside(crop.keypoints, SIZE, SIZE).any()
    _, labels = learning(as_batch(crop))
    joints, background = labels[:, :, :-1], labels[:, :, -1]
    assert (joints == 0).all(), "everybody is known to be elsewhere: empty, as in the release"
    assert (background == 1).all()


def test_b9_selection_uses_the_tuning_split_only(tmp_path, monkeypatch):
    """It chose the best weights on pictures of which half were trained on."""
    splits = ["train", "train", "tune", "test", "val", "train"] * 4
    rows = [row(i, split) for i, split in enumerate(splits)]
    samples = write_table(tmp_path / "samples.parquet", rows)
    place = {name: [i for i, s in enumerate(splits) if s == name] for name in set(splits)}
    table = SampleTable(samples)
    assert {name: table.rows(name).tolist() for name in place} == place
    ray = FakeRay(tmp_path).install(monkeypatch)
    ray.loop(samples).run()
    read = {"train": [], "tune": []}
    for step in ray.data_steps:
        read["tune" if set(step.rows) <= set(place["tune"]) else "train"] += step.rows
    epochs = 2
    assert sorted(read["train"]) == sorted(place["train"] * epochs)
    assert sorted(read["tune"]) == sorted(place["tune"] * epochs)


class Watched(Cpm):
    """Remembers how it was called, and what it said."""

    calls: tuple

    def forward(self, images):
        maps = super().forward(images)
        self.calls = (*getattr(self, "calls", ()), (self.training, torch.is_grad_enabled(), maps))
        return maps


def test_b10_measuring_leaves_no_graph(figures):
    """It validated every 50 steps, in training mode, with gradients."""
    model = Watched(preset("cpm", stages=2, input_size=32)).train()
    small = replace(figures, crops=figures.crops[:, ::2, ::2], keypoints=figures.keypoints / 2)
    results = [stage_pck(model, LSP, [small], bf16=False) for _ in range(2)]
    assert torch.is_grad_enabled()
    assert [(training, grads) for training, grads, _ in model.calls] == [(False, False)] * 2
    (*_, first), (*_, second) = model.calls
    for one, two in zip(first, second, strict=True):
        assert one.grad_fn is None
        assert torch.equal(one, two), "no dropout"
    assert all(p.grad is None for p in model.parameters())
    assert [pck.total for pck in results[0]] == [pck.total for pck in results[1]]


def test_b10_measuring_happens_once_per_epoch(tmp_path, monkeypatch):
    """However many steps an epoch has, and however often the workers talk."""
    rows = [row(i, "tune" if i < 4 else "train") for i in range(24)]
    ray = FakeRay(tmp_path).install(monkeypatch)
    ray.loop(write_table(tmp_path / "samples.parquet", rows)).run()
    assert [r["step"] for r in ray.board.of("progress")] == list(range(1, 11))
    assert [r["step"] for r in ray.board.of("epoch")] == [5, 10]
    tuned = [step for step in ray.data_steps if set(step.rows) <= set(range(4))]
    assert len(tuned) == 2


def test_b11_a_checkpoint_holds_all_that_a_run_needs(tmp_path, monkeypatch):
    """It kept weights only, at every step."""
    rows = [row(i, "tune" if i < 4 else "train") for i in range(12)]
    ray = FakeRay(tmp_path).install(monkeypatch)
    worker = ray.loop(write_table(tmp_path / "samples.parquet", rows))
    worker.run()
    assert ray.reported_steps == [2, 4], "at the end of an epoch, not at every step"
    state = read_state(ray.checkpoint)
    assert set(state) == {"model", "ema", "optimizer", "step_number", "best"}
    assert state["step_number"] == 4
    assert set(state["best"]) == {"pck", "epoch", "size", "by_stage", "weights"}
    parameters = sum(p.numel() for p in worker.fit.model.parameters())
    moments = [one["exp_avg"].numel() for one in state["optimizer"]["state"].values()]
    assert sum(moments) == parameters
    for name, model in (("model", worker.fit.model), ("ema", worker.fit.ema)):
        for key, value in model.state_dict().items():
            assert torch.equal(state[name][key], value), (name, key)


def paper_fit(rank=0, seed=3):
    """The paper's net, which has dropout, on the smallest crops; the same first weights."""
    torch.manual_seed(0)
    changes = {"learning_rate": 1e-7, "ema_decay": 0.9, "bf16": False, "seed": seed}
    recipe = replace(RECIPES["cpm"], phases=(Phase(0, 32),), **changes)
    model = Cpm(preset("cpm", stages=2, input_size=32))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    return Fit(model, recipe, 6, rank=rank)


@pytest.fixture
def tiny(figures):
    """Two figures of 32 px."""
    return Batch(figures.crops[:2, ::2, ::2], figures.keypoints[:2] / 2, figures.labelled[:2])


def test_b11_a_resumed_run_is_the_same_run(tiny):
    """To the last bit: momentum, averages, the schedule's place, and dropout."""
    straight = paper_fit()
    losses = [straight.step(tiny) for _ in range(4)]
    first = paper_fit()
    for _ in range(2):
        first.step(tiny)
    state = copy.deepcopy(first.state_dict())
    torch.manual_seed(999)
    torch.rand(7)
    resumed = paper_fit()
    resumed.load_state_dict(state)
    assert torch.isfinite(torch.stack(losses)).all()
    assert [torch.equal(resumed.step(tiny), loss) for loss in losses[2:]] == [True, True]
    for name in ("model", "ema"):
        for key, value in straight.state_dict()[name].items():
            assert torch.equal(value, resumed.state_dict()[name][key]), (name, key)
    theirs, ours = (fit.state_dict()["optimizer"]["state"] for fit in (straight, resumed))
    for key, value in theirs.items():
        assert torch.equal(value["momentum_buffer"], ours[key]["momentum_buffer"])


@pytest.mark.parametrize(
    ("changes", "step", "same"),
    [
        ({}, 0, True),  # whatever else drew random numbers
        ({"seed": 4}, 0, False),
        ({"rank": 1}, 0, False),  # two workers do not drop the same
        ({}, 1, False),
    ],
)
def test_b11_dropout_depends_on_seed_step_and_rank_only(tiny, changes, step, same):
    """The losses of the same weights tell what was dropped."""
    reference = paper_fit().gradients(tiny)
    other = paper_fit(**changes)
    other.step_number = step
    torch.manual_seed(12345)
    assert torch.equal(other.gradients(tiny), reference) is same


def test_b12_stage_1_learns_everybody_and_later_stages_the_one_meant(sample, hands):
    """It taught stage 1, which cannot know who is meant, that the others are background."""
    crop = training_crop(sample, hands, SIZE, 2.5, NONE, (0,))
    assert crop.labelled.all()
    assert crop.others_labelled.sum() == 4
    alone = replace(crop, others=crop.others[:0], others_labelled=crop.others_labelled[:0])
    losses, labels = learning(as_batch(crop))
    losses_alone, labels_alone = learning(as_batch(alone))
    assert torch.equal(labels[1], labels_alone[1]), "later stages: the person in the middle"
    assert torch.equal(labels[1], labels_alone[0])
    assert not torch.equal(losses[0], losses_alone[0])
    assert torch.equal(losses_alone[0], losses_alone[1])
    assert torch.equal(losses[1], losses_alone[1])
    sigma = preset("cpm-lite").label_sigma
    one = as_batch(crop)
    single = [
        belief_maps(points, seen, SIZE // 8, sigma)[0, :-1]
        for points, seen in (
            (one.keypoints, one.labelled),
            *((one.others[:, p], one.others_labelled[:, p]) for p in (0, 1)),
        )
    ]
    total = torch.stack(single).sum(dim=0)
    assert total.max() > 1, "peaks of two people overlap"
    torch.testing.assert_close(labels[0, 0, :-1], total.clamp(max=1))
    torch.testing.assert_close(labels[0, 0, -1], 1 - total.clamp(max=1).amax(dim=0))


def test_b12_others_move_with_the_crop(sample, hands):
    """Scaled, turned and mirrored as the person is, their left and right swapped, too."""
    for i in range(10):
        crop = training_crop(sample, hands, SIZE, 2.5, Augmentation(), (i,))
        # Seen as the person in the middle, an other must come out the same.
        for p in range(2):
            swapped = replace(
                sample, keypoints=sample.others[p], labelled=sample.others_labelled[p]
            )
            alone = training_crop(swapped, hands, SIZE, 2.5, Augmentation(), (i,))
            np.testing.assert_array_equal(crop.others[p], alone.keypoints)
            np.testing.assert_array_equal(crop.others_labelled[p], alone.labelled)
        assert (inside(crop.others, SIZE, SIZE) | ~crop.others_labelled).all()
