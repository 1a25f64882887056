"""What loaders make of row numbers, and how it travels."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cpm_core.augment import NONE, Augmentation, Sample, training_crop
from cpm_core.teacher import Teacher
from cpm_core.training import Batch
from pipeline.samples import SampleTable, decode_sample
from pipeline.training import loader as module
from pipeline.training.feed import to_batch
from pipeline.training.loader import Loader, Step, collate
from tests.pipeline.training.labelled import LSP, person, row, write_table
from tests.teacher_files import write_teacher

ROWS = [row(i, others=[person(100 + i + p) for p in range(i % 3)]) for i in range(10)]


def loader(path: str, seed: int = 5) -> Loader:
    table = SampleTable(path)
    return Loader(table.files, table.skeleton, 1.25, seed)


def crops(loader: Loader, rows: list[int], size: int = 32, epoch: int = 0) -> Batch:
    return to_batch(loader.load(Step(rows, epoch, size), Augmentation()))


def test_crops_are_the_same_whoever_makes_them(tmp_path: Path) -> None:
    """In other company, in another order, by another process, from a table cut otherwise."""
    path = write_table(tmp_path / "a.parquet", ROWS)
    one = loader(path)
    together = crops(one, list(range(10)))
    module._reader.cache_clear()
    moved = write_table(tmp_path / "b.parquet", ROWS[::-1], group_rows=3)
    for other, rows in (
        (pickle.loads(pickle.dumps(one)), [7, 2, 9]),
        (loader(moved), [9 - 7, 9 - 2, 9 - 9]),
    ):
        few = crops(other, rows)
        for place, number in enumerate((7, 2, 9)):
            assert torch.equal(few.crops[place], together.crops[number])
            assert torch.equal(few.keypoints[place], together.keypoints[number])
            assert torch.equal(few.labelled[place], together.labelled[number])


def test_hints_are_the_teacher_s_of_the_very_crops(tmp_path: Path) -> None:
    """For steps that want them."""
    table = SampleTable(write_table(tmp_path / "a.parquet", ROWS))
    spec = write_teacher(tmp_path)
    taught = Loader(table.files, table.skeleton, 1.25, 5, spec)
    plain = to_batch(taught.load(Step([1, 2], 0, 32), Augmentation()))
    hinted = to_batch(taught.load(Step([1, 2], 0, 32, hinted=True), Augmentation()))
    assert plain.hints is None
    assert hinted.hints is not None
    assert torch.equal(plain.crops, hinted.crops)
    np.testing.assert_array_equal(hinted.hints, Teacher(spec).hints(hinted.crops.numpy()))


@pytest.mark.parametrize(("seed", "epoch", "size"), [(6, 0, 32), (5, 1, 32), (5, 0, 64)])
def test_what_crops_depend_on(tmp_path: Path, seed: int, epoch: int, size: int) -> None:
    """Seed and epoch move every crop; the size does not move it, but scales it."""
    path = write_table(tmp_path / "a.parquet", ROWS)
    one = crops(loader(path), [0, 1, 2])
    other = crops(loader(path, seed=seed), [0, 1, 2], size, epoch)
    # The middle of a crop of side S is (S - 1) / 2.
    expected = (one.keypoints + 0.5) * size / 32 - 0.5
    assert torch.allclose(other.keypoints, expected, atol=1e-3) is (size == 64)
    assert other.crops.shape == (3, size, size, 3)


def test_it_is_the_training_crop_of_the_row(tmp_path: Path) -> None:
    """By the seed (run, epoch, sample)."""
    rows = [row(i, sample_id=40 + i) for i in range(3)]
    batch = crops(loader(write_table(tmp_path / "a.parquet", rows)), [2, 0], epoch=6)
    for place, number in enumerate((2, 0)):
        seed = (5, 6, 40 + number)
        crop = training_crop(decode_sample(rows[number]), LSP, 32, 1.25, Augmentation(), seed)
        np.testing.assert_array_equal(batch.crops[place].numpy(), crop.image)
        # The table holds places as float32.
        np.testing.assert_allclose(batch.keypoints[place].numpy(), crop.keypoints, atol=1e-3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image": b"no picture"}, "cannot be decoded"),
        ({"image": None, "uri": "/nowhere/a.png"}, "/nowhere/a.png: there is no such file"),
        ({"box": [1.0, 1.0, 0.0, 5.0]}, "positive w, h"),
    ],
)
@pytest.mark.parametrize("people", [0, 2])
def test_a_bad_sample_is_grey_and_named(
    tmp_path: Path, values: dict[str, Any], message: str, people: int
) -> None:
    """It keeps its place in the batch, so that the others keep theirs."""
    others = [person(50 + p) for p in range(people)]
    rows = [row(0, others=others), row(1, others=others, **values), row(2)]
    loaded = loader(write_table(tmp_path / "a.parquet", rows)).load(Step([0, 1, 2], 0, 32), NONE)
    (problem,) = loaded.failed
    assert problem.startswith("sample figure-1.png: ")
    assert message in problem
    batch = to_batch(loaded)
    assert (batch.crops[1] == 128).all()
    assert batch.labelled.any(dim=1).tolist() == [True, False, True]
    if people:
        assert batch.others_labelled is not None
        assert batch.others_labelled.any(dim=2).sum(dim=1).tolist() == [2, 0, 0]


def test_only_bad_samples(tmp_path: Path) -> None:
    """A batch all the same."""
    rows = [row(i, image=b"x") for i in range(3)]
    batch = crops(loader(write_table(tmp_path / "a.parquet", rows)), [0, 1, 2])
    assert (batch.crops == 128).all()
    assert not batch.labelled.any()
    assert batch.others is None


@pytest.mark.parametrize("people", [(0,), (0, 0), (2, 0, 1), (3,), (0, 1), (1, 1)])
def test_what_is_packed_comes_out_again(people: tuple[int, ...]) -> None:
    """Other people are filled up with people without labels."""
    rng = np.random.default_rng(0)
    samples = [
        Sample(
            rng.integers(0, 255, (8, 8, 3), np.uint8),
            np.array([0.0, 0, 8, 8]),
            rng.normal(size=(5, 2)),
            rng.random(5) < 0.5,
            rng.normal(size=(count, 5, 2)),
            rng.random((count, 5)) < 0.5,
        )
        for count in people
    ]
    collated = collate(samples, ["a problem"])
    assert collated.failed == ["a problem"]
    batch = to_batch(collated)
    assert batch.crops.dtype == torch.uint8
    assert batch.keypoints.dtype == torch.float32
    assert batch.labelled.dtype == torch.bool
    for place, sample in enumerate(samples):
        np.testing.assert_array_equal(batch.crops[place].numpy(), sample.image)
        np.testing.assert_allclose(batch.keypoints[place].numpy(), sample.keypoints, rtol=1e-6)
        np.testing.assert_array_equal(batch.labelled[place].numpy(), sample.labelled)
    if not max(people):
        assert batch.others is None
        assert batch.others_labelled is None
        return
    assert batch.others is not None
    assert batch.others_labelled is not None
    assert batch.others.shape == (len(people), max(people), 5, 2)
    for place, (sample, count) in enumerate(zip(samples, people, strict=True)):
        others, seen = batch.others[place].numpy(), batch.others_labelled[place].numpy()
        np.testing.assert_allclose(others[:count], sample.others, rtol=1e-6)
        np.testing.assert_array_equal(seen[:count], sample.others_labelled)
        assert not seen[count:].any()


def test_what_comes_out_may_be_written_to() -> None:
    """An array of the object store may not, which torch would only warn of."""
    plain = Sample(np.zeros((4, 4, 3), np.uint8), np.zeros(4), np.zeros((2, 2)), np.ones(2, bool))
    collated = collate([plain], [])
    collated.crops.flags.writeable = False
    batch = to_batch(collated)
    for tensor in (batch.crops, batch.keypoints, batch.labelled):
        tensor.zero_()
