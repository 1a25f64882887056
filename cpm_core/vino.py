"""OpenVINO, which is there for x86-64 only, with its telemetry off."""

from __future__ import annotations

import sys

# OpenVINO does without it, and would otherwise tell its maker of every import.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino as ov  # noqa: E402
from openvino import opset13 as ops  # noqa: E402

__all__ = ["bf16_is_native", "ops", "ov"]


def bf16_is_native() -> bool:
    """Whether this CPU has instructions for bf16."""
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
