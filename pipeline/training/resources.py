"""Which device a run trains on, and what each of its workers takes of the cluster."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import PosemillError
from pipeline.training.settings import TrainSettings

_MOST_LOADERS = 16
_CPUS_PER_LOADER_OF_CPU_WORKER = 8
_CPUS_PER_GPU_TO_COME = 4.0
_RESERVED = 0.9
"""Of a worker's share of its node; the rest is for what Ray itself starts."""

Nodes = list[dict[str, float]]


@dataclass(frozen=True)
class Resources:
    """Per worker: CPUs reserved for itself and its loaders, loaders, threads of PyTorch."""

    device: str
    cpus: float
    loaders: int
    threads: int

    def for_ray(self) -> dict[str, float]:
        """As Ray Train takes it."""
        return {"CPU": self.cpus} | ({"GPU": 1.0} if self.device == "cuda" else {})

    def __str__(self) -> str:
        gpu = " and a GPU" if self.device == "cuda" else ""
        return f"{self.cpus:g} CPUs{gpu} per worker, {self.loaders} of its processes load"


def plan(settings: TrainSettings, nodes: Nodes, may_grow: bool) -> Resources:
    """Share out the nodes. `may_grow`: missing GPUs may still join.

    Raises PosemillError for GPUs that were asked for and are not there.
    """
    least, most = settings.worker_range
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    if settings.device == "cuda" and gpus < least and not may_grow:
        raise PosemillError(
            f"there are {gpus} GPUs for --workers {settings.workers}; lower --workers, use a "
            "cluster (--address), or say --device cpu"
        )
    on_gpus = settings.device == "cuda" or (settings.device == "auto" and gpus >= least)
    device = "cuda" if on_gpus else "cpu"
    share = _largest_share(nodes, most, device)
    if device == "cuda":
        loaders = settings.loaders or max(1, min(_MOST_LOADERS, int(share) - 1))
        threads = max(1, int(share) - loaders)
    else:
        loaders = settings.loaders or max(1, int(share) // _CPUS_PER_LOADER_OF_CPU_WORKER)
        threads = max(1, int(share))
    cpus = max(0.1, int(100 * _RESERVED * share) / 100)
    return Resources(device, cpus, loaders, settings.threads or threads)


def _largest_share(nodes: Nodes, workers: int, device: str) -> float:
    """CPUs per worker so that all workers fit, each whole on one node (with a GPU each on GPUs)."""
    rooms = [(node.get("CPU", 0.0), int(node.get("GPU", 0))) for node in nodes]
    if device == "cuda":
        rooms = [(cpus, gpus) for cpus, gpus in rooms if cpus and gpus]
        workers = min(workers, sum(gpus for _, gpus in rooms))
    else:
        rooms = [(cpus, workers) for cpus, _ in rooms if cpus]
    shares = sorted({c / k for c, _ in rooms for k in range(1, workers + 1)}, reverse=True)
    for share in shares:
        if sum(min(most, int(cpus / share + 1e-9)) for cpus, most in rooms) >= workers:
            return share
    return _CPUS_PER_GPU_TO_COME
