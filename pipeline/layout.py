"""Who runs where: the CPUs and GPUs of the nodes, shared out among the stages.

Every operator states its CPUs, and the smallest layout adds up to 0.9 CPU, so that one CPU is
enough and nothing can starve anything else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pipeline.config import AnnotateSettings
from pipeline.errors import PosemillError
from pipeline.plan import CROP_BYTES_PER_SHARD

_COMMIT_CPUS = 0.1
_ESTIMATE_CPUS = 0.1
"""Of an estimator on a GPU."""

_COMMITS_AT_ONCE = 4
"""Of one actor, which mostly waits for the storage."""

_ESTIMATES_AT_ONCE = 2
"""Of one actor: while the device is at one shard, the rows of the other are made or sent."""

_CPU_ESTIMATORS_PER_COMMIT = 16
_CPUS_PER_GROUP = 8
_CPUS_PER_GPU_PREPARER = 4
_CPUS_PER_LOCATING_PREPARER = 8
"""Larger, since each has a context of its own on the GPU, which takes memory, and many decoders
make full batches."""
_LOCATED_DECODERS_PER_CPU = 1.5
"""Decoders that wait for the GPU leave their CPU to others."""
_SHARES = 10_000
"""Into so many does Ray cut a GPU."""


@dataclass(frozen=True)
class Operator:
    """How many actors a stage has, and what each of them takes and does at once."""

    name: str
    actors: int
    cpus: float
    gpus: float = 0.0
    at_once: int = 1


@dataclass(frozen=True)
class Layout:
    """Who runs where. `decoders` per prepare actor, `threads` per estimate actor."""

    prepare: Operator
    estimate: Operator
    commit: Operator
    decoders: int
    threads: int
    device: str
    shards_ahead: int = 2
    """Shards whose crops may be held, or be in the making, at a time."""
    group: float = 1.0
    """CPUs that share a preparer."""
    locator_device: str | None = None
    """Where preparers find people for their decoders; None: each decoder does it, on the CPU."""

    @property
    def operators(self) -> tuple[Operator, ...]:
        """In the order of the stages."""
        return self.prepare, self.estimate, self.commit

    def describe(self) -> str:
        """One line for people."""
        actors = ", ".join(
            f"{o.actors} {o.name} ({o.cpus:g} CPU{f', {o.gpus:g} GPU' if o.gpus else ''})"
            for o in self.operators
        )
        return f"{actors}; people are located on the GPUs" if self.locator_device else actors


def layout(
    settings: AnnotateSettings,
    nodes: list[dict[str, float]],
    light: bool,
    like: Layout | None = None,
) -> Layout:
    """Share out the nodes' CPUs and GPUs so that all actors of all operators fit on them.

    On CPUs a `light` network runs in as many actors as there are CPUs, a thread each: threads that
    share a picture wait for one another, which costs half of the speed where others work, too. A
    heavy one has an actor for all CPUs of a group, as its memory counts. The actors are as large as
    those of `like`, if it is given: a layout for fewer nodes, or for more.

    Raises PosemillError for people that shall be located on GPUs where there are none.
    """
    gpus = sum(node.get("GPU", 0) for node in nodes)
    on_gpus = settings.device == "cuda" or (settings.device == "auto" and gpus >= 1)
    if on_gpus if like is None else like.estimate.gpus:
        locates = settings.locator_device == "cuda" if like is None else like.prepare.gpus > 0
        if locates:
            chosen = _layout_with_locators(settings, nodes, like)
        else:
            chosen = _layout_on_gpus(settings, nodes, int(gpus), like)
    else:
        if settings.locator_device == "cuda" and like is None:
            raise PosemillError(
                "--locator-device cuda: the cluster has no GPU; add nodes with GPUs, or leave "
                "--locator-device out"
            )
        chosen = _layout_on_cpus(settings, nodes, light, like)
    store = sum(node.get("object_store_memory", 0) for node in nodes)
    # One that is worked at and one more, everywhere.
    wanted = 2 * chosen.prepare.actors + (1 + _ESTIMATES_AT_ONCE) * chosen.estimate.actors
    ahead = max(2, min(wanted, int(store / 2 // CROP_BYTES_PER_SHARD)))
    return replace(chosen, shards_ahead=ahead)


def _layout_on_cpus(
    settings: AnnotateSettings, nodes: list[dict[str, float]], light: bool, like: Layout | None
) -> Layout:
    sizes = [node["CPU"] for node in nodes if node.get("CPU")]
    group = like.group if like else max(1.0, min(_CPUS_PER_GROUP, *sizes))
    groups = max(1, sum(int(size // group) for size in sizes))
    threads = settings.threads or (1 if light else int(group))
    each = max(1, int(group) // threads)
    estimators = settings.estimators or groups * each
    return Layout(
        Operator("prepare", settings.preparers or groups, round(0.35 * group, 2)),
        Operator("estimate", estimators, round(0.45 * group / each, 2), 0.0, _ESTIMATES_AT_ONCE),
        _commit(1 + (estimators - 1) // _CPU_ESTIMATORS_PER_COMMIT),
        settings.decoders or max(1, round(group / 4)),
        threads,
        "cpu",
        group=group,
    )


def _layout_on_gpus(
    settings: AnnotateSettings, nodes: list[dict[str, float]], gpus: int, like: Layout | None
) -> Layout:
    """An estimator and a commit actor per GPU; on every node, what is left goes to preparers."""
    taken = _COMMIT_CPUS + _ESTIMATE_CPUS
    free = [node.get("CPU", 0) - taken * max(1.0, node.get("GPU", 0)) for node in nodes]
    each = like.group if like else _even(free, _CPUS_PER_GPU_PREPARER)
    preparers = max(1, sum(int(f / each + 1e-9) for f in free if f > 0))
    estimators = settings.estimators or max(1, gpus)
    return Layout(
        Operator("prepare", settings.preparers or preparers, each),
        Operator("estimate", estimators, _ESTIMATE_CPUS, 1.0, _ESTIMATES_AT_ONCE),
        _commit(estimators),
        settings.decoders or max(1, math.ceil(each)),
        settings.threads or 1,
        "cuda",
        group=each,
    )


def _layout_with_locators(
    settings: AnnotateSettings, nodes: list[dict[str, float]], like: Layout | None
) -> Layout:
    """As `_layout_on_gpus`, but preparers are only where GPUs are, and share a part of each."""
    hosts = [(int(node.get("GPU", 0)), node.get("CPU", 0.0)) for node in nodes]
    taken = _COMMIT_CPUS + _ESTIMATE_CPUS
    free = [(gpus, cpus - taken * gpus) for gpus, cpus in hosts if gpus and cpus > taken * gpus]
    # Each has a context of its own on the GPU: many small ones, so that a small node has one, too,
    # would be worse than a few CPUs without work.
    large = [cpus for _, cpus in free if 2 * cpus >= _CPUS_PER_LOCATING_PREPARER]
    sizes = large or [cpus for _, cpus in free]
    each = like.group if like else _even(sizes, _CPUS_PER_LOCATING_PREPARER)
    on_nodes = [(gpus, int(cpus / each + 1e-9)) for gpus, cpus in free]
    share = like.prepare.gpus if like else _share(settings.locator_gpus, on_nodes)
    per_gpu = int(settings.locator_gpus / share + 1e-9)
    preparers = max(1, sum(min(count, gpus * per_gpu) for gpus, count in on_nodes))
    rest = round(1 - settings.locator_gpus, 4)
    places = int(1 / rest) * sum(gpus for gpus, _ in hosts)
    # Preparers wait for estimators to find their places, so there are no more than can.
    estimators = max(1, min(settings.estimators or sum(gpus for gpus, _ in hosts), places))
    return Layout(
        Operator("prepare", settings.preparers or preparers, each, share),
        Operator("estimate", estimators, _ESTIMATE_CPUS, rest, _ESTIMATES_AT_ONCE),
        _commit(estimators),
        settings.decoders or max(1, math.ceil(_LOCATED_DECODERS_PER_CPU * each)),
        settings.threads or 1,
        "cuda",
        group=each,
        locator_device="cuda",
    )


def _even(free: list[float], target: int) -> float:
    """CPUs of a preparer, about `target`, so that those of the smallest node are used up."""
    smallest = max(_COMMIT_CPUS, min((f for f in free if f > 0), default=_COMMIT_CPUS))
    return math.floor(100 * smallest / max(1, round(smallest / target))) / 100


def _share(locator_gpus: float, on_nodes: list[tuple[int, int]]) -> float:
    """Of a GPU, for each preparer: `on_nodes` are GPUs and preparers of each node."""
    most = max((math.ceil(preparers / gpus) for gpus, preparers in on_nodes), default=1)
    return max(1, math.floor(_SHARES * locator_gpus / max(1, most) + 1e-6)) / _SHARES


def _commit(actors: int) -> Operator:
    return Operator("commit", actors, _COMMIT_CPUS, at_once=_COMMITS_AT_ONCE)


def check_placement(chosen: Layout, nodes: list[dict[str, float]]) -> None:
    """Refuse a layout of which not even one actor per operator fits on the nodes."""
    free = [{"CPU": node.get("CPU", 0.0), "GPU": node.get("GPU", 0.0)} for node in nodes]
    for operator in sorted(chosen.operators, key=lambda o: (-o.gpus, -o.cpus)):
        for node in free:
            if node["CPU"] + 1e-9 >= operator.cpus and node["GPU"] + 1e-9 >= operator.gpus:
                node["CPU"] -= operator.cpus
                node["GPU"] -= operator.gpus
                break
        else:
            what = f"{operator.cpus:g} CPU" + (
                f" and {operator.gpus:g} GPU" if operator.gpus else ""
            )
            raise PosemillError(
                f"no node has {what} free for one {operator.name} actor; the cluster has "
                f"{sum(n.get('CPU', 0) for n in nodes):g} CPU and "
                f"{sum(n.get('GPU', 0) for n in nodes):g} GPU on {len(nodes)} nodes; add nodes, or "
                "lower --preparers, --estimators, or choose another --device or --locator-device"
            )
