"""How CPUs and GPUs are shared out, and what is refused before it starts."""

from __future__ import annotations

import pytest

from pipeline.config import AnnotateSettings
from pipeline.errors import PosemillError
from pipeline.layout import Layout, check_placement, layout


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


ON_GPUS = {"locator_device": "cuda"}


def places(chosen: Layout, nodes: list[dict[str, float]], order: tuple[str, ...]) -> dict[str, int]:
    """How many actors of each operator find a place, in this order, as Ray gives places: a share of
    a GPU comes of the one of which the least is left."""
    free = [(n["CPU"], [1.0] * int(n.get("GPU", 0))) for n in nodes]
    placed = dict.fromkeys(order, 0)
    operators = {operator.name: operator for operator in chosen.operators}
    for name in order:
        operator = operators[name]
        for _ in range(operator.actors):
            for i, (cpus, gpus) in enumerate(free):
                fitting = [g for g in gpus if g + 1e-9 >= operator.gpus]
                if cpus + 1e-9 >= operator.cpus and (fitting or not operator.gpus):
                    if operator.gpus:
                        gpus[gpus.index(min(fitting))] -= operator.gpus
                    free[i] = cpus - operator.cpus, gpus
                    placed[name] += 1
                    break
    return placed


@pytest.mark.parametrize(
    ("nodes", "estimators", "preparers", "decoders", "share"),
    [
        ([node(8, 1)], 1, 1, 12, 0.25),  # one GPU
        ([node(2, 1)], 1, 1, 3, 0.25),  # hardly any CPU
        ([node(32, 1)], 1, 4, 12, 0.0625),  # many CPUs for one GPU
        ([node(32, 4)], 4, 4, 12, 0.25),  # several GPUs
        ([node(64, 4)] * 2, 8, 16, 12, 0.125),
        ([node(26, 1)], 1, 3, 13, 0.0833),  # a share that Ray cannot have exactly
        ([node(8, 1), node(64, 4)], 5, 9, 12, 0.125),  # of two kinds
        ([node(32, 4), node(16)], 4, 4, 12, 0.25),  # a node without a GPU prepares nothing
        ([node(4, 8)], 8, 1, 4, 0.25),  # more GPUs than preparers
        ([node(32, 4), node(1, 1)], 5, 4, 12, 0.25),  # a small node estimates only
        ([node(64, 4), node(3, 1)], 5, 8, 12, 0.125),
    ],
)
def test_preparers_that_locate_share_the_gpus_with_the_estimators(
    nodes: list[dict[str, float]], estimators: int, preparers: int, decoders: int, share: float
) -> None:
    chosen = layout(settings(**ON_GPUS), nodes, light=True)
    assert (chosen.device, chosen.locator_device) == ("cuda", "cuda")
    assert (chosen.estimate.actors, chosen.prepare.actors) == (estimators, preparers)
    assert (chosen.decoders, chosen.prepare.gpus) == (decoders, share)
    assert chosen.estimate.gpus == 0.75
    placed = places(chosen, nodes, ("estimate", "prepare", "commit"))
    assert placed == {o.name: o.actors for o in chosen.operators}
    check_placement(chosen, nodes)
    assert chosen.describe().endswith("people are located on the GPUs")


def test_estimators_have_to_be_placed_first() -> None:
    """This is why `Pool.beside` is: small shares go to one GPU, as long as it has room."""
    nodes = [node(32, 4)]
    chosen = layout(settings(**ON_GPUS), nodes, light=True)
    assert places(chosen, nodes, ("prepare", "estimate"))["estimate"] == 3


@pytest.mark.parametrize("gpus", [0.3, 0.05, 0.95])
def test_the_share_of_the_locator_is_a_setting(gpus: float) -> None:
    chosen = layout(settings(**ON_GPUS, locator_gpus=gpus), [node(8, 1)], light=True)
    assert chosen.prepare.gpus == gpus
    assert chosen.estimate.gpus == pytest.approx(1 - gpus)


@pytest.mark.parametrize("given", [{}, {"device": "cuda"}, {"locator_device": "cpu"}])
def test_decoders_locate_where_nothing_else_is_said(given: dict[str, str]) -> None:
    chosen = layout(settings(**given), [node(8, 1)], light=True)
    assert (chosen.device, chosen.locator_device, chosen.prepare.gpus) == ("cuda", None, 0)
    assert "located" not in chosen.describe()


def test_no_more_estimators_than_find_a_place() -> None:
    """Preparers would wait for them."""
    given = settings(**ON_GPUS, estimators=8)
    assert layout(given, [node(64, 4)], light=True).estimate.actors == 4


def test_late_nodes_get_preparers_that_locate_as_the_first_ones_do() -> None:
    first = layout(settings(**ON_GPUS), [node(16, 1)], light=True)
    assert (first.prepare.actors, first.prepare.gpus) == (2, 0.125)
    nodes = [node(16, 1), node(64, 2), node(64), node(4, 1)]
    later = layout(settings(**ON_GPUS), nodes, True, first)
    assert (later.prepare.cpus, later.prepare.gpus) == (first.prepare.cpus, 0.125)
    # Of the large one no more than its GPUs have shares for, of that without a GPU none.
    assert later.prepare.actors == 2 + 4
    assert (later.estimate.actors, later.estimate.gpus) == (4, 0.75)
    assert later.locator_device == "cuda"
    gone = layout(settings(**ON_GPUS), [node(64)], True, first)
    assert (gone.locator_device, gone.prepare.gpus) == ("cuda", 0.125)


def test_locating_on_gpus_without_one_is_refused() -> None:
    given = settings(locator_device="cuda")
    with pytest.raises(PosemillError, match=r"--locator-device cuda: .*no GPU; add .* leave --loc"):
        layout(given, [node(8)], light=True)
    both = settings(device="cuda", locator_device="cuda")
    chosen = layout(both, [node(8)], light=True)
    with pytest.raises(PosemillError, match=r"0.75 GPU free .* or --locator-device"):
        check_placement(chosen, [node(8)])


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
