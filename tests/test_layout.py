"""How CPUs and GPUs are shared out, and what is refused before it starts."""

from __future__ import annotations

import pytest

from pipeline.cluster import check_placement, layout
from pipeline.config import AnnotateSettings
from pipeline.errors import PosemillError


def settings(**values: object) -> AnnotateSettings:
    """Settings with the required ones filled in."""
    return AnnotateSettings.build({"input": ["in"], "output": "out", **values})


@pytest.mark.parametrize(
    ("cpus", "gpus", "smallest_node", "estimators"),
    [
        (1, 0, 1, 1),  # the smallest machine
        (2, 0, 2, 1),  # a laptop
        (64, 0, 16, 8),  # a CPU cluster: one estimator per eight CPUs
        (8, 1, 8, 1),  # one GPU
        (2, 1, 2, 1),  # a GPU with hardly any CPU
        (256, 32, 32, 32),  # a GPU cluster
    ],
)
def test_everything_fits_and_nothing_starves(
    cpus: float, gpus: float, smallest_node: float, estimators: int
) -> None:
    """One estimator per GPU or per eight CPUs, and the sum of all actors fits."""
    chosen = layout(settings(), cpus, gpus, smallest_node)
    assert chosen.estimate.actors == estimators
    assert sum(o.actors * o.cpus for o in chosen.operators) <= cpus
    assert sum(o.actors * o.gpus for o in chosen.operators) <= gpus


def test_smallest_graph_needs_less_than_a_cpu() -> None:
    """So that one CPU is enough and Ray has a bit to spare."""
    chosen = layout(settings(), 1, 0, 1)
    assert sum(o.cpus for o in chosen.operators) == pytest.approx(0.9)


def test_settings_win() -> None:
    """Explicit numbers are taken as they are."""
    chosen = layout(settings(estimators=3, preparers=2, decoders=5, threads=7), 16, 0, 16)
    assert (chosen.estimate.actors, chosen.prepare.actors) == (3, 2)
    assert (chosen.decoders, chosen.threads) == (5, 7)


@pytest.mark.parametrize(
    ("nodes", "missing"),
    [
        ([{"CPU": 8.0}], "1 GPU"),  # --device cuda without a GPU
        ([{"GPU": 1.0, "CPU": 0.05}, {"CPU": 8.0}], "1 GPU"),  # a GPU whose node has no CPU left
        ([{"GPU": 1.0, "CPU": 1.0}, {"CPU": 1.0}], "prepare"),  # no node for a preparer
    ],
)
def test_what_cannot_be_placed_is_refused(nodes: list[dict[str, float]], missing: str) -> None:
    """The message says what is missing and what there is."""
    chosen = layout(settings(device="cuda"), 16, 1, 16)
    with pytest.raises(PosemillError, match=missing) as refused:
        check_placement(chosen, nodes)
    assert f"on {len(nodes)} nodes" in str(refused.value)
