"""Crops per second of every preset, its share of the hardware's peak, and the same network in
onnxruntime and OpenVINO.

    python -m benchmarks.forward [--presets cpm-lite cpm cpm-vgg] [--batches 1 4 16 64]

All of it on CPUs; `python -m benchmarks.gpu` is for a GPU.

"ours" is the estimator from uint8 crops to keypoints, with random weights but for `cpm-lite`;
"our-network" and the peers go from uint8 crops to belief maps. The peak is what a product of two
matrices (4096) reaches on the same device, threads and type; a share above 1 means that the network
does with less arithmetic. "Error" is the largest distance from the maps in fp64, as a part of their
largest value. Every measurement is in a process of its own, in turn, so that thread pools do not
disturb each other. `make .venv-bench/ready` installs what the peers need.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.networks import CPU, error_of, exact_maps, noise, peak, seconds_per_call, weights_of
from benchmarks.peers.onnx_threads import export
from cpm_core import cpu
from cpm_core.analysis import multiply_adds
from cpm_core.estimator import Estimator
from cpm_core.model import Cpm
from cpm_core.weights import Weights

_SECONDS = 2.0
_ENGINES = (
    "ours fp32",
    "ours bf16",
    "our-network fp32",
    "our-network bf16",
    "PyTorch fp32",
    "PyTorch bf16",
    "onnxruntime fp32",
    "OpenVINO fp32",
    "OpenVINO bf16",
)
Maps = NDArray[np.float32]


def main() -> None:
    """Measure all in turn, or be one of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--presets", nargs="+", default=["cpm-lite", "cpm-vgg", "cpm"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--engines", nargs="+", help="such as 'ours fp32' 'onnxruntime fp32'")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        engine, name, folder = options.one.split("|")
        print(json.dumps(measure(engine, name, Path(folder), options)))
        return
    rows = all_rows(options)
    print(table(rows, options))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def all_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every engine on every preset, each round in turn."""
    rows = []
    chosen = options.engines or engines()
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    with tempfile.TemporaryDirectory(prefix="posemill-forward-") as folder:
        for name in options.presets:
            found: dict[str, list[dict[str, Any]]] = {}
            for _ in range(options.rounds):
                for engine in chosen:
                    command = [sys.executable, "-m", "benchmarks.forward", "--one"]
                    command += [f"{engine}|{name}|{folder}", "--threads", str(options.threads)]
                    command += ["--batches", *map(str, options.batches)]
                    output = subprocess.check_output(command, env=environment, text=True)
                    found.setdefault(engine, []).append(json.loads(output.splitlines()[-1]))
            for engine, runs in found.items():
                rows.append({"preset": name, "engine": engine, **_medians(runs)})
                print(rows[-1], file=sys.stderr, flush=True)
    return rows


def engines() -> list[str]:
    """Those worth measuring: without instructions for bf16, a CPU takes minutes for the product of
    two matrices alone."""
    if cpu.has_bf16():
        return list(_ENGINES)
    print("no bf16: this CPU has no instructions for it", file=sys.stderr)
    return [engine for engine in _ENGINES if not engine.endswith("bf16")]


def _medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    first = runs[0]
    rates = {b: statistics.median(run["rates"][b] for run in runs) for b in first["rates"]}
    peak = statistics.median(run["peak"] for run in runs)
    return {**first, "rates": rates, "peak": peak}


def measure(engine: str, name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Crops per second by batch size, GFLOP/s of the device's peak, and the maps' error."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    weights = weights_of(name)
    size = weights.info.config.input_size
    crops = noise(max(options.batches), size)
    kind, precision = engine.split()
    run, maps = MAKERS[kind](weights, precision, folder, options)
    error = error_of(maps(crops[:1]), exact_maps(weights, crops[:1]))
    rates = {str(batch): _rate(run, crops[:batch]) for batch in options.batches}
    return {
        "rates": rates,
        "flop": 2 * multiply_adds(Cpm(weights.info.config)),
        "peak": peak(precision, CPU),
        "error": error,
        "device": platform.machine(),
    }


Engine = tuple[Callable[[NDArray[np.uint8]], object], Callable[[NDArray[np.uint8]], Maps]]


def _ours(weights: Weights, precision: str, _: Path, options: argparse.Namespace) -> Engine:
    estimator = Estimator(weights, "cpu", precision)  # type: ignore[arg-type]

    def maps(crops: NDArray[np.uint8]) -> Maps:
        with torch.inference_mode():
            images = torch.from_numpy(crops)[:, None]
            found: Maps = estimator._belief(images, every_stage=False)[-1].numpy()
            return found

    return lambda crops: estimator.estimate_crops(crops[:, None]), maps


def _our_network(
    weights: Weights, precision: str, folder: Path, options: argparse.Namespace
) -> Engine:
    """As ours, up to the belief maps: what the peers do."""
    _, maps = _ours(weights, precision, folder, options)
    return maps, maps


def _pytorch(weights: Weights, precision: str, folder: Path, options: argparse.Namespace) -> Engine:
    """As ours where there is no OpenVINO."""
    with mock.patch.object(cpu, "has_openvino", return_value=False):
        return _ours(weights, precision, folder, options)


def _exported(weights: Weights, folder: Path) -> Path:
    path = folder / f"{weights.info.name}.onnx"
    if not path.exists():
        export(weights, path)
    return path


def _onnxruntime(
    weights: Weights, precision: str, folder: Path, options: argparse.Namespace
) -> Engine:
    import onnxruntime as ort

    assert precision == "fp32"
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads
    path = str(_exported(weights, folder))
    session = ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])

    def maps(crops: NDArray[np.uint8]) -> Maps:
        found: Maps = session.run(None, {"crops": crops})[0]
        return found

    return maps, maps


def _openvino(
    weights: Weights, precision: str, folder: Path, options: argparse.Namespace
) -> Engine:
    import openvino as ov

    hints = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": options.threads,
        "NUM_STREAMS": 1,
    }
    model = ov.Core().compile_model(str(_exported(weights, folder)), "CPU", hints)

    def maps(crops: NDArray[np.uint8]) -> Maps:
        found: Maps = model(crops)[0]
        return found

    return maps, maps


MAKERS = {
    "ours": _ours,
    "our-network": _our_network,
    "PyTorch": _pytorch,
    "onnxruntime": _onnxruntime,
    "OpenVINO": _openvino,
}


def _rate(run: Callable[[NDArray[np.uint8]], object], crops: NDArray[np.uint8]) -> float:
    return len(crops) / seconds_per_call(lambda: run(crops), _SECONDS)


def table(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """Markdown."""
    lines = [
        f"{rows[0]['device']}, {options.threads} threads, torch {torch.__version__}",
        "",
        "| | | " + " | ".join(f"batch {b}" for b in options.batches) + " | share of peak | error |",
        "|---|---|" + "---:|" * (len(options.batches) + 2),
    ]
    for row in rows:
        best = max(row["rates"].values())
        share = best * row["flop"] / 1e9 / row["peak"]
        rates = " | ".join(f"{row['rates'][str(b)]:.3g}" for b in options.batches)
        lines.append(
            f"| {row['preset']} | {row['engine']} | {rates} | {share:.2f} | {row['error']:.0e} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
