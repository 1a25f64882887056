"""`python -m benchmarks.gpu` where there is no GPU: what it measures, and what it tells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_variants
from benchmarks.gpu_report import report
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
    monkeypatch.setattr(gpu_variants, "_TRAINING_S", 0.01)
    monkeypatch.setattr(gpu_variants, "_WARM_UP_STEPS", 1)
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
    assert 0 < training[0]["wait_share"] < 1
    profiled = next(row for row in found["rows"] if row["kind"] == "profile")
    assert any("conv" in name and milliseconds > 0 for name, milliseconds in profiled["top"])
    assert found["dropped"] == []
    said = capsys.readouterr().out
    assert "| cpm-lite, crops/s | batch 1 | batch 2 | best |" in said
    assert "Training cpm-lite at 64 px, batch 3" in said
    assert "A training step of cpm-lite at 64 px, batch 3 --stages 1:\n\n| ms | oper" in said
    assert "- cpm-lite graph, batch 1: " in said
    assert torch.__version__ in said


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
            {"kind": "person-net", "error": "no"},
        ],
        "dropped": [],
    }
    text = report(found)
    assert "| ours | 10 | failed | 1 | 100 | 0.50 | 7 |  |" in text
    assert "| compiled | failed |  |  |  |  |  |  |" in text
    assert "- cpm ours, batch 8: OutOfMemoryError: none left" in text
    assert "person-net: failed, no" in text
