"""PoseMill beside what people would use instead: pictures per second, memory, equal answers.

    python -m benchmarks.throughput [--pictures 2000 | --clips 200] [--rounds 3]
        [--only posemill loop] [--precision fp32] [--json F]

All get the same list of real pictures of mixed sizes, or of clips cut from real videos, each with
the whole picture as the person's box, and the same `cpm-lite` weights. All but onnxruntime, which
computes in fp32, use our estimator with the same precision. Every one runs in the layouts of
LAYOUTS. Rounds alternate, so that a slow spell of the machine hits all. The rate is
taken between the first fifth of the pictures and the last, once everybody runs; start-up and the
whole time are reported apart. Memory is the largest sum of the proportional set sizes of all
processes, in a round of its own, since to look at it costs time. Linux only; `make
.venv-bench/ready` installs what it needs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.task import CLIP_FRAMES, PRECISION, read_list
from benchmarks.processes import Watch
from cpm_core.weights import load_weights

SHARED = Path(__file__).resolve().parents[2] / "shared/data"
FOLDERS = ("coco_people", "bulk_unlabelled", "lspet_train")
LAYOUTS = {
    "loop": ((1, 2),),
    "posemill": ((0, 0),),
    "dataloader": ((2, 1), (2, 2)),
    "ray_data": ((1, 2),),
    "daft_class": ((1, 2), (2, 1)),
    "onnx_threads": ((1, 2),),
}
"""(threads, workers) that are tried for each on two CPUs; those that were never the quickest are
left out. PoseMill chooses for itself."""


@dataclass(frozen=True)
class Figures:
    """One run, in seconds; `rate` is pictures per second once running."""

    rate: float
    start_up: float
    total: float
    equal: float
    """Share of pictures with the plain loop's keypoints, of those that score 0.1, to a pixel of the
    picture or of the crop, whichever is larger: JPEGs may be decoded as finely as crops need."""
    cpus: dict[str, float]
    """CPUs that each kind of process kept busy meanwhile."""


def main() -> None:
    """Run all in turn and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder of the pictures")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--clips", type=int, help="so many short videos in the pictures' place")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--only", nargs="+", choices=sorted(LAYOUTS), default=list(LAYOUTS))
    parser.add_argument("--json", type=Path, help="also write all figures there")
    options = parser.parse_args()
    runs: dict[str, list[Figures]] = {}
    with tempfile.TemporaryDirectory(prefix="posemill-throughput-") as name:
        folder = Path(name)
        if options.clips:
            pictures = write_clips(options.shared / "videos", options.clips, folder)
        else:
            pictures = write_list(options.shared, options.pictures, folder / "list.csv")
        reference = folder / "reference.npz"
        environment = os.environ | {
            PRECISION: options.precision,
            "POSEMILL_ONNX": str(folder / "cpm-lite.onnx"),
        }
        if "onnx_threads" in options.only:
            from benchmarks.peers.onnx_threads import export

            export(load_weights("cpm-lite"), folder / "cpm-lite.onnx")
        tolerance = pixels_of_crops(pictures)
        run("loop", 2, 1, pictures, reference, environment)
        layouts = [(peer, *layout) for peer in options.only for layout in LAYOUTS[peer]]
        memory: dict[str, float] = {}
        for number in range(options.rounds + 1):
            for peer, threads, workers in layouts:
                result = folder / "result.npz"
                began = time.time()
                first = number == 0
                watch = run(peer, threads, workers, pictures, result, environment, memory=first)
                key = f"{peer} {threads}x{workers}"
                if first:
                    memory[key] = watch.peak_mib
                    print(key, f"{memory[key]:.0f} MiB", flush=True)
                    continue
                figures = measured(result, reference, tolerance, began, watch)
                runs.setdefault(key, []).append(figures)
                print(number, key, figures, flush=True)
    print(table(runs, memory))
    if options.json:
        figures_of = {k: [asdict(f) for f in v] for k, v in runs.items()}
        options.json.write_text(json.dumps({"runs": figures_of, "memory": memory}))


def write_list(shared: Path, count: int, target: Path) -> Path:
    """Real pictures, the larger ones evenly among the small."""
    found = [sorted((shared / folder).rglob("*.jpg")) for folder in FOLDERS]
    paths = [path for paths in found for path in paths][:count]
    if len(paths) < count:
        sys.exit(f"{shared} has {len(paths)} pictures; {count} are asked for")
    lines = ["uri,x,y,w,h"]
    for index in np.random.default_rng(0).permutation(count):
        height, width = cv2.imread(str(paths[index])).shape[:2]
        lines.append(f"{paths[index]},0,0,{width},{height}")
    target.write_text("\n".join(lines) + "\n")
    return target


