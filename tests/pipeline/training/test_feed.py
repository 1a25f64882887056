"""Which rows a worker reads in which step, with the loaders in this process."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
import ray
import ray.data

from cpm_core.recipe import Phase
from pipeline.samples import SampleTable
from pipeline.training.feed import Feed, Place
from pipeline.training.loader import Step
from tests.pipeline.training.fake_ray import RECIPE, FakeRay


def steps(
    fake_ray: FakeRay, samples: str, first: int = 0, rank: int = 0, world: int = 1, **changes: Any
) -> list[Step]:
    """What is read from a step on."""
    fake_ray.data_steps.clear()
    feed = Feed(SampleTable(samples), replace(RECIPE, **changes), Place(rank, world, 1), print)
    batches = list(feed.train(first))
    assert len(batches) == len(fake_ray.data_steps) == feed.total_steps - first
    return list(fake_ray.data_steps)


@pytest.mark.parametrize("first", [0, 1, 3, 4, 5, 6])
def test_a_run_goes_on_at_any_step(fake_ray: FakeRay, samples: str, first: int) -> None:
    """With the very rows and sizes that would have come."""
    phases = (Phase(0, 32), Phase(0.5, 64))
    whole = steps(fake_ray, samples, phases=phases)
    assert steps(fake_ray, samples, first, phases=phases) == whole[first:]


def test_every_epoch_has_each_row_once_in_another_order(fake_ray: FakeRay, samples: str) -> None:
    """Twelve rows of the split, three steps of four."""
    read = steps(fake_ray, samples)
    first, second = ([r for s in read[i : i + 3] for r in s.rows] for i in (0, 3))
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second
    assert [s.epoch for s in read] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("world", [2, 3, 4])
def test_workers_share_each_step(fake_ray: FakeRay, samples: str, world: int) -> None:
    """The same rows as one worker would read in it."""
    alone = steps(fake_ray, samples)
    shares = [steps(fake_ray, samples, rank=rank, world=world) for rank in range(world)]
    for one, *parts in zip(alone, *shares, strict=True):
        assert sorted(one.rows) == sorted(r for part in parts for r in part.rows)


@pytest.mark.parametrize("world", [1, 3, 5])
def test_workers_share_the_tuning_split(fake_ray: FakeRay, samples: str, world: int) -> None:
    """Four rows; a worker may have none."""
    table = SampleTable(samples)
    for rank in range(world):
        list(Feed(table, RECIPE, Place(rank, world, 1), print).tune(32))
    assert sorted(r for s in fake_ray.data_steps for r in s.rows) == [12, 13, 14, 15]


def test_ray_is_out_of_reach_here(fake_ray: FakeRay) -> None:
    """What the stand-in lacks fails, rather than run on somebody's cluster."""
    with pytest.raises(AssertionError, match="a test without a cluster"):
        ray.put(3)
    with pytest.raises(AssertionError, match="a test without a cluster"):
        ray.data.from_arrow([pa.table({"x": [1]})]).count()
    assert not ray.is_initialized()
