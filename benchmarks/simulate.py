"""A model of a run on many GPUs: what is used to which part, and what gives out first.

    python -m benchmarks.simulate --images 1e9 --gpus 100 300 1000

Every stage is a server with a rate; a run is as fast as the slowest. The model knows no queues, so
it is a bound from above. Inputs are measured on two CPUs (docs/performance.md), but for those of
the GPU, of the network and of the object store, which are assumptions and can be given. Listing and
planning come before, one after the other.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

from pipeline.plan import CROP_BYTES_PER_SHARD


@dataclass(frozen=True)
class Cluster:
    """What there is, and what each thing takes. Rates are per second, times in seconds."""

    gpus: int
    crops_per_gpu: float
    cores_per_gpu: float
    pictures_per_core: float
    gigabits_per_gpu: float
    picture_bytes: float
    crop_pixels: int
    driver_per_shard: float
    commit_per_part: float
    commits_at_once: int
    drivers: int

    @property
    def images_per_shard(self) -> int:
        """As many crops as a shard has room for, 512 at most."""
        return min(512, CROP_BYTES_PER_SHARD // (3 * self.crop_pixels**2))

    def limits(self) -> dict[str, float]:
        """Images per second that each part of the cluster can do."""
        per_shard = self.images_per_shard
        return {
            "GPUs": self.gpus * self.crops_per_gpu,
            "decoding": self.gpus * self.cores_per_gpu * self.pictures_per_core,
            "network": self.gpus * self.gigabits_per_gpu * 1e9 / 8 / self.picture_bytes,
            "drivers": self.drivers * per_shard / self.driver_per_shard,
            "commits": self.gpus * self.commits_at_once * per_shard / self.commit_per_part,
        }


def main() -> None:
    """Print a row per number of GPUs, with one driver and with as many as it wants."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=float, default=1e9)
    parser.add_argument("--gpus", type=int, nargs="+", default=[100, 300, 1000])
    add = parser.add_argument
    add("--crops-per-gpu", type=float, default=1000, help="assumed: the goal for `cpm` on an H100")
    add("--cores-per-gpu", type=float, default=16, help="assumed")
    add("--pictures-per-core", type=float, default=207, help="measured: benchmarks/busy.py, 2 MP")
    add("--gigabits-per-gpu", type=float, default=12.5, help="assumed: 100 for eight GPUs")
    add("--picture-bytes", type=float, default=700e3, help="of a JPEG of 2 MP")
    add("--crop-pixels", type=int, default=368)
    add("--driver-per-shard", type=float, default=0.006, help="measured: benchmarks/curves.py")
    add("--commit-per-part", type=float, default=0.1, help="assumed: a PUT of 0.3 MB and its row")
    add("--commits-at-once", type=int, default=4, help="per GPU, as pipeline/cluster.py")
    add("--planned-per-second", type=float, default=33e3, help="measured: benchmarks/scale.py")
    options = parser.parse_args()
    print("| GPUs | drivers | images/s | limited by | used: | hours | parts | planning, h |")
    print("|---:|---:|---:|---|---|---:|---:|---:|")
    for gpus in options.gpus:
        alone = make(options, gpus, 1)
        without = {k: v for k, v in alone.limits().items() if k != "drivers"}
        wanted = math.ceil(min(without.values()) / alone.limits()["drivers"] / 0.7)
        for drivers in sorted({1, wanted}):
            print(row(options, make(options, gpus, drivers)))


def make(options: argparse.Namespace, gpus: int, drivers: int) -> Cluster:
    """A cluster of the options."""
    names = Cluster.__dataclass_fields__.keys() - {"gpus", "drivers"}
    return Cluster(gpus=gpus, drivers=drivers, **{name: getattr(options, name) for name in names})


def row(options: argparse.Namespace, cluster: Cluster) -> str:
    """Markdown."""
    limits = cluster.limits()
    slowest = min(limits, key=limits.__getitem__)
    rate = limits[slowest]
    used = ", ".join(f"{name} {rate / limit:.0%}" for name, limit in limits.items())
    parts = options.images / cluster.images_per_shard
    return (
        f"| {cluster.gpus} | {cluster.drivers} | {rate:,.0f} | {slowest} | {used} "
        f"| {options.images / rate / 3600:.1f} | {parts / 1e6:.1f} M "
        f"| {options.images / options.planned_per_second / 3600:.1f} |"
    )


if __name__ == "__main__":
    main()
