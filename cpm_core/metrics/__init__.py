"""How far keypoints are from their labels: PCK, PCKh and OKS, as their papers define them."""

from cpm_core.metrics.pck import (
    Curve,
    JointErrors,
    Pck,
    limb_joints,
    lsp_errors,
    lspet_errors,
    pck_lsp,
    pck_lspet,
    pckh,
    pckh_errors,
    reference_length,
)
from cpm_core.metrics.rows import joint_rows
from cpm_core.metrics.similarity import (
    IgnoredPeople,
    LabelledPeople,
    PredictedPeople,
    average_precision,
    default_area,
    oks,
)

__all__ = [
    "Curve",
    "IgnoredPeople",
    "JointErrors",
    "LabelledPeople",
    "Pck",
    "PredictedPeople",
    "average_precision",
    "default_area",
    "joint_rows",
    "limb_joints",
    "lsp_errors",
    "lspet_errors",
    "oks",
    "pck_lsp",
    "pck_lspet",
    "pckh",
    "pckh_errors",
    "reference_length",
]
