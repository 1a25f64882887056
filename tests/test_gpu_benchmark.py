"""`python -m benchmarks.gpu` where there is no GPU: what it measures, and what it tells."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.autograd import DeviceType

from benchmarks import gpu, gpu_training, gpu_variants, networks
from benchmarks.gpu_report import report
from cpm_core.config import preset
from cpm_core.model import Cpm
from cpm_core.resident.pack import write_pack
from tests.cpm_core.conftest import stick_figures
from tests.cpm_core.resident.packs import figures_pack

CPU = ["--device", "cpu", "--presets", "cpm-lite", "--batches", "1", "2", "--each", "0.01"]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setitem(gpu._PEAK_SIDE, "cpu", 128)


def test_all_that_a_cpu_can_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every batch, locating, training; what needs a GPU is told and ends nothing."""
    monkeypatch.setattr(gpu, "_TRAINING", (("cpm-lite", 64, 3, ""), ("cpm", 64, 1, "")))
    monkeypatch.setattr(gpu, "_PROFILED", (("cpm-lite", 64, 3, "--stages 1"),))
    monkeypatch.setattr(gpu_variants, "_PICTURES", 2)
    monkeypatch.setattr(gpu_training, "_TRAINING_S", 0.01)
    monkeypatch.setattr(gpu_training, "_WARM_UP_STEPS", 1)
    monkeypatch.setattr(gpu_training, "_PROFILED_STEPS", 1)
    pack, file = tmp_path / "pack.safetensors", tmp_path / "found.json"
    write_pack(pack, figures_pack(stick_figures(6)))
    chosen = ["--variants", "ours", "network", "graph", "--pack", str(pack), "--json", str(file)]
    gpu.main([*CPU, *chosen])
    found = json.loads(file.read_text())
    networks = [row for row in found["rows"] if row["kind"] == "network"]
    rates = {(row["variant"], row["batch"]): row.get("rate", 0) for row in networks}
    assert {key for key, rate in rates.items() if rate > 0} == {
        ("ours", 1),
        ("ours", 2),
        ("network", 1),
        ("network", 2),
    }
    assert all(row["error_of_maps"] < 1e-4 for row in networks if row["variant"] == "network")
    assert networks[-1]["variant"] == "graph"
    training = [row for row in found["rows"] if row["kind"] == "training"]
    assert [row["preset"] for row in training] == ["cpm-lite"]
    assert training[0]["rate"] > 0
    assert 0 < training[0]["cut_share"] < 1
    profiled = next(row for row in found["rows"] if row["kind"] == "profile")
    assert any("conv" in name and milliseconds > 0 for name, milliseconds in profiled["top"])
    assert found["dropped"] == []
    said = capsys.readouterr().out
    assert "| cpm-lite, crops/s | batch 1 | batch 2 | best |" in said
    assert "Training cpm-lite at 64 px, batch 3" in said
    assert "A training step of cpm-lite at 64 px, batch 3 --stages 1, " in said
    assert " ms:\n\n| ms | operation |" in said
    assert "- cpm-lite graph, batch 1: " in said
    assert torch.__version__ in said


