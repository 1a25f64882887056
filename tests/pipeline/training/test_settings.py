"""What `posemill train` is told, and the recipe that comes of it."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from cpm_core.augment import Augmentation
from cpm_core.recipe import RECIPES, Phase, Recipe
from pipeline.errors import UsageError
from pipeline.training.settings import TrainSettings

NEEDED = ["--samples", "a.parquet", "--output", "runs", "--name", "n"]


def parse(*words: str) -> TrainSettings:
    return TrainSettings.parse([*NEEDED, *words], "posemill train", {})


@pytest.mark.parametrize("name", RECIPES)
def test_without_more_it_is_the_presets_recipe(name: str) -> None:
    """The release's for its nets."""
    assert parse("--preset", name).recipe() == RECIPES[name]


def test_the_releases_recipe() -> None:
    """genProto.py; epochs are ours: the release counts iterations."""
    recipe = parse("--preset", "cpm").recipe()
    assert (recipe.optimizer, recipe.learning_rate, recipe.weight_decay) == ("sgd", 8e-5, 5e-4)
    assert (recipe.batch_size, recipe.loss, recipe.schedule) == (16, "squared", "step")
    assert recipe.phases == (Phase(0.0, 368),)
    assert recipe.augmentation.scale == (0.7, 1.3)
    assert recipe.augmentation.rotation_degrees == 40
    # Rates fall to a third after 136,106 of 600,000 iterations.
    assert recipe.rate_at(136_105, 136_105 / 600_000) == 1
    assert recipe.rate_at(136_107, 136_107 / 600_000) == pytest.approx(0.333)
    assert recipe.rate_at(599_999, 599_999 / 600_000) == pytest.approx(0.333**4)


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        (["--epochs", "3"], {"epochs": 3}),
        (["--batch-size", "7"], {"batch_size": 7}),
        (["--phases", "0:64", ".5:96"], {"phases": (Phase(0, 64), Phase(0.5, 96))}),
        (["--loss", "squared"], {"loss": "squared"}),
        (["--no-intermediate"], {"intermediate": False}),
        (["--optimizer", "sgd"], {"optimizer": "sgd"}),
        (["--learning-rate", "0.1"], {"learning_rate": 0.1}),
        (["--trunk-learning-rate", "0.2"], {"trunk_learning_rate": 0.2}),
        (["--weight-decay", "0"], {"weight_decay": 0.0}),
        (["--schedule", "constant"], {"schedule": "constant"}),
        (["--warmup-steps", "0"], {"warmup_steps": 0}),
        (["--clip-norm", "0"], {"clip_norm": 0.0}),
        (["--ema-decay", "0"], {"ema_decay": 0.0}),
        (["--freeze-blocks", "0"], {"freeze_blocks": 0}),
        (["--label-sigma", "1.5", "1"], {"first_sigma": 1.5, "last_sigma": 1.0}),
        (["--freeze-batch-norm"], {"freeze_batch_norm": True}),
        (["--precision", "fp32"], {"bf16": False}),
        (["--box-factor", "2"], {"box_factor": 2.0}),
        (["--seed", "9"], {"seed": 9}),
        (["--augment-part", "0.2"], {"augmentation": Augmentation(part=0.2)}),
        (["--augment-erase", "0.5"], {"augmentation": Augmentation(erase=0.5)}),
        (["--augment-scale", "1", "1"], {"augmentation": Augmentation(scale=(1, 1))}),
        (["--augment-rotation", "0"], {"augmentation": Augmentation(rotation_degrees=0)}),
        (["--augment-shift", "0"], {"augmentation": Augmentation(shift=0)}),
        (["--no-augment-flip"], {"augmentation": Augmentation(flip=False)}),
        (
            ["--augment-color", "0"],
            {"augmentation": Augmentation(brightness=0, contrast=0, color=0)},
        ),
        (
            ["--augment-color", "2"],
            {"augmentation": Augmentation(brightness=0.4, contrast=0.4, color=0.2)},
        ),
    ],
)
@pytest.mark.parametrize("name", ["cpm-lite", "cpm"])
def test_a_setting_changes_its_part_of_the_recipe(
    name: str, words: list[str], changes: dict[str, Any]
) -> None:
    """And no other; 0 is a value, not `as the preset`."""
    assert parse("--preset", name, *words).recipe() == replace(RECIPES[name], **changes)


def test_a_teacher_s_weight() -> None:
    teacher = ["--preset", "cpm-lite", "--teacher", "a.onnx", "--teacher-tensor", "f"]
    assert parse(*teacher).recipe() == replace(RECIPES["cpm-lite"], teacher_weight=3.0)
    assert parse(*teacher, "--teacher-weight", ".5").recipe().teacher_weight == 0.5


