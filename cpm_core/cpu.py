"""What this CPU, and what is installed here, can do. No torch in here."""

from __future__ import annotations

import importlib.util


def has_openvino() -> bool:
    """Whether networks can be compiled."""
    return importlib.util.find_spec("openvino") is not None


def has_bf16() -> bool:
    """Whether bf16 is quick here: instructions of the CPU, and OpenVINO, which uses them well."""
    if not has_openvino():
        return False
    from cpm_core.vino import bf16_is_native

    return bf16_is_native()