def test_errors_are_those_of_the_networks_that_are_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those without shipped weights have random ones: the same each time, in each process."""
    small = preset("cpm-vgg", stages=2, input_size=64)
    monkeypatch.setattr(networks, "preset", lambda name: small)
    for one in (networks.weights_of, gpu_variants._exact):
        one.cache_clear()
    bench = gpu_variants.Bench(torch.device("cpu"), 0.01)
    for variant in ("network", "contiguous"):
        assert bench.network("cpm-vgg", variant, 2)["error_of_maps"] < 1e-3
    assert 1e-4 < bench.network("cpm-vgg", "bf16-weights", 1)["error_of_maps"] < 0.1
    first = networks.weights_of("cpm-vgg").tensors
    networks.weights_of.cache_clear()
    again = networks.weights_of("cpm-vgg").tensors
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    for one in (networks.weights_of, gpu_variants._exact):
        one.cache_clear()


@pytest.mark.parametrize(("variant", "seen"), [("network", "last"), ("contiguous", "first")])
def test_the_layout_is_that_of_the_variant(variant: str, seen: str) -> None:
    bench = gpu_variants.Bench(torch.device("cpu"), 0.01)
    model = Cpm(preset("cpm-lite", stages=1, input_size=64)).eval()
    forward = bench._forward(model, variant)
    second = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)][1]
    inputs: list[torch.Tensor] = []
    second.register_forward_hook(lambda _, given, __: inputs.append(given[0]))
    forward(bench._images(2, 64))
    layouts = {"last": torch.channels_last, "first": torch.contiguous_format}
    assert {k for k, v in layouts.items() if inputs[0].is_contiguous(memory_format=v)} == {seen}


def test_the_first_crop_is_the_same_in_every_batch() -> None:
    assert np.array_equal(networks.noise(1, 64)[0], networks.noise(7, 64)[0])


def test_a_kernel_counts_once() -> None:
    """The operator that launched it and the annotation around it have its time, too."""

    def event(key: str, kind: DeviceType, annotation: bool = False) -> SimpleNamespace:
        return SimpleNamespace(
            key=key, device_type=kind, is_user_annotation=annotation, self_device_time_total=2000
        )

    events = [
        event("aten::conv2d", DeviceType.CPU),
        event("sm90_xmma", DeviceType.CUDA),
        event("Optimizer.step", DeviceType.CUDA, annotation=True),
    ]
    found = gpu_training._milliseconds(events, torch.device("cuda"))
    assert found == {"sm90_xmma": 2.0}


def test_other_variants_take_the_best_two_batches() -> None:
    options = gpu._parser().parse_args(["--batches", "1", "8", "64"])
    session = gpu.Session(options, gpu_variants.Bench(torch.device("cpu"), 0.01))
    assert session._best_batches("cpm", 2) == [1, 8]
    for batch, rate in ((1, 10.0), (8, 30.0), (64, 20.0)):
        session.rows.append({"preset": "cpm", "variant": "network", "batch": batch, "rate": rate})
    assert session._best_batches("cpm", 2) == [8, 64]
    assert session._best_batches("cpm", 1) == [8]


def test_an_unforeseen_error_is_one_figures(tmp_path: Path) -> None:
    """What was found before it is in the file."""
    options = gpu._parser().parse_args(["--json", str(tmp_path / "found.json")])
    session = gpu.Session(options, gpu_variants.Bench(torch.device("cpu"), 0.01))
    session._figure("one", {"kind": "one"}, lambda: {"rate": 2.0})
    session._figure("two", {"kind": "two"}, lambda: {"rate": {}["none"]})
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [row.get("rate") for row in rows] == [2.0, None]
    assert rows[1]["error"].startswith("KeyError: ")


def test_what_there_is_no_time_for_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main([*CPU, "--seconds", "0"])
    said = capsys.readouterr().out
    assert "No time was left for: cpm-lite ours from batch 1 on; cpm-lite network" in said
    assert "person-net" in said


def test_a_child_that_takes_too_long_is_ended() -> None:
    row = gpu._in_time(["sh", "-c", "sleep 600 & wait"], 0)
    assert row == {"error": "not done after 0 s"}
    assert gpu._in_time(["echo", 'noise\n{"rate": 3.5}'], 60) == {"rate": 3.5}
    with pytest.raises(RuntimeError, match="broken"):
        gpu._in_time(["sh", "-c", "echo broken >&2; exit 3"], 60)


def test_a_report_of_failures() -> None:
    """A network without any figure; memory that gave out at a larger batch."""
    row = {"kind": "network", "preset": "cpm", "variant": "ours"}
    good = {"rate": 10.0, "ms": 100.0, "tflops": 2.0, "memory_mib": 7.0}
    found = {
        "device": "D",
        **dict.fromkeys(("torch", "cuda", "cudnn", "python", "threads", "when"), "1"),
        "seconds": 5.0,
        "batches": [1, 8],
        "peak_tflops": {"bf16": 4.0, "fp32": 1.0},
        "rows": [
            {**row, "batch": 1, **good},
            {**row, "batch": 8, "error": "OutOfMemoryError: none left"},
            {**row, "variant": "compiled", "batch": 1, "error": "no compiler"},
            {**row, "variant": "fp32", "batch": 1, **good},
            {"kind": "person-net", "error": "no"},
        ],
        "dropped": [],
    }
    text = report(found)
    assert "| ours | 10 | failed | 1 | 100 | 0.50 | 7 |  |" in text
    assert "| fp32 | 10 |  | 1 | 100 | 0.50 | 7 |  |" in text
    assert "| compiled | failed |  |  |  |  |  |  |" in text
    assert "- cpm ours, batch 8: OutOfMemoryError: none left" in text
    assert "person-net: failed, no" in text