def test_every_part_of_the_recipe_can_be_set_or_comes_with_the_preset() -> None:
    """A new field must be put on one of these lists."""
    preset_only = {"step_every", "step_gamma"}
    by_another_name = {"bf16", "augmentation", "first_sigma", "last_sigma"}
    settable = set(TrainSettings.model_fields)
    assert {f.name for f in fields(Recipe)} - settable == preset_only | by_another_name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--phases", "128"], "--phases .*: expected SHARE:PIXELS"),
        (["--phases", "0:128", "half:256"], "--phases .*: expected SHARE:PIXELS"),
        (["--phases", "0:128", "1:256"], "--phases .*: expected SHARE:PIXELS"),
        (["--phases", "0:128", "nan:256"], "--phases .*: expected SHARE:PIXELS"),
        (["--phases", "0:12.5"], "--phases .*: expected SHARE:PIXELS"),
        (["--phases", "0:"], "--phases .*: expected SHARE:PIXELS"),
        (["--phases", "0.1:128"], "--phases .*: the first phase starts at 0"),
        (["--phases", "0:128", "0.6:256", "0.3:192"], "each later than the one before"),
        (["--phases", "0:128", "0:256"], "each later than the one before"),
        (["--phases", "0:128", "0.5:200"], "--phases 0.5:200: input_size is 200; it must be a mul"),
        (["--phases", "0:0"], "--phases 0:0: input_size is 0"),
        (["--preset", "cpm", "--phases", "0:100"], "--phases 0:100: .* multiple of 8"),
        (["--workers", "0"], "--workers .*: expected at least one worker"),
        (["--workers", "4-2"], "--workers .*: expected at least one worker, and no more than"),
        (["--workers", "two"], "--workers .*: expected a number, or least-most such as 1-4"),
        (["--workers", "1-"], "--workers .*: expected a number, or least-most such as 1-4"),
        (["--workers=-4"], "--workers .*: expected a number, or least-most such as 1-4"),
        (["--workers", "1.5"], "--workers .*: expected a number, or least-most such as 1-4"),
        (["--batch-size", "3", "--workers", "1-4"], "--batch-size 3 is less than one sample per"),
        (["--workers", "33"], "--batch-size 32 is less than one sample per worker"),
        (["--preset", "cpm", "--workers", "17"], "--batch-size 16 is less than one sample per"),
        (["--augment-scale", "1"], "--augment-scale .*: expected two magnifications"),
        (["--augment-scale", "1.3", "0.7"], "--augment-scale .*: expected two magnifications"),
        (["--augment-scale", "0", "1"], "--augment-scale .*: expected two magnifications"),
        (["--augment-scale", "1", "11"], "--augment-scale .*: expected two magnifications"),
        (["--teacher", "a.onnx"], "--teacher and --teacher-tensor go together"),
        (["--teacher-tensor", "f"], "--teacher and --teacher-tensor go together"),
        (["--teacher-weight", "2"], "--teacher-weight goes with --teacher"),
        (
            ["--preset", "cpm", "--teacher", "a.onnx", "--teacher-tensor", "f"],
            "--teacher goes with --optimizer adamw",
        ),
        (["--label-sigma", "1"], "--label-sigma .*: expected two factors"),
        (["--label-sigma", "2", "0"], "--label-sigma .*: expected two factors"),
        (["--label-sigma", "nan", "1"], "--label-sigma"),
        (["--name", "a/b"], "--name .*: a name, not a path"),
        (["--name", "..", "--epochs", "1"], "--name .*: a name, not a path"),
        (["--name", ""], "--name"),
        (["--epochs", "0"], "--epochs"),
        (["--ema-decay", "1"], "--ema-decay"),
        (["--learning-rate", "0"], "--learning-rate"),
        (["--learning-rate", "nan"], "--learning-rate"),
        (["--loss", "huber"], "--loss"),
        (["--preset", "cpm-mini"], "--preset"),
        (["--stages", "0"], "--stages"),
        (["--lerning-rate", "1"], "did you mean --learning-rate"),
    ],
)
def test_what_is_refused(words: list[str], message: str) -> None:
    """By name, before anything starts."""
    with pytest.raises(UsageError, match=message):
        parse(*words)


@pytest.mark.parametrize("missing", ["--samples", "--output", "--name"])
def test_what_is_needed(missing: str) -> None:
    """Each by its flag."""
    place = NEEDED.index(missing)
    with pytest.raises(UsageError, match=f"{missing} is needed"):
        TrainSettings.parse(NEEDED[:place] + NEEDED[place + 2 :], "posemill train", {})


@pytest.mark.parametrize(
    ("workers", "expected"), [("1", (1, 1)), ("4", (4, 4)), ("1-4", (1, 4)), ("2-2", (2, 2))]
)
def test_workers(workers: str, expected: tuple[int, int]) -> None:
    """A number, or a range that elastic training stays within."""
    assert parse("--workers", workers).worker_range == expected


@pytest.mark.parametrize(
    ("words", "stages"), [([], 3), (["--preset", "cpm"], 6), (["--stages", "1"], 1)]
)
def test_stages(words: list[str], stages: int) -> None:
    """The preset's, or as many as are asked for."""
    assert parse(*words).network(joints=14).stages == stages


def test_every_setting_has_its_kind() -> None:
    """`result` decides the weights, `plan` for how long, `run` where and how it runs."""
    kinds = TrainSettings.kinds()
    run = {name for name, kind in kinds.items() if kind == "run"}
    assert run == {
        *("samples", "output", "name", "preview", "licence"),
        *("workers", "threads", "loaders", "device", "address", "s3_endpoint"),
        *("checkpoint_minutes", "max_failures"),
    }
    assert {name for name, kind in kinds.items() if kind == "plan"} == {"epochs"}