def write_clips(videos: Path, count: int, folder: Path) -> Path:
    """Clips of real videos, each from another place, and a list with the whole frame as a box."""
    frames = [f for path in sorted(videos.glob("*.*[4i]")) for f in _frames(path)]
    starts = [
        n
        for n in range(len(frames) - CLIP_FRAMES)
        if frames[n].shape == frames[n + CLIP_FRAMES - 1].shape
    ]
    lines = ["uri,x,y,w,h"]
    for number, n in enumerate(np.random.default_rng(0).choice(starts, count)):
        clip = folder / f"clip-{number:04d}.mp4"
        height, width = frames[n].shape[:2]
        with av.open(str(clip), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for picture in frames[n : n + CLIP_FRAMES]:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        lines.append(f"{clip},0,0,{width},{height}")
    target = folder / "list.csv"
    target.write_text("\n".join(lines) + "\n")
    return target


def _frames(path: Path) -> list[NDArray[np.uint8]]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def run(
    peer: str,
    threads: int,
    workers: int,
    pictures: Path,
    result: Path,
    environment: dict[str, str],
    memory: bool = False,
) -> Watch:
    """Run one of them."""
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", f"benchmarks.peers.{peer}", str(pictures), str(result)]
    command += ["--threads", str(threads), "--workers", str(workers)]
    # Waiting threads sleep instead of spinning: it is the faster way where processes share CPUs.
    settings = {"OMP_WAIT_POLICY": "passive", "DAFT_PROGRESS_BAR": "0"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment | settings, stdout=log, stderr=log)
        with Watch(process, memory=memory) as watch:
            pass
        if process.returncode:
            log.seek(0)
            sys.exit(f"{' '.join(command)} failed:\n{log.read().decode()[-3000:]}")
    return watch


def pixels_of_crops(pictures: Path) -> NDArray[np.float64]:
    """How many pixels of the picture one of its crop is, at least 1, for each frame (N, 1)."""
    info = load_weights("cpm-lite").info
    items = read_list(pictures)
    sides = np.repeat([max(item.box[2:]) for item in items], [item.frames for item in items])
    return np.maximum(1.0, sides * info.box_factor / info.config.input_size)[:, None]


def measured(
    result: Path, reference: Path, tolerance: NDArray[np.float64], began: float, watch: Watch
) -> Figures:
    """The figures of one record. Exits where pictures are missing or doubled."""
    with np.load(result) as record, np.load(reference) as expected:
        if not np.array_equal(record["indices"], expected["indices"]):
            sys.exit(f"{result}: {len(record['indices'])} of {len(expected['indices'])} pictures")
        times, counts = record["times"], record["counts"]
        first = int(np.searchsorted(counts, counts[-1] / 5))
        rate = (counts[-1] - counts[first]) / (times[-1] - times[first])
        points, others = record["keypoints"], expected["keypoints"]
        seen = (points[..., 2] > 0.1) | (others[..., 2] > 0.1)
        distance = np.linalg.norm(points[..., :2] - others[..., :2], axis=-1)
        equal = float(np.mean(np.all((distance < tolerance) | ~seen, axis=1)))
        cpus = watch.cpus(times[first], times[-1])
        return Figures(float(rate), times[0] - began, times[-1] - began, equal, cpus)


def table(runs: dict[str, list[Figures]], memory: dict[str, float]) -> str:
    """Medians and spread, each one's rate beside PoseMill's, and the memory (MiB)."""
    lines = [
        "| | pictures/s | spread | PoseMill is | first, s | all, s | peak MiB | equal |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    ours = [f.rate for f in runs.get("posemill 0x0", [])]
    for name, figures in runs.items():
        rates = [f.rate for f in figures]
        pairs = [a / b for a, b in zip(ours, rates, strict=True)] if ours else []
        ratio = f"{statistics.median(pairs):.2f}" if pairs else ""
        start_up, total, equal = (
            statistics.median(getattr(f, n) for f in figures)
            for n in ("start_up", "total", "equal")
        )
        cells = [
            name,
            f"{statistics.median(rates):.0f}",
            f"{min(rates):.0f} to {max(rates):.0f}",
            ratio,
            f"{start_up:.1f}",
            f"{total:.1f}",
            f"{memory[name]:.0f}",
            f"{equal:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for name in (name for name in runs if name.startswith("posemill")):
        for role in sorted({role for f in runs.get(name, []) for role in f.cpus}):
            busy = statistics.median(f.cpus.get(role, 0.0) for f in runs[name])
            lines.append(f"{name}: {role} {busy:.2f} CPU")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
