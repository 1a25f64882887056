"""What a run asks of a cluster fits on it, whole workers on whole nodes."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import PosemillError
from pipeline.training.resources import Nodes, plan
from pipeline.training.settings import TrainSettings


def settings(**values: Any) -> TrainSettings:
    return TrainSettings.build({"samples": "s", "output": "o", "name": "n", **values})


def cpus(*sizes: float) -> Nodes:
    return [{"CPU": size} for size in sizes]


@pytest.mark.parametrize(
    ("nodes", "workers"),
    [
        (cpus(1), 1),
        (cpus(2), 2),
        (cpus(16, 16), 3),
        (cpus(8, 8, 8), 4),
        (cpus(16, 16, 16), 4),
        (cpus(4, 16), 2),
        (cpus(2, 2), 3),
        (cpus(1), 7),
        ([*cpus(64), {"CPU": 8, "GPU": 1}], 1),
        ([{"CPU": 96, "GPU": 8}, {"CPU": 96, "GPU": 8}], 16),
        ([{"CPU": 8, "GPU": 4}, {"CPU": 64, "GPU": 1}], 5),
        ([{"CPU": 2, "GPU": 4}], 4),
    ],
)
def test_all_workers_fit(nodes: Nodes, workers: int) -> None:
    """Not only by the sum of the CPUs, and with a GPU each where there are enough."""
    resources = plan(settings(workers=str(workers)), nodes, may_grow=False)
    asked = resources.for_ray()
    fitting = [min(node.get(kind, 0) // amount for kind, amount in asked.items()) for node in nodes]
    assert sum(fitting) >= workers
    assert resources.device == ("cuda" if any("GPU" in node for node in nodes) else "cpu")
    assert resources.threads >= 1
    assert resources.loaders >= 1


def test_flags_decide() -> None:
    """Threads, loaders and the device as they were asked for."""
    nodes: Nodes = [{"CPU": 32, "GPU": 2}]
    resources = plan(settings(device="cpu", threads=3, loaders=5), nodes, may_grow=False)
    assert (resources.device, resources.threads, resources.loaders) == ("cpu", 3, 5)
    assert "GPU" not in resources.for_ray()


def test_gpus_that_are_not_there() -> None:
    """Here they will not come; an autoscaler may add them."""
    asked = settings(device="cuda", workers="4")
    with pytest.raises(PosemillError, match="0 GPUs for --workers 4"):
        plan(asked, cpus(8), may_grow=False)
    assert plan(asked, cpus(8), may_grow=True).for_ray()["GPU"] == 1
    assert plan(settings(workers="4"), [{"CPU": 8, "GPU": 1}], may_grow=True).device == "cpu"
