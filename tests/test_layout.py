"""How CPUs and GPUs are shared out, and what is refused before it starts."""

from __future__ import annotations

import pytest

from pipeline.config import AnnotateSettings
from pipeline.errors import PosemillError
from pipeline.layout import check_placement, layout


def settings(**values: object) -> AnnotateSettings:
    """Settings with the required ones filled in."""
    return AnnotateSettings.build({"input": ["in"], "output": "out", **values})


def node(cpus: float, gpus: float = 0, store: float = 1e10) -> dict[str, float]:
    """Resources of a node, as Ray gives them."""
    return {"CPU": cpus, "object_store_memory": store, **({"GPU": gpus} if gpus else {})}


@pytest.mark.parametrize(
    ("nodes", "estimators", "decoders_in_all"),
    [
        ([node(1)], 1, 1),  # the smallest machine
        ([node(2)], 2, 1),  # a laptop: one estimator per CPU
        ([node(16)] * 4, 64, 16),  # a CPU cluster
        ([node(8, 1)], 1, 8),  # one GPU and all its CPUs decode
        ([node(2, 1)], 1, 2),  # a GPU with hardly any CPU
        ([node(8, 1)] * 16, 16, 128),  # a cluster of small GPU nodes
        ([node(32, 4)] * 8, 32, 256),  # a cluster of large ones
    ],
)
def test_all_actors_fit_on_their_nodes(
    nodes: list[dict[str, float]], estimators: int, decoders_in_all: int
) -> None:
    """Even when Ray starts every preparer before any estimator."""
    chosen = layout(settings(), nodes, light=True)
    assert chosen.estimate.actors == estimators
    assert chosen.prepare.actors * chosen.decoders == decoders_in_all
    free = [dict(n) for n in nodes]
    for operator in chosen.operators:
        for _ in range(operator.actors):
            place = next(
                n
                for n in free
                if n["CPU"] + 1e-6 >= operator.cpus and n.get("GPU", 0) >= operator.gpus
            )
            place["CPU"] -= operator.cpus
            place["GPU"] = place.get("GPU", 0) - operator.gpus


def test_smallest_graph_needs_less_than_a_cpu() -> None:
    """So that one CPU is enough and Ray has a bit to spare."""
    chosen = layout(settings(), [node(1)], light=True)
    assert sum(o.cpus for o in chosen.operators) == pytest.approx(0.9)


@pytest.mark.parametrize("kind", [{}, {"gpus": 1}])
def test_a_node_that_joins_gets_actors_of_the_same_size(kind: dict[str, float]) -> None:
    first = layout(settings(), [node(8, **kind)], light=True)
    later = layout(settings(), [node(8, **kind), node(16, **kind), node(2)], True, first)
    assert later.prepare.cpus == first.prepare.cpus
    assert later.estimate.actors == (2 if kind else 24)
    assert later.prepare.actors == (6 if kind else 3)


def test_a_heavy_network_has_few_actors_with_many_threads() -> None:
    chosen = layout(settings(), [node(16)] * 4, light=False)
    assert (chosen.estimate.actors, chosen.threads) == (8, 8)
    assert chosen.estimate.cpus == pytest.approx(8 * 0.45)


def test_threads_that_are_given_make_fewer_actors() -> None:
    chosen = layout(settings(threads=4), [node(16)], light=True)
    assert (chosen.estimate.actors, chosen.threads) == (4, 4)


def test_a_run_stays_on_the_device_that_it_began_on() -> None:
    """When its only GPU node is gone, no actors for GPUs are made by the rule for CPUs; a GPU that
    joins a run on CPUs changes nothing."""
    on_gpu = layout(settings(), [node(8, 1)], light=True)
    assert layout(settings(), [node(64)], True, on_gpu).estimate.actors == 1
    on_cpu = layout(settings(), [node(8)], light=True)
    assert layout(settings(), [node(8), node(8, 1)], True, on_cpu).device == "cpu"


@pytest.mark.parametrize(("store", "ahead"), [(2e8, 2), (8e8, 5), (1e10, 8)])
def test_what_is_held_ahead_fits_the_object_store(store: float, ahead: int) -> None:
    """Two shards per preparer and three per estimator, where half of the store has room for them;
    two at least."""
    assert layout(settings(), [node(2, store=store)], light=True).shards_ahead == ahead


def test_settings_win() -> None:
    """Explicit numbers are taken as they are."""
    given = settings(estimators=3, preparers=2, decoders=5, threads=7)
    chosen = layout(given, [node(16)], light=True)
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
    chosen = layout(settings(device="cuda"), [node(16, 1)], light=True)
    with pytest.raises(PosemillError, match=missing) as refused:
        check_placement(chosen, nodes)
    assert f"on {len(nodes)} nodes" in str(refused.value)
